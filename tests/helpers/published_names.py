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


def published_experts(encoder):
    """Return the arrays of an encoder with experts, or of its gradient."""
    width = encoder.config.width
    arrays = {
        "embeddings.word_embeddings.weight": _array(encoder.word_embedding.embedding),
        "embeddings.token_type_embeddings.weight": _array(
            encoder.type_embedding.embedding
        ),
        "emb_ln.weight": _array(encoder.embedding_norm.scale),
        "emb_ln.bias": _array(encoder.embedding_norm.bias),
    }
    for offset, kind in enumerate(("dense", "sparse")):
        block = encoder.blocks[kind]
        attention, mlp = block.attention, block.mlp
        stacked = {
            "attn.Wqkv.weight": _array(attention.qkv.kernel).reshape(
                -1, width, 3 * width
            ),
            "attn.Wqkv.bias": _array(attention.qkv.bias).reshape(-1, 3 * width),
            "attn.out_proj.weight": _array(attention.out.kernel).reshape(
                -1, width, width
            ),
            "attn.out_proj.bias": _array(attention.out.bias),
            "norm1.weight": _array(block.attention_norm.scale),
            "norm1.bias": _array(block.attention_norm.bias),
            "norm2.weight": _array(block.mlp_norm.scale),
            "norm2.bias": _array(block.mlp_norm.bias),
        }
        if kind == "dense":
            stacked |= {
                "mlp.fc1.weight": _array(mlp.up.kernel),
                "mlp.fc1.bias": _array(mlp.up.bias),
                "mlp.fc2.weight": _array(mlp.down.kernel),
                "mlp.fc2.bias": _array(mlp.down.bias),
            }
        else:
            up, down = _array(mlp.experts.up), _array(mlp.experts.down)  # L E D F, LEFD
            stacked |= {
                "mlp.router.layer.weight": _array(mlp.router.kernel),
                # One expert's rows below another's: E F, D.
                "mlp.experts.mlp.w1": up.swapaxes(2, 3).reshape(len(up), -1, width),
                "mlp.experts.mlp.w2": down.reshape(len(down), -1, width),
                "mlp.experts.bias": _array(mlp.experts.bias),
            }
            if mlp.experts.up_bias is not None:
                stacked["mlp.experts.up_bias"] = _array(mlp.experts.up_bias)
        for name, layers in stacked.items():
            turned = name.endswith(".weight") and layers.ndim == 3
            for index, array in enumerate(layers):
                layer = f"encoder.layers.{2 * index + offset}"
                arrays[f"{layer}.{name}"] = array.T if turned else array
    return arrays
