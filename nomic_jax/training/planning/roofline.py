"""What a stage costs on a topology: the roofline bound on a step, the run's hours.

Three things take a step time that nothing saves: its arithmetic at the chips' peak, its
bytes at the memory's bandwidth, those it sends at the links'. The step takes at least
the longest of them (Williams et al. 2009, doi:10.1145/1498765.1498785). MFU is the
model's FLOPs by those of the peak in that time: what is recomputed, and padding, count
against it. A plan is printed as a block of lines for a stage, or a row of Markdown.
"""

import dataclasses
from collections.abc import Sequence

from nomic_jax.training.planning.abstract import Step, TrainingStage
from nomic_jax.training.planning.compile import Compiled, summed
from nomic_jax.training.planning.topology import GIB, Topology


@dataclasses.dataclass(frozen=True)
class Account:
    """A stage's step on a topology, in figures."""

    step: Step
    topology: Topology
    compiled: Compiled

    @property
    def outside(self) -> float:
        """Share of the FLOPs that are neither the model's nor repeated for memory."""
        return 1 - (self.step.flops + self.step.repeated) / self.compiled.flops

    @property
    def arithmetic_seconds(self) -> float:
        """Of all products at the peak."""
        peak = self.topology.chip.peak * len(self.topology.devices)
        return self.compiled.flops / peak

    @property
    def memory_seconds(self) -> float:
        """Of all bytes to and from a device's memory."""
        return self.compiled.traffic / self.topology.chip.memory_bandwidth

    @property
    def links_seconds(self) -> float:
        """Of all bytes that a device sends."""
        sent = sum(each.sent for each in self.compiled.collectives)
        return sent / self.topology.chip.link_bandwidth

    @property
    def bounds(self) -> dict[str, float]:
        """Seconds a step takes at least, by what bounds it."""
        return {
            "arithmetic": self.arithmetic_seconds,
            "memory": self.memory_seconds,
            "links": self.links_seconds,
        }

    @property
    def seconds(self) -> float:
        """That a step takes at least."""
        return max(self.bounds.values())

    @property
    def bound_by(self) -> str:
        """What takes longest."""
        return max(self.bounds, key=self.bounds.__getitem__)

    @property
    def tokens_per_second(self) -> float:
        """At the bound, padding not counted."""
        return self.step.tokens / self.seconds

    @property
    def mfu(self) -> float:
        """At the bound."""
        peak = self.topology.chip.peak * len(self.topology.devices)
        return self.step.flops / (peak * self.seconds)

    @property
    def hours(self) -> float:
        """Of the whole stage at the bound, without evaluation and checkpoints."""
        return self.seconds * self.step.stage.train.steps / 3600


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
