"""The MLM stage: an encoder learns to predict masked tokens in packed text.

Nomic Embed, arXiv:2402.01613, section 3.3. The encoder is randomly initialised, or
starts as BERT or XLM-R with rotary embeddings in place of absolute positions.
"""

import dataclasses
import functools
from collections.abc import Callable, Mapping

import jax
import jax.numpy as jnp
from flax import nnx
from jax.sharding import Mesh
from jaxtyping import Array, Key

from nomic_jax.batch import MlmBatch
from nomic_jax.checkpoints.hub import resolve
from nomic_jax.checkpoints.model_folder import build
from nomic_jax.checkpoints.reader import read_checkpoint
from nomic_jax.checkpoints.sentence_transformers import tokenizer_folder
from nomic_jax.checkpoints.upcycling import nomic_config, nomic_start
from nomic_jax.config import ModelConfig, padded_vocabulary
from nomic_jax.data.mlm import Documents, Masking, MlmBatches, texts_per_row
from nomic_jax.data.schedule import Sampling, Schedule
from nomic_jax.data.store.store import Store
from nomic_jax.data.tokenizer import TextTokenizer
from nomic_jax.distributed.mesh import MeshConfig, host_share, over_data
from nomic_jax.model.encoder import NomicBert, Remat
from nomic_jax.model.heads import MaskedLanguageModel
from nomic_jax.training.dropout import row_numbers, token_keys
from nomic_jax.training.experts import (
    ExpertsConfig,
    balanced,
    check_experts,
    encode_counting,
)
from nomic_jax.training.flops import flops_per_token
from nomic_jax.training.loop import LoopConfig, train_stage
from nomic_jax.training.losses.mlm import masked_cross_entropy
from nomic_jax.training.microbatches import in_microbatches, summed_in_microbatches
from nomic_jax.training.optimizer import OptimizerConfig
from nomic_jax.training.placement import (
    ComputeConfig,
    MemoryConfig,
    Placement,
    parameter_names,
)
from nomic_jax.training.run_folder import RunFolder
from nomic_jax.training.start import StartConfig, config_with_experts, with_experts
from nomic_jax.training.steps import ONE_DEVICE, Objective


def mlm_objective(
    placement: Placement = ONE_DEVICE, *, experts: ExpertsConfig | None = None
) -> Objective:
    """Mean cross-entropy of the masked tokens; only they go through the head.

    The mean is over the masked tokens of the whole batch, whatever their number in each
    microbatch and on each device.

    Args:
        placement: the mesh, and the rows of a microbatch.
        experts: what is done about their load; None where the encoder has none.
    """

    def objective(model: MaskedLanguageModel, batch: MlmBatch, key: Key[Array, ""]):
        def sums(model, batch, numbers, key):
            def one(model, rows, key):
                batch, numbers, real = rows
                segments = jnp.asarray(batch.tokens.segment_ids)
                keys = token_keys(key, numbers, segments)
                hidden, routing = encode_counting(
                    *(model.encoder, batch.tokens, keys, real, experts),
                    unroll=placement.unroll,
                )
                table = model.encoder.word_embedding.embedding[...]
                summed, count = masked_cross_entropy(
                    *(model.head, table, hidden, batch), block=placement.masked_at_once
                )
                return summed, (count, routing)

            rows = batch, numbers, jnp.ones(len(numbers), bool)
            most = placement.most_rows
            if experts is None:
                found = summed_in_microbatches(one, model, rows, key, most=most)
                return jax.tree.map(lambda each: each[None], found)
            # How evenly experts are loaded is measured on the whole batch: not a sum.
            return in_microbatches(lambda rows: one(model, rows, key), rows, most=most)

        batch = jax.tree.map(jnp.asarray, batch)
        everywhere = over_data(
            sums,
            placement.mesh,
            names=parameter_names(model),
            splits=(True, True, False),
        )
        numbers = row_numbers(len(batch.tokens.ids))
        totals, (counts, routing) = everywhere(model, batch, numbers, key)
        value = totals.sum() / jnp.maximum(counts.sum(), 1)
        return balanced(value, {}, routing, experts)

    return objective


