"""The command line: `nomic-jax`, one file for each command."""

from nomic_jax.lazy import offer

__getattr__, __dir__, __all__ = offer(__name__, __file__)
