"""How tests compile: in a quarter of the time that users' programs take.

XLA's ordinary optimisation is for programs that run for hours; those of tests run for
milliseconds. Compiling a contrastive step for 8 devices took 14 s; at level 0, 7 s; and
without the emitters that go through MLIR, 4 s, where there are others. Workers keep all
cores busy, so a program is not split for several: that is a twelfth of what is left.
Tests that compare bits are marked `optimized` and keep the ordinary level, as do those
of real weights and of a GPU.

Programs that took long are kept in `.pytest_cache/xla`, which all workers and processes
of tests share: three files that took 248 s took 153 the second time. With a maximum
size JAX locks the folder while it writes and reads.
"""

import importlib.metadata
import os
from pathlib import Path

from paths import HELPERS, ROOT

# Newer JAX may have no other emitters, and ends at a flag that it does not know.
HAS_OTHERS = importlib.metadata.version("jaxlib").startswith("0.10.")
FLAGS = (
    "--xla_cpu_use_fusion_emitters=false --xla_cpu_parallel_codegen_split_count=1"
    if HAS_OTHERS
    else ""
)
LEVEL_0 = "JAX_DISABLE_MOST_OPTIMIZATIONS"
CACHE = "JAX_COMPILATION_CACHE_DIR"
VARIABLES = {
    "JAX_PLATFORMS": "cpu",
    "XLA_FLAGS": FLAGS,
    LEVEL_0: "1",
    CACHE: str(ROOT / ".pytest_cache" / "xla"),
    "JAX_COMPILATION_CACHE_MAX_SIZE": str(2 * 10**9),
    "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0.3",
}


def environment(*, devices: int = 1, test: str = "") -> dict[str, str]:
    """Variables for a process that sees so many CPU devices.

    It imports helpers, and what is next to the file of a test.
    """
    folders = [ROOT, HELPERS, *([Path(test).parent] if test else [])]
    return {
        **os.environ,
        "JAX_PLATFORMS": "cpu",
        "PYTHONPATH": os.pathsep.join(map(str, folders)),
        "XLA_FLAGS": f"{FLAGS} --xla_force_host_platform_device_count={devices}",
        LEVEL_0: "1",
    }


def of_a_user() -> dict[str, str]:
    """Variables as a user has them: nothing of how tests compile and import."""
    ours = {*VARIABLES, "PYTHONPATH", "HF_TOKEN"} - {"JAX_PLATFORMS"}
    return {name: value for name, value in os.environ.items() if name not in ours}
