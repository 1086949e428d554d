"""Texts to unit vectors, beside sentence-transformers on the same machine.

    python benchmarks/encode.py --model FOLDER --pairs FILE FILE

Texts of mixed length are queries and documents of the files, as many of each; those of
a fixed length are words of them. Both sides get the same strings and prefixes and the
same threads, tokenize them, cut them alike and return vectors to the host, which have
to agree. sentence-transformers has its best of four batch sizes, tried beforehand; on a
GPU it is measured with SDPA, compiled, and with FlashAttention 2 where there is one.
Without a model its weights are random, those of nomic-embed-text-v1.5 in shape; without
files texts are docstrings and code of this Python. Peak memory and the time to a first
embedding are those of processes of their own.
"""

import argparse
import dataclasses
import importlib.util
import json
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
import torch
import transformers
from encode_process import measure_processes
from environment import environment
from flax import nnx
from record import Row, record
from sentence_transformers import SentenceTransformer
from turns import in_turns, median_ratio

import nomic_jax.inference.embedder as embedder
from nomic_jax import Embedder
from nomic_jax.checkpoints import (
    embedding_for,
    read_checkpoint,
    save_model,
    write_checkpoint,
)
from nomic_jax.config import PUBLISHED, PUBLISHED_EMBEDDINGS
from nomic_jax.data import TextTokenizer
from nomic_jax.data.sources import extract, python_modules, read_texts
from nomic_jax.inference import tokenize
from nomic_jax.model import NomicBert

NAME = "nomic-embed-text-v1.5"
TASK = "search_document"
MIXED_LENGTH = 2048  # where mixed texts are cut
FACTOR = 2.0  # of Dynamic NTK, for texts beyond 2,048 tokens
PYTHON_TEXTS = 20_000  # a tokenizer is trained on, where there is no model
# Tokens of a side's turn, and of the mixed texts; at least one text is taken.
TOKENS = {"cpu": 4096, "gpu": 131_072}
MIXED_TOKENS = {"cpu": 8192, "gpu": 262_144}
# Unit vectors of two libraries in one type of matmul: the least cosine of a text.
AGREE = {"float32": 0.99999, "bfloat16": 0.99}


def python_texts() -> list[str]:
    """Return docstrings and code of installed modules."""
    texts: list[str] = []
    for path in python_modules().values():
        found = extract(path.read_text(errors="ignore"))
        texts += [] if found is None else found.texts
        if len(texts) > PYTHON_TEXTS:
            break
    return texts


