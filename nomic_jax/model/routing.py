"""Which experts a token goes to, and how evenly a batch spreads over them.

    p = softmax(logits);  a token's weights are its largest p, used as they are
    loss = experts * sum_e share_e * mean_t p_te

Fedus et al. 2021, Switch Transformer (arXiv:2101.03961), section 2.2, equations 4 to 6,
for any number of experts a token.
"""

import dataclasses

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from nomic_jax.batch import as_pytree


@as_pytree
@dataclasses.dataclass(frozen=True)
class Routing:
    """Where each token goes; the most probable expert comes first."""

    weights: Float[Array, "tokens chosen"]  # they sum to less than 1
    experts: Int[Array, "tokens chosen"]
    probabilities: Float[Array, "tokens experts"]


def route(logits: Float[Array, "tokens experts"], *, num_chosen: int) -> Routing:
    """Choose each token's most probable experts; of equal ones, the first.

    The softmax is over all experts, in float32, and what it gives the chosen ones is
    not divided by their sum: a token that no expert claims is changed little.

    Args:
        logits: of the router.
        num_chosen: experts a token goes to.
    """
    probabilities = jax.nn.softmax(logits.astype(jnp.float32), axis=-1)
    weights, experts = jax.lax.top_k(probabilities, num_chosen)
    return Routing(weights=weights, experts=experts, probabilities=probabilities)


@as_pytree
@dataclasses.dataclass(frozen=True)
class RoutingSums:
    """What the loss and the logs need of a layer's routing, summed over tokens.

    Sums of parts of a batch add up to those of the whole, field by field. In float32:
    counts above 2^24 round, by less than one in ten million.
    """

    chosen: Float[Array, "*layers experts"]  # times an expert was chosen
    probability: Float[Array, "*layers experts"]
    tokens: Float[Array, "*layers"]


def routing_sums(
    routing: Routing, counted: Bool[Array, "tokens"] | None
) -> RoutingSums:
    """Sum one layer's routing over tokens.

    Args:
        routing: of one layer.
        counted: which tokens count; None counts all, padding too, as Nomic's training
            code did.
    """
    probabilities, experts = routing.probabilities, routing.experts
    if counted is None:
        counted = jnp.ones(experts.shape[0], bool)
    each = jax.nn.one_hot(experts, probabilities.shape[1]).sum(axis=1)
    weight = counted.astype(jnp.float32)[:, None]
    return RoutingSums(
        chosen=(each * weight).sum(axis=0),
        probability=(probabilities * weight).sum(axis=0),
        tokens=weight.sum(),
    )


def load_balancing_loss(sums: RoutingSums) -> Float[Array, "*layers"]:
    """Return how unevenly each layer loads its experts: 1 where all are equal.

    With T tokens, K experts a token and `count_e` of them at expert e, this is
    `experts / (K T) * sum_e count_e * mean_t p_te`; the gradient is that of the
    probabilities. It is not linear in the tokens, so the loss of a batch is that of
    the summed sums, not the mean over its microbatches. Nomic's training code took it
    of each call by itself, queries and documents apart, and added the two; it took the
    mean over layers and multiplied it by a coefficient.
    """
    experts = sums.probability.shape[-1]
    tokens = jnp.maximum(sums.tokens, 1)[..., None]
    return experts * (expert_shares(sums) * sums.probability / tokens).sum(axis=-1)


def expert_shares(sums: RoutingSums) -> Float[Array, "*layers experts"]:
    """Return the share of all choices that fell on each expert, for the logs."""
    total = sums.chosen.sum(axis=-1, keepdims=True)
    return sums.chosen / jnp.maximum(total, 1)
