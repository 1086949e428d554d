import dataclasses
import errno
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from paths import HELPERS
from store_pairs import content, pair_rule, pair_source, tokenizer

from nomic_jax import storage
from nomic_jax.data.sources.pairs import Pair, PairSource
from nomic_jax.data.store import shard as shard_module
from nomic_jax.data.store.prepare import (
    begin,
    finish,
    make_shard,
    plan,
    prepare_collection,
    prepare_store,
)
from nomic_jax.data.store.records import RowRule
from nomic_jax.data.store.store import Store, open_stores
from nomic_jax.data.store.workers import TERMINATE_TIMEOUT, claimed, sweep
from nomic_jax.storage import host_name, partial_name

ROWS = RowRule(row_length=16, column="document", rows_per_range=40)


def prepare(folder, source=None, rule=None, **options):
    return prepare_store(
        pair_source(170) if source is None else source,
        pair_rule() if rule is None else rule,
        tokenizer(),
        folder,
        **{"records_per_shard": 40, "progress": False, **options},
    )


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole")
    prepare(folder)
    return folder


def test_a_manifest_says_what_the_store_is_made_of(whole):
    manifest = Store.open(whole).manifest
    assert manifest.records == 170 and len(manifest.shards) == 5
    assert [shard.records for shard in manifest.shards] == [40, 40, 40, 40, 10]
    assert manifest.counts["input_rows"] == 170
    assert manifest.tokenizer_digest == tokenizer().digest
    assert manifest.source_fingerprint == pair_source(170).fingerprint
    assert manifest.rule["query_prefix"] == "q: "
    assert manifest.rule["columns"]["query"] == "query"
    lengths = Store.open(whole).lengths(np.arange(170))
    assert manifest.counts["tokens"] == lengths.sum()
    assert (manifest.dtype, manifest.texts_per_record) == ("uint16", 2)
    assert {name.split(".", 1)[1] for name in content(whole)} == {
        *("json", "array_record", "lengths.npy")
    }


@pytest.mark.slow
@pytest.mark.parametrize(("workers", "rule"), [(2, None), (3, ROWS)])
def test_the_bytes_do_not_depend_on_the_workers(tmp_path, workers, rule):
    one = prepare(tmp_path / "one", rule=rule)
    more = prepare(tmp_path / "more", rule=rule, workers=workers)
    assert more == one
    assert content(tmp_path / "more") == content(tmp_path / "one")


def test_a_finished_store_is_verified_and_left_as_it_is(whole, tmp_path):
    folder = shutil.copytree(whole, tmp_path / "store")
    before = content(folder)
    manifest = prepare(folder)
    assert manifest == Store.open(whole).manifest
    assert content(folder) == before
    path = folder / "shard-00002-of-00005.array_record"
    data = bytearray(path.read_bytes())
    data[400] ^= 1
    path.write_bytes(data)
    with pytest.raises(ValueError, match=f"{path.name} has checksum"):
        prepare(folder)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"rule": pair_rule(query_prefix="Q: ")}, "rule.query_prefix is 'q: ' there"),
        ({"source": pair_source(170, seed=1)}, "source_fingerprint is '.*' there and"),
        ({"records_per_shard": 50}, "rows_per_shard is 40 there and 50 here"),
        ({"rule": ROWS}, "kind is 'pairs' there and 'rows' here"),
    ],
)
def test_another_preparation_in_the_folder_is_refused(
    whole, tmp_path, changes, message
):
    with pytest.raises(ValueError, match=message):
        prepare(whole, **changes)
    with pytest.raises(ValueError, match=message):
        prepare(stopped(tmp_path / "store"), **changes)


class Stops:
    """A source that fails from a row on."""

    def __init__(self, source, row, error):
        self.source, self.row, self.error = source, row, error
        self.name, self.fingerprint = source.name, source.fingerprint

    def __len__(self):
        return len(self.source)

    def place(self, row):
        return self.source.place(row)

    def rows(self, start, stop):
        for number, row in enumerate(self.source.rows(start, stop), start):
            if number >= self.row:
                raise self.error
            yield row


