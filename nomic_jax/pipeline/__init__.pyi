# A config's stages.
from .order import Stage as Stage
from .stages import load_stages as load_stages
from .stages import resolve as resolve
from .overrides import override as override

# Run them.
from .runner import run as run
