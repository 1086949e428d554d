"""The data engine beside what others do with the same text, in one run.

    python benchmarks/data.py --pairs FOLDER --tokenizer FOLDER [--records 10000000]

FOLDER of pairs holds .jsonl.gz files with `query` and `document`. Rates are measured in
processor seconds of one process, threads included, so that they are per core; each is
the median of several rounds in which the sides take turns.
"""

import argparse
import dataclasses
import itertools
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

os.environ["TOKENIZERS_PARALLELISM"] = "false"  # a core's figure, on both sides

import numpy as np
from environment import environment
from record import Row, record
from turns import in_turns, median_ratio

from nomic_jax.data import PairBatches, Sampling, Schedule, TextTokenizer, bucket
from nomic_jax.data.sources import JsonLines, PairSource, read_pairs, write_pairs
from nomic_jax.data.store import (
    Manifest,
    PairRule,
    Store,
    encode_record,
    prepare_store,
    shard_name,
    write_manifest,
    write_shard,
)
from nomic_jax.training import feed

LENGTH = 512  # tokens of the longest query and document, as the paper fine-tunes
BATCH = 256  # pairs of a batch, likewise
QUERY, DOCUMENT = "search_query: ", "search_document: "
RECORDS_PER_SHARD = 10**6  # of the large stores
PACKAGES = ("numpy", "grain", "array-record", "tokenizers", "datasets")


def beside(
    ours: Callable[[], int],
    theirs: Callable[[], int],
    *,
    rounds: int,
    work: str,
    detail: str,
    name: str,
) -> Row:
    """Compare the tokens a second of a core of two sides that return their tokens."""
    tokens: dict[str, list[int]] = {"ours": [], "theirs": []}
    seconds = in_turns(
        {
            "ours": lambda: tokens["ours"].append(ours()),
            "theirs": lambda: tokens["theirs"].append(theirs()),
        },
        rounds,
        clock=time.process_time,
    )
    # The first round was not timed. An epoch may end with another batch than the last.
    of_token = {
        side: [
            took / count for took, count in zip(times, tokens[side][1:], strict=True)
        ]
        for side, times in seconds.items()
    }
    return Row(
        work=work,
        detail=detail,
        ours=1 / statistics.median(of_token["ours"]),
        theirs=1 / statistics.median(of_token["theirs"]),
        unit="tokens/s a core",
        beside=name,
        ratio=median_ratio(of_token["theirs"], of_token["ours"]),
    )


def rule() -> PairRule:
    """The rule by which all pairs here are tokenised."""
    return PairRule(
        query_prefix=QUERY,
        document_prefix=DOCUMENT,
        query_length=LENGTH,
        document_length=LENGTH,
    )


def measure_prepare(
    source: PairSource, tokenizer_folder: Path, work: Path, rounds: int
) -> Row:
    """Tokenise and write, beside Hugging Face `datasets.map` writing its own files."""
    import datasets
    import transformers

    datasets.disable_progress_bars()
    file = work / "pairs.jsonl"
    write_pairs(file, source.pairs)
    tokenizer = TextTokenizer.from_folder(tokenizer_folder)
    theirs_tokenizer = transformers.AutoTokenizer.from_pretrained(tokenizer_folder)
    number = iter(range(10**6))

    def ours() -> int:
        store = work / f"store-{next(number)}"
        lines = JsonLines.open(file, name="pairs")
        manifest = prepare_store(
            lines, rule(), tokenizer, store, workers=1, progress=False
        )
        return manifest.counts["tokens"]

    def encode(rows: dict[str, list[str]]) -> dict[str, list[list[int]]]:
        encoded = {}
        for column, prefix in (("query", QUERY), ("document", DOCUMENT)):
            encoded[column] = theirs_tokenizer(
                [prefix + text for text in rows[column]],
                truncation=True,
                max_length=LENGTH,
                return_attention_mask=False,
                return_token_type_ids=False,
            )["input_ids"]
        return encoded

    rows = datasets.Dataset.from_json(str(file), cache_dir=str(work / "json"))

    def theirs() -> int:
        target = work / f"map-{next(number)}.arrow"
        made = rows.map(
            encode,
            batched=True,
            remove_columns=["query", "document"],
            cache_file_name=str(target),
            load_from_cache_file=False,
        )
        columns = made.with_format("arrow")[:]
        return sum(
            len(columns[name].combine_chunks().flatten())
            for name in ("query", "document")
        )

    return beside(
        ours,
        theirs,
        rounds=rounds,
        work="tokenise and prepare",
        detail=f"{len(source):,} pairs",
        name="datasets.map",
    )


