"""Learn a teacher's similarities next to the pairs' labels.

All vectors are scaled to unit length; no gradient reaches the teacher, whose vectors
may be wider than the student's where only similarities are compared.
"""

import dataclasses
from collections.abc import Sequence
from typing import Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Float32

from nomic_jax.model.pooling import normalize
from nomic_jax.training.losses.contrastive import (
    Axis,
    Guide,
    inner_products,
    matryoshka_loss,
    share,
)
from nomic_jax.training.microbatches import in_microbatches


@dataclasses.dataclass(frozen=True, kw_only=True)
class TeacherConfig:
    """The encoder whose similarities are learned next to the pairs' labels."""

    model: str = ""  # folder or hub id; empty: there is none
    kind: Literal["kl", "mse"] = "kl"  # of the choice of document, or of the cosines
    weight: float = 1.0  # of this loss; that of the pairs has 1
    temperature: float = 0.2  # of kl: cosines are divided by it

    def __post_init__(self) -> None:
        """Refuse numbers without meaning, and those that nobody would look at.

        Raises:
            ValueError: with every problem found.
        """
        problems = []
        if self.kind not in ("kl", "mse"):
            problems.append(f"teacher.kind={self.kind!r} must be kl or mse")
        for name, value in dataclasses.asdict(self).items():
            if name in ("weight", "temperature") and value <= 0:
                problems.append(f"teacher.{name}={value} must be positive")
            if not self.model and value != getattr(TeacherConfig, name):
                problems.append(f"teacher.{name}={value!r} needs teacher.model")
        unread = self.model and self.kind == "mse"
        if unread and self.temperature != TeacherConfig.temperature:
            problems.append("teacher.temperature is of kl; mse has none")
        if problems:
            raise ValueError("; ".join(problems))


def distillation_loss(
    query: Float[Array, "Q E"],
    document: Float[Array, "M E"],
    teacher: Guide,
    config: TeacherConfig,
    *,
    dims: Sequence[int],
    weights: Sequence[float],
    block_size: int | None = None,
    axis: Axis | None = None,
) -> Float32[Array, ""]:
    """Compare the student's similarities at each dimension with the teacher's own.

    Args:
        query: not normalised, at full width.
        document: not normalised, at full width.
        teacher: its vectors of the same queries and documents, at full width.
        config: which loss; its weight is the caller's to apply.
        dims: of the student's prefixes.
        weights: of the dims' losses, which are added up.
        block_size: as for `contrastive_loss`; here it is queries that are taken in
            parts. None: all similarities are held at once.
        axis: as for `contrastive_loss`.
    """
    if axis is not None:
        query, document, teacher = jax.lax.pcast(
            (query, document, teacher), axis, to="varying"
        )
    asked, taught = share((query, teacher[0]), axis)
    most = None
    if block_size is not None:  # as many similarities as the pairs' loss holds
        most = max(1, len(asked) * block_size // len(document))

    def mean_over_queries(query: Array, document: Array) -> Float32[Array, ""]:
        def by_query(rows: tuple[Array, Array]) -> Float32[Array, " Q"]:
            four = rows[0], document, rows[1], teacher[1]
            if config.kind == "mse":
                return _mse_by_query(*four)
            return _kl_by_query(*four, temperature=config.temperature)

        # Where queries do not divide, some were added at the end.
        found = in_microbatches(by_query, (query, taught), most=most)
        return found.reshape(-1)[: len(query)].mean()

    loss, _ = matryoshka_loss(
        mean_over_queries, asked, document, dims=dims, weights=weights
    )
    return loss if axis is None else jax.lax.pmean(loss, axis)


def similarity_kl(
    query: Float[Array, "Q E"],
    document: Float[Array, "M E"],
    teacher_query: Float[Array, "Q G"],
    teacher_document: Float[Array, "M G"],
    *,
    temperature: float,
) -> Float32[Array, ""]:
    """Divergence of the student's choice of document from the teacher's.

    Each query's cosines over the temperature make, by softmax over all documents of the
    batch, distributions `t` of the teacher and `s` of the student; the loss is the mean
    over queries of `KL(t, s) = sum(t * log(t / s))`. Hinton et al. 2015
    (arXiv:1503.02531, section 2) at one temperature and without its square; Fang et al.
    2021 (SEED, arXiv:2101.04731, section 3) over similarities.
    """
    found = _kl_by_query(
        query, document, teacher_query, teacher_document, temperature=temperature
    )
    return found.mean()


def similarity_mse(
    query: Float[Array, "Q E"],
    document: Float[Array, "M E"],
    teacher_query: Float[Array, "Q G"],
    teacher_document: Float[Array, "M G"],
) -> Float32[Array, ""]:
    """Mean of `(s - t) ** 2` over the cosines of all queries with all documents.

    The cosine form of matching pairwise relations, Park et al. 2019 (Relational
    Knowledge Distillation, arXiv:1904.05068, section 3.2).
    """
    return _mse_by_query(query, document, teacher_query, teacher_document).mean()


def _kl_by_query(
    query: Float[Array, "Q E"],
    document: Float[Array, "M E"],
    teacher_query: Float[Array, "Q G"],
    teacher_document: Float[Array, "M G"],
    *,
    temperature: float,
) -> Float32[Array, " Q"]:
    student = _similarities(query, document)
    teacher = jax.lax.stop_gradient(_similarities(teacher_query, teacher_document))
    told = jax.nn.log_softmax(teacher / temperature, axis=1)
    learned = jax.nn.log_softmax(student / temperature, axis=1)
    return jnp.sum(jnp.exp(told) * (told - learned), axis=1)


def _mse_by_query(
    query: Float[Array, "Q E"],
    document: Float[Array, "M E"],
    teacher_query: Float[Array, "Q G"],
    teacher_document: Float[Array, "M G"],
) -> Float32[Array, " Q"]:
    student = _similarities(query, document)
    teacher = jax.lax.stop_gradient(_similarities(teacher_query, teacher_document))
    return jnp.square(student - teacher).mean(axis=1)


def _unit(vectors: Float[Array, "N E"]) -> Float32[Array, "N E"]:
    return normalize(vectors.astype(jnp.float32))


def _similarities(
    query: Float[Array, "Q E"], document: Float[Array, "M E"]
) -> Float32[Array, "Q M"]:
    return inner_products(_unit(query), _unit(document))
