"""The evaluate stage, and embeddings as bytes and as bits.

Codes are those of sentence-transformers' quantize_embeddings:

    int8    floor((x - low) / step) - 128, step = (high - low) / 255, clipped; low and
            high are the least and greatest value of each dimension in the corpus
    binary  the sign of each entry, 1 where x > 0, else -1: the inner product of two is
            the dimension less twice their Hamming distance

Codes are compared by cosine, as embeddings are; all binary ones have the same length.
A classifier, whose regularisation depends on the size of numbers, gets what codes stand
for: the middle of an int8 code's step, and for a bit the embeddings' typical entry.
"""

import dataclasses
from collections.abc import Sequence
from typing import Literal

import numpy as np
from jaxtyping import Bool, Float, Float32, Int8

Precision = Literal["float32", "int8", "binary"]


def int8_ranges(
    corpus: Sequence[Float[np.ndarray, "_ E"]],
) -> Float32[np.ndarray, "2 E"]:
    """Return the least and the greatest value of each dimension, over all arrays."""
    low = np.min([part.min(axis=0) for part in corpus], axis=0)
    high = np.max([part.max(axis=0) for part in corpus], axis=0)
    return np.stack([low, high]).astype(np.float32)


def int8_codes(
    embeddings: Float32[np.ndarray, "n E"], ranges: Float32[np.ndarray, "2 E"]
) -> Int8[np.ndarray, "n E"]:
    """Quantise to a byte a dimension; values beyond the ranges are clipped."""
    codes = np.floor((embeddings - ranges[0]) / _steps(ranges))
    return (np.clip(codes, 0, 255) - 128).astype(np.int8)


def _steps(ranges: Float32[np.ndarray, "2 E"]) -> Float32[np.ndarray, "E"]:
    step = (ranges[1] - ranges[0]) / np.float32(255)
    return np.where(step == 0, np.float32(1), step)


def binary_codes(
    embeddings: Float[np.ndarray, "n E"],
) -> Bool[np.ndarray, "n E"]:
    """Quantise to a bit a dimension."""
    return embeddings > 0


def at_precision(
    sides: Sequence[Float32[np.ndarray, "_ E"]],
    calibrating: Sequence[bool],
    precision: Precision,
    *,
    decoded: bool = False,
) -> list[Float32[np.ndarray, "_ E"]]:
    """Return what each side's embeddings are worth at a precision, as numbers.

    Args:
        sides: embeddings of one task.
        calibrating: which of them are the corpus that int8 ranges are of.
        precision: codes of int8 come as the numbers -128 to 127, binary as -1 and 1.
        decoded: return values of the embeddings' own size instead. A bit's is the root
            mean square of the corpus's entries.
    """
    if precision == "float32":
        return list(sides)
    corpus = [s for s, used in zip(sides, calibrating, strict=True) if used]
    if precision == "binary":
        squares = np.concatenate([np.square(each).mean(axis=1) for each in corpus])
        size = np.sqrt(squares.mean()) if decoded else np.float32(1)
        return [np.where(binary_codes(s), size, -size) for s in sides]
    ranges = int8_ranges(corpus)
    codes = [int8_codes(side, ranges).astype(np.float32) for side in sides]
    if not decoded:
        return codes
    low, step = ranges[0], _steps(ranges)
    return [low + (each + np.float32(128.5)) * step for each in codes]


@dataclasses.dataclass(frozen=True, kw_only=True)
class EvaluationConfig:
    """What a model is measured on, and at which dimensions, lengths and precisions."""

    # KIND:PLACE of each; none: the pairs that the prepare stage holds out
    tasks: tuple[str, ...] = ()
    dims: tuple[int, ...] = ()  # of vectors; none: all the model was trained for
    lengths: tuple[int, ...] = ()  # where texts are cut, in tokens; none: the model's
    precisions: tuple[Precision, ...] = ("float32",)  # int8 and binary besides
    rotary_scaling_factor: float | None = None  # of Dynamic NTK, for longer texts

    def __post_init__(self) -> None:
        """Refuse an evaluation of nothing, and of something twice.

        Raises:
            ValueError: with the values.
        """
        if not self.precisions:
            raise ValueError("precisions=(): at least float32, int8 or binary")
        for name in ("tasks", "dims", "lengths", "precisions"):
            given = getattr(self, name)
            if len(set(given)) < len(given):
                raise ValueError(f"{name}={given} repeats a value")


@dataclasses.dataclass(frozen=True, kw_only=True)
class EvaluateStage:
    """Measure the model so far, and write tables and plots into the stage's folder."""

    name: str
    evaluation: EvaluationConfig
