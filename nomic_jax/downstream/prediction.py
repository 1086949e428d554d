"""What a head says of texts: one text a row, batches of rows of like length."""

from collections.abc import Iterator, Sequence
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float32

from nomic_jax.batch import TaskBatch, Tokens
from nomic_jax.config import ModelConfig
from nomic_jax.data.tokenizer import TextTokenizer
from nomic_jax.distributed.devices import (
    default_tokens_per_batch,
    num_devices,
    spread_rows,
)
from nomic_jax.downstream.batches import padded
from nomic_jax.downstream.config import MASKED, HeadConfig, TaskData
from nomic_jax.downstream.encoding import Rows, RowSource
from nomic_jax.downstream.examples import QuestionExample
from nomic_jax.downstream.heads import TaskEncoding
from nomic_jax.downstream.losses import LossSums, cross_entropy, masked_scores
from nomic_jax.downstream.questions import Window
from nomic_jax.inference.batching import length_batches
from nomic_jax.model.attention.mesh import on_devices_of
from nomic_jax.model.heads import EncoderWithHead, PretrainingModel

# A label, labels, numbers, a tag a word, an answer, or the number of a choice.
Prediction: TypeAlias = str | tuple[str, ...] | tuple[float, ...] | int
MASKED_TOKENS_AT_ONCE = 4096  # of a device: the vocabulary's scores of some are kept


def head_of(config: ModelConfig) -> HeadConfig:
    """Return the section of a config that makes a model's head.

    Raises:
        ValueError: the model has no head, or one that says nothing of texts.
    """
    if config.head is None:
        raise ValueError("the model has no head; it can embed texts, not classify them")
    return HeadConfig(
        kind=config.head,
        problem=config.problem,
        labels=config.labels,
        dropout=config.head_dropout,
        pooling=config.head_pooling,
    )


def encoding_of(
    model: EncoderWithHead,
    tokenizer: TextTokenizer,
    data: TaskData,
    *,
    labelled: bool = True,
) -> TaskEncoding:
    """Return what makes rows of examples for a model."""
    config = model.encoder.config
    return TaskEncoding(
        head_of(config),
        data,
        tokenizer,
        types=config.type_vocab_size > 1,
        labels=config.labels,
        labelled=labelled,
    )


def predict(
    model: EncoderWithHead,
    tokenizer: TextTokenizer,
    examples: Sequence[Any],
    data: TaskData,
    *,
    unanswerable: bool = False,
) -> list[Prediction]:
    """Say what a head says of examples, whose own labels are not looked at.

    Args:
        model: a classifier of texts, tokens, answers or choices.
        tokenizer: the model's.
        examples: of the head's kind; see `task_examples`.
        data: lengths of rows.
        unanswerable: whether a question may have no answer, which is then "".

    Returns:
        For each example a label, the labels it has, or its numbers; a tag a word; the
        answer; the number of a choice.

    Raises:
        ValueError: the head predicts none of these, or an example does not fit.
    """
    encoding = encoding_of(model, tokenizer, data, labelled=False)
    head, labels = encoding.head, encoding.labels
    if head.kind in (*MASKED, "next_sentence"):
        raise ValueError(f"head {head.kind!r} is measured, and predicts no label")
    source, places = encoding.rows_and_places(examples)
    scores = row_scores(model, tokenizer, source, max_length=data.max_length)
    if head.kind == "token_classification":
        return [_tags(*each, labels) for each in zip(scores, places, strict=True)]
    if head.kind == "question_answering":
        return _answers(examples, scores, places, data.answer_length, unanswerable)
    if head.kind == "multiple_choice":
        grouped = np.array(scores).reshape(len(examples), -1)
        for row, example in enumerate(examples):
            grouped[row, len(example.choices) :] = -np.inf
        return [int(best) for best in grouped.argmax(axis=1)]
    if head.problem == "regression":
        return [tuple(map(float, row)) for row in scores]
    if head.problem == "many_labels":
        return [tuple(labels[i] for i in np.flatnonzero(row > 0)) for row in scores]
    return [labels[int(row.argmax())] for row in scores]


def row_scores(
    model: EncoderWithHead,
    tokenizer: TextTokenizer,
    source: RowSource,
    *,
    max_length: int,
) -> list[np.ndarray]:
    """Score rows, in their order; of a row's tokens only those that are there.

    Args:
        model: whole on this host's devices, or on one.
        tokenizer: whose padding is used.
        source: of the rows.
        max_length: columns at most.
    """
    rows = source.rows(np.arange(len(source)), 0)
    out: list[Any] = [None] * len(rows.ids)
    for members, batch in _batches(
        model, rows, tokenizer, max_length=max_length, most=default_tokens_per_batch()
    ):
        with on_devices_of(model):
            found = np.asarray(_scores(model, spread_rows(batch.tokens, model)))
        for row, member in enumerate(members):
            of_tokens = found.ndim == 3
            whole = found[row, : len(rows.ids[member])] if of_tokens else found[row]
            out[member] = np.asarray(whole)
    return out


