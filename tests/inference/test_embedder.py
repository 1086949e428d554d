"""Texts in, unit vectors out: order, conventions, what is refused, what is kept."""

import dataclasses
import inspect
import json
import logging
import shutil
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny_checkpoints as tiny
from compilation import of_a_user
from flax import nnx

import nomic_jax.inference.embedder
from nomic_jax.batch import Tokens
from nomic_jax.config import EmbeddingConfig, differing_fields
from nomic_jax.data.tokenizer import BUCKETS, TextTokenizer
from nomic_jax.inference.batching import tokenize
from nomic_jax.inference.embedder import Embedder
from nomic_jax.model.encoder import NomicBert
from nomic_jax.model.pooling import Projection

WORDS = "a small fox jumps over the lazy dog while search query document : _".split()

# Unit vectors of 32 entries, sums of at most 64 terms over 2 layers in another order.
ROUNDING = 2e-6


@pytest.fixture(scope="module")
def tokenizer():
    text = " ".join(WORDS) + " clustering classification"
    return TextTokenizer.train([text] * 3, vocab_size=128)


def embedding(**changes):
    values = {"pooling": "mean", "layer_norm": False, "max_length": 96}
    return EmbeddingConfig(**(values | {"matryoshka_dims": (32, 16, 8)} | changes))


@pytest.fixture(scope="module")
def embedder(tiny_model, tokenizer):
    return Embedder(tiny_model, tokenizer, embedding(), tokens_per_batch=64)


def texts_of(*counts, seed=0):
    """Texts of so many words each; a word is a token, `clustering: ` two more."""
    random = np.random.default_rng(seed)
    return [" ".join(random.choice(WORDS[:12], count)) for count in counts]


@pytest.fixture
def folder(tmp_path):
    """A published folder, as Nomic's, named so that v1.5's conventions are found."""
    arrays = tiny.tensors()
    for name, array in arrays.items():  # attention far from uniform, norms near 1
        array *= 4 if "Wqkv" in name else 1
        array += name.endswith(("ln.weight", "norm1.weight", "norm2.weight"))
    source = tmp_path / "nomic-embed-text-v1.5"
    return tiny.add_tokenizer(tiny.folder(source, arrays, tiny.NOMIC_CONFIG))


def python(code, **environment):
    return subprocess.run(
        [sys.executable, "-c", code],
        env={**of_a_user(), "JAX_PLATFORMS": "cpu", **environment},
        capture_output=True,
        text=True,
    )


@pytest.mark.slow
def test_a_list_embeds_as_each_text_alone_and_in_its_order(embedder):
    texts = texts_of(2, 30, 3, 11, 1, 28, 12, 4, 2, 3, 13)
    alone = [embedder.encode([text], task="clustering")[0] for text in texts]
    together = embedder.encode(texts, task="clustering")
    assert together.dtype == np.float32
    np.testing.assert_allclose(together, np.stack(alone), atol=ROUNDING)
    # The claim says something only if texts differ by more than rounding does.
    far = np.abs(together - np.roll(together, 1, axis=0)).max(axis=1)
    assert far.min() > 1000 * ROUNDING


@pytest.fixture(scope="module")
def pooled(tiny_model, tokenizer):
    """Two texts and the means of their hidden states, each run alone, unpadded."""
    texts = texts_of(3, 11)
    means = []
    run = jax.jit(lambda model, tokens: model(tokens))
    (rows,) = tokenize(texts, tokenizer, prefix="clustering: ", max_length=96)
    for ids in rows:
        hidden = run(tiny_model, Tokens(ids[None], np.ones_like(ids)[None]))
        means.append(np.asarray(hidden)[0].mean(axis=0, dtype=np.float64))
    return texts, np.stack(means)