def measure_serve(
    source: PairSource, tokenizer_folder: Path, work: Path, rounds: int
) -> Row:
    """Make batches, beside sentence-transformers' collator in torch's DataLoader."""
    import datasets
    import torch
    import transformers
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.base.modules import Transformer
    from sentence_transformers.sentence_transformer.data_collator import (
        SentenceTransformerDataCollator,
    )
    from sentence_transformers.sentence_transformer.modules import Pooling

    tokenizer = TextTokenizer.from_folder(tokenizer_folder)
    out = work / "served"
    prepare_store(source, rule(), tokenizer, out, workers=1, progress=False)
    store = Store.open(out)
    name, steps = store.name, len(store) // BATCH
    batches = PairBatches(
        {name: store},
        Schedule.over({name: len(store)}, batch_size=BATCH, seed=0),
        query_length=LENGTH,
        document_length=LENGTH,
        num_negatives=0,
        negatives="first",
        pad_id=tokenizer.role_id("pad"),
        seed=0,
    )
    epoch = iter(range(10**6))

    def ours() -> int:
        begin = next(epoch) * steps
        with feed(batches, begin, begin + steps) as fed:
            return sum(batch.num_tokens for _, batch in fed)

    tiny = transformers.BertConfig(
        vocab_size=30528,
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=1,
        intermediate_size=16,
    )
    transformers.BertModel(tiny).save_pretrained(work / "tiny")
    transformers.AutoTokenizer.from_pretrained(tokenizer_folder).save_pretrained(
        work / "tiny"
    )
    body = Transformer(str(work / "tiny"), max_seq_length=LENGTH)
    model = SentenceTransformer(modules=[body, Pooling(body.get_embedding_dimension())])
    rows = datasets.Dataset.from_dict(
        {
            "anchor": [pair.query for pair in source.pairs],
            "positive": [pair.document for pair in source.pairs],
        }
    )
    loader = torch.utils.data.DataLoader(
        rows,
        batch_size=BATCH,
        shuffle=True,
        drop_last=True,
        collate_fn=SentenceTransformerDataCollator(
            model.preprocess, prompts={"anchor": QUERY, "positive": DOCUMENT}
        ),
    )

    def theirs() -> int:
        return sum(
            int(batch[f"{side}_attention_mask"].sum())
            for batch in loader
            for side in ("anchor", "positive")
        )

    return beside(
        ours,
        theirs,
        rounds=rounds,
        work="serve contrastive batches",
        detail=f"{len(source):,} pairs in batches of {BATCH}",
        name="sentence-transformers",
    )


