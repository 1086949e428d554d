import copy
import dataclasses
import json
import math

import jax
import pytest
from flax import nnx

from nomic_jax.config import (
    PUBLISHED,
    PUBLISHED_EMBEDDINGS,
    EmbeddingConfig,
    ModelConfig,
    did_you_mean,
    differing_fields,
    padded_vocabulary,
)
from nomic_jax.model.heads import make_model
from nomic_jax.training.optimizer import parameter_name

V15 = PUBLISHED["nomic-embed-text-v1.5"]
LOCAL = {"global_every": 3, "local_window": 64, "local_rope_base": 1e4}
EXPERTS = {"num_experts": 8, "activation": "gelu", "bias": True}


def parameters(name):
    """Count a published model's parameters by name, without drawing any."""
    config = PUBLISHED[name]
    model = jax.eval_shape(lambda: make_model(config, rngs=nnx.Rngs(0)))
    paths = jax.tree_util.tree_flatten_with_path(model)[0]
    return {parameter_name(path): math.prod(leaf.shape) for path, leaf in paths}


@pytest.mark.parametrize("name", ["nomic-embed-text-v1", "nomic-embed-text-v1.5"])
def test_nomic_bert_is_the_papers(name):
    config = PUBLISHED[name]
    sizes = (config.num_layers, config.width, config.num_heads, config.mlp_width)
    assert sizes == (12, 768, 12, 3072)
    assert (config.vocab_size, config.type_vocab_size) == (30528, 2)
    assert (config.rope_base, config.trained_positions) == (1000, 2048)
    assert (config.layer_norm_epsilon, config.dropout) == (1e-12, 0)
    assert config.head_width == 64
    assert sum(parameters(name).values()) == 136_731_648


def test_the_mixture_of_experts_has_the_parameters_of_its_card():
    counts = parameters("nomic-embed-text-v2-moe")
    config = PUBLISHED["nomic-embed-text-v2-moe"]
    assert sum(counts.values()) == 475_292_928
    experts = sum(counts[f"blocks.sparse.mlp.experts.{n}"] for n in ("up", "down"))
    idle = 1 - config.experts_per_token / config.num_experts
    assert sum(counts.values()) - idle * experts == 305_423_616


@pytest.mark.torch
@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("bert-base-uncased", "BertForPreTraining"),
        ("xlm-roberta-base", "XLMRobertaForMaskedLM"),
        ("ModernBERT-base", "ModernBertForMaskedLM"),
        ("ModernBERT-large", "ModernBertForMaskedLM"),
    ],
)
def test_other_families_have_the_parameters_of_transformers(name, kind):
    import torch
    import transformers

    sizes = {  # that transformers' configuration has not by default
        "xlm-roberta-base": {
            "vocab_size": 250002,
            "type_vocab_size": 1,
            "max_position_embeddings": 514,
        },
        "ModernBERT-large": {
            "hidden_size": 1024,
            "intermediate_size": 2624,
            "num_hidden_layers": 28,
            "num_attention_heads": 16,
        },
    }
    model_of = getattr(transformers, kind)
    with torch.device("meta"):
        model = model_of(model_of.config_class(**sizes.get(name, {})))
    theirs = sum(parameter.numel() for parameter in model.parameters())
    assert sum(parameters(name).values()) == theirs


def test_what_is_done_to_a_pooled_vector_is_as_published():
    assert not PUBLISHED_EMBEDDINGS["nomic-embed-text-v1"].layer_norm
    assert PUBLISHED_EMBEDDINGS["nomic-embed-text-v1.5"].layer_norm
    assert not PUBLISHED_EMBEDDINGS["nomic-embed-text-v2-moe"].layer_norm
    by_first_token = {
        name for name, config in PUBLISHED_EMBEDDINGS.items() if config.pooling == "cls"
    }
    assert by_first_token == {"bge-small-en-v1.5", "bge-base-en-v1.5"}


@pytest.mark.parametrize(
    ("tokens", "rows"), [(1, 64), (64, 64), (65, 128), (30522, 30528)]
)
def test_vocabularies_are_padded_to_multiples_of_64(tokens, rows):
    assert padded_vocabulary(tokens) == rows


@pytest.mark.parametrize(
    "config", [*PUBLISHED.values(), *PUBLISHED_EMBEDDINGS.values()]
)
def test_a_config_goes_to_json_and_back(config):
    assert type(config).from_json(json.loads(json.dumps(config.to_json()))) == config


def test_from_json_names_every_unknown_and_missing_field():
    values = V15.to_json()
    del values["width"], values["rope_base"]
    values |= {"num_layer": 12, "unheard_of_setting": True}
    with pytest.raises(ValueError) as error:
        ModelConfig.from_json(values)
    for part in (
        "unknown field 'num_layer': did you mean 'num_layers'?",
        "unknown field 'unheard_of_setting'",
        "missing field 'rope_base'",
        "missing field 'width'",
    ):
        assert part in str(error.value)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"num_layers": "2"}, "num_layers='2' must be int"),
        ({"num_layers": 2.0}, "num_layers=2.0 must be int"),
        ({"width": True}, "width=True must be int"),
        ({"width": None}, "width=None must be int"),
        ({"bias": 0}, "bias=0 must be bool"),
        ({"rope_base": "1000"}, r"rope_base='1000' must be float \| None"),
        ({"layer_norm_epsilon": None}, "layer_norm_epsilon=None must be float"),
        ({"labels": "ab"}, r"labels='ab' must be tuple\[str, ...\]"),
        ({"labels": ["a", 1]}, r"labels=\['a', 1\] must be tuple\[str, ...\]"),
        (
            {"width": "1", "num_heads": [2]},
            r"width='1' .*; num_heads=\[2\] must be int",
        ),
    ],
)
def test_from_json_names_values_of_another_type(change, message):
    with pytest.raises(ValueError, match=message):
        ModelConfig.from_json(V15.to_json() | change)


