"""Every family with every head, from and to each layout; names against transformers."""

import dataclasses
import json
import math

import numpy as np
import pytest
import tiny_checkpoints as tiny

from nomic_jax.checkpoints.config_json import read_config_keys, write_config_keys
from nomic_jax.checkpoints.families.spec import unsupported_by
from nomic_jax.checkpoints.names import rules_for
from nomic_jax.checkpoints.reader import read_checkpoint
from nomic_jax.checkpoints.tensors import StoredTensor
from nomic_jax.checkpoints.writer import PublishedTensors, write_checkpoint
from nomic_jax.config import PUBLISHED, ModelConfig

EVERY = [
    pytest.param(config, id=f"{family}-{head}")
    for family in tiny.FAMILIES
    for head in tiny.HEADS_OF
    if (config := tiny.configured(family, head)) is not None
]
NOMIC = [param for param in EVERY if not unsupported_by(param.values[0], "nomic")]
NATIVE = [
    param for param in EVERY if not unsupported_by(param.values[0], "transformers")
]
# One config for each module's structure: heads are the same on all post-norm families.
STRUCTURES = [
    param
    for param in EVERY
    if param.values[0].head is None or param.id.startswith(("bert-", "modernbert-"))
]


def nomic_folder(path, config, arrays):
    return tiny.folder(path, arrays, write_config_keys(config, "nomic"))


@pytest.mark.parametrize("config", STRUCTURES)
def test_the_rules_are_the_parameters_of_the_module(config):
    import jax
    from flax import nnx

    from nomic_jax.checkpoints.model_folder import parameters
    from nomic_jax.model.heads import make_model

    shapes = jax.eval_shape(lambda: parameters(make_model(config, rngs=nnx.Rngs(0))))
    got = {name: leaf.shape for name, leaf in shapes.items()}
    assert got == {r.ours: r.stacked_shape(config) for r in rules_for(config)}


@pytest.mark.parametrize("config", NOMIC)
def test_nomics_layout_there_and_back_is_bitwise(tmp_path, config):
    arrays = tiny.nomic_tensors(config)
    source = nomic_folder(tmp_path / "source", config, arrays)
    checkpoint = read_checkpoint(source)
    assert checkpoint.config == config
    write_checkpoint(checkpoint, tmp_path / "jax", layout="jax")
    ours = read_checkpoint(tmp_path / "jax")
    assert ours.config == config
    write_checkpoint(ours, tmp_path / "back", layout="nomic")
    tiny.assert_bitwise(tiny.load(tmp_path / "back"), arrays)
    assert read_checkpoint(tmp_path / "back").config == config


@pytest.mark.parametrize("config", NATIVE)
def test_transformers_layout_there_and_back_is_bitwise(tmp_path, config):
    written = self_made(tmp_path / "it", config, "transformers")
    checkpoint = read_checkpoint(written)
    assert checkpoint.config == config
    write_checkpoint(checkpoint, tmp_path / "jax", layout="jax")
    ours = read_checkpoint(tmp_path / "jax")
    write_checkpoint(ours, tmp_path / "back", layout="transformers")
    tiny.assert_bitwise(tiny.load(tmp_path / "back"), tiny.load(written))


def self_made(path, config, layout):
    """A folder written from random parameters of ours."""
    random = np.random.default_rng(0)
    arrays = {
        rule.ours: random.standard_normal(rule.stacked_shape(config), np.float32)
        for rule in rules_for(config)
    }
    ours = {"format": "nomic_jax", "format_version": 1, "model": config.to_json()}
    source = tiny.folder(path.with_name("ours"), arrays, ours)
    write_checkpoint(read_checkpoint(source), path, layout=layout)
    return path


