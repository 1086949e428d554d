"""Reading, refusing and writing checkpoints; nothing here needs PyTorch."""

import dataclasses
import json
import shutil

import numpy as np
import pytest
import tiny_checkpoints as tiny

from nomic_jax.checkpoints import writer
from nomic_jax.checkpoints.config_json import read_config_keys, write_config_keys
from nomic_jax.checkpoints.embedding import embedding_for, recognise
from nomic_jax.checkpoints.families.spec import unsupported_by
from nomic_jax.checkpoints.hub import resolve
from nomic_jax.checkpoints.problems import CheckpointError, ranges
from nomic_jax.checkpoints.reader import STYLES, read_checkpoint
from nomic_jax.checkpoints.writer import write_checkpoint
from nomic_jax.config import PUBLISHED, PUBLISHED_EMBEDDINGS

CONFIG = tiny.CONFIG


def ours(path):
    return {name: t.read() for name, t in read_checkpoint(path).tensors.items()}


def refusal(path):
    with pytest.raises(CheckpointError) as caught:
        read_checkpoint(path)
    return str(caught.value)


def edited(path, arrays=None, **config):
    """A sound published folder with some tensors and config keys replaced."""
    changed = tiny.tensors() | (arrays or {})
    changed = {name: array for name, array in changed.items() if array is not None}
    return tiny.folder(path, changed, tiny.NOMIC_CONFIG | config)


@pytest.mark.parametrize("prefix", ["", "bert.", "trunk.", "nomic_bert."])
@pytest.mark.parametrize("config", [tiny.NOMIC_CONFIG, tiny.NATIVE_CONFIG])
@pytest.mark.parametrize("native_names", [False, True])
def test_every_prefix_with_every_style_of_keys_and_names_reads_the_same(
    tmp_path, prefix, config, native_names
):
    plain = tiny.folder(tmp_path / "plain", tiny.tensors(), tiny.NOMIC_CONFIG)
    arrays = tiny.tensors()
    if native_names:
        arrays = tiny.natively_named(arrays)
    arrays = {prefix + name: array for name, array in arrays.items()}
    other = tiny.folder(tmp_path / "other", arrays, config)
    assert read_checkpoint(other).config == CONFIG == read_checkpoint(plain).config
    tiny.assert_bitwise(ours(other), ours(plain))


def test_published_tensors_land_where_the_encoder_expects_them(tmp_path):
    arrays = tiny.tensors(head=True)
    got = ours(tiny.folder(tmp_path / "it", arrays, tiny.NOMIC_CONFIG))
    fused = arrays["encoder.layers.1.attn.Wqkv.weight"]
    half = tiny.WIDTH // tiny.HEADS
    # v is the third block of rows; its head 2 the third run of rows in it.
    rows = slice(2 * tiny.WIDTH + 2 * half, 2 * tiny.WIDTH + 3 * half)
    qkv = got["encoder.blocks.attention.qkv.kernel"]
    np.testing.assert_array_equal(qkv[1, :, 2, 2], fused[rows].T)
    out = arrays["encoder.layers.0.attn.out_proj.weight"]
    kernel = got["encoder.blocks.attention.out.kernel"]
    np.testing.assert_array_equal(kernel[0, 3], out[:, 3 * half :].T)
    for name, part in (("up", "fc11"), ("gate", "fc12"), ("down", "fc2")):
        published = arrays[f"encoder.layers.1.mlp.{part}.weight"]
        kernel = got[f"encoder.blocks.mlp.{name}.kernel"]
        np.testing.assert_array_equal(kernel[1], published.T)


@pytest.mark.parametrize("dtype", tiny.DTYPES)
@pytest.mark.parametrize("head", [False, True])
@pytest.mark.parametrize("decoder", [False, True])
def test_nomic_to_jax_and_back_is_bitwise(tmp_path, dtype, head, decoder):
    prefix = "bert." if head else ""
    arrays = tiny.tensors(prefix=prefix, head=head, dtype=tiny.DTYPES[dtype])
    if decoder and head:
        table = arrays["bert.embeddings.word_embeddings.weight"]
        arrays["cls.predictions.decoder.weight"] = table
    source = tiny.folder(tmp_path / "source", arrays, tiny.NOMIC_CONFIG)
    write_checkpoint(read_checkpoint(source), tmp_path / "jax", layout="jax")
    write_checkpoint(read_checkpoint(tmp_path / "jax"), tmp_path / "b", layout="nomic")
    tiny.assert_bitwise(tiny.load(tmp_path / "b"), arrays)
    expected = dataclasses.replace(CONFIG, head="mlm" if head else None)
    for folder in ("source", "jax", "b"):
        assert read_checkpoint(tmp_path / folder).config == expected


