"""Model folders and live modules, and the folders that PyTorch's libraries read."""

import dataclasses
import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny_checkpoints as tiny
from flax import nnx

from nomic_jax.batch import Tokens
from nomic_jax.checkpoints.model_folder import (
    load_encoder,
    load_model,
    parameters,
    save_model,
)
from nomic_jax.checkpoints.reader import read_checkpoint
from nomic_jax.checkpoints.writer import write_checkpoint
from nomic_jax.config import EmbeddingConfig
from nomic_jax.data.tokenizer import TextTokenizer, pad
from nomic_jax.model.encoder import NomicBert
from nomic_jax.model.heads import MaskedLanguageModel, make_model
from nomic_jax.model.pooling import embed, matryoshka

CONFIG = tiny.CONFIG
EMBEDDING = EmbeddingConfig(
    pooling="mean", layer_norm=True, max_length=64, matryoshka_dims=(32, 16)
)


def tokens(seed=0, rows=3, length=20):
    random = np.random.default_rng(seed)
    ids = random.integers(5, tiny.VOCABULARY, (rows, length)).astype(np.int32)
    return Tokens(ids, np.ones_like(ids))


def assert_same(got, expected):
    got, expected = parameters(got), parameters(expected)
    tiny.assert_bitwise(
        {name: np.asarray(leaf) for name, leaf in got.items()},
        {name: np.asarray(leaf) for name, leaf in expected.items()},
    )


@pytest.mark.parametrize("bias", [None, False, True])
def test_a_saved_module_loads_as_it_was_through_every_layout(tmp_path, bias):
    rngs = nnx.Rngs(0)
    if bias is None:
        config, model = CONFIG, NomicBert(CONFIG, rngs=rngs)
    else:
        config = dataclasses.replace(CONFIG, head="mlm", head_bias=bias)
        model = MaskedLanguageModel(config, rngs=rngs)
    save_model(model, config, EMBEDDING, None, tmp_path / "jax")
    assert read_checkpoint(tmp_path / "jax").config == config
    assert read_checkpoint(tmp_path / "jax").embedding == EMBEDDING
    source = tmp_path / "jax"
    for layout in ("nomic", "transformers", "jax"):
        target = tmp_path / f"to-{layout}"
        write_checkpoint(read_checkpoint(source), target, layout=layout)
        assert read_checkpoint(target).config == config
        assert_same(load_model(target), model)
        source = target
    encoder = model if isinstance(model, NomicBert) else model.encoder
    assert_same(load_encoder(source), encoder)


@pytest.mark.slow
def test_a_loaded_module_computes_and_can_be_differentiated(tmp_path):
    model = NomicBert(CONFIG, rngs=nnx.Rngs(1))
    save_model(model, CONFIG, None, None, tmp_path / "jax")
    loaded = load_encoder(tmp_path / "jax", remat="full")
    np.testing.assert_array_equal(loaded(tokens()), model(tokens()))
    gradient = jax.grad(lambda m: jnp.sum(jnp.square(m(tokens()))))(loaded)
    assert jax.tree.structure(gradient) == jax.tree.structure(loaded)
    half = load_encoder(tmp_path / "jax", dtype=jnp.bfloat16)
    assert half(tokens()).dtype == jnp.bfloat16
    assert all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves(half))


def test_a_half_precision_file_loads_as_float32(tmp_path):
    arrays = tiny.tensors(dtype=tiny.DTYPES["bf16"])
    loaded = load_encoder(tiny.folder(tmp_path / "it", arrays, tiny.NOMIC_CONFIG))
    kernel = parameters(loaded)["encoder.blocks.mlp.up.kernel"]
    assert kernel.dtype == jnp.float32
    published = arrays["encoder.layers.1.mlp.fc11.weight"].astype(np.float32)
    np.testing.assert_array_equal(kernel[1], published.T)


@pytest.mark.parametrize("head", [None, "mlm", "question_answering"])
def test_saving_refuses_a_config_that_is_not_the_modules(tmp_path, head):
    config = dataclasses.replace(CONFIG, head=head)
    model = make_model(config, rngs=nnx.Rngs(0))
    other = dataclasses.replace(config, rope_base=1e4, num_heads=2, mlp_width=32)
    with pytest.raises(ValueError) as caught:
        save_model(model, other, None, None, tmp_path / "jax")
    assert str(caught.value).split(": ", 1)[1].split("; ") == [
        "mlp_width is 64 in the module and 32 in the config given",
        "num_heads is 4 in the module and 2 in the config given",
        "rope_base is 1000.0 in the module and 10000.0 in the config given",
    ]
    assert list(tmp_path.iterdir()) == []


def test_saving_refuses_labels_that_are_not_the_heads(tmp_path):
    fields = {"head": "token_classification", "labels": ("a", "b", "c")}
    config = dataclasses.replace(CONFIG, **fields)
    model = make_model(config, rngs=nnx.Rngs(0))
    other = dataclasses.replace(config, labels=("a", "b"))
    with pytest.raises(ValueError, match=r"classifier.kernel is \(32, 3\), but"):
        save_model(model, other, None, None, tmp_path / "jax")
    assert list(tmp_path.iterdir()) == []