@pytest.mark.parametrize("dtype", ["f16", "bf16"])
@pytest.mark.parametrize("family", ["moe", "bert", "modernbert"])
def test_half_precision_stays_what_it_is(tmp_path, family, dtype):
    config = tiny.configured(family, "mlm")
    layout = "transformers" if unsupported_by(config, "nomic") else "nomic"
    arrays = {
        name: array.astype(tiny.DTYPES[dtype])
        for name, array in tiny.load(self_made(tmp_path / "it", config, layout)).items()
    }
    values = json.loads((tmp_path / "it/config.json").read_text())
    source = tiny.folder(tmp_path / "half", arrays, values)
    write_checkpoint(read_checkpoint(source), tmp_path / "jax", layout="jax")
    ours = read_checkpoint(tmp_path / "jax")
    write_checkpoint(ours, tmp_path / "back", layout=layout)
    tiny.assert_bitwise(tiny.load(tmp_path / "back"), arrays)


@pytest.mark.parametrize("family", ["bert", "xlm-roberta"])
@pytest.mark.parametrize("head", [None, "mlm", "sequence_classification"])
def test_bert_goes_through_nomics_layout_and_back(tmp_path, family, head):
    config = tiny.configured(family, head)
    first = self_made(tmp_path / "it", config, "transformers")
    write_checkpoint(read_checkpoint(first), tmp_path / "nomic", layout="nomic")
    nomic = read_checkpoint(tmp_path / "nomic")
    assert nomic.config == config
    assert set(tiny.load(tmp_path / "nomic")) == set(tiny.nomic_shapes(config))
    write_checkpoint(nomic, tmp_path / "back", layout="transformers")
    tiny.assert_bitwise(tiny.load(tmp_path / "back"), tiny.load(first))


def test_experts_land_where_they_are_computed(tmp_path):
    config = tiny.configured("moe", None)
    arrays = tiny.nomic_tensors(config)
    source = nomic_folder(tmp_path / "it", config, arrays)
    ours = {n: t.read() for n, t in read_checkpoint(source).tensors.items()}
    at, path = "encoder.layers.1.mlp", "encoder.blocks.sparse.mlp"
    inner = config.mlp_width
    # Expert 2 computes x @ w1[rows].T, then @ w2[rows]: neither is seen as [D, F].
    rows = slice(2 * inner, 3 * inner)
    up, down = ours[f"{path}.experts.up"], ours[f"{path}.experts.down"]
    np.testing.assert_array_equal(up[0, 2], arrays[f"{at}.experts.mlp.w1"][rows].T)
    np.testing.assert_array_equal(down[0, 2], arrays[f"{at}.experts.mlp.w2"][rows])
    np.testing.assert_array_equal(
        ours[f"{path}.router.kernel"][0], arrays[f"{at}.router.layer.weight"].T
    )
    np.testing.assert_array_equal(
        ours["encoder.blocks.dense.mlp.up.bias"][0],
        arrays["encoder.layers.0.mlp.fc1.bias"],
    )


def test_modernberts_rows_are_gate_then_up_and_layers_are_in_their_groups(tmp_path):
    config = tiny.configured("modernbert", None)
    written = self_made(tmp_path / "it", config, "transformers")
    arrays = tiny.load(written)
    ours = {n: t.read() for n, t in read_checkpoint(written).tensors.items()}
    inner = config.mlp_width
    # Layer 0 alone, then groups of three (1 to 3), then what fills no group (4, 5).
    places = {0: ("first", ...), 2: ("blocks.1", 0), 5: ("rest.1", ...)}
    for layer, (path, index) in places.items():
        rows = arrays[f"layers.{layer}.mlp.Wi.weight"]
        gate = ours[f"encoder.{path}.mlp.gate.kernel"][index]
        up = ours[f"encoder.{path}.mlp.up.kernel"][index]
        np.testing.assert_array_equal(gate, rows[:inner].T)
        np.testing.assert_array_equal(up, rows[inner:].T)
    assert "layers.0.attn_norm.weight" not in arrays
    assert "layers.1.attn_norm.weight" in arrays


