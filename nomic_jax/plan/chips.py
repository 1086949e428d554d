"""What the makers say of their chips, as devices in the sense of JAX.

TPUs: Google Cloud's pages on each version's system architecture; their memory is what
the compiler lets a program have of it. GPUs: NVIDIA's data sheets of the SXM forms;
their gigabytes are taken as 10^9 bytes, less than the cards have, since the driver and
CUDA take some.
"""

import dataclasses

from nomic_jax.training.flops import PEAK_FLOPS

GIB = 2**30


@dataclasses.dataclass(frozen=True, kw_only=True)
class Chip:
    """One device: a chip, or a core of it where JAX counts those."""

    name: str  # as a topology begins
    platform: str  # whose compiler
    peak: float  # bfloat16 FLOP/s
    memory: float  # bytes of HBM that a program can have
    memory_bandwidth: float  # bytes/s
    # Bytes/s out of the device over all its links, while as many come in.
    link_bandwidth: float
    cores: int = 1  # devices of a chip
    compute_capability: tuple[int, int] = (0, 0)  # of a GPU
    multiprocessors: int = 0
    shared_memory: int = 0  # bytes of a multiprocessor
    l2_cache: int = 0  # bytes
    clock: float = 0.0  # GHz


CHIPS: dict[str, Chip] = {
    chip.name: chip
    for chip in (
        Chip(
            name="v4",
            platform="tpu",
            peak=PEAK_FLOPS["TPU v4"] / 2,  # the compiler takes its cores one by one
            memory=15.25 * GIB,
            memory_bandwidth=1228e9 / 2,
            link_bandwidth=300e9 / 2,
            cores=2,
        ),
        Chip(
            name="v5e",
            platform="tpu",
            peak=PEAK_FLOPS["TPU v5e"],
            memory=15.75 * GIB,
            memory_bandwidth=819e9,
            link_bandwidth=200e9,
        ),
        Chip(
            name="v5p",
            platform="tpu",
            peak=PEAK_FLOPS["TPU v5p"],
            memory=95.74 * GIB,
            memory_bandwidth=2765e9,
            link_bandwidth=600e9,
        ),
        Chip(
            name="v6e",
            platform="tpu",
            peak=PEAK_FLOPS["TPU v6e"],
            memory=31.25 * GIB,
            memory_bandwidth=1640e9,
            link_bandwidth=448e9,
        ),
        Chip(
            name="tpu7x",
            platform="tpu",
            peak=PEAK_FLOPS["TPU7x"],
            memory=94.75 * GIB,
            memory_bandwidth=7380e9 / 2,
            link_bandwidth=1200e9 / 2,
            cores=2,
        ),
        Chip(
            name="a100",
            platform="cuda",
            peak=PEAK_FLOPS["NVIDIA A100"],
            memory=80e9,
            memory_bandwidth=2039e9,
            link_bandwidth=300e9,
            compute_capability=(8, 0),
            multiprocessors=108,
            shared_memory=167936,
            l2_cache=41943040,
            clock=1.41,
        ),
        Chip(
            name="h100",
            platform="cuda",
            peak=PEAK_FLOPS["NVIDIA H100"],
            memory=80e9,
            memory_bandwidth=3352e9,
            link_bandwidth=450e9,
            compute_capability=(9, 0),
            multiprocessors=132,
            shared_memory=233472,
            l2_cache=52428800,
            clock=1.98,
        ),
        Chip(
            name="h200",
            platform="cuda",
            peak=PEAK_FLOPS["NVIDIA H200"],
            memory=141e9,
            memory_bandwidth=4800e9,
            link_bandwidth=450e9,
            compute_capability=(9, 0),
            multiprocessors=132,
            shared_memory=233472,
            l2_cache=52428800,
            clock=1.98,
        ),
    )
}
