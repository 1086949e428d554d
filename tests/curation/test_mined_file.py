import numpy as np
import pytest
import tiny_checkpoints as tiny

from nomic_jax.cli.mine_negatives import MineNegatives, mine_negatives
from nomic_jax.cli.prepare import Prepare, prepare
from nomic_jax.data.pairs import PairBatches
from nomic_jax.data.schedule import Schedule
from nomic_jax.data.sources.jsonl import read_pairs, write_pairs, write_texts
from nomic_jax.data.sources.pairs import Pair
from nomic_jax.data.store.store import open_stores
from nomic_jax.data.tokenizer import TextTokenizer
from nomic_jax.inference import embed_parts
from nomic_jax.inference.embedder import Embedder
from nomic_jax.storage import read_bytes, sizes

WORDS = "a small fox jumps over the lazy dog while search query document".split()


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models") / "nomic-embed-text-v1.5"
    return tiny.add_tokenizer(tiny.folder(folder, tiny.tensors(), tiny.NOMIC_CONFIG))


@pytest.fixture(scope="module")
def pairs():
    """Thirty documents; every third query has two of them as its answers."""
    random = np.random.default_rng(0)
    found: dict[str, None] = {}
    while len(found) < 60:
        found[" ".join(random.choice(WORDS, random.integers(3, 9)))] = None
    queries, documents = list(found)[:30], list(found)[30:]
    return [Pair(queries[i - i % 3 // 2], documents[i]) for i in range(30)]


@pytest.fixture
def options(model, pairs, tmp_path):
    write_pairs(tmp_path / "forum.jsonl", pairs)
    return {
        "source": str(tmp_path / "forum.jsonl"),
        "model": str(model),
        "out": str(tmp_path / "mined.jsonl.gz"),
        "margin": None,
        "hosts": 1,  # JAX is awake already
    }


def test_twenty_are_mined_and_training_draws_seven_of_them(
    options, pairs, model, tmp_path, capsys
):
    write_texts(tmp_path / "corpus.jsonl", ["a lazy query", "over the document"])
    options |= {"corpus": str(tmp_path / "corpus.jsonl")}
    assert mine_negatives(MineNegatives(**options)) == 0
    said = "forum: 30 of 30 pairs, each with 20 negatives"
    assert said in capsys.readouterr().out
    mined = read_pairs(tmp_path / "mined.jsonl.gz").pairs
    answers = {}
    for pair in pairs:
        answers.setdefault(pair.query, set()).add(pair.document)
    for pair, given in zip(mined, pairs, strict=True):
        assert (pair.query, pair.document) == (given.query, given.document)
        assert len(set(pair.negatives)) == 20
        assert answers[pair.query].isdisjoint(pair.negatives)
    lengths = {"query_length": 16, "document_length": 16}
    prepare(
        Prepare(
            sources=(options["out"],),
            out=str(tmp_path / "stores"),
            tokenizer=str(model),
            num_negatives=20,
            workers=1,
            **lengths,
        )
    )
    stores = open_stores(tmp_path / "stores")
    schedule = Schedule.over({"mined": 30}, batch_size=5, seed=0)
    batches = PairBatches(
        stores,
        schedule,
        num_negatives=7,
        negatives="random",
        pad_id=0,
        seed=0,
        **lengths,
    )
    _, records = schedule.at(0)
    batch = batches(0).arrays
    places = batch.document_places.reshape(5, 8)
    tokenizer = TextTokenizer.from_folder(model)
    tokens, slots = batch.texts.tokens, batch.texts.slot_lengths.shape[1]
    first = True
    for record, row in zip(records, places, strict=True):
        texts = (mined[record].document, *mined[record].negatives)
        known = tokenizer.encode(
            ["search_document: " + text for text in texts], max_length=16
        ).ids
        found = []
        for place in row:
            line, slot = divmod(int(batch.slots[0, place]), slots)
            found.append(tokens.ids[line][tokens.segment_ids[line] == slot + 1])
        numbers = [
            next(i for i, ids in enumerate(known) if np.array_equal(ids, each))
            for each in found
        ]
        assert numbers[0] == 0 and len(set(numbers)) == 8
        first &= numbers == list(range(8))
    assert not first  # drawn at random, and not the first seven


@pytest.mark.slow
def test_what_was_embedded_is_not_embedded_again(options, tmp_path, monkeypatch):
    monkeypatch.setattr(embed_parts, "PART", 8)
    encode, counts = Embedder.encode, []

    def counted(self, texts, **rest):
        if len(counts) == 4 and "stopped" not in counts:
            counts.append("stopped")
            raise KeyboardInterrupt
        counts.append(len(texts))
        return encode(self, texts, **rest)

    monkeypatch.setattr(Embedder, "encode", counted)
    with pytest.raises(KeyboardInterrupt):
        mine_negatives(MineNegatives(**options))
    assert not (tmp_path / "mined.jsonl.gz").exists()
    assert mine_negatives(MineNegatives(**options)) == 0
    # 20 queries, then 30 documents.
    assert counts == [8, 8, 4, 8, "stopped", 8, 8, 6]
    assert not (tmp_path / "mined.jsonl.gz.parts").exists()
    done = (tmp_path / "mined.jsonl.gz").read_bytes()
    assert mine_negatives(MineNegatives(**options)) == 0
    assert len(counts) == 8  # the file is there
    whole = options | {"out": str(tmp_path / "whole.jsonl.gz")}
    assert mine_negatives(MineNegatives(**whole)) == 0
    assert (tmp_path / "whole.jsonl.gz").read_bytes() == done
    with pytest.raises(ValueError) as caught:
        mine_negatives(MineNegatives(**options | {"seed": 3, "query_prefix": ""}))
    for part in (
        "mining.seed was 0 and is 3",
        "judge.embedding.prompts.query was 'search_query: '",
    ):
        assert part in str(caught.value)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"out": "mined.txt"}, "mined.txt must end in .jsonl or .jsonl.gz"),
        ({"out": "https://host/mined.jsonl"}, "http only reads"),
        ({"count": 21}, "count=21 negatives are drawn from pool=20"),
        ({"corpus_column": "body"}, "--corpus-column would change nothing"),
        ({"source": "none.jsonl"}, "none.jsonl"),
        ({"count": 30, "pool": 40}, "'forum' has 30 documents"),
    ],
)
def test_what_cannot_be_mined_is_refused_and_nothing_is_left(
    options, tmp_path, changes, message
):
    with pytest.raises(ValueError, match=message):
        mine_negatives(MineNegatives(**options | changes))
    assert [path.name for path in tmp_path.iterdir()] == ["forum.jsonl"]


def test_a_url_gets_the_bytes_of_a_local_file(options, tmp_path):
    assert mine_negatives(MineNegatives(**options)) == 0
    url = "memory://mined/pairs.jsonl.gz"
    assert mine_negatives(MineNegatives(**options | {"out": url})) == 0
    assert read_bytes(url) == (tmp_path / "mined.jsonl.gz").read_bytes()
    assert set(sizes("memory://mined")) == {
        "pairs.jsonl.gz",
        "pairs.jsonl.gz.mining.json",
    }
    assert not sizes("memory://mined/pairs.jsonl.gz.parts")


def test_a_file_of_unknown_origin_is_kept(options, tmp_path):
    (tmp_path / "mined.jsonl.gz").write_text("mine")
    with pytest.raises(ValueError, match="nothing says how it was made"):
        mine_negatives(MineNegatives(**options))
    assert (tmp_path / "mined.jsonl.gz").read_text() == "mine"
