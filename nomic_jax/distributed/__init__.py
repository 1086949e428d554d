"""Many devices, many hosts: the mesh, sharding rules, agreement between hosts."""

from nomic_jax.lazy import offer

__getattr__, __dir__, __all__ = offer(__name__, __file__)
