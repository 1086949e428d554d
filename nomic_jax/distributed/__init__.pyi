# Meshes.
from .mesh import make_mesh as make_mesh
from .mesh import MeshConfig as MeshConfig
from .mesh import put_batch as put_batch
from .mesh import shardings as shardings
from .devices import default_dtype as default_dtype
from .devices import replicate_on_local_devices as replicate_on_local_devices

# Hosts.
from .hosts import start as start
