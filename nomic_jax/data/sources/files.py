"""Files that sources read: local or at any fsspec URL, alone or by a pattern."""

import contextlib
import datetime
import hashlib
import io
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from nomic_jax.storage import is_remote, local_path

_PATTERN = frozenset("*?[")
# What stores call the time or the content of an object, the surest first.
_VERSION_FIELDS = ("ETag", "etag", "md5Hash", "mtime", "LastModified", "last_modified")
_VERSION_FIELDS += ("updated", "created")


def whole_place(place: str | Path) -> str:
    """Return a place that means the same from any folder."""
    return str(place) if is_remote(place) else os.path.abspath(local_path(place))


def open_file(place: str) -> io.BufferedReader:
    """Open a file to read bytes.

    Raises:
        ValueError: it cannot be opened, which is said with its place.
    """
    try:
        if not is_remote(place):
            return open(local_path(place), "rb")
        system, path = remote(place)
        # The buffer finds ends of lines in C; those of fsspec look in Python.
        return io.BufferedReader(system.open(path, "rb"), 1 << 20)
    except (OSError, ImportError) as error:
        raise cannot_read(place, error) from error


def cannot_read(place: str, error: BaseException) -> ValueError:
    """Return the error that a file cannot be read, with its reason in one line."""
    return ValueError(f"{place} cannot be read: {reason_of(error)}")


def reason_of(error: BaseException) -> str:
    """Return what an error says, in one line."""
    reason = error.strerror if isinstance(error, OSError) else None
    return reason or " ".join(str(error).split()) or type(error).__name__


def version_of(place: str) -> str:
    """Return what changes when a file does: its size, and its time or digest.

    Raises:
        ValueError: there is no such file.
    """
    try:
        if is_remote(place):
            system, path = remote(place)
            return _version(system.info(path))
        status = local_path(place).stat()
    except (OSError, ImportError) as error:
        raise cannot_read(place, error) from error
    return f"{status.st_size} {status.st_mtime_ns}"


def versions_of(places: Sequence[str]) -> dict[str, str | None]:
    """Return versions of files in one folder; None where there is no such file.

    Of a remote folder one listing is asked, not a question a file.
    """
    listed: dict[str, Mapping[str, Any]] = {}
    if places and is_remote(places[0]):
        # Not every server can list; its files are then asked for one by one.
        with contextlib.suppress(OSError, NotImplementedError, ImportError):
            system, path = remote(places[0])
            for info in system.ls(path.rpartition("/")[0], detail=True):
                listed[str(info["name"]).rpartition("/")[2]] = info
    return {
        place: _version(info)
        if (info := listed.get(place.rpartition("/")[2]))
        else _version_if_there(place)
        for place in places
    }


def fingerprint_of(versions: Mapping[str, str | None], *further: object) -> str:
    """Digest places, versions and whatever else makes the rows, into 32 hex digits."""
    parts = [sorted(versions.items()), *further]
    return hashlib.blake2b(repr(parts).encode(), digest_size=16).hexdigest()


def has_pattern(place: str | Path) -> bool:
    """Say whether a place stands for the files that match it."""
    return not _PATTERN.isdisjoint(str(place))


def matching(pattern: str | Path) -> tuple[str, ...]:
    """Return the files that a pattern means, sorted; a place without one is itself.

    Raises:
        ValueError: no file matches.
    """
    if not has_pattern(pattern):
        return (whole_place(pattern),)
    try:
        system, path = remote(whole_place(pattern))
        found = system.glob(path)
    except (OSError, ImportError) as error:
        raise cannot_read(str(pattern), error) from error
    places = found
    if is_remote(pattern):
        places = [system.unstrip_protocol(name) for name in found]
    if not places:
        raise ValueError(f"no file matches {pattern}")
    return tuple(sorted(places))


def files_below(folder: str | Path) -> tuple[str, ...]:
    """Return the files directly in a local folder, sorted."""
    return tuple(
        sorted(str(path) for path in local_path(folder).iterdir() if path.is_file())
    )


def cache_folder() -> Path:
    """Return the folder for indexes, in `XDG_CACHE_HOME` or the user's own cache."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return cache / "nomic_jax" / "indexes"


def remote(place: str) -> tuple[Any, str]:
    """Return a place's fsspec file system, and its path there."""
    import fsspec.core

    return fsspec.core.url_to_fs(place)


def _version_if_there(place: str) -> str | None:
    try:
        return version_of(place)
    except ValueError as error:
        if isinstance(error.__cause__, FileNotFoundError):
            return None
        raise


def _version(info: Mapping[str, Any]) -> str:
    found = next((info[key] for key in _VERSION_FIELDS if key in info), "")
    # A listing may have seconds where the file's own answer has an object.
    if isinstance(found, datetime.datetime):
        found = found.timestamp()
    return f"{info.get('size')} {found}"
