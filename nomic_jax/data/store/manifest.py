"""The manifest of a store, and the list of the stores of a collection.

A manifest says from which source and by which rule a store was made, and lists its
files with their checksums.
"""

import contextlib
import dataclasses
import hashlib
import json
import typing
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeVar

from nomic_jax import storage
from nomic_jax.config import JsonConfig
from nomic_jax.data.sources.files import cannot_read
from nomic_jax.data.store.records import Dtype, Kind

Part = TypeVar("Part", bound=JsonConfig)
FORMAT = 1  # of the store's folder; a reader refuses any other
MANIFEST = "manifest.json"  # written last: a folder without it is not a store yet
PREPARATION = "preparation.json"  # there while the store is being made
# Of a rule: what it says of wrong input. With "error" a finished shard had none, so
# that its bytes are those of any other choice.
POLICIES = ("blank", "too_long", "too_few_negatives")
_RULE_KEYS = {"pairs": ("query_length", "document_length"), "rows": ("row_length",)}
_TYPE_NAMES = {int: "an integer", str: "a text", dict: "an object"}
# What may happen to a text, by the name of its count.
_SAID = {
    "cut_queries": "queries cut",
    "cut_documents": "documents cut",
    "cut_negatives": "negatives cut",
    "dropped_blank": "dropped as blank",
    "blank_negatives": "blank negatives left out",
    "dropped_records": "dropped for want of negatives",
    "records_with_repeated_negatives": "with repeated negatives",
    "lost_tokens": "tokens lost at the ends of ranges",
}


