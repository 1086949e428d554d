"""Token stores: text tokenised once, in shards that are read at random."""

from nomic_jax.lazy import offer

__getattr__, __dir__, __all__ = offer(__name__, __file__)
