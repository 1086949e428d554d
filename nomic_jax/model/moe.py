"""The mixture-of-experts feed-forward layer of nomic-embed-text-v2-moe.

    y = bias + sum over the chosen experts e of p_e * gelu(x @ up_e) @ down_e

Nussbaum and Duderstadt 2025 (arXiv:2502.07972); no token is dropped (Gale
et al. 2022, MegaBlocks, arXiv:2211.15841). GELU is the exact one, by the error
function. The one bias is added after the weighted sum, itself unweighted.
"""

from typing import Literal

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float, Int

from nomic_jax.config import ModelConfig
from nomic_jax.model.grouped import grouped_product
from nomic_jax.model.linear import project
from nomic_jax.model.routing import Routing, RoutingSums, route, routing_sums

# Sorted by expert, each token meets the experts it chose; or every token meets every
# expert, which takes `experts / chosen` times the arithmetic and no sorting.
Product = Literal["grouped", "dense"]


class Router(nnx.Module):
    """A linear layer without bias from a token to its logit for each expert.

    Published as `router.layer.weight` [experts, D], the transpose of `kernel`.
    """

    def __init__(
        self, config: ModelConfig, *, num_experts: int, num_chosen: int, rngs: nnx.Rngs
    ):
        """Draw a fresh kernel from N(0, initializer_range)."""
        draw = nnx.initializers.normal(config.initializer_range)
        self.kernel = nnx.Param(draw(rngs.params(), (config.width, num_experts)))
        self.num_chosen = num_chosen

    def __call__(self, x: Float[Array, "tokens D"]) -> Routing:
        """Choose experts, in float32: rounded logits would choose others."""
        logits = project(x.astype(jnp.float32), self.kernel[...])
        return route(logits, num_chosen=self.num_chosen)


class Experts(nnx.Module):
    """Feed-forward layers of one shape, without biases but for one they share.

    Published as `w1` and `w2`, both [experts * inner, D] with an expert's rows side by
    side. With both seen as [experts, inner, D], `up` is `w1` with its last two axes
    swapped, and `down` is `w2` as it is.
    """

    def __init__(
        self, config: ModelConfig, *, num_experts: int, dtype: jnp.dtype, rngs: nnx.Rngs
    ):
        """Draw fresh weights from N(0, initializer_range); the bias is zero."""
        draw = nnx.initializers.normal(config.initializer_range)
        width, inner = config.width, config.mlp_width
        self.up = nnx.Param(draw(rngs.params(), (num_experts, width, inner)))
        self.down = nnx.Param(draw(rngs.params(), (num_experts, inner, width)))
        self.bias = nnx.Param(jnp.zeros(width))
        self.dtype = jnp.dtype(dtype)

    def __call__(
        self,
        x: Float[Array, "tokens D"],
        weights: Float[Array, "tokens chosen"],
        experts: Int[Array, "tokens chosen"],
        *,
        product: Product = "grouped",
    ) -> Float[Array, "tokens D"]:
        """Return the weighted sum of what each token's experts make of it.

        Args:
            x: tokens.
            weights: of each token's experts.
            experts: which they are.
            product: how it is computed; the results are the same. The default is the
                faster on every platform: see `platform_kernel` for figures.
        """
        up, down = (each[...].astype(self.dtype) for each in (self.up, self.down))
        apply = {"grouped": _grouped, "dense": _dense}[product]
        mixed = apply(x.astype(self.dtype), weights, experts, up, down)
        bias = jnp.broadcast_to(self.bias[...], mixed.shape)
        return (mixed + bias).astype(x.dtype)


def _grouped(x, weights, experts, up, down):
    num_tokens, num_chosen = experts.shape
    chosen = experts.reshape(-1)  # (tokens · chosen)
    order = jnp.argsort(chosen, stable=True)
    sizes = (chosen[:, None] == jnp.arange(len(up))[None]).sum(axis=0, dtype=jnp.int32)
    rows = _permute(jnp.repeat(x, num_chosen, axis=0), order)
    rows = jax.nn.gelu(grouped_product(rows, up, sizes), approximate=False)
    rows = grouped_product(rows, down, sizes)
    rows = _permute(rows, jnp.argsort(order)).reshape(num_tokens, num_chosen, -1)
    return (rows.astype(jnp.float32) * weights[..., None]).sum(axis=1)


def _permute(rows, order):
    # Said to be a permutation, so that the gradient need not add rows up.
    return rows.at[order].get(unique_indices=True, mode="promise_in_bounds")


def _dense(x, weights, experts, up, down):
    chosen = jax.nn.one_hot(experts, len(up)) * weights[..., None]

    # Without checkpoint, the backward pass would keep all experts' activations.
    @jax.checkpoint
    def one_expert(total, expert):
        up, down, weight = expert
        out = jax.nn.gelu(x @ up, approximate=False) @ down
        return total + weight[:, None] * out.astype(jnp.float32), None

    each = (up, down, chosen.sum(axis=1).T)
    return jax.lax.scan(one_expert, jnp.zeros_like(x, jnp.float32), each)[0]


class MixtureOfExperts(nnx.Module):
    """A router and the experts it chooses from."""

    def __init__(
        self,
        config: ModelConfig,
        *,
        num_experts: int,
        num_chosen: int,
        dtype: jnp.dtype,
        rngs: nnx.Rngs,
    ):
        """Draw fresh weights.

        Args:
            config: its width, its MLP's, and the deviation of fresh weights.
            num_experts: to choose from.
            num_chosen: experts a token goes to.
            dtype: what the experts' products run in; the router's run in float32.
            rngs: source of randomness.

        Raises:
            ValueError: a token cannot go to so many experts.
        """
        if not 1 <= num_chosen <= num_experts:
            raise ValueError(
                f"num_chosen={num_chosen} must be between 1 and num_experts="
                f"{num_experts}"
            )
        self.router = Router(
            config, num_experts=num_experts, num_chosen=num_chosen, rngs=rngs
        )
        self.experts = Experts(config, num_experts=num_experts, dtype=dtype, rngs=rngs)

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
