"""What the machine decides: the type of matmuls, batch sizes, the compilation cache."""

import os
from pathlib import Path
from typing import Literal, get_args

import jax

Dtype = Literal["float32", "bfloat16"]

MIN_COMPILE_TIME = "jax_persistent_cache_min_compile_time_secs"


def chosen_dtype(dtype: str | None) -> Dtype:
    """Return the type that is asked for, or the default where none is.

    Raises:
        ValueError: there is no such type.
    """
    for each in get_args(Dtype):
        if dtype == each:
            return each
    if dtype is not None:
        raise ValueError(f"dtype={dtype!r} must be one of {get_args(Dtype)}")
    return default_dtype()


def default_dtype() -> Dtype:
    """Return the type matmuls run in here: bfloat16 on GPU and TPU, float32 on CPU."""
    return "float32" if jax.default_backend() == "cpu" else "bfloat16"


def default_tokens_per_batch() -> int:
    """Return how many tokens to embed at once.

    A processor works from its cache: on 2 loaded cores 2,048 tokens ran three times as
    fast as 16,384. It is a row of the trained length. An accelerator has lanes to fill.
    """
    return 2048 if jax.default_backend() == "cpu" else 16_384


def keep_compiled_programs() -> None:
    """Let JAX keep compiled programs on disk, unless it was told where already.

    The folder is `nomic_jax/xla` under the user's cache folder (`XDG_CACHE_HOME`).
    """
    if jax.config.values["jax_compilation_cache_dir"] is None:
        cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
        jax.config.update("jax_compilation_cache_dir", str(cache / "nomic_jax" / "xla"))
        if MIN_COMPILE_TIME.upper() not in os.environ:
            # JAX keeps what took 1 s to compile; small encoders take less, and add up.
            jax.config.update(MIN_COMPILE_TIME, 0.2)
