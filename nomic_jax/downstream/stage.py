"""The task stage: an encoder with any head learns from labelled examples.

Fine-tuning as in Devlin et al. 2018 (arXiv:1810.04805, section 4): all parameters are
trained, on rows of one text or of two. The parameters of the loaded head that fit are
kept, the rest are randomly initialised: of BERT's pretraining the pooler is kept for
classification, of ModernBERT's the transform, as in their own fine-tuning. A classifier
is kept where its labels are the same.
"""

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
from flax import nnx
from jax.sharding import Mesh

from nomic_jax.checkpoints.model_folder import parameters
from nomic_jax.checkpoints.reader import headless
from nomic_jax.config import ModelConfig, differing_fields
from nomic_jax.data.packing import texts_per_row
from nomic_jax.data.sources.source import source_name
from nomic_jax.data.tokenizer import TextTokenizer
from nomic_jax.distributed import hosts
from nomic_jax.distributed.mesh import MeshConfig, host_share, row_parts
from nomic_jax.downstream.batches import TaskBatches
from nomic_jax.downstream.config import (
    CLASSIFIERS,
    MASKED,
    SENTENCES,
    HeadConfig,
    TaskData,
)
from nomic_jax.downstream.examples import Example
from nomic_jax.downstream.heads import TaskEncoding
from nomic_jax.downstream.losses import task_objective
from nomic_jax.model.encoder import NomicBert, Remat
from nomic_jax.model.heads import EncoderWithHead, Model, make_model
from nomic_jax.storage import exists, join, read_json, write_json
from nomic_jax.training.experts import ExpertsConfig, check_experts
from nomic_jax.training.flops import flops_per_token
from nomic_jax.training.loop import LoopConfig, train_stage
from nomic_jax.training.optimizer import (
    OptimizerConfig,
    like_named,
    named_arrays,
)
from nomic_jax.training.placement import (
    ComputeConfig,
    MemoryConfig,
    Placement,
)
from nomic_jax.training.run_folder import RunFolder


def check_model(
    stage: str,
    head: HeadConfig,
    data: TaskData,
    *,
    trained_positions: int,
    type_vocab_size: int,
    stretched: bool = False,
) -> None:
    """Refuse a model whose positions or token types are too few for a stage.

    Args:
        stage: its name, for errors.
        head: that it trains.
        data: lengths of its rows.
        trained_positions: of the model.
        type_vocab_size: of the model.
        stretched: whether it takes longer rows by scaling its rotary positions.

    Raises:
        ValueError: with the numbers.
    """
    if data.max_length > trained_positions and not stretched:
        raise ValueError(
            f"{stage} has rows of max_length={data.max_length} tokens, the model was "
            f"trained on up to {trained_positions}"
        )
    if head.kind in SENTENCES and type_vocab_size < 2:
        raise ValueError(
            f"{stage}: head.kind={head.kind!r} tells two sentences by token types, of "
            f"which the model has {type_vocab_size}"
        )


def config_with_head(
    config: ModelConfig, head: HeadConfig, labels: tuple[str, ...]
) -> ModelConfig:
    """Return an encoder's config with a head in place of its own.

    The MLM head's biases are those of the family's published models.

    Args:
        config: of the encoder, with a head or without one.
        head: what to put on it.
        labels: that the head tells apart.

    Raises:
        ValueError: the encoder cannot have such a head.
    """
    bare = headless(config)
    return dataclasses.replace(
        bare,
        head=head.kind,
        head_bias=head.kind in MASKED and (bare.bias or bare.pre_norm),
        labels=labels,
        problem=head.problem,
        head_pooling=head.pooling,
        head_dropout=head.dropout if head.kind in CLASSIFIERS else 0.0,
    )


def with_head(
    loaded: Model, config: ModelConfig, *, seed: int, remat: Remat, keep: bool = True
) -> tuple[EncoderWithHead, tuple[str, ...]]:
    """Give a model the head that a config names.

    Args:
        loaded: with another head, with none, or with the same; its arrays go on living
            in the result.
        config: of the same encoder with the head.
        seed: of what is drawn.
        remat: what a layer keeps for its backward pass.
        keep: whether the loaded weights are used; else all is drawn.

    Returns:
        The model, and the names of the parameters that were drawn.
    """
    encoder = loaded if isinstance(loaded, NomicBert) else loaded.encoder
    had = encoder.config

    @jax.jit
    def draw() -> Model:
        rngs = nnx.Rngs(seed)
        return make_model(config, rngs=rngs, dtype=encoder.dtype, remat=remat)

    fresh = draw()
    assert isinstance(fresh, EncoderWithHead)
    arrays: Mapping[str, jax.Array] = named_arrays(fresh)
    known = parameters(loaded) if keep else {}
    same = (had.head, had.labels, had.problem) == (
        *(config.head, config.labels, config.problem),
    )
    kept = {
        name: known[name]
        for name, array in arrays.items()
        if name in known
        and known[name].shape == array.shape
        and (same or not name.startswith("classifier."))
    }
    assert not keep or all(name in kept for name in arrays if _of_encoder(name))
    drawn = tuple(name for name in arrays if name not in kept)
    return like_named(fresh, {**arrays, **kept}), drawn


def _of_encoder(name: str) -> bool:
    return name.startswith("encoder.")


DATA_FILE = "data.json"  # what a stage began with


@dataclasses.dataclass(frozen=True, kw_only=True)
class TaskStart:
    """The model that training starts with."""

    model: str = ""  # folder or hub id; empty: what the stage before left
    stage: str = ""  # an earlier task stage, to start with what that one left
    weights: bool = (
        True  # its own; False: its size and tokenizer alone, randomly initialised
    )


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
    config = model.encoder.config
    check_experts(stage.name, config, ExpertsConfig(), stage.mesh)
    batches = task_batches(stage, encoding, examples)
    placement = Placement.of(
        stage.mesh,
        stage.memory,
        batch_size=stage.train.batch_size,
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
    return train_stage(
        stage,
        model,
        task_objective(config, placement),
        batches,
        placement,
        folder,
        evaluate=evaluate,
        flops_per_token=functools.partial(flops_per_token, config),
    )


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
    hosts.assert_equal_across_hosts(f"examples of {batches.name}", facts)
    if not exists(file):
        if folder.writes:
            write_json(file, facts)
    elif changed := differing_fields(read_json(file), facts):
        raise ValueError(
            f"{folder.place} was trained on other examples: {'; '.join(changed)}; give "
            "it the ones it began with, or begin in another --out"
        )
