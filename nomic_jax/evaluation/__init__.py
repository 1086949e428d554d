"""Embedding quality: retrieval, similarity, MTEB's other kinds, and BM25."""

from nomic_jax.lazy import offer

__getattr__, __dir__, __all__ = offer(__name__, __file__)