@pytest.mark.parametrize("dtype", tiny.DTYPES)
@pytest.mark.parametrize("head", [False, True])
def test_transformers_to_jax_and_back_is_bitwise(tmp_path, dtype, head):
    arrays = tiny.tensors(
        prefix="nomic_bert." if head else "",
        head=head,
        head_bias=head,
        dtype=tiny.DTYPES[dtype],
    )
    source = tiny.folder(tmp_path / "source", arrays, tiny.NATIVE_CONFIG)
    write_checkpoint(read_checkpoint(source), tmp_path / "jax", layout="jax")
    write_checkpoint(
        read_checkpoint(tmp_path / "jax"), tmp_path / "back", layout="transformers"
    )
    tiny.assert_bitwise(tiny.load(tmp_path / "back"), arrays)
    config = read_checkpoint(tmp_path / "back").config
    assert config == read_checkpoint(source).config
    assert config.head_bias is head
    assert (
        json.loads((tmp_path / "back/config.json").read_text())["dtype"]
        == {
            "f32": "float32",
            "f16": "float16",
            "bf16": "bfloat16",
        }[dtype]
    )


@pytest.mark.parametrize("trained", [False, True])
def test_zero_biases_for_transformers_go_again_unless_they_were_trained(
    tmp_path, trained
):
    source = tiny.folder(
        tmp_path / "source", tiny.tensors(head=True), tiny.NOMIC_CONFIG
    )
    native = tmp_path / "native"
    write_checkpoint(read_checkpoint(source), native, layout="transformers")
    arrays = tiny.load(native)
    assert not arrays["cls.predictions.bias"].any()
    assert not arrays["cls.predictions.transform.dense.bias"].any()
    if trained:
        arrays["cls.predictions.bias"][3] = 0.5
        config = json.loads((native / "config.json").read_text())
        shutil.rmtree(native)
        tiny.folder(native, arrays, config)
        assert read_checkpoint(native).config.head_bias
    else:
        assert read_checkpoint(native).config == read_checkpoint(source).config
        tiny.assert_bitwise(ours(native), ours(source))


def test_both_names_of_the_head_bias_are_read_and_must_agree(tmp_path):
    arrays = tiny.tensors(head=True, head_bias=True)
    bias = arrays["cls.predictions.bias"]
    both = arrays | {"cls.predictions.decoder.bias": bias.copy()}
    tiny.folder(tmp_path / "both", both, tiny.NOMIC_CONFIG)
    np.testing.assert_array_equal(ours(tmp_path / "both")["head.bias"], bias)
    both["cls.predictions.decoder.bias"] = bias + 1
    tiny.folder(tmp_path / "differ", both, tiny.NOMIC_CONFIG)
    assert "twice    cls.predictions" in refusal(tmp_path / "differ")


def test_an_untied_decoder_is_refused(tmp_path):
    arrays = tiny.tensors(head=True)
    table = arrays["embeddings.word_embeddings.weight"]
    arrays["cls.predictions.decoder.weight"] = table + 1
    tiny.folder(tmp_path / "it", arrays, tiny.NOMIC_CONFIG)
    assert "cls.predictions.decoder.weight  (differs from" in refusal(tmp_path / "it")


def test_buffers_are_passed_over(tmp_path):
    buffers = {
        "embeddings.position_ids": np.zeros((1, 8), np.int64),
        "encoder.layers.0.attn.rotary_emb.inv_freq": np.ones(4, np.float32),
        "rotary_emb.inv_freq": np.ones(4, np.float32),
    }
    assert len(ours(edited(tmp_path / "it", buffers))) == 13


