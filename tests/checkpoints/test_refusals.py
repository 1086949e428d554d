"""What is not the whole checkpoint of a known model is refused, all reasons at once."""

import dataclasses
import json

import pytest
import tiny_checkpoints as tiny

from nomic_jax.checkpoints.config_json import write_config_keys
from nomic_jax.checkpoints.problems import CheckpointError
from nomic_jax.checkpoints.reader import read_checkpoint
from nomic_jax.checkpoints.writer import write_checkpoint


@pytest.fixture(scope="module")
def sound(tmp_path_factory):
    """Sound published folders' tensors and configs, by family and head."""
    made = {}

    def get(family, head=None):
        if (family, head) not in made:
            config = tiny.configured(family, head)
            if family in ("nomic", "nomic-xlm", "moe"):
                values = write_config_keys(config, "nomic")
                made[family, head] = (tiny.nomic_tensors(config), values)
            else:
                root = tmp_path_factory.mktemp("sound")
                checkpoint = read_checkpoint(tiny.ours(root / "ours", config))
                write_checkpoint(checkpoint, root / "it", layout="transformers")
                values = json.loads((root / "it/config.json").read_text())
                made[family, head] = (tiny.load(root / "it"), values)
        return made[family, head]

    return get


def refusal(path, arrays, values):
    tiny.folder(path, arrays, {k: v for k, v in values.items() if v is not ...})
    with pytest.raises(CheckpointError) as caught:
        read_checkpoint(path)
    return str(caught.value)


@pytest.mark.parametrize(
    ("family", "changes"),
    [
        *(
            (family, {key: value})
            for family in ("bert", "xlm-roberta", "modernbert")
            for key, value in (
                ("position_embedding_type", "relative_key_query"),
                ("position_embedding_type", "alibi"),
                ("is_decoder", True),
                ("add_cross_attention", True),
                ("tie_word_embeddings", False),
                ("alibi_starting_size", 512),
                ("quantization_config", {"bits": 8}),
            )
        ),
        *(
            ("bert", {"hidden_act": act})
            for act in ("gelu_new", "gelu_pytorch_tanh", "relu", "quick_gelu")
        ),
        ("bert", {"max_position_embeddings": ...}),
        ("bert", {"num_hidden_layers": ...}),
        ("xlm-roberta", {"pad_token_id": "one"}),
        ("modernbert", {"hidden_activation": "gelu_pytorch_tanh"}),
        ("modernbert", {"attention_bias": True}),
        ("modernbert", {"mlp_bias": True}),
        ("modernbert", {"norm_bias": True}),
        ("modernbert", {"classifier_bias": True}),
        ("modernbert", {"layer_types": ["full_attention"] * 6}),
        ("modernbert", {"global_attn_every_n_layers": 2}),
        ("modernbert", {"mlp_dropout": 0.1}),
        *(
            (family, {key: value})
            for family in ("bert", "xlm-roberta", "modernbert")
            for key, value in (
                ("ffn_div", 1),
                ("moe_normalize_expert_weights", False),
                ("num_shared_experts", 0),
            )
        ),
        ("modernbert", {"global_rope_theta": 5.0}),
        *(
            (family, {"activation_function": act})
            for family in ("nomic-xlm", "moe")
            for act in ("gelu_new", "gelu_fast", "gelu_pytorch_tanh", "glu")
        ),
        *(
            ("nomic", {"rotary_emb_fraction": fraction})
            for fraction in (0.25, 0.5, 0.999)
        ),
        ("nomic", {"mlp_fc1_bias": True}),
        ("nomic-xlm", {"qkv_proj_bias": False}),
        ("moe", {"moe_every_n_layers": 1}),
        ("moe", {"moe_every_n_layers": 3}),
        ("moe", {"moe_every_n_layers": ...}),
        ("moe", {"num_shared_experts": 1}),
        ("moe", {"moe_normalize_expert_weights": 1.0}),
        ("moe", {"ffn_div": 2}),
        ("moe", {"expert_choice_router": True}),
        ("moe", {"moe_top_k": 5}),
    ],
    ids=lambda value: str(value).replace("Ellipsis", "absent"),
)
def test_a_variant_that_is_not_implemented_is_named(tmp_path, sound, family, changes):
    arrays, values = sound(family)
    message = refusal(tmp_path / "it", arrays, values | changes)
    assert "config   " in message
    (key,) = changes
    # The limit on experts_per_token is the config's own, and tells our name.
    assert ("experts_per_token" if key == "moe_top_k" else key) in message


