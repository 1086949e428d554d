"""Use a model: embed, search, fill masks, verify."""

from nomic_jax.lazy import offer

__getattr__, __dir__, __all__ = offer(__name__, __file__)
