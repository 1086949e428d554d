"""Nomic Embed in JAX: train, convert and run NomicBERT text encoders."""

from nomic_jax.lazy import offer

__version__ = "0.1.0"

__getattr__, __dir__, __all__ = offer(__name__, __file__)
