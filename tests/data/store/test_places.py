import json

import pytest

from nomic_jax.data.store.manifest import PAIRS, TEXT
from nomic_jax.data.store.stage import PlacesConfig, prepare_places
from nomic_jax.data.store.store import open_stores
from nomic_jax.data.tokenizer import TextTokenizer

LENGTHS = {"query_length": 8, "document_length": 12}


@pytest.fixture(scope="module")
def tokenizer():
    return TextTokenizer.train([f"word {i} of ten" for i in range(10)], vocab_size=80)


@pytest.fixture(scope="module")
def text(tmp_path_factory):
    folder = tmp_path_factory.mktemp("text")
    for name in ("a", "b"):
        lines = "\n".join(f"word {i} of {name}" for i in range(40))
        (folder / f"{name}.txt").write_text(lines)
    with (folder / "pairs.jsonl").open("w") as file:
        for i in range(9):
            negatives = [f"word {j}" for j in range(i % 3)]
            record = {"query": f"which {i}", "document": f"word {i}"}
            file.write(json.dumps(record | {"negatives": negatives}) + "\n")
    return folder


def test_each_place_becomes_a_store_and_brings_its_rule(text, tokenizer, tmp_path):
    config = PlacesConfig(
        tokenizer="of the test",
        text=(f"{text}/a.txt", f"{text}/b.txt"),
        row_length=16,
        pairs=(f"{text}/pairs.jsonl",),
        num_negatives=2,
        too_few_negatives="drop",
        document_prefix="",
        workers=1,
        **LENGTHS,
    )
    prepare_places(config, str(tmp_path), tokenizer)
    rows, pairs = (open_stores(tmp_path / kind) for kind in (TEXT, PAIRS))
    assert list(rows) == ["a", "b"]
    assert all(store.manifest.rule["row_length"] == 16 for store in rows.values())
    # Of nine pairs every third has two negatives.
    assert len(pairs["pairs"]) == 3
    rule = pairs["pairs"].manifest.rule
    assert (rule["query_prefix"], rule["document_prefix"]) == ("search_query: ", "")
    made = TextTokenizer.from_folder(tmp_path)
    assert made.digest == tokenizer.digest
    prepare_places(config, str(tmp_path), tokenizer)  # what is there is verified


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({}, "neither text nor pairs"),
        ({"text": ("a.txt",)}, "row_length=0: text in rows of less than 3"),
        (
            {"pairs": ("a.jsonl",), "query_length": 8},
            "query_length=8, document_length=0: pairs in rows of",
        ),
        ({"text": ("a.txt",), "row_length": 8, "workers": 0}, "workers=0"),
    ],
)
def test_sources_need_their_lengths(fields, message):
    with pytest.raises(ValueError, match=message):
        PlacesConfig(tokenizer="bert", **fields)
