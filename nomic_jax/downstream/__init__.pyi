# The task stage.
from .config import HeadConfig as HeadConfig
from .config import TaskData as TaskData
from .stage import config_with_head as config_with_head
from .stage import TaskStage as TaskStage
from .stage import TaskStart as TaskStart

# Examples and batches.
from .examples import labels_of as labels_of
from .examples import read_examples as read_examples
from .examples import TextExample as TextExample
from .heads import TaskEncoding as TaskEncoding
from .batches import padded as padded
from .batches import TaskBatches as TaskBatches

# Losses and predictions.
from .losses import task_objective as task_objective
from .prediction import predict as predict
from .metrics import evaluate_task as evaluate_task

# GLUE.
from .glue_grid import AFTER_MNLI as AFTER_MNLI
from .glue import glue_stage as glue_stage
