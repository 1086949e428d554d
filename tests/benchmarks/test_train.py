"""What `benchmarks/train.py` takes for the same work is the same work."""

import importlib

import jax
import numpy as np
import pytest
from flax import nnx
from paths import ROOT

from nomic_jax.batch import PairBatch
from nomic_jax.data.packing import pack_texts
from nomic_jax.model.encoder import NomicBert
from nomic_jax.training.contrastive import BiEncoder, contrastive_objective

BENCHMARKS = ROOT / "benchmarks"


@pytest.fixture
def script(monkeypatch):
    """What imports a script as one that is run there would."""
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    return importlib.import_module


@pytest.fixture
def packed():
    """Six queries and their documents, several in a row."""
    rng = np.random.default_rng(0)
    lengths = np.concatenate([rng.integers(3, 9, 6), rng.integers(3, 30, 6)])
    texts = [rng.integers(5, 128, n, dtype=np.int32) for n in lengths]
    plan = pack_texts(lengths, row_length=32)
    members = plan.members(range(plan.rows)).tolist()
    rows = plan.lay_out([texts[m] for m in members], range(plan.rows), pad_id=0)
    slots, places = plan.places()
    ids = np.zeros((1, slots.size, 2), np.int32)
    ids[0, places[6:]] = np.arange(12).reshape(6, 2)
    return texts, PairBatch(rows, slots, places[:6], places[6:], ids)


def test_padded_texts_are_the_packed_ones(script, packed):
    texts, batch = packed
    for side, wanted in zip(
        script("train_ours").sides_apart(batch), (texts[:6], texts[6:]), strict=True
    ):
        assert side.ids.shape[1] == max(map(len, wanted))
        for row, mask, text in zip(side.ids, side.mask, wanted, strict=True):
            np.testing.assert_array_equal(row[mask], text)


@pytest.mark.slow
def test_the_padded_step_has_the_packed_steps_loss_and_gradient(
    script, packed, tiny_config
):
    ours, batch = script("train_ours"), packed[1]
    config = dict(vars(tiny_config)) | {"trained_positions": 32}
    model = BiEncoder(NomicBert(type(tiny_config)(**config), rngs=nnx.Rngs(0)), None)
    key = jax.random.key(0)

    def found(objective, batch):
        of = jax.value_and_grad(lambda model: objective(model, batch, key)[0])
        value, gradient = jax.jit(of)(model)
        return float(value), jax.tree.leaves(gradient)

    objective = contrastive_objective(ours.EMBEDDING, ours.LOSS)
    value, gradient = found(objective, batch)
    padded, other = found(ours.padded_objective, ours.sides_apart(batch))
    # Float32 through two layers, at a scale of 20.
    assert padded == pytest.approx(value, rel=1e-5)
    for got, wanted in zip(other, gradient, strict=True):
        np.testing.assert_allclose(got, wanted, atol=1e-5 * np.abs(wanted).max())


@pytest.mark.torch
def test_the_other_side_has_the_loss_of_the_same_tokens(script):
    """The decoder's bias is 0 there, so a fresh model gives about log(V)."""
    pytest.importorskip("transformers")
    ours, theirs = script("train_ours"), script("train_theirs")
    config, batch = ours.nomic_bert(1, 64, head="mlm"), ours.masked_rows(4, 16)
    step = theirs.Mlm(config, batch, 3, compiled=False)
    total = sum(float(step.loss(*part).detach()) for part in step.parts)
    assert step.count == batch.weights.sum()
    # Initial scores are small: the loss of a token is that of a uniform guess.
    assert total / step.count == pytest.approx(np.log(config.vocab_size), rel=0.01)
    before = [parameter.detach().clone() for parameter in step.model.parameters()]
    step()
    assert any(
        (a != b).any() for a, b in zip(before, step.model.parameters(), strict=True)
    )
