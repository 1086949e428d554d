# What `train.py` calls.
from .main import train as train

# Before JAX is imported: freed memory is kept for the next step.
from .main import keep_freed_memory as keep_freed_memory
