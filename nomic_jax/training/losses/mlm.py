"""The masked tokens' cross-entropy, a block of them after another.

    loss = log(sum(exp(logits))) - logits[target]        d logits = softmax - onehot

The gradient needs nothing that the value does not, so a block's logits are made once,
and are gone when the next block's are made: those of all masked tokens over the whole
vocabulary are never held. Hsu et al. 2024 (Liger Kernel, arXiv:2410.10989, section 3.2)
fuse the two in this way.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Float32, Int

from nomic_jax.batch import MaskedTokens, MlmBatch
from nomic_jax.model.heads import MlmHead


def masked_cross_entropy(
    head: MlmHead,
    word_table: Float[Array, "V D"],
    hidden: Float[Array, "B S D"],
    masked: MlmBatch | MaskedTokens,
    *,
    block: int,
) -> tuple[Float32[Array, ""], Float32[Array, ""]]:
    """Sum the cross-entropy of rows' masked tokens, and count them.

    Args:
        head: of the model.
        word_table: the encoder's, which is the head's decoder.
        hidden: what the encoder gave.
        masked: which tokens are masked, and what stood there.
        block: tokens whose logits are held at once.
    """
    used = jnp.asarray(masked.weights).reshape(-1)
    # Rows hold different numbers of masked tokens: those that count come first, so that
    # the other slots fill blocks of their own, which are left out.
    order = jnp.argsort(~used, stable=True)
    rows, columns, width = hidden.shape
    places = (columns * jnp.arange(rows)[:, None] + masked.positions).reshape(-1)
    return mlm_cross_entropy(
        head.transform(hidden.reshape(-1, width)[places[order]]),
        word_table,
        None if head.bias is None else head.bias[...],
        jnp.asarray(masked.targets).reshape(-1)[order],
        used[order],
        block=block,
    )


def mlm_cross_entropy(
    hidden: Float[Array, "N D"],
    table: Float[Array, "V D"],
    bias: Float[Array, "V"] | None,
    targets: Int[Array, "N"],
    weights: Bool[Array, "N"],
    *,
    block: int,
) -> tuple[Float32[Array, ""], Float32[Array, ""]]:
    """Sum the cross-entropy of masked tokens, and count them.

    Sum and count are apart so that parts of a batch, whose rows hold different numbers
    of masked tokens, add up to the batch's own mean.

    Args:
        hidden: what the head's decoder gets; products run in its type.
        table: the decoder, a row for each token of the vocabulary.
        bias: of the decoder, if it has one.
        targets: the right tokens; any where the weight is False.
        weights: which tokens count; a block of which none does costs nothing.
        block: tokens whose logits are held at once.
    """
    size = min(block, len(weights))

    def split(array: Array) -> Array:
        ends = [(0, -len(array) % size), *[(0, 0)] * (array.ndim - 1)]
        return jnp.pad(array, ends).reshape(-1, size, *array.shape[1:])

    summed = _sum(split(hidden), split(targets), split(weights), table, bias)
    return summed, jnp.sum(weights, dtype=jnp.float32)


@jax.custom_vjp
def _sum(hidden, targets, weights, table, bias):
    """Sum over blocks; the leading axis of the first three arrays is theirs."""
    decoder = table.astype(hidden.dtype)

    def add(total, block):
        x, targets, weights = block

        def with_block():
            return total + _of_block(x, targets, weights, decoder, bias)[0]

        return jax.lax.cond(weights.any(), with_block, lambda: total), None

    return jax.lax.scan(add, _zeros(table)[0, 0], (hidden, targets, weights))[0]


def _sum_and_gradient(hidden, targets, weights, table, bias):
    decoder = table.astype(hidden.dtype)

    def add(sums, block):
        x, targets, weights = block

        def with_block():
            total, of_table, of_bias = sums
            loss, of_logits = _of_block(x, targets, weights, decoder, bias)
            if of_bias is not None:
                of_bias = of_bias + of_logits.sum(axis=0)
            of_logits = of_logits.astype(x.dtype)
            of_table = of_table + _product(of_logits.T, x)
            of_x = _product(of_logits, decoder).astype(x.dtype)
            return (total + loss, of_table, of_bias), of_x

        return jax.lax.cond(weights.any(), with_block, lambda: (sums, _zeros(x)))

    sums = _zeros(table)[0, 0], _zeros(table), None if bias is None else _zeros(bias)
    (total, *others), of_hidden = jax.lax.scan(add, sums, (hidden, targets, weights))
    return total, (of_hidden, *others)


def _scaled(gradients, cotangent):
    of_hidden, of_table, of_bias = jax.tree.map(
        lambda gradient: (cotangent * gradient).astype(gradient.dtype), gradients
    )
    return of_hidden, None, None, of_table, of_bias


_sum.defvjp(_sum_and_gradient, _scaled)


def _of_block(x, targets, weights, decoder, bias):
    """Sum a block's losses, and return the gradient of that sum in its logits."""
    logits = _product(x, decoder.T)
    if bias is not None:
        logits += jnp.broadcast_to(bias, logits.shape)
    normaliser = jax.nn.logsumexp(logits, axis=1, keepdims=True)
    own = jnp.take_along_axis(logits, targets[:, None], axis=1)
    losses = jnp.where(weights, (normaliser - own)[:, 0], 0)
    right = targets[:, None] == jnp.arange(logits.shape[1])[None]
    of_logits = jnp.exp(logits - normaliser) - right
    return losses.sum(), jnp.where(weights[:, None], of_logits, 0)


def _product(first, second):
    return jnp.matmul(first, second, preferred_element_type=jnp.float32)


def _zeros(array):
    """Make zeros that, on a mesh, differ between the devices that the array does."""
    return jnp.where(False, array, 0)
