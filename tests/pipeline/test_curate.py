"""Curation as stages of a run: what they leave is what the next stage reads."""

import json

import numpy as np
import pytest
import tiny_checkpoints as tiny

from nomic_jax.curation.filter import Filtering, FilterStage
from nomic_jax.curation.mining import MineStage, Mining
from nomic_jax.curation.pairs import StagePairs, with_own_prompts
from nomic_jax.data.pairs import PairBatches
from nomic_jax.data.schedule import Schedule
from nomic_jax.data.sources.jsonl import read_pairs, write_pairs
from nomic_jax.data.sources.pairs import Pair, PairSource
from nomic_jax.data.store.manifest import PAIRS
from nomic_jax.data.store.stage import (
    is_prepared,
    read_entries,
    write_sources,
    write_training_pairs,
)
from nomic_jax.data.store.store import open_stores
from nomic_jax.inference.embedder import Embedder
from nomic_jax.pipeline.curate import filtered, mined
from nomic_jax.pipeline.report import PipelineState
from nomic_jax.training.run_folder import RunFolder

PREFIXES = {
    "forum": ("search_query: ", "search_document: "),
    "letters": ("clustering: ", "clustering: "),
}
WORDS = "a small fox jumps over the lazy dog while search query document".split()
LENGTHS = {"query_length": 16, "document_length": 14}


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models") / "nomic-embed-text-v1.5"
    return tiny.add_tokenizer(tiny.folder(folder, tiny.tensors(), tiny.NOMIC_CONFIG))


@pytest.fixture(scope="module")
def embedder(model):
    return Embedder.from_pretrained(model)


def drawn(name, seed):
    """Pairs of words; half of the documents repeat their query."""
    random, pairs = np.random.default_rng(seed), []
    for number in range(24):
        query = " ".join(random.choice(WORDS, 4))
        document = query if number % 2 else " ".join(random.choice(WORDS, 5))
        pairs.append(Pair(query, f"the {document}"))
    return PairSource(name, pairs, *PREFIXES[name])


@pytest.fixture
def carried(embedder, tmp_path):
    """A run folder behind its prepare stage, and the model so far."""
    sources = [drawn("forum", 1), drawn("letters", 2)]
    folder = tmp_path / "prepare"
    write_training_pairs(folder, sources, embedder.tokenizer, **LENGTHS)
    write_sources(folder, sources, fingerprint="")
    return PipelineState(
        embedder.tokenizer, (), model=embedder.model, embedding=embedder.config
    )


def ranks(embedder, source, prefixes):
    """How many distinct documents score higher than each pair's own, by NumPy."""
    own = with_own_prompts(embedder, *prefixes)
    documents = list(dict.fromkeys(pair.document for pair in source.pairs))
    queries = own.encode([pair.query for pair in source.pairs], task="query")
    scores = queries @ own.encode(documents, task="document").T
    places = [documents.index(pair.document) for pair in source.pairs]
    right = scores[np.arange(len(places)), places]
    return (scores > right[:, None] + 1e-5).sum(axis=1)


def filter_run(stage, carried, out):
    folder = RunFolder.open(str(out / stage.name), {"name": stage.name})
    filtered(stage, carried, folder, str(out))
    return out / stage.name


@pytest.mark.slow
@pytest.mark.parametrize("named", [False, True])
def test_the_pairs_that_stay_are_those_a_search_by_hand_finds(
    carried, embedder, model, tmp_path, named
):
    filtering = Filtering(k=2)
    if named:
        filtering = Filtering(
            k=2, model=str(model), query_prefix="", document_prefix=""
        )
    stage = FilterStage(
        name="filter", data=StagePairs(stage="prepare"), filtering=filtering
    )
    folder = filter_run(stage, carried, tmp_path)
    stores = open_stores(folder / PAIRS)
    for entry in read_entries(folder):
        source = drawn(entry.name, {"forum": 1, "letters": 2}[entry.name])
        # A named model judges with those that are given, the run's with the sources'.
        prefixes = ("", "") if named else PREFIXES[entry.name]
        kept = ranks(embedder, source, prefixes) < 2
        assert 0 < kept.sum() < len(kept)
        shard = folder / entry.text / "shard-00000.jsonl.gz"
        assert [p.query for p in read_pairs(shard).pairs] == [
            p.query for p, stays in zip(source.pairs, kept, strict=True) if stays
        ]
        store = stores[entry.name]
        assert len(store) == entry.pairs == kept.sum()
        rule = store.manifest.rule
        assert (rule["query_prefix"], rule["document_prefix"]) == PREFIXES[entry.name]
        assert {name: rule[name] for name in LENGTHS} == LENGTHS