@pytest.mark.slow
@pytest.mark.optimized
def test_tasks_differ_by_their_prefix_alone(embedder):
    texts = texts_of(3, 5, 4)
    query, document = embedder.encode_query(texts), embedder.encode_document(texts)
    assert np.array_equal(query, embedder.encode(texts, task="search_query"))
    assert np.array_equal(document, embedder.encode(texts, task="search_document"))
    assert np.abs(query - document).max() > 1000 * ROUNDING
    for prefix, vectors in (("search_query: ", query), ("search_document: ", document)):
        bare = Embedder(
            embedder.model, embedder.tokenizer, embedding(prompts={"none": ""})
        )
        prefixed = bare.encode([prefix + text for text in texts], task="none")
        np.testing.assert_allclose(vectors, prefixed, atol=ROUNDING)


def test_a_fingerprint_names_what_embeddings_depend_on(embedder, tiny_model, tokenizer):
    def differing(*, model=None, config=None, **changes):
        made = embedder.replaced(model=model, config=config)
        for name, value in changes.items():
            setattr(made, name, value)
        return [
            line.partition(" ")[0]
            for line in differing_fields(embedder.fingerprint(), made.fingerprint())
        ]

    assert differing() == []
    found = embedder.fingerprint()
    assert json.loads(json.dumps(found)) == found
    assert differing(config=embedding(pooling="cls")) == ["embedding.pooling"]
    other = jax.tree.map(lambda leaf: leaf, tiny_model)
    other.config = dataclasses.replace(other.config, rope_base=500.0)
    assert differing(model=other) == ["model.rope_base"]
    assert differing(model=jax.tree.map(lambda leaf: 2 * leaf, tiny_model)) == [
        "weights"
    ]
    rough = jax.tree.map(lambda leaf: leaf, tiny_model)
    rough.dtype = jnp.dtype("bfloat16")
    assert differing(model=rough) == ["dtype"]
    words = TextTokenizer.train(["other words"] * 3, vocab_size=64)
    assert differing(tokenizer=words) == ["tokenizer"]
    kernel = np.eye(32, dtype=np.float32)
    dense = [Projection(kernel, None, activation=a) for a in ("identity", "tanh")]
    assert differing(projection=dense[0]) == ["projection"]
    made = embedder.replaced()
    made.projection = dense[0]
    assert made.replaced(config=embedding()).projection is dense[0]
    assert made.replaced(config=embedding()).tokens_per_batch == 64
    found = made.fingerprint()["projection"]
    made.projection = dense[1]
    assert made.fingerprint()["projection"] != found


@pytest.mark.slow
@pytest.mark.parametrize("layer_norm", [False, True])
def test_a_dim_is_the_first_entries_scaled_to_unit_length(
    tiny_model, tokenizer, pooled, layer_norm
):
    embedder = Embedder(tiny_model, tokenizer, embedding(layer_norm=layer_norm))
    texts, full = pooled
    if layer_norm:
        full = full - full.mean(axis=1, keepdims=True)
        full /= np.sqrt(full.var(axis=1, keepdims=True) + 1e-5)
    for dim in (8, 16, 32, None):
        cut = full[:, :dim]
        expected = cut / np.linalg.norm(cut, axis=1, keepdims=True)
        got = embedder.encode(texts, task="clustering", dim=dim)
        assert got.shape == (2, dim or 32)
        np.testing.assert_allclose(got, expected, atol=ROUNDING)
        # Float32 rounding of a length of 1.
        np.testing.assert_allclose(np.linalg.norm(got, axis=1), 1, atol=1e-6)


@pytest.mark.slow
def test_another_dim_or_order_compiles_no_other_encoder(embedder):
    texts = texts_of(1, 2, 3)
    programs = nomic_jax.inference.embedder._pooled
    programs.clear_cache()
    embedder.encode(texts, task="clustering")
    embedder.encode(texts[::-1], task="classification", dim=8)
    embedder.encode(texts_of(1, 3, 2, seed=1), task="clustering", dim=16)
    assert programs._cache_size() == 1