def torch_ids(batch):
    import torch

    return torch.from_numpy(np.asarray(batch.ids, np.int64))


def quiet_transformers():
    import transformers

    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    return transformers


def native_model(*, head, dynamic=False, seed=0):
    """A random model as transformers makes it."""
    import torch

    transformers = quiet_transformers()
    torch.manual_seed(seed)
    rope = {"rope_type": "dynamic", "factor": 2.0} if dynamic else {}
    config = transformers.NomicBertConfig(
        vocab_size=tiny.VOCABULARY,
        hidden_size=tiny.WIDTH,
        num_hidden_layers=tiny.LAYERS,
        num_attention_heads=tiny.HEADS,
        intermediate_size=tiny.MLP,
        max_position_embeddings=64,
        rope_parameters={"rope_type": "default", "rope_theta": 1000.0, **rope},
    )
    kind = transformers.NomicBertForMaskedLM if head else transformers.NomicBertModel
    model = kind(config).eval()
    with torch.no_grad():  # so that nothing is 0 or 1, as norms and biases begin
        for parameter in model.parameters():
            parameter.normal_(std=0.1)
    return model


@pytest.mark.torch
@pytest.mark.parametrize("head", [False, True])
@pytest.mark.parametrize("original", [False, True])
def test_what_transformers_saves_is_read_and_computes_the_same(
    tmp_path, head, original
):
    import torch

    native = native_model(head=head, dynamic=True)
    native.save_pretrained(tmp_path / "it", save_original_format=original)
    model = load_model(tmp_path / "it")
    config = read_checkpoint(tmp_path / "it").config
    expected = dataclasses.replace(CONFIG, rope_scaling_factor=2.0)
    if head:
        expected = dataclasses.replace(expected, head="mlm", head_bias=True)
    assert config == expected
    batch = tokens()
    with torch.no_grad():
        out = native(torch_ids(batch))
    if isinstance(model, NomicBert):
        got, wanted = model(batch), out.last_hidden_state
    else:
        got, wanted = model.logits(model.encoder(batch)), out.logits
    # float32, two layers of width 32: sums of at most 128 products of order 1.
    np.testing.assert_allclose(got, wanted.numpy(), atol=5e-5)


@pytest.mark.torch
@pytest.mark.parametrize("head", [False, True])
@pytest.mark.parametrize("bias", [False, True])
def test_what_we_write_loads_into_transformers_with_no_key_over(tmp_path, head, bias):
    import torch

    transformers = quiet_transformers()
    arrays = tiny.tensors(head=head, head_bias=head and bias)
    source = tiny.folder(tmp_path / "source", arrays, tiny.NOMIC_CONFIG)
    write_checkpoint(read_checkpoint(source), tmp_path / "it", layout="transformers")
    kind = transformers.NomicBertForMaskedLM if head else transformers.AutoModel
    native, info = kind.from_pretrained(tmp_path / "it", output_loading_info=True)
    assert not any(info.values()), info
    model, batch = load_model(source), tokens()
    with torch.no_grad():
        out = native.eval()(torch_ids(batch))
    if isinstance(model, NomicBert):
        got, wanted = model(batch), out.last_hidden_state
    else:
        got, wanted = model.logits(model.encoder(batch)), out.logits
    # float32, two layers of width 32: sums of at most 128 products of order 1.
    np.testing.assert_allclose(got, wanted.numpy(), atol=5e-5)


@pytest.mark.torch
def test_transformers_to_ours_and_back_is_the_same_state(tmp_path):
    import torch

    native = native_model(head=True)
    native.save_pretrained(tmp_path / "it")
    write_checkpoint(read_checkpoint(tmp_path / "it"), tmp_path / "jax", layout="jax")
    write_checkpoint(
        read_checkpoint(tmp_path / "jax"), tmp_path / "back", layout="transformers"
    )
    again = type(native).from_pretrained(tmp_path / "back")
    for name, value in native.state_dict().items():
        assert torch.equal(again.state_dict()[name], value), name


@pytest.mark.torch
@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_a_bin_file_reads_as_the_safetensors_do(tmp_path, dtype):
    import torch

    state = {
        f"bert.{name}": torch.from_numpy(array).to(getattr(torch, dtype))
        for name, array in tiny.tensors().items()
    }
    folder = tmp_path / "bin"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(tiny.NOMIC_CONFIG))
    torch.save(state, folder / "pytorch_model.bin")
    short = {"float32": "f32", "float16": "f16", "bfloat16": "bf16"}[dtype]
    arrays = tiny.tensors(dtype=tiny.DTYPES[short])
    expected = tiny.folder(tmp_path / "safe", arrays, tiny.NOMIC_CONFIG)
    tiny.assert_bitwise(
        {n: t.read() for n, t in read_checkpoint(folder).tensors.items()},
        {n: t.read() for n, t in read_checkpoint(expected).tensors.items()},
    )
    (folder / "pytorch_model.bin").write_bytes(b"no such file")
    with pytest.raises(ValueError, match="is not a plain PyTorch file"):
        read_checkpoint(folder)