def masked_sums(
    model: EncoderWithHead, tokenizer: TextTokenizer, encoding: TaskEncoding, rows: Rows
) -> dict[str, LossSums]:
    """Sum an MLM head's loss over masked rows, and how often its first guess is right.

    Masks are keyed by the seed and the number of the row, so they are the same each
    time.
    """
    sums: list[dict[str, LossSums]] = []
    for _, batch in _batches(
        model,
        rows,
        tokenizer,
        max_length=encoding.data.max_length,
        most=MASKED_TOKENS_AT_ONCE,
        encoding=encoding,
    ):
        with on_devices_of(model):
            sums.append(jax.device_get(_masked(model, spread_rows(batch, model))))
    return jax.tree.map(lambda *each: np.stack(each), *sums)


def _batches(
    model: EncoderWithHead,
    rows: Rows,
    tokenizer: TextTokenizer,
    *,
    max_length: int,
    most: int,
    encoding: TaskEncoding | None = None,
) -> Iterator[tuple[Sequence[int], TaskBatch]]:
    """Yield numbers of rows and their batch; with an encoding that masks, masked."""
    for batch in length_batches(
        [len(row) for row in rows.ids],
        max_length=max_length,
        max_tokens=most * num_devices(model),
    ):
        joined = Rows(
            [rows.ids[i] for i in batch.members],
            None if rows.types is None else [rows.types[i] for i in batch.members],
            np.zeros(len(batch.members), np.int32),
        )
        yield (
            batch.members,
            padded(
                joined,
                length=batch.length,
                pad_id=tokenizer.role_id("pad"),
                masking=None if encoding is None else encoding.masking,
                numbers=batch.members,
                size=batch.rows,
            ),
        )


@jax.jit
def _scores(model: EncoderWithHead, tokens: Tokens) -> Float32[Array, "rows ..."]:
    if isinstance(model, PretrainingModel):  # a score a word would be of no use
        return model.row_scores(model.encoder(tokens))
    return model.scores(tokens)


@jax.jit
def _masked(model: Any, batch: TaskBatch) -> dict[str, LossSums]:
    assert batch.masked is not None
    scores = masked_scores(model, model.encoder(batch.tokens), batch.masked)
    weights = jnp.asarray(batch.masked.weights)
    targets = jnp.asarray(batch.masked.targets)
    right = (scores.argmax(axis=-1) == targets) & weights
    count = jnp.sum(weights, dtype=jnp.float32)[None]
    return {
        "masked_loss": cross_entropy(scores, targets, weights),
        "masked_accuracy": LossSums(jnp.sum(right, dtype=jnp.float32)[None], count),
    }


def _tags(
    scores: np.ndarray, columns: np.ndarray, labels: Sequence[str]
) -> tuple[str, ...]:
    """Return a tag a word; one whose token was cut gets O, or else the first label."""
    missing = "O" if "O" in labels else labels[0]
    best = scores.argmax(axis=1)
    return tuple(labels[int(best[c])] if c >= 0 else missing for c in columns)


def _answers(
    examples: Sequence[QuestionExample],
    scores: Sequence[np.ndarray],
    windows: Sequence[Window],
    longest: int,
    unanswerable: bool,
) -> list[Prediction]:
    """Return the best span of all windows of each question.

    A question has no answer where the first token of every window outscores it.
    """
    best = [(-np.inf, "")] * len(examples)
    none = np.full(len(examples), np.inf)
    for row, window in zip(scores, windows, strict=True):
        context = examples[window.example].context
        begin, end = window.first, window.first + len(window.spans)
        pairs = row[begin:end, 0, None] + row[None, begin:end, 1]
        span = np.arange(end - begin)
        length = span - span[:, None]
        pairs = np.where((length >= 0) & (length < longest), pairs, -np.inf)
        start, stop = np.unravel_index(pairs.argmax(), pairs.shape)
        # Tokens of many vocabularies begin with the space before their word.
        text = context[window.spans[start, 0] : window.spans[stop, 1]].strip()
        best[window.example] = max(
            best[window.example], (float(pairs[start, stop]), text)
        )
        none[window.example] = min(none[window.example], row[0].sum())
    return [
        "" if unanswerable and none[i] > score else text
        for i, (score, text) in enumerate(best)
    ]
