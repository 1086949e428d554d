"""What a masked language model would put in place of each mask of a text.

    p = softmax(logits of the masked token)

Devlin et al. 2018 (arXiv:1810.04805), section 3.1, task 1.
"""

import dataclasses
import functools
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float32, Int

from nomic_jax.batch import Tokens
from nomic_jax.checkpoints.hub import resolve
from nomic_jax.checkpoints.model_folder import build
from nomic_jax.checkpoints.reader import read_checkpoint
from nomic_jax.checkpoints.sentence_transformers import tokenizer_folder
from nomic_jax.data.tokenizer import BUCKETS, TextTokenizer, bucket, pad
from nomic_jax.distributed.devices import keep_compiled_programs
from nomic_jax.model.heads import MaskedLanguageModel, PretrainingModel

Filler: TypeAlias = MaskedLanguageModel | PretrainingModel


@dataclasses.dataclass(frozen=True)
class Candidate:
    """A token for the place of a mask."""

    token: str
    probability: float


def load_filler(source: str | Path) -> tuple[Filler, TextTokenizer]:
    """Load a model that has an MLM head, and its tokenizer.

    Args:
        source: a folder of any layout, or a hub id.

    Raises:
        ValueError: there is no such model, it is not a whole one, or it has no MLM
            head.
    """
    folder = resolve(source)
    checkpoint = read_checkpoint(folder)
    head = checkpoint.config.head
    if head not in ("mlm", "pretraining"):
        has = "no head" if head is None else f"the head {head!r}"
        raise ValueError(
            f"{source} has {has}; filling a mask needs an MLM head, which models have "
            "before they are trained to embed, such as nomic-ai/nomic-bert-2048"
        )
    tokenizer = TextTokenizer.from_folder(tokenizer_folder(folder))
    keep_compiled_programs()
    model = build(checkpoint)
    assert isinstance(model, MaskedLanguageModel | PretrainingModel)
    return model, tokenizer


def fill_mask(
    model: Filler, tokenizer: TextTokenizer, text: str, *, top: int
) -> list[list[Candidate]]:
    """Return the most probable tokens for each mask of a text, the best first.

    All masks are filled at once, each as if the others stayed hidden. Probabilities are
    over every row of the word table.

    Args:
        model: with an MLM head.
        tokenizer: the model's.
        text: with the tokenizer's own mask token in it, once or more often.
        top: candidates of each mask.

    Raises:
        ValueError: there is no mask in the text, the text is too long, or there are not
            so many tokens.
    """
    config, backend = model.encoder.config, tokenizer.backend
    known = min(tokenizer.size, config.vocab_size)
    if not 1 <= top <= known:
        raise ValueError(
            f"top={top} must be between 1 and the {known} tokens there are"
        )
    longest = BUCKETS[-1]
    if config.rope_scaling_factor is None:
        longest = min(longest, config.trained_positions)
    (ids,) = tokenizer.encode([text], max_length=sys.maxsize).ids
    mask_id = tokenizer.role_id("mask")
    (places,) = np.nonzero(ids == mask_id)
    if not len(places):
        mask = backend.id_to_token(mask_id)
        raise ValueError(f"there is no {mask}, this model's mask, in {text!r}")
    if len(ids) > longest:
        raise ValueError(
            f"a text of {len(ids)} tokens exceeds the {longest} that the model takes; "
            "shorten it"
        )
    columns = min(bucket(len(ids)), longest)
    tokens = pad([ids], length=columns, pad_id=config.pad_token_id)
    # Programs are compiled for few numbers of masks: some are asked for twice.
    asked = jnp.asarray(np.resize(places, 1 << (len(places) - 1).bit_length()))
    found = _most_probable(model, tokens, asked, top, known)
    probabilities, chosen = (np.asarray(each)[: len(places)] for each in found)

    def candidate(number, probability) -> Candidate:
        text = backend.decode([int(number)], skip_special_tokens=False)
        return Candidate(text, float(probability))

    return [
        [candidate(*one) for one in zip(*row, strict=True)]
        for row in zip(chosen, probabilities, strict=True)
    ]


@functools.partial(jax.jit, static_argnums=(3, 4))
def _most_probable(
    model: Filler, tokens: Tokens, places: Int[Array, "N"], top: int, known: int
) -> tuple[Float32[Array, "N top"], Int[Array, "N top"]]:
    """Return probabilities and ids; rows beyond the known tokens are no candidates."""
    hidden = model.encoder(tokens)[0, places]
    every = jax.nn.softmax(model.logits(hidden), axis=-1)
    probabilities, ids = jax.lax.top_k(every[:, :known], top)
    return probabilities, ids


def filled_lines(source: str, text: str, *, top: int) -> Iterator[str]:
    """Yield what `nomic-jax fill-mask` prints: a line for each candidate.

    Where there are several masks or texts, a line before the candidates says which.

    Args:
        source: a model folder of any layout, or a hub id.
        text: with masks; "-": a text a line of standard input.
        top: candidates of each mask.

    Raises:
        ValueError: the model or a text is not what it should be; a line of standard
            input is named.
    """
    model, tokenizer = load_filler(source)
    if text != "-":
        yield from _blocks(fill_mask(model, tokenizer, text, top=top), "")
        return
    number = 0
    for number, line in enumerate(sys.stdin, 1):
        try:
            filled = fill_mask(model, tokenizer, line.rstrip("\n"), top=top)
        except ValueError as error:
            raise ValueError(f"standard input:{number}: {error}") from None
        yield from _blocks(filled, f"line {number}")
    if not number:
        raise ValueError("standard input is empty: at least one line is needed")


def _blocks(filled: list[list[Candidate]], text: str) -> Iterator[str]:
    for number, candidates in enumerate(filled, 1):
        mask = f"mask {number} of {len(filled)}" if len(filled) > 1 else ""
        if text or mask:
            yield ", ".join(part for part in (text, mask) if part) + ":"
        for one in candidates:
            visible = one.token.strip() and one.token.isprintable()
            yield f"{one.probability:.4f}  {one.token if visible else repr(one.token)}"
