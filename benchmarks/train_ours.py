"""Steps of this project for `train.py`: what a stage compiles, one after another."""

import dataclasses
import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from nomic_jax import EmbeddingConfig, ModelConfig, Tokens
from nomic_jax.batch import MlmBatch, PackedTexts, PairBatch, TaskBatch
from nomic_jax.data import (
    Masking,
    PairBatches,
    Schedule,
    TextTokenizer,
    bucket,
    corrupt,
)
from nomic_jax.data.store import open_stores
from nomic_jax.distributed import MeshConfig, default_dtype
from nomic_jax.downstream import (
    HeadConfig,
    TaskBatches,
    TaskData,
    TaskEncoding,
    config_with_head,
    labels_of,
    padded,
    read_examples,
    task_objective,
)
from nomic_jax.model import (
    EncoderWithHead,
    MaskedLanguageModel,
    NomicBert,
    TextClassifier,
    embed,
)
from nomic_jax.training import (
    BiEncoder,
    ContrastiveLoss,
    ExpertsConfig,
    MemoryConfig,
    OptimizerConfig,
    Placement,
    TrainState,
    contrastive_loss,
    contrastive_objective,
    make_optimizer,
    make_update,
    mlm_objective,
)

LOSS = ContrastiveLoss(temperature=0.05)
EMBEDDING = EmbeddingConfig(pooling="mean", layer_norm=False, max_length=2048)
OPTIMIZER = make_optimizer(
    OptimizerConfig(
        learning_rate=1e-4, weight_decay=0.01, warmup_steps=0, schedule="linear"
    ),
    1_000_000,  # steps of the schedule; far fewer are taken
)
HEAD = HeadConfig(kind="sequence_classification", problem="one_label", dropout=0.1)
SPECIAL = (0, 101, 102, 103)  # padding, and what is never masked


def nomic_bert(layers: int, width: int, **fields: Any) -> ModelConfig:
    """The published architecture at another size."""
    return ModelConfig(
        num_layers=layers,
        width=width,
        num_heads=width // 64,
        mlp_width=4 * width,
        trained_positions=2048,
        vocab_size=30528,
        type_vocab_size=2,
        layer_norm_epsilon=1e-12,
        rope_base=1000.0,
        **fields,
    )


def masked_rows(rows: int, length: int) -> MlmBatch:
    """Random ids, corrupted as a stage corrupts text."""
    ids = np.random.default_rng(0).integers(1000, 30000, (rows, length), np.int32)
    masking = Masking(
        rate=0.3, mask_id=103, vocab_size=30522, special_ids=SPECIAL, seed=0
    )
    return corrupt(ids, masking, step=0, row_numbers=range(rows))


def equal_pairs(pairs: int, length: int) -> PairBatch:
    """Random ids, a text of the same length in every row, queries first."""
    shape = (2 * pairs, length)
    ids = np.random.default_rng(0).integers(1000, 30000, shape, np.int32)
    lengths, numbers = np.full((2 * pairs, 1), length, np.int32), np.arange(2 * pairs)
    numbers = numbers.astype(np.int32)
    return PairBatch(
        texts=PackedTexts(Tokens(ids, np.ones_like(ids)), lengths),
        slots=numbers[None],
        query_places=numbers[:pairs],
        document_places=numbers[pairs:],
        document_ids=np.stack([numbers, numbers], axis=-1)[None],
    )


def real_pairs(folder: Path, *, pairs: int, length: int) -> PairBatches:
    """The packed batches of the pairs that a folder's stores hold."""
    stores = open_stores(str(folder / "pairs"))
    schedule = Schedule.over(
        {name: len(store) for name, store in stores.items()}, batch_size=pairs, seed=0
    )
    return PairBatches(
        stores,
        schedule,
        query_length=length,
        document_length=length,
        pad_id=0,
        seed=0,
    )


def labelled(file: str, tokenizer: Path) -> TaskBatches:
    """The batches of 16 that `nomic-jax glue` takes from a file of its own."""
    data = TaskData(max_length=128)
    examples = read_examples(file, HEAD, data)
    encoding = TaskEncoding(
        HEAD,
        data,
        TextTokenizer.from_folder(tokenizer),
        types=True,
        labels=labels_of(examples, HEAD),
    )
    return TaskBatches(
        "bench",
        encoding.rows(examples),
        batch_size=16,
        seed=0,
        pad_id=0,
        max_length=data.max_length,
    )


def rows_apart(batches: TaskBatches, step: int) -> TaskBatch:
    """A step's examples in rows of their own, as long as the longest of them needs."""
    rows = batches.source.rows(batches.examples(step), step)
    length = min(bucket(max(map(len, rows.ids))), batches.max_length)
    return padded(rows, length=length, pad_id=batches.pad_id)


