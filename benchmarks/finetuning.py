"""The same fine-tuning here and in sentence-transformers: the same pairs and batches.

    python benchmarks/finetuning.py --model FOLDER --pairs FILE FILE --work FOLDER

FOLDER is a published model (all-MiniLM-L6-v2), each FILE holds a query and its document
a line. Here `nomic_jax.pipeline.runner.run` trains, as `train.py` does;
sentence-transformers is given the texts of the very same batches, in the same order.
Its figures are measured by this project's evaluation too. What has been measured is in
WORK/results.jsonl and is not measured again: the same command goes on where it was
stopped. Its first line says with what; another model, other pairs or numbers need
another WORK.
"""

import argparse
import dataclasses
import importlib.metadata
import json
import os
import platform
import shutil
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
import torch
from results_file import begin, read_results
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.losses import (
    MultipleNegativesRankingLoss,
)
from transformers import get_linear_schedule_with_warmup

from nomic_jax.checkpoints import folder_digest
from nomic_jax.data import PairBatches
from nomic_jax.data.sources import PairSource, read_pairs, split_held_out
from nomic_jax.data.store import PAIRS, is_prepared, open_stores, write_sources
from nomic_jax.data.store import write_training_pairs as write_stores
from nomic_jax.evaluation import NONE, JudgedRetrieval, Task, rank_bm25, score
from nomic_jax.inference import Embedder
from nomic_jax.pipeline import run
from nomic_jax.storage import checksum_of
from nomic_jax.training import (
    BiEncoder,
    ContrastiveLoss,
    ContrastiveStage,
    LoopConfig,
    MemoryConfig,
    OptimizerConfig,
    PairData,
    Placement,
    StartConfig,
    TrainState,
    contrastive_objective,
    make_optimizer,
    pair_batches,
    read_metrics,
)
from nomic_jax.training import make_update as compiled_step

LENGTH = 256  # tokens of the longest text: what MiniLM's folder says
TEMPERATURE = 0.05  # 20 times the cosines, the default of sentence-transformers
NEAR = 5  # documents that BM25 finds for a query, to be told from its own
HELD_OUT_SEED = 0
METRIC = "ndcg@10"


@dataclasses.dataclass(frozen=True)
class Setting:
    """What both sides do the same with."""

    model: str
    work: Path
    sources: tuple[PairSource, ...]  # trained on
    tasks: tuple[Task, ...]  # measured on
    steps: int
    batch: int
    rate: float
    tokens_at_once: int | None  # here; gradients do not depend on it

    def stage(self, seed: int) -> ContrastiveStage:
        """The stage that trains here; the other side reads its numbers."""
        return ContrastiveStage(
            name="finetune",
            start=StartConfig(model=self.model),
            data=PairData(
                stores=str(self.work / "data" / PAIRS),
                query_length=LENGTH,
                document_length=LENGTH,
            ),
            loss=ContrastiveLoss(temperature=TEMPERATURE),
            optimizer=OptimizerConfig(
                learning_rate=self.rate,
                weight_decay=0.01,
                warmup_steps=self.steps // 10,
                schedule="linear",
                clip_norm=1.0,
            ),
            train=LoopConfig(
                steps=self.steps,
                batch_size=self.batch,
                seed=seed,
                log_every=1,
                save_every=40,
                keep=1,
            ),
            memory=MemoryConfig(tokens_at_once=self.tokens_at_once),
        )

    def batches(self, seed: int) -> PairBatches:
        """The batches of a seed, as the stage takes them."""
        stage = self.stage(seed)
        tokenizer = Embedder.from_pretrained(self.model).tokenizer
        return pair_batches(stage, open_stores(stage.data.stores), tokenizer)

    def texts(self, batches: PairBatches, step: int) -> tuple[list[str], list[str]]:
        """The queries and documents of a step's batch."""
        name, records = batches.schedule.at(step)
        (source,) = (source for source in self.sources if source.name == name)
        pairs = [source.pairs[int(record)] for record in records]
        return [pair.query for pair in pairs], [pair.document for pair in pairs]


