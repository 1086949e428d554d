r"""SQuAD: where in a paragraph the answer to a question is, or that it does not.

Devlin et al. 2018, arXiv:1810.04805, sections 4.2 and 4.3, and BERT's code where the
paper is silent: windows of 384 tokens that share 128, questions of at most 64, answers
of at most 30. Rajpurkar et al. 2016 (arXiv:1606.05250), and 2018 (arXiv:1806.03822)
with questions that have no answer.

Data: `squad/train.jsonl` and `squad/validation.jsonl` with the columns of Hugging
Face's `rajpurkar/squad` or `rajpurkar/squad_v2`; docs/tasks.md says how to write them.
The steps are three epochs of the 88,000 or so windows of SQuAD 1.1; those of 2.0 are
132,000.

Expected score: an F1 of 0.885 of the development set of 1.1 (Table 2 of the paper).

    python train.py --config configs/squad.py
"""

from nomic_jax.downstream import HeadConfig, TaskData, TaskStage, TaskStart
from nomic_jax.training import LoopConfig, OptimizerConfig

BATCH, EPOCHS, WINDOWS = 32, 3, 88_000
STEPS = EPOCHS * WINDOWS // BATCH

stages = (
    TaskStage(
        name="squad",
        head=HeadConfig(kind="question_answering"),
        data=TaskData(
            train="squad/train.jsonl",
            validation=("squad/validation.jsonl",),
            max_length=384,
            question_length=64,
            stride=128,
            answer_length=30,
        ),
        optimizer=OptimizerConfig(
            learning_rate=5e-5,
            weight_decay=0.01,
            warmup_steps=STEPS // 10,
            schedule="linear",
            epsilon=1e-6,
            clip_norm=1.0,
        ),
        train=LoopConfig(steps=STEPS, batch_size=BATCH, seed=42, log_every=50),
        start=TaskStart(model="google-bert/bert-base-uncased"),
    ),
)
