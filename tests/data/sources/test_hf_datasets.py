import importlib.util
import pickle
import sys

import pytest

from nomic_jax.data.sources import tables
from nomic_jax.data.sources.source import Source
from nomic_jax.data.sources.tables import DatasetsRows

ROWS = [{"title": f"Titel {i}", "neg": [f"é{i}"] * (i % 3), "n": i} for i in range(600)]


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    datasets = pytest.importorskip("datasets")
    folder = tmp_path_factory.mktemp("saved")
    split = datasets.Dataset.from_list(ROWS)
    split.save_to_disk(folder / "wiki", num_shards=2)
    datasets.DatasetDict({"train": split}).save_to_disk(folder / "splits")
    datasets.Dataset.from_dict({"text": []}).save_to_disk(folder / "empty")
    return folder


def test_ranges_are_the_rows(saved):
    source = DatasetsRows.open(saved / "wiki")
    assert isinstance(source, Source)
    assert (source.name, len(source)) == ("wiki", 600)
    source = pickle.loads(pickle.dumps(source))
    for start, stop in [(0, 600), (0, 1), (255, 258), (590, 999), (600, 601)]:
        assert list(source.rows(start, stop)) == ROWS[start:stop]
    assert source.place(3) == f"{saved}/wiki, row 3"


def test_a_split_of_several_is_named(saved):
    with pytest.raises(ValueError, match="several splits; name one of .*splits/train"):
        DatasetsRows.open(saved / "splits")
    assert len(DatasetsRows.open(saved / "splits" / "train")) == 600


def test_what_is_no_saved_data_set_is_refused(saved, tmp_path):
    with pytest.raises(ValueError, match="is not a saved data set"):
        DatasetsRows.open(tmp_path)
    with pytest.raises(ValueError, match="empty is (empty|not a saved data set)"):
        DatasetsRows.open(saved / "empty")
    with pytest.raises(ValueError, match="copy the folder"):
        DatasetsRows.open("memory://wiki")


def test_without_the_package_its_name_is_said(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "datasets", None)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match="needs the package `datasets`"):
        tables.DatasetsRows.open(tmp_path)
