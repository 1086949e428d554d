"""Contrastive batches: the pairs of a step out of a store, put into rows.

Where each text goes follows from the lengths of all texts of the batch, which every
host looks up; texts are read only for a host's own rows. Hard negatives are drawn again
each time a query comes up, as the paper found best (arXiv:2402.01613, section 4.3).
"""

import dataclasses
import hashlib
from collections.abc import Iterable, Mapping
from typing import Literal, TypeAlias

import numpy as np
from jaxtyping import Int32, Int64

from nomic_jax.batch import PairBatch, StepBatch
from nomic_jax.data.packing import pack_texts
from nomic_jax.data.schedule import (
    Schedule,
    hash32,
    host_problems,
    round_keys,
    store_problems,
)
from nomic_jax.data.sources.source import stable_hash
from nomic_jax.data.store.store import Store

Negatives: TypeAlias = Literal["random", "first"]

_QUERY, _POSITIVE, _NEGATIVES = 0, 1, 2  # where a record's texts begin


@dataclasses.dataclass(frozen=True)
class PairBatches:
    """The batch of each step: a pure function that worker processes can be sent.

    With several hosts each builds its part of the rows. A pair's query and documents
    may fall to different hosts; each of them reads the pair.
    """

    stores: Mapping[str, Store]  # of pairs, by source
    schedule: Schedule
    _: dataclasses.KW_ONLY
    query_length: int  # tokens; longer queries are cut, keeping their closing token
    document_length: int
    num_negatives: int = 0  # hard negatives of each query
    negatives: Negatives = "random"  # drawn again each time, or the first ones
    pad_id: int  # the id written where there is no token
    seed: int  # of the negatives
    parts: int = 1  # of the rows, one for each device that takes rows
    host: int = 0  # whose rows are built here
    hosts: int = 1

    def __post_init__(self) -> None:
        """Refuse stores without what a batch takes, and rows that hosts cannot share.

        Raises:
            ValueError: with every problem found.
        """
        problems = [
            *host_problems(self.host, self.hosts),
            *store_problems(self.stores, self.schedule, "pairs"),
        ]
        if self.parts % self.hosts:
            problems.append(
                f"rows in {self.parts} parts give no equal share to each of "
                f"{self.hosts} hosts; let parts be a multiple of hosts"
            )
        if self.num_negatives < 0:
            problems.append(f"num_negatives={self.num_negatives} must not be negative")
        for name in ("query_length", "document_length"):
            if getattr(self, name) < 3:
                problems.append(
                    f"{name}={getattr(self, name)} must be at least 3: "
                    "[CLS] token [SEP]"
                )
        if not problems:
            for name, _ in self.schedule.sizes:
                problems += _problems(self, name)
        if problems:
            raise ValueError("; ".join(problems))

    def __call__(self, step: int) -> StepBatch:
        """Build this host's rows of a step's batch.

        Rows are as long as the longest text may be: twice as long would save another
        hundredth of the columns and cost more than that in attention.

        Raises:
            ValueError: a record has other lengths than its store says.
        """
        source, records = self.schedule.at(step)
        store = self.stores[source]
        columns = self._columns(store.manifest.texts_per_record, step)  # Q 1 + group
        queries, group = len(records), columns.shape[1] - 1
        most = np.full(columns.shape[1], self.document_length)
        most[_QUERY] = self.query_length
        lengths = np.take_along_axis(store.lengths(records), columns, axis=1)
        lengths = np.minimum(lengths, most)
        # All queries come first, then the documents of each: short texts fill the gaps
        # that long ones leave, and there is one shape to compile.
        plan = pack_texts(
            np.concatenate([lengths[:, 0], lengths[:, 1:].ravel()]),
            row_length=max(self.query_length, self.document_length),
            parts=self.parts,
        )
        share = plan.rows // self.hosts
        rows = range(self.host * share, (self.host + 1) * share)
        members = plan.members(rows)
        is_query = members < queries
        pair = np.where(is_query, members, (members - queries) // group)
        which = np.where(is_query, 0, 1 + (members - queries) % group)

        needed, place = np.unique(pair, return_inverse=True)
        found = store.read(records[needed])
        wanted = zip(
            place.tolist(),
            columns[pair, which].tolist(),
            most[which].tolist(),
            strict=True,
        )
        texts = [_cut(found[i][column], limit) for i, column, limit in wanted]
        try:
            packed = plan.lay_out(texts, rows, pad_id=self.pad_id)
        except ValueError as error:
            raise ValueError(
                f"store {source!r}, step {step}: {error}; the lengths next to its "
                "records are not theirs: prepare it again"
            ) from error
        slots, places = plan.places()
        own = len(slots) // self.hosts
        slots = slots[self.host * own : (self.host + 1) * own]
        ids = np.zeros((slots.size, 2), np.int32)
        documents = members[~is_query]
        ids[places[documents] - self.host * slots.size] = _hashes(
            text for text, query in zip(texts, is_query, strict=True) if not query
        )
        return StepBatch(
            source,
            PairBatch(
                packed,
                slots,
                places[:queries],
                places[queries:],
                ids.reshape(*slots.shape, 2),
            ),
            num_tokens=int(packed.slot_lengths.sum()),
            num_columns=packed.tokens.ids.size,
        )

    def _columns(self, texts: int, step: int) -> Int64[np.ndarray, "Q columns"]:
        """Choose the texts of each record: the query, the positive, its negatives.

        Random ones are keyed by (seed, step, row in the global batch) and differ.
        """
        rows, pool = self.schedule.batch_size, texts - _NEGATIVES
        if self.negatives == "first":
            order = np.broadcast_to(np.arange(pool), (rows, pool))
        else:
            key = (self.seed, step, stable_hash("negatives"))
            numbers = np.arange(rows * pool, dtype=np.uint64)
            draws = hash32(numbers, round_keys(key, 1)[0])
            order = np.argsort(draws.reshape(rows, pool), axis=1, kind="stable")
        drawn = _NEGATIVES + order[:, : self.num_negatives]
        fixed = np.broadcast_to(np.array([_QUERY, _POSITIVE]), (rows, 2))
        return np.concatenate([fixed, drawn], axis=1)


def _problems(batches: PairBatches, name: str) -> list[str]:
    """Say in what a store falls short of the batches."""
    manifest, problems = batches.stores[name].manifest, []
    stored = manifest.texts_per_record - _NEGATIVES
    if stored < batches.num_negatives:
        problems.append(
            f"store {name!r} has {stored} hard negatives of each pair, a batch takes "
            f"{batches.num_negatives}: prepare more, or set num_negatives lower"
        )
    for side in ("query_length", "document_length"):
        asked, prepared = getattr(batches, side), manifest.rule[side]
        if asked > prepared:
            problems.append(
                f"{side}={asked}, and store {name!r} was prepared with {prepared}: "
                "prepare it again, or ask for less"
            )
    return problems


def _cut(text: np.ndarray, most: int) -> np.ndarray:
    """Shorten a text to its first tokens and its closing one."""
    if len(text) <= most:
        return text
    return np.append(text[: most - 1], text[-1:])


def _hashes(texts: Iterable[np.ndarray]) -> Int32[np.ndarray, "texts 2"]:
    """Hash the tokens of each text to 64 bits, as two halves."""
    hashes = [hashlib.blake2b(text.tobytes(), digest_size=8) for text in texts]
    joined = b"".join(each.digest() for each in hashes)
    return np.frombuffer(joined, "<i4").astype(np.int32).reshape(-1, 2)
