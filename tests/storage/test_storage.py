import hashlib
import json

import fsspec
import pytest

from nomic_jax import storage

CONTENT = b"some bytes\n" * 1000


@pytest.fixture(params=["local", "file", "memory"])
def folder(request, tmp_path):
    """The same folder as a path, a file:// URL and in another file system."""
    if request.param == "memory":
        yield f"memory://{tmp_path.name}"
        fsspec.filesystem("memory").store.clear()
    else:
        yield str(tmp_path) if request.param == "local" else f"file://{tmp_path}"


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache"


def finished(tmp_path, content=CONTENT):
    path = tmp_path / "finished.bin"
    path.write_bytes(content)
    return path


def test_what_is_published_can_be_read_back_and_has_moved(folder, tmp_path):
    path = finished(tmp_path)
    url = storage.join(folder, "deep", "er", "shard.bin")
    assert not storage.exists(url)
    checksum = storage.checksum_of(path)
    storage.publish(path, url)
    assert not path.exists()
    assert storage.exists(url) and storage.size(url) == len(CONTENT)
    assert storage.local_copy(url, checksum=checksum).read_bytes() == CONTENT


def test_json_goes_there_and_back(folder):
    url = storage.join(folder, "sub", "value.json")
    value = {"name": "größe", "sizes": [1, 2]}
    storage.write_json(url, value)
    assert storage.read_json(url) == value
    assert storage.name_of(url) == "value.json"


def test_what_is_no_json_is_named(folder):
    url = storage.join(folder, "value.json")
    storage.write_bytes(url, b"{half")
    with pytest.raises(ValueError, match="value.json is not JSON"):
        storage.read_json(url)


def test_a_missing_file_is_a_missing_file_everywhere(folder):
    for function in (storage.size, storage.read_json):
        with pytest.raises(FileNotFoundError):
            function(storage.join(folder, "gone.json"))


def test_a_remote_file_is_fetched_once(tmp_path, cache):
    url = f"memory://{tmp_path.name}/x.bin"
    storage.write_bytes(url, CONTENT)
    checksum = hashlib.blake2b(CONTENT, digest_size=16).hexdigest()
    first = storage.local_copy(url, checksum=checksum)
    assert cache in first.parents
    fsspec.filesystem("memory").rm(url)
    assert storage.local_copy(url, checksum=checksum) == first


def test_a_remote_file_of_another_checksum_is_refused_and_not_kept(tmp_path, cache):
    url = f"memory://{tmp_path.name}/x.bin"
    storage.write_bytes(url, CONTENT[:-1])
    with pytest.raises(ValueError, match="x.bin has checksum .* changed or cut"):
        storage.local_copy(url, checksum="0" * 32)
    assert not [path for path in cache.rglob("*") if path.is_file()]


def test_publishing_to_another_file_system_never_shows_a_part(tmp_path, monkeypatch):
    path = finished(tmp_path)
    target = tmp_path / "store" / "shard.bin"

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(storage.shutil, "copyfileobj", full)
    with pytest.raises(OSError, match="No space"):
        storage.publish(path, target)
    assert list(target.parent.iterdir()) == [] and path.exists()


def test_a_remote_place_is_no_local_path():
    assert storage.is_remote("gs://bucket/x") and not storage.is_remote("file:///x")
    with pytest.raises(ValueError, match="gs://bucket/x is not a local path"):
        storage.local_path("gs://bucket/x")


def test_json_is_utf_8_and_readable(tmp_path):
    storage.write_json(tmp_path / "value.json", {"näme": [1, None]})
    data = (tmp_path / "value.json").read_bytes()
    assert "näme".encode() in data and data.endswith(b"\n")
    assert json.loads(data) == {"näme": [1, None]}


def test_sizes_that_a_listing_lacks_are_asked_for(tmp_path, monkeypatch):
    url = f"memory://{tmp_path.name}/folder"
    storage.write_bytes(f"{url}/x.bin", CONTENT)
    memory = fsspec.filesystem("memory")
    listing = memory.ls

    def without_sizes(path, **options):
        return [{**entry, "size": None} for entry in listing(path, **options)]

    with monkeypatch.context() as patch:
        patch.setattr(type(memory), "ls", staticmethod(without_sizes))
        patch.setattr(type(memory), "size", lambda self, path: len(CONTENT))
        assert storage.sizes(url) == {"x.bin": len(CONTENT)}
    memory.store.clear()


def test_folders_are_listed_by_name(folder):
    assert storage.folders(folder + "/none") == []
    for name in ("b/x.bin", "a/x.bin", "file.bin"):
        storage.write_bytes(storage.join(folder, name), CONTENT)
    assert storage.folders(folder) == ["a", "b"]


def test_a_checksum_is_that_of_the_bytes_where_they_lie(folder, tmp_path):
    url = storage.join(folder, "x.bin")
    storage.write_bytes(url, CONTENT)
    expected = hashlib.blake2b(CONTENT, digest_size=16).hexdigest()
    assert storage.checksum_of(url) == expected
    storage.local_copy(url, checksum=expected)
    storage.write_bytes(url, CONTENT[1:])
    assert storage.checksum_of(url) != expected


def test_a_url_whose_package_is_missing_is_one_line(monkeypatch):
    def missing(url):
        raise ImportError("Install s3fs\nto access S3")

    monkeypatch.setattr(fsspec.core, "url_to_fs", missing)
    for function in (storage.check_out, storage.sizes, storage.read_json):
        with pytest.raises(
            ValueError, match="s3://b/x cannot be reached: Install s3fs"
        ):
            function("s3://b/x")


def test_a_folders_files_are_listed_with_their_sizes_and_removed(folder):
    assert storage.sizes(folder + "/none") == {}
    for name in ("a.bin", "deep/b.bin"):
        storage.write_bytes(storage.join(folder, name), CONTENT)
    storage.write_bytes(storage.join(folder, "empty.bin"), b"")
    assert storage.sizes(folder) == {"a.bin": len(CONTENT), "empty.bin": 0}
    for _ in range(2):  # the second time it is gone already
        storage.remove(storage.join(folder, "a.bin"))
    assert storage.sizes(folder) == {"empty.bin": 0}
