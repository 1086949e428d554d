import os
import pickle
import subprocess
import sys

import numpy as np
import pytest

from nomic_jax.data.sources.source import Source
from nomic_jax.data.sources.tables import TfdsRows, _plain
from nomic_jax.downstream.config import HeadConfig, TaskData
from nomic_jax.downstream.examples import read_examples

COUNT = 600

# Run in a process of its own: TFDS and protobuf warn while they write.
WRITE = """
import sys
import tensorflow_datasets as tfds

class SmallWiki(tfds.core.GeneratorBasedBuilder):
    VERSION = tfds.core.Version("1.0.0")

    def _info(self):
        features = {
            "title": tfds.features.Text(),
            "text": tfds.features.Text(),
            "label": tfds.features.ClassLabel(num_classes=3),
            "links": tfds.features.Sequence(tfds.features.Text()),
        }
        return tfds.core.DatasetInfo(
            builder=self, features=tfds.features.FeaturesDict(features)
        )

    def _split_generators(self, manager):
        return {"train": self._generate_examples(int(sys.argv[2]))}

    def _generate_examples(self, count):
        for i in range(count):
            row = {"title": f"Titel {i}", "text": f"späte Blüte {i}", "label": i % 3}
            yield i, row | {"links": [f"é{j}" for j in range(i % 3)]}

builder = SmallWiki(data_dir=sys.argv[1], file_format="array_record")
builder.download_and_prepare()
assert "tensorflow" not in sys.modules
"""


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tfds")
    subprocess.run(
        [sys.executable, "-c", WRITE, str(folder), str(COUNT)],
        capture_output=True,
        check=True,
        env=os.environ | {"TQDM_DISABLE": "1"},
    )
    return str(folder)


def expected(row):
    number = int(row["title"].split()[1])
    assert row["text"] == f"späte Blüte {number}"
    assert row["label"] == number % 3
    assert row["links"] == [f"é{j}" for j in range(number % 3)]
    return number


def test_ranges_are_the_examples_with_texts_decoded(data_dir):
    source = TfdsRows.open("small_wiki:train", data_dir=data_dir)
    assert isinstance(source, Source)
    assert (source.name, len(source)) == ("small_wiki-train", COUNT)
    source = pickle.loads(pickle.dumps(source))
    rows = list(source.rows(0, COUNT))
    assert sorted(map(expected, rows)) == list(range(COUNT))
    for start, stop in [(0, 1), (255, 258), (511, 999)]:
        assert list(source.rows(start, stop)) == rows[start:stop]
    assert list(source.rows(COUNT, COUNT + 9)) == []
    assert source.place(7) == "tfds:small_wiki:train, row 7"


def test_a_part_of_a_split_and_a_version_are_data_sets_too(data_dir):
    whole = TfdsRows.open("small_wiki:train", data_dir=data_dir)
    part = TfdsRows.open("small_wiki:1.0.0:train[:10%]", "part", data_dir=data_dir)
    assert len(part) == COUNT // 10
    assert part.fingerprint != whole.fingerprint
    # Neither colons nor brackets may stand in a folder's name.
    name = TfdsRows.open("small_wiki:1.0.0:train[5:9]", data_dir=data_dir).name
    assert name == "small_wiki-1.0.0-train-5-9"


def test_tasks_learn_from_rows_and_the_numbers_of_their_labels(data_dir, monkeypatch):
    # What TFDS_DATA_DIR sets before TFDS is imported.
    monkeypatch.setattr("tensorflow_datasets.core.constants.DATA_DIR", data_dir)
    head = HeadConfig(kind="sequence_classification", problem="one_label")
    data = TaskData(max_length=16, first="text", second="title")
    found = read_examples("tfds:small_wiki:train[3:9]", head, data)
    source = TfdsRows.open("small_wiki:train", data_dir=data_dir)
    expected = [
        (row["text"], row["title"], (row["label"],)) for row in source.rows(3, 9)
    ]
    assert [(one.first, one.second, one.names) for one in found] == expected
    assert found[1].place == "tfds:small_wiki:train[3:9], row 1"


def test_no_tensorflow_is_imported(data_dir):
    code = (
        "import sys; from nomic_jax.data.sources.tables import TfdsRows;"
        "source = TfdsRows.open('small_wiki:train', data_dir=sys.argv[1]);"
        "print(len(list(source.rows(0, 9)))); assert 'tensorflow' not in sys.modules"
    )
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code, data_dir],
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout == "9\n"


@pytest.mark.parametrize(
    ("dataset", "problem"),
    [
        ("small_wiki", "names no split; write it as"),
        (":train", "names no split"),
        ("small_wiki:test", "tfds:small_wiki:test .* no such split.*; splits: train"),
        ("small_wikis:train", "tfds:small_wikis:train .* is not prepared in .*tfds"),
        ("glue/mrpc:train", r"not prepared in .*file_format='array_record'\)\.down"),
    ],
)
def test_a_data_set_that_is_not_there_is_refused(data_dir, dataset, problem):
    with pytest.raises(ValueError, match=problem) as raised:
        TfdsRows.open(dataset, data_dir=data_dir)
    assert "\n" not in str(raised.value)


def test_an_empty_part_is_no_source(data_dir):
    with pytest.raises(
        ValueError, match=r"tfds:small_wiki:train\[:0\] .* nothing in that part"
    ):
        TfdsRows.open("small_wiki:train[:0]", data_dir=data_dir)


def test_another_format_is_refused_with_what_to_do(data_dir, tmp_path):
    import shutil

    folder = tmp_path / "small_wiki" / "1.0.0"
    shutil.copytree(f"{data_dir}/small_wiki/1.0.0", folder)
    info = folder / "dataset_info.json"
    info.write_text(info.read_text().replace("array_record", "tfrecord"))
    with pytest.raises(ValueError, match="its format is tfrecord, array_record is nee"):
        TfdsRows.open("small_wiki:train", data_dir=str(tmp_path))


def test_arrays_of_bytes_become_lists_of_texts_at_any_depth():
    value = {
        "a": np.array([b"\xc3\xa9", b"f"], object),
        "b": np.float32(0.5),
        "c": {"d": [b"g", np.int64(3)]},
        "e": np.array([[1, 2]]),
    }
    assert _plain(value) == {"a": ["é", "f"], "b": 0.5, "c": {"d": ["g", 3]}} | {
        "e": [[1, 2]]
    }