def test_all_faults_are_in_one_error_with_layers_run_together(tmp_path):
    arrays = tiny.tensors()
    poisoned = arrays["emb_ln.bias"].copy()
    poisoned[3] = np.nan
    broken = {
        "encoder.layers.0.mlp.fc12.weight": None,
        "encoder.layers.1.mlp.fc12.weight": None,
        "encoder.layers.0.mlp.fc1.weight": np.ones((4, 4), np.float32),
        "encoder.layers.1.mlp.fc1.weight": np.ones((4, 4), np.float32),
        "encoder.layers.2.norm1.bias": np.ones(tiny.WIDTH, np.float32),
        "embeddings.word_embeddings.weight": np.ones((100, tiny.WIDTH), np.float32),
        "bert.emb_ln.weight": arrays["emb_ln.weight"],
        "layers.1.self_attn.q_proj.weight": np.ones((32, 32), np.float32),
        "encoder.layers.1.norm2.bias": np.ones(tiny.WIDTH, np.float16),
        "emb_ln.bias": poisoned,
    }
    folder = edited(tmp_path / "it", broken, prenorm=True, causal=True, new_key=1)
    message = refusal(folder)
    for line in (
        "missing  encoder.layers.{0..1}.mlp.fc12.weight  "
        "(needed for encoder.blocks.mlp.gate.kernel)",
        "unused   encoder.layers.{0..1}.mlp.fc1.weight",
        "unused   encoder.layers.2.norm1.bias",
        "shape    embeddings.word_embeddings.weight  is (100, 32), expected (128, 32)",
        "twice    ",
        "dtype    encoder.layers.*.norm2.bias  is float16 and float32",
        "value    emb_ln.bias  has 1 NaN or infinite values of 32",
        "config   prenorm=True  (only False is implemented)",
        "config   causal=True",
        "config   new_key=1  (an unknown key",
        "ModelConfig(num_layers=2, width=32",
    ):
        assert line in message
    assert message.count("\n  twice") == 2


@pytest.mark.parametrize(
    ("missing", "line"),
    [
        ("layers.1.self_attn.k_proj.weight", "missing  layers.1.self_attn.k_proj"),
        ("layers.0.mlp.gate_proj.weight", "missing  encoder.layers.0.mlp.fc12.weight"),
    ],
)
def test_a_missing_native_tensor_is_named(tmp_path, missing, line):
    arrays = tiny.natively_named(tiny.tensors())
    del arrays[missing]
    assert line in refusal(tiny.folder(tmp_path / "it", arrays, tiny.NATIVE_CONFIG))


def test_an_architecture_with_a_head_needs_its_tensors(tmp_path):
    folder = edited(tmp_path / "it", architectures=["NomicBertForPreTraining"])
    assert "missing  cls.predictions.transform.dense.weight" in refusal(folder)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("activation_function", "gelu_pytorch_tanh"),
        ("parallel_block", True),
        ("use_rms_norm", True),
        ("qkv_proj_bias", True),
        ("rotary_emb_fraction", 0.5),
        ("rotary_emb_interleaved", True),
        ("rotary_emb_scale_base", 512),
        ("tie_word_embeddings", False),
        ("hidden_act", "gelu"),
        ("head_dim", 16),
        ("rope_parameters", {"rope_type": "yarn", "factor": 2.0}),
        ("rope_parameters", {"rope_type": "dynamic"}),
        ("quantization_config", {"bits": 4}),
        ("is_decoder", True),
        ("position_embedding_type", "alibi"),
        ("position_embedding_type", "relative_key"),
        ("n_layer", "two"),
        ("rotary_emb_base", None),
        ("num_hidden_layers", 3),
        ("hidden_size", 64),
    ],
)
def test_a_setting_that_is_not_implemented_is_named(tmp_path, key, value):
    message = refusal(edited(tmp_path / "it", **{key: value}))
    assert "config   " in message
    assert key in message


def test_both_key_styles_may_stand_together(tmp_path):
    config = tiny.NATIVE_CONFIG | tiny.NOMIC_CONFIG
    folder = tiny.folder(tmp_path / "it", tiny.tensors(), config)
    assert read_checkpoint(folder).config == CONFIG


def test_sizes_that_upstream_rounds_up_follow_the_tensors(tmp_path):
    folder = edited(tmp_path / "it", vocab_size=tiny.VOCABULARY - 6)
    assert read_checkpoint(folder).config.vocab_size == tiny.VOCABULARY
    message = refusal(edited(tmp_path / "far", vocab_size=tiny.VOCABULARY - 64))
    assert "is (128, 32), expected (64, 32)" in message


STRETCHED = dataclasses.replace(
    CONFIG,
    rope_scaling_factor=2.0,
    dropout=0.25,
    pad_token_id=1,
    initializer_range=0.5,
)


