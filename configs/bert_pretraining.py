r"""BERT's own pretraining: masked tokens, and whether two sentences are neighbours.

Devlin et al. 2018, arXiv:1810.04805, sections 3.1 and A.2: 15 % of the tokens are to be
predicted, half of the second sentences are of another document; 900,000 steps on rows
of 128 tokens, then 100,000 on rows of 512, 256 rows a step, each with its own schedule
here. Of the named model the size and the tokenizer are taken, and all weights are drawn
again; leave `start.weights` out to go on with the published ones.

Data: `books/*.jsonl`, a line a document: `{"sentences": [...]}`. BERT's sentences are
spans of text, so that two of them fill a row: give lines of about 60 words for the
first stage, of 250 for the second (`--bert_512.data.train`). All tokens are held in
memory, 4 bytes each, and are made of the text again at each start; for the masked
language model alone on text of any size, see mlm.py.

Expected score: 97 to 98 % of next sentences right (section 3.1).

    python train.py --config configs/bert_pretraining.py
"""

from nomic_jax.downstream import HeadConfig, TaskData, TaskStage, TaskStart
from nomic_jax.training import LoopConfig, OptimizerConfig


def phase(length: int, steps: int, start: TaskStart) -> TaskStage:
    return TaskStage(
        name=f"bert_{length}",
        head=HeadConfig(kind="pretraining"),
        data=TaskData(train="books/*.jsonl", max_length=length, mask_rate=0.15),
        optimizer=OptimizerConfig(
            learning_rate=1e-4,
            weight_decay=0.01,
            warmup_steps=steps // 100,
            schedule="linear",
            epsilon=1e-6,
            clip_norm=1.0,
        ),
        train=LoopConfig(
            steps=steps, batch_size=256, seed=42, log_every=100, save_every=10_000
        ),
        start=start,
    )


stages = (
    phase(
        128,
        900_000,
        TaskStart(model="google-bert/bert-base-uncased", weights=False),
    ),
    phase(512, 100_000, TaskStart()),
)
