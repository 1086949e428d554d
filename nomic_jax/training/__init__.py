"""Training: stages, losses, the optimizer, the step, and the loop."""

from nomic_jax.lazy import offer

__getattr__, __dir__, __all__ = offer(__name__, __file__)
