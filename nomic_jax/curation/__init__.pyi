# The consistency filter.
from .filter import Filtering as Filtering
from .filter import FilterStage as FilterStage

# Hard negatives.
from .mining import MineStage as MineStage
from .mining import Mining as Mining
from .pairs import StagePairs as StagePairs
