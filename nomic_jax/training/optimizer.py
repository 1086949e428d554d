"""AdamW as the published models were trained: decay mask, warmup, three schedules.

AdamW of Loshchilov and Hutter 2017 (arXiv:1711.05101); schedules and the choice of what
decays follow contrastors, the code of Nomic Embed.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any, Literal, TypeVar

import jax
import jax.numpy as jnp
import optax

Tree = TypeVar("Tree")
ScheduleName = Literal["linear", "cosine", "inverse_sqrt"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class OptimizerConfig:
    """AdamW and its schedule; every count is in optimizer steps."""

    learning_rate: float  # the peak, reached after warmup
    weight_decay: float  # decoupled, of matrices and tables
    warmup_steps: int  # linear rise from 0
    schedule: ScheduleName  # what follows the warmup
    beta1: float = 0.9
    beta2: float = 0.999
    epsilon: float = 1e-8
    clip_norm: float = 0.0  # largest global gradient norm; 0: no clipping

    def __post_init__(self) -> None:
        """Refuse settings that no run can mean.

        Raises:
            ValueError: a rate, count or norm is negative, a beta is outside [0, 1),
                epsilon is not positive, or the schedule is unknown.
        """
        for name in ("learning_rate", "weight_decay", "warmup_steps", "clip_norm"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name}={getattr(self, name)} must not be negative")
        for name in ("beta1", "beta2"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)} must be in [0, 1)")
        if self.epsilon <= 0:
            raise ValueError(f"epsilon={self.epsilon} must be positive")
        if self.schedule not in ("linear", "cosine", "inverse_sqrt"):
            raise ValueError(
                f"schedule={self.schedule!r} must be linear, cosine or inverse_sqrt"
            )


def learning_rate(config: OptimizerConfig, total_steps: int) -> optax.Schedule:
    """Return the learning rate as a function of the optimizer steps already done.

    The first update of a warmup has rate 0, as with PyTorch's schedulers, which are
    stepped after the optimizer. `inverse_sqrt` falls as `sqrt(warmup / step)`, and with
    a span of 10,000 steps where there is no warmup; the others reach 0 at
    `total_steps`.
    """
    warmup = config.warmup_steps

    def rate(step):
        step = jnp.asarray(step, jnp.float32)
        rise = step / max(1, warmup)
        left = jnp.maximum(0.0, (total_steps - step) / max(1, total_steps - warmup))
        if config.schedule == "linear":
            fall = left
        elif config.schedule == "cosine":
            fall = 0.5 * (1 + jnp.cos(jnp.pi * (1 - left)))
        else:
            span = warmup or 10_000
            fall = jax.lax.rsqrt(jnp.maximum(step + span - warmup, 1) / span)
        return config.learning_rate * jnp.where(step < warmup, rise, fall)

    return rate


def parameter_name(path: tuple[Any, ...]) -> str:
    """Name a parameter by its place in the module, as model folders do."""
    return ".".join(
        str(getattr(key, "name", getattr(key, "key", getattr(key, "idx", key))))
        for key in path
    ).removesuffix(".value")


def named_arrays(tree: Any) -> dict[str, jax.Array]:
    """Flatten a model or a state into plain arrays under plain names."""
    leaves = jax.tree_util.tree_flatten_with_path(tree)[0]
    named = {parameter_name(path): array for path, array in leaves}
    assert len(named) == len(leaves), "two arrays share a name"
    return named


def like_named(tree: Tree, arrays: Mapping[str, Any]) -> Tree:
    """Put named arrays, all of them, in the places of a tree's own."""
    values = [arrays[name] for name in named_arrays(tree)]
    return jax.tree.unflatten(jax.tree.structure(tree), values)


def decay_mask(parameters: Any) -> Any:
    """Say which parameters decay: those with two real dimensions and no bias in name.

    The stacked layers' leading axis is not a dimension of the parameter: stacked norms,
    two-dimensional here, are exempt as the single ones of the checkpoint are. A
    token-type table of one row counts as a vector.

    Returns:
        A tree of booleans with the structure of `parameters`.
    """

    def decays(path: tuple[Any, ...], array: jax.Array) -> bool:
        name = parameter_name(path)
        shape = array.shape[1:] if ".blocks." in f".{name}" else array.shape
        return len([n for n in shape if n > 1]) >= 2 and "bias" not in name

    return jax.tree_util.tree_map_with_path(decays, parameters)


def make_optimizer(
    config: OptimizerConfig, total_steps: int
) -> optax.GradientTransformation:
    """Build clipping, AdamW and the schedule as one transformation."""
    adamw = optax.adamw(
        learning_rate(config, total_steps),
        b1=config.beta1,
        b2=config.beta2,
        eps=config.epsilon,
        weight_decay=config.weight_decay,
        mask=decay_mask,
    )
    if config.clip_norm == 0:
        return adamw
    return optax.chain(optax.clip_by_global_norm(config.clip_norm), adamw)
