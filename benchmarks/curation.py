"""What filtering and mining are worth: a small model trained with and without them.

    python benchmarks/curation.py --pairs 'pairs/*.jsonl.gz' --judge MODEL --work DIR

One shared start, the MLM; then contrastive pretraining and fine-tuning on all pairs or
on those that the judge keeps, with mined negatives or with those of the batch alone,
each with every seed. Then the same on pairs of which a fifth was shuffled, with and
without the filter, and how many of these it found. Figures are nDCG@10 on pairs held
out before anything else. The settings are the quickstart's. The same command goes on
where it was stopped; DIR has a run folder, with a report, of each arm.
"""

import argparse
import dataclasses
import gzip
import json
import os
import platform
import shutil
import statistics
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from nomic_jax.curation import Filtering, FilterStage, MineStage, Mining, StagePairs
from nomic_jax.data import PrepareConfig, PrepareStage, TextTokenizer
from nomic_jax.data.sources import JsonLines, Pair, read_pairs, write_pairs
from nomic_jax.data.store import PairRule, prepare_collection
from nomic_jax.pipeline import Stage, run
from nomic_jax.storage import read_json, write_json
from nomic_jax.training import (
    ContrastiveLoss,
    ContrastiveStage,
    LoopConfig,
    MlmData,
    MlmStage,
    ModelSize,
    OptimizerConfig,
    PairData,
)

QUERY, DOCUMENT = 32, 64  # tokens that the small model sees
SHUFFLED = 0.2  # of the pairs that are spoiled
SHARED = ("prepare", "mlm")
ARMS = {
    "neither": (False, False),
    "filtering": (True, False),
    "mining": (False, True),
    "both": (True, True),
}


def optimizer(rate: float, warmup: int, schedule: str) -> OptimizerConfig:
    """AdamW as the quickstart has it."""
    return OptimizerConfig(
        learning_rate=rate,
        weight_decay=0.01,
        warmup_steps=warmup,
        schedule=schedule,
        clip_norm=1.0,
    )


def base(options: argparse.Namespace) -> tuple[Stage, ...]:
    """The stages that all arms share."""
    return (
        PrepareStage(
            name="prepare",
            data=PrepareConfig(
                pairs=options.pairs,
                held_out=options.held_out,
                limit=options.limit,
                row_length=128,
                query_length=QUERY,
                document_length=DOCUMENT,
            ),
        ),
        MlmStage(
            name="mlm",
            model=ModelSize(
                num_layers=3,
                width=192,
                num_heads=3,
                mlp_width=768,
                trained_positions=128,
            ),
            data=MlmData(stores="prepare", row_length=128),
            optimizer=dataclasses.replace(
                optimizer(1e-3, 20, "linear"), weight_decay=1e-5, beta2=0.98
            ),
            train=LoopConfig(steps=options.steps, batch_size=32, seed=0),
        ),
    )


def filter_stage(judge: str, data: StagePairs) -> FilterStage:
    """The paper's filter, with texts as the judge was trained on or shorter."""
    filtering = Filtering(model=judge, k=2, max_length=128)
    return FilterStage(name="filter", data=data, filtering=filtering)


