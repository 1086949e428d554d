"""NomicBERT as a few plain PyTorch functions: stateless, one rounding step per line.

    h = LN(word[ids] + type[type_ids])
    h = LN(h + attention(h));  h = LN(h + mlp(h))        for each layer, no final norm

Its feed-forward layers are SwiGLU in v1 and v1.5; in v2, GELU with biases, and in every
second layer a mixture of experts. Tensors go by their published names
(`encoder.layers.0.attn.Wqkv.weight`, ...). Rotary positions follow each text's own
length, so rows need not be computed one at a time.
"""

import dataclasses
from collections.abc import Mapping

import torch
from torch import Tensor
from torch.nn import functional

Weights = Mapping[str, Tensor]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Shape:
    """What the tensors do not say about themselves."""

    num_layers: int
    num_heads: int
    epsilon: float
    base: float
    trained: int  # longest text that keeps the base
    factor: float | None = None  # of Dynamic NTK


def inverse_frequencies(shape: Shape, head_width: int, length: int) -> Tensor:
    """Return the angle per position of each channel pair, for a text of `length`."""
    base = torch.tensor(shape.base)
    if length > shape.trained:
        if shape.factor is None:
            raise ValueError(f"{length} tokens exceed {shape.trained}")
        stretch = shape.factor * torch.tensor(length) / shape.trained
        stretch = stretch - (shape.factor - 1)
        base = base * stretch ** (head_width / (head_width - 2))
    pairs = torch.arange(0, head_width, 2, dtype=torch.float32)
    return 1.0 / base ** (pairs / head_width)


