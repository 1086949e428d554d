"""The encoder of all families, its heads, and pooling."""

from nomic_jax.lazy import offer

__getattr__, __dir__, __all__ = offer(__name__, __file__)
