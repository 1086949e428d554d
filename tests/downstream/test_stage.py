"""Training of every head: its loss, its batches however split, and whole runs."""

import dataclasses
import json
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
from compilation import environment
from flax import nnx
from paths import HELPERS
from task_files import (
    HEADS,
    config,
    examples,
    read_task,
    task_stage,
    tokenizer,
    write_model,
)

from nomic_jax.batch import ABSENT
from nomic_jax.checkpoints.model_folder import load_model, parameters
from nomic_jax.config import EmbeddingConfig
from nomic_jax.data.packing import pack_texts
from nomic_jax.data.tokenizer import TextTokenizer
from nomic_jax.distributed.mesh import MeshConfig
from nomic_jax.downstream.batches import TaskBatches, packed, padded
from nomic_jax.downstream.config import HeadConfig
from nomic_jax.downstream.examples import labels_of, read_examples
from nomic_jax.downstream.heads import TaskEncoding
from nomic_jax.downstream.losses import task_objective
from nomic_jax.downstream.metrics import evaluate_task
from nomic_jax.downstream.stage import TaskStart, config_with_head, with_head
from nomic_jax.inference.embedder import Embedder
from nomic_jax.model.heads import EncoderWithHead, make_model
from nomic_jax.pipeline import train_encoder
from nomic_jax.pipeline.report import Figures, PipelineState
from nomic_jax.pipeline.runner import run
from nomic_jax.pipeline.train_head import check_examples
from nomic_jax.training.contrastive import ContrastiveStage, PairData
from nomic_jax.training.flops import flops_per_token
from nomic_jax.training.losses.contrastive import ContrastiveLoss
from nomic_jax.training.metrics import read_metrics
from nomic_jax.training.optimizer import named_arrays
from nomic_jax.training.placement import MemoryConfig, Placement
from nomic_jax.training.run_folder import RunFolder
from nomic_jax.training.start import StartConfig

SWEEP = pytest.mark.sweep


@pytest.fixture(scope="module")
def bert(tmp_path_factory):
    return write_model(tmp_path_factory.mktemp("models") / "bert")


def model_and_batches(task, folder, size, **changes):
    """A tiny model with the task's head, and batches of as many examples as asked."""
    head = HEADS[task]
    data, found = read_task(folder, task)
    labels = labels_of(found, head)
    made = config_with_head(config(**changes), head, labels)
    encoding = TaskEncoding(head, data, tokenizer(), True, labels)
    batches = TaskBatches(
        "task",
        encoding.rows(found),
        batch_size=size,
        seed=0,
        pad_id=0,
        max_length=16,
        masking=encoding.masking,
    )
    model = jax.jit(lambda: make_model(made, rngs=nnx.Rngs(0)))()
    return model, batches


def model_and_batch(task, folder, size=6, **changes):
    model, batches = model_and_batches(task, folder, size, **changes)
    return model, batches(0).arrays


@pytest.mark.slow
@pytest.mark.parametrize(
    "task",
    [
        # Rows of several texts; rows with unequal numbers of masked tokens; the others
        # are the first one's sums over rows.
        *("choices", "pretraining"),
        *(pytest.param(each, marks=SWEEP) for each in ("classes", "tags", "answers")),
    ],
)
def test_microbatches_give_the_loss_and_gradient_of_the_whole_batch(tmp_path, task):
    # 7 examples in parts of 3: the last one is filled up by two.
    model, batch = model_and_batch(task, tmp_path, size=7, dropout=0.1)
    made = model.encoder.config
    found = []
    for most in (None, 3):
        objective = task_objective(made, Placement(None, most))
        step = jax.jit(jax.value_and_grad(objective, has_aux=True))
        (loss, _), gradient = step(model, batch, jax.random.key(1))
        found.append((loss, named_arrays(gradient)))
    (loss, whole), (other, parts) = found
    # Sums of float32 over rows in another order.
    np.testing.assert_allclose(other, loss, rtol=1e-6)
    assert_close(parts, whole)


