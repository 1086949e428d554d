"""Learn a teacher's similarities instead of, or beside, the pairs' labels.

All vectors are scaled to unit length; no gradient reaches the teacher, whose vectors
may be wider than the student's where only similarities are compared.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Float32

from nomic_jax.model.pooling import normalize
from nomic_jax.training.blockwise import inner_products


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
    student = _similarities(query, document)
    teacher = jax.lax.stop_gradient(_similarities(teacher_query, teacher_document))
    told = jax.nn.log_softmax(teacher / temperature, axis=1)
    learned = jax.nn.log_softmax(student / temperature, axis=1)
    return jnp.sum(jnp.exp(told) * (told - learned), axis=1).mean()


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
    student = _similarities(query, document)
    teacher = jax.lax.stop_gradient(_similarities(teacher_query, teacher_document))
    return jnp.square(student - teacher).mean()


def embedding_mse(
    student: Float[Array, "N E"], teacher: Float[Array, "N E"]
) -> Float32[Array, ""]:
    """Mean of `(s - t) ** 2` over the entries of unit vectors of the same width.

    Reimers and Gurevych 2020 (arXiv:2004.09813, equation 1), of one side; add the loss
    of queries to that of documents.
    """
    teacher = jax.lax.stop_gradient(_unit(teacher))
    return jnp.square(_unit(student) - teacher).mean()


def _unit(vectors: Float[Array, "N E"]) -> Float32[Array, "N E"]:
    return normalize(vectors.astype(jnp.float32))


def _similarities(
    query: Float[Array, "Q E"], document: Float[Array, "M E"]
) -> Float32[Array, "Q M"]:
    return inner_products(_unit(query), _unit(document))
