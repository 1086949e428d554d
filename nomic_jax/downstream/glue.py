"""GLUE's tasks as stages.

GLUE: Wang et al. 2018 (arXiv:1804.07461). The recipe is that of Nomic Embed
(arXiv:2402.01613) for nomic-bert-2048, and of its code of February 2024 where the paper
is silent.
"""

import dataclasses

from nomic_jax.downstream.config import HeadConfig, TaskData
from nomic_jax.downstream.glue_grid import EPOCHS
from nomic_jax.downstream.stage import TaskStage, TaskStart
from nomic_jax.training.loop import LoopConfig
from nomic_jax.training.optimizer import OptimizerConfig

ENTAILMENT = ("entailment", "not_entailment")


@dataclasses.dataclass(frozen=True)
class GlueTask:
    """What one of the tasks is."""

    examples: int  # to train on
    first: str  # column of a text
    second: str  # of the text next to it; empty: there is none
    labels: tuple[str, ...]  # in the order of their numbers; none: numbers are learned
    metric: str = "accuracy"  # that the paper reports
    splits: tuple[str, ...] = ("validation",)  # the first one chooses among cells


GLUE = {
    "cola": GlueTask(8551, "sentence", "", ("unacceptable", "acceptable"), "matthews"),
    "sst2": GlueTask(67349, "sentence", "", ("negative", "positive")),
    "qqp": GlueTask(363846, "question1", "question2", ("not_duplicate", "duplicate")),
    "qnli": GlueTask(104743, "question", "sentence", ENTAILMENT),
    "mnli": GlueTask(
        *(392702, "premise", "hypothesis"),
        ("entailment", "neutral", "contradiction"),
        splits=("validation_matched", "validation_mismatched"),
    ),
    "rte": GlueTask(2490, "sentence1", "sentence2", ENTAILMENT),
    "mrpc": GlueTask(3668, "sentence1", "sentence2", ("not_equivalent", "equivalent")),
    "stsb": GlueTask(5749, "sentence1", "sentence2", (), "pearson"),
}


def file_of(data: str, name: str, split: str) -> str:
    """Return where a split of a task is: in a folder, or in TFDS's `tfds:glue`."""
    if data.startswith("tfds:"):
        return f"{data}/{name}:{split}"
    return f"{data}/{name}.{split}.jsonl"


def glue_stage(
    name: str,
    *,
    data: str,
    start: TaskStart,
    rate: float,
    batch: int,
    seed: int,
    steps: int | None = None,
    examples: int | None = None,
) -> TaskStage:
    """Make the stage of a task as the paper trains it.

    Args:
        name: of the task.
        data: folder of `TASK.SPLIT.jsonl`, or `tfds:glue`.
        start: the model.
        rate: peak of the learning rate, which falls to 0 after 6 % of warmup.
        batch: examples of a step.
        seed: of order, dropout and the head.
        steps: of the optimizer; None: ten epochs.
        examples: in the training file; None: those that GLUE has.
    """
    task = GLUE[name]
    if steps is None:
        steps = -(-EPOCHS * (examples or task.examples) // batch)
    return TaskStage(
        name=name,
        head=HeadConfig(
            kind="sequence_classification",
            problem="one_label" if task.labels else "regression",
            labels=task.labels,
            dropout=0.1,
        ),
        data=TaskData(
            train=file_of(data, name, "train"),
            validation=tuple(file_of(data, name, split) for split in task.splits),
            max_length=128,
            first=task.first,
            second=task.second,
        ),
        optimizer=OptimizerConfig(
            learning_rate=rate,
            weight_decay=1e-6,
            warmup_steps=steps * 6 // 100,
            schedule="linear",
            beta1=0.9,
            beta2=0.98,
            epsilon=1e-6,
            clip_norm=0.0,
        ),
        train=LoopConfig(steps=steps, batch_size=batch, seed=seed, log_every=50),
        start=start,
    )
