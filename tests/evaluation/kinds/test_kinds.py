"""Tasks other than retrieval: what is read, refused and scored."""

import json

import numpy as np
import pytest
from evaluation_files import write_beir, write_jsonl

from nomic_jax.evaluation.kinds import (
    classification,
    clustering,
    pair_classification,
    reranking,
    sts,
)
from nomic_jax.evaluation.kinds.registry import open_tasks
from nomic_jax.evaluation.kinds.retrieval import NONE
from nomic_jax.evaluation.records import task_name


def unit(rows):
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)


def labelled(texts, labels):
    rows = zip(texts, labels, strict=True)
    return [{"text": text, "label": label} for text, label in rows]


def pairs(*labels):
    return [
        {"sentence1": f"a{i % 3}", "sentence2": f"b{i}", "label": label}
        for i, label in enumerate(labels)
    ]


def test_classifiers_are_fit_to_the_texts_that_mteb_draws(tmp_path):
    labels = list("abacabcabba")
    # What mteb 2.26's AbsTaskClassification draws of these labels, two of each.
    golden = [[5, 0, 9, 10, 3, 6], [1, 5, 3, 6, 0, 7], [0, 1, 10, 8, 3, 6]]
    assert [*classification.drawn(labels, 2, 3)] == golden
    texts = list("0123456789x")
    write_jsonl(tmp_path / "set" / "train.jsonl.gz", labelled(texts, labels))
    write_jsonl(tmp_path / "set" / "dev.jsonl", labelled("pq", "ab"))
    settings = tmp_path / "set" / "task.json"
    settings.write_text(json.dumps({"samples_per_label": 2, "experiments": 3}))
    (task,) = open_tasks([f"classification:{tmp_path}/set:dev"])
    assert task.name == "set:dev"
    train = task.sides[0].texts
    assert [[train[i] for i in draw] for draw in task.data.experiments] == [
        [texts[i] for i in draw] for draw in golden
    ]
    assert "4" not in train and "2" not in train  # never drawn, so not embedded
    settings.write_text(json.dumps({"full": True}))
    (task,) = open_tasks([f"classification:{tmp_path}/set:dev"])
    assert list(task.sides[0].texts) == texts


@pytest.mark.slow
def test_classification_is_scikit_learns(tmp_path):
    from sklearn.linear_model import LogisticRegression
    from sklearn.metrics import accuracy_score, f1_score

    random = np.random.default_rng(0)
    labels = list(random.choice(["x", "y", "z"], 60))
    centre = random.normal(size=(3, 5))
    rows = (
        centre[["xyz".index(label) for label in labels]]
        + 1.2 * random.normal(size=(60, 5))
    ).astype(np.float32)
    draws = [list(range(15)), list(range(15, 40))]
    task = classification.Classification(
        ["t"] * 40, labels[:40], ["t"] * 20, labels[40:], draws, True
    )
    found = classification.score(task, rows[:40], rows[40:])
    expected = []
    for draw in (*draws, list(range(40))):
        classifier = LogisticRegression(max_iter=100, random_state=42)
        classifier.fit(rows[draw], [labels[i] for i in draw])
        said = classifier.predict(rows[40:])
        each = accuracy_score(labels[40:], said)
        expected.append((each, f1_score(labels[40:], said, average="macro")))
    (accuracy, f1), full = np.mean(expected[:2], axis=0), expected[2]
    names = ("accuracy", "f1", "accuracy_full", "f1_full")
    assert [found[name] for name in names] == pytest.approx([accuracy, f1, *full])
    assert 0.4 < found["accuracy"] < 1


