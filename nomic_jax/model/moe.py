"""The mixture-of-experts layer of nomic-embed-text-v2-moe, and its router.

    p = softmax(logits);  a token's weights are its largest p, used as they are
    y = bias + sum over the chosen experts e of p_e * gelu(x @ up_e) @ down_e
    load-balancing loss = experts * sum_e share_e * mean_t p_te

In a model upcycled from one whose MLPs have biases, `gelu(x @ up_e + up_bias_e)`.

Nussbaum and Duderstadt 2025 (arXiv:2502.07972); no token is dropped (Gale et al. 2022,
MegaBlocks, arXiv:2211.15841). The router and its loss are those of Fedus et al. 2021,
Switch Transformer (arXiv:2101.03961), section 2.2, equations 4 to 6, for any number of
experts per token. GELU is exact, by the error function. The shared bias is added after
the weighted sum, itself unweighted.
"""

import dataclasses
from typing import Literal

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float, Int

from nomic_jax.batch import as_pytree
from nomic_jax.config import ModelConfig
from nomic_jax.distributed.mesh import EXPERT
from nomic_jax.model.grouped_matmul import grouped_product
from nomic_jax.model.layers import gelu, project


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


# Sorted by expert, each token meets the experts it chose; or every token meets every
# expert, which takes `experts / chosen` times the arithmetic and no sorting.
Product = Literal["grouped", "dense"]


class Router(nnx.Module):
    """A linear layer without bias from a token to its logit for each expert.

    Published as `router.layer.weight` [experts, D], the transpose of `kernel`.
    """

    def __init__(self, config: ModelConfig, *, rngs: nnx.Rngs):
        """Draw a fresh kernel from N(0, initializer_range)."""
        draw = nnx.initializers.normal(config.initializer_range)
        self.kernel = nnx.Param(draw(rngs.params(), (config.width, config.num_experts)))
        self.num_chosen = config.experts_per_token

    def __call__(self, x: Float[Array, "tokens D"]) -> Routing:
        """Choose experts, in float32: rounded logits would choose others."""
        logits = project(x.astype(jnp.float32), self.kernel[...])
        return route(logits, num_chosen=self.num_chosen)


class Experts(nnx.Module):
    """Feed-forward layers of one shape, with one bias that they share.

    Published as `w1` and `w2`, both [experts * inner, D] with an expert's rows side by
    side. With both seen as [experts, inner, D], `up` is `w1` with its last two axes
    swapped, and `down` is `w2` as it is.
    """

    def __init__(self, config: ModelConfig, *, dtype: jnp.dtype, rngs: nnx.Rngs):
        """Draw fresh weights from N(0, initializer_range); biases are zero."""
        draw = nnx.initializers.normal(config.initializer_range)
        experts, width, inner = config.num_experts, config.width, config.mlp_width
        self.up = nnx.Param(draw(rngs.params(), (experts, width, inner)))
        self.up_bias = (
            nnx.Param(jnp.zeros((experts, inner))) if config.expert_bias else None
        )
        self.down = nnx.Param(draw(rngs.params(), (experts, inner, width)))
        self.bias = nnx.Param(jnp.zeros(width))
        self.dtype, self.num_experts = jnp.dtype(dtype), experts

    def __call__(
        self,
        x: Float[Array, "tokens D"],
        weights: Float[Array, "tokens chosen"],
        experts: Int[Array, "tokens chosen"],
        *,
        product: Product = "grouped",
    ) -> Float[Array, "tokens D"]:
        """Return the weighted sum of what each token's experts make of it.

        Where devices hold parts of the experts and the same tokens, as
        `sharding.over_data` lays them out, each computes what its own experts make of
        all tokens, and the sum is over devices too.

        Args:
            x: tokens.
            weights: of each token's experts.
            experts: which they are.
            product: how it is computed; the results are the same. The default is the
                faster on every platform: see `platform_kernel` for figures.
        """
        arrays = (self.up, self.up_bias, self.down)
        weighted = tuple(
            None if each is None else each[...].astype(self.dtype) for each in arrays
        )
        apply = {"grouped": _grouped, "dense": _dense}[product]
        tokens, split = x.astype(self.dtype), self.up.shape[0] < self.num_experts
        if split:
            # Marked as differing, so that their gradients are summed over devices.
            tokens, weights = jax.lax.pcast((tokens, weights), EXPERT, to="varying")
            experts = experts - self.up.shape[0] * jax.lax.axis_index(EXPERT)
        mixed = apply(tokens, weights, experts, *weighted, split=split)
        if split:
            mixed = jax.lax.psum(mixed, EXPERT)
        bias = jnp.broadcast_to(self.bias[...], mixed.shape)
        return (mixed + bias).astype(x.dtype)


