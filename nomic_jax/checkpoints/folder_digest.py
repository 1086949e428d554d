"""A digest of a model's folder: it changes when a file that is read from there does."""

import hashlib
from pathlib import Path

from nomic_jax.checkpoints.hub import BIN, FILES, SAFETENSORS
from nomic_jax.checkpoints.reader import FINGERPRINT_FILE
from nomic_jax.storage import checksum_of


def folder_digest(folder: Path) -> str:
    """Digest the weights, configs and tokenizer of a folder, wherever it lies.

    Of what else lies there, such as notes or `verify`'s texts, nothing is said.

    Args:
        folder: as `resolve` gives it.

    Returns:
        32 hex digits of BLAKE2b over the names and contents of the files.
    """
    patterns = (*FILES, *SAFETENSORS, *BIN)
    files = {path for pattern in patterns for path in folder.glob(pattern)}
    digest = hashlib.blake2b(digest_size=16)
    for path in sorted(files):
        if path.is_file() and path.name != FINGERPRINT_FILE:
            name = path.relative_to(folder).as_posix()
            digest.update(f"{name}\0{checksum_of(path)}\n".encode())
    return digest.hexdigest()
