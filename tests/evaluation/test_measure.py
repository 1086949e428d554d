"""An embedder on tasks: what is embedded how, cut, coded, kept, and drawn."""

import dataclasses
import json
import logging

import numpy as np
import pytest
from evaluation_files import write_beir, write_jsonl

import nomic_jax.evaluation.measurement
from nomic_jax.checkpoints.model_folder import save_model
from nomic_jax.cli.evaluate import Evaluate, evaluate
from nomic_jax.config import NOMIC_PROMPTS, EmbeddingConfig
from nomic_jax.data.tokenizer import TextTokenizer
from nomic_jax.evaluation.config import EvaluationConfig
from nomic_jax.evaluation.kinds import retrieval
from nomic_jax.evaluation.kinds.registry import KINDS, open_tasks
from nomic_jax.evaluation.measurement import (
    at_lengths,
    measure,
    measure_all,
    metrics_of,
    with_all_prompts,
)
from nomic_jax.evaluation.results import (
    FORMATS,
    Figures,
    Measured,
    Results,
    by_dimension,
    by_length,
    tables,
)
from nomic_jax.inference.embedder import Embedder
from nomic_jax.model.pooling import Projection

WORDS = "a small fox jumps over the lazy dog while we search query document : _".split()
DIMS = (32, 16, 8)


@pytest.fixture(scope="module")
def embedder(tiny_model):
    text = " ".join(WORDS) + " clustering classification"
    return Embedder(
        tiny_model,
        TextTokenizer.train([text] * 3, vocab_size=128),
        EmbeddingConfig(
            pooling="mean", layer_norm=True, max_length=12, matryoshka_dims=DIMS
        ),
    )


def sentences(count, seed):
    random = np.random.default_rng(seed)
    return [" ".join(random.choice(WORDS[:10], 9)) for _ in range(count)]


@pytest.fixture(scope="module")
def places(tmp_path_factory):
    """A task each of retrieval, similarity and classification."""
    folder = tmp_path_factory.mktemp("tasks")
    texts, queries = sentences(12, 0), sentences(5, 1)
    first, second = sentences(8, 2), sentences(8, 3)
    labels = ["x", "y"] * 4
    labelled = [
        {"text": text, "label": label}
        for text, label in zip(first, labels, strict=True)
    ]
    for split in ("train", "test"):
        write_jsonl(folder / "letters" / f"{split}.jsonl", labelled)
    corpus = {f"d{i}": ("", text) for i, text in enumerate(texts)}
    asked = {f"q{i}": text for i, text in enumerate(queries)}
    retrieval = write_beir(
        folder / "foxes", corpus, asked, [(f"q{i}", f"d{i}", 1) for i in range(5)]
    )
    pairs = [
        {"sentence1": a, "sentence2": b, "score": i}
        for i, (a, b) in enumerate(zip(first, second, strict=True))
    ]
    similarity = write_jsonl(folder / "pairs.jsonl", pairs)
    return (
        f"retrieval:{retrieval}",
        f"sts:{similarity}",
        f"classification:{folder / 'letters'}",
    )


@pytest.mark.slow
def test_every_dimension_is_that_of_texts_embedded_for_it(embedder, places):
    task = open_tasks(places)[0]
    found = measure(task, embedder, dims=DIMS, precisions=("float32", "binary"))
    assert [(f.dim, f.precision) for f in found] == [
        (dim, precision) for dim in DIMS for precision in ("float32", "binary")
    ]
    for each in found:
        vectors = [
            embedder.encode(side.texts, task=side.prompt, dim=each.dim)
            for side in task.sides
        ]
        if each.precision == "binary":
            vectors = [np.sign(v) for v in vectors]
        # Ranks alone count: rounding does not reorder these 12 documents.
        assert each.metrics == retrieval.score(task.data, *vectors), each
    assert metrics_of(task, embedder) == found[0].metrics