def test_a_bin_file_without_torch_says_what_to_install(tmp_path, monkeypatch):
    folder = tiny.folder(tmp_path / "it", tiny.tensors(), tiny.NOMIC_CONFIG)
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    monkeypatch.setitem(__import__("sys").modules, "torch", None)
    with pytest.raises(ValueError, match=r"pip install 'nomic-jax\[torch\]'"):
        read_checkpoint(folder)


def our_vectors(folder, texts, dim):
    checkpoint = read_checkpoint(folder)
    tokenizer = TextTokenizer.from_folder(folder)
    encoded = tokenizer.encode(texts, max_length=64).ids
    batch = pad(encoded, length=64, pad_id=0)
    hidden = load_encoder(folder)(batch)
    vectors = embed(hidden, jnp.asarray(batch.segment_ids > 0), checkpoint.embedding)
    return np.asarray(matryoshka(vectors, dim))


def st_model(folder):
    quiet_transformers()
    from sentence_transformers import SentenceTransformer

    return SentenceTransformer(str(folder), device="cpu")


@pytest.mark.torch
@pytest.mark.parametrize("dim", [32, 16])
@pytest.mark.parametrize(("layer_norm", "pooling"), [(True, "mean"), (False, "cls")])
def test_sentence_transformers_gives_our_vectors(tmp_path, dim, layer_norm, pooling):
    source = tiny.folder(
        tmp_path / "source", tiny.tensors(head=True), tiny.NOMIC_CONFIG
    )
    tiny.add_tokenizer(source)
    embedding = dataclasses.replace(EMBEDDING, layer_norm=layer_norm, pooling=pooling)
    write_checkpoint(
        read_checkpoint(source),
        tmp_path / "st",
        layout="sentence-transformers",
        embedding=embedding,
    )
    model = st_model(tmp_path / "st")
    assert model.max_seq_length == 64
    texts = ["a small fox", "the lazy dog jumps over the fox while a dog jumps"]
    encode = {"truncate_dim": dim, "normalize_embeddings": True}
    for prefix, theirs in (
        ("search_query: ", model.encode_query(texts, **encode)),
        ("search_document: ", model.encode_document(texts, **encode)),
        ("clustering: ", model.encode(texts, prompt_name="clustering", **encode)),
        ("search_document: ", model.encode(texts, **encode)),
        ("", model.encode(texts, prompt="", **encode)),
    ):
        ours = our_vectors(tmp_path / "st", [prefix + text for text in texts], dim)
        # unit vectors in float32: a dot product is off by some 1e-6 at most.
        assert np.all(np.sum(ours * theirs, axis=1) > 0.99999)


@pytest.mark.torch
def test_what_sentence_transformers_saves_again_keeps_the_embedding(tmp_path):
    source = tiny.folder(tmp_path / "source", tiny.tensors(), tiny.NOMIC_CONFIG)
    tiny.add_tokenizer(source)
    write_checkpoint(
        read_checkpoint(source),
        tmp_path / "st",
        layout="sentence-transformers",
        embedding=EMBEDDING,
    )
    model = st_model(tmp_path / "st")
    model.save_pretrained(str(tmp_path / "again"), create_model_card=False)
    assert read_checkpoint(tmp_path / "again").embedding == EMBEDDING
    tiny.assert_bitwise(tiny.load(tmp_path / "again"), tiny.load(tmp_path / "st"))


@pytest.mark.parametrize("fault", ["pooling", "norm", "module"])
def test_a_sentence_transformers_part_that_is_not_implemented_is_named(tmp_path, fault):
    source = tiny.folder(tmp_path / "source", tiny.tensors(), tiny.NOMIC_CONFIG)
    tiny.add_tokenizer(source)
    folder = tmp_path / "st"
    write_checkpoint(
        read_checkpoint(source),
        folder,
        layout="sentence-transformers",
        embedding=EMBEDDING,
    )
    if fault == "pooling":
        path = folder / "1_Pooling/config.json"
        path.write_text(path.read_text().replace("false", "true"))
        part = "pools by"
    elif fault == "norm":
        norm = tiny.load(folder / "2_LayerNorm")
        norm["norm.bias"][0] = 1
        shutil.rmtree(folder / "2_LayerNorm")
        tiny.folder(folder / "2_LayerNorm", norm, {"dimension": tiny.WIDTH})
        part = "norm.bias is not all 0"
    else:
        path = folder / "modules.json"
        path.write_text(path.read_text().replace("models.LayerNorm", "models.CNN"))
        part = "models.CNN"
    with pytest.raises(ValueError, match=part):
        read_checkpoint(folder)
