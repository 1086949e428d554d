"""The command `nomic-jax embed`."""

import dataclasses
from typing import Literal

from nomic_jax.cli.options import Attention, Dtype, File, Fraction, Model, Number


@dataclasses.dataclass(frozen=True)
class Embed:
    """Embed one text a line, of standard input or of a file, as unit vectors."""

    model: Model  # folder or hub id
    task: str  # whose prefix goes before each text: search_document, clustering, ...
    input: File = None  # .jsonl, or one text a line; None: standard input
    output: File = None  # .npy, .jsonl or .parquet; None: .npy to standard output
    column: str = "text"  # of the text in JSON Lines
    dim: Number = None  # entries of a Matryoshka vector; None: the full width
    max_length: Number = None  # tokens of the longest text; None: the model's
    rotary_scaling_factor: Fraction = None  # of Dynamic NTK, for longer texts
    on_too_long: Literal["cut", "error"] = "cut"  # what texts over the maximum meet
    dtype: Dtype = None  # of matmuls; None: float32 on CPU, bfloat16 elsewhere
    attention: Attention = "auto"  # backend; see docs/attention.md


def embed(options: Embed) -> int:
    """Run `nomic-jax embed`."""
    from nomic_jax.inference.vector_files import check_output, read_input, write_vectors

    check_output(options.output)
    texts = read_input(options.input, column=options.column)

    from nomic_jax.inference.embedder import Embedder

    embedder = Embedder.from_pretrained(
        options.model,
        max_length=options.max_length,
        rotary_scaling_factor=options.rotary_scaling_factor,
        dtype=options.dtype,
        attention=options.attention,
    )
    vectors = embedder.encode(
        texts,
        task=options.task,
        dim=options.dim,
        on_too_long=options.on_too_long,
        progress=True,
    )
    write_vectors(options.output, texts, vectors)
    return 0
