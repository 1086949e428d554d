import functools
import sys

import pytest
from store_pairs import content, pair_rule, pair_source, tokenizer

from nomic_jax.data.sources.pairs import Pair
from nomic_jax.data.store.beam import prepare_on_beam
from nomic_jax.data.store.prepare import prepare_store
from nomic_jax.data.store.records import RowRule


@pytest.mark.filterwarnings("ignore")  # Beam's own, of many kinds
@pytest.mark.parametrize("kind", ["pairs", "rows"])
def test_beam_writes_the_bytes_that_processes_write(tmp_path, kind):
    pytest.importorskip("apache_beam")
    rows = RowRule(row_length=16, column="document", rows_per_range=40)
    rule = pair_rule() if kind == "pairs" else rows
    arguments = (pair_source(170), rule, tokenizer())
    alone = prepare_store(
        *arguments, tmp_path / "alone", records_per_shard=40, progress=False
    )
    beam = prepare_on_beam(
        *arguments,
        f"file://{tmp_path}/beam",
        records_per_shard=40,
        pipeline_options=["--runner=DirectRunner"],
    )
    assert beam == alone
    assert content(tmp_path / "beam") == content(tmp_path / "alone")
    assert prepare_on_beam(*arguments, tmp_path / "beam", records_per_shard=40) == alone


@pytest.mark.filterwarnings("ignore")
def test_an_error_on_beam_names_the_record(tmp_path):
    pytest.importorskip("apache_beam")
    source = pair_source(20)
    source.pairs[7] = Pair("fox", "")
    with pytest.raises(ValueError) as caught:
        prepare_on_beam(source, pair_rule(), tokenizer(), tmp_path)
    assert str(caught.value) == (
        "source 'foxes', pair 7: column 'document' is blank; give it text, or set "
        "blank to 'drop'"
    )
    assert not (tmp_path / "manifest.json").exists()
    assert not [name for name in content(tmp_path) if name.endswith(".error")]


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("first", ["processes", "beam"])
def test_what_one_of_beam_and_processes_left_the_other_goes_on_with(tmp_path, first):
    pytest.importorskip("apache_beam")
    ways = {
        "processes": functools.partial(prepare_store, progress=False),
        "beam": prepare_on_beam,
    }
    stop, go_on = (ways[first], ways["beam" if first == "processes" else "processes"])
    whole, source = pair_source(170), pair_source(170)
    source.pairs[90] = Pair("fox", "")
    # The same source as far as anybody can tell, until its row 90 is read.
    stopping = Claims(source, whole.fingerprint)
    options = {"records_per_shard": 40}
    with pytest.raises(ValueError, match="pair 90: .* is blank"):
        stop(stopping, pair_rule(), tokenizer(), tmp_path / "store", **options)
    done = sorted((tmp_path / "store").glob("*.array_record"))
    times = [path.stat().st_mtime_ns for path in done]
    assert 2 <= len(done) < 5
    made = go_on(whole, pair_rule(), tokenizer(), tmp_path / "store", **options)
    assert [path.stat().st_mtime_ns for path in done] == times
    fresh = prepare_store(
        whole, pair_rule(), tokenizer(), tmp_path / "fresh", progress=False, **options
    )
    assert made == fresh
    assert content(tmp_path / "store") == content(tmp_path / "fresh")


class Claims:
    """A source with another's fingerprint."""

    def __init__(self, source, fingerprint):
        self.source, self.fingerprint = source, fingerprint
        self.name = source.name

    def __len__(self):
        return len(self.source)

    def rows(self, start, stop):
        return self.source.rows(start, stop)

    def place(self, row):
        return self.source.place(row)


def test_without_beam_its_extra_is_named(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "apache_beam", None)
    with pytest.raises(ValueError, match=r"pip install 'nomic-jax\[beam\]'"):
        prepare_on_beam(pair_source(20), pair_rule(), tokenizer(), tmp_path)
