"""A text's vector is its own, whatever shares its row, its batch and its devices."""

import dataclasses
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import tiny_checkpoints as tiny
from compilation import environment
from flax import nnx

from nomic_jax.config import EmbeddingConfig
from nomic_jax.distributed.devices import num_devices
from nomic_jax.inference.batching import BatchShape, text_batches
from nomic_jax.inference.embedder import text_vectors
from nomic_jax.model.encoder import NomicBert
from nomic_jax.model.pooling import Projection

# What batch composition may change in float32; 2 layers of width 32 change 1e-6.
COMPOSITION = 1e-5
LENGTHS = (5, 64, 14, 3, 33, 40, 9, 64, 12, 48, 7, 44, 8, 10, 6)  # of three buckets


def draw_texts(lengths=LENGTHS):
    random = np.random.default_rng(0)
    return [random.integers(5, tiny.VOCABULARY, length) for length in lengths]


def embed(model, texts, *, max_tokens=128, pooling="mean", projection=None):
    """Unit vectors of texts that are embedded together."""
    config = EmbeddingConfig(pooling=pooling, layer_norm=False, max_length=64)
    shape = BatchShape(max_length=64, max_tokens=max_tokens, devices=num_devices(model))
    batches = text_batches([texts], shape, pad_id=model.config.pad_token_id)
    out = np.full((len(texts), 16), np.nan, np.float32)
    for batch, vectors in text_vectors(
        model, projection, config, batches, dim=16, normalize=True
    ):
        out[batch.members] = vectors
    return out


def alone(model, texts, **options):
    return np.concatenate([embed(model, [text], **options) for text in texts])


def made(family, **changes):
    # Ten times the published deviation: attention is far from uniform.
    changes = {"initializer_range": 0.2} | changes
    config = dataclasses.replace(tiny.FAMILIES[family], **changes)
    return NomicBert(config, rngs=nnx.Rngs(0))


@pytest.mark.slow
@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_batch_composition_changes_no_embedding(family):
    model, texts = made(family), draw_texts()
    expected = alone(model, texts)
    got = embed(model, texts)
    np.testing.assert_allclose(got, expected, atol=COMPOSITION)
    # The claim says something only if texts differ by more.
    assert np.abs(got - np.roll(got, 1, axis=0)).max(axis=1).min() > 100 * COMPOSITION


@pytest.mark.slow
@pytest.mark.parametrize("pooling", ["cls", "last"])
def test_composition_matters_to_no_pooling_and_no_projection(pooling):
    model, texts = made("bert"), draw_texts()
    random = np.random.default_rng(1)
    kernel = random.normal(size=(model.config.width, 24)).astype(np.float32)
    projection = Projection(kernel, None, activation="tanh")
    options = {"pooling": pooling, "projection": projection}
    got = embed(model, texts, **options)
    np.testing.assert_allclose(got, alone(model, texts, **options), atol=COMPOSITION)
    other = embed(model, texts, pooling="mean", projection=projection)
    assert np.abs(got - other).max() > 100 * COMPOSITION


@pytest.mark.slow
def test_stretched_positions_go_by_each_texts_own_length():
    model = made("nomic", trained_positions=16, rope_scaling_factor=2.0)
    texts = draw_texts()
    got = embed(model, texts)
    np.testing.assert_allclose(got, alone(model, texts), atol=COMPOSITION)
    longer = made("nomic", trained_positions=64)  # whose positions are not stretched
    changed = np.abs(got - embed(longer, texts)).max(axis=1) > 100 * COMPOSITION
    assert changed.tolist() == [length > 16 for length in LENGTHS]


ON_EIGHT = """
import jax, numpy as np
from nomic_jax.distributed.devices import replicate_on_local_devices
from test_text_vectors import draw_texts, embed, made
assert jax.local_device_count() == 8
for family in ("nomic", "moe"):
    model, texts = made(family), draw_texts()
    one, eight = embed(model, texts), embed(replicate_on_local_devices(model), texts)
    assert np.isfinite(eight).all()
    print(family, np.abs(one - eight).max())
"""


@pytest.mark.slow
def test_eight_devices_find_what_one_finds():
    done = subprocess.run(
        [sys.executable, "-c", ON_EIGHT],
        env=environment(devices=8, test=__file__),
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    lines = [line.split() for line in done.stdout.splitlines()]
    assert [family for family, _ in lines] == ["nomic", "moe"]
    assert max(float(difference) for _, difference in lines) < COMPOSITION


@pytest.mark.real
@pytest.mark.slow
def test_batch_composition_changes_no_embedding_of_the_published_model(real_weights):
    from nomic_jax import Embedder

    embedder = Embedder.from_pretrained(
        real_weights / "nomic-embed-text-v1.5",
        max_length=4096,
        rotary_scaling_factor=2.0,
    )
    words = Path(__file__).read_text().split()
    long = words * (3000 // len(words))  # some 7,000 tokens: cut to 4,096
    texts = [" ".join(long[:count]) for count in (2, 5, 11, 30, 70, 150, 400, 900)]
    texts += [" ".join(long), *(" ".join(long[i : i + 20]) for i in range(0, 200, 20))]
    alone = [embedder.encode([text], task="clustering") for text in texts]
    together = embedder.encode(texts, task="clustering")
    np.testing.assert_allclose(together, np.concatenate(alone), atol=COMPOSITION)