def _grouped(x, weights, experts, up, up_bias, down, *, split):
    num_tokens, num_chosen = experts.shape
    chosen = experts.reshape(-1)  # (tokens · chosen)
    if split:  # other devices' experts come last, and are no group
        chosen = jnp.where((chosen >= 0) & (chosen < len(up)), chosen, len(up))
    order = jnp.argsort(chosen, stable=True)
    sizes = (chosen[:, None] == jnp.arange(len(up))[None]).sum(axis=0, dtype=jnp.int32)

    def own(rows):
        # What a product leaves in rows of no group may be anything.
        there = jnp.arange(len(rows)) < sizes.sum()
        return jnp.where(there[:, None], rows, 0) if split else rows

    rows = own(_permute(jnp.repeat(x, num_chosen, axis=0), order))
    rows = own(grouped_product(rows, up, sizes))
    if up_bias is not None:
        rows += up_bias[chosen[order]]
    rows = own(grouped_product(gelu(rows), down, sizes))
    rows = _permute(rows, jnp.argsort(order)).reshape(num_tokens, num_chosen, -1)
    return (rows.astype(jnp.float32) * weights[..., None]).sum(axis=1)


def _permute(rows, order):
    # Said to be a permutation, so that the gradient need not add rows up.
    return rows.at[order].get(unique_indices=True, mode="promise_in_bounds")


def _dense(x, weights, experts, up, up_bias, down, *, split):
    del split  # other devices' experts are outside the range, and so nothing
    chosen = jax.nn.one_hot(experts, len(up)) * weights[..., None]

    # Without checkpoint, the backward pass would keep all experts' activations.
    @jax.checkpoint
    def one_expert(total, expert):
        up, up_bias, down, weight = expert
        inner = x @ up if up_bias is None else x @ up + up_bias
        out = gelu(inner) @ down
        return total + weight[:, None] * out.astype(jnp.float32), None

    each = (up, up_bias, down, chosen.sum(axis=1).T)
    return jax.lax.scan(one_expert, 0 * x.astype(jnp.float32), each)[0]


class MixtureOfExperts(nnx.Module):
    """A router and the experts it chooses from."""

    def __init__(self, config: ModelConfig, *, dtype: jnp.dtype, rngs: nnx.Rngs):
        """Draw fresh weights.

        Args:
            config: its width, its MLP's, and how many experts there are.
            dtype: what the experts' products run in; the router's run in float32.
            rngs: source of randomness.
        """
        self.router = Router(config, rngs=rngs)
        self.experts = Experts(config, dtype=dtype, rngs=rngs)

    def __call__(
        self,
        x: Float[Array, "*rows D"],
        counted: Bool[Array, "*rows"] | None,
        *,
        product: Product = "grouped",
    ) -> tuple[Float[Array, "*rows D"], RoutingSums]:
        """Apply the layer to each token, and say where tokens went.

        Args:
            x: tokens; those of padding are computed too.
            counted: which the sums count; None: all.
            product: how the experts are computed.
        """
        tokens = x.reshape(-1, x.shape[-1])
        routing = self.router(tokens)
        mixed = self.experts(tokens, routing.weights, routing.experts, product=product)
        counted = None if counted is None else counted.reshape(-1)
        return mixed.reshape(x.shape), routing_sums(routing, counted)