PACKED = ("classes", "tags", "answers", "choices", "pretraining")  # each structure


@pytest.mark.slow
@pytest.mark.parametrize(
    "task",
    [*PACKED, *(pytest.param(t, marks=SWEEP) for t in HEADS if t not in PACKED)],
)
def test_packed_texts_give_the_loss_and_gradient_of_texts_in_rows_of_their_own(
    tmp_path, task
):
    model, batches = model_and_batches(
        task, tmp_path, 7, dropout=0.1, trained_positions=32
    )
    rows = batches.source.rows(batches.examples(2), 2)
    apart = padded(
        rows,
        length=32,  # the longest text has 16
        pad_id=0,
        masking=batches.masking,
        numbers=range(7),
        choices=batches.source.choices,
    )
    lengths = np.array([len(row) for row in rows.ids if len(row)])
    plan = pack_texts(lengths, row_length=32)
    assert plan.rows < 0.6 * len(lengths)
    together = packed(apart, [plan], rows=plan.rows, pad_id=0)
    objective = task_objective(model.encoder.config)
    step = jax.jit(jax.value_and_grad(objective, has_aux=True))
    found, expected = (
        step(model, batch, jax.random.key(1)) for batch in (together, apart)
    )
    # Sums of float32 over rows in another order.
    np.testing.assert_allclose(found[0][0], expected[0][0], rtol=1e-6)
    assert_close(named_arrays(found[1]), named_arrays(expected[1]))


def assert_close(found, expected):
    # Sums of float32 in another order; biases before a softmax have no gradient at all.
    largest = max(float(np.abs(array).max()) for array in expected.values())
    for name, array in expected.items():
        bound = 3e-5 * float(np.abs(array).max()) + 1e-6 * largest
        np.testing.assert_allclose(found[name], array, atol=bound, err_msg=name)


@pytest.mark.slow
def test_examples_that_do_not_count_change_nothing(tmp_path):
    model, batch = model_and_batch("pretraining", tmp_path, size=7)
    objective = jax.jit(task_objective(model.encoder.config))
    expected, _ = objective(model, batch, jax.random.key(0))
    # A last microbatch is filled up with zeros, which must not be a class 0.
    parts = task_objective(model.encoder.config, Placement(None, 3))
    found, _ = jax.jit(parts)(model, batch, jax.random.key(0))
    np.testing.assert_allclose(found, expected, rtol=1e-6)


@pytest.mark.slow
def test_eight_devices_give_the_loss_and_gradient_of_one(tmp_path):
    script = [sys.executable, str(HELPERS / "task_gradients.py"), str(tmp_path / "out")]
    subprocess.run(script, env=environment(devices=8), check=True)
    with np.load(tmp_path / "out.npz") as arrays:
        found = dict(arrays)
    for task in ("choices", "pretraining"):
        one, eight = (
            {
                name.removeprefix(prefix): array
                for name, array in found.items()
                if name.startswith(prefix)
            }
            for prefix in (f"{task}/one/", f"{task}/eight/")
        )
        assert len(one) > 10 and one.keys() == eight.keys()
        np.testing.assert_allclose(eight.pop("loss"), one.pop("loss"), rtol=1e-6)
        assert_close(eight, one)


STEPS = 30
# What a head is to reach on examples it was not trained on: all of them, where one word
# tells two kinds apart. Of sentences that do not follow half cannot be told, and words
# are drawn at random: there it is the loss that says what is learned.
REACHED = {
    "classes": ("accuracy", 1.0),
    "tags": ("f1", 1.0),
    "answers": ("exact_match", 0.9),
    "choices": ("accuracy", 0.9),
    "sentences": ("accuracy", 0.0),
    "pretraining": ("masked_accuracy", 0.0),
    "masks": ("masked_accuracy", 0.0),
}