def stopped(folder, row=90):
    """A preparation that ended while its third shard was being made."""
    with pytest.raises(OSError, match="unplugged"):
        prepare(folder, source=Stops(pair_source(170), row, OSError("unplugged")))
    return folder


def test_a_stopped_preparation_goes_on_with_the_shards_that_are_missing(
    whole, tmp_path
):
    folder = stopped(tmp_path / "store")
    assert not [name for name in content(folder) if name.endswith(".partial")]
    with pytest.raises(ValueError, match="unfinished preparation"):
        Store.open(folder)
    done = sorted(folder.glob("shard-*.array_record"))
    assert len(done) == 2
    times = [path.stat().st_mtime_ns for path in done]
    left_by_the_dead(folder)
    prepare(folder)
    assert [path.stat().st_mtime_ns for path in done] == times
    assert content(folder) == content(whole)


def test_what_a_kill_left_is_deleted_before_the_work_begins(tmp_path):
    folder = stopped(tmp_path / "store")
    left = left_by_the_dead(folder)
    # Of this very process, and of another machine: just now, and long ago.
    mine = folder / partial_name("shard-00004-of-00005.array_record")
    theirs = folder / f".shard-00002-of-00005.array_record.far-away.{left[1]}.partial"
    theirs_once = theirs.with_name(theirs.name.replace("00002", "00001"))
    for path in (mine, theirs, theirs_once):
        path.write_bytes(b"half")
    os.utime(theirs_once, times=(0, 0))
    source = pair_source(170)
    begin(plan(source, pair_rule(), tokenizer(), str(folder), records_per_shard=40))
    assert mine.exists() and theirs.exists()
    assert not left[0].exists() and not theirs_once.exists()


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="needs /proc")
def test_a_killed_process_that_nobody_collected_counts_as_dead(tmp_path):
    with subprocess.Popen([sys.executable, "-c", ""]) as process:
        stat, deadline = Path(f"/proc/{process.pid}/stat"), time.monotonic() + 60
        while ") Z " not in stat.read_text() and time.monotonic() < deadline:
            time.sleep(0.01)
        left = tmp_path / f".x.{host_name()}.{process.pid}.partial"
        left.write_bytes(b"half")
        sweep(str(tmp_path))
        assert not left.exists()


def test_a_second_preparation_of_a_folder_is_refused_while_one_is_at_work(
    whole, tmp_path
):
    folder = tmp_path / "store"
    with claimed(str(folder)):
        with pytest.raises(ValueError, match=f"another prepare is at work in {folder}"):
            prepare(folder)
    prepare(folder)
    assert content(folder) == content(whole)  # the lock is gone
    with claimed(str(folder)):
        prepare(folder)  # only verifies


def test_a_folder_that_is_a_file_is_refused(tmp_path):
    (tmp_path / "store").write_text("")
    with pytest.raises(ValueError, match="store is a file, not a folder"):
        prepare(tmp_path / "store")


def test_shards_that_this_process_does_not_see_are_told_of(tmp_path):
    job = plan(
        pair_source(170), pair_rule(), tokenizer(), str(tmp_path), records_per_shard=40
    )
    begin(job)
    entries = {0: make_shard(job, 0)}
    with pytest.raises(ValueError, match="4 of 5 shards .* give --out as a URL"):
        finish(job, entries)


def left_by_the_dead(folder):
    """A file that a process was writing which has ended, and the process's number."""
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    name = f".shard-00003-of-00005.array_record.{host_name()}.{process.pid}.partial"
    (folder / name).write_bytes(b"half")
    return folder / name, process.pid


def test_a_shard_of_another_preparation_is_made_again(whole, tmp_path):
    folder = stopped(tmp_path / "store")
    entry = folder / "shard-00000-of-00005.json"
    entry.write_text(json.dumps({**json.loads(entry.read_text()), "preparation": "0"}))
    before = entry.with_suffix(".array_record").stat().st_mtime_ns
    prepare(folder)
    assert entry.with_suffix(".array_record").stat().st_mtime_ns > before
    assert content(folder) == content(whole)


