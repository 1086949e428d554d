"""The vectors of a batch's texts, by an encoder that is trained or by a frozen one.

However the rows are split over microbatches and devices, the vectors of all of them are
gathered once (gradient caching, Gao et al. 2021, arXiv:2101.06983, section 3.2).
"""

import jax.numpy as jnp
from jaxtyping import Array, Float32, Key

from nomic_jax.batch import PairBatch
from nomic_jax.config import EmbeddingConfig
from nomic_jax.model.encoder import NomicBert
from nomic_jax.model.pooling import embed_packed
from nomic_jax.model.routing import RoutingSums
from nomic_jax.sharding import REPEATED, constrain, over_data
from nomic_jax.training.dropout_keys import text_numbers, token_keys
from nomic_jax.training.experts import ExpertsConfig, encode_counting
from nomic_jax.training.microbatches import in_microbatches
from nomic_jax.training.placement import Placement, parameter_names


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
