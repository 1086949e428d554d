"""From what a user names, a folder or a hub id, to a folder."""

import re
from pathlib import Path

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
