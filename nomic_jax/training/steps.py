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
from jaxtyping import Array, Float32, Int32, Key

from nomic_jax.batch import MlmBatch, PairBatch, Tokens, as_pytree
from nomic_jax.config import EmbeddingConfig
from nomic_jax.model.encoder import NomicBert
from nomic_jax.model.heads import MaskedLanguageModel
from nomic_jax.model.pooling import embed_packed
from nomic_jax.training.losses import info_nce, mlm_cross_entropy

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


def mlm_objective(
    model: MaskedLanguageModel, batch: MlmBatch, key: Key[Array, ""]
) -> tuple[Float32[Array, ""], Metrics]:
    """Mean cross-entropy of the masked tokens; only they go through the head."""
    hidden = model.encoder(batch.tokens, dropout_keys=row_keys(key, batch.tokens))
    masked = jnp.take_along_axis(hidden, batch.positions[..., None], axis=1)  # B N D
    total, count = mlm_cross_entropy(
        model.logits(masked), jnp.asarray(batch.targets), jnp.asarray(batch.weights)
    )
    return total / jnp.maximum(count, 1), {}


def contrastive_objective(embedding: EmbeddingConfig, *, scale: float) -> Objective:
    """InfoNCE between the pooled queries and documents of a batch, at full width.

    A document that equals a query's positive is no negative of that query.
    """

    def objective(model: NomicBert, batch: PairBatch, key: Key[Array, ""]):
        tokens = batch.texts.tokens
        hidden = model(tokens, dropout_keys=row_keys(key, tokens))
        vectors = embed_packed(hidden, batch.texts, embedding)
        vectors = vectors.reshape(-1, vectors.shape[-1])  # (B · T) D
        ids = jnp.asarray(batch.document_ids).reshape(-1, 2)
        loss, accuracy = info_nce(
            vectors[batch.query_slots],
            vectors[batch.document_slots],
            scale=scale,
            document_ids=ids[batch.document_slots],
        )
        return loss, {"accuracy": accuracy}

    return objective


def row_keys(key: Key[Array, ""], tokens: Tokens) -> Key[Array, " B"]:
    """Give each row of the global batch a key of its own."""
    rows = jnp.arange(tokens.ids.shape[0])
    return jax.vmap(jax.random.fold_in, in_axes=(None, 0))(key, rows)