def test_each_side_gets_its_prompt_and_classification_no_unit_length(
    embedder, places, monkeypatch
):
    asked, encode = [], Embedder.encode

    def recorded(self, texts, *, task, **more):
        asked.append((task, len(texts)))
        return encode(self, texts, task=task, **more)

    monkeypatch.setattr(Embedder, "encode", recorded)
    lengths = []

    def kept(data, *sides):
        lengths.extend(np.linalg.norm(side, axis=1) for side in sides)
        return {}

    for task in open_tasks(places):
        changed = dataclasses.replace(KINDS[task.kind], score=kept)
        monkeypatch.setitem(KINDS, task.kind, changed)
        measure(task, embedder, precisions=("float32", "int8", "binary"))
    assert asked == [
        ("search_query", 5),
        ("search_document", 12),
        ("STS", 16),
        ("Classification", 8),
        ("Classification", 8),
    ]
    for each in [*lengths[:4], *lengths[6:8]]:
        np.testing.assert_allclose(each, 1, atol=1e-6)
    # v1.5's layer norm alone: sqrt(width), which a classifier sees of codes as well.
    # Each entry of int8 is wrong by up to half a step, a hundredth of it on average.
    for each in lengths[9:]:
        np.testing.assert_allclose(each, np.sqrt(32), rtol=1e-2)


def test_a_model_without_prompts_embeds_texts_as_they_stand(embedder, places, caplog):
    bare = Embedder(
        embedder.model,
        embedder.tokenizer,
        dataclasses.replace(
            embedder.config, prompts={"search_query": "", "search_document": ""}
        ),
    )
    with caplog.at_level(logging.WARNING, "nomic_jax"):
        full = with_all_prompts(bare)
    assert "no prompt for classification, clustering: see" in caplog.text
    assert set(full.config.prompts) >= set(NOMIC_PROMPTS)
    named = {**embedder.config.prompts, "STS": "alike: "}
    config = dataclasses.replace(embedder.config, prompts=named)
    prompts = with_all_prompts(embedder.replaced(config=config)).config.prompts
    assert prompts["STS"] == "alike: "
    assert prompts["Reranking-query"] == prompts["Classification"] == "classification: "
    texts = sentences(2, 5)
    np.testing.assert_array_equal(
        full.encode(texts, task="clustering"), bare.encode(texts, task="search_query")
    )


@pytest.mark.slow
def test_lengths_share_weights_and_stretch_with_their_own_factor(embedder):
    (text,) = [" ".join(sentences(3, 0))]
    made = at_lengths(embedder, (12, 24), rotary_scaling_factor=4.0)
    assert made[12].model.embedding_norm is not None
    leaf = embedder.model.word_embedding.embedding
    assert made[24].model.word_embedding.embedding[...] is leaf[...]
    longer = [made[24].encode([text], task="clustering")]
    longer += [at_lengths(embedder, (24,))[24].encode([text], task="clustering")]
    # The tiny model is trained to 16 tokens with alpha 2: here alpha is another.
    assert np.abs(longer[0] - longer[1]).max() > 1e-4
    np.testing.assert_array_equal(
        made[12].encode([text], task="clustering"),
        embedder.encode([text], task="clustering"),
    )
    with pytest.raises(ValueError, match="exceeds the longest row, 16384"):
        at_lengths(embedder, (20000,))


def test_bad_embeddings_and_dimensions_are_refused(embedder, places, monkeypatch):
    task = open_tasks(places)[0]
    with pytest.raises(ValueError, match="dims 12 are not the model's, .* 32, 16, 8"):
        measure(task, embedder, dims=(32, 12))

    def broken(self, texts, **_):
        rows = np.ones((len(texts), 32), np.float32)
        rows[2] = np.nan
        return rows

    monkeypatch.setattr(Embedder, "encode", broken)
    with pytest.raises(ValueError, match="'foxes': 1 of 5 embeddings are not finite"):
        measure(task, embedder)


def counted(monkeypatch):
    texts, encode = [], Embedder.encode

    def recorded(self, given, **more):
        texts.append(len(given))
        return encode(self, given, **more)

    monkeypatch.setattr(Embedder, "encode", recorded)
    return texts