@pytest.mark.slow
@pytest.mark.parametrize(
    "task",
    [
        # Heads that score a text, its spans, several texts, and masked tokens. Scores
        # of each token, as tags are, have spans too; the others are parts of these.
        *("classes", "answers", "choices", "pretraining"),
        *(pytest.param(each, marks=SWEEP) for each in ("tags", "sentences", "masks")),
    ],
)
def test_a_run_learns_its_task_and_leaves_the_head(tmp_path, bert, task):
    stage = task_stage(task, bert, tmp_path, steps=STEPS, rate=5e-3, batch_size=24)
    run([stage], tmp_path / "out")
    losses = [
        line["loss"] for line in read_metrics(tmp_path / f"out/{task}/metrics.jsonl")
    ]
    assert np.mean(losses[-5:]) < 0.85 * np.mean(losses[:2])
    (figures,) = json.loads(
        (tmp_path / f"out/{task}/evaluation.json").read_text()
    ).values()
    metric, least = REACHED[task]
    assert figures[metric] >= least, figures
    page = (tmp_path / "out" / "report.html").read_text()
    assert f"{metric} {figures[metric]:.4f}" in page
    model = load_model(tmp_path / "out" / "model")
    assert isinstance(model, EncoderWithHead)
    assert model.encoder.config.head == HEADS[task].kind
    # The exported model is the one that was measured.
    held_out = read_examples(stage.data.validation[0], stage.head, stage.data)
    loaded = TextTokenizer.from_folder(tmp_path / "out" / "model")
    assert evaluate_task(model, loaded, held_out, stage.data) == figures


@pytest.mark.slow
@pytest.mark.optimized
def test_an_interrupted_run_ends_with_the_uninterrupted_parameters(
    tmp_path, bert, monkeypatch
):
    stage = task_stage("classes", bert, tmp_path)
    train = dataclasses.replace(stage.train, save_every=2, evaluate_every=2)
    # So short that no two examples share a row: all steps are one compiled program.
    data = dataclasses.replace(stage.data, max_length=8)
    stage = dataclasses.replace(stage, train=train, data=data)
    run([stage], tmp_path / "whole")
    lines = read_metrics(tmp_path / "whole" / "classes" / "metrics.jsonl")
    assert "evaluation/classes_dev/accuracy" in lines[1]
    made = TaskBatches.__call__

    def interrupted(self, step):
        if step == 3:
            raise KeyboardInterrupt
        return made(self, step)

    monkeypatch.setattr(TaskBatches, "__call__", interrupted)
    with pytest.raises(KeyboardInterrupt):
        run([stage], tmp_path / "stopped")
    monkeypatch.undo()
    assert not (tmp_path / "stopped" / "model").exists()
    run([stage], tmp_path / "stopped")
    whole, stopped = (
        (tmp_path / out / "model" / "model.safetensors").read_bytes()
        for out in ("whole", "stopped")
    )
    assert whole == stopped
    # With other examples in the same place it does not go on.
    other = Path(stage.data.train)
    other.write_text(other.read_text().replace("fox", "dogs"))
    with pytest.raises(ValueError, match="trained on other examples: rows was"):
        run([stage], tmp_path / "stopped")


@pytest.mark.slow
def test_a_stage_starts_with_what_an_earlier_one_left(tmp_path, bert):
    first, second, third = (
        dataclasses.replace(task_stage(task, bert, tmp_path, steps=1), name=name)
        for task, name in (("classes", "one"), ("tags", "two"), ("classes", "three"))
    )
    second = dataclasses.replace(second, start=TaskStart())
    still = dataclasses.replace(third.optimizer, learning_rate=0.0)
    third = dataclasses.replace(third, start=TaskStart(stage="one"), optimizer=still)
    run([first, second, third], tmp_path / "out")
    one, two, three = (
        parameters(load_model(tmp_path / "out" / name / "model"))
        for name in ("one", "two", "three")
    )
    # The same labels, so with its classifier; and nothing is learned at rate 0.
    for name, array in one.items():
        np.testing.assert_array_equal(three[name], array)
    assert "pooler.kernel" not in two
    published = parameters(load_model(tmp_path / "out" / "model"))
    np.testing.assert_array_equal(published["pooler.kernel"], three["pooler.kernel"])


