"""The parts of `train.py`: each measures its sides in turns and returns rows."""

import argparse
import dataclasses
import gc
import statistics
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import train_ours as ours
from flax import nnx
from record import Row
from turns import in_turns, median_ratio

from nomic_jax import ModelConfig
from nomic_jax.data import TextTokenizer
from nomic_jax.data.store import open_stores
from nomic_jax.distributed import default_dtype
from nomic_jax.model import NomicBert
from nomic_jax.training import (
    ContrastiveStage,
    LoopConfig,
    OptimizerConfig,
    PairData,
    RunFolder,
    flops_per_token,
    forward_flops,
    peak_flops,
    read_metrics,
    train_contrastive,
)

# Layers and width; rows and tokens of a row of the MLM step.
SIZES = {"tiny": (1, 64), "quickstart": (3, 192), "small": (6, 384), "base": (12, 768)}
GOALS = {"quickstart": "train-cpu-quickstart", "base": "train-cpu-base"}
# Tokens of a row on a processor; an accelerator gets 2,048.
ROW = {"tiny": 128, "quickstart": 128, "small": 512, "base": 512}
CACHED = 4  # microbatches of the step with GradCache


def rate_of(given: Mapping[str, Any], side: str) -> tuple[str, float] | None:
    """The rate that a share is of: a GPU's peak, or a processor's products."""
    peak = peak_flops(given["devices"][0])
    if peak is not None:
        return "MFU", peak
    if side not in given["matmul"]:
        return None
    return "of products' rate", given["matmul"][side]["gflops"] * 1e9


def shares(given: Mapping[str, Any], flops: float, seconds: Mapping[str, float]):
    """Say which share of the rate a side's model FLOPs are."""
    found = {}
    for side, taken in seconds.items():
        rate = rate_of(given, side)
        if rate is not None:
            words = rate[0] if side == "jax" else f"{rate[0]}, beside"
            found[words] = flops / taken / rate[1]
    return found


def best(
    make: Callable[[int], Callable[[], object]], choices: Sequence[int]
) -> tuple[int, Callable[[], object]]:
    """Time three steps of each choice behind its first, and make the fastest again."""
    seconds = {}
    for choice in choices:
        step = make(choice)
        (taken,) = in_turns({"": step}, 3).values()
        seconds[choice] = min(taken)
        del step
        gc.collect()
    chosen = min(seconds, key=lambda choice: seconds[choice])
    return chosen, make(chosen)


def fractions(rows: int, count: int) -> list[int]:
    """All rows at once, half of them, and so on."""
    return [max(1, rows >> n) for n in range(min(count, rows.bit_length()))]