def test_a_filter_that_is_done_is_not_run_again(carried, tmp_path, monkeypatch):
    stage = FilterStage(
        name="filter", data=StagePairs(stage="prepare"), filtering=Filtering(k=2)
    )
    filter_run(stage, carried, tmp_path)
    monkeypatch.delattr(Embedder, "encode")
    filter_run(stage, carried, tmp_path)


def test_a_source_of_which_nothing_stays_is_named(carried, model, tmp_path):
    # The nearest document of each query is its own text, which answers another one.
    pairs = [Pair(word, WORDS[i - 3]) for i, word in enumerate(WORDS)]
    write_pairs(tmp_path / "wrong.jsonl", pairs)
    stage = FilterStage(
        name="filter",
        data=StagePairs(places=(str(tmp_path / "wrong.jsonl"),), **LENGTHS),
        filtering=Filtering(model=str(model), k=1, query_prefix="", document_prefix=""),
    )
    with pytest.raises(ValueError, match="of wrong no pair is among .* k=1 nearest"):
        filter_run(stage, carried, tmp_path)
    assert not is_prepared(tmp_path / "filter")


@pytest.mark.slow
def test_negatives_of_a_filtered_source_are_in_the_batches(carried, embedder, tmp_path):
    filter_run(
        FilterStage(
            name="filter",
            data=StagePairs(stage="prepare"),
            filtering=Filtering(k=5),
        ),
        carried,
        tmp_path,
    )
    stage = MineStage(
        name="mine", data=StagePairs(stage="filter"), mining=Mining(count=3, pool=6)
    )
    folder = RunFolder.open(str(tmp_path / "mine"), {"name": "mine"})
    mined(stage, carried, folder, str(tmp_path))
    stores = open_stores(tmp_path / "mine" / PAIRS)
    assert list(stores) == ["forum", "letters"]
    for entry in read_entries(tmp_path / "mine"):
        lines = (tmp_path / "mine" / entry.text).read_text().splitlines()
        records = [json.loads(line) for line in lines]
        schedule = Schedule.over({entry.name: len(records)}, batch_size=5, seed=0)
        batch_at = PairBatches(
            {entry.name: stores[entry.name]},
            schedule,
            num_negatives=3,
            negatives="first",
            pad_id=0,
            seed=0,
            **LENGTHS,
        )
        batch = batch_at(0).arrays
        _, numbers = schedule.at(0)
        texts = [
            PREFIXES[entry.name][1] + text
            for number in numbers
            for text in (records[number]["document"], *records[number]["negatives"])
        ]
        expected = embedder.tokenizer.encode(texts, max_length=14).ids
        tokens, slots = batch.texts.tokens, batch.texts.slot_lengths.shape[1]
        for place, ids in zip(batch.document_places, expected, strict=True):
            row, slot = divmod(int(batch.slots[0, place]), slots)
            found = tokens.ids[row][tokens.segment_ids[row] == slot + 1]
            np.testing.assert_array_equal(found, ids)


def test_nothing_says_done_where_a_source_cannot_be_mined(carried, tmp_path):
    stage = MineStage(
        name="mine", data=StagePairs(stage="prepare"), mining=Mining(count=30, pool=30)
    )
    folder = RunFolder.open(str(tmp_path / "mine"), {"name": "mine"})
    with pytest.raises(ValueError, match="'forum' has 24 documents"):
        mined(stage, carried, folder, str(tmp_path))
    assert not is_prepared(tmp_path / "mine")


def test_two_files_of_one_name_are_refused_before_any_is_judged(
    carried, model, tmp_path
):
    for folder in ("one", "two"):
        write_pairs(tmp_path / folder / "words.jsonl", drawn("forum", 3).pairs)
    places = tuple(str(tmp_path / name / "words.jsonl") for name in ("one", "two"))
    stage = FilterStage(
        name="filter",
        data=StagePairs(places=places, **LENGTHS),
        filtering=Filtering(model=str(model), k=2),
    )
    with pytest.raises(ValueError, match="2 sources are named 'words'"):
        filter_run(stage, carried, tmp_path)
    assert not (tmp_path / "filter" / "train").exists()


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({}, "pairs come from one"),
        ({"stage": "prepare", "places": ("a.jsonl",)}, "pairs come from one"),
        ({"places": ("a.jsonl",), "query_length": 8}, "document_length=0: texts of"),
        ({"stage": "prepare", "workers": 0}, "workers=0"),
    ],
)
def test_pairs_from_nowhere_are_refused(fields, message):
    with pytest.raises(ValueError, match=message):
        StagePairs(**fields)
