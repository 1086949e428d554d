"""The books of a checkpoint: each tensor expected, each one found, and every fault."""

import dataclasses
import itertools
from collections import Counter, defaultdict
from collections.abc import Mapping

import numpy as np

from nomic_jax.checkpoints.places import (
    Place,
    is_buffer,
    is_left_over,
    places,
    tied_decoders,
)
from nomic_jax.checkpoints.problems import Problem
from nomic_jax.checkpoints.row import Naming
from nomic_jax.checkpoints.rules import Rule, rules_for
from nomic_jax.checkpoints.tensor_files import StoredTensor
from nomic_jax.config import ModelConfig

WORD_TABLE = "encoder.word_embedding.embedding"
HEAD_BIAS = "head.bias"  # the one parameter that files hold under two names


@dataclasses.dataclass
class Accounts:
    """One pass over the tensors of a file, collecting problems."""

    config: ModelConfig
    stored: Mapping[str, StoredTensor]
    problems: list[Problem] = dataclasses.field(default_factory=list)
    stores_decoder: bool = False
    left_over: list[str] = dataclasses.field(default_factory=list)
    checked: set[str] = dataclasses.field(default_factory=set)
    prefix: str = ""  # that a published file's names of the encoder begin with

    def ours(self) -> dict[str, StoredTensor]:
        """Check a file of ours; return its parameters."""
        shapes = {
            rule.ours: rule.stacked_shape(self.config)
            for rule in rules_for(self.config)
        }
        for name in self.stored:
            if name not in shapes:
                self._problem("unused", name)
            else:
                self._check(name, shapes[name])
        for name in shapes:
            if name not in self.stored:
                self._problem("missing", name)
        return {name: self.stored[name] for name in shapes if name in self.stored}

    def published(self, naming: Naming) -> dict[str, StoredTensor]:
        """Check a published file; return our parameters, stacked when they are read.

        Args:
            naming: whose names the missing tensors are told by; all are read.
        """
        rules = rules_for(self.config, naming)
        known = places(rules, self.config)
        found: dict[tuple[str, int], list[tuple[Place, str]]] = defaultdict(list)
        decoders = []
        prefixes: Counter[str] = Counter()
        for name in self.stored:
            if name in tied_decoders(self.config):
                decoders.append(name)
            elif is_left_over(name, self.config):
                self.left_over.append(name)
            elif name in known:
                for place in known[name]:
                    found[place.rule.ours, place.index].append((place, name))
                    prefixes[_prefix(place)] += place.option.inside
            elif not is_buffer(name):
                self._problem("unused", name)
        if prefixes:
            self.prefix = prefixes.most_common(1)[0][0]
        tensors: dict[str, StoredTensor] = {}
        for rule in rules:
            layers = range(len(rule.layers) or 1)
            chosen = [self._chosen(rule, i, found[rule.ours, i]) for i in layers]
            if all(chosen):
                tensors[rule.ours] = self._stack(rule, chosen)
        if decoders:
            table = found[WORD_TABLE, 0]
            self._check_tied(decoders, table[0][1] if table else None)
        return tensors

    def _problem(self, kind: str, name: str, note: str = "") -> None:
        self.problems.append(Problem(kind, name, note))

    def _chosen(
        self, rule: Rule, index: int, found: list[tuple[Place, str]]
    ) -> list[tuple[Place, str]]:
        """Return the tensors that together are one layer of a parameter, in order."""
        layer = rule.layers[index] if rule.layers else 0
        needed = f"(needed for {rule.ours})"
        if not found:
            prefix = self.prefix if rule.options and rule.options[0].inside else ""
            for name in rule.options[0].names if rule.options else (rule.ours,):
                self._problem("missing", prefix + name.format(layer), needed)
            return []
        first = found[0]
        parts: dict[int, tuple[Place, str]] = {}
        for place, name in found:
            if place.source == first[0].source and place.part not in parts:
                parts[place.part] = (place, name)
            elif rule.ours != HEAD_BIAS or not self._equal(first[1], name):
                self._problem("twice", name, f"(also stored as {first[1]})")
        names = first[0].option.names
        shape = rule.shapes(self.config)[1]
        rows = shape[0] * first[0].option.share[1] // len(names)
        for part, name in enumerate(names):
            if part in parts:
                self._check(parts[part][1], (rows, *shape[1:]))
            else:
                name = _prefix(first[0]) + name.format(layer)
                self._problem("missing", name, needed)
        return [parts[part] for part in sorted(parts)]

    def _check(self, name: str, shape: tuple[int, ...]) -> None:
        tensor = self.stored[name]
        if name not in self.checked:
            self.checked.add(name)
            self._check_values(name, tensor)
        if tensor.shape != shape:
            self._problem("shape", name, f"is {tensor.shape}, expected {shape}")

    def _check_values(self, name: str, tensor: StoredTensor) -> None:
        if isinstance(tensor.dtype, str):
            note = f"is {tensor.dtype}; float32, float16 or bfloat16 is needed"
            self._problem("dtype", name, note)
        elif not np.all(np.isfinite(values := tensor.read())):
            bad = int(np.sum(~np.isfinite(values)))
            note = f"has {bad} NaN or infinite values of {values.size}"
            self._problem("value", name, note)

    def _equal(self, first: str, second: str) -> bool:
        one, other = self.stored[first], self.stored[second]
        if (one.shape, one.dtype) != (other.shape, other.dtype):
            return False
        return isinstance(one.dtype, str) or one.read().tobytes() == (
            other.read().tobytes()
        )

    def _check_tied(self, decoders: list[str], table: str | None) -> None:
        self.stores_decoder = True
        for decoder in decoders:
            if self.config.head not in ("mlm", "pretraining"):
                self._problem("unused", decoder)
            elif table is not None and not self._equal(table, decoder):
                note = f"(differs from {table}; only a tied decoder is implemented)"
                self._problem("config", decoder, note)

    def _stack(self, rule: Rule, chosen: list[list[tuple[Place, str]]]) -> StoredTensor:
        config, stored = self.config, self.stored
        dtypes = {stored[name].dtype for _, name in itertools.chain(*chosen)}
        if len(dtypes) > 1:
            shown = " and ".join(sorted(map(str, dtypes)))
            note = f"is {shown}; one dtype in all layers is needed"
            self._problem("dtype", chosen[0][0][0].option.names[0].format("*"), note)
        dtype = next(iter(dtypes))

        def one(layer: list[tuple[Place, str]]) -> np.ndarray:
            parts = [stored[name].read() for _, name in layer]
            array = parts[0] if len(parts) == 1 else np.concatenate(parts)
            share, count = layer[0][0].option.share
            rows = len(array) // count
            return rule.to_ours(array[share * rows : (share + 1) * rows], config)

        def read() -> np.ndarray:
            if not rule.stacked:
                return one(chosen[0])
            array = np.empty(rule.stacked_shape(config), dtype)
            for index, layer in enumerate(chosen):
                array[index] = one(layer)
            return array

        return StoredTensor(rule.stacked_shape(config), dtype, read)


def _prefix(place: Place) -> str:
    """Return what stands before the published name of a tensor that is there."""
    return place.source.removesuffix(str(place.option))
