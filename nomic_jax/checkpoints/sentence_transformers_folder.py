"""Read the sentence-transformers layout: modules.json, pooling, prompts, lengths."""

from pathlib import Path
from typing import Any, get_args

import numpy as np

from nomic_jax.checkpoints.dense_folder import read_dense
from nomic_jax.checkpoints.families import family_of
from nomic_jax.checkpoints.json_files import read_json, read_json_list
from nomic_jax.checkpoints.problems import CheckpointError
from nomic_jax.checkpoints.tensor_files import open_tensors
from nomic_jax.config import NOMIC_PROMPTS, EmbeddingConfig, ModelConfig, Pooling
from nomic_jax.model.projection import Projection

# The names by which the library's encode_query and encode_document find their prompts.
ALIASES = {
    "query": "search_query",
    "document": "search_document",
    "passage": "search_document",
}
# How the releases before version 6 say a pooling.
SWITCHES = {
    "cls": "pooling_mode_cls_token",
    "mean": "pooling_mode_mean_tokens",
    "max": "pooling_mode_max_tokens",
    "mean_sqrt_len_tokens": "pooling_mode_mean_sqrt_len_tokens",
    "last": "pooling_mode_lasttoken",
}
SETTINGS = "config_sentence_transformers.json"


def transformer_folder(folder: Path) -> Path:
    """Return where the encoder lies: the folder itself, or the one its list names.

    Raises:
        CheckpointError: modules.json does not begin with a transformer.
    """
    modules = read_json_list(folder / "modules.json")
    if not modules or _kind(modules[0]) != "Transformer":
        raise CheckpointError(
            f"{folder}/modules.json does not begin with a Transformer"
        )
    return folder / str(modules[0].get("path", ""))


def tokenizer_folder(folder: Path) -> Path:
    """Return where the tokenizer lies: beside the encoder, else in the folder itself.

    Raises:
        CheckpointError: modules.json does not begin with a transformer.
    """
    if not (folder / "modules.json").is_file():
        return folder
    inside = transformer_folder(folder)
    files = ("tokenizer.json", "vocab.txt")
    return inside if any((inside / name).is_file() for name in files) else folder


def read_embedding(
    folder: Path, config: ModelConfig
) -> tuple[EmbeddingConfig, Projection | None]:
    """Read how a sentence-transformers folder makes its vectors.

    A folder without prompts gets those of `default_prompts`, as does one with that
    library's own empty ones; where only queries or documents have one, the others get
    theirs. The length is cut to the trained positions where the model cannot stretch
    them.

    Returns:
        The embedding, and the dense layer that comes after it, if there is one.

    Raises:
        CheckpointError: a module, a pooling, a layer norm or a dense layer is not
            implemented.
    """
    pooling, layer_norm, projection = None, False, None
    for module in read_json_list(folder / "modules.json")[1:]:
        kind, path = _kind(module), folder / str(module.get("path", ""))
        if kind == "Pooling" and pooling is None:
            pooling = _pooling(path)
        elif kind == "Dense" and pooling is not None and projection is None:
            projection = read_dense(path, config.width)
        elif kind == "LayerNorm" and pooling and not (layer_norm or projection):
            layer_norm = True
            _check_plain(path, config.width)
        elif kind != "Normalize":
            raise CheckpointError(
                f"{folder}/modules.json has a {module.get('type')!r} where none is "
                "implemented; Transformer, Pooling, LayerNorm, Dense, Normalize are, "
                "in this order"
            )
    if pooling is None:
        raise CheckpointError(f"{folder}/modules.json has no Pooling module")
    settings = read_json(folder / SETTINGS) if (folder / SETTINGS).is_file() else {}
    prompts = _prompts(settings.get("prompts") or {}, config)
    _check_case(transformer_folder(folder))
    length = _max_length(transformer_folder(folder), config)
    dims = read_json(transformer_folder(folder) / "config.json")
    embedding = EmbeddingConfig(
        pooling=pooling,
        layer_norm=layer_norm,
        max_length=length,
        matryoshka_dims=tuple(dims.get("matryoshka_dimensions") or ()),
        prompts=prompts,
    )
    return embedding, projection


