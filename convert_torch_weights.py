"""Convert a checkpoint between the layouts of JAX, Nomic and transformers.

python convert_torch_weights.py SOURCE DEST --to jax
"""

import sys

from nomic_jax.checkpoints.conversion import main

if __name__ == "__main__":
    sys.exit(main())
