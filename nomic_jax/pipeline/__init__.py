"""A whole run from one config: its stages in order, their overrides, and the report."""

from nomic_jax.lazy import offer

__getattr__, __dir__, __all__ = offer(__name__, __file__)