def test_the_v_measure_is_averaged_over_sets_of_which_a_perfect_one_has_one(tmp_path):
    from sklearn.cluster import MiniBatchKMeans
    from sklearn.metrics import v_measure_score

    random = np.random.default_rng(0)
    letters = [chr(97 + i) for i in range(24)]
    gold = random.integers(0, 3, 24)
    sets = [(letters[:4], ["u", "u", "v", "v"]), (letters[::-1], gold.tolist())]
    place = write_jsonl(
        tmp_path / "sets.jsonl",
        [{"sentences": texts, "labels": labels} for texts, labels in sets],
    )
    (task,) = open_tasks([f"clustering:{place}"])
    order = list(task.sides[0].texts)
    assert sorted(order) == letters  # each once
    rows = unit(random.normal(size=(24, 5)))
    rows[:4] = np.eye(5)[[0, 0, 1, 1]]
    kmeans = MiniBatchKMeans(3, batch_size=500, n_init="auto", random_state=42)
    second = v_measure_score(gold, kmeans.fit(rows[::-1]).labels_)
    given = rows[[letters.index(text) for text in order]]
    found = clustering.score(task.data, given)["v_measure"]
    assert found == pytest.approx((1 + second) / 2)
    assert second < 0.5


@pytest.mark.torch
@pytest.mark.parametrize("rate", [0.4, 0.8])
def test_pair_classification_is_that_of_sentence_transformers(rate):
    from sentence_transformers.sentence_transformer.evaluation import (
        BinaryClassificationEvaluator as Reference,
    )

    random = np.random.default_rng(1)
    texts = unit(random.normal(size=(40, 6)))
    labels = np.arange(20) < 20 * rate
    if rate < 0.5:
        texts[1::2][labels] = unit(texts[::2][labels] + 1.2 * texts[1::2][labels])
    numbers = [(2 * i, 2 * i + 1) for i in range(20)]
    task = pair_classification.PairClassification(
        [""] * 40, numbers, [bool(label) for label in labels]
    )
    cosine = np.sum(texts[::2] * texts[1::2], axis=1)
    found = pair_classification.score(task, texts)
    accuracy, _ = Reference.find_best_acc_and_threshold(cosine, labels, True)
    f1, *_ = Reference.find_best_f1_and_threshold(cosine, labels, True)
    # Where cosine says nothing and most pairs are right, all are best accepted.
    assert (accuracy == labels.mean()) == (rate > 0.5)
    assert found["accuracy"] == pytest.approx(accuracy)
    assert found["f1"] == pytest.approx(f1)
    # Precision at each answer, from its definition.
    order = np.argsort(-cosine)
    right = labels[order]
    precision = np.cumsum(right) / np.arange(1, 21)
    assert found["average_precision"] == pytest.approx(precision[right].mean())


def test_reranking_is_average_precision_of_each_querys_own_candidates(tmp_path):
    from sklearn.metrics import average_precision_score

    records = [
        {"query": "q", "positive": ["a", "b"], "negative": ["c", "d", "e"]},
        {"query": "r", "positive": ["c"], "negative": ["a", "c", "c"]},
    ]
    # Nothing can be ordered wrongly among answers alone.
    records += [{"query": "s", "positive": ["f"], "negative": n} for n in ([], ["f"])]
    place = write_jsonl(tmp_path / "rerank" / "test.jsonl", records)
    (task,) = open_tasks([f"reranking:{place}"])
    assert task.name == "rerank"
    assert task.counts["queries with answers alone left out"] == 2
    names = [side.prompt_name for side in task.sides]
    assert names == ["Reranking-query", "Reranking-document"]
    random = np.random.default_rng(0)
    queries, documents = (unit(random.normal(size=(n, 4))) for n in (2, 5))
    scores = dict(zip("abcde", documents @ queries[0], strict=True))
    other = dict(zip("abcde", documents @ queries[1], strict=True))
    expected = [
        average_precision_score([1, 1, 0, 0, 0], [scores[d] for d in "abcde"]),
        average_precision_score([1, 0], [other[d] for d in "ca"]),
    ]
    order = list(task.sides[1].texts)
    rows = documents[["abcde".index(text) for text in order]]
    found = reranking.score(task.data, queries, rows)
    assert found["map"] == pytest.approx(np.mean(expected))
    tied = reranking.score(task.data, queries, np.ones_like(rows))
    assert tied["mrr@10"] == pytest.approx((1 / 4 + 1 / 2) / 2)  # no merit in a tie


