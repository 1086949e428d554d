"""What a store's folder holds, local or at a URL: one listing, not a call per file."""

import contextlib
import os
from pathlib import PurePosixPath

from nomic_jax import storage


def sizes(folder: str) -> dict[str, int]:
    """Return the bytes of each file in a folder by name; a missing one is empty."""
    if not storage.is_remote(folder):
        try:
            with os.scandir(storage.local_path(folder)) as entries:
                return {e.name: e.stat().st_size for e in entries if e.is_file()}
        except FileNotFoundError:
            return {}
    import fsspec.core

    filesystem, path = fsspec.core.url_to_fs(folder)
    try:
        entries = filesystem.ls(path, detail=True, refresh=True)
    except FileNotFoundError:
        return {}
    return {
        PurePosixPath(entry["name"]).name: int(entry["size"] or 0)
        for entry in entries
        if entry["type"] == "file"
    }


def remove(folder: str, name: str) -> None:
    """Delete a file, which may be gone already."""
    url = storage.join(folder, name)
    with contextlib.suppress(FileNotFoundError):
        if not storage.is_remote(url):
            storage.local_path(url).unlink()
            return
        import fsspec.core

        filesystem, path = fsspec.core.url_to_fs(url)
        filesystem.rm_file(path)
