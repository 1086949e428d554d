"""Batches before there is data: what their texts are assumed to be, as shapes.

Rows of masked text are full, and texts of pairs as long as the config lets them be,
unless their mean lengths are told. Pairs are packed as training packs them.
"""

import dataclasses
from typing import TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Int

from nomic_jax.batch import MlmBatch, PackedTexts, PairBatch, Tokens
from nomic_jax.data.mlm import slots, texts_per_row
from nomic_jax.data.packing import pack_texts
from nomic_jax.training.contrastive import ContrastiveStage
from nomic_jax.training.mlm import MlmStage

TrainingStage: TypeAlias = MlmStage | ContrastiveStage

FEWEST_TOKENS = 3  # of a text: [CLS] token [SEP]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Assumptions:
    """What only the data could tell."""

    vocabulary: int = 30_522  # tokens of the tokenizer: BERT's
    query_tokens: int | None = None  # mean; None: query_length, all of it
    document_tokens: int | None = None  # mean; None: document_length, all of it
    model: str = "nomic-embed-text-v1"  # published one, for a start.model not here


def row_length(stage: TrainingStage) -> int:
    """Return the tokens of a row of the stage's batches."""
    if isinstance(stage, MlmStage):
        return stage.data.row_length
    return max(stage.data.query_length, stage.data.document_length)


def mlm_batch(stage: MlmStage) -> tuple[MlmBatch, Int[np.ndarray, " texts"], str]:
    """Return a batch's shapes, the lengths of its texts, and what was assumed."""
    rows, length = stage.train.batch_size, stage.data.row_length
    room = slots(length, stage.data.mask_rate)
    texts = texts_per_row(stage.data.documents)
    batch = jax.eval_shape(
        lambda: MlmBatch(
            Tokens(_numbers(rows, length), _numbers(rows, length), texts=texts),
            _numbers(rows, room),
            _numbers(rows, room),
            jnp.zeros((rows, room), jnp.bool_),
        )
    )
    return batch, np.full(rows, length), f"rows full, each one text of {length} tokens"


def pair_batch(
    stage: ContrastiveStage, parts: int, assumed: Assumptions
) -> tuple[PairBatch, Int[np.ndarray, " texts"], str]:
    """Return a batch's shapes, the lengths of its texts, and what was assumed.

    Raises:
        ValueError: a mean is more than the longest text has.
    """
    data, queries = stage.data, stage.train.batch_size
    documents = queries * (1 + data.num_negatives)
    sides = (
        ("queries", queries, assumed.query_tokens, data.query_length),
        ("documents", documents, assumed.document_tokens, data.document_length),
    )
    lengths = np.concatenate([spread(*side) for side in sides])
    plan = pack_texts(lengths, row_length=row_length(stage), parts=parts)
    shape, listed = (plan.rows, plan.columns), plan.places()[0].shape
    batch = jax.eval_shape(
        lambda: PairBatch(
            PackedTexts(
                Tokens(_numbers(*shape), _numbers(*shape), texts=plan.slots),
                _numbers(plan.rows, plan.slots),
            ),
            _numbers(*listed),
            _numbers(queries),
            _numbers(documents),
            _numbers(*listed, 2),
        )
    )
    said = [
        f"{side} full, {most} tokens"
        if mean is None
        else f"{side} of {mean} tokens in the mean, evenly spread"
        for side, _, mean, most in sides
    ]
    return batch, lengths, "; ".join(said)


def spread(
    side: str, count: int, mean: int | None, longest: int
) -> Int[np.ndarray, " texts"]:
    """Make up lengths of texts: all the longest, or even about a mean.

    Args:
        side: queries or documents, for the error.
        count: of texts.
        mean: in tokens; None: `longest`.
        longest: what the config lets a text have.

    Raises:
        ValueError: the mean is more than the longest, or less than a text can have.
    """
    if mean is None:
        return np.full(count, longest)
    if not FEWEST_TOKENS <= mean <= longest:
        option = {"queries": "--query-tokens", "documents": "--document-tokens"}[side]
        raise ValueError(
            f"{option} {mean}: {side} have {FEWEST_TOKENS} to {longest} tokens"
        )
    reach = min(longest - mean, mean - FEWEST_TOKENS)
    return np.linspace(mean - reach, mean + reach, count).round().astype(np.int64)


def _numbers(*sizes: int) -> jax.Array:
    return jnp.zeros(sizes, jnp.int32)