@pytest.mark.slow
def test_a_thousand_texts_need_few_shapes(embedder, monkeypatch):
    shapes = []

    def instead(model, projection, texts, config):
        shapes.append(texts.tokens.ids.shape)
        return np.ones((*texts.slot_lengths.shape, 32), np.float32)

    monkeypatch.setattr(nomic_jax.inference.embedder, "_pooled", instead)
    counts = np.random.default_rng(0).integers(1, 80, 1000)
    embedder.encode(texts_of(*counts), task="clustering")
    # Up to 96 tokens, each bucket with one number of rows, and the last batch.
    assert len(set(shapes)) <= BUCKETS.index(96) + 2 < len(shapes)
    assert max(rows * length for rows, length in shapes) <= 96


@pytest.mark.parametrize("dim", [None, 8])
def test_no_texts_give_no_rows(embedder, dim):
    got = embedder.encode([], task="clustering", dim=dim)
    assert (got.shape, got.dtype) == ((0, dim or 32), np.float32)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ({"task": "serch_query"}, "unknown task 'serch_query': did you mean 'search_q"),
        ({"task": "zzz"}, "known: classification, clustering, search_document, search"),
        ({"task": "clustering", "dim": 12}, "dim=12 .* trained for: 8, 16, 32"),
        ({"task": "clustering", "dim": 64}, "dim=64 .* trained for: 8, 16, 32"),
        ({"task": "clustering", "dim": 0}, "dim=0 .* trained for: 8, 16, 32"),
    ],
)
def test_an_unknown_task_or_dim_names_what_exists(embedder, arguments, says):
    with pytest.raises(ValueError, match=says):
        embedder.encode(["fox"], **arguments)


@pytest.mark.parametrize(
    ("texts", "says"),
    [(["fox", " "], "index 1"), ([""], "index 0"), ("fox", "one string")],
)
def test_empty_texts_and_a_bare_string_are_refused(embedder, texts, says):
    with pytest.raises(ValueError, match=says):
        embedder.encode(texts, task="clustering")


@pytest.mark.slow
def test_long_texts_are_cut_with_one_counted_warning(embedder, caplog):
    texts = ["fox", "dog " * 200, "a", "dog " * 300]
    with caplog.at_level(logging.WARNING):
        got = embedder.encode(texts, task="clustering")
    assert [record.getMessage() for record in caplog.records] == [
        "cut 2 of 4 texts to 96 tokens"
    ]
    np.testing.assert_allclose(got[1], got[3], atol=ROUNDING)
    with pytest.raises(ValueError, match="2 of 4 texts exceed 96 tokens.*index 1"):
        embedder.encode(texts, task="clustering", on_too_long="error")


def test_a_length_beyond_the_trained_needs_a_scaling_factor(
    tiny_config, tiny_model, tokenizer
):
    plain = dataclasses.replace(tiny_config, rope_scaling_factor=None)
    model = NomicBert(plain, rngs=nnx.Rngs(0))
    Embedder(model, tokenizer, embedding(max_length=16))
    with pytest.raises(ValueError, match="max_length=17 exceeds the 16 positions"):
        Embedder(model, tokenizer, embedding(max_length=17))
    Embedder(tiny_model, tokenizer, embedding(max_length=17))
    with pytest.raises(ValueError, match=f"exceeds the longest row, {BUCKETS[-1]}"):
        Embedder(tiny_model, tokenizer, embedding(max_length=BUCKETS[-1] + 1))


def test_what_does_not_fit_the_model_is_refused(tiny_config, tiny_model, tokenizer):
    small = dataclasses.replace(tiny_config, vocab_size=64)
    with pytest.raises(ValueError, match=r"tokenizer has \d+ tokens .* table 64 rows"):
        Embedder(NomicBert(small, rngs=nnx.Rngs(0)), tokenizer, embedding())
    with pytest.raises(ValueError, match=r"matryoshka_dims \[64\] exceed .* width 32"):
        Embedder(tiny_model, tokenizer, embedding(matryoshka_dims=(64, 32)))


