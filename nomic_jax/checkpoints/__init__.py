"""Checkpoints: published tensors and configs to ours and back, strictly."""

from nomic_jax.lazy import offer

__getattr__, __dir__, __all__ = offer(__name__, __file__)
