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
from nomic_jax.sharding import REPEATED, constrain, over_data
from nomic_jax.training.dropout_keys import text_numbers, token_keys
from nomic_jax.training.microbatches import in_microbatches
from nomic_jax.training.placement import Placement, parameter_names


def pair_vectors(
    encoder: NomicBert,
    batch: PairBatch,
    embedding: EmbeddingConfig,
    placement: Placement,
    key: Key[Array, ""] | None = None,
) -> tuple[Float32[Array, "Q D"], Float32[Array, "M D"]]:
    """Embed the queries and documents of a batch at full width, not normalised.

    Args:
        encoder: whose parameters lie as the rules say.
        batch: packed rows; on a mesh each device has its own.
        embedding: how the encoder's hidden states become a vector.
        placement: the mesh, and the rows of a microbatch.
        key: of the step, for dropout; None leaves it off.

    Returns:
        Both sides, repeated on every device.
    """

    def of_rows(encoder, texts, slots, numbers, key):
        def one(rows):
            texts, numbers = rows
            segments = jnp.asarray(texts.tokens.segment_ids)
            keys = None if key is None else token_keys(key, numbers, segments)
            hidden = encoder(texts.tokens, dropout_keys=keys)
            return embed_packed(hidden, texts, embedding)

        found = in_microbatches(one, (texts, numbers), most=placement.most_rows)
        # Rows that microbatches added stand at the end.
        width = found.shape[-1]
        found = found.reshape(-1, *found.shape[2:])[: len(numbers)]  # B T D
        found = found.reshape(len(slots), -1, width)
        return jnp.take_along_axis(found, slots[..., None], axis=1)  # P C D

    mesh = placement.mesh
    everywhere = over_data(
        of_rows,
        mesh,
        names=parameter_names(encoder),
        splits=(True, True, True, False),
    )
    numbers = text_numbers(batch)
    found = everywhere(encoder, batch.texts, batch.slots, numbers, key)
    found = constrain(found.reshape(-1, found.shape[-1]), mesh, REPEATED)
    return found[batch.query_places], found[batch.document_places]
