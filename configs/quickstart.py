"""NomicBERT from nothing in minutes, on text that every Python installation carries.

The chain of Nomic Embed (arXiv:2402.01613, sections 3 and 4), small: a masked language
model on source code and docstrings, contrastive pretraining on (docstring, body) and
(summary, details) pairs, and fine-tuning with hard negatives on the pairs that a
consistency filter leaves. The run's own model filters and mines, as no other is at
hand, so the filter comes after pretraining. Retrieval is measured on whole modules held
out.
"""

from nomic_jax.curation import Filtering, FilterStage, MineStage, Mining, StagePairs
from nomic_jax.data import PrepareConfig, PrepareStage
from nomic_jax.evaluation import EvaluateStage, EvaluationConfig
from nomic_jax.training import (
    ContrastiveLoss,
    ContrastiveStage,
    LoopConfig,
    MlmData,
    MlmStage,
    ModelSize,
    OptimizerConfig,
    PairData,
)

stages = (
    PrepareStage(
        name="prepare",
        data=PrepareConfig(
            pairs="python", row_length=128, query_length=32, document_length=64
        ),
    ),
    MlmStage(
        name="mlm",
        model=ModelSize(
            num_layers=2, width=128, num_heads=2, mlp_width=512, trained_positions=128
        ),
        data=MlmData(stores="prepare", row_length=128),
        optimizer=OptimizerConfig(
            learning_rate=1e-3,
            weight_decay=1e-5,
            warmup_steps=20,
            schedule="linear",
            beta2=0.98,
            epsilon=1e-6,
        ),
        train=LoopConfig(steps=150, batch_size=32, seed=0),
    ),
    ContrastiveStage(
        name="pretrain",
        data=PairData(stores="prepare", query_length=32, document_length=64),
        loss=ContrastiveLoss(temperature=0.05),
        optimizer=OptimizerConfig(
            learning_rate=2e-3,
            weight_decay=0.01,
            warmup_steps=20,
            schedule="inverse_sqrt",
            clip_norm=1.0,
        ),
        train=LoopConfig(steps=150, batch_size=128, seed=0),
    ),
    # The nearest twenty, not two: this model is a weak judge, and a strict one would
    # leave the easy pairs alone.
    FilterStage(
        name="filter",
        data=StagePairs(stage="prepare"),
        filtering=Filtering(k=20),
    ),
    MineStage(
        name="mine",
        data=StagePairs(stage="filter"),
        mining=Mining(count=10),
    ),
    ContrastiveStage(
        name="finetune",
        data=PairData(
            stores="mine", query_length=32, document_length=64, num_negatives=3
        ),
        loss=ContrastiveLoss(temperature=0.05),
        optimizer=OptimizerConfig(
            learning_rate=5e-4,
            weight_decay=0.01,
            warmup_steps=10,
            schedule="linear",
            clip_norm=1.0,
        ),
        train=LoopConfig(steps=60, batch_size=64, seed=0),
    ),
    EvaluateStage(
        name="evaluate",
        evaluation=EvaluationConfig(precisions=("float32", "int8", "binary")),
    ),
)