@dataclasses.dataclass(frozen=True, kw_only=True)
class ModelSize:
    """A NomicBERT, whose vocabulary is the tokenizer's: SwiGLU where it is fresh."""

    num_layers: int
    width: int  # of the residual stream
    num_heads: int
    mlp_width: int  # between the MLP's products
    trained_positions: int  # tokens of the longest row
    rope_base: float = 1000.0  # theta of the rotary positions
    dropout: float = 0.0

    def __post_init__(self) -> None:
        """Refuse sizes that fit no model, before any text is read.

        Raises:
            ValueError: with every problem found.
        """
        self.config(vocab_size=1, pad_token_id=0)

    def config(self, *, vocab_size: int, pad_token_id: int) -> ModelConfig:
        """Complete the sizes with the published models' constants."""
        return ModelConfig(
            **dataclasses.asdict(self),
            vocab_size=vocab_size,
            type_vocab_size=2,
            layer_norm_epsilon=1e-12,
            pad_token_id=pad_token_id,
            head="mlm",
        )


def started_config(
    start: StartConfig, size: ModelSize, given: ModelConfig
) -> ModelConfig:
    """Return what a stage makes of the model that it starts with.

    Args:
        start: which names the model.
        size: of the stage.
        given: the model's.

    Raises:
        ValueError: its sizes are not the stage's, or it has no MLM head.
    """
    names = ("num_layers", "width", "num_heads", "mlp_width")
    wrong = [
        f"model.{name}={getattr(size, name)} is {getattr(given, name)} there"
        for name in names
        if getattr(size, name) != getattr(given, name)
    ]
    if given.head not in ("mlm", "pretraining"):
        wrong.append(f"it has head={given.head!r}, and no MLM head to go on with")
    if wrong:
        raise ValueError(f"start.model={start.model!r}: {'; '.join(wrong)}")
    made = nomic_config(
        given, rope_base=size.rope_base, trained_positions=size.trained_positions
    )
    made = dataclasses.replace(made, dropout=size.dropout)
    return config_with_experts(start, made)


def started_model(
    start: StartConfig,
    size: ModelSize,
    tokenizer: TextTokenizer,
    *,
    seed: int,
    dtype: str,
    remat: Remat = "none",
) -> MaskedLanguageModel:
    """Load BERT or XLM-R with rotary positions in place of its absolute ones.

    Args:
        start: which names it, and says whether its MLPs become experts.
        size: of the stage; its positions, dropout and rotary base are set.
        tokenizer: of the text that the stage trains on.
        seed: of routers.
        dtype: what products run in.
        remat: what a layer keeps for its backward pass.

    Raises:
        ValueError: it is no such model, of other sizes, without an MLM head, or has
            another tokenizer.
    """
    folder = resolve(start.model)
    checkpoint = read_checkpoint(folder)
    config = started_config(start, size, checkpoint.config)
    own = TextTokenizer.from_folder(tokenizer_folder(folder)).digest
    if own != tokenizer.digest:
        raise ValueError(
            f"start.model={start.model!r} has tokenizer {own}, the prepared text has "
            f"{tokenizer.digest}: prepare it with the model's tokenizer"
        )
    made = nomic_start(
        checkpoint, rope_base=size.rope_base, trained_positions=size.trained_positions
    )
    made = with_experts(start, made, seed)
    made = dataclasses.replace(made, config=config)
    model = build(made, dtype=dtype, remat=remat)
    assert isinstance(model, MaskedLanguageModel), "its config says so"
    return model


@dataclasses.dataclass(frozen=True, kw_only=True)
class MlmData:
    """Packed rows and how they are corrupted."""

    stores: str  # the prepare stage that made them, or a folder or URL of stores
    row_length: int  # tokens of a packed row
    mask_rate: float = 0.3  # share of the tokens that is to be predicted
    documents: Documents = "joined"  # in a row: whether they see one another

    def __post_init__(self) -> None:
        """Refuse rows of nothing, and a rate that leaves nothing to do.

        Raises:
            ValueError: with the number.
        """
        if self.row_length < 1:
            raise ValueError(f"row_length={self.row_length} must be at least 1")
        if not 0 < self.mask_rate < 1:
            raise ValueError(f"mask_rate={self.mask_rate} must be in (0, 1)")


@dataclasses.dataclass(frozen=True, kw_only=True)
class MlmStage:
    """Masked-language-model training on the prepared text."""

    name: str
    model: ModelSize
    data: MlmData
    optimizer: OptimizerConfig
    train: LoopConfig
    sampling: Sampling = Sampling()
    start: StartConfig = StartConfig()
    experts: ExpertsConfig = ExpertsConfig()
    mesh: MeshConfig = MeshConfig()
    memory: MemoryConfig = MemoryConfig()
    compute: ComputeConfig = ComputeConfig()

    def __post_init__(self) -> None:
        """Refuse rows longer than the model's positions, before any text is read.

        Raises:
            ValueError: with both numbers.
        """
        if self.data.row_length > self.model.trained_positions:
            raise ValueError(
                f"{self.name}: data.row_length={self.data.row_length} exceeds "
                f"model.trained_positions={self.model.trained_positions}"
            )