def mlm(size: str, options: argparse.Namespace, given: Mapping[str, Any]) -> list[Row]:
    """An MLM step beside transformers, eager and compiled."""
    accelerated = jax.default_backend() != "cpu"
    length = options.length or (2048 if accelerated else ROW[size])
    rows = max(1, options.tokens // length)
    config = ours.nomic_bert(*SIZES[size], head="mlm")
    batch = ours.masked_rows(rows, length)
    flops = flops_per_token(config, batch) * rows * length
    at_once, step = best(
        lambda rows_at_once: ours.mlm_step(
            config, batch, None if rows_at_once == rows else rows_at_once
        ),
        fractions(rows, 4),
    )
    sides: dict[str, Any] = {"jax": step}
    said = {"": f"{at_once} rows at once"}
    if not options.alone:
        import train_theirs as theirs

        for compiled in (False, True)[: 1 + options.compile]:
            name = "torch.compile" if compiled else "torch"
            try:
                chosen, sides[name] = best(
                    lambda at_once, compiled=compiled: theirs.Mlm(
                        config, batch, at_once, compiled=compiled
                    ),
                    # Compiling takes a minute: the eager best, and all at once.
                    sorted({chosen, rows}) if compiled else fractions(rows, 4),
                )
                said[name] = f"{chosen} rows at once"
            except Exception as error:  # no compiler here, or no memory
                said[name] = f"{type(error).__name__}: {str(error).splitlines()[0]}"
    seconds = in_turns(sides, options.rounds)
    middle = {name: statistics.median(taken) for name, taken in seconds.items()}
    tokens = rows * length
    goal = "mlm-h200" if accelerated and size == "base" else GOALS.get(size)
    work = f"MLM step, {size}"
    found = []
    for name in ("torch", "torch.compile"):
        if name not in said and not options.alone:
            continue
        taken = middle.get(name)
        beside = "transformers" + (", torch.compile" if name != "torch" else "")
        share = shares(given, flops, {"jax": middle["jax"]})
        if taken is not None:
            share |= shares(given, flops, {"torch": taken})
        counts = goal is not None and (not accelerated or name != "torch")
        found.append(
            Row(
                work=work,
                detail=f"{rows} x {length} tokens",
                ours=tokens / middle["jax"],
                theirs=taken and tokens / taken,
                unit="tokens/s",
                beside=beside,
                ratio=taken and median_ratio(seconds[name], seconds["jax"]),
                goal=goal if counts else None,
                note=f"{said['']}; beside {said.get(name, 'not measured')}",
                extra={
                    **share,
                    "memory, GiB": sides["jax"].memory(),
                    "memory beside, GiB": sides[name].memory() if taken else None,
                },
            )
        )
        if options.alone:
            return found
    return found


def pairs(
    folder: Path, options: argparse.Namespace, given: Mapping[str, Any]
) -> list[Row]:
    """A contrastive step on real pairs: packed, padded, cached, and PyTorch's."""
    config = ours.nomic_bert(*SIZES[options.pair_size])
    batch_at = ours.real_pairs(folder, pairs=options.batch, length=options.text_length)
    given_batches = [batch_at(step) for step in range(options.batches)]
    packed = [jax.device_put(batch.arrays) for batch in given_batches]
    apart = [ours.sides_apart(batch.arrays) for batch in given_batches]
    rows = [batch.texts.tokens.ids.shape[0] for batch in packed]
    steps = {
        "packed": ours.pair_step(config, packed[0], None),
        "cached": ours.pair_step(config, packed[0], -(-max(rows) // CACHED)),
        "padded": ours.padded_step(config, apart[0]),
    }

    def all_of(step: ours.Ours, batches: Sequence[Any]) -> Callable[[], None]:
        placed = [jax.device_put(batch) for batch in batches]
        return lambda: [step(batch) for batch in placed] and None

    sides: dict[str, Callable[[], object]] = {
        name: all_of(step, apart if name == "padded" else packed)
        for name, step in steps.items()
    }
    if not options.alone:
        import train_theirs as theirs

        temperature = ours.LOSS.temperature
        sides["torch"] = theirs.Pairs(config, apart, temperature=temperature)
        sides["torch cached"] = theirs.Pairs(
            config, apart, temperature=temperature, rows=options.batch // CACHED
        )
    seconds = in_turns(sides, options.rounds)
    tokens = sum(batch.num_tokens for batch in given_batches)
    flops = sum(
        flops_per_token(config, batch.arrays) * batch.num_tokens
        for batch in given_batches
    )
    columns = sum(batch.num_columns for batch in given_batches)
    widths = sum(side.ids.size for sides_ in apart for side in sides_)
    detail = f"{options.pair_size}, {options.batch} pairs, {options.what}"

    def row(work: str, name: str, other: str, beside: str, **fields: Any) -> Row:
        middle = {n: statistics.median(seconds[n]) for n in (name, other)}
        return Row(
            work=work,
            detail=detail,
            ours=tokens / middle[name],
            theirs=tokens / middle[other],
            unit="tokens/s",
            beside=beside,
            **fields,
        )

    library = "sentence-transformers"
    found = [
        row(
            "contrastive step, packed",
            "packed",
            "padded",
            "nomic_jax, padded to the longest of a side",
            ratio=median_ratio(seconds["padded"], seconds["packed"]),
            goal="contrastive-packed",
            note=f"of the columns {1 - tokens / columns:.0%} are padding, beside it "
            f"{1 - tokens / widths:.0%}",
            extra={
                **shares(given, flops, {"jax": statistics.median(seconds["packed"])}),
                "memory, GiB": steps["packed"].memory(),
            },
        ),
        row(
            "contrastive step with GradCache, cost",
            "cached",
            "packed",
            "nomic_jax, all rows at once",
            ratio=median_ratio(seconds["cached"], seconds["packed"]),
            goal="gradcache",
            note=f"{CACHED} microbatches; the ratio is that of the seconds",
            extra={"memory, GiB": steps["cached"].memory()},
        ),
    ]
    if not options.alone:
        for name, other in (("packed", "torch"), ("cached", "torch cached")):
            found.append(
                row(
                    f"contrastive step, {name}",
                    name,
                    other,
                    library + (", GradCache" if name == "cached" else ""),
                    ratio=median_ratio(seconds[other], seconds[name]),
                )
            )
    return found


def examples(options: argparse.Namespace, given: Mapping[str, Any]) -> list[Row]:
    """A classifier's step: texts packed, and each in a row as long as the longest."""
    batches = ours.labelled(options.examples, options.tokenizer)
    steps = range(4 * options.batches)  # a task's batches are small
    packed = [batches(step) for step in steps]
    apart = [ours.rows_apart(batches, step) for step in steps]
    config = ours.nomic_bert(*SIZES["base"])
    sides = {
        "packed": ours.label_step(config, packed[0].arrays),
        "padded": ours.label_step(config, apart[0]),
    }
    placed = {
        "packed": [jax.device_put(batch.arrays) for batch in packed],
        "padded": [jax.device_put(batch) for batch in apart],
    }
    seconds = in_turns(
        {
            name: lambda name=name: [sides[name](batch) for batch in placed[name]]
            for name in sides
        },
        options.rounds,
    )
    tokens = sum(batch.num_tokens for batch in packed)
    columns = sum(batch.num_columns for batch in packed)
    widths = sum(batch.tokens.ids.size for batch in apart)
    middle = {name: statistics.median(taken) for name, taken in seconds.items()}
    flops = sum(
        flops_per_token(config, batch.arrays) * batch.num_tokens for batch in packed
    )
    return [
        Row(
            work="classification step, packed",
            detail=f"base, {batches.batch_size} examples of "
            f"{Path(options.examples).stem}",
            ours=tokens / middle["packed"],
            theirs=tokens / middle["padded"],
            unit="tokens/s",
            beside="nomic_jax, padded to the longest of the batch",
            ratio=median_ratio(seconds["padded"], seconds["packed"]),
            note=f"of the columns {1 - tokens / columns:.0%} are padding, beside it "
            f"{1 - tokens / widths:.0%}",
            extra=shares(given, flops, {"jax": middle["packed"]}),
        )
    ]


def moe(options: argparse.Namespace, given: Mapping[str, Any]) -> list[Row]:
    """A contrastive step with experts beside one of as many active parameters."""
    accelerated = jax.default_backend() != "cpu"
    layers, width = SIZES[options.moe_size]
    fields = {"activation": "gelu", "bias": True}
    layers += layers % 2
    experts = ours.nomic_bert(layers, width, num_experts=8, **fields)
    # Every second layer has two of eight experts for a token.
    dense = dataclasses.replace(experts, num_experts=0, mlp_width=6 * width)
    length, count = (512, 128) if accelerated else (128, 8)
    batch = ours.equal_pairs(count // 2 if accelerated else count, length)
    steps = {
        name: ours.pair_step(config, batch, None, "dots" if accelerated else "none")
        for name, config in (("experts", experts), ("dense", dense))
    }
    seconds = in_turns(steps, options.rounds)
    lengths = np.asarray(batch.texts.slot_lengths).reshape(-1)
    tokens = int(lengths.sum())

    def utilisation(name: str, config: ModelConfig) -> tuple[float, dict[str, float]]:
        flops = 3 * forward_flops(config, lengths)
        taken = statistics.median(seconds[name])
        return flops, shares(given, flops, {"jax": taken})

    (of_experts, share), (of_dense, other) = (
        utilisation("experts", experts),
        utilisation("dense", dense),
    )
    ratio = median_ratio(seconds["dense"], seconds["experts"]) * of_experts / of_dense
    return [
        Row(
            work="contrastive step with experts",
            detail=f"{options.moe_size}, {len(lengths)} x {length} tokens",
            ours=tokens / statistics.median(seconds["experts"]),
            theirs=tokens / statistics.median(seconds["dense"]),
            unit="tokens/s",
            beside="a dense model of as many active parameters",
            ratio=ratio,
            goal="experts-h200" if accelerated else None,
            note="the ratio is of the model's FLOP/s; transformers has no such model",
            extra={
                **share,
                **{f"{words}, dense": value for words, value in other.items()},
                "memory, GiB": steps["experts"].memory(),
            },
        )
    ]


def waiting(folder: Path, options: argparse.Namespace) -> list[Row]:
    """The loop itself, on real pairs, tokenised before as a prepare stage does."""
    stage = ContrastiveStage(
        name="bench",
        data=PairData(
            stores=str(folder / "pairs"),
            query_length=options.text_length,
            document_length=options.text_length,
        ),
        loss=ours.LOSS,
        optimizer=OptimizerConfig(
            learning_rate=1e-4, weight_decay=0.01, warmup_steps=0, schedule="linear"
        ),
        train=LoopConfig(
            steps=options.steps,
            batch_size=options.batch,
            seed=0,
            log_every=1,
            save_every=options.steps,
        ),
    )
    config = ours.nomic_bert(*SIZES[options.pair_size])
    with tempfile.TemporaryDirectory() as name:
        run = RunFolder.open(Path(name, "bench"), {"kind": "contrastive"})
        train_contrastive(
            stage,
            NomicBert(config, rngs=nnx.Rngs(0), dtype=jnp.dtype(default_dtype())),
            TextTokenizer.from_folder(folder),
            ours.EMBEDDING,
            open_stores(stage.data.stores),
            run,
        )
        lines = read_metrics(run.metrics_file)
    # The first steps of each shape compile.
    later = lines[len(lines) // 2 :]
    wait = statistics.mean(line["input_wait"] for line in later)
    return [
        Row(
            work="share of the loop's time that waits for input",
            detail=f"{options.pair_size}, {options.batch} pairs, {options.what}",
            ours=wait,
            unit="",
            goal="input-wait",
            note=f"{len(later)} steps; text was tokenised before, as `prepare` does",
        )
    ]
