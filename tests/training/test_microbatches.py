"""Microbatches of any size leave every contrastive loss and gradient as they are."""

import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from compilation import environment
from flax import nnx
from sweeps import pairwise

if __name__ == "__main__":
    jax.config.update("jax_enable_x64", True)
    jnp.float32 = jnp.float64

from nomic_jax.batch import PackedTexts, PairBatch, Tokens
from nomic_jax.config import EmbeddingConfig
from nomic_jax.model.encoder import Encoding, NomicBert
from nomic_jax.training import contrastive
from nomic_jax.training.contrastive import BiEncoder, contrastive_objective
from nomic_jax.training.losses.contrastive import ContrastiveLoss
from nomic_jax.training.microbatches import parts, summed_in_microbatches
from nomic_jax.training.optimizer import parameter_name
from nomic_jax.training.placement import Placement
from nomic_jax.training.planning.flops import product_flops

QUERIES, LENGTH, WIDTH = 7, 6, 8
EMBEDDING = EmbeddingConfig(pooling="mean", layer_norm=True, max_length=LENGTH)

LOSSES = {
    "one_direction": {},
    "both_directions": {"both_directions": True},
    "all_sides": {"query_negatives": True, "positive_negatives": True},
    "margin": {"false_negative_margin": 0.1},
    "relative_margin": {"false_negative_margin": 0.1, "relative_margin": True},
    "learned_scale": {"learned_scale": True},
    "blockwise": {"block_size": 4},
    "everything": {
        "both_directions": True,
        "query_negatives": True,
        "positive_negatives": True,
        "false_negative_margin": 0.1,
        "learned_scale": True,
        "block_size": 4,
    },
}
NESTED = {
    "full": {},
    "matryoshka": {"matryoshka_dims": (8, 4), "matryoshka_weights": (1.0, 0.5)},
}
LAYOUTS = {  # documents of a query, and whether some of the batch stand twice
    "positives": (1, False),
    "hard_negatives": (3, False),
    "duplicates": (3, True),
}
# Rows at once: what divides the 14 and the 28 rows, and what does not.
CHUNKS = (7, 5)


@pytest.mark.parametrize(
    ("total", "most", "expected"),
    [
        (12, 4, (3, 4)),
        (10, 3, (5, 2)),  # rather than 12 rows in four parts
        (28, 5, (7, 4)),
        (14, 5, (3, 5)),  # a fourth part would add two rows
        (7, 5, (2, 4)),
        (5, 1, (5, 1)),
    ],
)
def test_few_rows_are_added_to_make_parts_equal(total, most, expected):
    count, size = parts(total, most)
    assert (count, size) == expected
    assert size <= most and count * size >= total


class Small(NomicBert):
    """Stands for an encoder: a table, a layer, and noise from each row's first key."""

    def __init__(self):
        rng = np.random.default_rng(0)
        self.table = nnx.Param(jnp.array(rng.normal(size=(64, WIDTH)), jnp.float32))
        self.kernel = nnx.Param(jnp.array(rng.normal(size=(WIDTH,) * 2), jnp.float32))

    def encode(self, tokens, *, dropout_keys, **asked):
        hidden = jnp.tanh(self.table[...][tokens.ids] @ self.kernel[...])
        draw = jax.vmap(lambda key: jax.random.normal(key, (1, WIDTH)))
        noise = draw(dropout_keys[:, 0])
        return Encoding(hidden * (1 + 0.3 * noise), None, None, None)


def pairs(group, twice):
    """A query and its documents, each in a row of its own."""
    rng = np.random.default_rng(group)
    count = QUERIES * (1 + group)
    ids = rng.integers(1, 64, size=(count, LENGTH), dtype=np.int32)
    ids[QUERIES::group, :4] = ids[:QUERIES, :4]  # a positive resembles its query
    names = np.arange(count, dtype=np.int32)
    if twice:  # a negative is another query's positive, a negative another's negative
        for one, other in ((1, group), (2, 2 * group + 1)):
            ids[QUERIES + one] = ids[QUERIES + other]
            names[QUERIES + one] = names[QUERIES + other]
    lengths = rng.integers(2, LENGTH + 1, size=count)
    lengths[QUERIES:][names[QUERIES:] != np.arange(QUERIES, count)] = LENGTH
    segments = (np.arange(LENGTH) < lengths[:, None]).astype(np.int32)
    texts = PackedTexts(Tokens(ids, segments), lengths[:, None].astype(np.int32))
    places = np.arange(count)
    hashes = np.stack([names, names + 1], axis=1)[None]
    return PairBatch(texts, places[None], *np.split(places, [QUERIES]), hashes)


