"""What exact large batches, the loop and checkpoints cost, beside PyTorch in one run.

    python benchmarks/training.py [--layers 6 --width 384 --pairs 64 --length 64]

Both sides train the same architecture on the same random ids, in float32 on a processor
and bfloat16 elsewhere, and take turns; figures are medians.
"""

import argparse
import importlib.metadata
import os
import platform
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from nomic_jax.backend import default_dtype
from nomic_jax.batch import PackedTexts, PairBatch, Tokens
from nomic_jax.checkpoints.folder import save_model
from nomic_jax.checkpoints.reader import read_checkpoint
from nomic_jax.checkpoints.writer import write_checkpoint
from nomic_jax.config import EmbeddingConfig, ModelConfig
from nomic_jax.model.encoder import NomicBert
from nomic_jax.training.checkpoints import Checkpoints
from nomic_jax.training.losses import ContrastiveLoss
from nomic_jax.training.optimizer import OptimizerConfig, make_optimizer
from nomic_jax.training.placement import Placement
from nomic_jax.training.steps import (
    BiEncoder,
    TrainState,
    contrastive_objective,
    make_update,
)

TEMPERATURE = 0.05
PARTS = 4  # microbatches of the cached step
ADAMW = OptimizerConfig(
    learning_rate=1e-4, weight_decay=0.01, warmup_steps=0, schedule="linear"
)
STEPS = 1000  # of the schedule; no more than these are taken


def model_config(layers: int, width: int) -> ModelConfig:
    """The published architecture at another size."""
    return ModelConfig(
        num_layers=layers,
        width=width,
        num_heads=width // 64,
        mlp_width=4 * width,
        trained_positions=2048,
        vocab_size=30528,
        type_vocab_size=2,
        layer_norm_epsilon=1e-12,
        rope_base=1000.0,
    )


def drawn(pairs: int, length: int) -> np.ndarray:
    """Queries above their documents, ids that are no special token."""
    rng = np.random.default_rng(0)
    return rng.integers(1000, 30000, size=(2 * pairs, length), dtype=np.int32)


def pair_batch(ids: np.ndarray) -> PairBatch:
    """Texts in rows of their own, queries first."""
    rows, length = ids.shape
    pairs = rows // 2
    numbers = np.arange(rows, dtype=np.int32)
    return PairBatch(
        texts=PackedTexts(
            Tokens(ids, np.ones_like(ids)), np.full((rows, 1), length, np.int32)
        ),
        slots=numbers[None],
        query_places=numbers[:pairs],
        document_places=numbers[pairs:],
        document_ids=np.stack([numbers, numbers], axis=-1)[None],
    )


def training(config: ModelConfig, rows: int | None):
    """A fresh state, and the compiled step that takes so many rows at once."""
    embedding = EmbeddingConfig(pooling="mean", layer_norm=False, max_length=2048)
    loss = ContrastiveLoss(temperature=TEMPERATURE)
    optimizer = make_optimizer(ADAMW, STEPS)
    dtype = jnp.dtype(default_dtype())
    fresh = jax.jit(lambda: NomicBert(config, rngs=nnx.Rngs(0), dtype=dtype))()
    state = TrainState.fresh(BiEncoder.of(fresh, loss), optimizer)
    placement = Placement(most_rows=rows)
    objective = contrastive_objective(embedding, loss, placement)
    return state, make_update(objective, optimizer, seed=0)


class Ours:
    """Steps of this project, one after another."""

    def __init__(self, config: ModelConfig, batch: PairBatch, rows: int | None):
        """Compile, and take the first step."""
        self.state, self.update = training(config, rows)
        self.batch = jax.device_put(batch)
        self()

    def __call__(self) -> None:
        """Take a step and wait for it."""
        self.state, metrics = self.update(self.state, self.batch)
        jax.block_until_ready((self.state, metrics))


class Theirs:
    """Steps of sentence-transformers on transformers' NomicBert."""

    def __init__(self, folder: Path, ids: np.ndarray, rows: int | None):
        """Load the model, and take the first step."""
        import torch
        from sentence_transformers import SentenceTransformer, losses, models

        self.torch = torch
        gpu = torch.cuda.is_available()
        device = "cuda" if gpu else "cpu"
        transformer = models.Transformer(str(folder))
        pooling = models.Pooling(transformer.get_embedding_dimension(), "mean")
        model = SentenceTransformer(modules=[transformer, pooling], device=device)
        model.train()
        scale = 1 / TEMPERATURE
        if rows is None:
            loss = losses.MultipleNegativesRankingLoss(model, scale=scale)
        else:
            loss = losses.CachedMultipleNegativesRankingLoss(
                model, scale=scale, mini_batch_size=rows
            )
        self.loss = loss
        self.optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)
        self.autocast = torch.autocast(device, torch.bfloat16, enabled=gpu)
        given = torch.from_numpy(ids.astype(np.int64)).to(device)
        mask = torch.ones_like(given)
        half = len(given) // 2
        self.features = [
            {"input_ids": given[part], "attention_mask": mask[part]}
            for part in (slice(half), slice(half, None))
        ]
        self()

    def __call__(self) -> None:
        """Take a step and wait for it."""
        self.optimizer.zero_grad()
        with self.autocast:
            value = self.loss([dict(part) for part in self.features], None)
        value.backward()
        self.optimizer.step()
        if self.torch.cuda.is_available():
            self.torch.cuda.synchronize()


