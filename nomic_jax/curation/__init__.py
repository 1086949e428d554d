"""Better training pairs: a consistency filter, and mined hard negatives."""

from nomic_jax.lazy import offer

__getattr__, __dir__, __all__ = offer(__name__, __file__)
