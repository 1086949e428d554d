# Stages.
from .mlm import mlm_objective as mlm_objective
from .mlm import MlmData as MlmData
from .mlm import MlmStage as MlmStage
from .mlm import ModelSize as ModelSize
from .mlm import train_mlm as train_mlm
from .contrastive import BiEncoder as BiEncoder
from .contrastive import contrastive_objective as contrastive_objective
from .contrastive import ContrastiveStage as ContrastiveStage
from .contrastive import pair_batches as pair_batches
from .contrastive import PairData as PairData
from .contrastive import StageEmbedding as StageEmbedding
from .contrastive import train_contrastive as train_contrastive
from .start import StartConfig as StartConfig

# Losses.
from .losses.contrastive import contrastive_loss as contrastive_loss
from .losses.contrastive import ContrastiveLoss as ContrastiveLoss
from .losses.contrastive import info_nce as info_nce
from .losses.distillation import TeacherConfig as TeacherConfig
from .experts import ExpertsConfig as ExpertsConfig

# The step and the loop.
from .optimizer import make_optimizer as make_optimizer
from .optimizer import OptimizerConfig as OptimizerConfig
from .placement import ComputeConfig as ComputeConfig
from .placement import MemoryConfig as MemoryConfig
from .placement import Placement as Placement
from .steps import make_update as make_update
from .steps import TrainState as TrainState
from .loop import feed as feed
from .loop import LoopConfig as LoopConfig
from .loop import train as train

# What a run leaves.
from .metrics import read_metrics as read_metrics
from .run_folder import RunFolder as RunFolder

# Model FLOPs.
from .flops import flops_per_token as flops_per_token
from .flops import forward_flops as forward_flops
from .flops import mlp_flops as mlp_flops
from .flops import peak_flops as peak_flops
