"""Training stages so small that a pod's compiler takes seconds over their steps."""

from nomic_jax.training.contrastive import ContrastiveStage, PairData
from nomic_jax.training.loop import LoopConfig
from nomic_jax.training.losses.contrastive import ContrastiveLoss
from nomic_jax.training.mlm import MlmData, MlmStage, ModelSize
from nomic_jax.training.optimizer import OptimizerConfig

OPTIMIZER = OptimizerConfig(
    learning_rate=1e-3, weight_decay=0.01, warmup_steps=2, schedule="linear"
)

MLM = MlmStage(
    name="mlm",
    model=ModelSize(
        num_layers=2, width=128, num_heads=4, mlp_width=256, trained_positions=64
    ),
    data=MlmData(stores="stores/text", row_length=64),
    optimizer=OPTIMIZER,
    train=LoopConfig(steps=100, batch_size=64, seed=0),
)
PAIRS = ContrastiveStage(
    name="pretrain",
    data=PairData(
        stores="stores/pairs", query_length=32, document_length=64, num_negatives=1
    ),
    loss=ContrastiveLoss(),
    optimizer=OPTIMIZER,
    train=LoopConfig(steps=100, batch_size=64, seed=0),
)
stages = (MLM, PAIRS)
