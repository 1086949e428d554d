"""The books of a checkpoint: each tensor expected, each one found, and every fault."""

import dataclasses
from collections import defaultdict
from collections.abc import Mapping

import numpy as np

from nomic_jax.checkpoints import rules
from nomic_jax.checkpoints.problems import Problem
from nomic_jax.checkpoints.rules import Place, Rule
from nomic_jax.checkpoints.tensor_files import StoredTensor
from nomic_jax.config import ModelConfig


@dataclasses.dataclass
class Accounts:
    """One pass over the tensors of a file, collecting problems."""

    config: ModelConfig
    stored: Mapping[str, StoredTensor]
    problems: list[Problem] = dataclasses.field(default_factory=list)
    stores_decoder: bool = False

    def ours(self) -> dict[str, StoredTensor]:
        """Check a file of ours; return its parameters."""
        shapes = {
            rule.ours: rule.stacked_shape(self.config)
            for rule in rules.rules_for(self.config)
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

    def published(self) -> dict[str, StoredTensor]:
        """Check a published file; return our parameters, stacked when they are read."""
        found: dict[tuple[Rule, int], dict[int | None, list[str]]]
        found = defaultdict(lambda: defaultdict(list))
        expected = rules.rules_for(self.config)
        decoder: str | None = None
        for name in self.stored:
            place = rules.locate(name)
            if name == rules.TIED_DECODER:
                decoder = name
            elif place is not None and self._expects(place, expected):
                found[place.rule, place.layer][place.part].append(name)
            elif not rules.is_buffer(name):
                self._problem("unused", name)
        tensors: dict[str, StoredTensor] = {}
        for rule in expected:
            layers = range(self.config.num_layers if rule.stacked else 1)
            names = [self._names(rule, layer, found[rule, layer]) for layer in layers]
            if all(names):
                tensors[rule.ours] = self._stack(rule, names)
        if decoder is not None:
            self._check_tied(decoder)
        return tensors

    def _expects(self, place: Place, expected: tuple[Rule, ...]) -> bool:
        layers = self.config.num_layers if place.rule.stacked else 1
        return place.rule in expected and place.layer < layers

    def _problem(self, kind: str, name: str, note: str = "") -> None:
        self.problems.append(Problem(kind, name, note))

    def _names(
        self, rule: Rule, layer: int, parts: Mapping[int | None, list[str]]
    ) -> list[str]:
        """Return the names whose tensors together are one of the rule's, in order."""
        everything = [name for names in parts.values() for name in names]
        if not everything:
            needed = f"(needed for {rule.ours})"
            self._problem("missing", rule.published.format(layer), needed)
            return []
        shape = rule.shapes(self.config)[1]
        if set(parts) == {None}:
            first, *others = parts[None]
            self._check(first, shape)
            for other in others:
                # The head's bias goes under two names; they must be one tensor.
                if rule.published != rules.HEAD_BIAS or not self._equal(first, other):
                    self._problem("twice", other, f"(also stored as {first})")
            return [first]
        if None in parts or any(len(names) > 1 for names in parts.values()):
            first, *others = everything
            for other in others:
                self._problem("twice", other, f"(also stored as {first})")
            return []
        native = rules.native_names(rule)
        for part, name in enumerate(native):
            if part in parts:
                self._check(parts[part][0], (shape[0] // len(native), *shape[1:]))
            else:
                needed = f"(needed for {rule.ours})"
                self._problem("missing", name.format(layer), needed)
        return [parts[part][0] for part in sorted(parts, key=lambda part: part or 0)]

    def _check(self, name: str, shape: tuple[int, ...]) -> None:
        tensor = self.stored[name]
        if isinstance(tensor.dtype, str):
            note = f"is {tensor.dtype}; float32, float16 or bfloat16 is needed"
            self._problem("dtype", name, note)
        elif not np.all(np.isfinite(values := tensor.read())):
            bad = int(np.sum(~np.isfinite(values)))
            note = f"has {bad} NaN or infinite values of {values.size}"
            self._problem("value", name, note)
        if tensor.shape != shape:
            self._problem("shape", name, f"is {tensor.shape}, expected {shape}")

    def _equal(self, first: str, second: str) -> bool:
        one, other = self.stored[first], self.stored[second]
        if (one.shape, one.dtype) != (other.shape, other.dtype):
            return False
        return isinstance(one.dtype, str) or one.read().tobytes() == (
            other.read().tobytes()
        )

    def _check_tied(self, decoder: str) -> None:
        self.stores_decoder = True
        table = next(
            (
                name
                for name in self.stored
                if (place := rules.locate(name))
                and place.rule.ours == "encoder.word_embedding.embedding"
            ),
            None,
        )
        if self.config.head is None:
            self._problem("unused", decoder)
        elif table is not None and not self._equal(table, decoder):
            note = f"(differs from {table}; only a tied decoder is implemented)"
            self._problem("config", decoder, note)

    def _stack(self, rule: Rule, names: list[list[str]]) -> StoredTensor:
        config, stored = self.config, self.stored
        dtypes = {stored[name].dtype for layer in names for name in layer}
        if len(dtypes) > 1:
            shown = " and ".join(sorted(map(str, dtypes)))
            note = f"is {shown}; one dtype in all layers is needed"
            self._problem("dtype", rule.published.format("*"), note)

        dtype = next(iter(dtypes))

        def one(layer: list[str]) -> np.ndarray:
            parts = [stored[name].read() for name in layer]
            array = parts[0] if len(parts) == 1 else np.concatenate(parts)
            return rule.to_ours(array, config)

        def read() -> np.ndarray:
            if not rule.stacked:
                return one(names[0])
            array = np.empty(rule.stacked_shape(config), dtype)
            for layer, layer_names in enumerate(names):
                array[layer] = one(layer_names)
            return array

        return StoredTensor(rule.stacked_shape(config), dtype, read)
