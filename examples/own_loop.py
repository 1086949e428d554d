"""Train `NomicBert` in a loop of your own: the module is a pytree, `jax.jit` is enough.

A toy task that shows the whole circle: each query is a few of a document's tokens, and
the encoder learns which document they came from. Run it: python examples/own_loop.py
"""

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

from nomic_jax import ModelConfig, NomicBert, Tokens
from nomic_jax.model import mean_pool
from nomic_jax.training import info_nce

CONFIG = ModelConfig(
    vocab_size=64,
    type_vocab_size=2,
    num_layers=2,
    width=64,
    num_heads=2,
    mlp_width=256,
    layer_norm_epsilon=1e-12,
    rope_base=1000.0,
    trained_positions=32,
)


def draw_pairs(rng: np.random.Generator, count: int, length: int = 24):
    """Draw documents of random tokens, and queries that keep four of them."""
    documents = rng.integers(1, CONFIG.vocab_size, (count, length), dtype=np.int32)
    queries = rng.permuted(documents, axis=1)[:, :4]
    return tuple(Tokens(ids, np.ones_like(ids)) for ids in (queries, documents))


def loss(model: NomicBert, query: Tokens, document: Tokens):
    """InfoNCE over the batch, and the share of queries that find their document."""
    vectors = [mean_pool(model(t), jnp.asarray(t.mask)) for t in (query, document)]
    return info_nce(*vectors, scale=20.0)


def main(steps: int = 81) -> float:
    """Train and return the last step's accuracy."""
    model = NomicBert(CONFIG, rngs=nnx.Rngs(0))
    optimizer = optax.adamw(1e-3)
    moments = optimizer.init(model)

    @jax.jit
    def step(model, moments, query, document):
        (value, found), gradient = jax.value_and_grad(loss, has_aux=True)(
            model, query, document
        )
        changes, moments = optimizer.update(gradient, moments, model)
        return optax.apply_updates(model, changes), moments, value, found

    rng = np.random.default_rng(0)
    found = 0.0
    for number in range(steps):
        model, moments, value, found = step(model, moments, *draw_pairs(rng, 64))
        if number % 20 == 0 or number == steps - 1:
            print(f"step {number}: loss {value:.3f}, {found:.0%} found")
    return float(found)


if __name__ == "__main__":
    main()
