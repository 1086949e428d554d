"""Encoders that a contrastive stage uses and does not train: a guide and a teacher.

The guide decides which candidates are no negatives (GISTEmbed, Solatorio 2024,
arXiv:2402.16829, section 3); the teacher's similarities are learned beside the pairs'
labels (training/distillation.py). Both read the rows that the trained encoder reads, so
they need its tokenizer, and meet the prefixes that the stores were prepared with.
"""

import dataclasses
from collections.abc import Iterable

import jax

from nomic_jax.batch import PairBatch, as_pytree
from nomic_jax.config import EmbeddingConfig, ModelConfig
from nomic_jax.model.encoder import NomicBert
from nomic_jax.training.flops import flops_per_token


@dataclasses.dataclass(frozen=True, kw_only=True)
class GuideConfig:
    """The encoder whose cosines say what is a false negative."""

    model: str = ""  # folder or hub id; empty: the one that is trained, as it is then


@dataclasses.dataclass(frozen=True)
class FrozenEncoder:
    """An encoder and how its hidden states become a vector, as a pytree."""

    encoder: NomicBert
    embedding: EmbeddingConfig


def _flatten(frozen: FrozenEncoder):
    key = jax.tree_util.GetAttrKey("encoder")
    return [(key, frozen.encoder)], frozen.embedding


def _unflatten(embedding: EmbeddingConfig, parts: Iterable[NomicBert]) -> FrozenEncoder:
    (encoder,) = parts
    return FrozenEncoder(encoder, embedding)


jax.tree_util.register_pytree_with_keys(FrozenEncoder, _flatten, _unflatten)


@as_pytree
@dataclasses.dataclass(frozen=True)
class Frozen:
    """The frozen encoders of a step, an argument of the compiled step."""

    guide: FrozenEncoder | None = None
    teacher: FrozenEncoder | None = None


def check_frozen(
    section: str,
    named: str,
    given: FrozenEncoder | None,
    *,
    longest: int,
) -> None:
    """Refuse a frozen encoder that the config does not name, or that cannot read rows.

    Args:
        section: of the stage: guide or teacher.
        named: its `model`.
        given: what was loaded for it.
        longest: tokens of a row.

    Raises:
        ValueError: one of name and encoder is there without the other, or the encoder
            was trained on shorter texts.
    """
    if bool(named) != (given is not None):
        raise ValueError(
            f"{section}.model={named!r}, and {'an' if given else 'no'} encoder is given"
            " for it; give one with the other"
        )
    if given is None:
        return
    config = given.encoder.config
    if longest > config.trained_positions and config.rope_scaling_factor is None:
        raise ValueError(
            f"{section}.model={named!r} was trained on up to "
            f"{config.trained_positions} tokens, texts have up to {longest}; shorten "
            "them, or take another model"
        )


def check_tokenizer(section: str, named: str, digest: str, trained: str) -> None:
    """Refuse a frozen encoder whose tokens have other ids than the trained one's.

    Args:
        section: of the stage: guide or teacher.
        named: its `model`.
        digest: of its tokenizer.
        trained: digest of the trained encoder's tokenizer.

    Raises:
        ValueError: they differ; both are named.
    """
    if digest != trained:
        raise ValueError(
            f"{section}.model={named!r} has tokenizer {digest}, the model that is "
            f"trained has {trained}: they read the same rows, so choose one with the "
            "same tokenizer"
        )


def step_flops(config: ModelConfig, frozen: Frozen, arrays: PairBatch) -> float:
    """Count the FLOPs of a step by token: frozen encoders have no backward pass.

    Args:
        config: of the trained encoder.
        frozen: beside it.
        arrays: the batch on the host.
    """
    others = [each for each in (frozen.guide, frozen.teacher) if each is not None]
    return flops_per_token(config, arrays) + sum(
        flops_per_token(other.encoder.config, arrays) / 3 for other in others
    )
