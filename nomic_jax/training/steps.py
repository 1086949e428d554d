"""One optimizer step as a pure function of (state, batch).

An objective turns a model and a batch into a loss; `make_update` turns its gradient and
an optimizer into the step. Randomness comes from seed, step, text and place alone. An
update that is not finite is skipped on the device and counted on the host: one overflow
must not end a run of days, and many in a row must not go on for days.
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, TypeAlias, TypeVar

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh
from jaxtyping import Array, Float, Float32, Int32

from nomic_jax.batch import as_pytree
from nomic_jax.training.optimizer import like_named, named_arrays
from nomic_jax.training.placement import Placement, keep_placed

Tree = TypeVar("Tree")


def keep_if_finite(
    old: Tree, new: Tree, *, loss: Float[Array, ""], gradient_norm: Float[Array, ""]
) -> tuple[Tree, Float32[Array, ""]]:
    """Take the new arrays if loss and gradient are finite, else leave the old ones.

    The choice is elementwise and joins the optimizer's own pass over the arrays; no
    value has to reach the host.

    Args:
        old: parameters and optimizer state before the step.
        new: the same after it, of the same structure.
        loss: of the step.
        gradient_norm: global, before clipping; not finite if any element is not.

    Returns:
        What is after the step, and 1.0 where the step was skipped, else 0.0.
    """
    finite = jnp.isfinite(loss) & jnp.isfinite(gradient_norm)
    kept = jax.tree.map(
        lambda before, after: jnp.where(finite, after, before), old, new
    )
    return kept, 1 - finite.astype(jnp.float32)


Metrics: TypeAlias = Mapping[str, Float32[Array, ""]]
# Of model, batch, key and, where there are any, the frozen encoders.
Objective: TypeAlias = Callable[..., tuple[Any, Metrics]]
LossAndGradient: TypeAlias = Callable[..., tuple[tuple[Any, Metrics], Any]]
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
    loss_and_gradient: LossAndGradient,
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
        loss_and_gradient: of model, batch, key and what else the step is given:
            `jax.value_and_grad(objective, has_aux=True)`.
        optimizer: what becomes of the gradient.
        seed: of the keys.
        mesh: over which the state is and goes on lying.
        project: puts the model the optimizer leaves back where it may be.
    """

    def update(state: TrainState, batch: Any, *frozen) -> tuple[TrainState, Metrics]:
        key = jax.random.fold_in(jax.random.key(seed), state.step)
        (loss, metrics), gradient = loss_and_gradient(state.model, batch, key, *frozen)
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
