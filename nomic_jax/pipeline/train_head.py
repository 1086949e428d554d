"""A task stage within a run: its examples, the model it begins with, its figures.

The first host measures, on its own devices; the others wait and get the figures.
"""

import dataclasses
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, get_args

from nomic_jax.checkpoints.config_json import read_config_keys
from nomic_jax.checkpoints.families.spec import Family
from nomic_jax.checkpoints.hub import resolve
from nomic_jax.checkpoints.hub import resolve as resolve_model
from nomic_jax.checkpoints.model_folder import build
from nomic_jax.checkpoints.problems import read_folder_json
from nomic_jax.checkpoints.reader import FORMAT, read_checkpoint
from nomic_jax.checkpoints.sentence_transformers import (
    tokenizer_folder,
    transformer_folder,
)
from nomic_jax.config import ModelConfig, did_you_mean
from nomic_jax.data.sources.source import source_name
from nomic_jax.data.tokenizer import TextTokenizer
from nomic_jax.distributed import hosts
from nomic_jax.distributed.devices import (
    default_dtype,
    digest,
    replicate_on_local_devices,
)
from nomic_jax.downstream.examples import (
    Example,
    check_labels,
    check_seconds,
    labels_of,
    read_examples,
)
from nomic_jax.downstream.metrics import evaluate_task
from nomic_jax.downstream.questions import check_windows
from nomic_jax.downstream.stage import (
    TaskStage,
    check_model,
    config_with_head,
    task_encoding,
    train_task,
    with_head,
)
from nomic_jax.model.encoder import NomicBert
from nomic_jax.model.heads import EncoderWithHead
from nomic_jax.pipeline.evaluate import say
from nomic_jax.pipeline.order import Stage, StageKind, is_trained, untrained
from nomic_jax.pipeline.report import Figures, PipelineState, export, format_metrics
from nomic_jax.pipeline.train_encoder import tokenizer_of
from nomic_jax.storage import exists, join, read_here, read_json, write_json
from nomic_jax.training.contrastive import ContrastiveStage
from nomic_jax.training.mlm import MlmStage
from nomic_jax.training.run_folder import RunFolder

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


def misplaced(stage: TaskStage, earlier: Mapping[str, Stage]) -> Iterator[str]:
    """Say why a stage cannot follow the earlier ones."""
    if not is_trained(earlier) and not stage.start.model:
        yield untrained(stage, "start.model")
    tasks = [name for name, other in earlier.items() if isinstance(other, TaskStage)]
    if stage.start.stage and stage.start.stage not in tasks:
        hint = f": {did_you_mean(stage.start.stage, tasks)}" if tasks else ""
        yield (
            f"{stage.name} starts with start.stage={stage.start.stage!r}, which is "
            f"not a task stage before it{hint}"
        )


def begin_task(
    stage: TaskStage, carried: PipelineState | None, folder: RunFolder, out: str
) -> PipelineState:
    """Load the model that a stage names, with its head; else go on with what is there.

    Args:
        stage: the stage.
        carried: what the stage before left, if there is one.
        folder: of the stage.
        out: the run's folder, which holds the models of its task stages.

    Raises:
        ValueError: it is not a model, or hosts have different ones.
    """
    name, start = stage.start.model, stage.start.stage
    if not name and not start:
        assert carried is not None, "check_stages puts a training stage first"
        return carried

    def load():
        with read_here(resolve(name) if name else join(out, start, MODEL)) as folder:
            checkpoint = read_checkpoint(folder)
            model = replicate_on_local_devices(build(checkpoint, dtype=default_dtype()))
            tokenizer = TextTokenizer.from_folder(tokenizer_folder(folder))
            return model, tokenizer, checkpoint.embedding

    model, tokenizer, embedding = hosts.run_on_all_hosts(name or start, load)
    if hosts.count() > 1:
        hosts.assert_equal_across_hosts(
            f"weights of {name or start}", {"digest": digest(model)}
        )
    if carried is None:
        return PipelineState(tokenizer, held_out=(), model=model, embedding=embedding)
    return dataclasses.replace(
        carried, tokenizer=tokenizer, model=model, embedding=embedding
    )


def trained_task(
    stage: TaskStage, carried: PipelineState, folder: RunFolder, out: str
) -> PipelineState:
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
        names = ", ".join(few) if few == [*drawn] else "all weights"
        say(f"randomly initialised: {names}")
    trained = train_task(
        stage,
        model,
        encoding,
        train,
        folder,
        evaluate=_measure(stage, carried.tokenizer, validation),
    )
    trained = replicate_on_local_devices(trained)
    place = join(folder.place, EVALUATION)

    left = dataclasses.replace(carried, model=trained)

    def work() -> dict[str, dict[str, float]]:
        export(left, join(folder.place, MODEL))
        if validation and not exists(place):
            write_json(place, _figures(stage, trained, carried.tokenizer, validation))
        return read_json(place) if validation else {}

    found = hosts.broadcast_from_host0(f"after {stage.name}", work)
    for file, metrics in found.items():
        say(f"{stage.name}, {file}: {format_metrics(metrics)}")
    figures = (*carried.figures, Figures(stage.name, found))
    return dataclasses.replace(left, figures=figures)


TASK = StageKind("task", TaskStage, misplaced, trained_task, begin=begin_task)


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
        own = replicate_on_local_devices(model)
        found = hosts.broadcast_from_host0(
            "evaluation", lambda: _figures(stage, own, tokenizer, validation)
        )
        return {
            f"{file}/{metric}": value
            for file, metrics in found.items()
            for metric, value in metrics.items()
        }

    return measure


def check_models(stages: Sequence[Stage]) -> None:
    """Refuse task stages that ask for more than the models they start with have.

    Of a model that an earlier stage trains only its start is looked at, and of one that
    is drawn nothing: there training says what does not fit, when it comes to it.

    Raises:
        ValueError: rows are longer than a model's positions, windows would not move on,
            or a model has no token types to tell sentences by.
    """
    starts: dict[str, str] = {}  # of each stage the model that its own began as
    last = ""
    for stage in stages:
        if isinstance(stage, MlmStage):
            last = ""
        elif isinstance(stage, ContrastiveStage):
            last = stage.start.model or last
        elif isinstance(stage, TaskStage):
            start = stage.start
            last = start.model or (starts.get(start.stage, "") if start.stage else last)
            if last:
                _check_model(stage, last)
        starts[stage.name] = last


def _check_model(stage: TaskStage, model: str) -> None:
    data = stage.data
    sizes = _sizes(resolve_model(model, weights=False))
    check_model(stage.name, stage.head, data, **sizes)
    if stage.head.kind == "question_answering":
        check_windows(
            tokenizer_of(model),
            max_length=data.max_length,
            question_length=data.question_length,
            stride=data.stride,
        )


def _sizes(folder: Path) -> dict[str, Any]:
    """Read what `check_model` asks for from a config; its weights are not looked at."""
    if (folder / "modules.json").is_file():
        folder = transformer_folder(folder)
    values = read_folder_json(folder / "config.json")
    family = values.get("model_type", "nomic_bert")
    if values.get("format") == FORMAT:
        fields = dataclasses.asdict(ModelConfig.from_json(values.get("model", {})))
    elif family in get_args(Family):
        fields, _ = read_config_keys(values, family)
    else:
        fields = {}
    # What a config lacks is told with all else that is wrong when the model is read.
    found: dict[str, Any] = {
        name: fields[name] if isinstance(fields.get(name), int) else sys.maxsize
        for name in ("trained_positions", "type_vocab_size")
    }
    return found | {"stretched": fields.get("rope_scaling_factor") is not None}