@pytest.mark.slow
def test_a_stopped_evaluation_goes_on_and_refuses_another(
    embedder, places, tmp_path, monkeypatch, capsys
):
    out, texts = str(tmp_path / "out"), counted(monkeypatch)
    first, second, _ = open_tasks(places)
    config = EvaluationConfig(dims=(32, 8), lengths=(12, 8))
    options = {"source": "m", "out": out}
    begun = dataclasses.replace(config, lengths=(12,))
    begun = measure_all(embedder, [first], begun, **options)
    assert sum(texts) == 17
    told = capsys.readouterr().err
    assert "prefixes: search_document 'search_document: ', search_query" in told
    assert begun.measured[0].versions["numpy"] == np.__version__
    assert "foxes at 12 tokens: ndcg@10 " in told
    texts.clear()
    monkeypatch.setattr(nomic_jax.evaluation.measurement, "LIBRARIES", ())
    both = measure_all(embedder, [first, second], config, **options)
    assert sum(texts) == 17 + 2 * 16  # the first task at 12 tokens was there
    assert both.measured[0] == begun.measured[0]
    assert [(m.task, m.length) for m in both.measured] == [
        ("foxes", 12),
        ("foxes", 8),
        ("pairs", 12),
        ("pairs", 8),
    ]
    assert [bool(m.versions) for m in both.measured] == [True, False, False, False]
    kept = json.loads((tmp_path / "out" / "results.json").read_text())
    assert len(kept["measured"]) == 4
    with pytest.raises(ValueError, match=r"another evaluation: options.dims was \[32"):
        fewer = dataclasses.replace(config, dims=(32,))
        measure_all(embedder, [first], fewer, **options)
    changed = dataclasses.replace(
        first, data=dataclasses.replace(first.data, queries=tuple("abcde"))
    )
    with pytest.raises(ValueError, match="tasks.foxes.digest was"):
        measure_all(embedder, [changed], config, **options)
    for other, field in (
        (projected(embedder), "model.projection"),
        (stretched(embedder), "model.model.rope_scaling_factor"),
        (retokenized(embedder), "model.tokenizer"),
    ):
        with pytest.raises(ValueError, match=f"another evaluation: {field} was"):
            measure_all(other, [first], config, **options)
    (tmp_path / "out" / "results.json").write_text("[]")
    with pytest.raises(ValueError, match="results.json is not a file of results"):
        measure_all(embedder, [first], config, **options)


def projected(embedder):
    made = embedder.replaced()
    made.projection = Projection(np.eye(32, dtype=np.float32), None, activation="tanh")
    return made


def stretched(embedder):
    return at_lengths(embedder, (12,), rotary_scaling_factor=4.0)[12]


def retokenized(embedder):
    made = embedder.replaced()
    made.tokenizer = TextTokenizer.train(["other words"] * 3, vocab_size=64)
    return made


@pytest.mark.slow
def test_what_is_undefined_is_told_and_the_rest_measured(
    embedder, places, tmp_path, monkeypatch, capsys
):
    def fails(data, texts):
        if texts.shape[1] == 8:
            raise ValueError("all 8 similarities are equal")
        return {"spearman": float(texts.shape[1])}

    broken = dataclasses.replace(KINDS["sts"], score=fails)
    monkeypatch.setitem(KINDS, "sts", broken)
    model, out = tmp_path / "model", tmp_path / "out"
    config = embedder.model.config
    save_model(embedder.model, config, embedder.config, embedder.tokenizer, model)
    given = Evaluate(str(model), (places[1], places[0]), out=str(out))
    problem = "task 'pairs' at 8 dimensions, float32: all 8 similarities are equal"
    for _ in range(2):
        with pytest.raises(ValueError, match=f"^{problem}$"):
            evaluate(given)
        printed = capsys.readouterr().out
        assert f"Undefined: {problem}, 12 tokens" in printed
        assert "| pairs | 12 | 32 | float32 | 32.0000 |" in printed
        assert "| foxes | 12 | 8 | float32 |" in printed
    assert evaluate(dataclasses.replace(given, tasks=places[:1])) == 0