def default_prompts(config: ModelConfig) -> dict[str, str]:
    """Return the prompts of a model that says nothing of any: Nomic's, or empty ones.

    Only NomicBERT models are taken to have been trained with Nomic's task prefixes.
    """
    if family_of(config) == "nomic_bert":
        return dict(NOMIC_PROMPTS)
    return dict.fromkeys(NOMIC_PROMPTS, "")


def _prompts(given: dict[str, str], config: ModelConfig) -> dict[str, str]:
    """Name prompts by our tasks; queries and documents, at least, have some."""
    prompts = dict(given)
    for alias, name in ALIASES.items():
        if alias in prompts and prompts[alias] == prompts.setdefault(
            name, prompts[alias]
        ):
            del prompts[alias]
    for name in given:  # Nomic's v2 has the tasks of MTEB: Classification, Clustering
        if name.lower() in NOMIC_PROMPTS:
            prompts.setdefault(name.lower(), given[name])
    default = default_prompts(config)
    if not any(prompts.values()) and not prompts.keys() >= NOMIC_PROMPTS.keys():
        return default
    return {name: default[name] for name in ALIASES.values()} | prompts


def _kind(module: dict[str, Any]) -> str:
    return str(module.get("type", "")).rsplit(".", 1)[-1]


def _pooling(path: Path) -> Any:
    values = read_json(path / "config.json")
    modes = values.get("pooling_mode")
    if modes is None:  # before version 6: one switch for each mode
        switches = {name: mode for mode, name in SWITCHES.items()}
        modes = [
            switches.get(key, key)
            for key, value in values.items()
            if key.startswith("pooling_mode_") and value
        ]
    modes = [modes] if isinstance(modes, str) else list(modes)
    modes = ["last" if mode == "lasttoken" else mode for mode in modes]
    known = get_args(Pooling)
    if (
        len(modes) != 1
        or modes[0] not in known
        or not values.get("include_prompt", True)
    ):
        raise CheckpointError(
            f"{path}/config.json pools by {' and '.join(modes) or 'nothing'}, "
            f"include_prompt={values.get('include_prompt', True)}; only "
            f"{' or '.join(map(repr, known))}, with the prompt's tokens, is implemented"
        )
    return modes[0]


def _check_plain(path: Path, width: int) -> None:
    tensors, _ = open_tensors(path)
    for name, value in (("norm.weight", 1), ("norm.bias", 0)):
        if name not in tensors or np.any(tensors[name].read() != np.full(width, value)):
            raise CheckpointError(
                f"{path} has a layer norm with parameters ({name} is not all {value}); "
                "only one without is implemented"
            )


def _check_case(folder: Path) -> None:
    """Refuse texts that are lower-cased before a tokenizer that does not do it."""
    if not (folder / "sentence_bert_config.json").is_file():
        return
    if not read_json(folder / "sentence_bert_config.json").get("do_lower_case"):
        return
    path = folder / "tokenizer_config.json"
    if not (path.is_file() and read_json(path).get("do_lower_case")):
        raise CheckpointError(
            f"{folder}/sentence_bert_config.json has do_lower_case=true, and the "
            "tokenizer does not lower-case by itself; only what a tokenizer does is "
            "done to texts here"
        )


def _max_length(folder: Path, config: ModelConfig) -> int:
    limits = [
        read_json(folder / file).get(key)
        for file, key in (
            ("sentence_bert_config.json", "max_seq_length"),
            ("tokenizer_config.json", "model_max_length"),
        )
        if (folder / file).is_file()
    ]
    # Absent is null, or a number beyond any text (1e30).
    known = [int(limit) for limit in limits if limit and limit < 1e9]
    length = known[0] if known else config.trained_positions
    stretched = config.rope_scaling_factor is not None
    return length if stretched else min(length, config.trained_positions)
