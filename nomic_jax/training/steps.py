"""One optimizer step as a pure function of (state, batch).

An objective turns a model and a batch into a loss; `make_update` turns an objective and
an optimizer into the step. Randomness comes from (seed, step, global row) alone.
"""

import dataclasses
import math
from collections.abc import Callable, Mapping
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh
from jaxtyping import Array, Float32, Int32, Key

from nomic_jax.batch import MlmBatch, PairBatch, Tokens, as_pytree
from nomic_jax.config import EmbeddingConfig
from nomic_jax.model.encoder import NomicBert
from nomic_jax.model.heads import MaskedLanguageModel
from nomic_jax.model.pooling import embed_packed
from nomic_jax.sharding import REPEATED, constrain, over_data, shared
from nomic_jax.training.finite import keep_if_finite
from nomic_jax.training.losses import (
    ContrastiveLoss,
    contrastive_loss,
    mlm_cross_entropy,
)
from nomic_jax.training.microbatches import in_microbatches
from nomic_jax.training.placement import Placement, keep_placed

Metrics: TypeAlias = Mapping[str, Float32[Array, ""]]
Objective: TypeAlias = Callable[[Any, Any, Key[Array, ""]], tuple[Any, Metrics]]


@as_pytree
@dataclasses.dataclass(frozen=True)
class TrainState:
    """All that a resumed run needs: the data's place is the step."""

    model: Any  # the nnx module, as a pytree of its parameters
    optimizer: optax.OptState
    step: Int32[Array, ""]  # optimizer steps done

    @classmethod
    def fresh(cls, model: Any, optimizer: optax.GradientTransformation) -> "TrainState":
        """Begin a stage with a model and an optimizer that has seen nothing."""
        return cls(model, optimizer.init(model), jnp.zeros((), jnp.int32))


def make_update(
    objective: Objective,
    optimizer: optax.GradientTransformation,
    *,
    seed: int,
    mesh: Mesh | None = None,
) -> Callable[[TrainState, Any], tuple[TrainState, Metrics]]:
    """Build the compiled step; it consumes the state it is given.

    A step whose loss or gradient is not finite changes nothing but the count of steps.
    The metrics hold `loss`, `gradient_norm`, `skipped` (1 for such a step) and what the
    objective reports.

    Args:
        objective: of model, batch and key.
        optimizer: what becomes of the gradient.
        seed: of the keys.
        mesh: over which the state lies and goes on lying.
    """

    def update(state: TrainState, batch: Any) -> tuple[TrainState, Metrics]:
        key = jax.random.fold_in(jax.random.key(seed), state.step)
        (loss, metrics), gradient = jax.value_and_grad(objective, has_aux=True)(
            state.model, batch, key
        )
        changes, moments = optimizer.update(gradient, state.optimizer, state.model)
        model = optax.apply_updates(state.model, changes)
        norm = optax.tree.norm(gradient)
        (model, moments), skipped = keep_if_finite(
            (state.model, state.optimizer),
            (model, moments),
            loss=loss,
            gradient_norm=norm,
        )
        metrics = {
            "loss": loss,
            "gradient_norm": norm,
            "skipped": skipped,
            **metrics,
        }
        return keep_placed(TrainState(model, moments, state.step + 1), mesh), metrics

    return jax.jit(update, donate_argnums=0)


ONE_DEVICE = Placement()


def mlm_objective(placement: Placement = ONE_DEVICE) -> Objective:
    """Mean cross-entropy of the masked tokens; only they go through the head.

    The mean is over the masked tokens of the whole batch, whatever their number in each
    microbatch and on each device.
    """

    def objective(model: MaskedLanguageModel, batch: MlmBatch, key: Key[Array, ""]):
        def sums(model, batch, numbers, key):
            def one(rows):
                batch, numbers = rows
                keys = row_keys(key, numbers)
                hidden = model.encoder(batch.tokens, dropout_keys=keys)
                masked = jnp.take_along_axis(hidden, batch.positions[..., None], axis=1)
                return mlm_cross_entropy(
                    model.logits(masked), batch.targets, batch.weights
                )

            return in_microbatches(one, (batch, numbers), most=placement.most_rows)

        batch = jax.tree.map(jnp.asarray, batch)
        everywhere = over_data(sums, placement.mesh, splits=(True, True, False))
        totals, counts = everywhere(model, batch, row_numbers(batch.tokens), key)
        return totals.sum() / jnp.maximum(counts.sum(), 1), {}

    return objective


@as_pytree
@dataclasses.dataclass(frozen=True)
class BiEncoder:
    """What a contrastive stage trains: the encoder and, if learned, the scale."""

    encoder: NomicBert
    log_scale: Float32[Array, ""] | None  # logarithm of what cosines are multiplied by

    @classmethod
    def of(cls, encoder: NomicBert, loss: ContrastiveLoss) -> "BiEncoder":
        """Begin with the scale that the loss's temperature gives."""
        learned = jnp.float32(-math.log(loss.temperature))
        return cls(encoder, learned if loss.learned_scale else None)


def contrastive_objective(
    embedding: EmbeddingConfig,
    loss: ContrastiveLoss,
    placement: Placement = ONE_DEVICE,
) -> Objective:
    """A contrastive loss between the pooled queries and documents of a batch.

    However the rows are split, each query meets the documents of the whole batch: the
    embeddings of all microbatches and devices are gathered once, and each device then
    computes the loss of a share of the queries.
    """

    def objective(model: BiEncoder, batch: PairBatch, key: Key[Array, ""]):
        def vectors(encoder, texts, slots, numbers, key):
            def one(rows):
                texts, numbers = rows
                hidden = encoder(texts.tokens, dropout_keys=row_keys(key, numbers))
                return embed_packed(hidden, texts, embedding)

            found = in_microbatches(one, (texts, numbers), most=placement.most_rows)
            # Rows that microbatches added stand at the end.
            width = found.shape[-1]
            found = found.reshape(-1, *found.shape[2:])[: len(numbers)]  # B T D
            found = found.reshape(len(slots), -1, width)
            return jnp.take_along_axis(found, slots[..., None], axis=1)  # P C D

        def of_pairs(query, document, ids, log_scale, axis=None):
            return contrastive_loss(
                query,
                document,
                loss,
                document_ids=ids,
                log_scale=log_scale,
                axis=axis,
            )

        batch = jax.tree.map(jnp.asarray, batch)
        mesh = placement.mesh
        everywhere = over_data(vectors, mesh, splits=(True, True, True, False))
        numbers = row_numbers(batch.texts.tokens)
        found = everywhere(model.encoder, batch.texts, batch.slots, numbers, key)
        found = constrain(found.reshape(-1, found.shape[-1]), mesh, REPEATED)
        ids = constrain(jnp.asarray(batch.document_ids).reshape(-1, 2), mesh, REPEATED)
        value, metrics = shared(of_pairs, mesh)(
            found[batch.query_places],
            found[batch.document_places],
            ids[batch.document_places],
            model.log_scale,
        )
        negatives = jnp.float32(len(batch.document_places) - 1)  # of each query
        return value, {**metrics, "negatives": negatives}

    return objective


def row_numbers(tokens: Tokens) -> Int32[Array, " B"]:
    """Number the rows of the global batch."""
    return jnp.arange(tokens.ids.shape[0], dtype=jnp.int32)


def row_keys(key: Key[Array, ""], numbers: Int32[Array, " B"]) -> Key[Array, " B"]:
    """Give each row of the global batch a key of its own."""
    return jax.vmap(jax.random.fold_in, in_axes=(None, 0))(key, numbers)
