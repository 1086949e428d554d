import dataclasses
import json

import pytest

from nomic_jax.config import (
    PUBLISHED,
    PUBLISHED_EMBEDDINGS,
    EmbeddingConfig,
    ModelConfig,
    differing_fields,
    nearest,
    padded_vocabulary,
)

V15 = PUBLISHED["nomic-embed-text-v1.5"]


def test_published_models_are_the_papers():
    for config in PUBLISHED.values():
        sizes = (config.num_layers, config.width, config.num_heads, config.mlp_width)
        assert sizes == (12, 768, 12, 3072)
        assert (config.vocab_size, config.type_vocab_size) == (30528, 2)
        assert (config.rope_base, config.trained_positions) == (1000, 2048)
        assert (config.layer_norm_epsilon, config.dropout) == (1e-12, 0)
        assert config.head_width == 64
    assert PUBLISHED["nomic-bert-2048"].head == "mlm" and V15.head is None
    assert not PUBLISHED_EMBEDDINGS["nomic-embed-text-v1"].layer_norm
    assert PUBLISHED_EMBEDDINGS["nomic-embed-text-v1.5"].layer_norm
    assert {config.pooling for config in PUBLISHED_EMBEDDINGS.values()} == {"mean"}


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
        ({"num_layers": 0}, "num_layers=0 must be at least 1"),
        ({"width": 100}, "width=100 does not split into num_heads=12"),
        ({"width": 12 * 63}, "heads of even size"),
        ({"rope_scaling_factor": 0.5}, "rope_scaling_factor=0.5 must be at least 1"),
        ({"dropout": 1.0}, "dropout=1.0 must be in"),
        ({"pad_token_id": 30528}, "outside the vocabulary of 30528"),
        ({"head_bias": True}, "head_bias=True needs head='mlm'"),
        ({"num_layers": 0, "dropout": -1.0}, "num_layers=0 .*; dropout=-1.0"),
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
    ],
)
def test_impossible_embeddings_are_refused(change, message):
    values = PUBLISHED_EMBEDDINGS["nomic-embed-text-v1.5"].to_json() | change
    with pytest.raises(ValueError, match=message):
        EmbeddingConfig.from_json(values)


def test_nearest_names_the_likely_one_or_all():
    assert nearest("clustring", ["clustering", "search_query"]) == (
        "did you mean 'clustering'?"
    )
    assert nearest("zzz", ["b", "a"]) == "known: a, b"


def test_differing_fields_looks_into_sections():
    old = {"a": {"b": {"c": 1}, "d": 2}, "e": [1, 2]}
    new = {"a": {"b": {"c": 3}, "d": 2}, "e": [1], "f": "x"}
    assert differing_fields(old, new) == [
        "a.b.c was 1 and is 3",
        "e was [1, 2] and is [1]",
        "f was None and is 'x'",
    ]