def first_model(
    stage: MlmStage, tokenizer: TextTokenizer, *, dtype: str
) -> MaskedLanguageModel:
    """Return the model that a stage begins with.

    Raises:
        ValueError: `start.model` does not fit the stage; see `started_model`.
    """
    if not stage.start.model:
        return fresh_model(stage, tokenizer, dtype=dtype)
    return started_model(
        stage.start,
        stage.model,
        tokenizer,
        seed=stage.train.seed,
        dtype=dtype,
        remat=stage.memory.remat,
    )


def fresh_model(
    stage: MlmStage, tokenizer: TextTokenizer, *, dtype: str
) -> MaskedLanguageModel:
    """Draw the stage's model, keyed by its seed."""
    config = stage.model.config(
        vocab_size=padded_vocabulary(tokenizer.size),
        pad_token_id=tokenizer.role_id("pad"),
    )

    @jax.jit
    def draw() -> MaskedLanguageModel:
        rngs = nnx.Rngs(stage.train.seed)
        model = MaskedLanguageModel(config, rngs=rngs, dtype=jnp.dtype(dtype))
        model.encoder.remat = stage.memory.remat
        return model

    return draw()


def mlm_batches(
    stage: MlmStage,
    stores: Mapping[str, Store],
    tokenizer: TextTokenizer,
    mesh: Mesh | None = None,
) -> MlmBatches:
    """Plan this host's part of the stage's batches.

    Raises:
        ValueError: a store does not fill one batch, is of another tokenizer, or does
            not hold rows of the stage's length.
    """
    for store in stores.values():
        store.check_tokenizer(tokenizer.digest)
    host, hosts = host_share(mesh)
    schedule = Schedule.over(
        {name: len(store) for name, store in stores.items()},
        batch_size=stage.train.batch_size,
        seed=stage.train.seed,
        sampling=stage.sampling,
    )
    masking = Masking(
        rate=stage.data.mask_rate,
        mask_id=tokenizer.role_id("mask"),
        vocab_size=tokenizer.size,
        special_ids=tokenizer.special_ids,
        seed=stage.train.seed,
    )
    return MlmBatches(
        stores,
        schedule,
        masking,
        row_length=stage.data.row_length,
        documents=stage.data.documents,
        host=host,
        hosts=hosts,
    )


def train_mlm(
    stage: MlmStage,
    model: MaskedLanguageModel,
    tokenizer: TextTokenizer,
    stores: Mapping[str, Store],
    folder: RunFolder,
    *,
    evaluate: Callable[[NomicBert], Mapping[str, float]] | None = None,
) -> MaskedLanguageModel:
    """Train a model on packed rows, from the folder's newest checkpoint if it has one.

    Args:
        stage: the whole recipe.
        model: where training starts; consumed.
        tokenizer: whose ids the model knows.
        stores: of packed rows, by source.
        folder: where metrics and checkpoints go.
        evaluate: measures the encoder, every `train.evaluate_every` steps.

    Raises:
        ValueError: the stores do not fit the stage (see `mlm_batches`), or are not
            those it began with; the mesh does not fit the devices or the model; experts
            are to be balanced or split where there are none.
    """
    placement = Placement.of(
        stage.mesh,
        stage.memory,
        batch_size=stage.train.batch_size,
        row_length=stage.data.row_length,
    )
    batch_at = mlm_batches(stage, stores, tokenizer, placement.mesh)
    folder.pin_stores(stores)
    stage.compute.of(
        model.encoder,
        stage=stage.name,
        row_length=stage.data.row_length,
        texts=texts_per_row(stage.data.documents),
        mesh=placement.mesh,
    )
    config = model.encoder.config
    experts = check_experts(stage.name, config, stage.experts, stage.mesh)
    return train_stage(
        stage,
        model,
        mlm_objective(placement, experts=experts),
        batch_at,
        placement,
        folder,
        evaluate=evaluate and (lambda model: evaluate(model.encoder)),
        flops_per_token=functools.partial(flops_per_token, config),
    )
