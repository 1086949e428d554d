"""The devices of a pod or host that is not here, for the compiler alone.

`v5e:4x4` is a TPU slice by its sides; `h100:8` a host of so many GPUs. Nothing is run:
JAX only hands the compiler a description.
"""

import dataclasses
import math
import re
from collections.abc import Sequence
from typing import Any

from nomic_jax.fields import nearest
from nomic_jax.plan.chips import CHIPS, Chip

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
            f"--topology {name}: no chip is named {before!r}; {nearest(before, CHIPS)}"
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
