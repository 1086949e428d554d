import json

import numpy as np
import pytest

from nomic_jax.evaluation.kinds.sts import read_sts, spearman


def ranks(values):
    """Average ranks, from their definition."""
    values = np.asarray(values)
    return [(values < v).sum() + ((values == v).sum() + 1) / 2 for v in values]


@pytest.mark.parametrize("seed", range(4))
def test_spearman_is_the_correlation_of_ranks_of_cosines(seed):
    random = np.random.default_rng(seed)
    first, second = random.normal(size=(2, 40, 6)).astype(np.float32)
    gold = random.integers(0, 6, 40)  # ties, as human scores have them
    cosine = [
        a @ b / np.sqrt((a @ a) * (b @ b)) for a, b in zip(first, second, strict=True)
    ]
    expected = np.corrcoef(ranks(cosine), ranks(gold))[0, 1]
    # No two cosines are near enough for float32 to reorder them: float64 rounding.
    assert spearman(first, second, gold) == pytest.approx(expected, abs=1e-12)


def test_the_length_of_a_vector_does_not_count():
    random = np.random.default_rng(0)
    first, second = random.normal(size=(2, 20, 4))
    lengths = random.uniform(0.1, 10, (20, 1))
    gold = random.random(20)
    assert spearman(lengths * first, second, gold) == spearman(first, second, gold)


@pytest.mark.parametrize(
    ("first", "gold", "message"),
    [
        (np.eye(3), [1, 2], "3 and 3 embeddings for 2 scores"),
        (np.diag([1.0, 0, 1]), [1, 2, 3], "1 of 3 pairs hold a zero"),
        (np.diag([1.0, np.nan, 1]), [1, 2, 3], "1 of 3 pairs hold a zero or not"),
        (np.eye(3), [1, 2, 3], "all 3 similarities are equal"),
        (np.tri(3), [2, 2, 2], "all 3 scores are equal"),
    ],
)
def test_what_has_no_order_is_refused(first, gold, message):
    with pytest.raises(ValueError, match=message):
        spearman(first, np.eye(3), gold)


def test_reads_pairs_in_order(tmp_path):
    file = tmp_path / "sts.jsonl"
    records = [("a", "b", 5.0), ("ä", "x\u2028y", 0)]
    keys = ("sentence1", "sentence2", "score")
    lines = [
        json.dumps(dict(zip(keys, r, strict=True)), ensure_ascii=False) for r in records
    ]
    file.write_text("\n\n".join(lines) + "\n", encoding="utf-8")
    pairs = read_sts(file)
    assert pairs.sentence1 == ("a", "ä")
    assert pairs.sentence2 == ("b", "x\u2028y")
    assert pairs.scores == (5.0, 0.0)


GOOD = b'{"sentence1": "a", "sentence2": "b", "score": 1}\n'


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (b"{", "not JSON"),
        (b"[1]", "an object is needed"),
        (b'{"sentence1": "\xff"}', "is not UTF-8"),
        (b'{"sentence2": "b", "score": 1}', "no column 'sentence1'"),
        (
            b'{"sentence1": "a", "sentence2": " ", "score": 1}',
            "column 'sentence2' is blank",
        ),
        (b'{"sentence1": "a", "sentence2": "b"}', "score must be a number, not None"),
        (b'{"sentence1": "a", "sentence2": "b", "score": true}', "not True"),
        (b'{"sentence1": "a", "sentence2": "b", "score": NaN}', "must be finite"),
    ],
)
def test_a_broken_line_is_named(tmp_path, line, message):
    file = tmp_path / "sts.jsonl"
    file.write_bytes(GOOD + line + b"\n" + GOOD)
    with pytest.raises(ValueError, match=f"sts.jsonl:2: .*{message}"):
        read_sts(file)


def test_a_missing_and_an_empty_file_are_refused(tmp_path):
    with pytest.raises(ValueError, match="none.jsonl is not there"):
        read_sts(tmp_path / "none.jsonl")
    (tmp_path / "empty.jsonl").write_text("\n")
    with pytest.raises(ValueError, match="empty.jsonl is empty"):
        read_sts(tmp_path / "empty.jsonl")
