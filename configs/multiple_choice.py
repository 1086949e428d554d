r"""SWAG: which of four endings goes on with a sentence.

Devlin et al. 2018, arXiv:1810.04805, section 4.4; Zellers et al. 2018
(arXiv:1808.05326). Each ending is a row of its own next to the sentence, and the four
scores are the logits.

Data: `swag/train.jsonl` and `swag/validation.jsonl`, a line a question: `{"question":
SENTENCE, "choices": [FOUR ENDINGS], "label": 0 TO 3}`; docs/tasks.md says how to write
them from Hugging Face's `allenai/swag`. 73,546 questions, 3 epochs.

Expected score: an accuracy of 0.816 on the development set (Table 4 of the paper).

    python train.py --config configs/multiple_choice.py
"""

from nomic_jax.downstream import HeadConfig, TaskData, TaskStage, TaskStart
from nomic_jax.training import LoopConfig, OptimizerConfig

BATCH, EPOCHS, QUESTIONS = 16, 3, 73_546
STEPS = -(-EPOCHS * QUESTIONS // BATCH)

stages = (
    TaskStage(
        name="swag",
        head=HeadConfig(kind="multiple_choice", dropout=0.1),
        data=TaskData(
            train="swag/train.jsonl",
            validation=("swag/validation.jsonl",),
            max_length=80,
        ),
        optimizer=OptimizerConfig(
            learning_rate=2e-5,
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
