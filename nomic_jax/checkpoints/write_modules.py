"""Write the sentence-transformers layout: modules, v1.5's layer norm, prompts, a card.

That library normalises in a module and cuts a dimension afterwards, so a cut vector is
of unit length only with `normalize_embeddings=True`.
"""

from pathlib import Path

import numpy as np

from nomic_jax.checkpoints.dense_folder import write_dense
from nomic_jax.checkpoints.json_files import read_json
from nomic_jax.checkpoints.model_card import CardFacts, model_card
from nomic_jax.checkpoints.sentence_transformers_folder import (
    ALIASES,
    SETTINGS,
    SWITCHES,
)
from nomic_jax.checkpoints.tensor_files import write_tensors
from nomic_jax.config import EmbeddingConfig, ModelConfig
from nomic_jax.model.projection import Projection
from nomic_jax.storage import write_json

# Module paths that every release since 2.0 knows; newer ones map them to theirs.
_TYPES = "sentence_transformers.models."


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
            **{key: embedding.pooling == mode for mode, key in SWITCHES.items()},
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
    # What `encode` puts before a text when no task is named: better than nothing.
    default = "search_document" if prompts.get("search_document") else None
    settings = {"prompts": prompts, "default_prompt_name": default}
    write_json(folder / SETTINGS, {**settings, "similarity_fn_name": "cosine"})
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
