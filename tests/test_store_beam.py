import sys

import pytest
from store_pairs import content, pair_rule, pair_source, tokenizer

from nomic_jax.sources.pairs import Pair
from nomic_jax.store.beam import prepare_on_beam
from nomic_jax.store.prepare import prepare_store
from nomic_jax.store.rules import RowRule


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
    with pytest.raises(Exception, match="source 'foxes', pair 7: .* is blank"):
        prepare_on_beam(source, pair_rule(), tokenizer(), tmp_path)
    assert not (tmp_path / "manifest.json").exists()


def test_without_beam_its_extra_is_named(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "apache_beam", None)
    with pytest.raises(ValueError, match=r"pip install 'nomic-jax\[beam\]'"):
        prepare_on_beam(pair_source(20), pair_rule(), tokenizer(), tmp_path)
