import contextlib

import fsspec
import numpy as np
import pytest

from nomic_jax.data.sources.jsonl import write_pairs
from nomic_jax.data.sources.pairs import Pair
from nomic_jax.data.store.stage import (
    PAIRS,
    PrepareConfig,
    is_prepared,
    prepare_corpus,
    read_sources,
)
from nomic_jax.data.store.store import open_stores
from nomic_jax.storage import exists, join, read_here, written_here

SOME = np.array([0, 3, 53])


@pytest.fixture
def remote():
    filesystem = fsspec.filesystem("memory")
    yield "memory://folder-copies/run"
    with contextlib.suppress(FileNotFoundError):
        filesystem.rm("/folder-copies", recursive=True)


def files(folder):
    return {p.name: p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def test_a_local_folder_is_given_itself(tmp_path):
    with written_here(tmp_path, last="z") as folder:
        assert folder == tmp_path
    with read_here(f"file://{tmp_path}") as folder:
        assert folder == tmp_path


def test_a_folder_at_a_url_comes_back_as_it_was_written(remote):
    with written_here(remote, last="done.json") as folder:
        (folder / "a" / "b").mkdir(parents=True)
        (folder / "a" / "b" / "one").write_bytes(b"1")
        (folder / "done.json").write_text("{}")
        (folder / "z").write_text("zz")
        assert not exists(remote)  # nothing is there before all is written
    with read_here(remote) as folder:
        assert files(folder) == {"one": b"1", "done.json": b"{}", "z": b"zz"}
        assert (folder / "a" / "b" / "one").is_file()
    assert not folder.exists()


def test_the_last_file_is_uploaded_last(remote, monkeypatch):
    from nomic_jax import storage as folder_copy

    placed = []
    monkeypatch.setattr(folder_copy, "publish", lambda path, url: placed.append(url))
    with written_here(remote, last="a.json") as folder:
        folder.mkdir()
        for name in ("a.json", "b", "c"):
            (folder / name).write_text(name)
    assert [url.rpartition("/")[2] for url in placed] == ["b", "c", "a.json"]


def test_what_fails_leaves_nothing_at_the_url(remote):
    with pytest.raises(RuntimeError), written_here(remote, last="a") as folder:
        folder.mkdir()
        (folder / "a").write_text("half")
        raise RuntimeError
    assert not exists(remote)


def test_a_prepare_stage_at_a_url_is_the_local_one(remote, tmp_path):
    pairs = [Pair(f"what is {i}", f"{i} is a number.") for i in range(60)]
    write_pairs(tmp_path / "pairs.jsonl", pairs)
    config = PrepareConfig(
        pairs=str(tmp_path / "pairs.jsonl"),
        vocab_size=200,
        row_length=16,
        query_length=8,
        document_length=8,
    )
    assert not is_prepared(remote)
    for place in (remote, tmp_path / "here"):
        with written_here(place, last="sources.json") as folder:
            prepare_corpus(config, folder)
    assert is_prepared(remote)
    for part in ("train", "held_out"):
        assert read_sources(remote, part) == read_sources(tmp_path / "here", part)
    places = (remote, tmp_path / "here")
    there, here = (open_stores(join(place, PAIRS))["pairs"] for place in places)
    assert len(there) == len(here) == 54
    for ours, theirs in zip(there.read(SOME), here.read(SOME), strict=True):
        assert [list(text) for text in ours] == [list(text) for text in theirs]
