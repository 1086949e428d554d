"""A stage's folder: its resolved config, its metrics, its checkpoints.

    config.json  metrics.jsonl  checkpoints/STEP

It may be a URL; one host of several writes into it.
"""

import dataclasses
import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from nomic_jax.config import differing_fields
from nomic_jax.data.store.store import Store
from nomic_jax.distributed import hosts
from nomic_jax.storage import (
    exists,
    is_remote,
    join,
    local_path,
    name_of,
    read_json,
    sizes,
    write_json,
)

# Sections of a stage that say where it runs, and not what it computes.
WHERE = ("mesh", "memory", "compute")


def computation(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return what a resolved config computes: a run may go on elsewhere."""
    kept = {name: config[name] for name in config if name not in WHERE}
    return json.loads(json.dumps(kept))  # tuples become lists, as on disk


def config_hash(config: Mapping[str, Any]) -> str:
    """Digest what a resolved config computes, however and wherever that is."""
    text = json.dumps(computation(config), sort_keys=True, ensure_ascii=False)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


@dataclasses.dataclass(frozen=True)
class RunFolder:
    """The folder of one stage, opened for one resolved config."""

    place: str  # absolute, or a URL
    writes: bool = True  # whether this host is the one that writes into it

    @classmethod
    def open(
        cls, folder: str | Path, config: Mapping[str, Any], *, write: bool = True
    ) -> "RunFolder":
        """Make the folder, or find it as an earlier run with the same config left it.

        Args:
            folder: a local one, or a URL.
            config: the stage's, resolved.
            write: whether this host is the one that writes.

        Raises:
            ValueError: the folder belongs to another config.
        """
        cls.check(folder, config)
        place = str(folder) if is_remote(folder) else str(local_path(folder).resolve())
        if write:
            found = {"hash": config_hash(config), "stage": config}
            write_json(join(place, "config.json"), found)
        return cls(place, write)

    @staticmethod
    def check(folder: str | Path, config: Mapping[str, Any]) -> None:
        """Refuse a folder in which another config has run.

        Raises:
            ValueError: the fields that differ are named with both values.
        """
        file = join(folder, "config.json")
        # A stage that failed before it left anything else is as good as new.
        if not exists(file) or _holds_nothing_else(folder):
            return
        if changed := differing_fields(
            computation(read_json(file)["stage"]), computation(config)
        ):
            raise ValueError(
                f"{folder} holds a run of another config: {'; '.join(changed)}; "
                f"use another --out, or remove {str(folder).rpartition('/')[0]}"
            )

    def pin_stores(self, stores: Mapping[str, Store]) -> None:
        """Note which stores the stage trains on, or compare with those noted before.

        Which records a step takes depends on the sources and their sizes, so a stage
        that is resumed needs the stores it began with.

        Raises:
            ValueError: a store was added, taken away or prepared again since, or the
                hosts see different ones.
        """
        file = join(self.place, "stores.json")
        found = {
            name: {
                "records": len(store),
                "preparation": store.manifest.preparation.digest,
            }
            for name, store in stores.items()
        }
        hosts.assert_equal_across_hosts(f"stores of {name_of(self.place)}", found)
        if not exists(file):
            if self.writes:
                write_json(file, found)
        elif changed := differing_fields(read_json(file), found):
            raise ValueError(
                f"{self.place} was trained on other stores: {'; '.join(changed)}; give "
                "it the ones it began with, or begin in another --out"
            )

    @property
    def config(self) -> Mapping[str, Any]:
        """The resolved config it was opened for."""
        return read_json(join(self.place, "config.json"))["stage"]

    @property
    def metrics_file(self) -> str:
        """One JSON object a line, one line a logged step."""
        return join(self.place, "metrics.jsonl")


def _holds_nothing_else(folder: str | Path) -> bool:
    """Say whether a folder holds one file and no folder."""
    if not is_remote(folder):
        return len(list(local_path(folder).iterdir())) == 1
    return len(sizes(folder)) == 1 and not exists(join(folder, "checkpoints"))
