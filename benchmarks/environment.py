"""The machine and libraries that figures were taken with, and how fast they multiply.

A ratio of two libraries says little where one of them multiplies matrices at twice the
rate of the other, so both rates stand beside it. No path and no host's name is kept.
"""

import datetime
import importlib.metadata
import importlib.util
import os
import platform
import statistics
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

ROOT = Path(__file__).parent.parent
PACKAGES = (
    *("jax", "jaxlib", "flax", "torch", "transformers", "sentence-transformers"),
    *("flash-attn", "tokamax"),
)
# What the benchmarks write themselves does not make the code another one.
OWN = (":!benchmarks/results", ":!docs/benchmarks.md")
COMMIT = "NOMIC_JAX_COMMIT"  # names the commit of a copy that is no git checkout
TIMED = 5  # products, of which the median counts


def environment(*packages: str) -> dict[str, Any]:
    """Describe what measures, once, before it measures.

    Args:
        packages: whose versions matter too, besides those that always do.

    Returns:
        Values that JSON can hold. `commit` is None where nothing tells it, `torch` and
        its rate are absent where PyTorch is not installed.
    """
    load = os.getloadavg()[0]  # before the products below add to it
    found: dict[str, Any] = {
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "commit": commit(),
        "processor": processor(),
        "cores": len(os.sched_getaffinity(0)),
        "memory_gib": round(
            os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1
        ),
        "load": round(load, 2),
        "devices": [device.device_kind for device in jax.devices()],
        "python": platform.python_version(),
        "packages": versions(*PACKAGES, *packages),
        "matmul": {"jax": _jax_rate()},
    }
    if importlib.util.find_spec("torch"):
        import torch

        found["torch_threads"] = torch.get_num_threads()
        found["matmul"]["torch"] = _torch_rate()
    return found


def commit() -> str | None:
    """Return the commit of this code, with `+` behind it where the tree is changed."""
    try:
        name = _git("rev-parse", "--short=12", "HEAD")
        changed = _git("status", "--porcelain", "--", ".", *OWN)
    except (OSError, subprocess.CalledProcessError):
        return os.environ.get(COMMIT)
    return f"{name}+" if changed else name


def _git(*arguments: str) -> str:
    done = subprocess.run(
        ["git", *arguments], cwd=ROOT, capture_output=True, text=True, check=True
    )
    return done.stdout.strip()


def processor() -> str:
    """Return the processor's name, with its family where the name says little."""
    told = {}
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        key, _, value = line.partition(":")
        told.setdefault(key.strip(), value.strip())
    name = told.get("model name") or platform.processor() or platform.machine()
    if "cpu family" not in told:
        return name
    # Virtual machines cut names: "AMD EPYC" are five generations.
    return f"{name} (family {told['cpu family']}, model {told.get('model')})"


def versions(*packages: str) -> dict[str, str]:
    """Return the versions of those packages that are installed."""
    found = {}
    for name in packages:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def _rate(size: int, dtype: str, product: Callable[[], object]) -> dict[str, Any]:
    """Time products of square matrices, in GFLOP/s."""
    product()
    seconds = []
    for _ in range(TIMED):
        began = time.perf_counter()
        product()
        seconds.append(time.perf_counter() - began)
    gflops = 2 * size**3 / statistics.median(seconds) / 1e9
    return {"size": size, "dtype": dtype, "gflops": round(gflops, 1)}


def _size_of(accelerated: bool) -> tuple[int, str]:
    return (8192, "bfloat16") if accelerated else (2048, "float32")


def _jax_rate() -> dict[str, Any]:
    size, dtype = _size_of(jax.default_backend() != "cpu")
    a = jax.random.normal(jax.random.key(0), (size, size), jnp.dtype(dtype))
    multiply = jax.jit(jnp.matmul)
    return _rate(size, dtype, lambda: jax.block_until_ready(multiply(a, a)))


def _torch_rate() -> dict[str, Any]:
    import torch

    accelerated = torch.cuda.is_available()
    size, dtype = _size_of(accelerated)
    device = "cuda" if accelerated else "cpu"
    a = torch.randn(size, size, dtype=getattr(torch, dtype), device=device)

    def product() -> None:
        a @ a
        if accelerated:
            torch.cuda.synchronize()

    return _rate(size, dtype, product)