def test_sts_has_both_correlations():
    import scipy.stats

    random = np.random.default_rng(0)
    rows = unit(random.normal(size=(6, 4)))
    names = [f"s{i}" for i in range(6)]
    first, second = ("s0", "s1", "s2", "s0"), ("s3", "s4", "s5", "s5")
    task = sts.SentencePairs(first, second, (1.0, 2.0, 4.0, 0.5))
    (side,) = sts.sides(task)
    assert sorted(side.texts) == names  # each once
    place = {text: rows[names.index(text)] for text in names}
    cosine = [place[a] @ place[b] for a, b in zip(first, second, strict=True)]
    found = sts.score(task, np.stack([place[text] for text in side.texts]))
    for name, function in (
        ("spearman", scipy.stats.spearmanr),
        ("pearson", scipy.stats.pearsonr),
    ):
        expected = function(cosine, task.scores).statistic
        # Cosines here are float32 sums of 4 terms.
        assert found[name] == pytest.approx(expected, abs=1e-6)


def test_loco_has_a_task_for_each_of_its_data_sets(tmp_path):
    import pyarrow
    import pyarrow.parquet

    documents = [
        {"pid": "1", "passage": "first", "dataset": "a"},
        {"pid": "2", "passage": "second", "dataset": "a"},
        {"pid": "1", "passage": "third", "dataset": "b"},
    ]
    queries = [
        {"qid": "1", "query": "x", "answer_pids": ["2"], "dataset": "a"},
        {"qid": "2", "query": "z", "answer_pids": [2], "dataset": "a"},
        {"qid": "7", "query": "y", "answer_pids": ["1"], "dataset": "b"},
    ]
    write_jsonl(tmp_path / "queries.jsonl", queries)
    table = pyarrow.Table.from_pylist(documents)
    pyarrow.parquet.write_table(table, tmp_path / "documents.parquet")
    first, second = open_tasks([f"loco:{tmp_path}"])
    assert (first.name, second.name) == ("a", "b")
    assert first.data.own == (0, NONE)  # of the query's own id, unless an answer
    assert first.data.relevance == ({1: 1}, {1: 1})
    (only,) = open_tasks([f"loco:{tmp_path}:b"])
    assert only.data == second.data
    with pytest.raises(ValueError, match="has no data set 'c'"):
        open_tasks([f"loco:{tmp_path}:c"])
    queries[0]["answer_pids"] = ["9"]
    write_jsonl(tmp_path / "queries.jsonl", queries)
    with pytest.raises(ValueError, match="queries.jsonl:1: the answer '9' is none"):
        open_tasks([f"loco:{tmp_path}"])


def test_a_summary_is_to_find_its_meeting(tmp_path):
    records = [
        {
            "meeting": "m",
            "transcript": "long talk",
            "queries": [
                {"query": "all?", "answer": "short"},
                {"query": "then?", "answer": "both"},
            ],
        },
        {"input": "long report", "output": "both"},
        {
            "meeting_transcripts": [
                {"speaker": "A", "content": "yes"},
                {"speaker": "B", "content": ""},
            ],
            "general_query_list": [{"query": "all?", "answer": "gist"}],
            "specific_query_list": [{"query": "who?", "answer": "A did"}],
        },
    ]
    place = write_jsonl(tmp_path / "qmsum.val.jsonl", records)
    (task,) = open_tasks([f"summaries:{place}"])
    assert task.data.queries == ("short", "both", "gist", "A did")
    assert task.data.documents == ("long talk", "long report", "A: yes\nB: ")
    assert task.data.relevance == ({0: 1}, {0: 1, 1: 1}, {2: 1}, {2: 1})


def test_a_split_is_named_after_its_folder():
    assert task_name("a/sts/dev.jsonl") == "sts:dev"
    assert task_name("a/sts/test.jsonl.gz") == "sts"
    assert task_name("a/sts/b.parquet") == "b"


