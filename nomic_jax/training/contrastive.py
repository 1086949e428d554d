"""The contrastive stages: pretraining on pairs, fine-tuning with hard negatives.

Nomic Embed, arXiv:2402.01613, sections 4.2 and 4.3.
"""

import dataclasses
import functools
from collections.abc import Callable, Mapping

from jax.sharding import Mesh

from nomic_jax.config import EmbeddingConfig
from nomic_jax.data.listed import (
    PairSourceConfig,
    check_names,
    listed_stores,
    pairs_taken,
)
from nomic_jax.data.packing import texts_per_row
from nomic_jax.data.pairs import Negatives, PairBatches
from nomic_jax.data.schedule import Sampling, Schedule
from nomic_jax.model.encoder import NomicBert
from nomic_jax.sharding import MeshConfig, host_share, put_batch, row_parts
from nomic_jax.store.store import Store
from nomic_jax.tokenizer import TextTokenizer
from nomic_jax.training.compute import ComputeConfig
from nomic_jax.training.distillation import TeacherConfig
from nomic_jax.training.experts import ExpertsConfig, check_experts
from nomic_jax.training.frozen import (
    Frozen,
    FrozenEncoder,
    GuideConfig,
    check_frozen,
    step_flops,
)
from nomic_jax.training.loop import LoopConfig, train
from nomic_jax.training.losses import ContrastiveLoss
from nomic_jax.training.optimizer import (
    OptimizerConfig,
    learning_rate,
    make_optimizer,
)
from nomic_jax.training.placement import MemoryConfig, Placement, place_state
from nomic_jax.training.run_folder import RunFolder
from nomic_jax.training.start import StartConfig
from nomic_jax.training.steps import (
    BiEncoder,
    TrainState,
    bound_scale,
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
    sources: tuple[PairSourceConfig, ...] = ()  # none: whatever the stores hold

    def __post_init__(self) -> None:
        """Refuse rows without room for a token, a negative count, and a source twice.

        Raises:
            ValueError: with the number or the name.
        """
        check_names(self.sources)
        for name in ("query_length", "document_length"):
            if getattr(self, name) < 3:
                raise ValueError(
                    f"{name}={getattr(self, name)} must be at least 3: "
                    "[CLS] token [SEP]"
                )
        if self.num_negatives < 0:
            raise ValueError(f"num_negatives={self.num_negatives} must not be negative")


@dataclasses.dataclass(frozen=True, kw_only=True)
class StageEmbedding:
    """What a stage changes in how the model's hidden states become a vector."""

    # v1.5's, over the full width before a dimension is cut; None: as it was.
    layer_norm: bool | None = None


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
    embedding: StageEmbedding = StageEmbedding()
    guide: GuideConfig = GuideConfig()
    teacher: TeacherConfig = TeacherConfig()
    experts: ExpertsConfig = ExpertsConfig()
    mesh: MeshConfig = MeshConfig()
    memory: MemoryConfig = MemoryConfig()
    compute: ComputeConfig = ComputeConfig()

    def __post_init__(self) -> None:
        """Refuse a guide that would decide nothing.

        Raises:
            ValueError: with what to set.
        """
        if self.guide.model and self.loss.false_negative_margin is None:
            raise ValueError(
                f"{self.name}: guide.model={self.guide.model!r} decides nothing without"
                " loss.false_negative_margin; set it (0 is GISTEmbed's)"
            )


def stage_embedding(
    stage: ContrastiveStage, embedding: EmbeddingConfig
) -> EmbeddingConfig:
    """Return how the model that a stage trains embeds.

    Args:
        stage: its loss says which dims are trained for.
        embedding: of the model that the stage starts with.
    """
    layer_norm, dims = stage.embedding.layer_norm, stage.loss.matryoshka_dims
    return dataclasses.replace(
        embedding,
        layer_norm=embedding.layer_norm if layer_norm is None else layer_norm,
        matryoshka_dims=dims or embedding.matryoshka_dims,
    )


def pair_batches(
    stage: ContrastiveStage,
    stores: Mapping[str, Store],
    tokenizer: TextTokenizer,
    mesh: Mesh | None = None,
) -> PairBatches:
    """Plan this host's part of the stage's batches.

    Raises:
        ValueError: the stores are not the sources that the config lists, or one holds
            less than one batch, too few hard negatives or shorter texts than asked for,
            or is of another tokenizer.
    """
    stores = listed_stores(stage.data.sources, stores)
    for store in stores.values():
        store.check_tokenizer(tokenizer.digest)
    data, settings = stage.data, stage.train
    host, hosts = host_share(mesh)
    schedule = Schedule.over(
        pairs_taken(data.sources, stores),
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
        pad_id=tokenizer.role_id("pad"),
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
    guide: tuple[NomicBert, EmbeddingConfig] | None = None,
    teacher: tuple[NomicBert, EmbeddingConfig] | None = None,
    evaluate: Callable[[NomicBert], Mapping[str, float]] | None = None,
) -> NomicBert:
    """Train an encoder on pairs, from the folder's newest checkpoint if there is one.

    Args:
        stage: the whole recipe.
        model: where training starts; consumed.
        tokenizer: whose ids the model knows.
        embedding: of the model that training starts with; `stage_embedding` says what
            becomes of it.
        stores: of pairs, by source, with as many hard negatives as the stage takes.
        folder: where metrics and checkpoints go.
        guide: the encoder of `guide.model`, which has the same tokenizer and shares no
            array with `model`, and how it embeds.
        teacher: those of `teacher.model`.
        evaluate: measures the encoder, every `train.evaluate_every` steps.

    Raises:
        ValueError: the stores do not fit the stage (see `pair_batches`), or are not
            those it began with; the mesh does not fit the devices or a model; experts
            are to be balanced or split where there are none; a guide or teacher is not
            there, or cannot read such long texts.
    """
    data, settings = stage.data, stage.train
    longest = max(data.query_length, data.document_length)
    frozen = Frozen(
        guide and FrozenEncoder(*guide), teacher and FrozenEncoder(*teacher)
    )
    check_frozen("guide", stage.guide.model, frozen.guide, longest=longest)
    check_frozen("teacher", stage.teacher.model, frozen.teacher, longest=longest)
    placement = Placement.of(
        stage.mesh,
        stage.memory,
        batch_size=settings.batch_size,
        row_length=longest,
    )
    batch_at = pair_batches(stage, stores, tokenizer, placement.mesh)
    folder.pin_stores(stores)
    model.remat = stage.memory.remat
    stage.compute.of(
        model,
        stage=stage.name,
        row_length=longest,
        texts=texts_per_row(longest),
        mesh=placement.mesh,
    )
    config = model.config
    experts = check_experts(stage.name, config, stage.experts, stage.mesh)
    embedding = stage_embedding(stage, embedding)
    optimizer = make_optimizer(stage.optimizer, settings.steps)
    update = make_update(
        contrastive_objective(
            embedding,
            stage.loss,
            placement,
            distillation=stage.teacher,
            experts=experts,
        ),
        optimizer,
        seed=settings.seed,
        mesh=placement.mesh,
        project=bound_scale(stage.loss),
    )
    frozen = place_state(frozen, placement.mesh)
    start = BiEncoder.of(model, stage.loss)
    state = train(
        stage.name,
        place_state(TrainState.fresh(start, optimizer), placement.mesh),
        lambda state, batch: update(state, batch, frozen),
        batch_at,
        settings,
        folder,
        learning_rate=learning_rate(stage.optimizer, settings.steps),
        place=lambda batch: put_batch(batch, placement.mesh),
        evaluate=evaluate and (lambda state: evaluate(state.model.encoder)),
        flops_per_token=functools.partial(step_flops, config, frozen),
    )
    return state.model.encoder
