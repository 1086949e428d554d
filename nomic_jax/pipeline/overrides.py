"""`--section.field VALUE` on the command line: set fields of a config's stages."""

import dataclasses
from collections.abc import Iterator, Sequence
from typing import Any

from nomic_jax.config import did_you_mean
from nomic_jax.pipeline.stages import (
    Stage,
    asks_for_accumulation,
    instead_of_accumulation,
)
from nomic_jax.training.contrastive import ContrastiveStage


def override(stages: Sequence[Stage], arguments: Sequence[str]) -> tuple[Stage, ...]:
    """Return the stages with fields set as the arguments say.

    `--section.field VALUE` sets every stage that has the field, `--STAGE.section.field
    VALUE` one stage; where both name a field the later one counts.

    Args:
        stages: of a config.
        arguments: of the command line, `--field value` or `--field=value`; `--help`
            prints every field with its value and ends the process.

    Raises:
        ValueError: no stage has a field, or something is not an option.
        SystemExit: with status 2 where a value is missing, of the wrong type, or
            refused by its stage, which is said on standard error.
    """
    import tyro

    fields = {stage.name: set(_field_paths(stage)) for stage in stages}
    expanded = []
    for name, values in _options(arguments):
        if name in ("help", "h"):
            expanded.append("--help")
            continue
        first, _, rest = name.partition(".")
        if first in fields and rest in fields[first]:
            hits = [name]
        else:
            hits = [f"{stage}.{name}" for stage, its in fields.items() if name in its]
        if not hits and asks_for_accumulation(name):
            meant = [s for s in stages if s.name == first] or stages
            contrastive = any(isinstance(stage, ContrastiveStage) for stage in meant)
            raise ValueError(
                f"no stage has a field {name!r}: "
                + instead_of_accumulation(contrastive=contrastive)
            )
        if not hits:
            known = {path for its in fields.values() for path in its}
            known |= {
                f"{stage}.{path}" for stage, its in fields.items() for path in its
            }
            raise ValueError(
                f"no stage has a field {name!r}: {did_you_mean(name, known)}"
            )
        expanded += [part for hit in hits for part in (f"--{hit}", *values)]
    run = dataclasses.make_dataclass(
        "Run", [(stage.name, type(stage), stage) for stage in stages], frozen=True
    )
    parsed = tyro.cli(
        run,
        args=expanded,
        prog="train.py --config CONFIG [--out DIR]",
        # A section of several kinds keeps the one that the config chose.
        config=(tyro.conf.AvoidSubcommands,),
        description="Fields of the config's stages. --section.field VALUE, without the "
        "stage's name, sets every stage that has the field. DIR: runs/CONFIG's name.",
    )
    return tuple(getattr(parsed, stage.name) for stage in stages)


def _options(arguments: Sequence[str]) -> Iterator[tuple[str, list[str]]]:
    """Yield each option's name, in the config's spelling, and its values.

    Raises:
        ValueError: something is before the first option.
    """
    name: str | None = None
    values: list[str] = []
    for argument in arguments:
        if argument.startswith("--") or argument == "-h":
            if name is not None:
                yield name, values
            name, equals, value = argument.lstrip("-").partition("=")
            name, values = name.replace("-", "_"), [value] if equals else []
        elif name is None:
            raise ValueError(
                f"{argument!r} is not an option; write --section.field VALUE"
            )
        else:
            values.append(argument)
    if name is not None:
        yield name, values


def _field_paths(section: Any, prefix: str = "") -> Iterator[str]:
    """Yield the dotted path of every field that holds a value."""
    for field in dataclasses.fields(section):
        value = getattr(section, field.name)
        if dataclasses.is_dataclass(value):
            yield from _field_paths(value, f"{prefix}{field.name}.")
        elif isinstance(value, tuple) and any(map(dataclasses.is_dataclass, value)):
            for number, each in enumerate(value):
                yield from _field_paths(each, f"{prefix}{field.name}.{number}.")
        elif prefix:  # a stage's own name is not to be set
            yield prefix + field.name
