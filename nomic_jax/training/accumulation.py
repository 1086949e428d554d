"""Why no option accumulates gradients over batches, and what takes its place.

The microbatches of one step (training/microbatches.py; arXiv:2101.06983) give the
gradient of the whole batch. Losses of smaller batches, added up, give another one: rows
hold different numbers of masked tokens, and a contrastive loss has fewer negatives.
"""

import re

_WORD = re.compile(r"\b[\w.]*accum[\w.]*", re.IGNORECASE)


def asks_for_accumulation(text: str) -> bool:
    """Say whether an option, or an error about a keyword, is about accumulation."""
    return _WORD.search(text) is not None


def instead_of_accumulation(*, contrastive: bool) -> str:
    """Say what to set instead.

    Args:
        contrastive: whether a contrastive stage is meant, or may be.
    """
    instead = (
        "gradients are not accumulated over batches: let train.batch_size be the whole "
        "batch of a step, and set memory.tokens_at_once to the tokens that fit a "
        "device; the step takes the batch in microbatches, with its exact gradient"
    )
    why = (
        ". A contrastive loss compares each query with all documents of the batch at "
        "once: accumulated, smaller batches would have fewer negatives"
    )
    return instead + (why if contrastive else "")