def seconds(step: Callable[[], None]) -> float:
    """Time one step."""
    began = time.perf_counter()
    step()
    return time.perf_counter() - began


def measure_cache(config: ModelConfig, ids: np.ndarray, rounds: int) -> list[str]:
    """Plain and microbatched steps at equal tokens, on both sides in turns."""
    rows = len(ids) // PARTS
    with tempfile.TemporaryDirectory() as name:
        work = Path(name)
        model = NomicBert(config, rngs=nnx.Rngs(0))
        save_model(model, config, None, None, work / "ours")
        checkpoint = read_checkpoint(work / "ours")
        write_checkpoint(checkpoint, work / "theirs", layout="transformers")
        batch = pair_batch(ids)
        runs: dict[str, Callable[[], None]] = {
            "plain": Ours(config, batch, None),
            "cached": Ours(config, batch, rows),
            "torch plain": Theirs(work / "theirs", ids, None),
            # Theirs counts the rows of a column, ours those of both.
            "torch cached": Theirs(work / "theirs", ids, rows // 2),
        }
        taken: dict[str, list[float]] = {name: [] for name in runs}
        for number in range(rounds):
            order = list(runs) if number % 2 == 0 else list(reversed(runs))
            for name in order:
                taken[name].append(seconds(runs[name]))
    middle = {name: statistics.median(times) for name, times in taken.items()}

    def ratio(above: str, below: str) -> float:
        return statistics.median(
            a / b for a, b in zip(taken[above], taken[below], strict=True)
        )

    return [
        "| step | nomic_jax, s | sentence-transformers, s | theirs / ours |",
        "|---|---|---|---|",
        f"| plain | {middle['plain']:.3g} | {middle['torch plain']:.3g} | "
        f"{ratio('torch plain', 'plain'):.2f} |",
        f"| in {PARTS} microbatches | {middle['cached']:.3g} | "
        f"{middle['torch cached']:.3g} | {ratio('torch cached', 'cached'):.2f} |",
        f"| cost of microbatches | {ratio('cached', 'plain'):.2f} times | "
        f"{ratio('torch cached', 'torch plain'):.2f} times | |",
    ]


def measure_loop(config: ModelConfig, steps: int, save_every: int) -> list[str]:
    """Take steps that hardly compute, and save the state every few of them."""
    batch = jax.device_put(pair_batch(drawn(4, 16)))
    state, update = training(config, None)
    size = sum(leaf.nbytes for leaf in jax.tree.leaves(state))
    calls, saves = [], []
    with (
        tempfile.TemporaryDirectory() as name,
        Checkpoints(Path(name) / "stage", keep=2) as checkpoints,
    ):
        for step in range(1, steps + 1):
            if step == 3:  # compiled and warm
                began = time.perf_counter()
            called = time.perf_counter()
            state, metrics = update(state, batch)
            calls.append(time.perf_counter() - called)
            # Waited for, so that the next call does not queue behind this one.
            jax.block_until_ready((state, metrics))
            if step % save_every == 0:
                saved = time.perf_counter()
                checkpoints.save(step, state)
                saves.append(time.perf_counter() - saved)
        whole = time.perf_counter() - began
    held = statistics.median(saves)
    step_seconds = (whole - sum(saves)) / (steps - 2)
    return [
        f"State of {size / 2**30:.2f} GiB in {len(jax.tree.leaves(state))} arrays, "
        f"{steps} steps of {step_seconds:.3g} s, a checkpoint every {save_every}:",
        "",
        f"* the call of a compiled step returns after "
        f"{statistics.median(calls[2:]) * 1e3:.2f} ms (median)",
        f"* a save holds the loop up for {held * 1e3:.0f} ms (median of "
        f"{len(saves)}, the longest {max(saves) * 1e3:.0f}), "
        f"{sum(saves) / whole:.2%} of the time",
    ]


def environment() -> list[str]:
    """The machine and what was compared."""
    packages = ("jax", "flax", "optax", "orbax-checkpoint", "torch", "transformers")
    versions = [f"{name} {importlib.metadata.version(name)}" for name in packages]
    versions.append(
        f"sentence-transformers {importlib.metadata.version('sentence-transformers')}"
    )
    device = jax.devices()[0].device_kind
    return [
        f"{platform.machine()}, {os.cpu_count()} cores, {device}; load "
        f"{os.getloadavg()[0]:.1f}; Python {platform.python_version()}, "
        f"{', '.join(versions)}"
    ]


def main() -> None:
    """Measure and print Markdown."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--layers", type=int, default=6)
    parser.add_argument("--width", type=int, default=384, help="a multiple of 64")
    parser.add_argument("--pairs", type=int, default=64, help="of a batch")
    parser.add_argument("--length", type=int, default=64, help="tokens of a text")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--steps", type=int, default=80, help="of the loop")
    parser.add_argument("--save-every", type=int, default=20)
    options = parser.parse_args()
    print(*environment(), sep="\n")
    config = model_config(options.layers, options.width)
    ids = drawn(options.pairs, options.length)
    print(
        f"\n{options.layers} layers of width {options.width}, {options.pairs} pairs of "
        f"texts of {options.length} tokens, medians of {options.rounds} rounds:\n"
    )
    print(*measure_cache(config, ids, options.rounds), sep="\n", flush=True)
    print()
    base = model_config(12, 768)
    print(*measure_loop(base, options.steps, options.save_every), sep="\n")


if __name__ == "__main__":
    main()
