"""The kinds of stages, by the dataclass of their fields."""

from collections.abc import Mapping

from nomic_jax.pipeline.curate import FILTER, MINE
from nomic_jax.pipeline.evaluate import EVALUATE
from nomic_jax.pipeline.order import StageKind
from nomic_jax.pipeline.prepare import PREPARE
from nomic_jax.pipeline.train_encoder import CONTRASTIVE, MLM
from nomic_jax.pipeline.train_head import TASK

KINDS: Mapping[type, StageKind] = {
    kind.stage: kind
    for kind in (PREPARE, MLM, FILTER, CONTRASTIVE, MINE, TASK, EVALUATE)
}
