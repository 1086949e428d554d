"""The contrastive stages: pretraining on pairs, fine-tuning with hard negatives.

Nomic Embed, arXiv:2402.01613, sections 4.2 and 4.3.
"""

import dataclasses
import functools
from collections.abc import Callable, Mapping

from jax.sharding import Mesh

from nomic_jax.config import EmbeddingConfig
from nomic_jax.data.pairs import Negatives, PairBatches
from nomic_jax.data.schedule import Sampling, Schedule
from nomic_jax.model.encoder import NomicBert
from nomic_jax.sharding import MeshConfig, host_share, put_batch, row_parts
from nomic_jax.store.store import Store
from nomic_jax.tokenizer import TextTokenizer
from nomic_jax.training.flops import flops_per_token
from nomic_jax.training.loop import LoopConfig, train
from nomic_jax.training.losses import ContrastiveLoss
from nomic_jax.training.optimizer import (
    OptimizerConfig,
    learning_rate,
    make_optimizer,
)
from nomic_jax.training.placement import MemoryConfig, Placement, place_state
from nomic_jax.training.run_folder import RunFolder
from nomic_jax.training.steps import (
    BiEncoder,
    TrainState,
    contrastive_objective,
    make_update,
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class PairData:
    """The pairs of a contrastive stage."""

    stores: str  # the prepare or mine stage that made them, or a folder or URL
    query_length: int  # tokens; longer queries are cut
    document_length: int  # tokens; longer documents are cut
    num_negatives: int = 0  # hard negatives of each query in each batch
    negatives: Negatives = "random"  # drawn anew each time, or the first ones

    def __post_init__(self) -> None:
        """Refuse rows without room for a token, and a negative count.

        Raises:
            ValueError: with the number.
        """
        for name in ("query_length", "document_length"):
            if getattr(self, name) < 3:
                raise ValueError(
                    f"{name}={getattr(self, name)} must be at least 3: "
                    "[CLS] token [SEP]"
                )
        if self.num_negatives < 0:
            raise ValueError(f"num_negatives={self.num_negatives} must not be negative")


@dataclasses.dataclass(frozen=True, kw_only=True)
class StartConfig:
    """The encoder that training starts with."""

    model: str = ""  # folder or hub id; empty: what the stage before left


@dataclasses.dataclass(frozen=True, kw_only=True)
class ContrastiveStage:
    """Contrastive training of an encoder."""

    name: str
    data: PairData
    loss: ContrastiveLoss
    optimizer: OptimizerConfig
    train: LoopConfig
    sampling: Sampling = Sampling()
    start: StartConfig = StartConfig()
    mesh: MeshConfig = MeshConfig()
    memory: MemoryConfig = MemoryConfig()


def pair_batches(
    stage: ContrastiveStage,
    stores: Mapping[str, Store],
    tokenizer: TextTokenizer,
    mesh: Mesh | None = None,
) -> PairBatches:
    """Plan this host's part of the stage's batches.

    Raises:
        ValueError: a store holds less than one batch, too few hard negatives or shorter
            texts than asked for, or is of another tokenizer.
    """
    for store in stores.values():
        store.check_tokenizer(tokenizer.digest)
    data, settings = stage.data, stage.train
    host, hosts = host_share(mesh)
    schedule = Schedule.over(
        {name: len(store) for name, store in stores.items()},
        batch_size=settings.batch_size,
        seed=settings.seed,
        sampling=stage.sampling,
    )
    return PairBatches(
        stores,
        schedule,
        query_length=data.query_length,
        document_length=data.document_length,
        num_negatives=data.num_negatives,
        negatives=data.negatives,
        pad_id=tokenizer.token_id("[PAD]"),
        seed=settings.seed,
        parts=row_parts(mesh),
        host=host,
        hosts=hosts,
    )


def train_contrastive(
    stage: ContrastiveStage,
    model: NomicBert,
    tokenizer: TextTokenizer,
    embedding: EmbeddingConfig,
    stores: Mapping[str, Store],
    folder: RunFolder,
    *,
    evaluate: Callable[[NomicBert], Mapping[str, float]] | None = None,
) -> NomicBert:
    """Train an encoder on pairs, from the folder's newest checkpoint if there is one.

    Args:
        stage: the whole recipe.
        model: where training starts; consumed.
        tokenizer: whose ids the model knows.
        embedding: pooling and layer norm.
        stores: of pairs, by source, with as many hard negatives as the stage takes.
        folder: where metrics and checkpoints go.
        evaluate: measures the encoder, every `train.evaluate_every` steps.

    Raises:
        ValueError: the stores do not fit the stage (see `pair_batches`), or are not
            those it began with; the mesh does not fit the devices or the model.
    """
    data, settings = stage.data, stage.train
    placement = Placement.of(
        stage.mesh,
        stage.memory,
        batch_size=settings.batch_size,
        row_length=max(data.query_length, data.document_length),
    )
    batch_at = pair_batches(stage, stores, tokenizer, placement.mesh)
    folder.pin_stores(stores)
    model.remat = stage.memory.remat
    config = model.config
    optimizer = make_optimizer(stage.optimizer, settings.steps)
    objective = contrastive_objective(embedding, stage.loss, placement)
    start = BiEncoder.of(model, stage.loss)
    state = train(
        stage.name,
        place_state(TrainState.fresh(start, optimizer), placement.mesh),
        make_update(objective, optimizer, seed=settings.seed, mesh=placement.mesh),
        batch_at,
        settings,
        folder,
        learning_rate=learning_rate(stage.optimizer, settings.steps),
        place=lambda batch: put_batch(batch, placement.mesh),
        evaluate=evaluate and (lambda state: evaluate(state.model.encoder)),
        flops_per_token=functools.partial(flops_per_token, config),
    )
    return state.model.encoder
