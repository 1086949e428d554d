"""A model folder and the live module: load one for compute, save one for later.

Parameters are float32 in memory, whatever the file holds.
"""

import dataclasses
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from nomic_jax.checkpoints.hub import resolve
from nomic_jax.checkpoints.names import rules_for
from nomic_jax.checkpoints.reader import (
    EMBEDDING_FILE,
    Checkpoint,
    headless,
    read_checkpoint,
    without_head,
)
from nomic_jax.checkpoints.tensors import write_tensors
from nomic_jax.checkpoints.writer import model_config_json, new_folder
from nomic_jax.config import EmbeddingConfig, ModelConfig, differing_fields
from nomic_jax.data.tokenizer import TextTokenizer
from nomic_jax.model.encoder import NomicBert, Remat
from nomic_jax.model.heads import MaskedLanguageModel, Model, head_class, make_model
from nomic_jax.storage import write_json

FLOAT32 = jnp.dtype("float32")


def load_model(
    source: str | Path, *, dtype: Any = FLOAT32, remat: Remat = "none"
) -> Model:
    """Load a model with the head its folder has.

    Args:
        source: a folder of any layout, or a hub id.
        dtype: what matmuls run in.
        remat: what a layer keeps for its backward.

    Raises:
        ValueError: there is no such model, or it is not a whole one of a known kind.
    """
    return build(read_checkpoint(resolve(source)), dtype=dtype, remat=remat)


def load_encoder(
    source: str | Path, *, dtype: Any = FLOAT32, remat: Remat = "none"
) -> NomicBert:
    """Load a model without its head; arguments and errors are those of `load_model`."""
    checkpoint = without_head(read_checkpoint(resolve(source)))
    model = build(checkpoint, dtype=dtype, remat=remat)
    assert isinstance(model, NomicBert)
    return model


def build(
    checkpoint: Checkpoint, *, dtype: Any = FLOAT32, remat: Remat = "none"
) -> Model:
    """Make a checkpoint's module, its parameters read straight into place."""
    config = checkpoint.config
    kind = head_class(config)

    def fresh() -> Model:
        return make_model(config, rngs=nnx.Rngs(0), dtype=jnp.dtype(dtype), remat=remat)

    shapes = jax.eval_shape(fresh)  # nothing is drawn: only the tree is wanted
    paths, tree = jax.tree_util.tree_flatten_with_path(shapes)
    leaves = []
    for path, leaf in paths:
        array = checkpoint.tensors[_name(path, kind)].read()
        assert array.shape == leaf.shape, (path, array.shape, leaf.shape)
        leaves.append(jnp.asarray(array, leaf.dtype))
    return jax.tree_util.tree_unflatten(tree, leaves)


def parameters(model: Model) -> dict[str, jax.Array]:
    """Return a module's parameters by the names a model folder gives them."""
    leaves, _ = jax.tree_util.tree_flatten_with_path(model)
    return {_name(path, type(model)): leaf for path, leaf in leaves}


def _name(path: tuple[Any, ...], kind: type) -> str:
    parts = [
        str(getattr(key, "name", getattr(key, "key", getattr(key, "idx", key))))
        for key in path
    ]
    parts = [part for part in parts if part != "value"]
    return ".".join(["encoder", *parts] if kind is NomicBert else parts)


def save_model(
    model: Model,
    config: ModelConfig,
    embedding: EmbeddingConfig | None,
    tokenizer: TextTokenizer | None,
    folder: Path,
) -> None:
    """Write a live module as a model folder, whole or not at all.

    Args:
        model: the module; its parameters are written in the dtype they have.
        config: the model's; that of another head is changed to the module's, where it
            is the encoder alone or has the MLM head.
        embedding: how its embeddings are made, if they are.
        tokenizer: whose files go along.
        folder: must not exist yet.

    Raises:
        ValueError: the folder exists, or the config is not the module's.
    """
    if isinstance(model, NomicBert):
        config = headless(config)
    elif isinstance(model, MaskedLanguageModel):
        bias = model.head.bias is not None
        config = dataclasses.replace(headless(config), head="mlm", head_bias=bias)
    elif type(model) is not head_class(config):
        raise ValueError(
            f"a {type(model).__name__} cannot be saved as a model with head="
            f"{config.head!r}; give its own config"
        )
    encoder = model if isinstance(model, NomicBert) else model.encoder
    if wrong := differing_fields(
        headless(encoder.config).to_json(),
        headless(config).to_json(),
        words="{} is {!r} in the module and {!r} in the config given",
    ):
        raise ValueError(f"the config is not the module's: {'; '.join(wrong)}")
    found = parameters(model)
    shapes = {rule.ours: rule.stacked_shape(config) for rule in rules_for(config)}
    for name, shape in shapes.items():
        got = found[name].shape if name in found else "missing"
        if got != shape:
            raise ValueError(f"{name} is {got}, but the config needs {shape}")
    assert found.keys() == shapes.keys(), found.keys() - shapes.keys()
    with new_folder(Path(folder)) as made:
        write_json(made / "config.json", model_config_json(config, stores_decoder=True))
        write_tensors(
            made / "model.safetensors",
            {name: (found[name].shape, np.dtype(found[name].dtype)) for name in shapes},
            ((name, np.asarray(jax.device_get(found[name]))) for name in shapes),
        )
        if embedding is not None:
            write_json(made / EMBEDDING_FILE, embedding.to_json())
        if tokenizer is not None:
            tokenizer.save(made)
