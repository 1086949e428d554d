"""Training steps beside PyTorch: MLM, contrastive, GradCache, packing, experts, input.

    python benchmarks/train.py [--parts mlm pairs moe input] [--sizes quickstart base]
        [--pairs 'FOLDER/*.jsonl.gz' --tokenizer FOLDER]
    python benchmarks/train.py --parts examples --examples FILE.jsonl --tokenizer FOLDER

Both sides train the same architecture on the same batches, in float32 on a processor
and bfloat16 elsewhere, and take turns. Random ids where only sizes matter; where the
lengths of texts do, the pairs of the files, or else the docstrings of this Python. The
sides of an MLM step have their best number of rows at once, PyTorch of four;
transformers' head sees the masked tokens alone, as here.
"""

import argparse
import tempfile
from pathlib import Path
from typing import Any

from nomic_jax.cli import keep_freed_memory

PARTS = ("mlm", "moe", "pairs", "input")
EXAMPLES = "examples"  # of a task, which only a file has
SIZES = ("tiny", "quickstart", "small", "base")


def options_of(accelerated: bool) -> argparse.Namespace:
    """Read the command line; what is large depends on the device."""
    parser = argparse.ArgumentParser(description=__doc__)
    number = {"type": int}
    parser.add_argument("--parts", nargs="+", choices=(*PARTS, EXAMPLES), default=PARTS)
    parser.add_argument(
        "--sizes",
        nargs="+",
        choices=SIZES,
        default=("base",) if accelerated else ("quickstart", "base"),
        help="of the MLM step's model",
    )
    many = 65_536 if accelerated else 2048
    parser.add_argument("--tokens", **number, default=many, help="of the MLM's batch")
    parser.add_argument("--length", **number, help="of its rows; none: by size")
    parser.add_argument("--rounds", **number, default=10 if accelerated else 3)
    parser.add_argument("--alone", action="store_true", help="without PyTorch")
    parser.add_argument(
        "--compile", action=argparse.BooleanOptionalAction, default=True
    )
    parser.add_argument("--pairs", default="python", help="a pattern of JSONL files")
    parser.add_argument("--tokenizer", type=Path, help="a folder; none: one is trained")
    parser.add_argument("--limit", **number, default=4000, help="pairs of a source")
    parser.add_argument("--text-length", **number, default=512, help="tokens, at most")
    small = "base" if accelerated else "small"
    parser.add_argument("--pair-size", choices=SIZES, default=small)
    parser.add_argument("--moe-size", choices=SIZES, default=small)
    parser.add_argument("--batch", **number, default=256 if accelerated else 32)
    parser.add_argument("--batches", **number, default=2, help="of pairs, in each turn")
    parser.add_argument("--steps", **number, default=24, help="of the loop")
    parser.add_argument("--examples", help="sentences and labels, as for `glue`")
    options = parser.parse_args()
    if EXAMPLES in options.parts and not (options.examples and options.tokenizer):
        parser.error("--parts examples needs --examples FILE and --tokenizer FOLDER")
    options.what = "docstrings" if options.pairs == "python" else "real pairs"
    return options


def prepared(folder: Path, options: argparse.Namespace) -> None:
    """Tokenise pairs as a prepare stage does."""
    from nomic_jax.data import PrepareConfig, TextTokenizer
    from nomic_jax.data.store import prepare_corpus

    named: Any = options.tokenizer
    prepare_corpus(
        PrepareConfig(
            pairs=options.pairs,
            limit=options.limit,
            held_out=100,
            row_length=128,
            query_length=options.text_length,
            document_length=options.text_length,
        ),
        folder,
        tokenizer=None if named is None else TextTokenizer.from_folder(named),
    )


def main() -> None:
    """Measure the parts one after another, and record each."""
    keep_freed_memory()  # as `train.py` does, before JAX begins; PyTorch has it too

    import jax
    import train_parts as parts
    from environment import environment
    from record import record

    options = options_of(jax.default_backend() != "cpu")
    given = environment()
    if "mlm" in options.parts:
        for size in options.sizes:
            record("train", parts.mlm(size, options, given), given)
    if "moe" in options.parts:
        record("train", parts.moe(options, given), given)
    if EXAMPLES in options.parts:
        record("train", parts.examples(options, given), given)
    if {"pairs", "input"} & set(options.parts):
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            prepared(folder, options)
            if "pairs" in options.parts:
                record("train", parts.pairs(folder, options, given), given)
            if "input" in options.parts:
                record("train", parts.waiting(folder, options), given)


if __name__ == "__main__":
    main()
