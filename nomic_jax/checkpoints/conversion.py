"""Convert a checkpoint from one layout into another, in its own dtypes, bit for bit."""

import dataclasses
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Literal

from tyro.conf import Positional, arg


@dataclasses.dataclass(frozen=True)
class Conversion:
    """Convert a model folder into another layout, bit for bit, or say why not."""

    source: Positional[Annotated[str, arg(metavar="SOURCE")]]
    """A folder of this project, Nomic, transformers or sentence-transformers, or a hub
    id."""
    dest: Positional[Annotated[str, arg(metavar="DEST")]]
    """The folder to write; it must not exist."""
    to: Literal["jax", "nomic", "transformers", "sentence-transformers"]
    """The layout to write."""
    embedding: str | None = None
    """Whose pooling, layer norm and prompts the model has, such as
    nomic-embed-text-v1.5; by default what the source's files say, else its name."""


def convert(conversion: Conversion) -> str:
    """Convert; nothing is written unless all of the source is sound.

    Returns:
        One line that says what was written, with which embedding and why.

    Raises:
        ValueError: the source is not a whole model, or the destination exists.
    """
    from nomic_jax.checkpoints.embedding import describe, embedding_for
    from nomic_jax.checkpoints.hub import resolve
    from nomic_jax.checkpoints.reader import FINGERPRINT_FILE, read_checkpoint
    from nomic_jax.checkpoints.sentence_transformers import CardFacts
    from nomic_jax.checkpoints.writer import refuse_existing, write_checkpoint

    destination = Path(conversion.dest).expanduser()
    refuse_existing(destination)
    checkpoint = read_checkpoint(resolve(conversion.source))
    chosen = embedding_for(
        conversion.source, checkpoint, published=conversion.embedding
    )
    # The embeddings of a few texts stay what they are where nothing about them changes.
    fingerprint = checkpoint.folder / FINGERPRINT_FILE
    kept = fingerprint.is_file() and chosen.config == checkpoint.embedding
    on_hub = not Path(conversion.source).expanduser().exists()
    write_checkpoint(
        checkpoint,
        destination,
        layout=conversion.to,
        embedding=chosen.config,
        facts=CardFacts(base_model=conversion.source if on_hub else None),
        extra_files=[fingerprint] if kept else [],
    )
    return (
        f"wrote {destination} ({conversion.to}); embedding: "
        f"{describe(chosen.config)} ({chosen.reason})"
    )


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line.

    Args:
        arguments: those of the process by default.

    Returns:
        The exit status: 0 done, 2 the input was wrong (told on standard error).
    """
    import tyro

    conversion = tyro.cli(Conversion, args=arguments, prog="convert_torch_weights.py")
    try:
        print(convert(conversion))
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0
