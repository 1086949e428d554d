"""What a training step needs of chips that are not here, by compiling it for them."""

from nomic_jax.lazy import offer

__getattr__, __dir__, __all__ = offer(__name__, __file__)
