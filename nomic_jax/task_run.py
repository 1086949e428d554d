"""A task stage within a run: its examples, the model it begins with, its figures.

The first host measures, on its own devices; the others wait and get the figures.
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from nomic_jax import hosts
from nomic_jax.backend import default_dtype
from nomic_jax.checkpoints.folder import build
from nomic_jax.checkpoints.hub import resolve
from nomic_jax.checkpoints.reader import read_checkpoint
from nomic_jax.checkpoints.sentence_transformers_folder import tokenizer_folder
from nomic_jax.data.task_examples import (
    Example,
    check_labels,
    check_seconds,
    labels_of,
)
from nomic_jax.data.task_lines import read_examples
from nomic_jax.evaluation.tasks import evaluate_task
from nomic_jax.folder_copy import read_here
from nomic_jax.held_out import say
from nomic_jax.model.encoder import NomicBert
from nomic_jax.model.heads import EncoderWithHead
from nomic_jax.own_devices import digest, on_own_devices
from nomic_jax.results import Carried, Figures, export, told
from nomic_jax.sources.source import source_name
from nomic_jax.storage import exists, join, read_json, write_json
from nomic_jax.tokenizer import TextTokenizer
from nomic_jax.training.run_folder import RunFolder
from nomic_jax.training.task import TaskStage, task_encoding, train_task
from nomic_jax.training.task_model import config_with_head, with_head

EVALUATION = "evaluation.json"  # a stage's figures, by file and metric
MODEL = "model"  # the folder of the model that a stage leaves


def check_examples(stages: Sequence[object]) -> None:
    """Refuse files that cannot be read as a stage needs them, before anything is made.

    Raises:
        ValueError: with file, line and field.
    """
    for stage in stages:
        if isinstance(stage, TaskStage):
            _examples(stage)
            warmup, steps = stage.optimizer.warmup_steps, stage.train.steps
            if warmup >= steps:
                say(
                    f"{stage.name}: optimizer.warmup_steps={warmup} of train.steps="
                    f"{steps}: the learning rate does not reach its peak"
                )


def begin_task(stage: TaskStage, carried: Carried | None, out: str) -> Carried:
    """Load the model that a stage names, with its head; else go on with what is there.

    Args:
        stage: the stage.
        carried: what the stage before left, if there is one.
        out: the run's folder, which holds the models of its task stages.

    Raises:
        ValueError: it is no model, or hosts have different ones.
    """
    name, start = stage.start.model, stage.start.stage
    if not name and not start:
        assert carried is not None, "check_stages puts a training stage first"
        return carried

    def load():
        with read_here(resolve(name) if name else join(out, start, MODEL)) as folder:
            checkpoint = read_checkpoint(folder)
            model = on_own_devices(build(checkpoint, dtype=default_dtype()))
            tokenizer = TextTokenizer.from_folder(tokenizer_folder(folder))
            return model, tokenizer, checkpoint.embedding

    model, tokenizer, embedding = hosts.together(name or start, load)
    if hosts.count() > 1:
        hosts.agree(f"weights of {name or start}", {"digest": digest(model)})
    if carried is None:
        return Carried(tokenizer, held_out=(), model=model, embedding=embedding)
    return dataclasses.replace(
        carried, tokenizer=tokenizer, model=model, embedding=embedding
    )


def trained_task(stage: TaskStage, carried: Carried, folder: RunFolder) -> Carried:
    """Train a stage's model, and measure it on the files of its validation.

    Raises:
        ValueError: an example or the model does not fit the stage.
    """
    assert carried.model is not None
    train, validation = _examples(stage)
    labels = labels_of(train, stage.head)
    loaded = carried.model
    encoder = loaded if isinstance(loaded, NomicBert) else loaded.encoder
    encoding = task_encoding(stage, encoder.config, carried.tokenizer, labels)
    model, drawn = with_head(
        loaded,
        config_with_head(encoder.config, stage.head, labels),
        seed=stage.train.seed,
        remat=stage.memory.remat,
        keep=stage.start.weights,
    )
    few = [name for name in drawn if not name.startswith("encoder.")]
    if drawn:
        say(f"drawn anew: {', '.join(few) if few == [*drawn] else 'all weights'}")
    trained = train_task(
        stage,
        model,
        encoding,
        train,
        folder,
        evaluate=_measure(stage, carried.tokenizer, validation),
    )
    trained = on_own_devices(trained)
    place = join(folder.place, EVALUATION)

    left = dataclasses.replace(carried, model=trained)

    def work() -> dict[str, dict[str, float]]:
        export(left, join(folder.place, MODEL))
        if validation and not exists(place):
            write_json(place, _figures(stage, trained, carried.tokenizer, validation))
        return read_json(place) if validation else {}

    found = hosts.from_first(f"after {stage.name}", work)
    for file, metrics in found.items():
        say(f"{stage.name}, {file}: {told(metrics)}")
    figures = (*carried.figures, Figures(stage.name, found))
    return dataclasses.replace(left, figures=figures)


def _examples(stage: TaskStage) -> tuple[list[Example], dict[str, list[Example]]]:
    """Read the files of a stage: what it trains on, and what it is measured on.

    Raises:
        ValueError: with file, line and field.
    """
    data = stage.data
    train = read_examples(data.train, stage.head, data)
    labels = labels_of(train, stage.head)
    validation = {
        source_name(file): read_examples(file, stage.head, data)
        for file in data.validation
    }
    check_seconds([train, *validation.values()])
    for examples in (train, *validation.values()):
        check_labels(examples, stage.head, labels)
    return train, validation


def _figures(
    stage: TaskStage,
    model: EncoderWithHead,
    tokenizer: TextTokenizer,
    validation: Mapping[str, Sequence[Any]],
) -> dict[str, dict[str, float]]:
    return {
        name: evaluate_task(model, tokenizer, examples, stage.data)
        for name, examples in validation.items()
    }


def _measure(
    stage: TaskStage,
    tokenizer: TextTokenizer,
    validation: Mapping[str, Sequence[Any]],
) -> Callable[[EncoderWithHead], dict[str, float]] | None:
    """Make what measures a model while it trains: `FILE/METRIC` to figure."""
    if not validation:
        return None

    def measure(model: EncoderWithHead) -> dict[str, float]:
        own = on_own_devices(model)
        found = hosts.from_first(
            "evaluation", lambda: _figures(stage, own, tokenizer, validation)
        )
        return {
            f"{file}/{metric}": value
            for file, metrics in found.items()
            for metric, value in metrics.items()
        }

    return measure