def measure_schedule() -> list[Row]:
    """Time the schedule alone, at steps far apart, for a pod's batches."""
    sizes = {f"source-{i}": 10**9 // 29 + 1000 * i for i in range(29)}
    rows = []
    for policy in ("proportional", "temperature"):
        sampling = Sampling(policy=policy, exponent=0.5)
        schedule = Schedule.over(sizes, batch_size=16_384, seed=0, sampling=sampling)
        seconds = []
        for step in range(0, 10**8, 10**8 // 300):
            began = time.process_time()
            schedule.at(step)
            seconds.append(time.process_time() - began)
        rows.append(
            Row(
                work=f"schedule of {len(sizes)} sources, {policy}",
                detail=f"{sum(sizes.values()):.1e} records, batches of 16,384, steps "
                "far apart",
                ours=statistics.median(seconds) * 1e3,
                unit="ms a step",
            )
        )
    return rows


def measure_padding(
    sources: Sequence[PairSource], tokenizer_folder: Path, work: Path
) -> list[Row]:
    """Count columns of an epoch's batches, packed and in the two usual ways."""
    tokenizer = TextTokenizer.from_folder(tokenizer_folder)
    rows = []
    total = np.zeros(4)
    for source in sources:
        out = work / f"padding-{source.name}"
        prepare_store(source, rule(), tokenizer, out, workers=1, progress=False)
        store = Store.open(out)
        schedule = Schedule.over({source.name: len(store)}, batch_size=BATCH, seed=0)
        batches = PairBatches(
            {source.name: store},
            schedule,
            query_length=LENGTH,
            document_length=LENGTH,
            num_negatives=0,
            negatives="first",
            pad_id=tokenizer.role_id("pad"),
            seed=0,
        )
        counted, shapes = np.zeros(4), set()
        for step in range(schedule.steps_per_epoch):
            batch = batches(step)
            shapes.add(batch.arrays.texts.tokens.ids.shape)
            lengths = store.lengths(schedule.at(step)[1])
            longest = lengths.max(axis=0).sum() * BATCH
            counted += (batch.num_tokens, batch.num_columns, longest, 0)
        # Texts sorted by length, then cut into batches padded to a bucket.
        used = np.concatenate(
            [schedule.at(step)[1] for step in range(schedule.steps_per_epoch)]
        )
        for side in store.lengths(used).T:
            in_order = np.sort(side).reshape(-1, BATCH)
            counted[3] += (
                sum(min(bucket(int(n)), LENGTH) for n in in_order[:, -1]) * BATCH
            )
        total += counted
        rows.append(_padding_row(source.name, counted, {"shapes": len(shapes)}))
    return [*rows, _padding_row("all", total, {})]


def _padding_row(name: str, counted: np.ndarray, extra: dict[str, float]) -> Row:
    packed, longest, bucketed = (1 - counted[0] / columns for columns in counted[1:])
    return Row(
        work="padding, share of the columns",
        detail=f"{name}, batches of {BATCH} pairs, texts to {LENGTH} tokens",
        ours=100 * packed,
        theirs=100 * longest,
        unit="%",
        beside="padded to the batch's longest",
        extra={"sorted into buckets, %": 100 * bucketed, **extra},
    )


# Run in a process of its own, whose memory is then the store's alone.
OPEN_AND_JUMP = """
import json, resource, sys, time
import numpy as np
from nomic_jax.data.schedule import Schedule
from nomic_jax.data.store.store import Store

def memory():
    return int(open("/proc/self/statm").read().split()[1]) * resource.getpagesize()

before = memory()
began = time.perf_counter()
store = Store.open(sys.argv[1])
opened = time.perf_counter() - began
schedule = Schedule.over({store.name: len(store)}, batch_size=256, seed=0)
began = time.perf_counter()
_, records = schedule.at(123_456_789)
texts = store.read(records)
lengths = store.lengths(records)
jumped = time.perf_counter() - began
assert [[len(t) for t in pair] for pair in texts] == lengths.tolist()
print(json.dumps([len(store), opened, jumped, memory() - before]))
"""


def measure_large(
    counts: Sequence[int], tokenizer: TextTokenizer, work: Path
) -> list[Row]:
    """Open stores written by prepare's own writer, and jump to a far step of each."""
    rows = []
    for count in counts:
        folder = work / f"large-{count}"
        write_large(count, tokenizer, folder)
        rounds = []
        for _ in range(3):
            result = subprocess.run(
                [sys.executable, "-c", OPEN_AND_JUMP, str(folder)],
                capture_output=True,
                text=True,
                check=True,
            )
            rounds.append(json.loads(result.stdout)[1:])
        opened, jumped, memory = (
            statistics.median(values) for values in zip(*rounds, strict=True)
        )
        shutil.rmtree(folder)
        rows.append(
            Row(
                work="open a store, in a new process",
                detail=f"{count:,} records",
                ours=opened * 1e3,
                unit="ms",
                extra={
                    "jump and read 256, ms": jumped * 1e3,
                    "memory, MB": memory / 1e6,
                },
            )
        )
    return rows


def write_large(count: int, tokenizer: TextTokenizer, folder: Path) -> None:
    """Write a store of short made-up pairs, shard by shard, as prepare does."""
    random = np.random.default_rng(0)
    dtype = "uint16"
    few = [
        encode_record(
            [
                random.integers(5, tokenizer.size, size=size).astype(np.uint16)
                for size in random.integers(3, 12, size=2)
            ],
            dtype,
        )
        for _ in range(4096)
    ]
    total = -(-count // RECORDS_PER_SHARD)
    shards = []
    for index in range(total):
        here = min(RECORDS_PER_SHARD, count - index * RECORDS_PER_SHARD)
        records = itertools.islice(itertools.cycle(few), here)
        name = shard_name(index, total)
        shards.append(
            write_shard(records, str(folder), name, texts_per_record=2, dtype=dtype)
        )
    write_manifest(
        str(folder),
        Manifest(
            name="large",
            kind="pairs",
            rule=dataclasses.asdict(rule()),
            texts_per_record=2,
            tokenizer_digest=tokenizer.digest,
            vocab_size=tokenizer.size,
            dtype=dtype,
            source_fingerprint="made up",
            input_rows=count,
            rows_per_shard=RECORDS_PER_SHARD,
            records=count,
            counts={"input_rows": count, "tokens": 0},
            shards=tuple(shards),
        ),
    )


def main() -> None:
    """Measure what was asked for and record it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pairs", type=Path, required=True, help="*.jsonl.gz of pairs")
    parser.add_argument("--tokenizer", type=Path, required=True, help="its folder")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument(
        "--limit", type=int, default=4000, help="pairs of each source, to time"
    )
    parser.add_argument(
        "--records", type=int, nargs="*", default=[10**6, 10**7], help="of large stores"
    )
    options = parser.parse_args()
    sources = [read_pairs(path) for path in sorted(options.pairs.glob("*.jsonl.gz"))]
    mixed = PairSource(
        "mixed",
        [pair for source in sources for pair in source.pairs[: options.limit]],
        QUERY,
        DOCUMENT,
    )
    tokenizer = TextTokenizer.from_folder(options.tokenizer)
    given = environment(*PACKAGES)
    with tempfile.TemporaryDirectory() as name:
        work = Path(name)
        for measure in (measure_prepare, measure_serve):
            row = measure(mixed, options.tokenizer, work, options.rounds)
            record("data", [row], given)
        record("data", measure_schedule(), given)
        record("data", measure_padding(sources, options.tokenizer, work), given)
        record("data", measure_large(options.records, tokenizer, work), given)


if __name__ == "__main__":
    main()
