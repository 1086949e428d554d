"""Sources of text: every kind of file or data set behind one protocol."""

from nomic_jax.lazy import offer

__getattr__, __dir__, __all__ = offer(__name__, __file__)
