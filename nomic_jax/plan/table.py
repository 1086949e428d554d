"""A plan for people to read: a block of lines for a stage, or a row of Markdown."""

from collections.abc import Sequence

from nomic_jax.plan.account import Account
from nomic_jax.plan.assumed import TrainingStage
from nomic_jax.plan.chips import GIB
from nomic_jax.plan.collectives import summed

COLUMNS = (
    *("settings", "parameters", "optimizer", "temporaries", "total of HBM"),
    *("model", "computed", "collectives", "arithmetic", "memory", "links"),
    *("tokens/s", "MFU", "hours", "hours, realistic"),
)


def settings(account: Account) -> str:
    """Say how a stage is laid out."""
    stage, mesh = account.step.stage, account.step.mesh
    axes = "1 device" if mesh is None else "a mesh of "
    if mesh is not None:
        axes += ", ".join(f"{axis}={size}" for axis, size in mesh.shape.items())
    return f"{axes}; {memory_settings(stage)}; attention by {account.step.attention}"


def memory_settings(stage: TrainingStage) -> str:
    """Say what a device takes and keeps at a time."""
    tokens = stage.memory.tokens_at_once
    return (
        f"tokens_at_once={'all' if tokens is None else f'{tokens:,}'}, "
        f"remat={stage.memory.remat}"
    )


def block(account: Account, *, realistic: float) -> str:
    """Lay a plan out in lines.

    Args:
        account: of a stage.
        realistic: share of the bound's speed to give hours for as well.
    """
    step, compiled, topology = account.step, account.compiled, account.topology
    chip, stage, memory = topology.chip, step.stage, compiled.memory
    device = "chip" if chip.cores == 1 else "core"
    bounds = [f"{name} {duration(t)}" for name, t in account.bounds.items()]
    padding = 1 - step.tokens / step.columns
    lines = {
        "assumed": f"{step.assumed}; products in bfloat16",
        f"memory of a {device}": f"parameters {gib(memory.parameters)}, optimizer "
        f"{gib(memory.optimizer)}, batch {gib(memory.batch)}, activations and other "
        f"temporaries {gib(memory.temporaries)}, program {gib(memory.program)}",
        "": f"total {gib(memory.total)} of {gib(chip.memory)} GiB "
        f"({memory.total / chip.memory:.0%})",
        "work of a step": f"{step.tokens:,} tokens ({padding:.1%} of the columns are "
        f"padding); model {flops(step.flops)}, computed {flops(compiled.flops)}",
        "of what is computed": f"model {step.flops / compiled.flops:.1%}, repeated to "
        f"save memory {step.repeated / compiled.flops:.1%}, outside of both "
        f"{account.outside:.1%}",
        "sent by a " + device: "; ".join(_collectives(account)) or "nothing",
        "a step takes at least": f"{', '.join(bounds)}: "
        f"{duration(account.seconds)}, bound by {account.bound_by}",
        "at that bound": f"{account.tokens_per_second:,.0f} tokens/s, MFU "
        f"{account.mfu:.1%}, {hours(account.hours)} for {stage.train.steps:,} steps",
        f"at {realistic:.0%} of it": f"{hours(account.hours / realistic)}, MFU "
        f"{account.mfu * realistic:.1%}",
    }
    name = f"{topology.chips} chips"
    head = f"{stage.name} on {topology.name} ({name}), {settings(account)}"
    return "\n".join([head, *(f"  {k:<22} {v}" for k, v in lines.items())])


def markdown(rows: Sequence[Sequence[str]]) -> str:
    """Lay rows out as a Markdown table under `COLUMNS`."""
    lines = [COLUMNS, ["---"] * len(COLUMNS), *rows]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in lines)


def row(account: Account, *, realistic: float) -> list[str]:
    """Return a plan's cells for `COLUMNS`; arguments are those of `block`."""
    step, compiled, chip = account.step, account.compiled, account.topology.chip
    memory, stage = compiled.memory, account.step.stage
    mesh = "" if step.mesh is None else _short_mesh(account)
    return [
        f"{stage.name}, {account.topology.name}{mesh}; {memory_settings(stage)}",
        *(gib(x) for x in (memory.parameters, memory.optimizer, memory.temporaries)),
        f"{gib(memory.total)} of {gib(chip.memory)}",
        *(flops(each) for each in (step.flops, compiled.flops)),
        "; ".join(_collectives(account)) or "none",
        *(duration(seconds) for seconds in account.bounds.values()),
        f"{account.tokens_per_second:,.0f}",
        f"{account.mfu:.1%}",
        *(_figure(each) for each in (account.hours, account.hours / realistic)),
    ]


def gib(size: float) -> str:
    """Print bytes in GiB."""
    return f"{size / GIB:.2f}"


def flops(count: float) -> str:
    """Print FLOPs with the unit that suits them."""
    for unit, size in (("PFLOP", 1e15), ("TFLOP", 1e12)):
        if count >= size:
            return f"{count / size:.3g} {unit}"
    return f"{count / 1e9:.3g} GFLOP"


def duration(seconds: float) -> str:
    """Print a time with the unit that suits it."""
    if seconds >= 1:
        return f"{seconds:.3g} s"
    return f"{seconds * 1e3:.3g} ms" if seconds >= 1e-3 else f"{seconds * 1e6:.3g} us"


def hours(count: float) -> str:
    """Print hours."""
    if count >= 0.1:
        return f"{_figure(count)} hours"
    return f"{count * 60:.2g} minutes" if count >= 1e-3 else f"{count * 3600:.2g} s"


def _figure(count: float) -> str:
    return f"{count:,.0f}" if count >= 100 else f"{count:.3g}"


def _short_mesh(account: Account) -> str:
    mesh = account.step.mesh
    assert mesh is not None, "the caller has one"
    split = [f"{axis}={n}" for axis, n in mesh.shape.items() if n > 1]
    return f", {', '.join(split)}"


def _collectives(account: Account) -> list[str]:
    """Say what goes between devices, the most first."""
    said = []
    for each, count in summed(account.compiled.collectives):
        often = "once" if each.times == 1 else f"{each.times} times"
        where = " in loops" if each.in_loop else ""
        said.append(
            f"{count} {each.kind} of {each.bytes / 2**20:.1f} MiB among {each.group}, "
            f"{often}{where}"
        )
    return said
