"""The tables of docs/plan.md: what each published stage needs of three TPU pods.

Run where the extra [tpu] is installed; no TPU is needed, and each stage takes minutes:

    python benchmarks/plans.py [CONFIG ...]

CONFIG is the name of a file in configs/; without one all three are compiled. A row is
printed as soon as it is there.
"""

import argparse
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent

ROW = 2048  # tokens of the longest text
# What makes each stage fit, found with the advice that a refusal gives.
SETTINGS: dict[str, dict[str, tuple[str, ...]]] = {
    "mlm": {
        "v5e:4x4": ("--memory.tokens_at_once", str(4 * ROW)),
        "v5p:4x4x4": ("--memory.tokens_at_once", str(32 * ROW)),
        "v6e:16x16": ("--memory.tokens_at_once", str(8 * ROW)),
    },
    "contrastive_pretrain": {
        "v5e:4x4": ("--memory.tokens_at_once", str(4 * ROW)),
        "v5p:4x4x4": ("--memory.tokens_at_once", str(32 * ROW)),
        "v6e:16x16": ("--memory.tokens_at_once", str(8 * ROW)),
    },
    "contrastive_finetune": {
        "v5e:4x4": ("--memory.tokens_at_once", str(4 * ROW)),
        "v5p:4x4x4": (),
        "v6e:16x16": (),
    },
}


def plan(config: str, topology: str, settings: tuple[str, ...]) -> list[str]:
    """Return the lines of Markdown that the command prints: two of a head, and rows."""
    command = [sys.executable, "-m", "nomic_jax.cli", "plan", "--markdown"]
    path = ROOT / "configs" / f"{config}.py"
    arguments = ["--config", str(path), "--topology", topology, *settings]
    done = subprocess.run(
        [*command, *arguments], stdout=subprocess.PIPE, text=True, cwd=ROOT
    )
    if done.returncode:
        sys.exit(done.returncode)
    return done.stdout.splitlines()


def main() -> None:
    """Print the table of each config asked for."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("configs", nargs="*", metavar="CONFIG", default=[*SETTINGS])
    for config in parser.parse_args().configs:
        head = True
        for topology, settings in SETTINGS[config].items():
            lines = plan(config, topology, settings)
            print("\n".join(lines if head else lines[2:]), flush=True)
            head = False
        print(flush=True)


if __name__ == "__main__":
    main()
