import concurrent.futures
import dataclasses
import json
import os
import pickle
import shutil

import numpy as np
import pytest
from store_pairs import content, pair_rule, pair_source, tokenizer

from nomic_jax import storage
from nomic_jax.data.store.manifest import read_manifest, write_manifest
from nomic_jax.data.store.prepare import prepare_store
from nomic_jax.data.store.records import RowRule, encode_record
from nomic_jax.data.store.shard import write_shard
from nomic_jax.data.store.store import Store, open_stores

SOURCE = pair_source(130, num_negatives=1)
RULE = pair_rule(num_negatives=1)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    folder = tmp_path_factory.mktemp("stores") / "foxes"
    prepare_store(
        SOURCE, RULE, tokenizer(), folder, records_per_shard=50, progress=False
    )
    return folder


@pytest.fixture
def copied(finished, tmp_path):
    return shutil.copytree(finished, tmp_path / "foxes")


def expected_texts(record):
    pair = SOURCE.pairs[record]
    queries = tokenizer().encode(["q: " + pair.query], max_length=16).ids
    documents = ["d: " + text for text in (pair.document, *pair.negatives)]
    return queries + tokenizer().encode(documents, max_length=12).ids


@pytest.mark.parametrize("seed", [0, 1])
def test_records_are_read_in_the_order_asked(finished, seed):
    store = Store.open(finished)
    rng = np.random.default_rng(seed)
    records = np.concatenate([rng.permutation(130), [7, 7, 129, 0]])
    got = store.read(records)
    assert len(store) == 130 and store.name == "foxes"
    for record, texts in zip(records, got, strict=True):
        for one, other in zip(texts, expected_texts(record), strict=True):
            assert one.dtype == np.uint16
            np.testing.assert_array_equal(one, other)
    lengths = store.lengths(records)
    assert lengths.dtype == np.int32
    assert lengths.tolist() == [[len(text) for text in texts] for texts in got]
    store.close()
    assert len(store.read(np.array([3]))) == 1  # opened again
    assert store.read(np.array([], np.int64)) == []


@pytest.mark.parametrize("record", [-1, 130])
def test_a_record_out_of_range_is_refused(finished, record):
    store = Store.open(finished)
    for ask in (store.read, store.lengths):
        with pytest.raises(ValueError, match=f"no record {record}: it has 130, from 0"):
            ask(np.array([5, record]))


def test_a_store_is_sent_without_its_open_files(finished):
    store = Store.open(finished)
    store.read(np.arange(130))
    sent = pickle.loads(pickle.dumps(store))
    assert sent.manifest == store.manifest
    (texts,) = sent.read(np.array([60]))
    np.testing.assert_array_equal(texts[0], expected_texts(60)[0])


def test_threads_read_one_store_together(finished):
    store = Store.open(finished)
    rng = np.random.default_rng(2)
    asked = [rng.integers(0, 130, 40) for _ in range(64)]
    with concurrent.futures.ThreadPoolExecutor(8) as threads:
        got = list(threads.map(store.read, asked))
    expected = [expected_texts(record) for record in range(130)]
    for records, read in zip(asked, got, strict=True):
        for record, texts in zip(records, read, strict=True):
            for one, other in zip(texts, expected[record], strict=True):
                np.testing.assert_array_equal(one, other)


def test_rows_keep_where_their_documents_end(tmp_path):
    rule = RowRule(row_length=16, column="document", rows_per_range=50)
    prepare_store(SOURCE, rule, tokenizer(), tmp_path / "rows", progress=False)
    store = Store.open(tmp_path / "rows")
    rows = store.read(np.arange(len(store)))
    assert {sum(map(len, pieces)) for pieces in rows} == {16}
    assert max(map(len, rows)) > 1
    with pytest.raises(ValueError, match="only pairs have lengths"):
        store.lengths(np.array([0]))


def test_a_missing_store_an_unfinished_one_and_a_collection_are_told_apart(tmp_path):
    with pytest.raises(ValueError, match="holds no store: there is no manifest.json"):
        Store.open(tmp_path)
    (tmp_path / "preparation.json").write_text("{}")
    with pytest.raises(
        ValueError, match="unfinished preparation.*same prepare command"
    ):
        Store.open(tmp_path)
    (tmp_path / "preparation.json").unlink()
    (tmp_path / "stores.json").write_text("{}")
    with pytest.raises(ValueError, match="holds several stores"):
        Store.open(tmp_path)
    (tmp_path / "stores.json").unlink()
    with pytest.raises(ValueError, match="no finished collection"):
        open_stores(tmp_path)