def turn(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotate the halves of the last axis against each other."""
    first, second = x.chunk(2, dim=-1)
    return torch.cat((first * cos - second * sin, second * cos + first * sin), dim=-1)


def cosines_and_sines(
    shape: Shape, head_width: int, mask: Tensor
) -> tuple[Tensor, Tensor]:
    """Return what each row's tokens turn by, from the row's own number of tokens."""
    positions = torch.arange(mask.shape[1], dtype=torch.float32)
    rows = [
        positions[:, None] * inverse_frequencies(shape, head_width, int(length))
        for length in mask.sum(dim=1)
    ]
    angles = torch.stack(rows)[:, None]  # B 1 S K/2
    return angles.cos(), angles.sin()


def attention(
    weights: Weights, x: Tensor, mask: Tensor, shape: Shape, turns: tuple[Tensor, ...]
) -> Tensor:
    """Self-attention over the tokens that the mask (B S) marks."""
    rows, length, width = x.shape
    qkv = linear(weights, "attn.Wqkv", x)
    q, k, v = (
        part.view(rows, length, shape.num_heads, -1).transpose(1, 2)  # B H S K
        for part in qkv.chunk(3, dim=-1)
    )
    q, k = turn(q, *turns), turn(k, *turns)
    scores = q @ k.transpose(2, 3) * q.shape[-1] ** -0.5
    scores = scores.masked_fill(~mask[:, None, None, :], torch.finfo(x.dtype).min)
    mixed = scores.softmax(dim=-1) @ v
    mixed = mixed.transpose(1, 2).reshape(rows, length, width)
    return linear(weights, "attn.out_proj", mixed)


def linear(weights: Weights, name: str, x: Tensor) -> Tensor:
    """A linear layer called `name`, with its bias where it has one."""
    return functional.linear(x, weights[f"{name}.weight"], weights.get(f"{name}.bias"))


def swiglu(weights: Weights, x: Tensor) -> Tensor:
    """The gated feed-forward layer: `fc12` is the branch that gets the SiLU."""
    up = functional.linear(x, weights["mlp.fc11.weight"])
    gate = functional.linear(x, weights["mlp.fc12.weight"])
    return functional.linear(up * functional.silu(gate), weights["mlp.fc2.weight"])


def plain(weights: Weights, x: Tensor) -> Tensor:
    """The feed-forward layer of the multilingual models: exact GELU and biases."""
    return linear(weights, "mlp.fc2", functional.gelu(linear(weights, "mlp.fc1", x)))


def experts(weights: Weights, x: Tensor, chosen: int = 2) -> tuple[Tensor, ...]:
    """The mixture of experts; returns probabilities and choices of each token, too.

    `w1` and `w2` hold experts of equal size, one below another.
    """
    probabilities = functional.linear(x, weights["mlp.router.layer.weight"])
    probabilities = probabilities.softmax(dim=-1)
    best, places = probabilities.topk(chosen, dim=-1)
    count, width = weights["mlp.router.layer.weight"].shape
    first = weights["mlp.experts.mlp.w1"].view(count, -1, width)
    second = weights["mlp.experts.mlp.w2"].view(count, -1, width)
    mixed = torch.zeros_like(x)
    for expert in range(count):
        weight = (best * (places == expert)).sum(dim=-1, keepdim=True)
        inner = x @ first[expert].T
        bias = weights.get("mlp.experts.up_bias")  # ours alone, of upcycled models
        inner = inner if bias is None else inner + bias[expert]
        mixed = mixed + weight * (functional.gelu(inner) @ second[expert])
    return mixed + weights["mlp.experts.bias"], probabilities, places


def mlp(weights: Weights, x: Tensor) -> Tensor:
    """The feed-forward layer that the tensors are of."""
    if "mlp.fc11.weight" in weights:
        return swiglu(weights, x)
    if "mlp.fc1.weight" in weights:
        return plain(weights, x)
    return experts(weights, x)[0]


def norm(weights: Weights, name: str, x: Tensor, epsilon: float) -> Tensor:
    """Layer norm with the scale and shift called `name`."""
    scale, shift = weights[f"{name}.weight"], weights[f"{name}.bias"]
    return functional.layer_norm(x, scale.shape, scale, shift, epsilon)


def hidden_states(
    weights: Weights,
    ids: Tensor,
    mask: Tensor,
    shape: Shape,
    type_ids: Tensor | None = None,
    routed: list[tuple[Tensor, ...]] | None = None,
) -> list[Tensor]:
    """Return what the embeddings and then each layer give, each B S D.

    Args:
        weights: tensors by published name, without any prefix.
        ids: token ids, B S, padded on the right.
        mask: True at tokens, B S.
        shape: sizes and constants.
        type_ids: token types, B S; all zero when absent.
        routed: gets, of each layer with experts, probabilities and choices, B S ...
    """
    types = torch.zeros_like(ids) if type_ids is None else type_ids
    x = weights["embeddings.word_embeddings.weight"][ids]
    x = x + weights["embeddings.token_type_embeddings.weight"][types]
    x = norm(weights, "emb_ln", x, shape.epsilon)
    turns = cosines_and_sines(shape, x.shape[-1] // shape.num_heads, mask)
    states = [x]
    for index in range(shape.num_layers):
        prefix = f"encoder.layers.{index}."
        layer = tensors_of(weights, prefix)
        x = x + attention(layer, x, mask, shape, turns)
        x = norm(layer, "norm1", x, shape.epsilon)
        if routed is not None and "mlp.router.layer.weight" in layer:
            routed.append(experts(layer, x)[1:])
        x = x + mlp(layer, x)
        x = norm(layer, "norm2", x, shape.epsilon)
        states.append(x)
    return states


def tensors_of(weights: Weights, prefix: str) -> dict[str, Tensor]:
    """Return the tensors under a prefix, by the rest of their names."""
    return {
        name.removeprefix(prefix): tensor
        for name, tensor in weights.items()
        if name.startswith(prefix)
    }


def mlm_logits(weights: Weights, hidden: Tensor, epsilon: float) -> Tensor:
    """Score hidden states against the word table, which the decoder is tied to."""
    x = functional.linear(hidden, weights["cls.predictions.transform.dense.weight"])
    x = functional.silu(x)
    x = norm(weights, "cls.predictions.transform.layer_norm", x, epsilon)
    return x @ weights["embeddings.word_embeddings.weight"].T
