"""Chips and topologies: what vendors say of them, as devices that JAX compiles for.

`v5e:4x4` is a TPU slice by its sides; `h100:8` a host of so many GPUs. Nothing is run:
JAX only hands the compiler a description, for which the environment is prepared before
JAX is imported. TPUs: Google Cloud's pages on each version's system architecture; their
memory is what the compiler lets a program have of it. GPUs: NVIDIA's data sheets of the
SXM forms; their gigabytes are taken as 10^9 bytes, less than the cards have, since the
driver and CUDA take some.
"""

import dataclasses
import math
import re
from collections.abc import Sequence
from typing import Any

from nomic_jax.config import did_you_mean
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
MISSING = {
    "tpu": "the compiler for TPUs, libtpu, is not installed: "
    "pip install 'nomic-jax[tpu]'",
    "cuda": "the compiler for GPUs is not installed: pip install 'nomic-jax[gpu]', or "
    "jax-cuda13-plugin and jax-cuda13-pjrt of jax's version alone; it needs no GPU",
}


@dataclasses.dataclass(frozen=True)
class Topology:
    """Chips side by side."""

    name: str
    chip: Chip
    devices: Sequence[Any]  # for JAX's compiler; nothing can be put on them

    @property
    def chips(self) -> int:
        """The number a maker would count."""
        return len(self.devices) // self.chip.cores


def parse_topology(name: str) -> tuple[Chip, tuple[int, ...]]:
    """Return the chip and the sides that a topology names.

    Raises:
        ValueError: it names none, with those there are.
    """
    before, _, after = name.partition(":")
    if before not in CHIPS:
        raise ValueError(
            f"--topology {name}: no chip is named {before!r}; "
            f"{did_you_mean(before, CHIPS)}"
        )
    chip = CHIPS[before]
    if chip.platform == "cuda":
        if not re.fullmatch(r"[1-8]", after):
            raise ValueError(
                f"--topology {name}: a host of GPUs is {before}:1 to {before}:8"
            )
        return chip, (int(after),)
    if not re.fullmatch(r"[1-9]\d*(x[1-9]\d*){1,2}", after):
        example = "4x4" if chip.name in ("v5e", "v6e") else "4x4x4"
        raise ValueError(
            f"--topology {name}: give the sides of the slice, as in {before}:{example}"
        )
    return chip, tuple(map(int, after.split("x")))


def open_topology(name: str) -> Topology:
    """Describe the devices of a topology to JAX.

    Raises:
        ValueError: there is no such topology, or its compiler is not installed.
    """
    chip, sides = parse_topology(name)

    import jax
    from jax.experimental import topologies

    if chip.platform == "tpu":
        options: dict[str, Any] = {"topology_name": name}
        if math.prod(sides) == 1:
            options["chips_per_host_bounds"] = [1, 1, 1]
    else:
        options = {
            "topology_name": name,
            "topology": f"1x1x{sides[0]}",
            "target_config": gpu_description(chip),
        }
    try:
        found = topologies.get_topology_desc(platform=chip.platform, **options)
    except NotImplementedError as error:
        raise ValueError(f"--topology {name}: {MISSING[chip.platform]}") from error
    except jax.errors.JaxRuntimeError as error:
        raise ValueError(f"--topology {name}: {str(error).splitlines()[0]}") from error
    except RuntimeError as error:  # what JAX says where there is no libtpu
        raise ValueError(f"--topology {name}: {MISSING[chip.platform]}") from error
    return Topology(name, chip, list(found.devices))


def gpu_description(chip: Chip) -> str:
    """Describe a GPU as XLA's compiler wants it: text of a GpuTargetConfigProto."""
    major, minor = chip.compute_capability
    return f"""
gpu_device_info {{
  threads_per_block_limit: 1024
  threads_per_warp: 32
  shared_memory_per_block: 49152
  shared_memory_per_core: {chip.shared_memory}
  shared_memory_per_block_optin: {chip.shared_memory - 1024}
  threads_per_core_limit: 2048
  core_count: {chip.multiprocessors}
  fpus_per_core: {64 if major == 8 else 128}
  block_dim_limit_x: 2147483647
  block_dim_limit_y: 65535
  block_dim_limit_z: 65535
  thread_dim_limit_x: 1024
  thread_dim_limit_y: 1024
  thread_dim_limit_z: 64
  registers_per_core_limit: 65536
  registers_per_block_limit: 65536
  memory_bandwidth: {int(chip.memory_bandwidth)}
  l2_cache_size: {chip.l2_cache}
  clock_rate_ghz: {chip.clock}
  device_memory_size: {int(chip.memory)}
  cuda_compute_capability {{ major: {major} minor: {minor} }}
}}
platform_name: "CUDA"
dnn_version_info {{ major: 9 minor: 10 }}
device_description_str: "{chip.name}"
"""
