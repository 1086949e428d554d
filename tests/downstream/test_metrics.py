"""Figures of tasks, and what heads predict, one text a row."""

import dataclasses

import jax
import numpy as np
import pytest
from flax import nnx
from task_files import HEADS, config, read_task, tokenizer

from nomic_jax.downstream.examples import QuestionExample, labels_of
from nomic_jax.downstream.metrics import (
    answer_metrics,
    class_metrics,
    correlations,
    evaluate_task,
    label_set_metrics,
    tag_metrics,
)
from nomic_jax.downstream.prediction import _answers, encoding_of, predict, row_scores
from nomic_jax.downstream.questions import Window
from nomic_jax.downstream.stage import config_with_head
from nomic_jax.model.heads import make_model


@pytest.mark.parametrize("classes", [2, 4])
@pytest.mark.parametrize("seed", [0, 1])
def test_class_metrics_are_those_of_scikit_learn(classes, seed):
    metrics = pytest.importorskip("sklearn.metrics")
    rng = np.random.default_rng(seed)
    gold = rng.integers(classes, size=60)
    predicted = np.where(rng.random(60) < 0.6, gold, rng.integers(classes, size=60))
    average = "binary" if classes == 2 else "macro"
    expected = {
        "accuracy": metrics.accuracy_score(gold, predicted),
        "f1": metrics.f1_score(gold, predicted, average=average),
        "matthews": metrics.matthews_corrcoef(gold, predicted),
    }
    assert class_metrics(predicted, gold, classes=classes) == pytest.approx(expected)


def test_a_class_that_is_not_there_does_not_lower_f1():
    metrics = pytest.importorskip("sklearn.metrics")
    gold, predicted = np.array([0, 1, 3, 3]), np.array([0, 3, 3, 3])
    expected = metrics.f1_score(gold, predicted, average="macro")
    found = class_metrics(predicted, gold, classes=5)  # 2 and 4 are absent
    assert found["f1"] == pytest.approx(expected)
    assert expected == pytest.approx((1 + 0 + 0.8) / 3)


def test_one_class_for_all_has_no_correlation():
    gold = np.array([0, 1, 1, 0])
    found = class_metrics(np.zeros(4, int), gold, classes=2)
    assert found == {"accuracy": 0.5, "f1": 0.0, "matthews": 0.0}


def test_correlations_are_those_of_scipy():
    stats = pytest.importorskip("scipy.stats")
    rng = np.random.default_rng(0)
    gold = rng.integers(6, size=40).astype(float)  # with ties
    predicted = gold + rng.normal(size=40).round(1)
    found = correlations(predicted[:, None], gold[:, None])
    expected = {
        "pearson": stats.pearsonr(predicted, gold).statistic,
        "spearman": stats.spearmanr(predicted, gold).statistic,
    }
    assert found == pytest.approx(expected)
    constant = correlations(np.ones((4, 1)), np.arange(4.0)[:, None])
    assert constant == {"pearson": 0.0, "spearman": 0.0}


def test_sets_of_labels_are_right_as_a_whole_or_in_part():
    gold = np.array([[1, 0, 1], [0, 0, 0], [1, 1, 0]], bool)
    predicted = np.array([[1, 0, 1], [0, 1, 0], [1, 0, 0]], bool)
    found = label_set_metrics(predicted, gold)
    # 3 of 4 that are said are right, 3 of 4 that are so are said; one row of three.
    assert found == pytest.approx(
        {"accuracy": 1 / 3, "precision": 0.75, "recall": 0.75, "f1": 0.75}
    )


@pytest.mark.parametrize(
    ("answer", "gold", "exact", "f1"),
    [
        ("The  Red fox.", ["red fox"], 1, 1),
        ("a fox", ["red fox", "fox"], 1, 1),
        ("old red fox", ["the red dog fox"], 0, 2 * 2 / (3 + 3)),
        ("", [], 1, 1),
        ("fox", [], 0, 0),
        ("", ["fox"], 0, 0),
        ("the", ["a"], 1, 1),  # nothing is left of either
        ("fox", ["the", "fox"], 1, 1),
        ("", ["the", "fox"], 0, 0),  # "the" is not a right answer next to one that is
        ("red red fox", ["red fox fox"], 0, 2 * 2 / 6),  # words count as often
    ],
)
def test_answers_count_as_in_squads_script(answer, gold, exact, f1):
    found = answer_metrics([answer], [gold])
    assert found == pytest.approx({"exact_match": exact, "f1": f1})


@pytest.mark.parametrize(
    ("gold", "predicted", "right", "said", "truly"),
    [
        ("O B-P I-P O", "O B-P I-P O", 1, 1, 1),
        ("O B-P I-P O", "O B-P O O", 0, 1, 1),  # the end is wrong
        ("B-P I-P", "B-P I-L", 0, 2, 1),  # another kind begins another one
        ("B-P B-P", "B-P I-P", 0, 1, 2),
        ("B-P I-P O", "I-P I-P O", 1, 1, 1),  # as conlleval begins them
        ("O O", "O B-P", 0, 1, 0),
        ("B-P O B-L", "B-P O B-L", 2, 2, 2),
    ],
)
def test_entities_count_as_in_conlleval(gold, predicted, right, said, truly):
    found = tag_metrics([predicted.split()], [gold.split()])
    assert found["precision"] == right / max(said, 1)
    assert found["recall"] == right / max(truly, 1)
    assert found["f1"] == 2 * right / max(said + truly, 1)