def test_a_published_folder_loads_with_its_conventions(folder):
    embedder = Embedder.from_pretrained(folder)
    assert embedder.config.layer_norm
    assert embedder.config.max_length == 64
    assert embedder.model.dtype == np.float32  # on a processor
    got = embedder.encode_query(["a small fox"])
    assert got.shape == (1, 32)


@pytest.mark.slow
def test_texts_beyond_the_trained_length_embed_when_asked_for(folder):
    text = "the lazy dog jumps over a small fox " * 12
    with pytest.raises(ValueError, match="max_length=128 .* rotary_scaling_factor"):
        Embedder.from_pretrained(folder, max_length=128)
    embedder = Embedder.from_pretrained(
        folder, max_length=128, rotary_scaling_factor=2.0
    )
    long, short = embedder.encode(
        [text, "a fox"], task="clustering", on_too_long="error"
    )
    assert np.isfinite(long).all()
    # Its own length decides on its frequencies, not the factor alone.
    plain = Embedder.from_pretrained(folder).encode(["a fox"], task="clustering")[0]
    np.testing.assert_allclose(short, plain, atol=ROUNDING)
    twice = Embedder.from_pretrained(folder, max_length=128, rotary_scaling_factor=4.0)
    other = twice.encode([text], task="clustering")[0]
    assert np.abs(long - other).max() > 100 * ROUNDING


@pytest.mark.slow
def test_bfloat16_is_close_to_float32(embedder, tiny_config, tokenizer):
    model = NomicBert(tiny_config, rngs=nnx.Rngs(0), dtype=jnp.dtype("bfloat16"))
    rough = Embedder(model, tokenizer, embedding())
    texts = texts_of(1, 2, 3, 4)
    got = rough.encode(texts, task="clustering")
    assert got.dtype == np.float32
    # A bfloat16 is right to 2^-9, so a vector to about 1e-2 after two layers.
    cosine = np.sum(got * embedder.encode(texts, task="clustering"), axis=1)
    assert 0.999 < cosine.min() < 1 - 1e-6


def test_the_type_of_matmuls_can_be_chosen(folder):
    assert Embedder.from_pretrained(folder, dtype="bfloat16").model.dtype == "bfloat16"
    # Past the type checks that tests run with: what a caller without them meets.
    load = inspect.unwrap(Embedder.from_pretrained.__func__)
    with pytest.raises(ValueError, match="dtype='float16' must be one of"):
        load(Embedder, folder, dtype="float16")


@pytest.mark.slow
@pytest.mark.optimized
def test_what_computes_attention_is_said_or_refused(folder, caplog):
    jax.clear_caches()  # both are compiled here, at the same level
    with caplog.at_level("INFO", "nomic_jax.inference.embedder"):
        chosen = Embedder.from_pretrained(folder, attention="blockwise")
    assert "attention: blockwise" in caplog.messages
    assert chosen.model.backend == "blockwise"
    np.testing.assert_array_equal(
        chosen.encode(["a fox"], task="clustering"),
        Embedder.from_pretrained(folder).encode(["a fox"], task="clustering"),
    )
    with pytest.raises(ValueError, match="attention='splash' runs on TPUs"):
        Embedder.from_pretrained(folder, attention="splash")


def test_a_bar_counts_every_token_on_standard_error(embedder, capfd):
    embedder.encode(texts_of(1, 2, 3, 4), task="clustering", progress=True)
    said = capfd.readouterr()
    assert "26.0/26.0" in said.err and "token/s" in said.err
    assert said.out == ""


def test_a_length_beyond_absolute_positions_has_no_remedy(tiny_config):
    config = dataclasses.replace(tiny_config, rope_base=None, rope_scaling_factor=None)
    tokenizer = TextTokenizer.train(["a b c"], vocab_size=20)
    embedding = EmbeddingConfig(pooling="mean", layer_norm=False, max_length=17)
    with pytest.raises(ValueError, match="max_length=17 .* 16 .* nothing stretches"):
        Embedder(NomicBert(config, rngs=nnx.Rngs(0)), tokenizer, embedding)


