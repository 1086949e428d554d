"""Named fields: the one that a mistyped name meant, what differs, to JSON and back."""

import dataclasses
import difflib
import inspect
import types
from collections.abc import Iterable, Mapping
from typing import Any, TypeVar, get_args, get_origin


def nearest(name: str, known: Iterable[str]) -> str:
    """Say which of the known names a mistyped one probably meant.

    Returns:
        A clause to end an error with: the nearest name, or all of them.
    """
    known = sorted(known)
    close = difflib.get_close_matches(name, known, n=1)
    return f"did you mean {close[0]!r}?" if close else f"known: {', '.join(known)}"


def differing_fields(
    old: Mapping[str, Any],
    new: Mapping[str, Any],
    *,
    words: str = "{} was {!r} and is {!r}",
    prefix: str = "",
) -> list[str]:
    """Say of each field in which two nested mappings differ what both hold.

    Args:
        old: the one before.
        new: the one beside it.
        words: of a field's name, its old value and its new one.
        prefix: of the names.
    """
    found = []
    for name in sorted({*old, *new}):
        mine, theirs = old.get(name), new.get(name)
        if isinstance(mine, Mapping) and isinstance(theirs, Mapping):
            inside = f"{prefix}{name}."
            found += differing_fields(mine, theirs, words=words, prefix=inside)
        elif mine != theirs:
            found.append(words.format(prefix + name, mine, theirs))
    return found


Config = TypeVar("Config", bound="JsonConfig")


class JsonConfig:
    """A frozen dataclass that goes to JSON and back, refusing unknown fields."""

    def to_json(self) -> dict[str, Any]:
        """Return the fields as a plain dictionary."""
        assert dataclasses.is_dataclass(self)
        return dataclasses.asdict(self)

    @classmethod
    def from_json(cls: type[Config], values: Mapping[str, Any]) -> Config:
        """Build from a dictionary as `to_json` gives it.

        Raises:
            ValueError: a field is unknown, missing or of another type than it should
                be; all of them are named.
        """
        assert dataclasses.is_dataclass(cls)
        fields = {field.name: field for field in dataclasses.fields(cls)}
        required = {
            name
            for name, field in fields.items()
            if field.default is dataclasses.MISSING
            and field.default_factory is dataclasses.MISSING
        }
        problems = [
            f"unknown field {name!r}: {nearest(name, fields)}"
            for name in values
            if name not in fields
        ] + [f"missing field {name!r}" for name in sorted(required - set(values))]
        problems += [
            f"{name}={values[name]!r} must be {inspect.formatannotation(field.type)}"
            for name, field in fields.items()
            if name in values and not _is_a(field.type, values[name])
        ]
        if problems:
            raise ValueError(f"{cls.__name__}: " + "; ".join(problems))
        return cls(
            **{
                name: tuple(value) if isinstance(value, list) else value
                for name, value in values.items()
            }
        )


def _is_a(kind: Any, value: Any) -> bool:
    """Whether a value of JSON has an annotated type; what is not simple is not asked.

    Args:
        kind: bool, int, float, str, None, a tuple of one of them, or a union.
        value: of the field.
    """
    if isinstance(kind, types.UnionType):
        return any(_is_a(one, value) for one in get_args(kind))
    if get_origin(kind) is tuple:
        listed = isinstance(value, (list, tuple))
        return listed and all(_is_a(get_args(kind)[0], one) for one in value)
    if kind in (int, float):  # a whole number is written without its point
        number = int if kind is int else (int, float)
        return isinstance(value, number) and not isinstance(value, bool)
    return kind not in (bool, str, types.NoneType) or isinstance(value, kind)
