"""Hard negatives: documents near a query that do not answer it.

Nomic Embed (arXiv:2402.01613, section 4.3) takes the nearest documents of each query
and samples among them at random. Those that score almost as high as a known positive
are likely unlabelled positives, and are left out: NV-Retriever (arXiv:2407.15831,
section 3.2) compares each with a percentage of the positive's score.

    FILE   FILE.mining.json, the settings   FILE.parts/, embeddings until it is done
"""

import dataclasses
import hashlib
import json
import shutil
from collections import defaultdict
from collections.abc import Collection, Mapping, Sequence
from typing import Any, Literal, TypeAlias

import jax
import numpy as np
from jaxtyping import Array, Float, Float32, Int64

from nomic_jax.config import differing_fields
from nomic_jax.curation.pairs import StagePairs
from nomic_jax.data.sources.jsonl import write_pairs
from nomic_jax.data.sources.pairs import Pair, PairColumns
from nomic_jax.data.sources.source import Place, Source
from nomic_jax.distributed import hosts
from nomic_jax.inference.embed_parts import embed_parts, read_parts
from nomic_jax.inference.embedder import Embedder
from nomic_jax.inference.search import top_k
from nomic_jax.storage import (
    check_out,
    exists,
    is_remote,
    join,
    local_path,
    name_of,
    read_json,
    remove,
    sizes,
    write_json,
    written_here,
)

DRAWS = 8  # of random documents, before all are asked
MarginKind: TypeAlias = Literal["ratio", "absolute"]
TooFew: TypeAlias = Literal["fill", "drop"]


def mine(
    query_embeddings: Float[Array | np.ndarray, "Q E"],
    document_embeddings: Float[Array | np.ndarray, "M E"],
    positives: Sequence[Collection[int]],
    *,
    count: int,
    margin: float | None,
    margin_kind: MarginKind = "ratio",
    too_few: TooFew = "fill",
    pool: int = 20,
    depth: int | None = None,
    seed: int,
    excluded: Sequence[Collection[int]] | None = None,
) -> Int64[np.ndarray, "Q {count}"]:
    """Choose exactly `count` negatives for each query.

    Of the `depth` nearest documents, known positives and those above the margin are
    dropped; `count` are drawn from the first `pool` that are left. Where fewer are
    left, random documents below the margin fill up, and those above it, lowest first,
    only when nothing else is there; or the query gets none. A query's draw depends on
    `seed` and its row alone.

    Args:
        query_embeddings: unit rows.
        document_embeddings: unit rows.
        positives: the documents that answer each query, by index.
        count: negatives of each query.
        margin: what a negative may reach: a share of the lowest positive's score, in
            (0, 1], or what is left of that score when the margin is taken off; None
            lets every score pass.
        margin_kind: `ratio`, a share, or `absolute`, a difference.
        too_few: what a query meets that has fewer than `count` documents in its pool:
            `fill` adds random ones, `drop` leaves it without any.
        pool: nearest allowed documents to draw from.
        depth: nearest documents looked at, None: 5 * pool.
        seed: of the draw.
        excluded: further documents that are no negatives of each query, by index, such
            as one that is the query itself; the margin does not ask them.

    Returns:
        Document indices, nearest first, the random ones last; a query that is dropped
        has -1 everywhere.

    Raises:
        ValueError: the sizes do not fit one another, a query has no positive or too
            few documents that could be negatives.
    """
    total = document_embeddings.shape[0]
    _check(query_embeddings.shape[0], total, positives)
    check_margin(margin, margin_kind)
    depth = 5 * pool if depth is None else depth
    if not 1 <= count <= pool <= depth:
        raise ValueError(
            f"count={count}, pool={pool}, depth={depth}: negatives are drawn from a "
            "pool of the nearest, so 1 <= count <= pool <= depth is needed"
        )
    forbidden = [np.array(sorted(set(known)), np.int64) for known in positives]
    if excluded is not None:
        forbidden = [
            np.union1d(known, np.array(sorted(others), np.int64))
            for known, others in zip(forbidden, excluded, strict=True)
        ]
    queries, documents = jax.device_get((query_embeddings, document_embeddings))
    limits = _limits(queries, documents, positives, margin, margin_kind)
    scores, neighbours = top_k(
        query_embeddings, document_embeddings, k=min(depth, total)
    )
    chosen = np.empty((len(positives), count), np.int64)
    for row, banned in enumerate(forbidden):
        if too_few == "fill" and total - len(banned) < count:
            raise ValueError(
                f"query {row} has {total - len(banned)} documents that are not its "
                f"positives and needs count={count}; lower count or add documents"
            )
        random = np.random.default_rng([seed, row])
        allowed = ~np.isin(neighbours[row], banned)
        below = scores[row] <= limits[row]
        near = neighbours[row][allowed & below][:pool]
        drawn = np.sort(random.permutation(len(near))[:count])  # sorted: nearest first
        chosen[row, : len(drawn)] = near[drawn]
        missing = count - len(drawn)
        if missing and too_few == "drop":
            chosen[row] = -1
        elif missing:
            taken = np.union1d(banned, near)
            fill = _random_fill(
                documents, queries[row], limits[row], taken, missing, random
            )
            chosen[row, len(drawn) :] = fill
    return chosen


