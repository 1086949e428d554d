"""Evaluation here beside PyTorch: the same texts, prefixes, lengths and metrics.

    python benchmarks/evaluation.py MODEL --tasks retrieval:FOLDER sts:FILE --cache DIR

PyTorch embeds with transformers' NomicBert, mean pooling and, where the model has it,
v1.5's layer norm; ranks with all scores in one matrix; and is scored by pytrec_eval and
SciPy on those scores. Each side embeds in a process of its own and keeps what it has of
a model in DIR, so the same command goes on where it was stopped. `--vary` names the
tasks that are embedded again here with other batch sizes, devices and types.
"""

import argparse
import hashlib
import os
import platform
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from nomic_jax import EmbeddingConfig
from nomic_jax.checkpoints import (
    embedding_for,
    folder_digest,
    read_checkpoint,
    resolve,
    without_head,
)
from nomic_jax.evaluation import KINDS, Side, Task, figures, open_tasks
from nomic_jax.storage import whole_file

CHUNK = 256  # texts between two savings
ROWS = 16  # texts of a PyTorch batch, sorted by length
HERE, TORCH = "here", "PyTorch"
VARIATIONS = {  # tokens of a batch, devices, type of matmuls
    HERE: (None, 1, "float32"),
    "8 devices with batches of 512 tokens each": (512, 8, "float32"),
    "bfloat16": (None, 1, "bfloat16"),
}
PRECISIONS = ("float32", "int8", "binary")

Embed = Callable[[Sequence[str], str], np.ndarray]


def with_jax(folder: str, max_length: int, variation: str) -> Embed:
    """Embed with this project: texts and the name of their prompt to pooled vectors."""
    from nomic_jax.inference import Embedder

    tokens, _, dtype = VARIATIONS[variation]
    embedder = Embedder.from_pretrained(folder, max_length=max_length, dtype=dtype)
    if tokens is not None:
        embedder.tokens_per_batch = tokens
    return lambda texts, prompt: embedder.encode(texts, task=prompt, normalize=False)


def with_torch(folder: str, max_length: int) -> Embed:
    """Embed with transformers on PyTorch."""
    import torch
    import transformers
    from torch.nn.functional import layer_norm

    transformers.utils.logging.disable_progress_bar()
    place, config = resolve(folder), convention(folder)
    model = transformers.AutoModel.from_pretrained(place, dtype=torch.float32).eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(place)

    def embed(texts: Sequence[str], prompt: str) -> np.ndarray:
        prefix = config.prompts[prompt]
        order = sorted(range(len(texts)), key=lambda i: len(texts[i]))
        out = np.empty((len(texts), model.config.hidden_size), np.float32)
        for start in range(0, len(order), ROWS):
            members = order[start : start + ROWS]
            batch = tokenizer(
                [prefix + texts[i] for i in members],
                padding=True,
                truncation=True,
                max_length=max_length,
                return_tensors="pt",
            )
            with torch.no_grad():
                hidden = model(**batch).last_hidden_state
            mask = batch["attention_mask"][..., None]
            pooled = (hidden * mask).sum(1) / mask.sum(1)
            if config.layer_norm:
                pooled = layer_norm(pooled, pooled.shape[1:])
            out[members] = pooled.numpy()
        return out

    return embed


def convention(folder: str) -> EmbeddingConfig:
    """Return a model's own prompts and pooling."""
    found = embedding_for(folder, without_head(read_checkpoint(resolve(folder))))
    return found.config


def made_by(folder: str) -> str:
    """Say of which weights and conventions embeddings are."""
    return f"{folder_digest(resolve(folder))} {convention(folder)!r}"


def kept(
    cache: Path, task: Task, side: Side, model: str, length: int, who: str
) -> Path:
    """Return the folder of a side's embeddings; of other texts there is another one.

    Args:
        cache: of all embeddings.
        task: the texts are of.
        side: the texts and the name of their prompt.
        model: as `made_by` gives it.
        length: at which texts are cut, in tokens.
        who: embeds.
    """
    made_of = f"{tuple(side.texts)!r} {model}"
    digest = hashlib.blake2b(made_of.encode(), digest_size=6).hexdigest()
    name = f"{task.name}-{side.prompt}-{length}-{digest}".replace("/", "_")
    return cache / name / who.replace(" ", "_")


def embed_all(tasks: Sequence[Task], options: argparse.Namespace) -> None:
    """Embed what is not there yet."""
    who, embed, model = options.embed, None, made_by(options.model)
    for task in tasks:
        for side in task.sides:
            folder = kept(options.cache, task, side, model, options.max_length, who)
            folder.mkdir(parents=True, exist_ok=True)
            start_time, done = time.perf_counter(), 0
            for start in range(0, len(side.texts), CHUNK):
                place = folder / f"{start}.npy"
                if place.exists():
                    continue
                if embed is None:
                    embed = (
                        with_torch(options.model, options.max_length)
                        if who == TORCH
                        else with_jax(options.model, options.max_length, who)
                    )
                part = side.texts[start : start + CHUNK]
                vectors = embed(part, side.prompt)
                with whole_file(place) as file:
                    np.save(file, vectors)
                done += len(part)
            if done:
                seconds = time.perf_counter() - start_time
                print(
                    f"{who}: {task.name}: {done} texts in {seconds:.0f} s", flush=True
                )