def split(file: Path, queries: int) -> tuple[PairSource, Task]:
    """Hold whole documents out; they are searched among others near the queries.

    A held-out query that training has too, with another document, is left out. BM25
    chooses what else is searched: with documents at random the figure would be near 1.
    """
    source = read_pairs(file, query_prefix="", document_prefix="")
    train, held_out = split_held_out(
        source, share=0.5, at_most=queries, seed=HELD_OUT_SEED
    )
    known = {pair.query for pair in train.pairs}
    relevant: dict[str, set[str]] = {}
    for pair in held_out.pairs:
        if pair.query not in known:
            relevant.setdefault(pair.query, set()).add(pair.document)
    own = list(dict.fromkeys(pair.document for pair in held_out.pairs))
    others = list(dict.fromkeys(pair.document for pair in train.pairs))

    everything, queries_held = [*own, *others], list(relevant)
    best = rank_bm25(queries_held, everything, depth=NEAR).documents
    near = dict.fromkeys(everything[i] for i in best.ravel().tolist())
    documents = list(dict.fromkeys([*own, *near]))
    number = {text: i for i, text in enumerate(documents)}
    grades = [{number[text]: 1 for text in found} for found in relevant.values()]
    none = [NONE] * len(grades)
    judged = JudgedRetrieval(queries_held, documents, grades, none, {})
    return train, Task("retrieval", source.name, str(file), judged)


def asked(options: argparse.Namespace) -> dict[str, Any]:
    """Say what figures follow from, beside the seed: numbers and contents of files."""
    numbers = ("steps", "batch", "rate", "queries", "rounds", "tokens_at_once")
    return {
        "part": "setting",
        "model": folder_digest(options.model),
        "pairs": [[file.name, checksum_of(file)] for file in options.pairs],
        **{name: getattr(options, name) for name in numbers},
        **{"length": LENGTH, "temperature": TEMPERATURE, "near": NEAR},
        "held_out_seed": HELD_OUT_SEED,
    }


def prepared(options: argparse.Namespace) -> Setting:
    """Read the files, hold a part of them out, and write the stores."""
    parts = [split(file, options.queries) for file in options.pairs]
    sources, tasks = (tuple(part) for part in zip(*parts, strict=True))
    data = options.work / "data"
    if not is_prepared(data):
        tokenizer = Embedder.from_pretrained(options.model).tokenizer
        write_stores(
            data, sources, tokenizer, query_length=LENGTH, document_length=LENGTH
        )
        write_sources(data, sources, fingerprint="")
    return Setting(
        model=str(options.model),
        work=options.work,
        sources=sources,
        tasks=tasks,
        steps=options.steps,
        batch=options.batch,
        rate=options.rate,
        tokens_at_once=options.tokens_at_once or None,
    )


class Theirs:
    """Steps of sentence-transformers, with the optimizer of the stage."""

    def __init__(self, setting: Setting, seed: int, *, attention_dropout: bool = True):
        """Load the model; its dropout is what its config says.

        Args:
            setting: what both sides share.
            seed: of dropout.
            attention_dropout: also of attention's weights, which is not done here.
        """
        torch.manual_seed(seed)
        arguments = {} if attention_dropout else {"attention_probs_dropout_prob": 0.0}
        self.model = SentenceTransformer(
            setting.model, device="cpu", config_kwargs=arguments
        )
        self.model.max_seq_length = LENGTH
        stage = setting.stage(seed)
        self.loss = MultipleNegativesRankingLoss(
            self.model, scale=1 / stage.loss.temperature
        )
        named = [*self.model.named_parameters()]
        decayed = [p for name, p in named if p.ndim > 1 and "bias" not in name]
        others = [p for name, p in named if not (p.ndim > 1 and "bias" not in name)]
        adam = stage.optimizer
        self.parameters = [parameter for _, parameter in named]
        self.optimizer = torch.optim.AdamW(
            [
                {"params": decayed, "weight_decay": adam.weight_decay},
                {"params": others, "weight_decay": 0.0},
            ],
            lr=adam.learning_rate,
            betas=(adam.beta1, adam.beta2),
            eps=adam.epsilon,
        )
        self.schedule = get_linear_schedule_with_warmup(
            self.optimizer, adam.warmup_steps, stage.train.steps
        )
        self.clip = adam.clip_norm
        self.model.train()

    def __call__(self, texts: tuple[list[str], list[str]]) -> float:
        """Take a step and return the loss."""
        features = [self.model.preprocess(side) for side in texts]
        value = self.loss(features, None)
        value.backward()
        torch.nn.utils.clip_grad_norm_(self.parameters, self.clip)
        self.optimizer.step()
        self.schedule.step()
        self.optimizer.zero_grad()
        return float(value)


