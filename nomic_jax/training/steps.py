"""One optimizer step as a pure function of (state, batch).

An objective turns a model and a batch into a loss; `make_update` turns an objective and
an optimizer into the step. Randomness comes from seed, step, text and place alone.
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

from nomic_jax.batch import PairBatch, as_pytree
from nomic_jax.config import EmbeddingConfig
from nomic_jax.model.encoder import NomicBert
from nomic_jax.sharding import REPEATED, constrain, shared
from nomic_jax.training.distillation import TeacherConfig, distillation_loss
from nomic_jax.training.experts import ExpertsConfig, balanced
from nomic_jax.training.finite import keep_if_finite
from nomic_jax.training.frozen import Frozen, FrozenEncoder
from nomic_jax.training.losses import (
    ContrastiveLoss,
    bounded_log_scale,
    contrastive_loss,
)
from nomic_jax.training.optimizer import like_named, named_arrays
from nomic_jax.training.placement import Placement, keep_placed
from nomic_jax.training.vectors import pair_vectors

Metrics: TypeAlias = Mapping[str, Float32[Array, ""]]
# Of model, batch, key and, where there are any, the frozen encoders.
Objective: TypeAlias = Callable[..., tuple[Any, Metrics]]
Update: TypeAlias = Callable[..., tuple["TrainState", Metrics]]


@as_pytree
@dataclasses.dataclass(frozen=True)
class TrainState:
    """All that a resumed run needs: the data's place is the step.

    The optimizer knows the parameters by name: a dictionary costs a tenth of what a
    module does each time a compiled step is called.
    """

    model: Any  # the nnx module, as a pytree of its parameters
    optimizer: optax.OptState  # of the named parameters
    step: Int32[Array, ""]  # optimizer steps done

    @classmethod
    def fresh(cls, model: Any, optimizer: optax.GradientTransformation) -> "TrainState":
        """Begin a stage with a model and an optimizer that has seen nothing."""
        return cls(model, optimizer.init(named_arrays(model)), jnp.zeros((), jnp.int32))


def make_update(
    objective: Objective,
    optimizer: optax.GradientTransformation,
    *,
    seed: int,
    mesh: Mesh | None = None,
    project: Callable[[Any], Any] | None = None,
) -> Update:
    """Build the compiled step of state and batch; it consumes the state it is given.

    What is given after the batch reaches the objective after the key: frozen encoders
    are arguments of the compiled step, not constants in it.

    A step whose loss or gradient is not finite changes nothing but the count of steps.
    The metrics hold `loss`, `gradient_norm`, `skipped` (1 for such a step) and what the
    objective reports.

    Args:
        objective: of model, batch, key and what else the step is given.
        optimizer: what becomes of the gradient.
        seed: of the keys.
        mesh: over which the state lies and goes on lying.
        project: puts the model the optimizer leaves back where it may be.
    """

    def update(state: TrainState, batch: Any, *frozen) -> tuple[TrainState, Metrics]:
        key = jax.random.fold_in(jax.random.key(seed), state.step)
        (loss, metrics), gradient = jax.value_and_grad(objective, has_aux=True)(
            state.model, batch, key, *frozen
        )
        parameters = named_arrays(state.model)
        changes, moments = optimizer.update(
            named_arrays(gradient), state.optimizer, parameters
        )
        stepped: Any = optax.apply_updates(parameters, changes)
        model = like_named(state.model, stepped)
        if project is not None:
            model = project(model)
        norm = optax.tree.norm(gradient)
        (model, moments), skipped = keep_if_finite(
            (state.model, state.optimizer),
            (model, moments),
            loss=loss,
            gradient_norm=norm,
        )
        own = {"loss": loss, "gradient_norm": norm, "skipped": skipped}
        metrics = {**own, **metrics}
        return keep_placed(TrainState(model, moments, state.step + 1), mesh), metrics

    return jax.jit(update, donate_argnums=0)


ONE_DEVICE = Placement()


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


def bound_scale(loss: ContrastiveLoss) -> Callable[[BiEncoder], BiEncoder]:
    """Return what sets a learned scale back to its maximum after a step."""

    def project(model: BiEncoder) -> BiEncoder:
        if model.log_scale is None:
            return model
        bounded = bounded_log_scale(model.log_scale, loss.max_scale)
        return dataclasses.replace(model, log_scale=bounded)

    return project


def contrastive_objective(
    embedding: EmbeddingConfig,
    loss: ContrastiveLoss,
    placement: Placement = ONE_DEVICE,
    *,
    distillation: TeacherConfig | None = None,
    experts: ExpertsConfig | None = None,
) -> Objective:
    """A contrastive loss between the pooled queries and documents of a batch.

    However the rows are split, each query meets the documents of the whole batch: the
    embeddings of all microbatches and devices are gathered once, and each device then
    computes the loss of a share of the queries. The objective's fourth argument holds
    the frozen encoders; it may be left out where there is none.

    Args:
        embedding: of the trained encoder.
        loss: of the pairs.
        placement: the mesh, and the rows of a microbatch.
        distillation: how the similarities of a teacher are learned, if there is one.
        experts: what is done about their load; None where the encoder has none.
    """

    def objective(
        model: BiEncoder,
        batch: PairBatch,
        key: Key[Array, ""],
        frozen: Frozen | None = None,
    ):
        def of_pairs(query, document, ids, log_scale, guided, taught, axis=None):
            value, metrics = contrastive_loss(
                query,
                document,
                loss,
                document_ids=ids,
                guide=guided,
                log_scale=log_scale,
                axis=axis,
            )
            if taught is None or distillation is None:
                return value, metrics
            learned = distillation_loss(
                query,
                document,
                taught,
                distillation,
                dims=loss.matryoshka_dims or (query.shape[1],),
                weights=loss.weights,
                block_size=loss.block_size,
                axis=axis,
            )
            value += distillation.weight * learned
            return value, {**metrics, "distillation": learned}

        def vectors_of(frozen: FrozenEncoder | None):
            if frozen is None:
                return None
            return pair_vectors(frozen.encoder, batch, frozen.embedding, placement)[0]

        frozen = frozen or Frozen()
        batch = jax.tree.map(jnp.asarray, batch)
        mesh = placement.mesh
        vectors, routing = pair_vectors(
            model.encoder, batch, embedding, placement, key, experts=experts
        )
        ids = constrain(jnp.asarray(batch.document_ids).reshape(-1, 2), mesh, REPEATED)
        value, metrics = shared(of_pairs, mesh)(
            *vectors,
            ids[batch.document_places],
            model.log_scale,
            vectors_of(frozen.guide),
            vectors_of(frozen.teacher),
        )
        negatives = jnp.float32(len(batch.document_places) - 1)  # of each query
        metrics = {**metrics, "negatives": negatives}
        return balanced(value, metrics, routing, experts)

    return objective
