"""From text to batches: sources, stores, packing, and which records a step takes."""

from nomic_jax.lazy import offer

__getattr__, __dir__, __all__ = offer(__name__, __file__)