@pytest.mark.parametrize(
    ("config", "style"),
    [
        pytest.param(config, style, id=f"{name}-{style}")
        for name, config in {**PUBLISHED, "stretched": STRETCHED}.items()
        for style in STYLES
        if not unsupported_by(config, style)
    ],
)
def test_config_keys_there_and_back(config, style):
    values = write_config_keys(config, style)
    fields, problems = read_config_keys(values, values["model_type"])
    assert problems == []
    expected = dataclasses.asdict(config)
    assert fields == {name: expected[name] for name in fields}
    others = {name: expected[name] for name in set(expected) - set(fields)}
    defaults = dataclasses.asdict(CONFIG)
    assert {name for name, value in others.items() if value != defaults[name]} <= {
        "head",
        "head_bias",
    }


def test_what_is_no_checkpoint_gets_one_line(tmp_path):
    sound = edited(tmp_path / "sound")
    (tmp_path / "empty").mkdir()
    cut = shutil.copytree(sound, tmp_path / "cut")
    data = (cut / "model.safetensors").read_bytes()
    (cut / "model.safetensors").write_bytes(data[:-100])
    bare = shutil.copytree(sound, tmp_path / "bare")
    (bare / "model.safetensors").unlink()
    garbled = shutil.copytree(sound, tmp_path / "garbled")
    (garbled / "config.json").write_text("{")
    edited(tmp_path / "deberta", model_type="deberta-v2")
    for name, part in {
        "nowhere": "is not a folder",
        "empty": "holds no config.json",
        "cut": "is not a whole safetensors file",
        "bare": "holds no weights",
        "garbled": "is not JSON",
        "deberta": "type 'deberta-v2'; known are: nomic_bert, bert, xlm-roberta",
    }.items():
        message = refusal(tmp_path / name)
        assert part in message
        assert "\n" not in message


def test_shards_are_read_as_one_file_and_refused_when_one_is_missing(tmp_path):
    whole = edited(tmp_path / "whole")
    expected = ours(whole)
    folder = shutil.copytree(whole, tmp_path / "shards")
    (folder / "model.safetensors").unlink()
    places = {}
    names = sorted(tiny.tensors())
    for shard, part in enumerate((names[::2], names[1::2])):
        file = f"model-{shard}.safetensors"
        tiny.save_file({n: tiny.tensors()[n] for n in part}, folder / file)
        places |= dict.fromkeys(part, file)
    index = folder / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": places}))
    tiny.assert_bitwise(ours(folder), expected)
    (folder / "model-1.safetensors").unlink()
    assert "missing  model-1.safetensors" in refusal(folder)


def test_one_layout_of_ours_is_as_strict(tmp_path):
    write_checkpoint(
        read_checkpoint(edited(tmp_path / "source")), tmp_path / "jax", layout="jax"
    )
    arrays = tiny.load(tmp_path / "jax")
    arrays["extra"] = arrays.pop("encoder.embedding_norm.bias")
    arrays["encoder.blocks.mlp.up.kernel"][1, 0, 0] = np.inf
    tiny.save_file(arrays, tmp_path / "jax/model.safetensors")
    message = refusal(tmp_path / "jax")
    assert "missing  encoder.embedding_norm.bias" in message
    assert "unused   extra" in message
    assert "value    encoder.blocks.mlp.up.kernel" in message


@pytest.mark.parametrize("fault", [KeyboardInterrupt, OSError])
def test_interrupted_writing_leaves_nothing(tmp_path, monkeypatch, fault):
    checkpoint = read_checkpoint(edited(tmp_path / "source"))
    written = writer.write_tensors

    def interrupted(path, specifications, arrays):
        def some():
            yield next(iter(arrays))
            raise fault

        written(path, specifications, some())

    monkeypatch.setattr(writer, "write_tensors", interrupted)
    with pytest.raises(fault):
        write_checkpoint(checkpoint, tmp_path / "jax", layout="jax")
    assert [path.name for path in tmp_path.iterdir()] == ["source"]


def test_an_existing_destination_is_refused(tmp_path):
    checkpoint = read_checkpoint(edited(tmp_path / "source"))
    (tmp_path / "there").mkdir()
    with pytest.raises(ValueError, match="exists"):
        write_checkpoint(checkpoint, tmp_path / "there", layout="jax")
    assert list((tmp_path / "there").iterdir()) == []


