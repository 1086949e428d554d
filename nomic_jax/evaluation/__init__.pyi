# Tasks.
from .kinds.registry import KINDS as KINDS
from .kinds.registry import open_tasks as open_tasks
from .kinds.registry import Task as Task
from .kinds.retrieval import JudgedRetrieval as JudgedRetrieval
from .kinds.retrieval import NONE as NONE
from .kinds.retrieval import score as score
from .records import Side as Side

# Measuring.
from .measurement import figures as figures
from .measurement import measure as measure
from .measurement import measure_all as measure_all
from .measurement import metrics_of as metrics_of
from .bm25 import rank_bm25 as rank_bm25
from .mteb import MtebModel as MtebModel

# The evaluate stage.
from .config import EvaluateStage as EvaluateStage
from .config import EvaluationConfig as EvaluationConfig