@pytest.mark.parametrize("length", [129, 1, 0, -2])
def test_a_window_that_has_no_half_is_refused_by_its_key(tmp_path, sound, length):
    arrays, values = sound("modernbert")
    values = values | {"local_attention": length}
    _, *lines = refusal(tmp_path / "it", arrays, values).splitlines()
    (line,) = lines
    assert line.startswith(f"  config   local_attention={length}  (half of it is")


@pytest.mark.parametrize("activation", ["swiglu", "geglu"])
def test_gated_experts_are_refused(tmp_path, sound, activation):
    arrays, values = sound("moe")
    w1 = arrays["encoder.layers.1.mlp.experts.mlp.w1"]
    gated = arrays | {"encoder.layers.1.mlp.experts.mlp.v1": w1}
    message = refusal(tmp_path / "it", gated, values)
    assert "unused   encoder.layers.1.mlp.experts.mlp.v1" in message
    values = values | {"activation_function": activation}
    assert "num_experts=4" in refusal(tmp_path / "other", gated, values)


@pytest.mark.parametrize(
    ("family", "changes", "line"),
    [
        ("moe", {"num_experts": 8}, "is (256, 32), expected (512, 32)"),
        ("moe", {"num_experts": ...}, "missing  encoder.layers.1.mlp.fc1.weight"),
        ("nomic-xlm", {"num_experts": 4, "moe_every_n_layers": 2}, "mlp.router.layer"),
        ("bert", {"max_position_embeddings": 128}, "is (64, 32), expected (128, 32)"),
        ("bert", {"hidden_size": 64}, "is (128, 32), expected (128, 64)"),
        ("bert", {"num_hidden_layers": 3}, "missing  encoder.layer.2.output.dense"),
        ("bert", {"num_hidden_layers": 1}, "unused   encoder.layer.1.output.dense"),
        ("xlm-roberta", {"max_position_embeddings": 67}, "is (66, 32), expected (67,"),
        ("xlm-roberta", {"pad_token_id": 128}, "pad_token_id=128 is outside the voc"),
        ("modernbert", {"intermediate_size": 32}, "is (128, 32), expected (64, 32)"),
        ("nomic", {"rotary_emb_fraction": 0.0}, "missing  embeddings.position_embed"),
    ],
)
def test_a_config_that_contradicts_its_tensors_is_refused(
    tmp_path, sound, family, changes, line
):
    arrays, values = sound(family)
    assert line in refusal(tmp_path / "it", arrays, values | changes)


def test_positions_of_xlm_r_begin_after_its_padding_id_within_the_same_rows(
    tmp_path, sound
):
    arrays, values = sound("xlm-roberta")
    read = read_checkpoint(tiny.folder(tmp_path / "1", arrays, values)).config
    assert (read.first_position, read.trained_positions) == (2, 64)
    values = values | {"pad_token_id": 7}
    read = read_checkpoint(tiny.folder(tmp_path / "7", arrays, values)).config
    assert (read.first_position, read.trained_positions) == (8, 58)


@pytest.mark.parametrize(
    "key", ["sentence_transformers", "sbert_ce_default_activation_function"]
)
def test_what_is_done_to_a_cross_encoders_scores_afterwards_is_passed(
    tmp_path, sound, key
):
    arrays, values = sound("bert", "sequence_classification")
    name = "torch.nn.modules.activation.Sigmoid"
    said = {"activation_fn": name, "version": "4.1.0"}
    said = said if key == "sentence_transformers" else name
    expected = read_checkpoint(tiny.folder(tmp_path / "plain", arrays, values))
    got = read_checkpoint(tiny.folder(tmp_path / "it", arrays, values | {key: said}))
    assert got.config == expected.config


def test_a_config_of_another_family_leaves_nothing_random(tmp_path, sound):
    arrays, _ = sound("nomic")
    for family in ("bert", "xlm-roberta", "modernbert"):
        message = refusal(tmp_path / family, arrays, sound(family)[1])
        assert "missing  " in message
        assert "unused   encoder.layers.{0..1}.mlp.fc11.weight" in message


def test_what_transformers_loads_as_random_is_refused(tmp_path, sound):
    # A mixture under the keys of a dense model: its class warns and draws the rest.
    arrays, _ = sound("moe")
    message = refusal(tmp_path / "it", arrays, tiny.NATIVE_CONFIG)
    assert "missing  encoder.layers.{0..1}.mlp.fc11.weight" in message
    assert "unused   encoder.layers.1.mlp.experts.mlp.w1" in message