def test_sentence_transformers_needs_a_tokenizer_and_an_embedding(tmp_path):
    checkpoint = read_checkpoint(edited(tmp_path / "source"))
    embedding = PUBLISHED_EMBEDDINGS["nomic-embed-text-v1.5"]
    for given, part in ((None, "how its embeddings"), (embedding, "no tokenizer")):
        with pytest.raises(ValueError, match=part):
            write_checkpoint(
                checkpoint,
                tmp_path / "out",
                layout="sentence-transformers",
                embedding=given,
            )
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("name", PUBLISHED_EMBEDDINGS)
@pytest.mark.parametrize("pooling", ["mean", "cls"])
def test_sentence_transformers_folder_keeps_the_embedding(tmp_path, name, pooling):
    source = tiny.add_tokenizer(edited(tmp_path / "source"))
    embedding = dataclasses.replace(
        PUBLISHED_EMBEDDINGS[name], pooling=pooling, max_length=64
    )
    write_checkpoint(
        read_checkpoint(source),
        tmp_path / "out",
        layout="sentence-transformers",
        embedding=embedding,
    )
    checkpoint = read_checkpoint(tmp_path / "out")
    assert checkpoint.embedding == embedding
    assert checkpoint.config == CONFIG
    write_checkpoint(checkpoint, tmp_path / "jax", layout="jax")
    assert read_checkpoint(tmp_path / "jax").embedding == embedding
    assert (tmp_path / "jax/tokenizer.json").is_file()


def test_prompts_under_that_librarys_own_names_serve_queries_and_documents(tmp_path):
    source = tiny.add_tokenizer(edited(tmp_path / "source"))
    embedding = dataclasses.replace(
        PUBLISHED_EMBEDDINGS["nomic-embed-text-v1.5"], max_length=64
    )
    write_checkpoint(
        read_checkpoint(source),
        tmp_path / "out",
        layout="sentence-transformers",
        embedding=embedding,
    )
    settings = tmp_path / "out" / "config_sentence_transformers.json"
    settings.write_text(json.dumps({"prompts": {"query": "q: ", "document": "d: "}}))
    read = read_checkpoint(tmp_path / "out").embedding
    assert read is not None
    assert read.prompts == {"search_query": "q: ", "search_document": "d: "}


def test_the_embedding_is_chosen_by_name_then_files_then_default(tmp_path):
    plain = edited(tmp_path / "plain")
    chosen = embedding_for(plain, read_checkpoint(plain))
    assert (chosen.config.layer_norm, chosen.config.max_length) == (False, 64)
    assert "by default" in chosen.reason
    named = edited(tmp_path / "nomic-embed-text-v1.5")
    assert embedding_for(named, read_checkpoint(named)).config.layer_norm
    kept = edited(tmp_path / "kept", _name_or_path="nomic-ai/nomic-embed-text-v1.5")
    assert embedding_for(kept, read_checkpoint(kept)).config.layer_norm
    asked = embedding_for(
        named, read_checkpoint(named), published="nomic-embed-text-v1"
    )
    assert not asked.config.layer_norm
    with pytest.raises(ValueError, match="did you mean 'nomic-embed-text-v1.5'"):
        embedding_for(named, read_checkpoint(named), published="nomic-embed-text-v1.6")
    assert recognise("nomic-ai/nomic-embed-text-v1.5") == "nomic-embed-text-v1.5"


def test_ranges_are_short():
    assert ranges([3]) == "3"
    assert ranges(range(12)) == "{0..11}"
    assert ranges([5, 0, 1]) == "{0..1,5}"


def test_what_is_neither_folder_nor_hub_id_is_refused(tmp_path):
    assert resolve(tmp_path) == tmp_path
    with pytest.raises(ValueError, match="not a folder, nor a hub id"):
        resolve("no/such/folder")
    (tmp_path / "file").touch()
    with pytest.raises(ValueError, match="is a file"):
        resolve(tmp_path / "file")


def test_a_hub_that_does_not_answer_gives_one_line(monkeypatch):
    import huggingface_hub
    from huggingface_hub.errors import LocalEntryNotFoundError

    def offline(*_, **__):
        raise LocalEntryNotFoundError("cannot find the files\nand more lines")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", offline)
    with pytest.raises(ValueError) as caught:
        resolve("owner/name")
    assert "owner/name is not a folder here" in str(caught.value)
    assert "\n" not in str(caught.value)