def test_old_names_and_buffers_of_bert_read_the_same(tmp_path):
    config = tiny.configured("bert", "pretraining")
    written = self_made(tmp_path / "it", config, "transformers")
    values = json.loads((written / "config.json").read_text())
    old = {
        name.replace("LayerNorm.weight", "LayerNorm.gamma").replace(
            "LayerNorm.bias", "LayerNorm.beta"
        ): array
        for name, array in tiny.load(written).items()
    }
    old["bert.embeddings.position_ids"] = np.arange(64)[None]
    table = old["bert.embeddings.word_embeddings.weight"]
    old["cls.predictions.decoder.weight"] = table
    old["cls.predictions.decoder.bias"] = old["cls.predictions.bias"]
    first = read_checkpoint(written)
    second = read_checkpoint(tiny.folder(tmp_path / "old", old, values))
    assert second.config == first.config
    tiny.assert_bitwise(
        {name: tensor.read() for name, tensor in second.tensors.items()},
        {name: tensor.read() for name, tensor in first.tensors.items()},
    )


def test_a_pooler_beside_xlm_rs_mlm_head_is_left_out_and_said(tmp_path, caplog):
    config = tiny.configured("xlm-roberta", "mlm")
    written = self_made(tmp_path / "it", config, "transformers")
    arrays = tiny.load(written)
    square = np.ones((tiny.WIDTH, tiny.WIDTH), np.float32)
    more = arrays | {"roberta.pooler.dense.weight": square}
    values = json.loads((written / "config.json").read_text())
    folder = tiny.folder(tmp_path / "more", more, values)
    with caplog.at_level("INFO"):
        assert read_checkpoint(folder).config == config
    assert "roberta.pooler.dense.weight" in caplog.text


# As nomic-embed-text-v2-moe was published.
V2_KEYS = {
    "_name_or_path": "nomic-ai/nomic-xlm-2048",
    "activation_function": "gelu",
    "add_pooling_layer": False,
    "architectures": ["NomicBertModel"],
    "attn_pdrop": 0.0,
    "auto_map": {},
    "bos_token_id": None,
    "causal": False,
    "dense_seq_output": True,
    "embd_pdrop": 0.1,
    "eos_token_id": None,
    "expert_choice_router": False,
    "ffn_div": 1,
    "fused_bias_fc": True,
    "fused_dropout_add_ln": True,
    "initializer_range": 0.02,
    "layer_norm_epsilon": 1e-05,
    "max_trained_positions": 2048,
    "mlp_fc1_bias": True,
    "mlp_fc2_bias": True,
    "model_type": "nomic_bert",
    "moe_every_n_layers": 2,
    "moe_impl": "megablocks",
    "moe_normalize_expert_weights": False,
    "moe_resid_pdrop": 0.0,
    "moe_top_k": 2,
    "n_embd": 768,
    "n_head": 12,
    "n_inner": 3072,
    "n_layer": 12,
    "n_positions": 2048,
    "num_experts": 8,
    "num_shared_experts": 0,
    "pad_token_id": 1,
    "pad_vocab_size_multiple": 64,
    "parallel_block": False,
    "parallel_block_tied_norm": False,
    "prenorm": False,
    "qkv_proj_bias": True,
    "reorder_and_upcast_attn": False,
    "resid_pdrop": 0.0,
    "rotary_emb_base": 10000,
    "rotary_emb_fraction": 1.0,
    "rotary_emb_interleaved": False,
    "rotary_emb_scale_base": None,
    "rotary_scaling_factor": None,
    "router_aux_loss_coef": 0.1,
    "scale_attn_by_inverse_layer_idx": False,
    "scale_attn_weights": True,
    "summary_activation": None,
    "summary_first_dropout": 0.1,
    "summary_proj_to_labels": True,
    "summary_type": "cls_index",
    "summary_use_proj": True,
    "torch_dtype": "float32",
    "transformers_version": "4.44.2",
    "type_vocab_size": 1,
    "use_cache": True,
    "use_flash_attn": True,
    "use_rms_norm": None,
    "use_xentropy": True,
    "vocab_size": 250048,
}