# Compiled apart, each once for all cases that share it.
VECTORS = jax.jit(contrastive.pair_vectors, static_argnums=(2, 3))
LOSS = jax.jit(contrastive.contrastive_loss, static_argnums=2, static_argnames="axis")


def value_and_gradient(fields, batch, most):
    loss = ContrastiveLoss(temperature=0.2, **fields)
    objective = contrastive_objective(EMBEDDING, loss, Placement(most_rows=most))
    value, gradient = jax.value_and_grad(lambda *given: objective(*given)[0])(
        BiEncoder.of(Small(), loss), batch, jax.random.key(3)
    )
    leaves = jax.tree_util.tree_flatten_with_path(jax.device_get(gradient))[0]
    return float(value), {parameter_name(path): leaf for path, leaf in leaves}


def worst_error(fields, batch, most):
    """The largest error of the loss, or of a gradient by its largest entry."""
    value, gradient = value_and_gradient(fields, batch, None)
    found, parts = value_and_gradient(fields, batch, most)
    assert set(parts) == set(gradient) and value > 0.01
    assert all(np.abs(expected).max() > 1e-3 for expected in gradient.values())
    return max(
        abs(found / value - 1),
        *(
            np.abs(parts[name] - expected).max() / np.abs(expected).max()
            for name, expected in gradient.items()
        ),
    )


@pytest.mark.slow
@pytest.mark.parametrize("most", [4, 3])
def test_a_sum_in_parts_has_the_gradient_of_the_whole_and_repeats_nothing(most):
    random = np.random.default_rng(0)
    rows = jnp.asarray(random.normal(size=(8, 5)), jnp.float32), jnp.ones(8, bool)
    weights = {
        name: jnp.asarray(random.normal(size=shape), jnp.float32)
        for name, shape in {"into": (5, 6), "out": (6, 2)}.items()
    }

    def summed(weights, rows, scale):
        x, real = rows
        out = jnp.tanh(x @ weights["into"]) @ weights["out"]
        return scale * jnp.sum(real[:, None] * out**2), (real.sum(), None)

    def mean(weights, most):
        total, (count, nothing) = summed_in_microbatches(
            summed, weights, rows, jnp.float32(2), most=most
        )
        assert nothing is None
        return total / count

    both = jax.value_and_grad(mean)
    value, gradient = both(weights, most)
    expected, whole = both(weights, None)
    # Sums of eight rows in another order, which is a few roundings of the largest.
    np.testing.assert_allclose(value, expected, rtol=1e-6)
    for name, array in whole.items():
        bound = 1e-6 * np.abs(array).max()
        np.testing.assert_allclose(gradient[name], array, atol=bound, err_msg=name)
    count, size = parts(8, most)
    forward = 2 * count * size * (5 * 6 + 6 * 2)
    backward = 2 * forward - 2 * count * size * 5 * 6  # x needs no gradient
    traced = jax.make_jaxpr(lambda weights: both(weights, most))(weights)
    assert product_flops(traced.jaxpr) == forward + backward


@pytest.mark.slow
@pytest.mark.parametrize(
    ("loss", "nested", "layout"), pairwise(LOSSES.keys(), NESTED.keys(), LAYOUTS.keys())
)
def test_microbatches_leave_loss_and_gradient_as_they_are(
    monkeypatch, loss, nested, layout
):
    monkeypatch.setattr(contrastive, "pair_vectors", VECTORS)
    monkeypatch.setattr(contrastive, "contrastive_loss", LOSS)
    fields, batch = LOSSES[loss] | NESTED[nested], pairs(*LAYOUTS[layout])
    for most in CHUNKS:
        # Sums of 28 rows in another order, which the backward passes make larger: 5e-6
        # was the worst; in float64 it is below 1e-15, as the next test holds.
        assert worst_error(fields, batch, most) < 2e-5, most


@pytest.mark.slow
def test_in_float64_they_leave_them_as_they_are_to_its_own_precision():
    # In a process of its own, where float32 means float64 to all that is imported.
    subprocess.run([sys.executable, __file__], env=environment(), check=True)


if __name__ == "__main__":
    contrastive.pair_vectors, contrastive.contrastive_loss = VECTORS, LOSS
    everything = LOSSES["everything"] | NESTED["matryoshka"]
    errors = [worst_error(everything, pairs(3, True), most) for most in CHUNKS]
    assert max(errors) < 1e-13, errors  # 6.7e-16 was measured
