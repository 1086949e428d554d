"""The contrastive stages: pretraining on pairs, fine-tuning with hard negatives.

Nomic Embed, arXiv:2402.01613, sections 4.2 and 4.3.

However the rows are split over microbatches and devices, the vectors of all of them are
gathered once (gradient caching, Gao et al. 2021, arXiv:2101.06983, section 3.2).

A stage may use two frozen encoders. The guide decides which candidates are false
negatives (GISTEmbed, Solatorio 2024, arXiv:2402.16829, section 3); the teacher's
similarities are learned along with the labels (losses/distillation.py). Both read the
rows that the trained encoder reads, so they need its tokenizer, and get the prefixes
that the stores were prepared with.
"""

import dataclasses
import functools
import math
from collections.abc import Callable, Iterable, Mapping

import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from jaxtyping import Array, Float32, Key

from nomic_jax.batch import PairBatch, as_pytree
from nomic_jax.config import EmbeddingConfig, ModelConfig
from nomic_jax.data.packing import texts_per_row
from nomic_jax.data.pairs import Negatives, PairBatches
from nomic_jax.data.schedule import (
    PairSourceConfig,
    Sampling,
    Schedule,
    check_names,
    listed_stores,
    pairs_taken,
)
from nomic_jax.data.store.store import Store
from nomic_jax.data.tokenizer import TextTokenizer
from nomic_jax.distributed.mesh import (
    REPEATED,
    MeshConfig,
    constrain,
    host_share,
    over_data,
    row_parts,
    shared,
)
from nomic_jax.model.encoder import NomicBert
from nomic_jax.model.moe import RoutingSums
from nomic_jax.model.pooling import embed_packed
from nomic_jax.training.dropout import text_numbers, token_keys
from nomic_jax.training.experts import (
    ExpertsConfig,
    balanced,
    check_experts,
    encode_counting,
)
from nomic_jax.training.flops import flops_per_token
from nomic_jax.training.loop import LoopConfig, train_stage
from nomic_jax.training.losses.contrastive import (
    ContrastiveLoss,
    bounded_log_scale,
    contrastive_loss,
)
from nomic_jax.training.losses.distillation import TeacherConfig, distillation_loss
from nomic_jax.training.microbatches import in_microbatches
from nomic_jax.training.optimizer import OptimizerConfig
from nomic_jax.training.placement import (
    ComputeConfig,
    MemoryConfig,
    Placement,
    parameter_names,
    place_state,
)
from nomic_jax.training.run_folder import RunFolder
from nomic_jax.training.start import StartConfig
from nomic_jax.training.steps import ONE_DEVICE, Objective


def pair_vectors(
    encoder: NomicBert,
    batch: PairBatch,
    embedding: EmbeddingConfig,
    placement: Placement,
    key: Key[Array, ""] | None = None,
    *,
    experts: ExpertsConfig | None = None,
) -> tuple[tuple[Float32[Array, "Q D"], Float32[Array, "M D"]], RoutingSums | None]:
    """Embed the queries and documents of a batch at full width, not normalised.

    Args:
        encoder: whose parameters lie as the rules say.
        batch: packed rows; on a mesh each device has its own.
        embedding: how the encoder's hidden states become a vector.
        placement: the mesh, and the rows of a microbatch.
        key: of the step, for dropout; None leaves it off.
        experts: which tokens routing sums are of; None: they are not looked at.

    Returns:
        Both sides, repeated on every device; and the routing sums of each part of the
        batch on a leading axis, or None.
    """

    def of_rows(encoder, texts, slots, numbers, key):
        def one(rows):
            texts, numbers, real = rows
            segments = jnp.asarray(texts.tokens.segment_ids)
            keys = None if key is None else token_keys(key, numbers, segments)
            hidden, routing = encode_counting(
                encoder, texts.tokens, keys, real, experts, unroll=placement.unroll
            )
            return embed_packed(hidden, texts, embedding), routing

        rows = texts, numbers, jnp.ones(len(numbers), bool)
        found, routing = in_microbatches(one, rows, most=placement.most_rows)
        # Rows that microbatches added stand at the end.
        width = found.shape[-1]
        found = found.reshape(-1, *found.shape[2:])[: len(numbers)]  # B T D
        found = found.reshape(len(slots), -1, width)
        return jnp.take_along_axis(found, slots[..., None], axis=1), routing  # P C D

    mesh = placement.mesh
    everywhere = over_data(
        of_rows,
        mesh,
        names=parameter_names(encoder),
        splits=(True, True, True, False),
    )
    numbers = text_numbers(batch)
    found, routing = everywhere(encoder, batch.texts, batch.slots, numbers, key)
    found = constrain(found.reshape(-1, found.shape[-1]), mesh, REPEATED)
    return (found[batch.query_places], found[batch.document_places]), routing


