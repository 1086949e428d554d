"""The evaluate stage: a run's model on tasks, as `nomic-jax evaluate` measures them."""

import dataclasses

from nomic_jax.evaluation.quantization import Precision


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
