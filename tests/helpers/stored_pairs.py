"""A store of random pairs in memory, for tests of what reads stores."""

import numpy as np

from nomic_jax.data.store.manifest import Manifest
from nomic_jax.data.store.store import Store

CLS, SEP = 2, 3


class MemoryStore(Store):
    """Records that were never files; it notes which of them were read."""

    def __init__(self, name, records, *, query_length, document_length, **changes):
        fields = {
            "name": name,
            "kind": "pairs",
            "rule": {"query_length": query_length, "document_length": document_length},
            "texts_per_record": len(records[0]),
            "tokenizer_digest": "",
            "vocab_size": 128,
            "dtype": "uint16",
            "source_fingerprint": "",
            "input_rows": len(records),
            "rows_per_shard": len(records),
            "records": len(records),
            "counts": {},
            "shards": (),
        }
        super().__init__("memory:" + name, Manifest(**{**fields, **changes}))
        self.records = records
        self.table = np.array([list(map(len, texts)) for texts in records], np.int32)
        self.asked = []

    def lengths(self, records):
        return self.table[records]

    def read(self, records):
        self.asked += records.tolist()
        return [self.records[record] for record in records]

    def __getstate__(self):
        return {k: v for k, v in vars(self).items() if k != "_lock"}

    def __setstate__(self, state):
        vars(self).update(state)


def random_text(rng, length):
    """Return [CLS], ordinary tokens and [SEP]."""
    ids = rng.integers(5, 128, length, dtype=np.uint16)
    ids[0], ids[-1] = CLS, SEP
    return ids


def random_store(
    name="words", records=64, *, seed=0, negatives=0, lengths=(12, 40), **changes
):
    """Make texts of 3 tokens up to the lengths of the two sides."""
    rng = np.random.default_rng(seed)
    most = (lengths[0], *[lengths[1]] * (1 + negatives))
    texts = [
        [random_text(rng, rng.integers(3, side + 1)) for side in most]
        for _ in range(records)
    ]
    return MemoryStore(
        name, texts, query_length=lengths[0], document_length=lengths[1], **changes
    )
