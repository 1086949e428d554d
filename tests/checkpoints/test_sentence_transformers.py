"""sentence-transformers folders of every family: written, loaded by it, and read."""

import dataclasses
import json

import numpy as np
import pytest
import tiny_checkpoints as tiny
from tiny_checkpoints import ours

from nomic_jax.checkpoints.embedding import embedding_for
from nomic_jax.checkpoints.problems import CheckpointError
from nomic_jax.checkpoints.reader import read_checkpoint
from nomic_jax.checkpoints.sentence_transformers import CardFacts
from nomic_jax.checkpoints.writer import write_checkpoint
from nomic_jax.config import NOMIC_PROMPTS, EmbeddingConfig
from nomic_jax.inference.embedder import Embedder

EMBEDDING = EmbeddingConfig(
    pooling="mean",
    layer_norm=False,
    max_length=64,
    matryoshka_dims=(32, 16),
    prompts={"search_query": "query : ", "search_document": "document : "},
)
TEXTS = ["a small fox", "the lazy dog jumps over the fox while a dog jumps", "a dog"]


def written(path, family, head=None, embedding=EMBEDDING, **facts):
    source = ours(path / "ours", tiny.configured(family, head))
    tiny.add_tokenizer(source)
    write_checkpoint(
        read_checkpoint(source),
        path / "st",
        layout="sentence-transformers",
        embedding=embedding,
        facts=CardFacts(**facts),
    )
    return path / "st"


@pytest.mark.torch
@pytest.mark.slow
@pytest.mark.parametrize(
    ("family", "head", "pooling"),
    [
        ("bert", "pretraining", "mean"),
        ("bert", None, "cls"),
        ("xlm-roberta", "pooler", "mean"),
        ("modernbert", "mlm", "last"),
    ],
)
def test_that_library_loads_a_folder_of_ours_unchanged(tmp_path, family, head, pooling):
    import transformers
    from sentence_transformers import SentenceTransformer

    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    embedding = dataclasses.replace(EMBEDDING, pooling=pooling)
    folder = written(tmp_path, family, head, embedding)
    kind, info = transformers.AutoModel.from_pretrained(
        folder, output_loading_info=True
    )
    assert not any(info.values()), info
    theirs = SentenceTransformer(str(folder), device="cpu")
    embedder = Embedder.from_pretrained(folder, dtype="float32")
    assert embedder.config == embedding
    assert theirs.max_seq_length == 64
    for dim in (32, 16):
        cut = {"truncate_dim": dim, "normalize_embeddings": True}
        for got, expected in (
            (embedder.encode_query(TEXTS, dim=dim), theirs.encode_query(TEXTS, **cut)),
            (
                embedder.encode_document(TEXTS, dim=dim),
                theirs.encode_document(TEXTS, **cut),
            ),
        ):
            # unit vectors in float32: a dot product is off by some 1e-6 at most.
            assert np.all(np.sum(got * expected, axis=1) > 0.99999)


def test_a_mixture_goes_into_nomics_own_layout_and_its_card_says_what_it_needs(
    tmp_path,
):
    folder = written(tmp_path, "moe")
    assert read_checkpoint(folder).config == tiny.FAMILIES["moe"]
    assert read_checkpoint(folder).embedding == EMBEDDING
    values = json.loads((folder / "config.json").read_text())
    assert (values["num_experts"], values["moe_top_k"]) == (4, 2)
    assert "NomicBertModel" in values["auto_map"]["AutoModel"]
    card = (folder / "README.md").read_text()
    assert 'SentenceTransformer("this/folder", trust_remote_code=True)' in card
    assert "2 of 4 for each token" in card
    names = set(tiny.load(folder))
    assert names == set(tiny.nomic_shapes(tiny.FAMILIES["moe"]))


def test_the_card_tells_what_it_is_given(tmp_path):
    layer_norm = dataclasses.replace(EMBEDDING, layer_norm=True)
    folder = written(
        tmp_path,
        "nomic",
        embedding=layer_norm,
        base_model="nomic-ai/nomic-bert-2048",
        data=("msmarco", "nq"),
        training={"learning_rate": 2e-5},
        evaluation={"STS-B dev, Spearman": 0.85},
    )
    card = (folder / "README.md").read_text()
    for part in (
        "base_model: nomic-ai/nomic-bert-2048\n",
        "- msmarco\n",
        "- `learning_rate`: 2e-05\n",
        "- STS-B dev, Spearman: 0.8500\n",
        "- `search_query`: `'query : '`\n",
        "truncate_dim=16",
        "text-embeddings-inference reads no such module",
        "0.99994",
    ):
        assert part in card
    assert "trust_remote_code" not in card


@pytest.mark.parametrize(
    ("family", "expected"),
    [
        ("nomic", NOMIC_PROMPTS),
        ("bert", dict.fromkeys(NOMIC_PROMPTS, "")),
        ("xlm-roberta", dict.fromkeys(NOMIC_PROMPTS, "")),
        ("modernbert", dict.fromkeys(NOMIC_PROMPTS, "")),
    ],
)
def test_only_a_nomicbert_without_prompts_gets_nomics(tmp_path, family, expected):
    folder = written(tmp_path, family)
    settings = folder / "config_sentence_transformers.json"
    for prompts in ({}, {"prompts": {"query": "", "document": ""}}, {"prompts": None}):
        settings.write_text(json.dumps(prompts))
        read = read_checkpoint(folder).embedding
        assert read is not None
        assert read.prompts == expected
    plain = read_checkpoint(tmp_path / "ours")
    assert embedding_for(tmp_path / "ours", plain).config.prompts == expected