@pytest.mark.slow
def test_what_fits_of_a_loaded_head_is_kept_and_the_rest_drawn():
    had = config(head="pretraining", head_bias=True)
    loaded = make_model(had, rngs=nnx.Rngs(1))
    before = parameters(loaded)
    made = config_with_head(had, HEADS["classes"], ("blue", "red"))
    model, drawn = with_head(loaded, made, seed=3, remat="none")
    assert sorted(drawn) == ["classifier.bias", "classifier.kernel"]
    after = parameters(model)
    for name in after.keys() - drawn:
        np.testing.assert_array_equal(after[name], before[name])
    again, drawn = with_head(model, made, seed=4, remat="full")
    assert not drawn and again.encoder.remat == "full"
    others = config_with_head(had, HEADS["classes"], ("blue", "green"))
    _, drawn = with_head(model, others, seed=4, remat="none")
    assert sorted(drawn) == ["classifier.bias", "classifier.kernel"]
    anew, drawn = with_head(model, made, seed=4, remat="none", keep=False)
    assert set(drawn) == set(parameters(anew))
    other, _ = with_head(model, made, seed=4, remat="none", keep=False)
    for name, array in parameters(anew).items():
        np.testing.assert_array_equal(parameters(other)[name], array)


@pytest.mark.slow
def test_a_modern_bert_keeps_its_transform():
    from transformers_heads import MODERN

    had = dataclasses.replace(MODERN, head="mlm", head_bias=True)
    head = dataclasses.replace(HEADS["classes"], pooling="mean")
    made = config_with_head(had, head, ("no", "yes"))
    assert not made.head_bias and made.head_pooling == "mean"
    _, drawn = with_head(make_model(had, rngs=nnx.Rngs(0)), made, seed=0, remat="none")
    assert sorted(drawn) == ["classifier.bias", "classifier.kernel"]


