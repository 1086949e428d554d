"""One optimizer step as a pure function of (state, batch).

An objective turns a model and a batch into a loss; `make_update` turns an objective and
an optimizer into the step. Randomness comes from (seed, step, global row) alone.
"""

import dataclasses
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
from nomic_jax.sharding import REPEATED, ROWS, constrain, over_data
from nomic_jax.training.losses import info_nce, mlm_cross_entropy
from nomic_jax.training.microbatches import in_microbatches

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
    objective: Objective, optimizer: optax.GradientTransformation, *, seed: int
) -> Callable[[TrainState, Any], tuple[TrainState, Metrics]]:
    """Build the compiled step; it consumes the state it is given.

    The metrics hold `loss`, `gradient_norm` and what the objective reports.
    """

    def update(state: TrainState, batch: Any) -> tuple[TrainState, Metrics]:
        key = jax.random.fold_in(jax.random.key(seed), state.step)
        (loss, metrics), gradient = jax.value_and_grad(objective, has_aux=True)(
            state.model, batch, key
        )
        changes, moments = optimizer.update(gradient, state.optimizer, state.model)
        model = optax.apply_updates(state.model, changes)
        metrics = {
            "loss": loss,
            "gradient_norm": optax.tree.norm(gradient),
            **metrics,
        }
        return TrainState(model, moments, state.step + 1), metrics

    return jax.jit(update, donate_argnums=0)


@dataclasses.dataclass(frozen=True)
class Placement:
    """Where a step runs, and how many rows it takes at once."""

    mesh: Mesh | None = None  # None: a single device
    most_rows: int | None = None  # of a microbatch on a device; None: all


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


def contrastive_objective(
    embedding: EmbeddingConfig, *, scale: float, placement: Placement = ONE_DEVICE
) -> Objective:
    """InfoNCE between the pooled queries and documents of a batch, at full width.

    A document that equals a query's positive is no negative of that query. However the
    rows are split, each query meets the documents of the whole batch: the embeddings of
    all microbatches and devices are gathered once.
    """

    def objective(model: NomicBert, batch: PairBatch, key: Key[Array, ""]):
        def vectors(model, texts, slots, numbers, key):
            def one(rows):
                texts, numbers = rows
                hidden = model(texts.tokens, dropout_keys=row_keys(key, numbers))
                return embed_packed(hidden, texts, embedding)

            found = in_microbatches(one, (texts, numbers), most=placement.most_rows)
            # Rows that microbatches added stand at the end.
            width = found.shape[-1]
            found = found.reshape(-1, *found.shape[2:])[: len(numbers)]  # B T D
            found = found.reshape(len(slots), -1, width)
            return jnp.take_along_axis(found, slots[..., None], axis=1)  # P C D

        batch = jax.tree.map(jnp.asarray, batch)
        mesh = placement.mesh
        everywhere = over_data(vectors, mesh, splits=(True, True, True, False))
        numbers = row_numbers(batch.texts.tokens)
        found = everywhere(model, batch.texts, batch.slots, numbers, key)
        found = constrain(found.reshape(-1, found.shape[-1]), mesh, REPEATED)
        ids = batch.document_ids.reshape(-1, 2)
        loss, accuracy = info_nce(
            constrain(found[batch.query_places], mesh, ROWS),
            constrain(found[batch.document_places], mesh, REPEATED),
            scale=scale,
            document_ids=constrain(ids, mesh, REPEATED)[batch.document_places],
        )
        return loss, {"accuracy": accuracy}

    return objective


def row_numbers(tokens: Tokens) -> Int32[Array, " B"]:
    """Number the rows of the global batch."""
    return jnp.arange(tokens.ids.shape[0], dtype=jnp.int32)


def row_keys(key: Key[Array, ""], numbers: Int32[Array, " B"]) -> Key[Array, " B"]:
    """Give each row of the global batch a key of its own."""
    return jax.vmap(jax.random.fold_in, in_axes=(None, 0))(key, numbers)