@dataclasses.dataclass(frozen=True, kw_only=True)
class GuideConfig:
    """The encoder whose cosines say what is a false negative."""

    model: str = ""  # folder or hub id; empty: the one that is trained, as it is then


@dataclasses.dataclass(frozen=True)
class FrozenEncoder:
    """An encoder and how its hidden states become a vector, as a pytree."""

    encoder: NomicBert
    embedding: EmbeddingConfig


def _flatten(frozen: FrozenEncoder):
    key = jax.tree_util.GetAttrKey("encoder")
    return [(key, frozen.encoder)], frozen.embedding


def _unflatten(embedding: EmbeddingConfig, parts: Iterable[NomicBert]) -> FrozenEncoder:
    (encoder,) = parts
    return FrozenEncoder(encoder, embedding)


jax.tree_util.register_pytree_with_keys(FrozenEncoder, _flatten, _unflatten)


@as_pytree
@dataclasses.dataclass(frozen=True)
class Frozen:
    """The frozen encoders of a step, an argument of the compiled step."""

    guide: FrozenEncoder | None = None
    teacher: FrozenEncoder | None = None


def check_frozen(
    section: str,
    named: str,
    given: FrozenEncoder | None,
    *,
    longest: int,
) -> None:
    """Refuse a frozen encoder that the config does not name, or that cannot read rows.

    Args:
        section: of the stage: guide or teacher.
        named: its `model`.
        given: what was loaded for it.
        longest: tokens of a row.

    Raises:
        ValueError: one of name and encoder is there without the other, or the encoder
            was trained on shorter texts.
    """
    if bool(named) != (given is not None):
        raise ValueError(
            f"{section}.model={named!r}, and {'an' if given else 'no'} encoder is given"
            " for it; give one with the other"
        )
    if given is None:
        return
    config = given.encoder.config
    if longest > config.trained_positions and config.rope_scaling_factor is None:
        raise ValueError(
            f"{section}.model={named!r} was trained on up to "
            f"{config.trained_positions} tokens, texts have up to {longest}; shorten "
            "them, or take another model"
        )


def check_tokenizer(section: str, named: str, digest: str, trained: str) -> None:
    """Refuse a frozen encoder whose tokens have other ids than the trained one's.

    Args:
        section: of the stage: guide or teacher.
        named: its `model`.
        digest: of its tokenizer.
        trained: digest of the trained encoder's tokenizer.

    Raises:
        ValueError: they differ; both are named.
    """
    if digest != trained:
        raise ValueError(
            f"{section}.model={named!r} has tokenizer {digest}, the model that is "
            f"trained has {trained}: they read the same rows, so choose one with the "
            "same tokenizer"
        )


def step_flops(config: ModelConfig, frozen: Frozen, arrays: PairBatch) -> float:
    """Count the FLOPs of a step by token: frozen encoders have no backward pass.

    Args:
        config: of the trained encoder.
        frozen: next to it.
        arrays: the batch on the host.
    """
    others = [each for each in (frozen.guide, frozen.teacher) if each is not None]
    return flops_per_token(config, arrays) + sum(
        flops_per_token(other.encoder.config, arrays) / 3 for other in others
    )


@as_pytree
@dataclasses.dataclass(frozen=True)
class BiEncoder:
    """What a contrastive stage trains: the encoder and, if learned, the scale."""

    encoder: NomicBert
    log_scale: Float32[Array, ""] | None  # logarithm of what cosines are multiplied by

    @classmethod
    def of(cls, encoder: NomicBert, loss: ContrastiveLoss) -> "BiEncoder":
        """Begin with the scale that the loss's temperature gives."""
        learned = jnp.float32(-math.log(loss.temperature))
        return cls(encoder, learned if loss.learned_scale else None)


