"""What the project wants to be as fast as: the marks that rows are held against."""

import dataclasses


@dataclasses.dataclass(frozen=True, kw_only=True)
class Mark:
    """A bound that a figure of a row has to keep."""

    figure: str  # "ratio", "ours", or the name of one of the row's extra figures
    bound: float
    most: bool = False  # at most, not at least
    of: str = ""  # what follows the number
    form: str = "{:.2f}"

    def __str__(self) -> str:
        """Say it in words."""
        words = "at most" if self.most else "at least"
        return f"{words} {self.form.format(self.bound)} {self.of}".strip()

    def factor(self, value: float) -> float:
        """Return how many times the bound a value is, above 1 where it is kept."""
        return self.bound / value if self.most else value / self.bound


@dataclasses.dataclass(frozen=True, kw_only=True)
class Goal:
    """A piece of work, the device it is done on, and its marks."""

    work: str
    device: str = ""  # how its kind begins; "": any
    marks: tuple[Mark, ...]


_CPU, _H200 = "cpu", "NVIDIA H200"
_SENTENCE = "times sentence-transformers' texts/s"
_PYTORCH = "times PyTorch's speed"
_PERCENT = "{:.0%}"

# By the name that a row gives. The other side has its best of four batch sizes, the
# same threads and the same tokens.
GOALS: dict[str, Goal] = {
    "encode-cpu-mixed": Goal(
        work="encode, CPU, base model, float32, mixed lengths",
        device=_CPU,
        marks=(Mark(figure="ratio", bound=1.3, of=_SENTENCE),),
    ),
    "encode-cpu-fixed": Goal(
        work="encode, CPU, base model, float32, every fixed length",
        device=_CPU,
        marks=(Mark(figure="ratio", bound=1.0, of=_SENTENCE),),
    ),
    "train-cpu-quickstart": Goal(
        work="training step, CPU, quickstart size",
        device=_CPU,
        marks=(Mark(figure="ratio", bound=1.0, of=_PYTORCH),),
    ),
    "train-cpu-base": Goal(
        work="training step, CPU, base size",
        device=_CPU,
        marks=(Mark(figure="ratio", bound=1.0, of=_PYTORCH),),
    ),
    "encode-h200-mixed": Goal(
        work="encode, H200, bfloat16, mixed lengths",
        device=_H200,
        marks=(Mark(figure="ratio", bound=1.5, of=_SENTENCE),),
    ),
    "encode-h200-512": Goal(
        work="encode, H200, bfloat16, 512 tokens",
        device=_H200,
        marks=(Mark(figure="ratio", bound=1.0, of="times torch.compile with SDPA"),),
    ),
    "mlm-h200": Goal(
        work="MLM step, H200, 2,048 tokens",
        device=_H200,
        marks=(
            Mark(figure="MFU", bound=0.5, of="MFU", form=_PERCENT),
            Mark(
                figure="ratio", bound=1.25, of="times transformers with torch.compile"
            ),
        ),
    ),
    "contrastive-packed": Goal(
        work="contrastive step on real pairs, packed",
        marks=(Mark(figure="ratio", bound=1.4, of="times padded"),),
    ),
    "gradcache": Goal(
        work="contrastive step with GradCache, its cost",
        marks=(Mark(figure="ratio", bound=1.45, most=True, of="times the plain step"),),
    ),
    "tpu-products": Goal(
        work="MLM and contrastive steps compiled for v5p and v6e, which they fit",
        marks=(
            Mark(
                figure="ours",
                bound=0.05,
                most=True,
                of="of FLOPs outside the model's and the configured recomputation",
                form="{:.1%}",
            ),
        ),
    ),
    "experts-h200": Goal(
        work="MoE step, H200",
        device=_H200,
        marks=(
            Mark(
                figure="ratio",
                bound=0.6,
                of="of dense MFU at equal active parameters",
                form=_PERCENT,
            ),
        ),
    ),
    "input-wait": Goal(
        work="wait for input",
        marks=(
            Mark(
                figure="ours", bound=0.02, most=True, of="of step time", form="{:.1%}"
            ),
        ),
    ),
    "first-embedding": Goal(
        work="time to first embedding, warm cache",
        marks=(Mark(figure="ours", bound=5.0, most=True, of="s", form="{:.1f}"),),
    ),
}
