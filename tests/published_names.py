"""Our parameters as arrays under their published names: a second, plain mapping.

`nomic_jax.checkpoints` has its own; tests of the arithmetic must not lean on it.
"""

import numpy as np


def _array(parameter):
    return np.asarray(parameter.get_value())


def published(encoder, head=None):
    """Return the arrays of an encoder, or of a gradient with its structure."""
    config = encoder.config
    width = config.width
    arrays = {
        "embeddings.word_embeddings.weight": _array(encoder.word_embedding.embedding),
        "embeddings.token_type_embeddings.weight": _array(
            encoder.type_embedding.embedding
        ),
        "emb_ln.weight": _array(encoder.embedding_norm.scale),
        "emb_ln.bias": _array(encoder.embedding_norm.bias),
    }
    blocks = encoder.blocks
    stacked = {
        # D 3 H K -> 3HK D, and H K D -> D HK
        "attn.Wqkv.weight": [
            w.reshape(width, -1).T for w in _array(blocks.attention.qkv.kernel)
        ],
        "attn.out_proj.weight": [
            w.reshape(-1, width).T for w in _array(blocks.attention.out.kernel)
        ],
        "mlp.fc11.weight": [w.T for w in _array(blocks.mlp.up.kernel)],
        "mlp.fc12.weight": [w.T for w in _array(blocks.mlp.gate.kernel)],
        "mlp.fc2.weight": [w.T for w in _array(blocks.mlp.down.kernel)],
        "norm1.weight": _array(blocks.attention_norm.scale),
        "norm1.bias": _array(blocks.attention_norm.bias),
        "norm2.weight": _array(blocks.mlp_norm.scale),
        "norm2.bias": _array(blocks.mlp_norm.bias),
    }
    for name, layers in stacked.items():
        for index, array in enumerate(layers):
            arrays[f"encoder.layers.{index}.{name}"] = array
    if head is not None:
        transform = "cls.predictions.transform"
        arrays[f"{transform}.dense.weight"] = _array(head.dense.kernel).T
        arrays[f"{transform}.layer_norm.weight"] = _array(head.norm.scale)
        arrays[f"{transform}.layer_norm.bias"] = _array(head.norm.bias)
    return arrays
