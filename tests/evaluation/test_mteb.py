"""mteb runs our model as it is, and finds what this project's own evaluation finds."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import task_files
from flax import nnx

from nomic_jax.checkpoints.model_folder import save_model
from nomic_jax.config import NOMIC_PROMPTS, EmbeddingConfig
from nomic_jax.evaluation.kinds import classification, retrieval
from nomic_jax.evaluation.kinds.sts import spearman
from nomic_jax.evaluation.measurement import at_lengths
from nomic_jax.evaluation.mteb import MtebModel, prompt_of
from nomic_jax.inference.embedder import Embedder
from nomic_jax.model.encoder import NomicBert

DIM = 16
ROUNDING = 1e-6  # of a float32 cosine, which mteb's torch adds up in another order


@pytest.fixture(scope="module")
def local():
    """The tasks; mteb is imported with them."""
    import mteb_tasks

    return mteb_tasks


@pytest.fixture(scope="module")
def embedder():
    config = task_files.config(rope_base=1000.0, trained_positions=64)
    embedding = EmbeddingConfig(
        pooling="mean", layer_norm=True, max_length=64, matryoshka_dims=(32, DIM)
    )
    model = NomicBert(config, rngs=nnx.Rngs(0))
    return Embedder(model, task_files.tokenizer(), embedding)


@pytest.fixture(scope="module")
def scores(embedder, local):
    """What mteb finds, by task."""
    import mteb
    from mteb.models.models_protocols import EncoderProtocol

    model = MtebModel(embedder, "ours/tiny", dim=DIM)
    assert isinstance(model, EncoderProtocol)
    tasks = [local.Retrieval(), local.Similarity(), local.Classes()]
    found = mteb.evaluate(
        model, tasks, cache=None, show_progress_bar=False, co2_tracker=False
    )
    return {result.task_name: result.scores["test"][0] for result in found.task_results}


@pytest.mark.torch
def test_retrieval_through_mteb_scores_as_here(embedder, local, scores):
    documents = [f"{a} {b}" for a, b in zip(local.TITLES, local.BODIES, strict=True)]
    grades = [dict.fromkeys(answers, 1) for answers in local.RELEVANT]
    own = [retrieval.NONE] * len(grades)
    task = retrieval.JudgedRetrieval(local.QUERIES, documents, grades, own, {})
    found = retrieval.score(
        task,
        embedder.encode_query(local.QUERIES, dim=DIM),
        embedder.encode_document(documents, dim=DIM),
    )
    assert 0 < found["ndcg@10"] < 1
    # mteb rounds to five digits.
    for theirs, ours in (("ndcg_at_10", "ndcg@10"), ("recall_at_10", "recall@10")):
        assert scores["LocalRetrieval"][theirs] == pytest.approx(found[ours], abs=1e-5)


@pytest.mark.torch
def test_similarity_through_mteb_scores_as_here(embedder, local, scores):
    first, second = (
        embedder.encode(side, task="classification", dim=DIM)
        for side in (local.FIRST, local.SECOND)
    )
    ours = spearman(first, second, local.SCORES)
    assert scores["LocalSTS"]["cosine_spearman"] == pytest.approx(ours, abs=ROUNDING)


@pytest.mark.torch
def test_classification_through_mteb_scores_as_here_unnormalised(
    embedder, local, scores
):
    names = [str(label) for label in local.LABELS]
    task = classification.Classification(
        local.TRAIN,
        names[: len(local.TRAIN)],
        local.TEST,
        names,
        list(classification.drawn(names[: len(local.TRAIN)], 8, 3)),
    )

    def accuracy(normalize):
        embedded = [
            embedder.encode(side, task="classification", dim=DIM, normalize=normalize)
            for side in (local.TRAIN, local.TEST)
        ]
        return classification.score(task, *embedded)["accuracy"]

    assert scores["LocalClassification"]["accuracy"] == pytest.approx(accuracy(False))
    assert accuracy(True) != pytest.approx(accuracy(False))


V2 = NOMIC_PROMPTS | {
    "Classification": "classification: ",
    "STS": "similarity: ",
    "Clustering": "clustering: ",
}
SEARCH = {"search_query": "query: ", "search_document": "passage: "}


@pytest.mark.parametrize(
    ("prompts", "kind", "name", "role", "expected"),
    [
        (NOMIC_PROMPTS, "Classification", "Banking77", None, "classification: "),
        (NOMIC_PROMPTS, "PairClassification", "Twitter", "query", "classification: "),
        (NOMIC_PROMPTS, "STS", "STS12", None, "classification: "),
        (NOMIC_PROMPTS, "Summarization", "SummEval", None, "classification: "),
        (NOMIC_PROMPTS, "Reranking", "SciDocsRR", "query", "classification: "),
        (NOMIC_PROMPTS, "Reranking", "SciDocsRR", "document", "classification: "),
        (NOMIC_PROMPTS, "Clustering", "Reddit", None, "clustering: "),
        (NOMIC_PROMPTS, "Retrieval", "NQ", "query", "search_query: "),
        (NOMIC_PROMPTS, "Retrieval", "NQ", "document", "search_document: "),
        (NOMIC_PROMPTS, "Retrieval", "QuoraRetrieval", "document", "search_query: "),
        (NOMIC_PROMPTS, "BitextMining", "Tatoeba", None, "search_document: "),
        (V2, "STS", "STS22", None, "similarity: "),
        (V2, "Reranking", "MIRACLReranking", "query", "classification: "),
        (SEARCH, "Reranking", "SciDocsRR", "query", "query: "),
        (SEARCH, "Reranking", "SciDocsRR", "document", "passage: "),
        (SEARCH, "STS", "STS12", None, ""),
        (V2, "Retrieval", "MIRACLRetrieval", "document", "search_document: "),
    ],
)
def test_prompts_are_those_of_the_published_results(
    prompts, kind, name, role, expected
):
    found = prompt_of(prompts, task_type=kind, name=name, prompt_type=role)
    assert found == expected


@pytest.mark.torch
def test_blank_documents_have_a_vector_and_quoras_are_queries(embedder, local):
    model = MtebModel(embedder, "ours/tiny")
    batches = [{"text": ["the quick fox", ""]}, {"text": ["lazy dogs"]}]
    quora = local.described("Retrieval", "QuoraRetrieval", "ndcg_at_10")
    found = model.encode(batches, task_metadata=quora, prompt_type="document")
    expected = embedder.encode_query(["the quick fox", "lazy dogs"])
    # Batches of other rows: a few units in the last place.
    np.testing.assert_allclose(found[[0, 2]], expected, atol=ROUNDING)
    assert np.linalg.norm(found[1]) == pytest.approx(1)


@pytest.mark.torch
def test_results_of_other_weights_dims_and_lengths_are_kept_apart(embedder):
    def meta(embedder, dim=None):
        return MtebModel(embedder, "ours/tiny", dim=dim).mteb_model_meta

    first = meta(embedder)
    assert first.name == "ours/tiny"
    other = NomicBert(embedder.model.config, rngs=nnx.Rngs(1))
    other = Embedder(other, embedder.tokenizer, embedder.config)
    assert meta(other).revision != first.revision == meta(embedder, DIM).revision
    short = dataclasses.replace(embedder.config, max_length=32)
    short = Embedder(embedder.model, embedder.tokenizer, short)
    names = {meta(each).experiment_name for each in (embedder, short)}
    assert len({*names, meta(embedder, DIM).experiment_name}) == 3
    revisions = {first.revision}
    for changes in ({"pooling": "cls"}, {"prompts": NOMIC_PROMPTS | {"x": ""}}):
        config = dataclasses.replace(embedder.config, **changes)
        revisions.add(meta(embedder.replaced(config=config)).revision)
    stretched = at_lengths(embedder, (64,), rotary_scaling_factor=4.0)[64]
    rough = jax.tree.map(lambda leaf: leaf, embedder.model)
    rough.dtype = jnp.dtype("bfloat16")
    revisions |= {
        meta(stretched).revision,
        meta(embedder.replaced(model=rough)).revision,
    }
    assert len(revisions) == 5


@pytest.mark.torch
def test_what_the_model_cannot_give_is_refused(embedder, local):
    with pytest.raises(ValueError, match="dims 24 are not .* 32, 16"):
        MtebModel(embedder, "ours/tiny", dim=24)
    task = local.described("STS", "LocalSTS", "cosine_spearman")
    with pytest.raises(ValueError, match="precision='int8'.*float32"):
        MtebModel(embedder, "ours/tiny").encode(
            [{"text": ["a"]}], task_metadata=task, precision="int8"
        )


@pytest.mark.torch
@pytest.mark.parametrize(
    ("own", "asked", "length"), [(1024, None, 512), (64, None, 64), (1024, 700, 700)]
)
def test_texts_are_cut_as_in_the_paper_unless_asked(tmp_path, own, asked, length):
    config = task_files.config(rope_base=1000.0, trained_positions=1024)
    model = NomicBert(config, rngs=nnx.Rngs(0))
    embedding = EmbeddingConfig(pooling="mean", layer_norm=False, max_length=own)
    save_model(model, config, embedding, task_files.tokenizer(), tmp_path / "tiny")
    found = MtebModel.from_pretrained(tmp_path / "tiny", max_length=asked)
    assert found.embedder.config.max_length == length
    assert found.mteb_model_meta.max_tokens == length
    assert found.mteb_model_meta.name == "nomic_jax/tiny"
