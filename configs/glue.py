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
one cell of it; `nomic-jax glue` goes through all of them and makes the table.

Expected score: an average of 0.84 of accuracy, of Matthews' correlation for CoLA and
Pearson's for STS-B (model card of nomic-ai/nomic-bert-2048).

    python train.py --config configs/glue.py
"""

from nomic_jax.downstream import AFTER_MNLI, TaskStage, TaskStart, glue_stage

MODEL = "nomic-ai/nomic-bert-2048"  # a folder or hub id
TASKS = ("cola", "sst2", "qqp", "qnli", "mnli", "rte", "mrpc", "stsb")


def task(name: str) -> TaskStage:
    after_mnli = name in AFTER_MNLI and "mnli" in TASKS
    return glue_stage(
        name,
        data="glue",
        start=TaskStart(stage="mnli") if after_mnli else TaskStart(model=MODEL),
        rate=2e-5,
        batch=32,
        seed=42,
    )


stages = tuple(map(task, TASKS))
