"""What each published stage needs of TPU pods that are not here.

Run where the extra [tpu] is installed; no TPU is needed, and each stage takes minutes:

    python benchmarks/plans.py [CONFIG ...]

CONFIG is the name of a file in configs/; without one all three are compiled, and the
tables of docs/plan.md printed. A row is printed as soon as it is there.

    python benchmarks/plans.py --products

compiles MLM and contrastive pretraining for four chips, and records what share of the
products in the compiled programs is neither the model's nor repeated to save memory.
"""

import argparse
import subprocess
import sys
from pathlib import Path

from nomic_jax.training.planning import prepare_environment

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
# Of each chip the rows that fit, on few chips: a chip's share of the products is the
# same on a larger slice, and compiling for one takes longer.
PRODUCTS = {"v5p:2x2x1": "v5p:4x4x4", "v6e:2x2": "v6e:16x16"}


def plan(config: str, topology: str, settings: tuple[str, ...]) -> list[str]:
    """Return the lines of Markdown that the command prints: two of a head, and rows."""
    command = [sys.executable, "-m", "nomic_jax.cli.main", "plan", "--markdown"]
    path = ROOT / "configs" / f"{config}.py"
    arguments = ["--config", str(path), "--topology", topology, *settings]
    done = subprocess.run(
        [*command, *arguments], stdout=subprocess.PIPE, text=True, cwd=ROOT
    )
    if done.returncode:
        sys.exit(done.returncode)
    return done.stdout.splitlines()


def record_products() -> None:
    """Compile steps and record what of their products is outside the model.

    Raises:
        ValueError: a step does not fit its chips.
    """
    prepare_environment()  # before anything imports JAX

    from environment import environment
    from record import Row, record

    from nomic_jax.pipeline import load_stages, override
    from nomic_jax.training.planning import (
        GIB,
        Account,
        Assumptions,
        Refusal,
        abstract_step,
        compile_step,
        memory_settings,
        open_topology,
    )

    given, assumed = environment("libtpu"), Assumptions()
    for config in ("mlm", "contrastive_pretrain"):
        for name, like in PRODUCTS.items():
            topology = open_topology(name)
            stages = load_stages(ROOT / "configs" / f"{config}.py")
            (stage,) = override(stages, SETTINGS[config][like])
            step = abstract_step(stage, (), topology.devices, assumed)
            compiled = compile_step(step, topology.chip)
            if isinstance(compiled, Refusal):
                raise ValueError(f"{config} does not fit {name}: {compiled.said}")
            row = Row(
                work=f"configs/{config}.py compiled",
                detail=f"{name}, {memory_settings(stage)}",
                ours=Account(step, topology, compiled).outside,
                unit="of all FLOPs",
                goal="tpu-products",
                extra={
                    "the model's": step.flops / compiled.flops,
                    "repeated to save memory": step.repeated / compiled.flops,
                    "memory, GiB a chip": compiled.memory.total / GIB,
                    "there is, GiB": topology.chip.memory / GIB,
                    "attention": step.attention,
                },
            )
            record("plans", [row], given)


def main() -> None:
    """Print the table of each config asked for, or record the products."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("configs", nargs="*", metavar="CONFIG", default=[*SETTINGS])
    parser.add_argument(
        "--products", action="store_true", help="record what is outside the model"
    )
    options = parser.parse_args()
    if options.products:
        record_products()
        return
    for config in options.configs:
        head = True
        for topology, settings in SETTINGS[config].items():
            lines = plan(config, topology, settings)
            print("\n".join(lines if head else lines[2:]), flush=True)
            head = False
        print(flush=True)


if __name__ == "__main__":
    main()