def bound_scale(loss: ContrastiveLoss) -> Callable[[BiEncoder], BiEncoder]:
    """Return what sets a learned scale back to its maximum after a step."""

    def project(model: BiEncoder) -> BiEncoder:
        if model.log_scale is None:
            return model
        bounded = bounded_log_scale(model.log_scale, loss.max_scale)
        return dataclasses.replace(model, log_scale=bounded)

    return project


def contrastive_objective(
    embedding: EmbeddingConfig,
    loss: ContrastiveLoss,
    placement: Placement = ONE_DEVICE,
    *,
    distillation: TeacherConfig | None = None,
    experts: ExpertsConfig | None = None,
) -> Objective:
    """A contrastive loss between the pooled queries and documents of a batch.

    However the rows are split, each query meets the documents of the whole batch: the
    embeddings of all microbatches and devices are gathered once, and each device then
    computes the loss of a share of the queries. The objective's fourth argument holds
    the frozen encoders; it may be left out where there is none.

    Args:
        embedding: of the trained encoder.
        loss: of the pairs.
        placement: the mesh, and the rows of a microbatch.
        distillation: how the similarities of a teacher are learned, if there is one.
        experts: what is done about their load; None where the encoder has none.
    """

    def objective(
        model: BiEncoder,
        batch: PairBatch,
        key: Key[Array, ""],
        frozen: Frozen | None = None,
    ):
        def of_pairs(query, document, ids, log_scale, guided, taught, axis=None):
            value, metrics = contrastive_loss(
                query,
                document,
                loss,
                document_ids=ids,
                guide=guided,
                log_scale=log_scale,
                axis=axis,
            )
            if taught is None or distillation is None:
                return value, metrics
            learned = distillation_loss(
                query,
                document,
                taught,
                distillation,
                dims=loss.matryoshka_dims or (query.shape[1],),
                weights=loss.weights,
                block_size=loss.block_size,
                axis=axis,
            )
            value += distillation.weight * learned
            return value, {**metrics, "distillation": learned}

        def vectors_of(frozen: FrozenEncoder | None):
            if frozen is None:
                return None
            return pair_vectors(frozen.encoder, batch, frozen.embedding, placement)[0]

        frozen = frozen or Frozen()
        batch = jax.tree.map(jnp.asarray, batch)
        mesh = placement.mesh
        vectors, routing = pair_vectors(
            model.encoder, batch, embedding, placement, key, experts=experts
        )
        ids = constrain(jnp.asarray(batch.document_ids).reshape(-1, 2), mesh, REPEATED)
        value, metrics = shared(of_pairs, mesh)(
            *vectors,
            ids[batch.document_places],
            model.log_scale,
            vectors_of(frozen.guide),
            vectors_of(frozen.teacher),
        )
        negatives = jnp.float32(len(batch.document_places) - 1)  # of each query
        metrics = {**metrics, "negatives": negatives}
        return balanced(value, metrics, routing, experts)

    return objective


@dataclasses.dataclass(frozen=True, kw_only=True)
class PairData:
    """The pairs of a contrastive stage."""

    stores: str  # the prepare or mine stage that made them, or a folder or URL
    query_length: int  # tokens; longer queries are cut
    document_length: int  # tokens; longer documents are cut
    num_negatives: int = 0  # hard negatives of each query in each batch
    negatives: Negatives = "random"  # drawn again each time, or the first ones
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
    data = stage.data
    longest = max(data.query_length, data.document_length)
    frozen = Frozen(
        guide and FrozenEncoder(*guide), teacher and FrozenEncoder(*teacher)
    )
    check_frozen("guide", stage.guide.model, frozen.guide, longest=longest)
    check_frozen("teacher", stage.teacher.model, frozen.teacher, longest=longest)
    placement = Placement.of(
        stage.mesh,
        stage.memory,
        batch_size=stage.train.batch_size,
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
    frozen = place_state(frozen, placement.mesh)
    trained = train_stage(
        stage,
        BiEncoder.of(model, stage.loss),
        contrastive_objective(
            embedding,
            stage.loss,
            placement,
            distillation=stage.teacher,
            experts=experts,
        ),
        batch_at,
        placement,
        folder,
        frozen=(frozen,),
        project=bound_scale(stage.loss),
        evaluate=evaluate and (lambda model: evaluate(model.encoder)),
        flops_per_token=functools.partial(step_flops, config, frozen),
    )
    return trained.encoder