class Ours:
    """Steps of this project one by one, to be timed in turns with theirs."""

    def __init__(self, setting: Setting, seed: int):
        """Load the model; the step compiles when it is first taken."""
        stage, embedder = setting.stage(seed), Embedder.from_pretrained(setting.model)
        optimizer = make_optimizer(stage.optimizer, stage.train.steps)
        placement = Placement.of(
            stage.mesh, stage.memory, batch_size=setting.batch, row_length=LENGTH
        )
        objective = contrastive_objective(embedder.config, stage.loss, placement)
        self.update = compiled_step(objective, optimizer, seed=seed)
        start = BiEncoder.of(embedder.model, stage.loss)
        self.state = TrainState.fresh(start, optimizer)

    def __call__(self, batch: Any) -> float:
        """Take a step, wait for it, and return the loss."""
        self.state, metrics = self.update(self.state, jax.device_put(batch))
        return float(jax.block_until_ready((self.state, metrics))[1]["loss"])


def timed_in_turns(setting: Setting, rounds: int) -> dict[str, Any]:
    """Time steps on the same batches, sides taking turns, each batch seen before."""
    batches = setting.batches(0)
    # Batches of both sources and of several numbers of rows, all compiled at first.
    sides: dict[str, Callable[[int], float]] = {}
    ours, theirs = Ours(setting, 0), Theirs(setting, 0)
    bare = Theirs(setting, 0, attention_dropout=False)
    sides["ours"] = lambda step: ours(batches(step).arrays)
    sides["theirs"] = lambda step: theirs(setting.texts(batches, step))
    sides["theirs, bare"] = lambda step: bare(setting.texts(batches, step))
    for step in range(rounds):
        for side in sides.values():
            side(step)
    taken: dict[str, list[float]] = {name: [] for name in sides}
    for step in range(rounds):
        for name in list(sides)[:: 1 if step % 2 == 0 else -1]:
            began = time.perf_counter()
            sides[name](step)
            taken[name].append(time.perf_counter() - began)
        print(step, {name: round(times[-1], 2) for name, times in taken.items()})
    return {"part": "turns", "seconds": taken, "load": os.getloadavg()[0]}


def measured(
    setting: Setting, query: Callable[..., np.ndarray], document: Callable[..., Any]
) -> dict[str, float]:
    """Measure nDCG@10 of each source."""
    return {
        task.name: score(
            task.data, query(task.data.queries), document(task.data.documents)
        )[METRIC]
        for task in setting.tasks
    }


def our_figures(setting: Setting, model: str | Path) -> dict[str, float]:
    """Measure a model folder with this project's own embedder."""
    embedder = Embedder.from_pretrained(model)
    return measured(setting, embedder.encode_query, embedder.encode_document)


def their_figures(setting: Setting, model: SentenceTransformer) -> dict[str, float]:
    """Measure what sentence-transformers encodes, by the same evaluation."""
    model.eval()

    def encode(texts: Sequence[str]) -> np.ndarray:
        return np.asarray(model.encode(list(texts), show_progress_bar=False))

    return measured(setting, encode, encode)


def train_ours(setting: Setting, seed: int) -> dict[str, Any]:
    """Run the stage as `train.py` does; a run that was stopped goes on."""
    out = setting.work / f"ours-{seed}"
    run((setting.stage(seed),), out)
    lines = read_metrics(out / "finetune" / "metrics.jsonl")
    ends = [line["time"] for line in lines]
    found = {
        "loss": [line["loss"] for line in lines],
        "seconds": [b - a for a, b in zip(ends, ends[1:], strict=False)],
        "after": our_figures(setting, out / "model"),
    }
    shutil.rmtree(out)  # a checkpoint is three times the model
    return found


def train_theirs(setting: Setting, seed: int) -> dict[str, Any]:
    """Train by a plain loop over the batches of the stage."""
    batches, theirs = setting.batches(seed), Theirs(setting, seed)
    losses, seconds = [], []
    for step in range(setting.steps):
        began = time.perf_counter()
        losses.append(theirs(setting.texts(batches, step)))
        seconds.append(time.perf_counter() - began)
        if step % 10 == 0:
            print(f"theirs {seed}: {step}, {seconds[-1]:.1f} s", flush=True)
    after = their_figures(setting, theirs.model)
    return {"loss": losses, "seconds": seconds[1:], "after": after}