def change_manifest(folder, **changes):
    path = folder / "manifest.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def test_another_format_is_refused(copied):
    change_manifest(copied, format=2)
    with pytest.raises(ValueError, match="is of format 2, this version reads format 1"):
        Store.open(copied)


@pytest.mark.parametrize("text", ["", "{", "[]"])
def test_a_manifest_that_is_none_is_refused(copied, text):
    (copied / "manifest.json").write_text(text)
    with pytest.raises(
        ValueError, match=r"manifest\.json is (not JSON|of format None)"
    ):
        Store.open(copied)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"kind": "pear"}, "kind is 'pear'; it is one of"),
        ({"dtype": "int8"}, "dtype is 'int8'; it is one of \\('uint16', 'uint32'\\)"),
        ({"records": "130"}, "records is '130'; an integer is needed"),
        ({"records": -1}, "records is -1; it must be at least 0"),
        ({"rule": {}}, "rule.query_length is None; an integer is needed"),
        ({"rule": None}, "rule is None; an object is needed"),
        ({"shards": []}, "it names no shard"),
        ({"shards": {"a": 1}}, "prepare the store again"),
        ({"shards": [{}]}, "missing field 'file'"),
        ({"counts": {}}, "counts have no 'input_rows'"),
        ({"texts_per_record": 1}, "texts_per_record is 1"),
    ],
)
def test_a_damaged_manifest_is_named_with_what_is_wrong(copied, changes, message):
    change_manifest(copied, **changes)
    with pytest.raises(ValueError, match=message) as caught:
        Store.open(copied)
    assert str(caught.value).startswith(f"{copied}/manifest.json: ")


def test_a_table_of_lengths_that_is_none_is_named(copied):
    path = copied / "shard-00000-of-00003.lengths.npy"
    data = path.read_bytes()
    for old, new in (
        (b"NUMPY", b"LUMPY"),
        (b"'<i4'", b"'<f4'"),
        (b"(50, 3)", b"(75, 2)"),
    ):
        assert old in data
        path.write_bytes(data.replace(old, new))
        with pytest.raises(ValueError, match=f"{path.name} .*prepare the store again"):
            Store.open(copied)


def test_lengths_that_are_gone_are_named(copied):
    store = Store.open(copied)
    path = copied / "shard-00000-of-00003.lengths.npy"
    assert store.lengths(np.array([3])).shape == (1, 3)
    path.unlink()
    with pytest.raises(ValueError, match=f"{path} cannot be read: No such file"):
        store.lengths(np.array([3]))
    path.write_bytes(b"")
    with pytest.raises(ValueError, match=f"{path} was cut"):
        store.lengths(np.array([3]))


def test_a_file_is_no_store_and_no_collection(tmp_path):
    (tmp_path / "store").write_text("")
    for opening in (Store.open, open_stores):
        with pytest.raises(ValueError, match="store is a file; give the folder"):
            opening(tmp_path / "store")


@pytest.mark.parametrize("text", ["[]", "{}", '{"stores": "foxes"}', '{"stores": [1]}'])
def test_a_list_of_stores_of_another_shape_is_refused(tmp_path, text):
    (tmp_path / "stores.json").write_text(text)
    with pytest.raises(ValueError, match="stores.json holds no .* it was changed"):
        open_stores(tmp_path)


def test_an_unknown_field_of_the_manifest_is_refused(copied):
    change_manifest(copied, recordz=5)
    with pytest.raises(ValueError, match="unknown field 'recordz': did you mean"):
        Store.open(copied)


