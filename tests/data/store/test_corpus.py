import hashlib
import json
import os
import subprocess
import sys

import numpy as np
import pytest

from nomic_jax.data.sources.jsonl import read_texts, write_pairs
from nomic_jax.data.sources.pairs import Pair
from nomic_jax.data.store.stage import (
    PAIRS,
    TEXT,
    PrepareConfig,
    is_prepared,
    prepare_corpus,
    read_sources,
)
from nomic_jax.data.store.store import open_stores
from nomic_jax.data.tokenizer import TextTokenizer

COUNT = 120
LENGTHS = {"row_length": 32, "query_length": 16, "document_length": 12}


def write(folder, count=COUNT):
    """Pairs of which every third shares its document with the one before."""
    path = folder / "mine.jsonl"
    pairs = [
        Pair(
            f"how does part {i} of engine {i % 7} work",
            f"part {i - (i % 3 == 2)} turns wheel {i % 11}"
            if i % 3 != 2
            else f"part {i - 1} turns wheel {(i - 1) % 11}",
            (f"nothing on {i}",),
        )
        for i in range(count)
    ]
    write_pairs(path, pairs)
    return path, pairs


def config(path, **changes):
    values = {"pairs": str(path), "held_out_share": 0.2, "vocab_size": 300} | LENGTHS
    return PrepareConfig(**(values | changes))


def documents_of(folder):
    return list(read_texts(folder / "texts.jsonl"))


@pytest.fixture(scope="module")
def done(tmp_path_factory):
    folder = tmp_path_factory.mktemp("prepared")
    path, pairs = write(folder)
    prepare_corpus(config(path), folder)
    return folder, pairs


def test_ones_own_pairs_are_split_into_train_and_held_out(done):
    folder, pairs = done
    (train,), (held_out,) = (
        read_sources(folder, "train"),
        read_sources(folder, "held_out"),
    )
    assert train.name == held_out.name == "mine"
    assert set(train.pairs) | set(held_out.pairs) == set(pairs)
    assert len(train) + len(held_out) == COUNT
    # A document's further query may come on top.
    assert 24 <= len(held_out) <= 25
    for source in (train, held_out):
        assert source.query_prefix == "search_query: "
        assert source.document_prefix == "search_document: "
    described = json.loads((folder / "sources.json").read_text())["sources"]
    assert [entry["pairs"] for entry in described] == [len(train)]


def test_nothing_held_out_is_in_the_text_trained_on(done):
    folder, _ = done
    (train,), (held_out,) = (
        read_sources(folder, "train"),
        read_sources(folder, "held_out"),
    )
    unseen = {text for p in held_out.pairs for text in (p.query, p.document)}
    texts = documents_of(folder)
    assert unseen.isdisjoint(texts)
    assert {p.document for p in train.pairs}.isdisjoint(unseen)
    known = {text for p in train.pairs for text in (p.query, p.document)}
    assert set(texts) == known
    assert len(texts) == len(set(texts))  # a shared document is read once


def test_each_file_of_a_pattern_is_a_source_of_its_own(tmp_path):
    folder = tmp_path / "pairs"
    folder.mkdir()
    _, pairs = write(folder)
    shared = Pair("what is shared", pairs[0].document)
    write_pairs(
        folder / "other.jsonl.gz",
        [shared, *(Pair(f"other {i}", f"text {i}") for i in range(40))],
    )
    made = tmp_path / "made"
    prepare_corpus(config(folder / "*.jsonl*", limit=30), made)
    train, held_out = (read_sources(made, part) for part in ("train", "held_out"))
    assert [source.name for source in train] == ["mine", "other"]
    assert [len(source) for source in train] == [30, 30]
    # A document's queries stay together, so that a few more may be held out.
    assert [len(source) for source in held_out] == [pytest.approx(24, abs=1), 8]
    assert set(open_stores(made / PAIRS)) == {"mine", "other"}
    texts = documents_of(made)
    assert len(texts) == len(set(texts)) == 30 + 30
    out = {text for s in held_out for p in s.pairs for text in (p.query, p.document)}
    assert not out & set(texts)
    with pytest.raises(ValueError, match=r"no file matches .*\*\.json"):
        prepare_corpus(config(folder / "no*.jsonl"), tmp_path / "none")


def test_a_query_held_out_elsewhere_is_no_text(tmp_path):
    path = tmp_path / "mine.jsonl"
    pairs = [Pair("the same question", f"answer {i} to it all") for i in range(20)]
    write_pairs(path, [*pairs, *(Pair(f"why {i}", f"so {i}") for i in range(20))])
    prepare_corpus(config(path), tmp_path)
    held_out = {p.query for s in read_sources(tmp_path, "held_out") for p in s.pairs}
    assert "the same question" in held_out
    assert "the same question" not in documents_of(tmp_path)


