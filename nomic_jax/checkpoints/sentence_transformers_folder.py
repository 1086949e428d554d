"""The sentence-transformers layout: modules.json, pooling, v1.5's layer norm, prompts.

That library normalises in a module and cuts a dimension afterwards, so a cut vector is
of unit length only with `normalize_embeddings=True`.
"""

from pathlib import Path
from typing import Any

import numpy as np

from nomic_jax.checkpoints.json_files import read_json, read_json_list
from nomic_jax.checkpoints.problems import CheckpointError
from nomic_jax.checkpoints.tensor_files import open_tensors, write_tensors
from nomic_jax.config import NOMIC_PROMPTS, EmbeddingConfig, ModelConfig
from nomic_jax.storage import write_json

# The names by which the library's encode_query and encode_document find their prompts.
ALIASES = {"query": "search_query", "document": "search_document"}
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


def read_embedding(folder: Path, config: ModelConfig) -> EmbeddingConfig:
    """Read how a sentence-transformers folder makes its vectors.

    A folder without prompts, or with empty ones, gets Nomic's task prefixes. The length
    is cut to the trained positions where the model cannot stretch them.

    Raises:
        CheckpointError: a module, a pooling or a layer norm is not implemented.
    """
    pooling, layer_norm = None, False
    for module in read_json_list(folder / "modules.json")[1:]:
        kind, path = _kind(module), folder / str(module.get("path", ""))
        if kind == "Pooling" and pooling is None:
            pooling = _pooling(path)
        elif kind == "LayerNorm" and pooling is not None and not layer_norm:
            layer_norm = True
            _check_plain(path, config.width)
        elif kind != "Normalize":
            raise CheckpointError(
                f"{folder}/modules.json has a {module.get('type')!r} where none is "
                "implemented; Transformer, Pooling, LayerNorm, Normalize are"
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
    if not any(prompts.values()):
        prompts = dict(NOMIC_PROMPTS)
    length = _max_length(transformer_folder(folder), config)
    dims = read_json(transformer_folder(folder) / "config.json")
    return EmbeddingConfig(
        pooling=pooling,
        layer_norm=layer_norm,
        max_length=length,
        matryoshka_dims=tuple(dims.get("matryoshka_dimensions") or ()),
        prompts=prompts,
    )


def _kind(module: dict[str, Any]) -> str:
    return str(module.get("type", "")).rsplit(".", 1)[-1]


def _pooling(path: Path) -> Any:
    values = read_json(path / "config.json")
    modes = values.get("pooling_mode")
    if modes is None:  # before version 6: one switch for each mode
        switches = {
            "pooling_mode_cls_token": "cls",
            "pooling_mode_mean_tokens": "mean",
        }
        modes = [
            switches.get(key, key)
            for key, value in values.items()
            if key.startswith("pooling_mode_") and value
        ]
    modes = [modes] if isinstance(modes, str) else list(modes)
    if modes not in (["mean"], ["cls"]) or not values.get("include_prompt", True):
        raise CheckpointError(
            f"{path}/config.json pools by {' and '.join(modes) or 'nothing'}, "
            f"include_prompt={values.get('include_prompt', True)}; only 'mean' or "
            "'cls', with the prompt's tokens, is implemented"
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
    folder: Path, config: ModelConfig, embedding: EmbeddingConfig, *, name: str
) -> None:
    """Add what makes a folder of the transformers layout a sentence-transformers one.

    Args:
        folder: holds config.json, the weights and the tokenizer already.
        config: the model's.
        embedding: how its vectors are made.
        name: of the model, for its card.
    """
    modules = [("Transformer", ""), ("Pooling", "1_Pooling")]
    if embedding.layer_norm:
        modules.append(("LayerNorm", "2_LayerNorm"))
    modules.append(("Normalize", f"{len(modules)}_Normalize"))
    listed = [
        {"idx": index, "name": str(index), "path": path, "type": _TYPES + kind}
        for index, (kind, path) in enumerate(modules)
    ]
    for _, path in modules[1:]:
        (folder / path).mkdir()
    write_json(folder / "modules.json", listed)
    write_json(
        folder / "1_Pooling" / "config.json",
        {
            "word_embedding_dimension": config.width,
            "pooling_mode_cls_token": embedding.pooling == "cls",
            "pooling_mode_mean_tokens": embedding.pooling == "mean",
            "pooling_mode_max_tokens": False,
            "pooling_mode_mean_sqrt_len_tokens": False,
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
        if task in prompts:
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
    (folder / "README.md").write_text(_card(config, embedding, name), encoding="utf-8")


def _card(config: ModelConfig, embedding: EmbeddingConfig, name: str) -> str:
    prefixes = "\n".join(
        f"- `{task}`: `{text!r}`" for task, text in sorted(embedding.prompts.items())
    )
    norm = (
        "\nBetween pooling and normalisation stands a layer norm without parameters "
        "(`2_LayerNorm`).\ntext-embeddings-inference reads no such module: the vectors "
        "it serves are different.\n"
        if embedding.layer_norm
        else ""
    )
    return f"""---
library_name: sentence-transformers
pipeline_tag: feature-extraction
tags: [sentence-transformers, sentence-similarity, nomic_bert]
---
# {name}

A NomicBERT text encoder: {config.width} dimensions, {embedding.pooling} pooling, up to
{embedding.max_length} tokens. It needs transformers 5 or newer.

```python
from sentence_transformers import SentenceTransformer

model = SentenceTransformer("this/folder")
query = model.encode_query(["What is TSNE?"])
documents = model.encode_document(["TSNE is a way to draw points in few dimensions."])
```

Every text needs the prefix of its task. `encode_query` and `encode_document` put it
there; `encode` does so with `prompt_name="clustering"` and the like, else put it before
the text yourself:

{prefixes}

For shorter vectors pass `truncate_dim=256, normalize_embeddings=True`: without the
second a cut vector is not of unit length.
{norm}"""
