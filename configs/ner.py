r"""CoNLL-2003: the names of persons, organisations and places in news.

Devlin et al. 2018, arXiv:1810.04805, section 5.3, without the documents around the
sentences: the first token of each word carries its tag. Tjong Kim Sang and De Meulder
2003 (arXiv:cs/0306050).

Data: `ner/train.jsonl` and `ner/validation.jsonl`, a line a sentence: `{"tokens":
[...], "tags": ["B-PER", "O", ...]}`; numbers stand for the labels below, in their
order, as Hugging Face's `conll2003` numbers them. 14,041 sentences, 4 epochs. Case
matters for names, so the model is a cased one.

Expected score: somewhat below the F1 of 0.964 of entities on the development set that
the paper has with the documents around (Table 7).

    python train.py --config configs/ner.py
"""

from nomic_jax.downstream import HeadConfig, TaskData, TaskStage, TaskStart
from nomic_jax.training import LoopConfig, OptimizerConfig

BATCH, EPOCHS, SENTENCES = 32, 4, 14_041
STEPS = -(-EPOCHS * SENTENCES // BATCH)

LABELS = (
    *("O", "B-PER", "I-PER", "B-ORG", "I-ORG"),
    *("B-LOC", "I-LOC", "B-MISC", "I-MISC"),
)

stages = (
    TaskStage(
        name="ner",
        head=HeadConfig(kind="token_classification", labels=LABELS, dropout=0.1),
        data=TaskData(
            train="ner/train.jsonl",
            validation=("ner/validation.jsonl",),
            max_length=256,
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
        start=TaskStart(model="google-bert/bert-base-cased"),
    ),
)
