# Devices that are not here. Prepare the environment before JAX is imported.
from .environment import prepare_environment as prepare_environment
from .topology import GIB as GIB
from .topology import open_topology as open_topology

# A step on them.
from .abstract import abstract_step as abstract_step
from .abstract import Assumptions as Assumptions
from .compile import compile_step as compile_step
from .compile import Refusal as Refusal

# What it costs.
from .roofline import Account as Account
from .roofline import memory_settings as memory_settings