def check_margin(margin: float | None, kind: MarginKind) -> None:
    """Refuse a margin that is none of its kind.

    Raises:
        ValueError: with what is possible.
    """
    if kind not in ("ratio", "absolute"):
        raise ValueError(f"margin_kind={kind!r} must be ratio or absolute")
    if margin is None:
        return
    if kind == "ratio" and not 0 < margin <= 1:
        raise ValueError(f"margin={margin} must be in (0, 1], or None for no margin")
    if kind == "absolute" and not 0 <= margin < 2:
        raise ValueError(
            f"margin={margin} must be in [0, 2), as scores of unit vectors differ by 2 "
            "at most, or None for no margin"
        )


def _check(
    queries: int,
    documents: int,
    positives: Sequence[Collection[int]],
) -> None:
    """Refuse positives that do not belong to these embeddings.

    Raises:
        ValueError: with the numbers.
    """
    if len(positives) != queries:
        raise ValueError(
            f"positives are given for {len(positives)} of {queries} queries"
        )
    for row, known in enumerate(positives):
        if not known:
            raise ValueError(f"query {row} has no positive; leave such queries out")
        if min(known) < 0 or max(known) >= documents:
            raise ValueError(
                f"query {row} names positive {max(known, key=abs)}; documents are "
                f"numbered 0 to {documents - 1}"
            )


def _random_fill(
    documents: Float[np.ndarray, "M E"],
    query: Float[np.ndarray, "E"],
    limit: np.float32,
    taken: Int64[np.ndarray, "taken"],
    missing: int,
    random: np.random.Generator,
) -> Int64[np.ndarray, "missing"]:
    """Draw documents that are not taken and not above the limit, if there are any.

    A few are drawn and asked at a time: of a million, all but a few will do. Where that
    does not find enough, all are asked.
    """

    def scores(rows: Int64[np.ndarray, "some"]) -> Float32[np.ndarray, "some"]:
        return documents[rows].astype(np.float32) @ query.astype(np.float32)

    found = np.zeros(0, np.int64)
    for _ in range(DRAWS):
        some = random.integers(len(documents), size=4 * missing)
        _, first = np.unique(some, return_index=True)
        some = some[np.sort(first)]  # each once, as it was drawn
        some = some[~np.isin(some, taken) & ~np.isin(some, found)]
        found = np.concatenate([found, some[scores(some) <= limit]])
        if len(found) >= missing:
            return found[:missing]
    rest = np.setdiff1d(np.arange(len(documents)), np.union1d(taken, found))
    rest = random.permutation(rest)
    asked = scores(rest)
    above = rest[asked > limit][np.argsort(asked[asked > limit], kind="stable")]
    return np.concatenate([found, rest[asked <= limit], above])[:missing]


def _limits(
    queries: Float[np.ndarray, "Q E"],
    documents: Float[np.ndarray, "M E"],
    positives: Sequence[Collection[int]],
    margin: float | None,
    kind: MarginKind,
) -> Float32[np.ndarray, "Q"]:
    """Compute the highest score a negative of each query may have."""
    if margin is None:
        return np.full(len(positives), np.inf, np.float32)
    lowest = np.array(
        [
            (documents[sorted(known)].astype(np.float32) @ query).min()
            for known, query in zip(positives, queries.astype(np.float32), strict=True)
        ],
        np.float32,
    )
    if kind == "absolute":
        return (lowest - margin).astype(np.float32)
    # Equal to margin * lowest for a positive score; below a negative one, not above.
    return (lowest - (1 - margin) * np.abs(lowest)).astype(np.float32)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Mining:
    """Which documents become hard negatives of a query."""

    # Folder or hub id of what embeds them, with its own search prefixes. Empty: the
    # model that the run has trained so far, with the prefixes of each source.
    model: str = ""
    count: int  # negatives written for each query
    pool: int = 20  # nearest allowed documents they are drawn from
    margin: float | None = 0.95  # drop those above this share of the answer's score
    margin_kind: MarginKind = "ratio"  # absolute: above the score less the margin
    # of the nearest below the margin: random documents fill up, or the pair goes
    too_few: TooFew = "fill"
    blank: Literal["error", "drop"] = "error"  # what blank texts and nulls meet
    seed: int = 0  # of the draw

    def __post_init__(self) -> None:
        """Refuse a draw that cannot be made, before any model is trained for it.

        Raises:
            ValueError: the numbers do not fit one another.
        """
        if not 1 <= self.count <= self.pool:
            raise ValueError(
                f"count={self.count} negatives are drawn from pool={self.pool} "
                "documents: 1 <= count <= pool is needed"
            )
        check_margin(self.margin, self.margin_kind)
        if self.too_few not in ("fill", "drop"):
            raise ValueError(f"too_few={self.too_few!r} must be fill or drop")
        if self.blank not in ("error", "drop"):
            raise ValueError(f"blank={self.blank!r} must be error or drop")
        if self.seed < 0:
            raise ValueError(f"seed={self.seed} must not be negative")