@pytest.mark.parametrize("text", ["{}", "[]", "{", '{"shard": 1}', "no counts"])
def test_a_shard_whose_entry_is_damaged_is_made_again(whole, tmp_path, text):
    folder = stopped(tmp_path / "store")
    entry = folder / "shard-00001-of-00005.json"
    if text == "no counts":
        text = json.dumps({**json.loads(entry.read_text()), "counts": {}})
    entry.write_text(text)
    prepare(folder)
    assert content(folder) == content(whole)


def test_what_was_an_error_may_become_another_choice_and_not_back(tmp_path):
    source = pair_source(170, num_negatives=1)
    source.pairs[90] = Pair("fox", "", ("dogs",))
    source.pairs[130] = Pair("fox", "lazy dogs")
    rule = pair_rule(num_negatives=1)
    folder = tmp_path / "store"
    with pytest.raises(ValueError, match="pair 90"):
        prepare(folder, source=source, rule=rule)
    rule = dataclasses.replace(rule, blank="drop")
    with pytest.raises(ValueError, match="pair 130: 0 negatives"):
        prepare(folder, source=source, rule=rule)
    with pytest.raises(ValueError, match="rule.blank is 'drop' there and 'error' here"):
        prepare(folder, source=source, rule=pair_rule(num_negatives=1))
    with pytest.raises(ValueError, match="rule.too_long is 'cut' there and 'error'"):
        prepare(folder, source, dataclasses.replace(rule, too_long="error"))
    rule = dataclasses.replace(rule, too_few_negatives="drop")
    assert prepare(folder, source=source, rule=rule).records == 168
    prepare(tmp_path / "fresh", source=source, rule=rule)
    assert content(folder) == content(tmp_path / "fresh")


def test_a_corrected_source_needs_its_folder_deleted(tmp_path):
    folder = stopped(tmp_path / "store")
    source = pair_source(170)
    source.pairs[100] = Pair("fox", "dog")
    with pytest.raises(ValueError, match="the source was changed.* delete this folder"):
        prepare(folder, source=source)


def test_distinct_documents_are_counted_the_same_in_every_process(tmp_path):
    script = (
        f"import sys; sys.path.insert(0, {str(HELPERS)!r})\n"
        "import nomic_jax.data.store.shard as shard\n"
        "from store_pairs import *\n"
        "from nomic_jax.data.store.prepare import prepare_store\n"
        "import builtins; shard.hash = lambda content: 1 / 0\n"
        "prepare_store(pair_source(20), pair_rule(), tokenizer(), sys.argv[1], "
        "progress=False)"
    )
    subprocess.run([sys.executable, "-c", script, str(tmp_path)], check=True)
    assert Store.open(tmp_path).manifest.shards[0].distinct == 20


def test_shards_of_unknown_origin_are_not_built_upon(tmp_path):
    folder = stopped(tmp_path / "store")
    note = folder / "preparation.json"
    note.write_text('{"name": "foxes"}')
    with pytest.raises(ValueError, match="preparation.json: .*missing field 'kind'"):
        prepare(folder)
    note.unlink()
    with pytest.raises(ValueError, match="holds shards, but nothing that says of what"):
        prepare(folder)


def test_a_shard_that_lost_its_end_is_made_again(whole, tmp_path):
    folder = stopped(tmp_path / "store")
    os.truncate(folder / "shard-00000-of-00005.array_record", 100)
    (folder / "shard-00001-of-00005.lengths.npy").unlink()
    prepare(folder)
    assert content(folder) == content(whole)


def test_nothing_is_kept_of_another_try_that_finished_no_shard(whole, tmp_path):
    folder = tmp_path / "store"
    bad = pair_source(170)
    bad.pairs[3] = Pair("fox", " ")
    with pytest.raises(ValueError, match="'foxes', pair 3: column 'document' is blank"):
        prepare(folder, source=bad)
    prepare(folder)  # mended: no other folder is needed
    assert content(folder) == content(whole)


