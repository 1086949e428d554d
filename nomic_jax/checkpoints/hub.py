"""Find a model: from a folder or a hub id to a folder, and a digest of its files.

The digest changes when any file changes that is read from the folder.
"""

import hashlib
import re
from pathlib import Path

from nomic_jax.checkpoints.reader import FINGERPRINT_FILE
from nomic_jax.storage import checksum_of

# Exactly what the reader, the tokenizer and `verify` look at, in a folder and in those
# that the modules of sentence-transformers have of their own.
FILES = [
    *("config.json", "embedding.json", "fingerprint.json", "modules.json"),
    *("sentence_bert_config.json", "config_sentence_transformers.json"),
    *("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json"),
    *("vocab.txt", "added_tokens.json"),
    *("*_Transformer/*.json", "*_Transformer/vocab.txt", "*_Pooling/config.json"),
    *("*_LayerNorm/*", "*_Dense/*", "projection/*"),
]
SAFETENSORS = ["model*.safetensors", "model.safetensors.index.json"]
SAFETENSORS += [f"*_Transformer/{name}" for name in SAFETENSORS]
BIN = ["pytorch_model*.bin", "pytorch_model.bin.index.json"]
BIN += [f"*_Transformer/{name}" for name in BIN]


def resolve(source: str | Path, *, weights: bool = True) -> Path:
    """Return the folder that a source names, fetched from the hub where it is an id.

    Args:
        source: a folder, or an id such as `nomic-ai/nomic-embed-text-v1.5`; what was
            fetched before is found offline too.
        weights: fetch the weights too; without them, what a tokenizer needs is there.

    Raises:
        ValueError: it is neither, or the hub cannot be reached.
    """
    folder = Path(source).expanduser()
    if folder.is_dir():
        return folder
    if folder.exists():
        raise ValueError(f"{source} is a file; a model folder or a hub id is needed")
    if not re.fullmatch(r"[\w.-]+/[\w.-]+", str(source)) or str(source).startswith("."):
        raise ValueError(
            f"{source} is not a folder, nor a hub id (OWNER/NAME, such as "
            "nomic-ai/nomic-embed-text-v1.5)"
        )
    import huggingface_hub
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    def fetch(patterns: list[str]) -> Path:
        return Path(
            huggingface_hub.snapshot_download(
                str(source), allow_patterns=FILES + patterns
            )
        )

    try:
        fetched = fetch(SAFETENSORS if weights else [])
        places = SAFETENSORS[::2]  # the weights' own, without their indices
        if weights and not any(any(fetched.glob(place)) for place in places):
            fetched = fetch(BIN)
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError, ValueError) as error:
        why = str(error).strip().splitlines() or [type(error).__name__]
        raise ValueError(
            f"{source} is not a folder here, and the hub did not give it: {why[0]}"
        ) from None
    return fetched


def folder_digest(folder: Path) -> str:
    """Digest the weights, configs and tokenizer of a folder, wherever it is.

    Of what else is there, such as notes or `verify`'s texts, nothing is said.

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
