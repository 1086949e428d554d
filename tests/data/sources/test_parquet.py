import pickle

import pyarrow
import pyarrow.parquet
import pytest

from nomic_jax.data.sources.source import Source
from nomic_jax.data.sources.tables import ParquetRows


def rows(count, first=0):
    return [
        {"title": f"Titel {i}", "body": f"späte Blüte {i}", "tags": [str(i)], "n": i}
        for i in range(first, first + count)
    ]


def write(path, values, group=10):
    table = pyarrow.Table.from_pylist(values)
    pyarrow.parquet.write_table(table, path, row_group_size=group)
    return path


@pytest.mark.parametrize("group", [7, 600])
def test_ranges_are_the_rows_whatever_the_row_groups(tmp_path, group):
    source = ParquetRows.open(write(tmp_path / "x.parquet", rows(700), group))
    assert isinstance(source, Source)
    assert (source.name, len(source)) == ("x", 700)
    source = pickle.loads(pickle.dumps(source))
    for start, stop in [(0, 700), (0, 1), (6, 8), (255, 258), (599, 601), (690, 999)]:
        assert list(source.rows(start, stop)) == rows(700)[start:stop]
    assert list(source.rows(700, 800)) == list(source.rows(5, 5)) == []


def test_a_range_reads_its_own_row_groups_and_columns_alone(tmp_path, monkeypatch):
    path = write(tmp_path / "x.parquet", rows(100))
    source = ParquetRows.open(path, columns=("title",))
    asked = []
    real = pyarrow.parquet.ParquetFile.iter_batches

    def counted(self, **arguments):
        asked.append((arguments["row_groups"], arguments["columns"]))
        return real(self, **arguments)

    monkeypatch.setattr(pyarrow.parquet.ParquetFile, "iter_batches", counted)
    found = list(source.rows(35, 52))
    assert found == [{"title": f"Titel {i}"} for i in range(35, 52)]
    assert asked == [([group], ["title"]) for group in (3, 4, 5)]


def test_files_that_match_a_pattern_are_one_source(tmp_path):
    for i in (1, 0):
        write(tmp_path / f"part{i}.parquet", rows(25, first=25 * i))
    source = ParquetRows.open(tmp_path / "part*.parquet", name="all")
    assert list(source.rows(20, 31)) == rows(11, first=20)
    assert source.place(26) == f"{tmp_path}/part1.parquet, row 1"
    with pytest.raises(ValueError, match="has 50 rows, none is 50"):
        source.place(50)


def test_a_file_elsewhere_is_read_as_a_local_one(tmp_path):
    import fsspec

    path = write(tmp_path / "x.parquet", rows(30))
    system = fsspec.filesystem("memory")
    system.pipe_file("/far/part0.parquet", path.read_bytes())
    source = ParquetRows.open("memory://far/part*.parquet")
    assert source.name == "far"
    assert list(source.rows(9, 12)) == rows(3, first=9)


def test_another_content_is_another_fingerprint(tmp_path):
    first = ParquetRows.open(write(tmp_path / "x.parquet", rows(3))).fingerprint
    assert first == ParquetRows.open(tmp_path / "x.parquet").fingerprint
    write(tmp_path / "x.parquet", rows(4))
    assert first != ParquetRows.open(tmp_path / "x.parquet").fingerprint


def test_a_wrong_column_is_answered_with_the_nearest(tmp_path):
    write(tmp_path / "x.parquet", rows(3))
    with pytest.raises(ValueError, match="no column 'titel'; did you mean 'title'"):
        ParquetRows.open(tmp_path / "x.parquet", columns=("titel",))


def test_files_of_one_source_have_the_same_columns(tmp_path):
    write(tmp_path / "a.parquet", [{"text": "one"}])
    write(tmp_path / "b.parquet", [{"txt": "two"}])
    with pytest.raises(
        ValueError, match=r"b\.parquet has the columns txt, .* has text"
    ):
        ParquetRows.open(tmp_path / "*.parquet")


def test_what_is_no_parquet_is_refused(tmp_path):
    whole = write(tmp_path / "whole.parquet", rows(100)).read_bytes()
    path = tmp_path / "x.parquet"
    for content in (b"", b"no Parquet file at all", whole[: len(whole) // 2]):
        path.write_bytes(content)
        with pytest.raises(ValueError, match=r"x\.parquet cannot be read as Parq") as e:
            ParquetRows.open(path)
        assert "\n" not in str(e.value)
    with pytest.raises(ValueError, match="none.parquet cannot be read: No such file"):
        ParquetRows.open(tmp_path / "none.parquet")


def test_a_damaged_row_group_is_refused_with_its_file(tmp_path):
    path = write(tmp_path / "x.parquet", rows(1000), group=100)
    source = ParquetRows.open(path)
    content = bytearray(path.read_bytes())
    content[len(content) // 2 - 500 : len(content) // 2 + 500] = bytes(1000)
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"x\.parquet cannot be read as Parquet"):
        list(source.rows(0, 1000))


def test_an_empty_file_is_no_source(tmp_path):
    table = pyarrow.Table.from_pylist([], pyarrow.schema([("text", pyarrow.string())]))
    pyarrow.parquet.write_table(table, tmp_path / "x.parquet")
    with pytest.raises(ValueError, match=r"x\.parquet is empty"):
        ParquetRows.open(tmp_path / "x.parquet")
