"""A layer of experts beside a plain MLP with as many active parameters.

    python benchmarks/experts.py [--tokens 2048 --rounds 5]

Width 768, and for each token two of eight experts of 3,072, as in
nomic-embed-text-v2-moe; beside them one MLP of 6,144. Forward and backward, in float32
on a processor and bfloat16 elsewhere; both take turns, and figures are medians.
"""

import argparse
import dataclasses
import os
import platform
import statistics
import time
from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import nnx

from nomic_jax.backend import default_dtype
from nomic_jax.model.mlp import Mlp
from nomic_jax.model.moe import MixtureOfExperts
from nomic_jax.published import PUBLISHED

EXPERTS = PUBLISHED["nomic-embed-text-v2-moe"]
DENSE = dataclasses.replace(
    EXPERTS, num_experts=0, mlp_width=EXPERTS.experts_per_token * EXPERTS.mlp_width
)


def make_steps(tokens: int, dtype: jnp.dtype) -> dict[str, Callable[[], object]]:
    """Return a forward and backward pass of either layer, compiled and run once."""
    x = jax.random.normal(jax.random.key(0), (tokens, EXPERTS.width), dtype)
    experts = MixtureOfExperts(EXPERTS, dtype=dtype, rngs=nnx.Rngs(0))
    dense = Mlp(DENSE, dtype=dtype, rngs=nnx.Rngs(0))

    def both_ways(layer, apply):
        def loss(layer, x):
            return jnp.sum(jnp.sin(apply(layer, x).astype(jnp.float32)))

        step = jax.jit(jax.grad(loss, argnums=(0, 1)))

        def run():
            return jax.block_until_ready(step(layer, x))

        run()
        return run

    return {
        "experts": both_ways(experts, lambda layer, x: layer(x, None)[0]),
        "one MLP": both_ways(dense, lambda layer, x: layer(x)),
    }


def main() -> None:
    """Measure both in turns and print medians and their ratio."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tokens", type=int, default=2048)
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    dtype = jnp.dtype(default_dtype())
    print(f"{jax.devices()[0].device_kind}, {os.cpu_count()} cores, {dtype}")
    print(f"Python {platform.python_version()}, jax {jax.__version__}")
    print(f"load {os.getloadavg()[0]:.1f}, {options.tokens:,} tokens")
    seconds: dict[str, list[float]] = {"experts": [], "one MLP": []}
    steps = make_steps(options.tokens, dtype)
    for _ in range(options.rounds):
        for name, step in steps.items():
            began = time.perf_counter()
            step()
            seconds[name].append(time.perf_counter() - began)
    medians = {name: statistics.median(each) for name, each in seconds.items()}
    for name, median in medians.items():
        print(f"{name}: {median:.2f} s, {options.tokens / median:,.0f} tokens/s")
    ratio = medians["one MLP"] / medians["experts"]
    print(f"throughput of experts by that of one MLP: {ratio:.0%}")


if __name__ == "__main__":
    main()
