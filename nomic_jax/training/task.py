"""The task stage: an encoder with any head learns from examples in JSON Lines files.

Fine-tuning as of Devlin et al. 2018 (arXiv:1810.04805, section 4): all parameters are
trained, on rows of one text or of two.
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from jax.sharding import Mesh

from nomic_jax import hosts
from nomic_jax.config import ModelConfig
from nomic_jax.data.packing import texts_per_row
from nomic_jax.data.task_batches import TaskBatches
from nomic_jax.data.task_config import HeadConfig, TaskData
from nomic_jax.data.task_examples import Example
from nomic_jax.data.task_sets import TaskEncoding
from nomic_jax.fields import differing_fields
from nomic_jax.model.heads import EncoderWithHead
from nomic_jax.sharding import MeshConfig, host_share, put_batch, row_parts
from nomic_jax.sources.source import source_name
from nomic_jax.storage import exists, join, read_json, write_json
from nomic_jax.tokenizer import TextTokenizer
from nomic_jax.training.compute import ComputeConfig
from nomic_jax.training.experts import ExpertsConfig, check_experts
from nomic_jax.training.flops import flops_per_token
from nomic_jax.training.loop import LoopConfig, train
from nomic_jax.training.optimizer import (
    OptimizerConfig,
    learning_rate,
    make_optimizer,
)
from nomic_jax.training.placement import MemoryConfig, Placement, place_state
from nomic_jax.training.run_folder import RunFolder
from nomic_jax.training.steps import TrainState, make_update
from nomic_jax.training.task_model import check_model
from nomic_jax.training.task_objective import task_objective

DATA_FILE = "data.json"  # what a stage began with


@dataclasses.dataclass(frozen=True, kw_only=True)
class TaskStart:
    """The model that training starts with."""

    model: str = ""  # folder or hub id; empty: what the stage before left
    stage: str = ""  # an earlier task stage, to start with what that one left
    weights: bool = True  # its own; False: its size and tokenizer alone, drawn anew


@dataclasses.dataclass(frozen=True, kw_only=True)
class TaskStage:
    """Training of an encoder and a head on examples of a task."""

    name: str
    head: HeadConfig
    data: TaskData
    optimizer: OptimizerConfig
    train: LoopConfig
    start: TaskStart = TaskStart()
    mesh: MeshConfig = MeshConfig()
    memory: MemoryConfig = MemoryConfig()
    compute: ComputeConfig = ComputeConfig()

    def __post_init__(self) -> None:
        """Refuse training on nothing, and evaluations of nothing.

        Raises:
            ValueError: with what to set.
        """
        if not self.data.train:
            raise ValueError(f"{self.name}: data.train='' names no file of examples")
        if self.memory.budget is not None:
            raise ValueError(
                f"{self.name}: memory.budget={self.memory.budget} is of MLM and "
                "contrastive stages; set memory.tokens_at_once and memory.remat"
            )
        if self.train.tasks:
            raise ValueError(
                f"{self.name}: train.tasks={self.train.tasks} measure embeddings; of a "
                "head, data.validation names the files to measure"
            )
        if self.train.evaluate_every and not self.data.validation:
            raise ValueError(
                f"{self.name}: evaluate_every={self.train.evaluate_every} needs "
                "data.validation"
            )
        names = [source_name(file) for file in self.data.validation]
        if twice := {name for name in names if names.count(name) > 1}:
            raise ValueError(
                f"{self.name}: two files of data.validation are named "
                f"{', '.join(sorted(twice))}; metrics are told apart by that name"
            )
        if self.start.model and self.start.stage:
            raise ValueError(
                f"{self.name}: start.model={self.start.model!r} and start.stage="
                f"{self.start.stage!r} name two models; give one"
            )
        if not self.start.weights and not self.start.model:
            raise ValueError(
                f"{self.name}: start.weights=False needs start.model, whose size and "
                "tokenizer are taken"
            )


def task_encoding(
    stage: TaskStage,
    config: ModelConfig,
    tokenizer: TextTokenizer,
    labels: tuple[str, ...],
) -> TaskEncoding:
    """Return what makes rows of a stage's examples.

    Args:
        stage: the whole recipe.
        config: of the encoder.
        tokenizer: whose ids the model knows.
        labels: that the head knows.

    Raises:
        ValueError: the rows are longer than the model's positions, or it cannot tell
            two sentences.
    """
    check_model(
        stage.name,
        stage.head,
        stage.data,
        trained_positions=config.trained_positions,
        type_vocab_size=config.type_vocab_size,
        stretched=config.rope_scaling_factor is not None,
    )
    if tokenizer.size > config.vocab_size:
        raise ValueError(
            f"the tokenizer has {tokenizer.size} tokens and the model's table "
            f"{config.vocab_size} rows; they do not belong together"
        )
    types = config.type_vocab_size > 1
    return TaskEncoding(
        stage.head, stage.data, tokenizer, types, labels, stage.train.seed
    )


def task_batches(
    stage: TaskStage,
    encoding: TaskEncoding,
    examples: Sequence[Example],
    mesh: Mesh | None = None,
) -> TaskBatches:
    """Encode the stage's examples and plan this host's part of its batches.

    Raises:
        ValueError: an example does not fit; file, line and field are named.
    """
    host, of_hosts = host_share(mesh)
    return TaskBatches(
        source_name(stage.data.train),
        encoding.rows(examples),
        batch_size=stage.train.batch_size,
        seed=stage.train.seed,
        pad_id=encoding.tokenizer.role_id("pad"),
        max_length=stage.data.max_length,
        masking=encoding.masking,
        parts=row_parts(mesh),
        host=host,
        hosts=of_hosts,
    )


def train_task(
    stage: TaskStage,
    model: EncoderWithHead,
    encoding: TaskEncoding,
    examples: Sequence[Example],
    folder: RunFolder,
    *,
    evaluate: Callable[[EncoderWithHead], Mapping[str, float]] | None = None,
) -> EncoderWithHead:
    """Train a model on examples, from the folder's newest checkpoint if it has one.

    Args:
        stage: the whole recipe.
        model: where training starts; consumed.
        encoding: what makes rows of examples.
        examples: of `data.train`.
        folder: where metrics and checkpoints go.
        evaluate: measures the model, every `train.evaluate_every` steps.

    Raises:
        ValueError: an example does not fit, or the examples are not those the stage
            began with; the mesh does not fit the devices or the model, or splits
            experts where there are none.
    """
    settings, config = stage.train, model.encoder.config
    check_experts(stage.name, config, ExpertsConfig(), stage.mesh)
    batches = task_batches(stage, encoding, examples)
    placement = Placement.of(
        stage.mesh,
        stage.memory,
        batch_size=settings.batch_size,
        row_length=batches.row_length,
    )
    stage.compute.of(
        model.encoder,
        stage=stage.name,
        row_length=batches.row_length,
        texts=texts_per_row(batches.row_length),
        mesh=placement.mesh,
    )
    host, of_hosts = host_share(placement.mesh)
    batches = dataclasses.replace(
        batches, parts=row_parts(placement.mesh), host=host, hosts=of_hosts
    )
    pin_examples(folder, batches, encoding)
    optimizer = make_optimizer(stage.optimizer, settings.steps)
    state = train(
        stage.name,
        place_state(TrainState.fresh(model, optimizer), placement.mesh),
        make_update(
            task_objective(config, placement),
            optimizer,
            seed=settings.seed,
            mesh=placement.mesh,
        ),
        batches,
        settings,
        folder,
        learning_rate=learning_rate(stage.optimizer, settings.steps),
        place=lambda batch: put_batch(batch, placement.mesh),
        evaluate=evaluate and (lambda state: evaluate(state.model)),
        flops_per_token=lambda batch: flops_per_token(config, batch),
    )
    return state.model


def pin_examples(
    folder: RunFolder, batches: TaskBatches, encoding: TaskEncoding
) -> None:
    """Note what a stage trains on, or compare it with what was noted before.

    Raises:
        ValueError: examples, labels or tokenizer are others than those the stage began
            with, or hosts have different ones.
    """
    file = join(folder.place, DATA_FILE)
    facts: dict[str, Any] = {
        "examples": len(batches.source),
        "rows": batches.source.digest,
        "labels": list(encoding.labels),
        "tokenizer": encoding.tokenizer.digest,
    }
    hosts.agree(f"examples of {batches.name}", facts)
    if not exists(file):
        if folder.writes:
            write_json(file, facts)
    elif changed := differing_fields(read_json(file), facts):
        raise ValueError(
            f"{folder.place} was trained on other examples: {'; '.join(changed)}; give "
            "it the ones it began with, or begin in another --out"
        )