def test_words_without_a_right_tag_do_not_count():
    found = tag_metrics([["B-P", "B-L", "O"]], [["B-P", None, "O"]])
    assert found == {"accuracy": 1, "precision": 1, "recall": 1, "f1": 1}


def test_tags_that_name_no_entities_have_an_accuracy_alone():
    assert tag_metrics([["DET", "NOUN"]], [["DET", "VERB"]]) == {"accuracy": 0.5}


def scores(*pairs):
    rows = np.full((6, 2), -9.0, np.float32)
    for column, start, end in pairs:
        rows[column] = start, end
    return rows


def test_the_best_answer_is_found_over_all_windows():
    one = QuestionExample("f:1", "colour ?", "abc def ghi jkl")
    spans = np.array([(0, 3), (4, 7), (8, 11)], np.int32)
    windows = [Window(0, 2, spans), Window(0, 2, spans + 4)]
    first, second = scores((0, 1, 1), (3, 3, 0)), scores((0, 3, 3), (2, 0, 4))
    second[4, 1] = 4.5
    best = _answers([one], [first, second], windows, 30, False)
    assert best == ["def ghi jkl"]  # 0 + 4.5 beats 0 + 4 and 3 + 0
    assert _answers([one], [first, second], windows, 2, False) == ["def"]
    # The least of the windows' scores of no answer is 2, and then 6.
    assert _answers([one], [first, second], windows, 30, True) == ["def ghi jkl"]
    first[0] = 3, 3
    assert _answers([one], [first, second], windows, 30, True) == [""]
    # A token may begin with the space before its word.
    spaced = [Window(0, 2, np.array([(0, 3), (3, 7), (7, 11)], np.int32))]
    assert _answers([one], [scores((3, 2, 0), (4, 0, 2))], spaced, 30, False) == [
        "def ghi"
    ]
    # An end before its start is no answer, however good.
    backwards = scores((3, -1, 9), (4, 9, -1))
    assert _answers([one], [backwards], windows[:1], 30, False) == ["def"]


@pytest.fixture(scope="module")
def fresh(tmp_path_factory):
    """A model of a task that has learned nothing, its data and examples."""
    folder = tmp_path_factory.mktemp("examples")

    def make(task):
        data, examples = read_task(folder, task, 9)
        head = HEADS[task]
        made = config_with_head(config(), head, labels_of(examples, head))
        model = jax.jit(lambda: make_model(made, rngs=nnx.Rngs(0)))()
        return model, data, examples

    return make


@pytest.mark.slow
@pytest.mark.parametrize("task", ["classes", "tags", "choices"])
def test_rows_score_in_a_batch_as_they_do_alone(fresh, task):
    model, data, examples = fresh(task)
    encoding = encoding_of(model, tokenizer(), data)
    found = row_scores(model, tokenizer(), encoding.rows(examples), max_length=16)
    alone = row_scores(model, tokenizer(), encoding.rows(examples[4:5]), max_length=16)
    rows = len(found) // len(examples)
    for ours, expected in zip(found[4 * rows :], alone, strict=False):
        # Sums over 16 columns in another order, of scores below 1.
        np.testing.assert_allclose(ours, expected, atol=2e-6)


@pytest.mark.slow
@pytest.mark.parametrize("task", ["classes", "numbers", "sets", "tags", "answers"])
def test_predictions_do_not_look_at_the_labels(fresh, task):
    model, data, examples = fresh(task)
    found = predict(model, tokenizer(), examples, data)
    bare = {"names": (), "targets": (), "answers": (), "starts": ()}
    fields = {field.name for field in dataclasses.fields(examples[0])}
    unlabelled = [
        dataclasses.replace(e, **{n: v for n, v in bare.items() if n in fields})
        for e in examples
    ]
    assert predict(model, tokenizer(), unlabelled, data) == found
    if task == "tags":
        assert [len(tags) for tags in found] == [len(e.words) for e in examples]
    if task == "answers":
        pairs = zip(examples, found, strict=True)
        assert all(text in example.context for example, text in pairs)


@pytest.mark.slow
def test_what_a_masked_model_is_measured_on_stays_the_same(fresh):
    model, data, examples = fresh("pretraining")
    found = evaluate_task(model, tokenizer(), examples, data)
    assert found == evaluate_task(model, tokenizer(), examples, data)
    assert set(found) == {"masked_loss", "masked_accuracy", "accuracy"}
    # A model that knows nothing is about as good as an even guess over its table.
    assert found["masked_loss"] == pytest.approx(
        np.log(model.encoder.config.vocab_size), abs=1.5
    )
    with pytest.raises(ValueError, match="'pretraining' is measured, and predicts no"):
        predict(model, tokenizer(), examples, data)


def test_a_model_without_a_head_says_nothing():
    from nomic_jax.downstream.prediction import head_of

    with pytest.raises(ValueError, match="the model has no head"):
        head_of(config())