def test_from_json_takes_whole_numbers_null_and_lists_where_they_are_meant():
    change = {"rope_base": 10000, "rope_scaling_factor": None, "dropout": 0}
    change |= {"head": "token_classification", "labels": ["a", "b"]}
    config = ModelConfig.from_json(V15.to_json() | change)
    assert (config.rope_base, config.labels) == (10000, ("a", "b"))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"num_layers": 0}, "num_layers=0 must be at least 1"),
        ({"width": 100}, "width=100 does not split into num_heads=12"),
        ({"width": 12 * 63}, "heads of even size"),
        ({"rope_scaling_factor": 0.5}, "rope_scaling_factor=0.5 must .* at least 1"),
        ({"rope_scaling_factor": math.inf}, "rope_scaling_factor=inf must be finite"),
        *(
            ({**LOCAL, name: value}, f"{name}={value} must be finite and above 0")
            for name in ("rope_base", "local_rope_base", "layer_norm_epsilon")
            for value in (0, -1e4, math.nan, math.inf)
        ),
        *(
            ({"initializer_range": value}, f"initializer_range={value} must be finite")
            for value in (-0.02, math.nan, math.inf)
        ),
        ({"rope_base": None, "first_position": -1}, "first_position=-1 must be .* neg"),
        ({"dropout": 1.0}, "dropout=1.0 must be in"),
        ({"pad_token_id": 30528}, "outside the vocabulary of 30528"),
        ({"head_bias": True}, "head_bias=True needs head='mlm'"),
        ({"num_layers": 0, "dropout": -1.0}, "num_layers=0 .*; dropout=-1.0"),
        ({"type_vocab_size": -1}, "type_vocab_size=-1 must be finite, and not neg"),
        ({"rope_base": None, "rope_scaling_factor": 2.0}, "cannot be stretched"),
        ({"first_position": 2}, "first_position=2 is of absolute positions"),
        ({"global_every": 3}, "global_every=3 with local_window=None"),
        ({"local_window": 64}, "global_every=1 with local_window=64"),
        ({**LOCAL, "local_window": 0}, "local_window=0 must be at least 1"),
        ({**LOCAL, "rope_base": None}, "local layers need rope_base"),
        ({"num_experts": 8}, "num_experts=8 with .* activation='swiglu', bias=False"),
        ({**EXPERTS, "num_layers": 3}, "num_layers=3, .* every second of an even"),
        ({**EXPERTS, "experts_per_token": 9}, "experts_per_token=9 must be between"),
        ({**EXPERTS, "pre_norm": True}, "num_experts=8 are of post-norm"),
        ({"head": "pretraining", "type_vocab_size": 1}, "type_vocab_size=1 has no"),
        ({"head": "pooler", "pre_norm": True}, "'pooler' is of post-norm models"),
        ({"head": "token_classification"}, r"labels=\(\) and head='token_class"),
        ({"labels": ("a",)}, r"labels=\('a',\) and head=None"),
        ({"head": "mlm", "problem": "one_label"}, "problem='one_label' and head='mlm'"),
        ({"head_pooling": "mean"}, "head_pooling='mean' is of pre-norm models"),
    ],
)
def test_impossible_models_are_refused_with_their_numbers(change, message):
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(V15, **change)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"max_length": 2}, "max_length=2 must be at least 3"),
        ({"matryoshka_dims": (64, 0)}, r"matryoshka_dims=\(64, 0\) must be positive"),
        ({"prompts": {}}, r"prompts=\{\} must be texts by task"),
    ],
)
def test_impossible_embeddings_are_refused(change, message):
    values = PUBLISHED_EMBEDDINGS["nomic-embed-text-v1.5"].to_json() | change
    with pytest.raises(ValueError, match=message):
        EmbeddingConfig.from_json(values)


@pytest.mark.parametrize("prompts", [None, ["query: "], {"a": None}, {1: "query: "}])
def test_prompts_that_are_no_texts_by_task_are_refused(prompts):
    # Set past the constructor, whose types are checked in tests and not by users.
    config = copy.copy(PUBLISHED_EMBEDDINGS["nomic-embed-text-v1.5"])
    object.__setattr__(config, "prompts", prompts)
    with pytest.raises(ValueError, match=r"prompts=.* must be texts by task"):
        config.__post_init__()


def test_nearest_names_the_likely_one_or_all():
    assert did_you_mean("clustring", ["clustering", "search_query"]) == (
        "did you mean 'clustering'?"
    )
    assert did_you_mean("zzz", ["b", "a"]) == "known: a, b"


def test_differing_fields_looks_into_sections():
    old = {"a": {"b": {"c": 1}, "d": 2}, "e": [1, 2]}
    new = {"a": {"b": {"c": 3}, "d": 2}, "e": [1], "f": "x"}
    assert differing_fields(old, new) == [
        "a.b.c was 1 and is 3",
        "e was [1, 2] and is [1]",
        "f was None and is 'x'",
    ]
