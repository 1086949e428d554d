"""The sentence-transformers layout: modules.json, pooling, v1.5's layer norm, prompts.

That library normalises in a module and cuts a dimension afterwards, so a cut vector is
of unit length only with `normalize_embeddings=True`.
"""

from pathlib import Path
from typing import Any, get_args

import numpy as np

from nomic_jax.checkpoints.dense_folder import read_dense, write_dense
from nomic_jax.checkpoints.families import family_of
from nomic_jax.checkpoints.json_files import read_json, read_json_list
from nomic_jax.checkpoints.model_card import CardFacts, model_card
from nomic_jax.checkpoints.problems import CheckpointError
from nomic_jax.checkpoints.tensor_files import open_tensors, write_tensors
from nomic_jax.config import NOMIC_PROMPTS, EmbeddingConfig, ModelConfig, Pooling
from nomic_jax.model.projection import Projection
from nomic_jax.storage import write_json

# The names by which the library's encode_query and encode_document find their prompts.
ALIASES = {
    "query": "search_query",
    "document": "search_document",
    "passage": "search_document",
}
# How the releases before version 6 say a pooling.
_SWITCHES = {
    "cls": "pooling_mode_cls_token",
    "mean": "pooling_mode_mean_tokens",
    "max": "pooling_mode_max_tokens",
    "mean_sqrt_len_tokens": "pooling_mode_mean_sqrt_len_tokens",
    "last": "pooling_mode_lasttoken",
}
# Module paths that every release since 2.0 knows; newer ones map them to theirs.
_TYPES = "sentence_transformers.models."
_SETTINGS = "config_sentence_transformers.json"


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


def read_embedding(
    folder: Path, config: ModelConfig
) -> tuple[EmbeddingConfig, Projection | None]:
    """Read how a sentence-transformers folder makes its vectors.

    A folder without prompts gets those of `default_prompts`, as does one with that
    library's own empty ones. The length is cut to the trained positions where the model
    cannot stretch them.

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
    settings = read_json(folder / _SETTINGS) if (folder / _SETTINGS).is_file() else {}
    prompts = {name: text for name, text in (settings.get("prompts") or {}).items()}
    for alias, name in ALIASES.items():
        if alias in prompts and prompts[alias] == prompts.setdefault(
            name, prompts[alias]
        ):
            del prompts[alias]
    if not any(prompts.values()) and not prompts.keys() >= NOMIC_PROMPTS.keys():
        prompts = default_prompts(config)
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


def _kind(module: dict[str, Any]) -> str:
    return str(module.get("type", "")).rsplit(".", 1)[-1]


def _pooling(path: Path) -> Any:
    values = read_json(path / "config.json")
    modes = values.get("pooling_mode")
    if modes is None:  # before version 6: one switch for each mode
        switches = {name: mode for mode, name in _SWITCHES.items()}
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


def write_modules(
    folder: Path,
    config: ModelConfig,
    embedding: EmbeddingConfig,
    projection: Projection | None,
    *,
    name: str,
    facts: CardFacts,
    remote: bool,
) -> None:
    """Add what makes a model folder one of sentence-transformers.

    Args:
        folder: holds config.json, the weights and the tokenizer already.
        config: the model's.
        embedding: how its vectors are made.
        projection: what comes after it, if anything does.
        name: of the model, for its card.
        facts: what else the card says.
        remote: it is of Nomic's layout, which code from elsewhere loads.
    """
    modules = [("Transformer", ""), ("Pooling", "1_Pooling")]
    if embedding.layer_norm:
        modules.append(("LayerNorm", "2_LayerNorm"))
    if projection is not None:
        modules.append(("Dense", f"{len(modules)}_Dense"))
    modules.append(("Normalize", f"{len(modules)}_Normalize"))
    listed = [
        {"idx": index, "name": str(index), "path": path, "type": _TYPES + kind}
        for index, (kind, path) in enumerate(modules)
    ]
    for kind, path in modules[1:]:
        if kind == "Dense" and projection is not None:
            write_dense(folder / path, projection)
        else:
            (folder / path).mkdir()
    write_json(folder / "modules.json", listed)
    write_json(
        folder / "1_Pooling" / "config.json",
        {
            "word_embedding_dimension": config.width,
            **{key: embedding.pooling == mode for mode, key in _SWITCHES.items()},
        },
    )
    if embedding.layer_norm:
        write_json(folder / "2_LayerNorm" / "config.json", {"dimension": config.width})
        one = np.ones(config.width, np.float32)
        norm = {"norm.weight": one, "norm.bias": np.zeros_like(one)}
        write_tensors(
            folder / "2_LayerNorm" / "model.safetensors",
            {key: (array.shape, array.dtype) for key, array in norm.items()},
            norm.items(),
        )
    prompts = dict(embedding.prompts)
    for alias, task in ALIASES.items():
        if task in prompts and alias != "passage":
            prompts.setdefault(alias, prompts[task])
    settings = {"prompts": prompts, "default_prompt_name": None}
    write_json(folder / _SETTINGS, {**settings, "similarity_fn_name": "cosine"})
    lengths = {"max_seq_length": embedding.max_length, "do_lower_case": False}
    write_json(folder / "sentence_bert_config.json", lengths)
    if embedding.matryoshka_dims:
        values = read_json(folder / "config.json")
        values["is_matryoshka"] = True
        values["matryoshka_dimensions"] = list(embedding.matryoshka_dims)
        write_json(folder / "config.json", values)
    (folder / "README.md").write_text(
        model_card(config, embedding, name, facts, remote=remote), encoding="utf-8"
    )
