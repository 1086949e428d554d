"""Train what a config says: `python train.py --config configs/NAME.py [--out DIR]`.

`--section.field VALUE` sets a field of every stage that has it, `--STAGE.section.field
VALUE` of one; `--config FILE --help` lists them. The same command resumes a run.
"""

import sys

from nomic_jax.cli import train

if __name__ == "__main__":
    sys.exit(train(sys.argv[1:]))
