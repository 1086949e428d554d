import gzip
import json
import logging

import pytest
from store_pairs import pair_rule

from nomic_jax.data.store.records import RowRule
from nomic_jax.data.store.stage import plan_sources

YAML = """
datasets:
  - {name: qa, bucket: qa.jsonl.gz, objective: {type: paired, columns: [q, d]}}
  - {name: nli, bucket: nli.jsonl.gz, objective: {type: triplet, columns: [q, d, n]}}
  - {name: texts, bucket: texts.jsonl.gz, objective: {type: self, columns: [q]}}
"""
OBJECTIVES = {"qa": "paired", "nli": "triplet", "texts": "self"}
COLUMNS = {"qa": ["q", "d"], "nli": ["q", "d", "n"], "texts": ["q"]}


def written(folder, names=("qa", "nli", "texts")):
    for name in names:
        columns = COLUMNS[name]
        listed = [columns[0]] * 2 if name == "texts" else columns
        row = {"q": "a", "d": "b", "n": ["c"]}
        row["metadata"] = {
            "objective": {
                "self": [listed] if name == "texts" else [],
                "paired": [listed] if name == "qa" else [],
                "triplet": [listed] if name == "nli" else [],
            }
        }
        with gzip.open(folder / f"{name}.jsonl.gz", "wt") as file:
            file.write(json.dumps(row) + "\n")
        (folder / "counts.json").write_text(
            json.dumps({f"{name}.jsonl.gz": 1 for name in OBJECTIVES})
        )
    lines = [
        line
        for line in YAML.splitlines()
        if "name" not in line or any(f"name: {name}," in line for name in names)
    ]
    (folder / "data.yaml").write_text("\n".join(lines))
    return str(folder / "data.yaml")


def test_negatives_are_stored_of_the_entries_that_have_any(tmp_path, caplog):
    rule = pair_rule(num_negatives=2)
    planned = plan_sources([written(tmp_path)], rule)
    found = {source.name: own.num_negatives for source, own in planned}
    assert found == {"qa": 0, "nli": 2, "texts": 0}
    assert not caplog.records


def test_negatives_that_are_not_stored_are_told_of(tmp_path, caplog):
    with caplog.at_level(logging.WARNING):
        plan_sources([written(tmp_path)], pair_rule())
    (line,) = caplog.messages
    assert line.startswith("nli: its negatives (column 'n') are not stored")


def test_of_parquet_files_the_columns_of_the_rule_are_read(tmp_path):
    import pyarrow
    import pyarrow.parquet

    columns = {name: ["a", "b"] for name in ("query", "document", "negatives", "body")}
    path = tmp_path / "wiki.parquet"
    pyarrow.parquet.write_table(pyarrow.table(columns), path)
    for rule, expected in (
        (pair_rule(), {"query", "document"}),
        (pair_rule(num_negatives=1), {"query", "document", "negatives"}),
        (RowRule(row_length=9, column="body"), {"body"}),
        # What is not there is said of the first row, by the names of all there are.
        (RowRule(row_length=9, column="bdy"), set(columns)),
    ):
        ((source, _),) = plan_sources([str(path)], rule)
        assert set(next(source.rows(0, 1))) == expected


def test_negatives_that_no_entry_has_are_refused(tmp_path):
    place = written(tmp_path, names=("qa",))
    with pytest.raises(
        ValueError, match="num_negatives=2 and no entry of .* has a col"
    ):
        plan_sources([place], pair_rule(num_negatives=2))