@dataclasses.dataclass(frozen=True, kw_only=True)
class MineStage:
    """Find hard negatives, and tokenise the pairs with them."""

    name: str
    data: StagePairs
    mining: Mining


@dataclasses.dataclass(frozen=True)
class Texts:
    """The distinct texts of pairs, and which documents are no negatives of a query."""

    queries: list[str]
    documents: list[str]
    answers: list[list[int]]  # of each query, by number
    alike: list[list[int]]  # of each query: read like it, or like one of its answers


def distinct_texts(
    pairs: Sequence[Pair], mining: Mining, *, name: str, corpus: Sequence[str] = ()
) -> Texts:
    """Number the texts of pairs and of a corpus.

    Texts read alike when they differ in capitals and spaces only.

    Args:
        pairs: queries may stand in several.
        mining: how many negatives each query needs.
        name: of the source, for errors.
        corpus: further documents, which answer no query.

    Raises:
        ValueError: a query has too few documents that could be its negatives.
    """
    documents = list(dict.fromkeys([*(pair.document for pair in pairs), *corpus]))
    place, readings = {}, defaultdict(list)
    for number, document in enumerate(documents):
        place[document] = number
        readings[_reading(document)].append(number)
    answers: dict[str, set[int]] = defaultdict(set)
    for pair in pairs:
        answers[pair.query].add(place[pair.document])
    alike = []
    for query, own in answers.items():
        read = {_reading(query), *(_reading(documents[i]) for i in own)}
        same = {i for reading in read for i in readings.get(reading, ())} | own
        left = len(documents) - len(same)
        if mining.too_few == "fill" and left < mining.count:
            raise ValueError(
                f"source {name!r} has {len(documents)} documents, of which {left} "
                f"could be negatives of {query[:60]!r}; {mining.count} are needed: "
                "lower count or give more pairs"
            )
        alike.append(sorted(same))
    return Texts(list(answers), documents, [sorted(a) for a in answers.values()], alike)


def _reading(text: str) -> str:
    return " ".join(text.casefold().split())


def mined_pairs(
    pairs: Sequence[Pair],
    texts: Texts,
    query_embeddings: Float32[np.ndarray, "Q E"],
    document_embeddings: Float32[np.ndarray, "M E"],
    mining: Mining,
    *,
    name: str,
) -> list[Pair]:
    """Give pairs hard negatives out of their own documents and those of a corpus.

    Pairs that share a query share its negatives; no answer of any is among them, nor a
    document that reads like one or like the query. Negatives that pairs had are
    replaced.

    Args:
        pairs: in any order.
        texts: of these pairs, as `distinct_texts` numbers them.
        query_embeddings: unit rows.
        document_embeddings: unit rows.
        mining: which documents are taken.
        name: of the source, for errors.

    Returns:
        The pairs in their order, without those that `too_few` drops.

    Raises:
        ValueError: every pair was dropped.
    """
    found = mine(
        query_embeddings,
        document_embeddings,
        texts.answers,
        count=mining.count,
        pool=mining.pool,
        margin=mining.margin,
        margin_kind=mining.margin_kind,
        too_few=mining.too_few,
        seed=mining.seed,
        excluded=texts.alike,
    )
    negatives = {
        query: tuple(texts.documents[i] for i in row)
        for query, row in zip(texts.queries, found, strict=True)
        if row[0] >= 0
    }
    if not negatives:
        raise ValueError(
            f"source {name!r}: no query has {mining.count} documents below the margin "
            f"{mining.margin} among its nearest, so too_few='drop' leaves no pair; "
            "lower count or the margin's demand"
        )
    return [
        dataclasses.replace(pair, negatives=negatives[pair.query])
        for pair in pairs
        if pair.query in negatives
    ]