def training(
    stores: str, seed: int, steps: int, *, mine: bool
) -> tuple[ContrastiveStage | MineStage, ...]:
    """Pretraining and fine-tuning, with mined negatives or without."""
    pretrain = ContrastiveStage(
        name="pretrain",
        data=PairData(stores=stores, query_length=QUERY, document_length=DOCUMENT),
        loss=ContrastiveLoss(temperature=0.05),
        optimizer=optimizer(2e-3, 20, "inverse_sqrt"),
        train=LoopConfig(steps=steps, batch_size=128, seed=seed),
    )
    finetune = dataclasses.replace(
        pretrain,
        name="finetune",
        data=dataclasses.replace(
            pretrain.data,
            stores="mine" if mine else stores,
            num_negatives=3 if mine else 0,
        ),
        optimizer=optimizer(5e-4, 10, "linear"),
        train=LoopConfig(steps=max(steps * 2 // 5, 11), batch_size=64, seed=seed),
    )
    if not mine:
        return (pretrain, finetune)
    mining = Mining(count=10, seed=seed)
    stage = MineStage(name="mine", data=StagePairs(stage=stores), mining=mining)
    return (pretrain, stage, finetune)


def share(given: Path, out: Path, stages: Sequence[str]) -> None:
    """Copy finished stages into a run, which then goes on behind them."""
    for name in stages:
        if not (out / name).exists():
            shutil.rmtree(out / f"{name}.part", ignore_errors=True)
            shutil.copytree(given / name, out / f"{name}.part")
            (out / f"{name}.part").rename(out / name)


def arm(
    out: Path, stages: Sequence[Stage], given: Path, shared: Sequence[str]
) -> dict[str, dict[str, float]]:
    """Run an arm from the stages it shares; nDCG@10 by stage and source."""
    done = out / "figures.json"
    if not done.exists():
        share(given, out, shared)
        start = time.perf_counter()
        run(stages, out)
        figures = {
            stage: {
                source: metrics["ndcg@10"]
                for source, metrics in read_json(out / stage / file).items()
            }
            for stage, file in (
                ("mlm", "evaluation.json"),
                ("pretrain", "evaluation.json"),
                ("finetune", "evaluation.json"),
            )
        }
        minutes = (time.perf_counter() - start) / 60
        write_json(done, {"minutes": minutes, "figures": figures})
    return read_json(done)["figures"]


def shuffled(given: Path, folder: Path) -> tuple[list[str], dict[str, set[int]]]:
    """Write training pairs of which a fifth got another's document, and say which."""
    places, spoiled = [], {}
    for file in sorted((given / "prepare" / "train").glob("*.jsonl")):
        pairs = read_pairs(file).pairs
        random = np.random.default_rng(0)
        rows = random.choice(len(pairs), int(SHUFFLED * len(pairs)), replace=False)
        mixed = list(pairs)
        # Each gets the next one's: none keeps its own.
        for row, other in zip(rows, np.roll(rows, 1), strict=True):
            mixed[row] = Pair(pairs[row].query, pairs[other].document)
        answers: dict[str, set[str]] = {}
        for pair in pairs:
            answers.setdefault(pair.query, set()).add(pair.document)
        spoiled[file.stem] = {
            row for row, p in enumerate(mixed) if p.document not in answers[p.query]
        }
        place = folder / file.name
        if not place.exists():  # stores know the file they are made of by its time
            write_pairs(place, mixed)
        places.append(str(place))
    return places, spoiled


def stores_of(places: Sequence[str], tokenizer: Path, folder: Path) -> str:
    """Tokenise pairs as they are, for the arm without a filter."""
    rule = PairRule(
        query_prefix="search_query: ",
        document_prefix="search_document: ",
        query_length=QUERY,
        document_length=DOCUMENT,
    )
    planned = [(JsonLines.open(place), rule) for place in places]
    prepare_collection(planned, TextTokenizer.from_folder(tokenizer), folder)
    return str(folder)


def found(
    filtered: Path, spoiled: Mapping[str, set[int]], places: Sequence[str]
) -> dict[str, dict[str, float]]:
    """Precision and recall of the filter in dropping spoiled pairs, by source."""
    table = {}
    for place in places:
        name = Path(place).stem
        total = sum(1 for _ in Path(place).open())
        kept = {
            json.loads(text)["id"]
            for shard in sorted((filtered / "train" / name).glob("shard-*.jsonl.gz"))
            for text in _lines(shard)
        }
        dropped, wrong = set(range(total)) - kept, spoiled[name]
        table[name] = {
            "pairs": total,
            "spoiled": len(wrong),
            "dropped": len(dropped),
            "precision": len(dropped & wrong) / max(len(dropped), 1),
            "recall": len(dropped & wrong) / max(len(wrong), 1),
            "kept that are right": len(kept - wrong) / max(len(kept), 1),
            "right that are kept": len(kept - wrong) / max(total - len(wrong), 1),
        }
    return table


def _lines(shard: Path) -> list[str]:
    return gzip.decompress(shard.read_bytes()).decode().splitlines()


def table(figures: Mapping[str, Sequence[Mapping[str, Mapping[str, float]]]]) -> str:
    """A line an arm: mean over sources, and each source, mean and spread over seeds."""
    sources = list(next(iter(figures.values()))[0]["finetune"])
    head = ["arm", "after", "mean", *sources]
    lines = ["| " + " | ".join(head) + " |", "|---" * len(head) + "|"]
    for name, runs in figures.items():
        for stage in ("mlm", "pretrain", "finetune"):
            columns = [[r[stage][source] for r in runs] for source in sources]
            means = [statistics.mean(column) for column in zip(*columns, strict=True)]
            cells = [_cell(values) for values in (means, *columns)]
            lines.append("| " + " | ".join([name, stage, *cells]) + " |")
    return "\n".join(lines)


def _cell(values: Sequence[float]) -> str:
    spread = max(values) - min(values)
    return f"{statistics.mean(values):.3f} ({spread:.3f})"


def main() -> None:
    """Run all arms and print their tables."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument(
        "--pairs", required=True, help="pattern of JSONL files of pairs"
    )
    parser.add_argument("--judge", required=True, help="model that filters")
    parser.add_argument("--work", type=Path, required=True, help="folder of the runs")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--limit", type=int, default=5000, help="pairs of a source")
    parser.add_argument("--held-out", type=int, default=300, help="pairs of a source")
    parser.add_argument("--steps", type=int, default=150, help="of pretraining")
    options = parser.parse_args()
    shared, work, judge = base(options), options.work, options.judge
    given = work / "base"
    run(shared, given)
    clean = filter_stage(judge, StagePairs(stage="prepare"))
    share(given, work / "clean", SHARED)
    run((*shared, clean), work / "clean")
    figures: dict[str, list[dict[str, dict[str, float]]]] = {}
    for seed in options.seeds:
        for name, (filters, mines) in ARMS.items():
            stores = "filter" if filters else "prepare"
            stages = training(stores, seed, options.steps, mine=mines)
            if filters:
                stages = (clean, *stages)
            made = arm(
                work / f"{name}-{seed}",
                (*shared, *stages),
                work / "clean" if filters else given,
                (*SHARED, "filter") if filters else SHARED,
            )
            figures.setdefault(name, []).append(made)
    places, spoiled = shuffled(given, work / "shuffled" / "pairs")
    stores = stores_of(places, given / "prepare", work / "shuffled" / "stores")
    noisy = filter_stage(
        judge,
        StagePairs(places=tuple(places), query_length=QUERY, document_length=DOCUMENT),
    )
    share(given, work / "noisy", SHARED)
    run((*shared, noisy), work / "noisy")
    for seed in options.seeds:
        plain = training(stores, seed, options.steps, mine=False)
        kept = training("filter", seed, options.steps, mine=False)
        figures.setdefault("shuffled, as they are", []).append(
            arm(work / f"shuffled-{seed}", (*shared, *plain), given, SHARED)
        )
        figures.setdefault("shuffled, filtered", []).append(
            arm(
                work / f"shuffled-filtered-{seed}",
                (*shared, noisy, *kept),
                work / "noisy",
                (*SHARED, "filter"),
            )
        )
    print(f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores\n")
    print(table(figures))
    print()
    for name, values in found(work / "noisy" / "filter", spoiled, places).items():
        print(name, json.dumps({k: round(v, 4) for k, v in values.items()}))


if __name__ == "__main__":
    main()