@pytest.mark.parametrize("ending", [".array_record", ".lengths.npy"])
def test_a_shard_cut_in_the_middle_is_refused(copied, ending):
    path = copied / f"shard-00001-of-00003{ending}"
    whole = path.stat().st_size
    os.truncate(path, whole // 2)
    with pytest.raises(
        ValueError, match=f"{path.name} has {whole // 2} bytes, .* says {whole}: .*cut"
    ):
        Store.open(copied)


def test_a_missing_shard_is_refused(copied):
    (copied / "shard-00002-of-00003.array_record").unlink()
    with pytest.raises(
        ValueError, match="shard-00002-of-00003.array_record is missing"
    ):
        Store.open(copied)


def test_a_count_that_disagrees_is_refused(copied):
    change_manifest(copied, records=131)
    with pytest.raises(ValueError, match="says 131 records, its 3 shards together 130"):
        Store.open(copied)
    manifest = json.loads((copied / "manifest.json").read_text())
    manifest["shards"][0]["records"] += 1
    change_manifest(copied, shards=manifest["shards"])
    with pytest.raises(
        ValueError, match="00000-of-00003.array_record holds 50 records, .* says 51"
    ):
        Store.open(copied)


def test_another_tokenizer_is_refused(finished):
    store = Store.open(finished)
    store.check_tokenizer(tokenizer().digest)
    with pytest.raises(ValueError, match=f"{tokenizer().digest}, this one is 00ff"):
        store.check_tokenizer("00ff")


@pytest.mark.parametrize("ending", [".array_record", ".lengths.npy"])
def test_a_changed_byte_is_found_by_verifying(copied, ending):
    path = copied / f"shard-00001-of-00003{ending}"
    data = bytearray(path.read_bytes())
    data[400] ^= 1
    path.write_bytes(data)
    store = Store.open(copied)
    with pytest.raises(ValueError, match=f"{path.name} has checksum .* was changed"):
        store.verify()
    if ending == ".array_record":
        with pytest.raises(ValueError, match=f"{path.name}: record 0: .*hash"):
            store.read(np.array([50]))


def test_a_damaged_shard_of_the_right_size_is_refused(copied):
    path = copied / "shard-00001-of-00003.array_record"
    path.write_bytes(bytes(path.stat().st_size))
    with pytest.raises(ValueError, match=f"{path.name} cannot be opened: .*damaged"):
        Store.open(copied)


def test_a_store_that_was_not_touched_verifies(finished):
    Store.open(finished).verify()


def written(folder, record, **changes):
    """A store of 3 pairs, of which the last is as given."""
    good = encode_record([np.arange(4), np.arange(5)], "uint16")
    source = pair_source(3)
    manifest = prepare_store(source, pair_rule(), tokenizer(), folder, progress=False)
    shard = write_shard(
        [good, good, record],
        str(folder),
        "shard-00000-of-00001",
        texts_per_record=2,
        dtype="uint16",
    )
    manifest = dataclasses.replace(manifest, shards=(shard,), **changes)
    write_manifest(str(folder), manifest)
    return Store.open(folder)


@pytest.mark.parametrize("lengths", [(17, 5), (4, 13)])
def test_a_record_over_the_manifests_lengths_is_refused(tmp_path, lengths):
    record = encode_record([np.arange(n) for n in lengths], "uint16")
    store = written(tmp_path, record)
    assert len(store.read(np.array([0, 1]))) == 2
    with pytest.raises(
        ValueError,
        match=rf"shard-00000-of-00001.array_record: record 2: it has \({lengths[0]}, "
        rf"{lengths[1]}\) tokens, manifest.json allows \(16, 12\)",
    ):
        store.read(np.array([0, 2]))


def test_a_record_whose_header_disagrees_with_its_bytes_is_refused(tmp_path):
    record = encode_record([np.arange(4), np.arange(5)], "uint16") + b"\0\0"
    store = written(tmp_path, record)
    with pytest.raises(ValueError, match="record 2: its header asks for 30 bytes"):
        store.read(np.array([2]))


def test_a_shard_of_pairs_refuses_records_of_other_texts(tmp_path):
    record = encode_record([np.arange(4)] * 3, "uint16")
    with pytest.raises(ValueError, match="record 2 has 3 texts, the shard's have 2"):
        written(tmp_path, record)
    assert not [name for name in content(tmp_path) if name.endswith(".partial")]


def test_a_remote_store_is_read_from_a_copy_fetched_once(
    finished, tmp_path, monkeypatch
):
    import fsspec

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    memory = fsspec.filesystem("memory")
    memory.put(f"{finished}/", "memory://remote/foxes/", recursive=True)
    store = Store.open("memory://remote/foxes")
    assert not (tmp_path / "nomic_jax").exists()  # nothing is fetched before it is read
    got = store.read(np.array([129, 0]))
    np.testing.assert_array_equal(got[1][1], expected_texts(0)[1])
    assert store.lengths(np.array([129])).tolist() == [[len(t) for t in got[0]]]
    copies = list((tmp_path / "nomic_jax" / "files").iterdir())
    assert len(copies) == 3  # two shards' records, one's lengths
    assert read_manifest("memory://remote/foxes") == store.manifest
    memory.rm("/remote", recursive=True)
    with pytest.raises(ValueError, match="holds no store"):
        Store.open("memory://remote/foxes")
    assert storage.is_remote(store.url)