@pytest.mark.slow
def test_nothing_is_written_again_and_what_is_gone_is(embedder, places, tmp_path):
    def run():
        return measure_all(
            embedder,
            open_tasks(places[1:2]),
            EvaluationConfig(dims=(32, 8)),
            source="m",
            out=str(tmp_path),
        )

    run()
    times = {path.name: path.stat().st_mtime_ns for path in tmp_path.iterdir()}
    assert len(times) == 4
    run()
    assert {p.name: p.stat().st_mtime_ns for p in tmp_path.iterdir()} == times
    for name in ("results.md", "score_by_dimension.svg"):
        before = (tmp_path / name).read_bytes()
        (tmp_path / name).unlink()
        run()
        assert (tmp_path / name).read_bytes() == before


def test_a_kind_of_several_tasks_has_its_mean():
    def measured(task, *values):
        figures = [
            Figures(dim, "float32", {"spearman": value} if value else {}, problem)
            for dim, value, problem in zip(
                (32, 8), values, (None, None if values[1] else "p"), strict=True
            )
        ]
        return Measured(task, 12, 0.0, tuple(figures), {})

    results = Results(
        model={},
        options={},
        tasks={"a": {"kind": "sts"}, "b": {"kind": "sts"}, "c": {"kind": "loco"}},
        measured=(measured("a", 0.5, 0.2), measured("b", 0.8, None)),
    )
    lines = tables(results).splitlines()
    assert lines[5] == "| mean of 2 sts | 12 | 32 | float32 | 0.6500 |"
    assert sum("mean" in line for line in lines) == 1  # not where one is undefined
    assert "mean" not in tables(results, ["a"])


@pytest.mark.slow
def test_the_command_prints_tables_and_draws(embedder, places, tmp_path, capsys):
    model, out = tmp_path / "model", tmp_path / "out"
    save_model(
        embedder.model,
        embedder.model.config,
        embedder.config,
        embedder.tokenizer,
        model,
    )
    options = Evaluate(
        str(model),
        places[:2],
        lengths=(12, 8),
        precisions=("float32", "int8", "binary"),
        out=str(out),
    )
    assert evaluate(options) == 0
    printed = capsys.readouterr().out
    assert printed == (out / "results.md").read_text()
    assert "| task | tokens | dimension | precision | nDCG@10 | Recall@10 |" in printed
    rows = [line for line in printed.splitlines() if line.startswith("| pairs |")]
    assert len(rows) == 2 * 3 * 3  # lengths, dimensions, precisions
    results = measure_all(
        embedder,
        open_tasks(places[:2]),
        EvaluationConfig(lengths=(12, 8), precisions=options.precisions),
        source="the same weights, from memory",
        out=str(out),
    )
    assert set(by_dimension(results)["pairs", "int8"]) == set(DIMS)
    assert set(by_length(results)["foxes", "float32"]) == {8, 12}
    longest = next(m for m in results.measured if (m.task, m.length) == ("pairs", 12))
    assert by_dimension(results)["pairs", "float32"] == {
        each.dim: each.metrics["spearman"]
        for each in longest.figures
        if each.precision == "float32"
    }
    names = {path.name for path in out.iterdir()}
    plots = {f"score_by_{x}.{k}" for x in ("length", "dimension") for k in FORMATS}
    assert names == {"results.json", "results.md", *plots}
    svg = (out / "score_by_length.svg").read_text()
    assert ">retrieval<" in svg and ">sts<" in svg


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"tasks": ()}, "give at least one task"),
        ({"precisions": ()}, "at least float32, int8 or binary"),
        ({"dims": (64, 64)}, r"dims=\(64, 64\) repeats a value"),
        ({"tasks": ("stss:x",)}, "did you mean 'sts'"),
        ({"out": __file__}, "is a file, not a folder"),
    ],
)
def test_wrong_options_are_refused_before_the_model_is_looked_for(changes, message):
    given = {"model": "there is none", "tasks": ("sts:x.jsonl",)} | changes
    with pytest.raises(ValueError, match=message):
        evaluate(Evaluate(**given))
