"""Balancing a mixture of experts in training: its loss, and what is logged of it.

The loss is that of Fedus et al. 2021, Switch Transformer (arXiv:2101.03961), section
2.2; see `nomic_jax.model.moe`.
"""

import dataclasses
from collections.abc import Mapping

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Float32, Key

from nomic_jax.batch import Tokens
from nomic_jax.config import ModelConfig
from nomic_jax.distributed.mesh import MeshConfig
from nomic_jax.model.encoder import NomicBert
from nomic_jax.model.moe import RoutingSums, expert_shares, load_balancing_loss


@dataclasses.dataclass(frozen=True, kw_only=True)
class ExpertsConfig:
    """What training does about the load of a model's experts."""

    # Of the load-balancing loss, which is 1 where all experts are used alike.
    balance_coefficient: float = 0.0
    # Balance the padding of a batch's rows too, as Nomic's training code did.
    count_padding: bool = False

    def __post_init__(self) -> None:
        """Refuse a coefficient that would reward imbalance.

        Raises:
            ValueError: it is negative.
        """
        if self.balance_coefficient < 0:
            raise ValueError(
                f"balance_coefficient={self.balance_coefficient} must not be negative"
            )


def check_experts(
    stage: str,
    config: ModelConfig,
    experts: ExpertsConfig,
    mesh: MeshConfig,
    *,
    devices: int | None = None,
) -> ExpertsConfig | None:
    """Return what an objective is told of a model's experts; None: it has none.

    Args:
        stage: its name, for errors.
        config: of the model that it trains.
        experts: its settings.
        mesh: its mesh.
        devices: that the mesh is laid over; None: all there are.

    Raises:
        ValueError: experts are to be balanced or split where there are none.
    """
    if config.num_experts:
        return experts
    split = mesh.expert
    if split == -1:  # the devices that the other axes leave
        split = (devices or jax.device_count()) // (mesh.data * mesh.fsdp * mesh.tensor)
    if experts != ExpertsConfig() or split > 1:
        raise ValueError(
            f"{stage}: experts.balance_coefficient={experts.balance_coefficient}, "
            f"experts.count_padding={experts.count_padding}, mesh.expert={mesh.expert} "
            "are of models with experts, and this one has none; leave them at 0, False "
            "and 1"
        )
    return None


def encode_counting(
    encoder: NomicBert,
    tokens: Tokens,
    dropout_keys: Key[Array, "B S"] | None,
    real: Bool[Array, "B"],
    experts: ExpertsConfig | None,
    *,
    unroll: bool = False,
) -> tuple[Float[Array, "B S D"], RoutingSums | None]:
    """Encode rows, and sum up where their tokens went.

    Args:
        encoder: with experts or without.
        tokens: of the rows.
        dropout_keys: a key for each token; None leaves dropout off.
        real: rows of the batch; the others fill a microbatch up, and never count.
        experts: which tokens count; None: the sums are left out.
        unroll: see `NomicBert.encode`.
    """
    counted = None
    if experts is not None and experts.count_padding:
        counted = jnp.broadcast_to(real[:, None], tokens.ids.shape)
    found = encoder.encode(
        tokens, dropout_keys=dropout_keys, counted=counted, unroll=unroll
    )
    return found.hidden, None if experts is None else found.routing


def balanced(
    value: Float32[Array, ""],
    metrics: Mapping[str, Float32[Array, ""]],
    parts: RoutingSums | None,
    config: ExpertsConfig | None,
) -> tuple[Float32[Array, ""], Mapping[str, Float32[Array, ""]]]:
    """Add the load-balancing loss times its coefficient to a loss, and its metrics.

    It is the mean over layers, and of the sums of the whole batch: over microbatches
    and devices, and in a contrastive stage over queries and documents together, which
    stand in the same rows. Nomic's training code took it of either side and on each
    device by itself, and added the two sides up.

    Metrics are `experts/balance`, the loss without its coefficient, and for each layer
    with experts, by its number in the encoder, `experts/N/balance` and the shares of
    all choices that fell on the expert chosen most and on that chosen least,
    `experts/N/largest_share` and `experts/N/smallest_share`.

    Args:
        value: the loss so far.
        metrics: so far.
        parts: routing sums with a leading axis of the batch's parts; None: there are
            no experts.
        config: the coefficient.
    """
    if parts is None or config is None:
        return value, metrics
    sums = jax.tree.map(lambda each: each.sum(axis=0), parts)
    losses, shares = load_balancing_loss(sums), expert_shares(sums)
    found = {"experts/balance": losses.mean()}
    for place in range(len(losses)):
        name = f"experts/{2 * place + 1}"  # they are in layers 1, 3, 5...
        found[f"{name}/balance"] = losses[place]
        found[f"{name}/largest_share"] = shares[place].max()
        found[f"{name}/smallest_share"] = shares[place].min()
    return value + config.balance_coefficient * losses.mean(), {**metrics, **found}