def test_v2_moes_published_keys_are_its_config():
    fields, problems = read_config_keys(V2_KEYS)
    assert problems == []
    assert ModelConfig(**fields) == PUBLISHED["nomic-embed-text-v2-moe"]
    written = write_config_keys(ModelConfig(**fields), "nomic")
    same = {key: V2_KEYS[key] for key in written if key in V2_KEYS}
    assert {key: written[key] for key in same} == same | {
        **{"embd_pdrop": 0.0, "use_rms_norm": False}
    }


def test_v2_moe_is_148_tensors_and_as_many_parameters_as_were_published():
    config = PUBLISHED["nomic-embed-text-v2-moe"]
    published = PublishedTensors(
        config,
        {
            rule.ours: StoredTensor(
                rule.stacked_shape(config), np.dtype(np.float32), lambda: np.empty(0)
            )
            for rule in rules_for(config)
        },
        "nomic",
        stores_decoder=True,
    ).specifications()
    assert len(published) == 148
    assert sum(math.prod(shape) for shape, _ in published.values()) == 475_292_928


MODERN_OLD_KEYS = {
    "architectures": ["ModernBertForMaskedLM"],
    "attention_bias": False,
    "attention_dropout": 0.0,
    "classifier_activation": "gelu",
    "classifier_bias": False,
    "classifier_dropout": 0.0,
    "classifier_pooling": "mean",
    "decoder_bias": True,
    "deterministic_flash_attn": False,
    "embedding_dropout": 0.0,
    "global_attn_every_n_layers": 3,
    "global_rope_theta": 160000.0,
    "hidden_activation": "gelu",
    "hidden_size": tiny.WIDTH,
    "initializer_cutoff_factor": 2.0,
    "initializer_range": 0.02,
    "intermediate_size": tiny.MLP,
    "layer_norm_eps": 1e-05,
    "local_attention": 16,
    "local_rope_theta": 10000.0,
    "max_position_embeddings": 64,
    "mlp_bias": False,
    "mlp_dropout": 0.0,
    "model_type": "modernbert",
    "norm_bias": False,
    "norm_eps": 1e-05,
    "num_attention_heads": tiny.HEADS,
    "num_hidden_layers": 6,
    "pad_token_id": 0,
    "position_embedding_type": "absolute",
    "reference_compile": None,
    "vocab_size": tiny.VOCABULARY,
}


def test_modernberts_first_keys_read_as_its_new_ones(tmp_path):
    config = tiny.configured("modernbert", "mlm")
    arrays = tiny.load(self_made(tmp_path / "it", config, "transformers"))
    folder = tiny.folder(tmp_path / "old", arrays, MODERN_OLD_KEYS)
    assert read_checkpoint(folder).config == config


def transformers_class(config):
    import transformers

    from nomic_jax.checkpoints.config_json import write_head_keys

    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    name = write_head_keys(config, "transformers")["architectures"][0]
    return getattr(transformers, name)


@pytest.mark.torch
@pytest.mark.parametrize("config", NATIVE)
def test_transformers_own_classes_load_ours_whole_and_we_theirs(tmp_path, config):
    written = self_made(tmp_path / "it", config, "transformers")
    kind = transformers_class(config)
    model, info = kind.from_pretrained(written, output_loading_info=True)
    assert not any(info.values()), info
    model.save_pretrained(tmp_path / "theirs")
    tiny.assert_bitwise(tiny.load(tmp_path / "theirs"), tiny.load(written))
    theirs = read_checkpoint(tmp_path / "theirs").config
    if config.rope_base is None and config.head is None:
        assert theirs == config  # the pooler of zeros, which our mark takes away
    assert dataclasses.replace(theirs, head=config.head) == config
