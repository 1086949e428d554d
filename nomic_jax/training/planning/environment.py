"""What JAX and the compilers read from the environment when they are imported."""

import os


def prepare_environment() -> None:
    """Keep JAX from looking for hardware; to be called before it is imported."""
    os.environ["JAX_PLATFORMS"] = "cpu"
    # Programs for other machines can be written to it and not read from it.
    os.environ["JAX_ENABLE_COMPILATION_CACHE"] = "false"
    # Its lock guards chips, of which none is used.
    os.environ.setdefault("ALLOW_MULTIPLE_LIBTPU_LOAD", "1")
    # CUDA's own libraries run programs; the compiler needs none of them.
    os.environ.setdefault("JAX_SKIP_CUDA_CONSTRAINTS_CHECK", "1")
    # Without these libtpu asks Google Cloud's metadata server what machine this is, and
    # complains of each answer that it misses.
    os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")
    os.environ.setdefault("TPU_WORKER_HOSTNAMES", "localhost")
    os.environ.setdefault("TPU_ACCELERATOR_TYPE", "v5litepod-4")
    os.environ.setdefault("TPU_STDERR_LOG_LEVEL", "3")
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