def read(
    task: Task, options: argparse.Namespace, model: str, who: str
) -> list[np.ndarray]:
    """Read the embeddings of all sides of a task."""
    found = []
    for side in task.sides:
        folder = kept(options.cache, task, side, model, options.max_length, who)
        starts = range(0, len(side.texts), CHUNK)
        found.append(np.concatenate([np.load(folder / f"{i}.npy") for i in starts]))
    return found


def torch_score(task: Task, sides: Sequence[np.ndarray], dim: int) -> float:
    """Score embeddings without this project's search, cuts and metrics."""
    import pytrec_eval
    import scipy.stats
    import torch
    from torch.nn.functional import cosine_similarity, normalize

    cut = [normalize(torch.from_numpy(each[:, :dim])) for each in sides]
    if task.kind == "sts":
        number = {text: i for i, text in enumerate(task.sides[0].texts)}
        first, second = (
            cut[0][[number[text] for text in texts]]
            for texts in (task.data.sentence1, task.data.sentence2)
        )
        cosine = cosine_similarity(first, second).numpy()
        return float(np.asarray(scipy.stats.spearmanr(cosine, task.data.scores))[0])
    queries, documents = cut
    scores = (queries @ documents.T).numpy()
    run = {  # a document that is the query itself is no answer
        str(i): {str(j): float(x) for j, x in enumerate(row) if j != task.data.own[i]}
        for i, row in enumerate(scores)
    }
    judged = {
        str(i): {str(j): grade for j, grade in each.items()}
        for i, each in enumerate(task.data.relevance)
    }
    found = pytrec_eval.RelevanceEvaluator(judged, {"ndcg_cut.10"}).evaluate(run)
    return float(np.mean([each["ndcg_cut_10"] for each in found.values()]))


def report(tasks: Sequence[Task], options: argparse.Namespace) -> None:
    """Print all figures, and how far each is from PyTorch's or from the plain run's."""
    dims, model = options.dims, made_by(options.model)
    machine = f"{platform.machine()}, {os.cpu_count()} cores"
    print(f"\nTexts cut at {options.max_length} tokens; {machine}")
    print("\n| task | dimension | PyTorch | here | difference | int8 | binary |")
    print("|---|---|---|---|---|---|---|")
    for task in tasks:
        if task.kind not in ("sts", "retrieval"):
            continue
        ours, theirs = (read(task, options, model, who) for who in (HERE, TORCH))
        found = figures(task, ours, dims=dims, precisions=PRECISIONS)
        by = {(each.dim, each.precision): each.metrics[task.main] for each in found}
        for dim in dims:
            reference = torch_score(task, theirs, dim)
            plain = by[dim, "float32"]
            print(
                f"| {task.name}, {task.main} | {dim} | {reference:.5f} | {plain:.5f} "
                f"| {plain - reference:+.5f} | {by[dim, 'int8']:.5f} "
                f"| {by[dim, 'binary']:.5f} |",
                flush=True,
            )
    print("\n| task | variation | figure | from the plain run |")
    print("|---|---|---|---|")
    for task in tasks:
        if task.name not in options.vary:
            continue
        values = {
            who: figures(task, read(task, options, model, who), dims=dims[:1])[
                0
            ].metrics[KINDS[task.kind].main]
            for who in VARIATIONS
        }
        for who, value in values.items():
            print(
                f"| {task.name} | {who} | {value:.5f} | {value - values[HERE]:+.5f} |"
            )


def main() -> None:
    """Embed on both sides, then compare."""
    parser = argparse.ArgumentParser(description="Evaluation here beside PyTorch.")
    parser.add_argument("model", help="folder of the model")
    parser.add_argument("--tasks", nargs="+", required=True, help="KIND:PLACE")
    parser.add_argument("--cache", type=Path, required=True, help="for embeddings")
    parser.add_argument("--max-length", type=int, default=512, help="in tokens")
    parser.add_argument("--dims", type=int, nargs="+", default=[768, 512, 256, 128, 64])
    parser.add_argument("--vary", nargs="*", default=[], help="names of tasks")
    parser.add_argument("--embed", help=argparse.SUPPRESS)
    options = parser.parse_args()
    tasks = open_tasks(options.tasks)
    if options.embed:
        chosen = [
            task
            for task in tasks
            if options.embed in (HERE, TORCH) or task.name in options.vary
        ]
        embed_all(chosen, options)
        return
    for who in (HERE, TORCH, *list(VARIATIONS)[1:]):
        devices = VARIATIONS[who][1] if who != TORCH else 1
        flags = f"--xla_force_host_platform_device_count={devices}"
        subprocess.run(
            [sys.executable, *sys.argv, "--embed", who],
            env=os.environ | {"XLA_FLAGS": flags},
            check=True,
        )
    report(tasks, options)


if __name__ == "__main__":
    main()