ENDINGS = (".jsonl", ".jsonl.gz")


def check_file(place: str) -> None:
    """Refuse a place that no file of pairs can be written at.

    Raises:
        ValueError: it ends otherwise, or its folder cannot be written.
    """
    if not place.endswith(ENDINGS):
        raise ValueError(f"{place} must end in {' or '.join(ENDINGS)}")
    check_out(_folder_of(place))


def mine_file(
    source: Source,
    columns: PairColumns,
    embedder: Embedder,
    mining: Mining,
    file: str,
    *,
    corpus: Sequence[str] = (),
    progress: bool = False,
) -> dict[str, Any]:
    """Write the pairs of a source with negatives, unless the same call did before.

    All hosts call it; each embeds a share, the first one chooses and writes.

    Args:
        source: of pairs; negatives that they have are replaced.
        columns: of its texts.
        embedder: with the tasks `query` and `document`, as `with_own_prompts` gives.
        mining: which documents are taken.
        file: .jsonl or .jsonl.gz, local or at a URL, which hosts share.
        corpus: further documents, which answer no query.
        progress: show bars of the tokens embedded.

    Returns:
        Numbers of pairs and of those that were kept.

    Raises:
        ValueError: a row holds no pair, there are too few documents, or the file is
            there and was made otherwise; what differs is named.
    """
    asked = dataclasses.asdict(mining)
    del asked["model"]  # the same model may lie at another place
    settings = {
        "mining": asked,
        "source": source.name,
        "source_fingerprint": source.fingerprint,
        "columns": dataclasses.asdict(columns),
        "corpus": hashlib.blake2b("\0".join(corpus).encode()).hexdigest()[:32],
        "judge": embedder.fingerprint(),
    }
    name, report, parts = name_of(file), f"{file}.mining.json", f"{file}.parts"
    done = hosts.broadcast_from_host0(
        name, lambda: _done(file, report, parts, settings)
    )
    if done is not None:
        return done
    pairs = _pairs(source, columns, mining)
    texts = distinct_texts(pairs, mining, name=source.name, corpus=corpus)

    def begin() -> None:
        if not exists(report):
            _discard(parts)  # nothing says what they are of
            write_json(report, settings)

    hosts.broadcast_from_host0(name, begin)
    for side, of in (("query", texts.queries), ("document", texts.documents)):
        embed_parts(
            of,
            lambda some, task=side: embedder.encode(some, task=task, progress=progress),
            parts,
            side,
        )

    def write() -> dict[str, Any]:
        queries = read_parts(len(texts.queries), parts, "query")
        documents = read_parts(len(texts.documents), parts, "document")
        found = mined_pairs(pairs, texts, queries, documents, mining, name=source.name)
        counts = {"pairs": len(source), "kept": len(found)}
        with written_here(_folder_of(file), last=name_of(report)) as here:
            write_pairs(here / name, found)
            write_json(here / name_of(report), {**settings, "counts": counts})
        _discard(parts)
        return counts

    return hosts.broadcast_from_host0(name, write)


def _pairs(source: Source, columns: PairColumns, mining: Mining) -> list[Pair]:
    allow = mining.blank == "drop"
    rows = enumerate(source.rows(0, len(source)))
    pairs = (
        columns.pair(row, Place(source, number), allow_blank=allow)
        for number, row in rows
    )
    return [pair for pair in pairs if pair.query.strip() and pair.document.strip()]


def _folder_of(file: str) -> str:
    return file.removesuffix(name_of(file)).rstrip("/") or "."


def _discard(folder: str) -> None:
    for name in sizes(folder):
        remove(join(folder, name))
    if not is_remote(folder):
        shutil.rmtree(local_path(folder), ignore_errors=True)


def _done(
    file: str, report: str, parts: str, settings: Mapping[str, Any]
) -> dict[str, Any] | None:
    """Return the counts of a file that is done, and refuse one of something else.

    Raises:
        ValueError: with each setting that differs.
    """
    if not exists(report):
        if exists(file):
            raise ValueError(
                f"{file} is there, and nothing says how it was made: give another file"
            )
        return None
    found = read_json(report)
    counts = found.pop("counts", None)
    differing = differing_fields(found, json.loads(json.dumps(settings)))
    if differing:
        raise ValueError(
            f"{file} is of another mining: {'; '.join(differing)}; give another file, "
            f"or delete {name_of(report)} and what is next to it"
        )
    if counts is None or not exists(file):
        return None
    _discard(parts)  # of a run that was stopped at its very end
    return counts
