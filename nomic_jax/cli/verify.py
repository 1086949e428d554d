"""The command `nomic-jax verify`."""

import dataclasses

from nomic_jax.cli.options import Model


@dataclasses.dataclass(frozen=True)
class Verify:
    """Check a model against its fingerprint and, where it is installed, PyTorch."""

    model: Model  # folder or hub id


def verify(options: Verify) -> int:
    """Run `nomic-jax verify`: a line for each comparison, status 1 if one fails."""
    from nomic_jax.inference.verify import comparisons

    failed = False
    for comparison in comparisons(options.model):
        print(comparison, flush=True)
        failed |= not comparison.passed
    return int(failed)