SCRIPT = """
import sys, time
sys.path.insert(0, {tests!r})
from store_pairs import pair_rule, pair_source, tokenizer
from nomic_jax.data.store.prepare import prepare_store

class Slow:
    def __init__(self, source):
        self.source = source
        self.name, self.fingerprint = source.name, source.fingerprint
    def __len__(self):
        return len(self.source)
    def place(self, row):
        return self.source.place(row)
    def rows(self, start, stop):
        for number, row in enumerate(self.source.rows(start, stop), start):
            time.sleep({pause} if number < 80 else {later})
            yield row

if __name__ == "__main__":
    prepare_store(Slow(pair_source(170)), pair_rule(), tokenizer(), {folder!r},
                  workers={workers}, records_per_shard=40, progress=False)
"""


def started(folder, workers, *, later=0.01, shards=1):
    """A preparation in a process of its own, in the midst of its work."""
    folder.mkdir()
    script = folder.parent / "script.py"
    tests = str(HELPERS)
    script.write_text(
        SCRIPT.format(
            tests=tests, folder=str(folder), workers=workers, pause=0.01, later=later
        )
    )
    process = subprocess.Popen(
        [sys.executable, str(script)],
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    deadline = time.monotonic() + 60
    while (
        len(list(folder.glob("shard-*.json"))) < shards and time.monotonic() < deadline
    ):
        assert process.poll() is None, process.stderr and process.stderr.read()
        time.sleep(0.01)
    return process


@pytest.mark.slow
@pytest.mark.parametrize("workers", [1, 2])
def test_after_a_kill_the_same_command_gives_the_same_store(whole, tmp_path, workers):
    folder = tmp_path / "store"
    with started(folder, workers) as process:
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
    entries = sorted(folder.glob("shard-*.json"))
    assert 0 < len(entries) < 5 and not (folder / "manifest.json").exists()
    done = [entry.with_suffix(".array_record") for entry in entries]
    times = [path.stat().st_mtime_ns for path in done]
    prepare(folder)
    assert [path.stat().st_mtime_ns for path in done] == times
    assert content(folder) == content(whole)


@pytest.mark.slow
def test_an_interrupt_stops_the_processes_promptly(tmp_path):
    folder = tmp_path / "store"
    with started(folder, workers=2, later=1.0, shards=2) as process:
        begun = time.monotonic()
        os.killpg(process.pid, signal.SIGINT)
        # Ends when the last of the processes does: all of them hold this pipe.
        _, text = process.communicate(timeout=30)
    # The next shards would take 40 seconds; a worker that goes on is killed in time.
    assert time.monotonic() - begun < TERMINATE_TIMEOUT
    assert len(list(folder.glob("shard-*.json"))) == 2
    assert text.count("Traceback") == 1 and "KeyboardInterrupt" in text
    assert not list(folder.glob(".*"))


@pytest.mark.slow
def test_an_error_in_a_process_arrives_as_the_same_line(tmp_path):
    bad = pair_source(170)
    bad.pairs[97] = Pair("fox", "")
    with pytest.raises(ValueError) as caught:
        prepare(tmp_path / "store", source=bad, workers=2)
    assert str(caught.value) == (
        "source 'foxes', pair 97: column 'document' is blank; give it text, or set "
        "blank to 'drop'"
    )
    assert not list((tmp_path / "store").glob(".*"))


class Kills(Stops):
    """A source whose reader is killed, as for want of memory."""

    def rows(self, start, stop):
        for number, row in enumerate(self.source.rows(start, stop), start):
            if number >= self.row:
                os.kill(os.getpid(), signal.SIGKILL)
            yield row


@pytest.mark.slow
def test_a_killed_process_is_told_of(tmp_path):
    source = Kills(pair_source(170), 50, None)
    with pytest.raises(ValueError, match="worker process ended with exit code -9"):
        prepare(tmp_path / "store", source=source, workers=2)
    assert not list((tmp_path / "store").glob(".*"))


class FullDisk:
    """Stands for ArrayRecord on a disk that takes no more after some records."""

    room = 90

    def __init__(self, path, options):
        self.path = Path(path)
        self.path.write_bytes(b"half of a shard")

    def write(self, record):
        type(self).room -= 1
        if self.room < 0:
            raise RuntimeError(f"write() failed: {os.strerror(errno.ENOSPC)}")

    def close(self):
        if self.room < 0:
            raise RuntimeError(f"close() failed: {os.strerror(errno.ENOSPC)}")


def test_a_full_disk_keeps_finished_shards_and_says_what_is_needed(
    whole, tmp_path, monkeypatch
):
    folder = stopped(tmp_path / "store")
    times = [path.stat().st_mtime_ns for path in sorted(folder.glob("shard-*"))]
    module = shard_module._array_record()
    with monkeypatch.context() as patch:
        FullDisk.room = 20
        patch.setattr(module, "ArrayRecordWriter", FullDisk)
        with pytest.raises(ValueError) as caught:
            prepare(folder)
    message = str(caught.value)
    assert message.startswith(f"{folder}/shard-00002-of-00005: no space is left")
    assert "Finished shards are kept: make room and run the same command" in message
    # Its tokens take two bytes each.
    needed = 2 * Store.open(whole).manifest.counts["tokens"]
    said = int(message.split("about ")[1].split(" bytes")[0].replace(",", ""))
    assert 0.5 < said / needed < 1.5  # from the first rows of one shard
    assert not list(folder.glob(".*"))
    after = [path.stat().st_mtime_ns for path in sorted(folder.glob("shard-*"))]
    assert after == times
    prepare(folder)
    assert content(folder) == content(whole)


def test_a_full_device_is_told_by_the_writer_itself():
    with pytest.raises(OSError) as caught:
        with shard_module._array_record_writer(Path("/dev/full")) as writer:
            for _ in range(10_000):
                writer.write(bytes(1000))
    assert shard_module.is_full(caught.value)


@pytest.mark.parametrize("failing", ["publish", "write_json", "write_bytes"])
def test_a_disk_that_is_full_for_any_file_leaves_nothing_half_written(
    whole, tmp_path, monkeypatch, failing
):
    folder = stopped(tmp_path / "store")

    def full(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(storage, failing, full)
        with pytest.raises(ValueError, match="no space is left on disk"):
            prepare(folder)
    assert not list(folder.glob(".*")) and not (folder / "manifest.json").exists()
    prepare(folder)
    assert content(folder) == content(whole)


def test_a_disk_that_is_full_from_the_start_is_told_of(tmp_path, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(storage, "write_bytes", full)
    with pytest.raises(
        ValueError, match="preparation.json: no space .* needs more byt"
    ):
        prepare(tmp_path)
    assert content(tmp_path) == {}


def test_a_full_disk_at_the_end_of_a_collection_keeps_its_stores(tmp_path, monkeypatch):
    planned = [(pair_source(50), pair_rule())]
    prepare_collection(planned, tokenizer(), tmp_path, progress=False)
    before = content(tmp_path / "foxes")
    (tmp_path / "stores.json").unlink()

    def full(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(storage, "write_bytes", full)
        with pytest.raises(ValueError, match="no space .* the stores are kept"):
            prepare_collection(planned, tokenizer(), tmp_path, progress=False)
    assert content(tmp_path / "foxes") == before
    prepare_collection(planned, tokenizer(), tmp_path, progress=False)
    assert list(open_stores(tmp_path)) == ["foxes"]


def test_a_full_disk_at_the_manifest_keeps_all_shards(whole, tmp_path, monkeypatch):
    from nomic_jax.data.store import prepare as finish

    def full(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(finish, "write_manifest", full)
        with pytest.raises(ValueError, match="manifest.json: no space is left"):
            prepare(tmp_path)
    assert len(list(tmp_path.glob("shard-*.json"))) == 5
    prepare(tmp_path)
    assert content(tmp_path) == content(whole)


def test_an_empty_source_is_refused(tmp_path):
    with pytest.raises(ValueError, match="source 'foxes' is empty"):
        prepare(tmp_path / "store", source=pair_source(0))
    assert not (tmp_path / "store").exists()


def test_a_rule_that_leaves_no_record_is_refused(tmp_path):
    rule = pair_rule(num_negatives=3, too_few_negatives="drop")
    with pytest.raises(ValueError, match="all 170 pairs have fewer than 3 negatives"):
        prepare(tmp_path, rule=rule)
    assert content(tmp_path) == {}
    with pytest.raises(ValueError, match="tokens in 5 ranges fill no row of 5000"):
        prepare(tmp_path, rule=dataclasses.replace(ROWS, row_length=5000))
    assert content(tmp_path) == {}


def test_a_source_with_one_document_repeated_is_refused(tmp_path):
    pairs = [Pair(f"{i} foxes", "lazy dogs") for i in range(90)]
    source = PairSource("same", pairs, "", "")
    with pytest.raises(
        ValueError, match="source 'same': all 90 records have one and the same document"
    ):
        prepare(tmp_path, source=source)
    assert content(tmp_path) == {}
    pairs[70] = Pair("70 foxes", "quick dogs")
    manifest = prepare(tmp_path, source=source)
    assert [shard.distinct for shard in manifest.shards] == [1, 2, 1]


def test_documents_that_differ_between_shards_alone_are_accepted(tmp_path):
    pairs = [Pair("foxes", "lazy dogs" if i < 40 else "dogs") for i in range(80)]
    manifest = prepare(tmp_path, source=PairSource("halves", pairs, "", ""))
    assert [shard.distinct for shard in manifest.shards] == [1, 1]


def test_shards_whose_pairs_were_all_dropped_are_read_around(tmp_path):
    source = pair_source(170)
    pairs = [
        dataclasses.replace(pair, negatives=("dogs",)) if i >= 80 else pair
        for i, pair in enumerate(source.pairs)
    ]
    rule = pair_rule(num_negatives=1, too_few_negatives="drop")
    prepare(tmp_path, source=dataclasses.replace(source, pairs=pairs), rule=rule)
    store = Store.open(tmp_path)
    assert [shard.records for shard in store.manifest.shards] == [0, 0, 40, 40, 10]
    store.verify()
    expected = tokenizer().encode(["q: " + pairs[80].query], max_length=16).ids[0]
    np.testing.assert_array_equal(store.read(np.array([0]))[0][0], expected)


class Short(Stops):
    """A source that ends before its length."""

    def rows(self, start, stop):
        yield from self.source.rows(start, min(stop, self.row))


def test_a_source_that_gives_fewer_rows_than_it_has_is_refused(tmp_path):
    with pytest.raises(ValueError, match="gave 30 rows from row 120 on, 40 are needed"):
        prepare(tmp_path, source=Short(pair_source(170), 150, None))


@pytest.mark.parametrize("name", ["workers", "records_per_shard"])
def test_counts_below_one_are_refused(tmp_path, name):
    with pytest.raises(ValueError, match=f"{name}=0 must be at least 1"):
        prepare(tmp_path, **{name: 0})


def test_progress_counts_the_rows_that_were_done_before(tmp_path, capsys):
    folder = stopped(tmp_path / "store")
    prepare(folder, progress=True)
    shown = capsys.readouterr().err
    assert "foxes:" in shown and "170/170" in shown and "tokens" in shown
    assert "80/170" in shown.split("\r")[1] or "80/170" in shown


@pytest.mark.parametrize("scheme", ["memory", "file"])
def test_a_store_may_lie_at_a_url(whole, tmp_path, monkeypatch, scheme):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    url = f"{scheme}://{tmp_path}/store"
    manifest = prepare(url)
    assert manifest == Store.open(whole).manifest
    records = np.array([169, 3, 50])
    for one, other in zip(
        Store.open(url).read(records), Store.open(whole).read(records), strict=True
    ):
        assert [text.tolist() for text in one] == [text.tolist() for text in other]
    assert prepare(url) == manifest  # verified
    if scheme == "memory":
        import fsspec

        memory = fsspec.filesystem("memory")
        assert list((tmp_path / "cache").rglob("*.array_record"))
        found = {
            Path(path).name: memory.cat_file(path)
            for path in memory.ls(f"{tmp_path}/store", detail=False)
        }
        assert found == content(whole)
        # What was fetched before is whole still; the store is not.
        name = "shard-00002-of-00005.array_record"
        data = bytearray(found[name])
        data[400] ^= 1
        memory.pipe_file(f"{tmp_path}/store/{name}", bytes(data))
        with pytest.raises(ValueError, match=f"{name} has checksum"):
            prepare(url)
        memory.rm(str(tmp_path), recursive=True)


def test_a_collection_holds_stores_by_name_and_their_tokenizer(whole, tmp_path):
    planned = [
        (pair_source(170), pair_rule()),
        (pair_source(50, name="dogs"), ROWS),
    ]
    options = {"records_per_shard": 40, "progress": False}
    manifests = prepare_collection(planned, tokenizer(), tmp_path, **options)
    stores = open_stores(tmp_path)
    assert list(stores) == list(manifests) == ["foxes", "dogs"]
    assert [store.manifest for store in stores.values()] == list(manifests.values())
    assert content(tmp_path / "foxes") == content(whole)
    assert (tmp_path / "tokenizer_config.json").is_file()
    # The folder that holds the tokenizer will do, and so will more sources.
    planned.append((pair_source(20, name="wolves"), pair_rule()))
    prepare_collection(planned, tmp_path, tmp_path, **options)
    assert list(open_stores(tmp_path)) == ["foxes", "dogs", "wolves"]


def test_further_sources_join_a_collection_behind_those_it_has(tmp_path):
    for name in ("foxes", "dogs", "wolves", "foxes"):
        planned = [(pair_source(30, name=name), pair_rule())]
        made = prepare_collection(planned, tokenizer(), tmp_path, progress=False)
        assert list(made) == [name]
    assert list(open_stores(tmp_path)) == ["foxes", "dogs", "wolves"]


def test_a_list_that_another_command_overwrote_is_whole_again(tmp_path):
    for name in ("foxes", "dogs"):
        planned = [(pair_source(30, name=name), pair_rule())]
        prepare_collection(planned, tokenizer(), tmp_path, progress=False)
    (tmp_path / "stores.json").write_text('{"stores": ["dogs"]}')  # written last
    (tmp_path / "notes").mkdir()
    planned = [(pair_source(30, name="wolves"), pair_rule())]
    prepare_collection(planned, tokenizer(), tmp_path, progress=False)
    assert list(open_stores(tmp_path)) == ["dogs", "wolves", "foxes"]


def test_a_source_that_is_blank_throughout_is_refused(tmp_path):
    source = PairSource("blank", [Pair("fox", " ")] * 90, "", "")
    with pytest.raises(ValueError, match="'blank': all 90 texts are blank"):
        prepare(tmp_path, source=source, rule=pair_rule(blank="drop"))
    assert content(tmp_path) == {}


def test_an_unfinished_collection_is_no_collection(tmp_path):
    planned = [
        (pair_source(50), pair_rule()),
        (Stops(pair_source(50, name="dogs"), 30, OSError("unplugged")), pair_rule()),
    ]
    with pytest.raises(OSError, match="unplugged"):
        prepare_collection(planned, tokenizer(), tmp_path, progress=False)
    with pytest.raises(ValueError, match="no finished collection"):
        open_stores(tmp_path)


def test_names_of_a_collection_differ_and_name_folders(tmp_path):
    same = [(pair_source(50), pair_rule())] * 2
    with pytest.raises(ValueError, match="2 sources are named 'foxes'"):
        prepare_collection(same, tokenizer(), tmp_path)
    for name in ("", "..", "a/b", ".hidden"):
        with pytest.raises(ValueError, match="cannot name a folder"):
            planned = [(pair_source(50, name=name), pair_rule())]
            prepare_collection(planned, tokenizer(), tmp_path)
    with pytest.raises(ValueError, match="no source is given"):
        prepare_collection([], tokenizer(), tmp_path)
    assert content(tmp_path) == {}


def test_a_collection_keeps_to_one_tokenizer(tmp_path):
    from nomic_jax.data.tokenizer import TextTokenizer

    other = TextTokenizer.train(["the quick brown fox"] * 3, vocab_size=100)
    other.save(tmp_path)
    with pytest.raises(ValueError, match=f"digest {other.digest}, the tokenizer given"):
        prepare_collection([(pair_source(50), pair_rule())], tokenizer(), tmp_path)
    assert json.loads((tmp_path / "tokenizer.json").read_text())