def sides_apart(batch: PairBatch) -> tuple[Tokens, Tokens]:
    """A batch's queries and documents, a text a row, each side to its longest."""
    tokens, lengths = batch.texts.tokens, np.asarray(batch.texts.slot_lengths)
    begins = np.cumsum(lengths, axis=1) - lengths
    room = lengths.shape[1]

    def side(places: np.ndarray) -> Tokens:
        slots = np.asarray(batch.slots).reshape(-1)[places]
        rows, begin = slots // room, begins.reshape(-1)[slots]
        count = lengths.reshape(-1)[slots]
        ids = np.zeros((len(slots), int(count.max())), np.int32)
        for i, (row, start, size) in enumerate(zip(rows, begin, count, strict=True)):
            ids[i, :size] = np.asarray(tokens.ids)[row, start : start + size]
        there = np.arange(ids.shape[1]) < count[:, None]
        return Tokens(ids, there.astype(np.int32))

    return side(batch.query_places), side(batch.document_places)


def padded_objective(model: BiEncoder, sides: tuple[Tokens, Tokens], key: Any):
    """The same loss of texts in rows of their own, which no stage trains on."""
    unroll = jax.default_backend() == "cpu"
    query, document = (
        embed(
            model.encoder.encode(tokens, unroll=unroll).hidden,
            jnp.asarray(tokens.mask),
            EMBEDDING,
        )
        for tokens in sides
    )
    return contrastive_loss(query, document, LOSS)


@dataclasses.dataclass
class Ours:
    """Steps one after another; each is waited for."""

    update: Any  # compiled
    state: TrainState
    batch: Any  # on the device

    def __call__(self, batch: Any = None) -> None:
        """Take a step, on its own batch or on another one."""
        given = self.batch if batch is None else batch
        self.state, metrics = self.update(self.state, given)
        jax.block_until_ready((self.state, metrics))

    def memory(self) -> float:
        """GiB that the compiled step needs, its state and batch among them."""
        stated = self.update.lower(self.state, self.batch).compile().memory_analysis()
        needed = stated.argument_size_in_bytes + stated.temp_size_in_bytes
        needed += stated.output_size_in_bytes - stated.alias_size_in_bytes
        return needed / 2**30


def placement(rows: int | None, length: int, remat: str = "none") -> Placement:
    """Where a stage of one device would train."""
    return Placement.of(
        MeshConfig(),
        MemoryConfig(tokens_at_once=rows and rows * length, remat=remat),
        batch_size=1,
        row_length=length,
        devices=jax.devices()[:1],
    )


def _step(config: ModelConfig, kind: Callable, objective: Any, batch: Any) -> Ours:
    dtype = jnp.dtype(default_dtype())
    model = jax.jit(lambda: kind(config, rngs=nnx.Rngs(0), dtype=dtype))()
    model = model if isinstance(model, EncoderWithHead) else BiEncoder(model, None)
    update = make_update(jax.value_and_grad(objective, has_aux=True), OPTIMIZER, seed=0)
    state = TrainState.fresh(model, OPTIMIZER)
    return Ours(update, state, jax.device_put(batch))


def mlm_step(config: ModelConfig, batch: MlmBatch, rows: int | None) -> Ours:
    """A masked language model's step that takes so many rows at once."""
    where = placement(rows, batch.tokens.ids.shape[1])
    return _step(config, MaskedLanguageModel, mlm_objective(where), batch)


def label_step(config: ModelConfig, batch: TaskBatch) -> Ours:
    """A step of a classifier of two classes."""
    config = config_with_head(config, HEAD, ("no", "yes"))
    objective = task_objective(config, placement(None, batch.tokens.ids.shape[1]))
    return _step(config, TextClassifier, objective, batch)


def pair_step(
    config: ModelConfig, batch: PairBatch, rows: int | None, remat: str = "none"
) -> Ours:
    """A contrastive step."""
    where = placement(rows, batch.texts.tokens.ids.shape[1])
    experts = ExpertsConfig(balance_coefficient=0.01) if config.num_experts else None
    objective = contrastive_objective(EMBEDDING, LOSS, where, experts=experts)
    kind = functools.partial(NomicBert, remat=remat)
    return _step(config, kind, objective, batch)


def padded_step(config: ModelConfig, sides: tuple[Tokens, Tokens]) -> Ours:
    """A contrastive step of texts in rows of their own."""
    return _step(config, NomicBert, padded_objective, sides)
