"""A layer of experts beside a plain MLP with as many active parameters.

    python benchmarks/experts.py [--tokens 2048 --rounds 5]

Width 768, and for each token two of eight experts of 3,072, as in
nomic-embed-text-v2-moe; beside them one MLP of 6,144. Forward and backward, in float32
on a processor and bfloat16 elsewhere; both take turns, and figures are medians. The
ratio is that of the FLOP/s of the model, the router's among them.
"""

import argparse
import dataclasses
import statistics
from collections.abc import Callable

import jax
import jax.numpy as jnp
from environment import environment
from flax import nnx
from record import Row, record
from turns import in_turns, median_ratio

from nomic_jax.config import PUBLISHED
from nomic_jax.distributed import default_dtype
from nomic_jax.model import MixtureOfExperts, Mlp
from nomic_jax.training import mlp_flops, peak_flops

EXPERTS = PUBLISHED["nomic-embed-text-v2-moe"]
DENSE = dataclasses.replace(
    EXPERTS, num_experts=0, mlp_width=EXPERTS.experts_per_token * EXPERTS.mlp_width
)
# Enough to keep a device busy.
TOKENS = {"cpu": 2048}
ACCELERATOR_TOKENS = 65_536


def make_steps(tokens: int, dtype: jnp.dtype) -> dict[str, Callable[[], object]]:
    """Return a forward and backward pass of either layer."""
    x = jax.random.normal(jax.random.key(0), (tokens, EXPERTS.width), dtype)
    experts = MixtureOfExperts(EXPERTS, dtype=dtype, rngs=nnx.Rngs(0))
    dense = Mlp(DENSE, dtype=dtype, rngs=nnx.Rngs(0))

    def both_ways(layer, apply):
        def loss(layer, x):
            return jnp.sum(jnp.sin(apply(layer, x).astype(jnp.float32)))

        step = jax.jit(jax.grad(loss, argnums=(0, 1)))
        return lambda: jax.block_until_ready(step(layer, x))

    return {
        "experts": both_ways(experts, lambda layer, x: layer(x, None)[0]),
        "one MLP": both_ways(dense, lambda layer, x: layer(x)),
    }


def main() -> None:
    """Measure both in turns and record their rates and the ratio."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tokens", type=int, help="2,048 on a processor, else 65,536")
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    given = environment()
    tokens = options.tokens or TOKENS.get(jax.default_backend(), ACCELERATOR_TOKENS)
    dtype = jnp.dtype(default_dtype())
    seconds = in_turns(make_steps(tokens, dtype), options.rounds)
    flops = {  # of a token, forward and backward
        "experts": 3 * mlp_flops(EXPERTS, sparse=True),
        "one MLP": 3 * mlp_flops(DENSE, sparse=False),
    }
    rate = {name: tokens / statistics.median(taken) for name, taken in seconds.items()}
    peak = peak_flops(jax.devices()[0].device_kind)
    ratio = median_ratio(seconds["one MLP"], seconds["experts"])
    extra = {}
    if peak is not None:
        utilisation = {name: rate[name] * flops[name] / peak for name in rate}
        extra = {
            "MFU": utilisation["experts"],
            "MFU of the MLP": utilisation["one MLP"],
        }
    row = Row(
        work="layer of experts, forward and backward",
        detail=f"{tokens:,} tokens, {dtype}",
        ours=rate["experts"],
        theirs=rate["one MLP"],
        unit="tokens/s",
        beside="one MLP of as many active parameters",
        ratio=ratio * flops["experts"] / flops["one MLP"],
        goal="experts-h200",
        extra=extra,
    )
    record("experts", [row], given)


if __name__ == "__main__":
    main()
