"""The loss of a masked language model over a batch, however its rows are split."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Key

from nomic_jax.batch import MlmBatch
from nomic_jax.model.heads import MaskedLanguageModel
from nomic_jax.sharding import over_data
from nomic_jax.training.dropout_keys import row_numbers, token_keys
from nomic_jax.training.experts import ExpertsConfig, balanced, encode_counting
from nomic_jax.training.microbatches import in_microbatches, summed_in_microbatches
from nomic_jax.training.mlm_loss import masked_cross_entropy
from nomic_jax.training.placement import Placement, parameter_names
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
            # How evenly experts are loaded is said of the whole batch, and is no sum.
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
