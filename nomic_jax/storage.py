"""Files at local paths, or at URLs of gs://, s3:// and other stores.

A file appears whole or not at all. Locally it is written next to its place and moved;
an object store shows an object only when its upload is complete. Code that needs a
local folder gets one: a folder at a URL is fetched to be read, and written here first
and then uploaded.
"""

import contextlib
import hashlib
import json
import os
import shutil
import socket
import tempfile
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import IO, Any


@contextlib.contextmanager
def whole_file(path: Path) -> Iterator[IO[bytes]]:
    """Open a file that takes its place when the block ends without an error.

    Until then a file that stood there keeps its place; after an error nothing is left.
    """
    partial = path.with_name(partial_name(path.name))
    try:
        with partial.open("wb") as file:
            yield file
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


def partial_name(name: str) -> str:
    """Return what a file is called while this process writes it: .NAME.HOST.ID.partial.

    Processes of several machines may write in one folder.
    """
    return f".{name}.{host_name()}.{os.getpid()}.partial"


def host_name() -> str:
    """Return this machine's name, without dots."""
    return socket.gethostname().replace(".", "-")


def is_remote(url: str | Path) -> bool:
    """Say whether a place is a URL of another system than the local files."""
    return "://" in str(url) and not str(url).startswith("file://")


def local_path(url: str | Path) -> Path:
    """Return the path of a local place, given with or without `file://`.

    Raises:
        ValueError: the place is a URL of another system.
    """
    if is_remote(url):
        raise ValueError(f"{url} is not a local path")
    return Path(str(url).removeprefix("file://"))


def join(folder: str | Path, *names: str) -> str:
    """Return the place of a file in a folder, local or not."""
    if is_remote(folder):
        return "/".join([str(folder).rstrip("/"), *names])
    return str(local_path(folder).joinpath(*names))


def name_of(url: str | Path) -> str:
    """Return the last part of a place."""
    return PurePosixPath(str(url).rstrip("/")).name


def exists(url: str | Path) -> bool:
    """Say whether there is a file or folder."""
    if not is_remote(url):
        return local_path(url).exists()
    filesystem, path = _remote(url)
    return filesystem.exists(path)


def size(url: str | Path) -> int:
    """Return a file's bytes.

    Raises:
        FileNotFoundError: there is no such file.
    """
    if not is_remote(url):
        return local_path(url).stat().st_size
    filesystem, path = _remote(url)
    return int(filesystem.size(path) or 0)


def sizes(folder: str | Path) -> dict[str, int]:
    """Return the bytes of each file in a folder by name; a missing one is empty.

    One listing, not a question a file.
    """
    if not is_remote(folder):
        try:
            with os.scandir(local_path(folder)) as entries:
                return {e.name: e.stat().st_size for e in entries if e.is_file()}
        except FileNotFoundError:
            return {}
    filesystem, path = _remote(folder)
    try:
        entries = filesystem.ls(path, detail=True, refresh=True)
    except FileNotFoundError:
        return {}
    found = {}
    for entry in entries:
        if entry["type"] == "file":
            given = entry.get("size")
            if given is None:  # a web page that lists files does not say their sizes
                given = filesystem.size(entry["name"])
            found[name_of(entry["name"])] = int(given or 0)
    return found


def folders(folder: str | Path) -> list[str]:
    """Return the names of the folders in a folder, sorted; a missing one is empty."""
    try:
        if not is_remote(folder):
            with os.scandir(local_path(folder)) as entries:
                return sorted(e.name for e in entries if e.is_dir())
        filesystem, path = _remote(folder)
        entries = filesystem.ls(path, detail=True, refresh=True)
    except FileNotFoundError:
        return []
    return sorted(name_of(e["name"]) for e in entries if e["type"] == "directory")


def remove(url: str | Path) -> None:
    """Delete a file, which may be gone already."""
    with contextlib.suppress(FileNotFoundError):
        if not is_remote(url):
            local_path(url).unlink()
            return
        filesystem, path = _remote(url)
        filesystem.rm_file(path)


def read_bytes(url: str | Path) -> bytes:
    """Read a whole file.

    Raises:
        FileNotFoundError: there is no such file.
    """
    if not is_remote(url):
        return local_path(url).read_bytes()
    filesystem, path = _remote(url)
    return filesystem.cat_file(path)


def read_json(url: str | Path) -> Any:
    """Read a JSON file.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is not JSON, which is said with its place.
    """
    try:
        return json.loads(read_bytes(url))
    except ValueError as error:
        raise ValueError(f"{url} is not JSON: {error}") from error


def write_json(url: str | Path, value: Any) -> None:
    """Write a value as indented JSON; a folder that is missing is made."""
    write_bytes(url, f"{json.dumps(value, indent=2, ensure_ascii=False)}\n".encode())


