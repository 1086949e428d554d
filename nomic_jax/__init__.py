"""Nomic Embed in JAX: train, convert and run NomicBERT text encoders."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from nomic_jax.batch import Tokens
    from nomic_jax.config import EmbeddingConfig, ModelConfig
    from nomic_jax.embedder import Embedder
    from nomic_jax.model.encoder import NomicBert
    from nomic_jax.model.heads import MaskedLanguageModel

_HOMES = {
    "Embedder": "nomic_jax.embedder",
    "EmbeddingConfig": "nomic_jax.config",
    "MaskedLanguageModel": "nomic_jax.model.heads",
    "ModelConfig": "nomic_jax.config",
    "NomicBert": "nomic_jax.model.encoder",
    "Tokens": "nomic_jax.batch",
}

__all__ = [
    "Embedder",
    "EmbeddingConfig",
    "MaskedLanguageModel",
    "ModelConfig",
    "NomicBert",
    "Tokens",
]


def __getattr__(name: str) -> Any:
    """Import a public name when it is first asked for, so that `--help` is quick."""
    if name not in _HOMES:
        raise AttributeError(
            f"module 'nomic_jax' has no attribute {name!r}; it offers {sorted(_HOMES)}"
        )
    import importlib

    return getattr(importlib.import_module(_HOMES[name]), name)
