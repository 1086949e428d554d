"""What a stage costs on a topology: the roofline bound on a step, the run's hours.

Three things a step cannot do without take time: its arithmetic at the chips' peak, its
bytes at the memory's bandwidth, those it sends at the links'. The step takes at least
the longest of them (Williams et al. 2009, doi:10.1145/1498765.1498785). MFU is the
model's FLOPs by those of the peak in that time: what is recomputed, and padding, count
against it.
"""

import dataclasses

from nomic_jax.plan.abstract import Step
from nomic_jax.plan.compiled import Compiled
from nomic_jax.plan.topology import Topology


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