def shard_name(index: int, count: int) -> str:
    """Return the name that a shard's files begin with."""
    return f"shard-{index:05d}-of-{count:05d}"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Preparation(JsonConfig):
    """All that a store's bytes depend on."""

    name: str  # of the source
    kind: Kind
    rule: dict[str, Any]  # the fields of its PairRule or RowRule
    texts_per_record: int  # pairs: 2 and the stored negatives; rows: 0
    tokenizer_digest: str
    vocab_size: int  # tokens
    dtype: Dtype  # of the stored ids
    source_fingerprint: str
    input_rows: int  # of the source
    rows_per_shard: int  # of the source that become one shard

    @property
    def num_shards(self) -> int:
        """Return how many ranges the source has."""
        return -(-self.input_rows // self.rows_per_shard)

    @property
    def digest(self) -> str:
        """BLAKE2b of what a shard's bytes depend on, in 32 hex digits."""
        rule = {k: v for k, v in self.rule.items() if k not in POLICIES}
        text = json.dumps({**self.to_json(), "rule": rule}, sort_keys=True)
        return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()


@dataclasses.dataclass(frozen=True, kw_only=True)
class Shard(JsonConfig):
    """One file of records, and next to it, of pairs, one of their texts' lengths."""

    file: str  # *.array_record
    records: int
    bytes: int
    checksum: str  # BLAKE2b
    lengths_bytes: int  # of `lengths_file`; 0: there is none
    lengths_checksum: str
    distinct: int  # different documents, or rows, among the records
    first: str  # BLAKE2b of the first one

    @property
    def lengths_file(self) -> str:
        """Name of the file of lengths, int32 [records, texts_per_record]."""
        return self.file.removesuffix(".array_record") + ".lengths.npy"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Manifest(Preparation):
    """A finished store."""

    records: int
    counts: dict[str, int]  # over all shards, as `tokenize_range` counts them
    shards: tuple[Shard, ...]

    @property
    def preparation(self) -> Preparation:
        """Return what it was made of."""
        fields = dataclasses.fields(Preparation)
        return Preparation(**{f.name: getattr(self, f.name) for f in fields})

    def summary(self) -> str:
        """Return a line with the store's size, and what was cut or left out."""
        size = sum(shard.bytes + shard.lengths_bytes for shard in self.shards)
        parts = [
            f"{self.name}: {self.records:,} {self.kind}",
            f"{self.counts['tokens']:,} tokens",
            f"{size:,} bytes",
        ]
        parts += [
            f"{self.counts[key]:,} {said}"
            for key, said in _SAID.items()
            if self.counts.get(key)
        ]
        return ", ".join(parts)


def read_manifest(folder: str) -> Manifest:
    """Read a store's manifest.

    Raises:
        ValueError: there is none, it is of another format, damaged, or its parts
            disagree.
    """
    url = storage.join(folder, MANIFEST)
    try:
        value = storage.read_json(url)
    except FileNotFoundError:
        raise ValueError(_why_none(folder)) from None
    except NotADirectoryError:
        raise ValueError(f"{folder} is a file; give the folder of a store") from None
    except OSError as error:
        raise cannot_read(url, error) from error
    found = value.pop("format", None) if isinstance(value, dict) else None
    if found != FORMAT:
        raise ValueError(
            f"{url} is of format {found}, this version reads format {FORMAT}: prepare "
            "the store again, or use the version that wrote it"
        )
    try:
        shards = tuple(read_part(Shard, shard) for shard in value.pop("shards", ()))
        manifest = read_part(Manifest, {**value, "shards": shards})
        _check_parts(manifest)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{url}: {error}; prepare the store again") from error
    total = sum(shard.records for shard in manifest.shards)
    if total != manifest.records:
        raise ValueError(
            f"{url} says {manifest.records} records, its {len(manifest.shards)} shards "
            f"together {total}: it was changed; prepare the store again"
        )
    return manifest


def read_part(cls: type[Part], values: Any) -> Part:
    """Build a preparation, a shard or a manifest of what a JSON file holds.

    Raises:
        ValueError: a field is missing, unknown or of another type than it should be.
    """
    if not isinstance(values, dict):
        raise ValueError(f"{cls.__name__} is {values!r}; an object is needed")
    assert dataclasses.is_dataclass(cls)
    for field in dataclasses.fields(cls):
        value = values.get(field.name)
        origin = typing.get_origin(field.type) or field.type
        if field.name not in values or origin is tuple:
            continue
        if origin is typing.Literal:
            if value not in (known := typing.get_args(field.type)):
                raise ValueError(f"{field.name} is {value!r}; it is one of {known}")
        elif type(value) is not origin:
            name = _TYPE_NAMES.get(origin, "another type")
            raise ValueError(f"{field.name} is {value!r}; {name} is needed")
        elif isinstance(value, int) and value < 0:
            raise ValueError(f"{field.name} is {value}; it must be at least 0")
    return cls.from_json(values)


def _check_parts(manifest: Manifest) -> None:
    for key in _RULE_KEYS[manifest.kind]:
        if type(manifest.rule.get(key)) is not int:
            raise ValueError(
                f"rule.{key} is {manifest.rule.get(key)!r}; an integer is needed"
            )
    for key in ("input_rows", "tokens"):
        if key not in manifest.counts:
            raise ValueError(f"counts have no {key!r}")
    for key, count in manifest.counts.items():
        if type(count) is not int:
            raise ValueError(f"counts.{key} is {count!r}; an integer is needed")
    if not manifest.shards:
        raise ValueError("it names no shard")
    least = 2 if manifest.kind == "pairs" else 0
    if manifest.texts_per_record < least or manifest.rows_per_shard < 1:
        raise ValueError(
            f"texts_per_record is {manifest.texts_per_record}, rows_per_shard "
            f"{manifest.rows_per_shard}; at least {least} and 1 are needed"
        )


def write_manifest(folder: str, manifest: Manifest) -> None:
    """Write a finished store's manifest."""
    storage.write_json(
        storage.join(folder, MANIFEST), {"format": FORMAT, **manifest.to_json()}
    )


def check_same(
    found: Preparation, wanted: Preparation, place: str, *, finished: bool
) -> None:
    """Refuse to go on with what another preparation left.

    In one that is not finished, what was an error so far may become another choice.

    Raises:
        ValueError: a field differs; each is named with both its values.
    """
    mine, theirs = wanted.to_json(), found.to_json()
    for parts in (mine, theirs):
        parts.update({f"rule.{k}": v for k, v in parts.pop("rule").items()})
    if not finished:
        for policy in (f"rule.{name}" for name in POLICIES):
            if theirs.get(policy) == "error" and policy in mine:
                theirs[policy] = mine[policy]
    differing = [
        f"{name} is {theirs.get(name)!r} there and {mine.get(name)!r} here"
        for name in dict.fromkeys((*mine, *theirs))
        if mine.get(name) != theirs.get(name)
    ]
    if differing:
        changed = mine["source_fingerprint"] != theirs.get("source_fingerprint")
        raise ValueError(
            f"{place} holds another preparation: {'; '.join(differing)}; "
            + (
                "the source was changed, so what was made of it cannot be used: delete "
                "this folder and run the same command again, or give another folder"
                if changed and len(differing) == 1
                else "give another folder, or delete this one"
            )
        )


def _why_none(folder: str) -> str:
    if storage.exists(storage.join(folder, PREPARATION)):
        return (
            f"{folder} holds an unfinished preparation, without {MANIFEST}: run the "
            "same prepare command again, it goes on where it stopped"
        )
    if storage.exists(storage.join(folder, "stores.json")):
        return f"{folder} holds several stores; give the folder of one of them"
    return f"{folder} holds no store: there is no {MANIFEST}; prepare it first"


STORES = "stores.json"  # the names of the stores, written last
TEXT, PAIRS = "text", "pairs"  # a stage's folders of stores


def read_names(url: str | Path) -> list[str]:
    """Read the names of a collection's stores.

    Raises:
        FileNotFoundError: there is no list of them.
        ValueError: it is damaged.
    """
    place = storage.join(url, STORES)
    try:
        value = storage.read_json(place)
    except FileNotFoundError:
        raise
    except NotADirectoryError:
        raise ValueError(f"{url} is a file; give the folder of the stores") from None
    except OSError as error:
        raise cannot_read(place, error) from error
    names = value.get("stores") if isinstance(value, dict) else None
    if not isinstance(names, list) or not all(isinstance(n, str) for n in names):
        raise ValueError(
            f'{place} holds no {{"stores": [names]}}: it was changed; delete it and '
            "run the same prepare command again"
        )
    return names


def write_names(
    url: str | Path, names: Sequence[str], *, tokenizer_digest: str
) -> None:
    """List stores behind those that are listed, and any that lie there unlisted.

    The list is read just before: another command may have written it meanwhile. What it
    lost all the same is found by its folder.

    Args:
        url: the collection's folder.
        names: of the stores just made.
        tokenizer_digest: of all of them; a store of another is not listed.

    Raises:
        OSError: the list cannot be written.
        ValueError: the list that is there is damaged.
    """
    try:
        listed = read_names(url)
    except FileNotFoundError:
        listed = []
    found = [n for n in storage.folders(url) if _belongs(url, n, tokenizer_digest)]
    value = {"stores": list(dict.fromkeys((*listed, *names, *found)))}
    storage.write_json(storage.join(url, STORES), value)


def _belongs(url: str | Path, name: str, digest: str) -> bool:
    with contextlib.suppress(ValueError):  # no store, or none that can be read
        manifest = read_manifest(storage.join(url, name))
        return (manifest.name, manifest.tokenizer_digest) == (name, digest)
    return False
