from .runner import run as run
from .stages import load_stages as load_stages
from .stages import resolve as resolve
from .stages import Stage as Stage
from .overrides import override as override
