"""Task heads: examples, batches, losses, training and metrics, and GLUE."""

from nomic_jax.lazy import offer

__getattr__, __dir__, __all__ = offer(__name__, __file__)