def missing(
    setting: Setting, seeds: Sequence[int], rounds: int, file: Path
) -> Iterator[dict[str, Any]]:
    """Measure what the results lack, one after another."""
    found = read_results(file)
    parts = {(line["part"], line.get("side"), line.get("seed")) for line in found}
    if ("turns", None, None) not in parts:
        yield timed_in_turns(setting, rounds)
    if ("before", "ours", None) not in parts:
        figures = our_figures(setting, setting.model)
        yield {"part": "before", "side": "ours", "figures": figures}
    if ("before", "theirs", None) not in parts:
        figures = their_figures(setting, Theirs(setting, 0).model)
        yield {"part": "before", "side": "theirs", "figures": figures}
    train = {"ours": train_ours, "theirs": train_theirs}
    for number, seed in enumerate(seeds):
        for side in ("ours", "theirs")[:: 1 if number % 2 == 0 else -1]:
            if ("after", side, seed) not in parts:
                done = train[side](setting, seed)
                yield {"part": "after", "side": side, "seed": seed, **done}


def table(setting: Setting, lines: Sequence[dict[str, Any]]) -> Iterator[str]:
    """Lay the results out as Markdown."""
    names = [task.name for task in setting.tasks]
    for task in setting.tasks:
        yield (
            f"{task.name}: {len(task.data.queries)} held-out queries, "
            f"{len(task.data.documents)} documents."
        )
    yield f"\n| {METRIC} | " + " | ".join(names) + " | steps/s |"
    yield "|---" * (len(names) + 2) + "|"
    pace: dict[str, float] = {}
    for line in lines:
        if line["part"] == "before":
            cells = [f"{line['figures'][name]:.4f}" for name in names]
            yield f"| before, {line['side']} | {' | '.join(cells)} | |"
    for side in ("theirs", "ours"):
        runs = [x for x in lines if x["part"] == "after" and x["side"] == side]
        if not runs:
            continue
        pace[side] = 1 / statistics.median(s for x in runs for s in x["seconds"])
        cells = []
        for name in names:
            values = [x["after"][name] for x in runs]
            listed = ", ".join(f"{value:.4f}" for value in values)
            cells.append(f"{statistics.mean(values):.4f} ({listed})")
        yield f"| after, {side} | {' | '.join(cells)} | {pace[side]:.3f} |"
    if len(pace) == 2:
        yield f"\nsteps/s, ours / theirs: {pace['ours'] / pace['theirs']:.2f}"
    for line in lines:
        if line["part"] != "turns":
            continue
        taken = line["seconds"]
        for name in taken:
            ratio = statistics.median(
                b / a for a, b in zip(taken["ours"], taken[name], strict=True)
            )
            yield (
                f"\nin turns, {name}: {statistics.median(taken[name]):.2f} s a step, "
                f"{ratio:.2f} of ours"
            )


def environment() -> str:
    """The machine and what was compared."""
    packages = ("jax", "torch", "transformers", "sentence-transformers")
    versions = [f"{name} {importlib.metadata.version(name)}" for name in packages]
    return (
        f"{platform.machine()}, {os.cpu_count()} cores; Python "
        f"{platform.python_version()}, {', '.join(versions)}; "
        f"{torch.get_num_threads()} threads of torch"
    )


def main() -> None:
    """Measure what is missing and print Markdown."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", type=Path, required=True, help="a folder")
    parser.add_argument("--pairs", type=Path, nargs="+", required=True)
    parser.add_argument("--work", type=Path, required=True, help="results stay here")
    parser.add_argument("--steps", type=int, default=120)
    parser.add_argument("--batch", type=int, default=32, help="pairs")
    parser.add_argument("--rate", type=float, default=2e-5)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--queries", type=int, default=300, help="held out a source")
    parser.add_argument("--rounds", type=int, default=6, help="steps timed in turns")
    parser.add_argument(
        "--tokens-at-once", type=int, default=2048, help="here; 0: the whole batch"
    )
    options = parser.parse_args()
    torch.set_num_threads(len(os.sched_getaffinity(0)))
    print(environment(), flush=True)
    file = begin(options.work, asked(options))
    setting = prepared(options)
    for line in missing(setting, options.seeds, options.rounds, file):
        with file.open("a") as results:
            results.write(json.dumps(line) + "\n")
        shown = {k: v for k, v in line.items() if k not in ("loss", "seconds")}
        print(time.strftime("%H:%M"), shown, flush=True)
    print("\n".join(table(setting, read_results(file))))


if __name__ == "__main__":
    main()