def test_a_published_name_brings_its_prompts(tmp_path):
    folder = written(tmp_path, "bert")
    (folder / "config_sentence_transformers.json").unlink()
    named = folder.rename(tmp_path / "e5-small-v2")
    chosen = embedding_for(named, read_checkpoint(named))
    assert chosen.config.prompts["search_document"] == "passage: "


@pytest.mark.parametrize(
    ("module", "says"),
    [
        ("sentence_transformers.models.CNN", "models.CNN"),
        ("sentence_transformers.models.WordWeights", "models.WordWeights"),
    ],
)
def test_a_module_that_is_not_implemented_is_named(tmp_path, module, says):
    folder = written(tmp_path, "bert")
    modules = json.loads((folder / "modules.json").read_text())
    modules[-1]["type"] = module
    (folder / "modules.json").write_text(json.dumps(modules))
    with pytest.raises(CheckpointError, match=says):
        read_checkpoint(folder)


@pytest.mark.parametrize("mode", ["max", "weightedmean"])
def test_a_pooling_that_is_not_implemented_is_named(tmp_path, mode):
    folder = written(tmp_path, "bert")
    (folder / "1_Pooling/config.json").write_text(json.dumps({"pooling_mode": mode}))
    with pytest.raises(CheckpointError, match=f"pools by {mode}"):
        read_checkpoint(folder)


def test_a_fine_tuned_models_own_files_stand_before_the_name_it_began_with(tmp_path):
    folder = written(
        tmp_path, "bert", embedding=dataclasses.replace(EMBEDDING, pooling="cls")
    )
    values = json.loads((folder / "config.json").read_text())
    values["_name_or_path"] = "BAAI/bge-base-en-v1.5"  # as transformers 4 wrote it
    (folder / "config.json").write_text(json.dumps(values))
    chosen = embedding_for(folder, read_checkpoint(folder))
    assert chosen.config.prompts == EMBEDDING.prompts
    named = folder.rename(tmp_path / "finetuned-bge-base-en-v1.5")
    chosen = embedding_for(named, read_checkpoint(named))
    assert chosen.config.prompts == EMBEDDING.prompts
    assert chosen.config.max_length == EMBEDDING.max_length


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({"query": "q: "}, {"search_query": "q: ", "search_document": ""}),
        (
            {"query": "q: ", "passage": "p: ", "Classification": "c: ", "STS": "c: "},
            {
                "search_query": "q: ",
                "search_document": "p: ",
                "classification": "c: ",
                "Classification": "c: ",
                "STS": "c: ",
            },
        ),
    ],
)
def test_queries_and_documents_have_a_prompt_each(tmp_path, given, expected):
    folder = written(tmp_path, "bert")
    path = folder / "config_sentence_transformers.json"
    path.write_text(json.dumps({"prompts": given}))
    embedding = read_checkpoint(folder).embedding
    assert embedding is not None and embedding.prompts == expected


def test_a_transformer_in_a_folder_of_its_own_embeds_alike(tmp_path):
    folder = written(tmp_path, "bert")
    expected = Embedder.from_pretrained(folder).encode_query(TEXTS)
    inside = folder / "0_Transformer"
    inside.mkdir()
    for path in [path for path in folder.iterdir() if path.is_file()]:
        if path.name not in ("modules.json", "config_sentence_transformers.json"):
            path.rename(inside / path.name)
    modules = json.loads((folder / "modules.json").read_text())
    modules[0]["path"] = inside.name
    (folder / "modules.json").write_text(json.dumps(modules))
    got = Embedder.from_pretrained(folder).encode_query(TEXTS)
    np.testing.assert_array_equal(got, expected)


@pytest.mark.parametrize("head", [None, "pooler"])
def test_a_nomic_bert_is_written_as_transformers_own_class(tmp_path, head):
    folder = written(tmp_path, "nomic", head)
    values = json.loads((folder / "config.json").read_text())
    assert "hidden_size" in values and "auto_map" not in values


def test_without_a_named_task_the_documents_prompt_is_put(tmp_path):
    folder = written(tmp_path, "bert")
    path = folder / "config_sentence_transformers.json"
    assert json.loads(path.read_text())["default_prompt_name"] == "search_document"


def test_texts_lower_cased_before_the_tokenizer_are_refused(tmp_path):
    folder = written(tmp_path, "bert")
    path = folder / "sentence_bert_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"do_lower_case": True}))
    with pytest.raises(CheckpointError, match="do_lower_case=true, and the tokenizer"):
        read_checkpoint(folder)
    own = json.loads((folder / "tokenizer_config.json").read_text())
    own["do_lower_case"] = True
    (folder / "tokenizer_config.json").write_text(json.dumps(own))
    assert read_checkpoint(folder).embedding is not None