def test_limits_are_kept(tmp_path):
    path, _ = write(tmp_path)
    prepare_corpus(config(path, limit=30, held_out=10, seed=3), tmp_path)
    (train,), (held_out,) = (
        read_sources(tmp_path, "train"),
        read_sources(tmp_path, "held_out"),
    )
    assert len(train) == 30 and 10 <= len(held_out) <= 11
    assert len(documents_of(tmp_path)) == 30


def test_the_seed_chooses_what_is_held_out(done, tmp_path):
    path, _ = write(tmp_path)
    prepare_corpus(config(path, seed=1), tmp_path)
    (other,), (held_out,) = (
        read_sources(folder, "held_out") for folder in (tmp_path, done[0])
    )
    assert set(other.pairs) != set(held_out.pairs)


def digest(folder):
    """Every file but those of the test, and of the files' times in fingerprints."""
    found = {}
    for path in folder.rglob("*"):
        if not path.is_file() or path.parent == folder and path.name == "mine.jsonl":
            continue
        content = path.read_bytes()
        if path.name == "manifest.json":
            value = json.loads(content)
            del value["source_fingerprint"]
            content = json.dumps(value).encode()
        found[str(path.relative_to(folder))] = hashlib.sha256(content).hexdigest()
    return found


@pytest.mark.slow
def test_processes_with_other_hash_seeds_prepare_the_same_bytes(done, tmp_path):
    path, _ = write(tmp_path)
    code = (
        "import sys; from pathlib import Path;"
        "from nomic_jax.data.store.stage import PrepareConfig, prepare_corpus;"
        "prepare_corpus(PrepareConfig(pairs=sys.argv[1], held_out_share=0.2,"
        f" vocab_size=300, **{LENGTHS}), Path(sys.argv[2]))"
    )
    for seed in ("1", "2"):
        folder = tmp_path / seed
        folder.mkdir()
        subprocess.run(
            [sys.executable, "-c", code, str(path), str(folder)],
            env=os.environ | {"PYTHONHASHSEED": seed, "JAX_PLATFORMS": "cpu"},
            check=True,
        )
        assert digest(folder) == digest(done[0])


def test_the_tokenizer_knows_its_text(done):
    folder, _ = done
    tokenizer = TextTokenizer.from_folder(folder)
    assert tokenizer.size <= 300
    unknown = tokenizer.role_id("unk")
    for ids in tokenizer.encode(documents_of(folder), max_length=64).ids:
        assert unknown not in ids


def test_the_stores_hold_the_training_text_and_pairs(done):
    folder, _ = done
    (train,) = read_sources(folder, "train")
    tokenizer = TextTokenizer.from_folder(folder)
    (store,) = open_stores(folder / PAIRS).values()
    store.check_tokenizer(tokenizer.digest)
    assert len(store) == len(train)
    sides = (
        ([f"search_query: {pair.query}" for pair in train.pairs], 16),
        ([f"search_document: {pair.document}" for pair in train.pairs], 12),
    )
    records = store.read(np.arange(len(store)))
    for side, (texts, length) in enumerate(sides):
        expected = tokenizer.encode(texts, max_length=length).ids
        for record, ids in zip(records, expected, strict=True):
            np.testing.assert_array_equal(record[side], ids)
    (rows,) = open_stores(folder / TEXT).values()
    documents = tokenizer.encode(documents_of(folder), max_length=10**6).ids
    stream = np.concatenate(documents)
    stored = np.concatenate([p for row in rows.read(np.arange(len(rows))) for p in row])
    np.testing.assert_array_equal(stored, stream[: len(stored)])
    assert len(stream) - 32 < len(stored) == 32 * len(rows)


def test_a_stage_is_done_when_its_last_file_is_there(tmp_path, monkeypatch):
    path, _ = write(tmp_path)
    folder = tmp_path / "prepare"
    folder.mkdir()
    replace = os.replace

    def dies(old, new):
        if str(new).endswith("sources.json"):
            raise KeyboardInterrupt
        replace(old, new)

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", dies)
        with pytest.raises(KeyboardInterrupt):
            prepare_corpus(config(path), folder)
    assert (folder / "texts.jsonl").is_file()
    assert not is_prepared(folder)
    prepare_corpus(config(path), folder)
    assert is_prepared(folder)
    assert read_sources(folder, "train")


def test_a_file_that_cannot_be_used_leaves_nothing(tmp_path):
    path, _ = write(tmp_path)
    with path.open("a") as file:
        file.write("{broken\n")
    folder = tmp_path / "prepare"
    folder.mkdir()
    with pytest.raises(ValueError, match=f"mine.jsonl:{COUNT + 1}: not JSON"):
        prepare_corpus(config(path), folder)
    with pytest.raises(ValueError, match="gone.jsonl cannot be read"):
        prepare_corpus(config(tmp_path / "gone.jsonl"), folder)
    assert not list(folder.iterdir())
