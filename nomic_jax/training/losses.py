"""What training minimises: masked tokens' cross-entropy, and InfoNCE."""

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Bool, Float, Float32, Int

from nomic_jax.model.pooling import normalize


def mlm_cross_entropy(
    logits: Float32[Array, "B N V"],
    targets: Int[Array, "B N"],
    weights: Bool[Array, "B N"],
) -> tuple[Float32[Array, ""], Float32[Array, ""]]:
    """Sum the cross-entropy of the masked tokens of all rows, and count them.

    Sum and count are apart so that parts of a batch, whose rows hold different numbers
    of masked tokens, add up to the batch's own mean.
    """
    losses = optax.softmax_cross_entropy_with_integer_labels(logits, targets)
    return jnp.sum(losses * weights), jnp.sum(weights, dtype=jnp.float32)


def info_nce(
    query: Float[Array, "B E"],
    document: Float[Array, "M E"],
    *,
    scale: float,
    document_ids: Int[Array, "M 2"] | None = None,
) -> tuple[Float32[Array, ""], Float32[Array, ""]]:
    """Cross-entropy of each query against every document of the batch.

    van den Oord et al. 2018 (arXiv:1807.03748), equation 4, over cosine similarities
    multiplied by `scale`, the inverse of the temperature. Documents come in groups of
    `M / B`, positive first: row `i * M / B` answers query `i`; all other rows, its own
    hard negatives included, are negatives.

    Args:
        query: not normalised.
        document: not normalised.
        scale: of the cosines.
        document_ids: equal for equal documents. The copies of a query's positive are
            then no negatives of that query; None: every document counts.

    Returns:
        The mean loss, and the share of queries whose positive scores highest.

    Raises:
        ValueError: the documents do not come in groups of equal size.
    """
    if document.shape[0] % query.shape[0]:
        raise ValueError(
            f"{document.shape[0]} documents do not split among {query.shape[0]} "
            "queries; give each its positive and the same number of hard negatives"
        )
    similarity = jnp.matmul(
        normalize(query.astype(jnp.float32)),
        normalize(document.astype(jnp.float32)).T,
        # By default accelerators round float32 operands of a product to bfloat16 or
        # TF32, which a scale of 50 would make an error of tenths in the logits.
        precision=jax.lax.Precision.HIGHEST,
    )
    logits = scale * similarity
    answers = jnp.arange(query.shape[0]) * (document.shape[0] // query.shape[0])
    if document_ids is not None:
        copies = _copies(document_ids, answers)
        logits = jnp.where(copies, -jnp.inf, logits)
    losses = optax.softmax_cross_entropy_with_integer_labels(logits, answers)
    found = jnp.argmax(logits, axis=1) == answers
    return losses.mean(), found.mean(dtype=jnp.float32)


def _copies(
    document_ids: Int[Array, "M 2"], answers: Int[Array, " B"]
) -> Bool[Array, "B M"]:
    """Mark the documents that equal a query's positive and are not that positive."""
    # One half at a time: B M 2 would be the largest array of the loss.
    first, second = (half[answers][:, None] == half[None] for half in document_ids.T)
    itself = jnp.arange(document_ids.shape[0])[None] == answers[:, None]
    return first & second & ~itself