def mixed_texts(
    sides: Sequence[Sequence[str]], tokenizer: TextTokenizer, tokens: int
) -> list[str]:
    """Take as many texts of each side, spread over it, as make so many tokens."""
    mean = 0.0
    for side in sides:
        sample = side[:: max(len(side) // 200, 1)]
        ids = tokenizer.encode(sample, max_length=MIXED_LENGTH).ids
        mean += sum(map(len, ids)) / len(sample)
    count = max(round(tokens / mean), 1)
    return [
        text for side in sides for text in side[:: max(len(side) // count, 1)][:count]
    ]


def fixed_texts(
    words: Sequence[str], tokenizer: TextTokenizer, prefix: str, length: int, count: int
) -> list[str]:
    """Make texts of one length in tokens, the prefix and special ones included."""
    around = len(tokenizer.encode([prefix + "a"], max_length=64).ids[0]) - 1
    random = np.random.default_rng(length)
    texts = [" ".join(random.choice(words, length - around)) for _ in range(count)]
    found = tokenizer.encode([prefix + text for text in texts], max_length=10**6).ids
    if {len(ids) for ids in found} != {length}:
        raise ValueError(f"words that are a token each made no texts of {length}")
    return texts


def single_tokens(texts: Sequence[str], tokenizer: TextTokenizer) -> list[str]:
    """Return the words of texts that are one token."""
    words = sorted({word for text in texts for word in text.split() if word.isalpha()})
    lengths = map(len, tokenizer.encode(words, max_length=64).ids)
    return [word for word, n in zip(words, lengths, strict=True) if n == 3]


def write_folder(options: argparse.Namespace, work: Path) -> Path:
    """Write the model as both sides read it: in sentence-transformers' layout."""
    source = options.model
    if source is None:
        tokenizer = TextTokenizer.train(python_texts(), vocab_size=30_000)
        layers = {} if options.layers is None else {"num_layers": options.layers}
        config = dataclasses.replace(PUBLISHED[NAME], **layers)
        model = NomicBert(config, rngs=nnx.Rngs(0))
        source = work / NAME
        save_model(model, config, PUBLISHED_EMBEDDINGS[NAME], tokenizer, source)
    checkpoint = read_checkpoint(source)
    chosen = embedding_for(source, checkpoint).config
    write_checkpoint(
        dataclasses.replace(
            checkpoint,
            config=dataclasses.replace(checkpoint.config, rope_scaling_factor=FACTOR),
        ),
        work / "model",
        layout="sentence-transformers",
        embedding=dataclasses.replace(chosen, max_length=max(options.lengths)),
    )
    return work / "model"


@dataclasses.dataclass
class Theirs:
    """sentence-transformers, in one way to compute attention."""

    name: str
    model: SentenceTransformer
    prompt: str
    batch_size: int = 1

    def __call__(self, texts: Sequence[str], length: int) -> np.ndarray:
        """Embed texts, cut to a length."""
        self.model.max_seq_length = length
        return self.model.encode(
            list(texts),
            prompt=self.prompt,
            batch_size=self.batch_size,
            show_progress_bar=False,
        )

    def choose_batch_size(self, texts: Sequence[str], length: int) -> None:
        """Take the fastest of up to four: from a sixteenth of the texts to half."""
        sizes = sorted({max(len(texts) >> shift, 1) for shift in range(1, 5)})
        if len(sizes) > 1:
            self(texts[:1], length)
            self.batch_size = min(
                sizes, key=lambda size: self._seconds(texts, length, size)
            )

    def _seconds(self, texts: Sequence[str], length: int, size: int) -> float:
        self.batch_size = size
        began = time.perf_counter()
        self(texts, length)
        return time.perf_counter() - began


def their_sides(folder: Path, prompt: str) -> list[Theirs]:
    """Load the model in every way that the machine offers."""
    on_gpu = torch.cuda.is_available()
    ways = {"sentence-transformers": "sdpa"}
    if on_gpu:
        ways["sentence-transformers, torch.compile"] = "sdpa"
        if importlib.util.find_spec("flash_attn"):
            ways["sentence-transformers, FlashAttention 2"] = "flash_attention_2"
    sides = []
    for name, attention in ways.items():
        model = SentenceTransformer(
            str(folder),
            device="cuda" if on_gpu else "cpu",
            model_kwargs={
                "attn_implementation": attention,
                "dtype": torch.bfloat16 if on_gpu else torch.float32,
            },
        )
        if name.endswith("torch.compile"):
            model[0].auto_model.compile()
        sides.append(Theirs(name, model, prompt))
    return sides


@dataclasses.dataclass
class Ours:
    """This project's embedder, and how long it waited for batches."""

    model: Embedder
    waited: float = 0.0

    def __call__(self, texts: Sequence[str], length: int) -> np.ndarray:
        """Embed texts, cut to a length."""
        config = dataclasses.replace(self.model.config, max_length=length)
        self.waited = 0.0
        return self.model.replaced(config=config).encode(texts, task=TASK)

    def time_waiting(self) -> None:
        """Count the seconds in which no batch was ready."""
        real = embedder.prefetch

        def timed(items: Iterator[Any], *, buffer_size: int) -> Iterator[Any]:
            ready = real(items, buffer_size=buffer_size)
            while True:
                began = time.perf_counter()
                item = next(ready, None)
                self.waited += time.perf_counter() - began
                if item is None:
                    return
                yield item

        embedder.prefetch = timed


def compare(
    ours: Ours,
    others: Sequence[Theirs],
    texts: Sequence[str],
    length: int,
    *,
    rounds: int,
    goals: Mapping[str, str | None],
    detail: str,
) -> tuple[list[Row], Row]:
    """Measure the sides in turns; what their vectors are has to agree.

    Returns:
        A row for each other side, and one of how long ours waited for batches.

    Raises:
        ValueError: the sides find different vectors.
    """
    tokenizer, prefix = ours.model.tokenizer, ours.model.config.prompt(TASK)
    began = time.perf_counter()
    parts = tokenize(texts, tokenizer, prefix=prefix, max_length=length)
    lengths = [len(ids) for part in parts for ids in part]
    tokenized = time.perf_counter() - began
    found: dict[str, np.ndarray] = {}
    for side in others:
        side.choose_batch_size(texts, length)
    waits = []

    def run_ours() -> None:
        found["ours"] = ours(texts, length)
        waits.append(ours.waited)

    def runs(side: Theirs) -> Callable[[], None]:
        return lambda: found.update({side.name: side(texts, length)})

    sides = {"ours": run_ours} | {side.name: runs(side) for side in others}
    seconds = in_turns(sides, rounds)
    dtype = str(ours.model.model.dtype)
    detail = f"{detail}, {dtype}"
    mine = statistics.median(seconds["ours"])
    rows = []
    for side in others:
        cosine = float(np.sum(found["ours"] * found[side.name], axis=1).min())
        if cosine < AGREE[dtype]:
            raise ValueError(
                f"{detail}: a text's cosine with {side.name} is {cosine:.6f}, below "
                f"{AGREE[dtype]}; what is timed is not the same"
            )
        theirs = statistics.median(seconds[side.name])
        rows.append(
            Row(
                work="encode",
                detail=detail,
                ours=len(texts) / mine,
                theirs=len(texts) / theirs,
                unit="texts/s",
                beside=side.name,
                ratio=median_ratio(seconds[side.name], seconds["ours"]),
                goal=goals.get(side.name),
                extra={
                    "texts": len(texts),
                    "tokens a text": statistics.mean(lengths),
                    "tokens/s": sum(lengths) / mine,
                    "theirs: tokens/s": sum(lengths) / theirs,
                    "theirs: batch size": side.batch_size,
                    "least cosine": f"{cosine:.6f}",
                },
            )
        )
    share = statistics.median(
        wait / took for wait, took in zip(waits[1:], seconds["ours"], strict=True)
    )
    wait = Row(
        work="encode, wait for input",
        detail=detail,
        ours=share,
        unit="of the time",
        goal="input-wait",
        extra={"tokenizing alone, of the time": tokenized / mine},
    )
    return rows, wait


def goals_of(kind: str, device: str, others: Sequence[Theirs]) -> dict[str, str | None]:
    """Say which goal each other side answers: kind is "mixed" or a length."""
    names = [side.name for side in others]
    if device == "cpu":
        goal = "encode-cpu-mixed" if kind == "mixed" else "encode-cpu-fixed"
        return dict.fromkeys(names, goal)
    compiled = [name for name in names if name.endswith("torch.compile")]
    if not device.startswith("NVIDIA H200"):
        return {}
    if kind == "mixed":
        return {n: "encode-h200-mixed" for n in names if n not in compiled}
    return dict.fromkeys(compiled, "encode-h200-512") if kind == "512" else {}


def main() -> None:
    """Measure what is asked for and record each part as soon as it is there."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", type=Path, help="a folder; none: random weights")
    parser.add_argument("--pairs", type=Path, nargs="+", help="query and document")
    parser.add_argument(
        "--lengths", type=int, nargs="*", default=[32, 128, 512, 2048, 8192]
    )
    parser.add_argument("--parts", nargs="+", default=["processes", "mixed", "fixed"])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument(
        "--scale", type=float, default=1.0, help="times the usual tokens"
    )
    parser.add_argument("--layers", type=int, help="of random weights, for a trial")
    options = parser.parse_args()
    os.environ["TOKENIZERS_PARALLELISM"] = "true"
    transformers.logging.disable_progress_bar()
    torch.set_num_threads(len(os.sched_getaffinity(0)))
    given = environment("tokenizers", "tqdm")
    device = jax.local_devices()[0].device_kind
    kind = "cpu" if device == "cpu" else "gpu"
    with tempfile.TemporaryDirectory() as work:
        folder = write_folder(options, Path(work))
        ours = Ours(Embedder.from_pretrained(folder))
        ours.time_waiting()
        tokenizer, prefix = ours.model.tokenizer, ours.model.config.prompt(TASK)
        named, sources = "docstrings and code", [python_texts()]
        if options.pairs:
            named = " and ".join(path.name.split(".")[0] for path in options.pairs)
            sources = [
                list(read_texts(path, column=column))
                for path in options.pairs
                for column in ("query", "document")
            ]
        mixed = mixed_texts(sources, tokenizer, int(MIXED_TOKENS[kind] * options.scale))
        if "processes" in options.parts:
            (Path(work) / "texts.json").write_text(json.dumps(mixed[::4]))
            record("encode", measure_processes(Path(work), prefix), given)
        others = their_sides(folder, prefix)
        if "mixed" in options.parts:
            length = min(MIXED_LENGTH, max(options.lengths))
            goals = goals_of("mixed", device, others)
            rows, wait = compare(
                ours,
                others,
                mixed,
                length,
                rounds=options.rounds,
                goals=goals,
                detail=f"mixed: {named}",
            )
            record("encode", [*rows, wait], given)
        words = single_tokens(mixed, tokenizer)
        for length in options.lengths if "fixed" in options.parts else ():
            count = max(int(TOKENS[kind] * options.scale) // length, 1)
            rows, _ = compare(
                ours,
                others,
                fixed_texts(words, tokenizer, prefix, length, count),
                length,
                rounds=options.rounds if length <= MIXED_LENGTH else 1,
                goals=goals_of(str(length), device, others),
                detail=f"{length} tokens",
            )
            record("encode", rows, given)


if __name__ == "__main__":
    main()