@pytest.mark.parametrize(
    ("family", "name"),
    [
        ("bert", "bert.encoder.layer.1.attention.self.key.bias"),
        ("bert", "cls.predictions.bias"),
        ("bert", "cls.predictions.transform.dense.bias"),
        ("xlm-roberta", "lm_head.dense.bias"),
        ("modernbert", "decoder.bias"),
        ("modernbert", "model.layers.3.attn_norm.weight"),
    ],
)
def test_every_bias_and_norm_must_be_there(tmp_path, sound, family, name):
    arrays, values = sound(family, "mlm")
    arrays = {other: array for other, array in arrays.items() if other != name}
    message = refusal(tmp_path / "it", arrays, values)
    assert f"  missing  {name}  (needed for " in message
    assert message.count("missing") == 1


def test_an_untied_decoder_is_refused_in_every_family(tmp_path, sound):
    for family, name in (
        ("bert", "cls.predictions.decoder.weight"),
        ("xlm-roberta", "lm_head.decoder.weight"),
        ("modernbert", "decoder.weight"),
    ):
        arrays, values = sound(family, "mlm")
        table = next(array for name, array in arrays.items() if "embeddings" in name)
        untied = arrays | {name: table + 1}
        message = refusal(tmp_path / family, untied, values)
        assert f"{name}  (differs from" in message


def test_labels_and_heads_must_agree_with_the_tensors(tmp_path, sound):
    arrays, values = sound("bert", "sequence_classification")
    two = {"id2label": {"0": "no", "1": "yes"}}
    message = refusal(tmp_path / "two", arrays, values | two)
    assert "classifier.weight  is (3, 32), expected (2, 32)" in message
    gap = {"id2label": {"0": "no", "2": "yes"}}
    assert "id2label" in refusal(tmp_path / "gap", arrays, values | gap)
    odd = {"problem_type": "ordinal"}
    assert "problem_type='ordinal'" in refusal(tmp_path / "odd", arrays, values | odd)
    other = {"architectures": ["BertForQuestionAnswering"]}
    message = refusal(tmp_path / "other", arrays, values | other)
    assert "missing  qa_outputs.weight" in message
    assert "unused   classifier.weight" in message


def test_a_modernbert_classifier_needs_to_say_what_it_classifies(tmp_path, sound):
    arrays, values = sound("modernbert", "question_answering")
    message = refusal(tmp_path / "it", arrays, values | {"architectures": None})
    assert "architectures in config.json must say it" in message


def test_half_a_shard_set_and_a_wrong_config_are_told_together(tmp_path, sound):
    arrays, values = sound("bert")
    folder = tmp_path / "it"
    names = sorted(arrays)
    places = {name: f"model-{i % 2}.safetensors" for i, name in enumerate(names)}
    here = {name: arrays[name] for name in names if places[name].startswith("model-0")}
    values = values | {"is_decoder": True, "position_embedding_type": "relative_key"}
    tiny.folder(folder, here, values)
    (folder / "model.safetensors").rename(folder / "model-0.safetensors")
    index = folder / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": places}))
    with pytest.raises(CheckpointError) as caught:
        read_checkpoint(folder)
    message = str(caught.value)
    for part in (
        "missing  model-1.safetensors",
        "config   is_decoder=True",
        "config   position_embedding_type='relative_key'",
        "missing  encoder.layer.",
    ):
        assert part in message


@pytest.mark.parametrize(
    ("config", "layout", "says"),
    [
        (tiny.FAMILIES["moe"], "transformers", "--to nomic"),
        (tiny.FAMILIES["nomic-xlm"], "transformers", "--to nomic"),
        (tiny.FAMILIES["modernbert"], "nomic", "--to transformers"),
        (
            dataclasses.replace(tiny.FAMILIES["moe"], expert_bias=True),
            "nomic",
            "--to jax",
        ),
        (tiny.configured("nomic", "question_answering"), "transformers", "--to nomic"),
    ],
)
def test_a_layout_without_a_place_names_the_one_that_has_it(
    tmp_path, config, layout, says
):
    checkpoint = read_checkpoint(tiny.ours(tmp_path / "ours", config))
    with pytest.raises(CheckpointError, match=says):
        write_checkpoint(checkpoint, tmp_path / "out", layout=layout)
    assert [path.name for path in tmp_path.iterdir()] == ["ours"]


def test_a_setting_that_a_layout_would_lose_is_refused(tmp_path):
    config = dataclasses.replace(tiny.FAMILIES["moe"], head_dropout=0.5)
    checkpoint = read_checkpoint(tiny.ours(tmp_path / "ours", config))
    with pytest.raises(CheckpointError, match=r"no place for head_dropout=0\.5"):
        write_checkpoint(checkpoint, tmp_path / "out", layout="nomic")