EMBED = """
from nomic_jax import Embedder
model = Embedder.from_pretrained({source!r})
print(model.config.layer_norm, model.encode_query(["a small fox"]).shape)
"""


@pytest.mark.slow
def test_a_hub_id_is_found_in_the_hubs_cache_without_a_network(folder, tmp_path):
    repository = tmp_path / "home/hub/models--nomic-ai--nomic-embed-text-v1.5"
    shutil.copytree(folder, repository / "snapshots" / ("0" * 40))
    (repository / "refs").mkdir()
    (repository / "refs/main").write_text("0" * 40)
    offline = {"HF_HOME": str(tmp_path / "home"), "HF_HUB_OFFLINE": "1"}
    ids = ("nomic-ai/nomic-embed-text-v1.5", "nomic-ai/not-here")
    done = python("".join(EMBED.format(source=each) for each in ids), **offline)
    assert done.stdout == "True (1, 32)\n", done.stderr
    assert done.returncode == 1
    last = done.stderr.strip().splitlines()[-1]
    assert last.startswith("ValueError: nomic-ai/not-here is not a folder here, and")


def cached_programs(folder):
    return sorted(path.name for path in folder.glob("*_pooled*-cache"))


@pytest.mark.slow
def test_a_second_process_finds_the_compiled_programs(folder, tmp_path):
    code = EMBED.format(source=str(folder))
    code += "import jax\nprint('hits', len(hits))\n"
    count = (
        "import jax.monitoring as m\nhits = []\nm.register_event_listener("
        "lambda name, **_: hits.append(name) if name.endswith('cache_hits') else None)"
    )
    said = []
    for _ in range(2):
        done = python(
            count + code,
            XDG_CACHE_HOME=str(tmp_path / "cache"),
            JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS="0",
        )
        assert done.returncode == 0, done.stderr
        said.append((done.stdout, cached_programs(tmp_path / "cache/nomic_jax/xla")))
    assert "hits 0\n" in said[0][0]
    assert "hits 0\n" not in said[1][0]
    assert len(said[0][1]) == 1
    assert said[0][1] == said[1][1]


@pytest.mark.slow
def test_a_compilation_cache_of_ones_own_is_left_alone(folder, tmp_path):
    done = python(
        EMBED.format(source=str(folder)),
        XDG_CACHE_HOME=str(tmp_path / "cache"),
        JAX_COMPILATION_CACHE_DIR=str(tmp_path / "own"),
        JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS="0",
    )
    assert done.returncode == 0, done.stderr
    assert cached_programs(tmp_path / "own")
    assert not (tmp_path / "cache").exists()


def test_a_folder_without_config_or_tokenizer_is_named(folder):
    for name in ("tokenizer.json", "config.json"):
        (folder / name).unlink()
        with pytest.raises(ValueError, match=f"{folder}.*{name}"):
            Embedder.from_pretrained(folder)


def test_the_folders_own_embedding_decides(folder):
    config = EmbeddingConfig(
        pooling="cls", layer_norm=False, max_length=20, prompts={"none": ""}
    )
    (folder / "embedding.json").write_text(json.dumps(config.to_json()))
    embedder = Embedder.from_pretrained(folder)
    assert embedder.config == config
    with pytest.raises(ValueError, match="unknown task 'search_query': known: none"):
        embedder.encode_query(["a fox"])


@pytest.mark.optimized
@pytest.mark.parametrize("dim", [None, 8])
def test_without_normalizing_a_vector_is_cut_and_keeps_its_length(embedder, dim):
    texts = texts_of(3, 9)
    pooled = embedder.encode(texts, task="clustering", normalize=False)
    cut = embedder.encode(texts, task="clustering", dim=dim, normalize=False)
    np.testing.assert_array_equal(cut, pooled[:, :dim])
    lengths = np.linalg.norm(cut, axis=1, keepdims=True)
    assert (np.abs(lengths - 1) > 0.1).all()
    unit = embedder.encode(texts, task="clustering", dim=dim)
    np.testing.assert_allclose(cut / lengths, unit, atol=ROUNDING)
