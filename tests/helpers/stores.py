"""Small token stores with made-up ids, written as `prepare` writes them."""

import dataclasses

from nomic_jax.data.store.manifest import Manifest, shard_name, write_manifest
from nomic_jax.data.store.records import PairRule, RowRule, encode_record
from nomic_jax.data.store.shard import write_shard
from nomic_jax.data.store.store import Store

TOKENIZER_DIGEST = "0" * 32


def write_row_store(folder, name, rows, *, row_length):
    """Write rows, each a list of the arrays of ids of its documents, and open them."""
    rule = RowRule(row_length=row_length, rows_per_range=1000)
    return _write(folder, name, rows, rule, texts_per_record=0)


def write_pair_store(folder, name, records, *, query_length, document_length):
    """Write records, each the ids of a query, a document and negatives."""
    texts = len(records[0])
    rule = PairRule(
        query_prefix="",
        document_prefix="",
        query_length=query_length,
        document_length=document_length,
        num_negatives=texts - 2,
    )
    return _write(folder, name, records, rule, texts_per_record=texts)


def _write(folder, name, records, rule, *, texts_per_record):
    half = -(-len(records) // 2)
    shards = [
        write_shard(
            [encode_record(record, "uint16") for record in part],
            str(folder),
            shard_name(index, 2),
            texts_per_record=texts_per_record,
            dtype="uint16",
        )
        for index, part in enumerate((records[:half], records[half:]))
    ]
    write_manifest(
        str(folder),
        Manifest(
            name=name,
            kind=rule.kind,
            rule=dataclasses.asdict(rule),
            texts_per_record=texts_per_record,
            tokenizer_digest=TOKENIZER_DIGEST,
            vocab_size=1000,
            dtype="uint16",
            source_fingerprint="made up",
            input_rows=len(records),
            rows_per_shard=half,
            records=len(records),
            counts={"input_rows": len(records), "tokens": 0},
            shards=tuple(shards),
        ),
    )
    return Store.open(folder)
