import gzip
import os
import random

import pytest

from nomic_jax.data.sources import lines
from nomic_jax.data.sources.lines import LineIndex, read_lines


@pytest.fixture(autouse=True)
def cache(tmp_path_factory, monkeypatch):
    folder = tmp_path_factory.mktemp("cache")
    monkeypatch.setenv("XDG_CACHE_HOME", str(folder))
    return folder / "nomic_jax" / "indexes"


def write(path, text):
    data = text if isinstance(text, bytes) else text.encode()
    path.write_bytes(gzip.compress(data) if path.suffix == ".gz" else data)
    return path


def numbered(count):
    return [f"línea {i} {i * 7919 % 1000}" for i in range(count)]


def count_passes(monkeypatch):
    """Places that are read from their start, in the order in which they are."""
    read, passes = lines.read_lines, []

    def counted(place, **arguments):
        passes.append(str(place))
        return read(place, **arguments)

    monkeypatch.setattr(lines, "read_lines", counted)
    return passes


@pytest.mark.parametrize("name", ["x.txt", "x.txt.gz"])
@pytest.mark.parametrize("seed", [0, 1])
def test_a_range_is_the_range_of_the_whole_file(tmp_path, name, seed):
    rng = random.Random(seed)
    texts = numbered(3456)
    index = LineIndex.of(write(tmp_path / name, "\n".join(texts)))
    assert index.count == len(texts)
    for _ in range(20):
        start = rng.randrange(len(texts))
        stop = start + rng.randrange(1200)
        found = list(index.read(start, stop))
        assert [line.text for line in found] == texts[start:stop]
        assert found[0].number == start + 1
        assert found[0].offset == len("\n".join([*texts[:start], ""]).encode())


def test_gzip_is_read_from_the_middle_at_a_point_not_from_its_start(
    tmp_path, monkeypatch
):
    rng = random.Random(0)
    texts = [rng.randbytes(2500).hex() for _ in range(2500)]  # 12 MB
    path = write(tmp_path / "x.txt.gz", "\n".join(texts))
    index = LineIndex.of(path)
    reads = []
    real = lines.open_at

    def opened(place, **arguments):
        reads.append(arguments["offset"])
        return real(place, **arguments)

    monkeypatch.setattr(lines, "open_at", opened)
    assert [line.text for line in index.read(2300, 2302)] == texts[2300:2302]
    assert reads == [index.offsets[2]] and reads[0] > 8 << 20


def test_an_index_is_built_once_and_again_when_the_file_changes(
    tmp_path, monkeypatch, cache
):
    passes = count_passes(monkeypatch)
    path = write(tmp_path / "x.txt.gz", "\n".join(numbered(1500)))
    for _ in range(3):
        assert LineIndex.of(path).count == 1500
    assert passes == [str(path)]
    kept = {file.name for file in cache.iterdir()}
    assert len(kept) == 2  # rows and points; nothing half-written next to them
    write(path, "\n".join(numbered(1400)))
    assert LineIndex.of(path).count == 1400
    assert len(passes) == 2


def test_a_file_of_the_same_size_that_was_touched_is_indexed_again(
    tmp_path, monkeypatch
):
    passes = count_passes(monkeypatch)
    path = write(tmp_path / "x.txt", "a\nb\n")
    LineIndex.of(path)
    path.write_text("a b\n")
    os.utime(path, ns=(1, 10**18))
    assert LineIndex.of(path).count == 1
    assert len(passes) == 2


def test_a_broken_or_unwritable_cache_only_costs_a_pass(tmp_path, cache, monkeypatch):
    path = write(tmp_path / "x.txt.gz", "\n".join(numbered(1500)))
    LineIndex.of(path)
    for file in cache.iterdir():
        if file.suffix == ".npz":
            file.write_bytes(file.read_bytes()[:100])
        else:
            file.unlink()
    assert next(LineIndex.of(path).read(1200, 1201)).number == 1201
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    assert next(LineIndex.of(path).read(1200, 1201)).number == 1201


@pytest.mark.parametrize("name", ["x.txt", "x.txt.gz"])
def test_a_file_changed_under_its_index_is_refused(tmp_path, name):
    path = write(tmp_path / name, "\n".join(numbered(2000)))
    index = LineIndex.of(path)
    write(path, "\n".join(numbered(1500)))
    with pytest.raises(ValueError, match="x.txt.* was changed .* open it again"):
        list(index.read(1200, 1300))


def test_rows_are_lines_or_paragraphs(tmp_path):
    path = write(tmp_path / "x.txt", "\n one \r\ntwo\n\u00a0\n\nthree\n")
    found = [(line.number, line.text) for line in read_lines(path)]
    assert found == [(2, " one"), (3, "two"), (6, "three")]
    index = LineIndex.of(path, split="paragraphs")
    found = [(line.number, line.text) for line in index.read(0, 9)]
    assert found == [(2, " one\ntwo"), (6, "three")]
    assert index.number(1) == 6


def test_a_file_elsewhere_is_read_as_a_local_one(monkeypatch):
    import fsspec

    system = fsspec.filesystem("memory")
    texts = numbered(2500)
    system.pipe_file("/far/x.txt.gz", gzip.compress("\n".join(texts).encode()))
    index = LineIndex.of("memory://far/x.txt.gz")
    assert [line.text for line in index.read(2100, 2103)] == texts[2100:2103]
    passes = count_passes(monkeypatch)
    assert LineIndex.of("memory://far/x.txt.gz").count == 2500
    assert not passes
    with pytest.raises(ValueError, match="memory://far/y.txt cannot be read"):
        LineIndex.of("memory://far/y.txt")


def cut(data):
    return data[: len(data) // 2]


def damage(data):
    return data[:60] + bytes(8) + data[68:]


def change_checksum(data):
    return data[:-6] + bytes([data[-6] ^ 1]) + data[-5:]


def plain(data):
    return b"no gzip"


@pytest.mark.parametrize("change", [cut, damage, change_checksum, plain])
def test_broken_gzip_is_refused_and_leaves_no_index(tmp_path, cache, change):
    path = tmp_path / "x.txt.gz"
    path.write_bytes(change(gzip.compress("\n".join(numbered(5000)).encode())))
    with pytest.raises(ValueError, match=r"x\.txt\.gz: broken gzip after line \d+"):
        LineIndex.of(path)
    assert not cache.exists()


def test_a_cut_file_says_after_which_line(tmp_path):
    path = tmp_path / "x.txt.gz"
    texts = [str(random.Random(i).getrandbits(2048)) for i in range(3000)]
    path.write_bytes(cut(gzip.compress("\n".join(texts).encode())))
    with pytest.raises(ValueError, match=r"broken gzip after line 1\d\d\d: "):
        LineIndex.of(path)


@pytest.mark.parametrize("name", ["x.txt", "x.txt.gz"])
def test_text_that_is_not_utf8_is_refused_with_its_line_and_byte(tmp_path, name):
    path = write(tmp_path / name, "é\n".encode() * 1500 + b"caf\xe9\n")
    problem = r"x\.txt.*:1501: byte 4503 of the file, 0xe9, is not UTF-8"
    with pytest.raises(ValueError, match=problem):
        LineIndex.of(path)


def test_a_row_that_there_is_not_is_refused(tmp_path):
    files = lines.IndexedFiles.of(write(tmp_path / "x.txt", "a\nb\n"))
    with pytest.raises(ValueError, match="there are 2 rows, none is 2"):
        files.place(2)