@pytest.mark.parametrize(
    ("task", "message"),
    [
        ("retreival:x", "'retreival:x' is of an unknown kind 'retreival': did you"),
        ("sts", "task 'sts' has no place; give sts:FILE of sentence1, sentence2"),
        ("sts:", "task 'sts:' has no place"),
        ("sts:x.txt", "x.txt ends in none of .jsonl"),
        ("sts:x.jsonl", "x.jsonl is not there"),
        ("retrieval:nowhere", "nowhere is not there; a BEIR folder holds"),
        ("loco:nowhere", "nowhere is not there; a LoCo folder holds"),
        ("classification:nowhere", "nowhere is not there; a classification folder"),
    ],
)
def test_a_task_that_is_not_there_says_what_is_needed(task, message):
    with pytest.raises(ValueError) as error:
        open_tasks([task])
    assert message in str(error.value)


@pytest.mark.parametrize(
    ("kind", "records", "message"),
    [
        ("sts", [{"sentence1": "a", "sentence2": "b", "score": 1}], "all 1 scores are"),
        ("clustering", labelled("ab", "xx"), "all 2 labels are 'x'; at least two"),
        ("clustering", [{"text": "a"}], "f.jsonl:1: no column 'label'"),
        (
            "clustering",
            [{"sentences": ["a"], "labels": ["x", "y"]}],
            "f.jsonl:1: 2 labels for 1 sentences",
        ),
        (
            "clustering",
            [*labelled("ab", "xy"), {"sentences": ["a"], "labels": ["x"]}],
            "f.jsonl:3: a set on one line and single texts on others",
        ),
        ("clustering", labelled("ab", ["x", " x "]), "all 2 labels are 'x'"),
        ("clustering", labelled([" ", "b"], "xy"), "f.jsonl:1: column 'text' is blank"),
        ("clustering", labelled("ab", [0.5, 1]), "f.jsonl:1: column 'label' is a numb"),
        ("pair_classification", pairs(1, 1), "all 2 labels are '1'"),
        ("pair_classification", pairs(0, 2), "f.jsonl:2: column 'label' is '2'; 1 or"),
        (
            "reranking",
            [{"query": "q", "positive": [], "negative": ["a"]}],
            "f.jsonl:1: column 'positive' is an empty list",
        ),
        (
            "reranking",
            [{"query": "q", "positive": "a", "negative": ["b"]}],
            "f.jsonl:1: column 'positive' is a text; give a list",
        ),
        (
            "reranking",
            [{"query": "q", "positive": ["a"], "negative": []}],
            "f.jsonl: no query has a candidate that is no answer",
        ),
        ("summaries", [{"transcript": "t", "queries": []}], "no object in queries"),
        ("summaries", [{"transcript": "t", "queries": ["s"]}], "is a text, not an obj"),
        (
            "summaries",
            [{"meeting_transcripts": []}],
            "no object in meeting_transcripts",
        ),
    ],
)
def test_a_file_that_cannot_be_measured_is_one_line(tmp_path, kind, records, message):
    place = write_jsonl(tmp_path / "f.jsonl", records)
    with pytest.raises(ValueError) as error:
        open_tasks([f"{kind}:{place}"])
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_a_training_set_of_one_class_is_refused(tmp_path):
    write_jsonl(tmp_path / "train.jsonl", labelled("ab", "xx"))
    write_jsonl(tmp_path / "test.jsonl", labelled("ab", "xy"))
    with pytest.raises(ValueError, match="train: all 2 labels are 'x'"):
        open_tasks([f"classification:{tmp_path}"])
    write_jsonl(tmp_path / "train.jsonl", labelled("ab", "xy"))
    write_jsonl(tmp_path / "test.jsonl", labelled("ab", ["x", "yy"]))
    with pytest.raises(
        ValueError, match="test.jsonl:2: no training text has the label"
    ):
        open_tasks([f"classification:{tmp_path}"])
    (tmp_path / "task.json").write_text('{"experiments": 0}')
    with pytest.raises(ValueError, match="experiments=0 must be at least 1"):
        open_tasks([f"classification:{tmp_path}"])


def test_two_tasks_of_one_name_are_refused(tmp_path):
    place = write_beir(tmp_path / "f", {"d": ("", "a")}, {"q": "b"}, [("q", "d", 1)])
    with pytest.raises(ValueError, match="are both called 'f'; leave one out"):
        open_tasks([f"retrieval:{place}", f"retrieval:{place}/"])