def write_bytes(url: str | Path, content: bytes) -> None:
    """Write a whole file; a folder that is missing is made."""
    if is_remote(url):
        filesystem, path = _remote(url)
        filesystem.makedirs(str(PurePosixPath(path).parent), exist_ok=True)
        filesystem.pipe_file(path, content)
        return
    place = local_path(url)
    place.parent.mkdir(parents=True, exist_ok=True)
    with whole_file(place) as file:
        file.write(content)


def publish(finished: Path, url: str | Path) -> None:
    """Move a finished local file to its place, which never holds a part of it."""
    if is_remote(url):
        filesystem, path = _remote(url)
        filesystem.makedirs(str(PurePosixPath(path).parent), exist_ok=True)
        filesystem.put_file(str(finished), path)
        finished.unlink()
        return
    place = local_path(url)
    place.parent.mkdir(parents=True, exist_ok=True)
    if finished.parent == place.parent:
        os.replace(finished, place)
        return
    # Another file system may hold it: copied next to its place first.
    with whole_file(place) as target, finished.open("rb") as file:
        shutil.copyfileobj(file, target)
    finished.unlink()


def local_copy(url: str | Path, *, checksum: str) -> Path:
    """Return a local file with a place's content, fetched once if it is remote.

    Copies are kept by checksum in `nomic_jax/files` under the user's cache folder
    (`XDG_CACHE_HOME`), so equal files are fetched once and a changed one again.

    Args:
        url: the file; a local one is returned as it is.
        checksum: as `checksum_of` gives; what is fetched must have it.

    Raises:
        ValueError: what was fetched has another checksum.
    """
    if not is_remote(url):
        return local_path(url)
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    kept = cache / "nomic_jax" / "files" / f"{checksum}-{name_of(url)}"
    if not kept.is_file():
        kept.parent.mkdir(parents=True, exist_ok=True)
        filesystem, path = _remote(url)
        fetched = kept.with_name(f".{kept.name}.{os.getpid()}.partial")
        try:
            filesystem.get_file(path, str(fetched))
            if (found := checksum_of(fetched)) != checksum:
                raise ValueError(
                    f"{url} has checksum {found}, its manifest says {checksum}: the "
                    "file was changed or cut; prepare it again"
                )
            os.replace(fetched, kept)
        finally:
            fetched.unlink(missing_ok=True)
    return kept


def checksum_of(url: str | Path) -> str:
    """Return the BLAKE2b digest of a file, in 32 hex digits.

    A remote one is read where it is, not from a copy that was fetched before.
    """
    if is_remote(url):
        filesystem, path = _remote(url)
        opened = filesystem.open(path, "rb")
    else:
        opened = local_path(url).open("rb")
    digest = hashlib.blake2b(digest_size=16)
    with opened as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def check_out(url: str | Path) -> None:
    """Refuse a place that no folder can be made at, before any work is done for it.

    Raises:
        ValueError: it is a file or below one, cannot be written, is at an http(s) URL,
            or the package of its kind of URL is not installed.
    """
    if is_remote(url):
        if str(url).startswith(("http://", "https://")):
            raise ValueError(
                f"{url} cannot be written: http only reads; give a folder, or a URL "
                "of gs://, s3:// or another store"
            )
        _remote(url)
        return
    place = local_path(url).absolute()
    there = next(path for path in (place, *place.parents) if path.exists())
    if not there.is_dir():
        raise ValueError(f"{url} cannot be written: {there} is a file, not a folder")
    if not os.access(there, os.W_OK | os.X_OK):
        raise ValueError(f"{url} cannot be written: no permission to write in {there}")


def _remote(url: str | Path) -> tuple[Any, str]:
    import fsspec.core

    try:
        return fsspec.core.url_to_fs(str(url))
    except (ImportError, ValueError) as error:
        reason = " ".join(str(error).split())
        raise ValueError(f"{url} cannot be reached: {reason}") from error


@contextlib.contextmanager
def written_here(place: str | Path, *, last: str) -> Iterator[Path]:
    """Give a local folder to write; what it holds at the end goes to its place.

    Args:
        place: a local folder, which is given itself, or a URL.
        last: the file whose presence says that the folder is complete; uploaded last.
    """
    if not is_remote(place):
        yield local_path(place)
        return
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch) / name_of(place)
        yield folder
        files = [path for path in sorted(folder.rglob("*")) if path.is_file()]
        for path in sorted(files, key=lambda path: path == folder / last):
            publish(path, join(place, *path.relative_to(folder).parts))


@contextlib.contextmanager
def read_here(place: str | Path) -> Iterator[Path]:
    """Give a local folder with a folder's files, for as long as it is needed.

    Args:
        place: a local folder, which is given itself, or a URL.
    """
    if not is_remote(place):
        yield local_path(place)
        return
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch) / name_of(place)
        _fetch(str(place), folder)
        yield folder


def _fetch(place: str, folder: Path) -> None:
    folder.mkdir()
    for name in sizes(place):
        (folder / name).write_bytes(read_bytes(join(place, name)))
    for name in folders(place):
        _fetch(join(place, name), folder / name)
