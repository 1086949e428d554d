r"""GLUE: eight classifiers of sentences and pairs of them, and the figures of each.

GLUE is of Wang et al. 2018 (arXiv:1804.07461); the recipe is that of Nomic Embed
(arXiv:2402.01613) for nomic-bert-2048, its code of February 2024 where the paper is
silent. RTE, MRPC and STS-B start with what MNLI left, where it is among `TASKS`.

Edit `MODEL` to fine-tune another one, and `TASKS` to run a part. On the command line
a model is given to the stages that start with one, each by its name, as the other three
take MNLI's:

    python train.py --config configs/glue.py --cola.start.model DIR \
        --sst2.start.model DIR --qqp.start.model DIR --qnli.start.model DIR \
        --mnli.start.model DIR

Data: a folder of JSON Lines files, `glue/cola.train.jsonl` and so on, with the columns
of Hugging Face's `nyu-mll/glue`; docs/tasks.md has the four lines that write them.

The published grid has rates 1e-5, 2e-5 and 3e-5, batches of 16 and 32, and seeds 42,
19, 17, 717 and 10536; of a task's best cell the median over seeds is reported. This is
one cell of it: `--optimizer.learning_rate`, `--train.seed` and an `--out` of its own
make another; batches of 16 need twice the steps, of each stage its own.

Expected score: an average of 0.84 of accuracy, of Matthews' correlation for CoLA and
Pearson's for STS-B (model card of nomic-ai/nomic-bert-2048).

    python train.py --config configs/glue.py
"""

from nomic_jax.data.task_config import HeadConfig, TaskData
from nomic_jax.training.loop import LoopConfig
from nomic_jax.training.optimizer import OptimizerConfig
from nomic_jax.training.task import TaskStage, TaskStart

MODEL = "nomic-ai/nomic-bert-2048"  # a folder or hub id
TASKS = ("cola", "sst2", "qqp", "qnli", "mnli", "rte", "mrpc", "stsb")

BATCH, EPOCHS = 32, 10
ENTAILMENT = ("entailment", "not_entailment")

# Examples to train on, columns, and labels in the order of their numbers.
COLUMNS = {
    "cola": (8551, "sentence", "", ("unacceptable", "acceptable")),
    "sst2": (67349, "sentence", "", ("negative", "positive")),
    "qqp": (363846, "question1", "question2", ("not_duplicate", "duplicate")),
    "qnli": (104743, "question", "sentence", ENTAILMENT),
    "mnli": (
        *(392702, "premise", "hypothesis"),
        ("entailment", "neutral", "contradiction"),
    ),
    "rte": (2490, "sentence1", "sentence2", ENTAILMENT),
    "mrpc": (3668, "sentence1", "sentence2", ("not_equivalent", "equivalent")),
    "stsb": (5749, "sentence1", "sentence2", ()),
}


def task(name: str) -> TaskStage:
    examples, first, second, labels = COLUMNS[name]
    steps = -(-EPOCHS * examples // BATCH)
    splits = ("validation",)
    if name == "mnli":
        splits = ("validation_matched", "validation_mismatched")
    after_mnli = name in ("rte", "mrpc", "stsb") and "mnli" in TASKS
    return TaskStage(
        name=name,
        head=HeadConfig(
            kind="sequence_classification",
            problem="one_label" if labels else "regression",
            labels=labels,
            dropout=0.1,
        ),
        data=TaskData(
            train=f"glue/{name}.train.jsonl",
            validation=tuple(f"glue/{name}.{split}.jsonl" for split in splits),
            max_length=128,
            first=first,
            second=second,
        ),
        optimizer=OptimizerConfig(
            learning_rate=2e-5,
            weight_decay=1e-6,
            warmup_steps=steps * 6 // 100,
            schedule="linear",
            beta1=0.9,
            beta2=0.98,
            epsilon=1e-6,
            clip_norm=0.0,
        ),
        train=LoopConfig(steps=steps, batch_size=BATCH, seed=42, log_every=50),
        start=TaskStart(stage="mnli") if after_mnli else TaskStart(model=MODEL),
    )


stages = tuple(map(task, TASKS))