def test_the_flops_of_a_step_are_those_of_its_tokens(tmp_path):
    model, batch = model_and_batch("masks", tmp_path)
    made = model.encoder.config
    lengths = (batch.places != ABSENT).sum(axis=1)
    d, f = made.width, made.mlp_width
    layers = (8 * d**2 + 4 * d * f) * lengths.sum() + 4 * d * (lengths**2).sum()
    head = 2 * d * (d + made.vocab_size) * batch.masked.weights.sum()
    expected = 3 * (layers + head) / lengths.sum()
    assert flops_per_token(made, batch) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"labels": ("blue", "green")}, "'red' is not a label; known: blue, green"),
        ({"kind": "next_sentence", "problem": None, "dropout": 0.0}, "'sentences'"),
    ],
)
def test_examples_that_do_not_fit_are_refused_before_anything_is_written(
    tmp_path, bert, change, message
):
    stage = task_stage("classes", bert, tmp_path)
    head = HeadConfig(**(dataclasses.asdict(stage.head) | change))
    with pytest.raises(ValueError, match=rf"classes_train\.jsonl:1: .*{message}"):
        run([dataclasses.replace(stage, head=head)], tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("task", "change", "message"),
    [
        ("classes", {"label": "pink"}, "'pink' is not a label; known: blue, red"),
        ("classes", {"sentence2": ...}, "lines before have one column 'sentence2'"),
        ("numbers", {"label": [1.0, 2.0]}, "2 numbers for the 1 labels score"),
    ],
)
def test_validation_that_differs_from_training_is_refused(
    tmp_path, bert, task, change, message
):
    stage = task_stage(task, bert, tmp_path)
    line = next(examples(task, 1)) | change
    line = {name: value for name, value in line.items() if value is not ...}
    Path(stage.data.validation[0]).write_text(json.dumps(line))
    with pytest.raises(ValueError, match=rf"dev\.jsonl:1: .*{message}"):
        run([stage], tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("task", "change", "message"),
    [
        ("classes", {"max_length": 17}, "max_length=17 tokens, .* up to 16"),
        ("answers", {"stride": 9}, "9 tokens for the context.*stride=9"),
        ("sentences", {}, "by token types, of which the model has 1"),
    ],
)
@pytest.mark.parametrize("later", [False, True])
def test_what_a_model_has_no_room_for_is_refused_before_anything_is_written(
    tmp_path, bert, task, change, message, later
):
    if task == "sentences":
        bert = write_model(tmp_path / "one_type", type_vocab_size=1)
    stage = task_stage(task, bert, tmp_path)
    bad = dataclasses.replace(stage, data=dataclasses.replace(stage.data, **change))
    stages = [bad]
    if later:  # a stage that starts with what the one before it left
        first = dataclasses.replace(task_stage("masks", bert, tmp_path), name="first")
        stages = [first, dataclasses.replace(bad, start=TaskStart(stage="first"))]
    with pytest.raises(ValueError, match=message):
        run(stages, tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(("warmup", "told"), [(3, ""), (4, "warmup_steps=4 of train")])
def test_a_warmup_that_fills_the_training_is_told(tmp_path, bert, capsys, warmup, told):
    stage = task_stage("classes", bert, tmp_path, steps=4)
    optimizer = dataclasses.replace(stage.optimizer, warmup_steps=warmup)
    check_examples([dataclasses.replace(stage, optimizer=optimizer)])
    said = capsys.readouterr().err
    assert told in said and bool(said) == bool(told)


def test_a_task_of_a_model_without_experts_splits_none(tmp_path, bert):
    stage = task_stage("classes", bert, tmp_path)
    stage = dataclasses.replace(stage, mesh=MeshConfig(data=1, expert=2))
    with pytest.raises(ValueError, match="classes: .*are of models with experts"):
        run([stage], tmp_path / "out")


def test_figures_of_heads_outlive_a_stage_that_starts_anew(tmp_path, monkeypatch):
    embedding = EmbeddingConfig(pooling="mean", layer_norm=False, max_length=16)
    encoder = make_model(config(), rngs=nnx.Rngs(0))
    embedder = Embedder(encoder, tokenizer(), embedding)
    monkeypatch.setattr(train_encoder, "loaded", lambda model: embedder)
    task = task_stage("classes", "a", tmp_path)
    stage = ContrastiveStage(
        name="pairs",
        start=StartConfig(model="a"),
        data=PairData(stores="pairs", query_length=8, document_length=8),
        loss=ContrastiveLoss(temperature=0.1),
        optimizer=task.optimizer,
        train=task.train,
    )
    figures = (Figures("one", {"dev": {"accuracy": 1.0}}),)
    carried = PipelineState(tokenizer(), held_out=(), figures=figures)
    folder = RunFolder.open(tmp_path / "pairs", {})
    found = train_encoder.from_model(stage, carried, folder, str(tmp_path))
    assert found.figures == figures and found.model is encoder


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: {"start": TaskStart(model="a", stage="b")}, "name two models"),
        (lambda s: {"start": TaskStart(weights=False)}, "needs start.model"),
        (lambda s: {"data": dataclasses.replace(s.data, train="")}, "names no file"),
        (lambda s: {"memory": MemoryConfig(budget=2.0)}, "memory.budget=2.0 is of MLM"),
        (
            lambda s: {
                "data": dataclasses.replace(s.data, validation=()),
                "train": dataclasses.replace(s.train, evaluate_every=1),
            },
            "evaluate_every=1 needs data.validation",
        ),
        (
            lambda s: {
                "train": dataclasses.replace(
                    s.train, evaluate_every=1, tasks=("sts:a.jsonl",)
                )
            },
            "measure embeddings",
        ),
        (
            lambda s: {
                "data": dataclasses.replace(
                    s.data, validation=("a/dev.jsonl", "b/dev.jsonl.gz")
                )
            },
            "two files of data.validation are named dev",
        ),
    ],
)
def test_a_stage_that_cannot_be_is_refused_when_it_is_made(tmp_path, change, message):
    stage = task_stage("classes", "a", tmp_path)
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(stage, **change(stage))
