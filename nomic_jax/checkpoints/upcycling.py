"""A model to train further, made of another: BERT as NomicBERT, a mixture of one MLP.

nomic-bert-2048's multilingual sibling began as XLM-R whose absolute positions gave way
to rotary ones, and nomic-embed-text-v2-moe as that model with each MLP of every second
layer copied into experts: sparse upcycling (Komatsuzaki et al. 2022, arXiv:2212.05055;
Nussbaum and Duderstadt 2025, arXiv:2502.07972, section 3).
"""

import dataclasses
from collections.abc import Callable

import numpy as np

from nomic_jax.checkpoints.families.spec import family_of
from nomic_jax.checkpoints.names import Rule, rules_for
from nomic_jax.checkpoints.problems import CheckpointError
from nomic_jax.checkpoints.reader import HEAD_BIAS, WORD_TABLE, Checkpoint, headless
from nomic_jax.checkpoints.tensors import StoredTensor
from nomic_jax.config import ModelConfig, padded_vocabulary

NEVER = -100.0  # the logit of a row that is not a token


def nomic_start(
    checkpoint: Checkpoint, *, rope_base: float, trained_positions: int
) -> Checkpoint:
    """Make a NomicBERT of a BERT or XLM-R, for masked language modelling to go on from.

    Rotary positions take the place of the absolute table, which is dropped, as are the
    pooler and the next-sentence head; an MLM head is kept. The vocabulary is padded to
    a multiple of 64: its new rows are zero, and their biases in the head -100. It is
    not the same function: positions are learned again.

    Args:
        checkpoint: of either family, with any head.
        rope_base: theta of the rotation.
        trained_positions: the longest text it will be trained on.

    Raises:
        CheckpointError: the checkpoint is of another family.
    """
    config = checkpoint.config
    if config.rope_base is not None:
        raise CheckpointError(
            f"{checkpoint.folder} is a {family_of(config)} model, with rotary "
            "positions; a NomicBERT start is made of a BERT or an XLM-R"
        )
    made = nomic_config(
        config, rope_base=rope_base, trained_positions=trained_positions
    )
    padding = {WORD_TABLE: 0.0, HEAD_BIAS: NEVER}
    tensors = {
        rule.ours: checkpoint.tensors[rule.ours]
        if rule.ours not in padding
        else _padded(checkpoint.tensors[rule.ours], made, padding[rule.ours])
        for rule in rules_for(made)
    }
    return dataclasses.replace(
        checkpoint, config=made, tensors=tensors, embedding=None, stores_decoder=True
    )


def nomic_config(
    config: ModelConfig, *, rope_base: float, trained_positions: int
) -> ModelConfig:
    """Return the config of what `nomic_start` makes."""
    masked = config.head in ("mlm", "pretraining")
    return dataclasses.replace(
        headless(config),
        vocab_size=padded_vocabulary(config.vocab_size),
        rope_base=rope_base,
        trained_positions=trained_positions,
        first_position=0,
        head="mlm" if masked else None,
        head_bias=masked and config.head_bias,
    )


def _padded(tensor: StoredTensor, config: ModelConfig, value: float) -> StoredTensor:
    shape = (config.vocab_size, *tensor.shape[1:])

    def read() -> np.ndarray:
        array = np.full(shape, value, tensor.dtype)
        array[: tensor.shape[0]] = tensor.read()
        return array

    return StoredTensor(shape, tensor.dtype, read)


def upcycled(
    checkpoint: Checkpoint,
    *,
    num_experts: int,
    experts_per_token: int = 2,
    keep_biases: bool = True,
    seed: int,
) -> Checkpoint:
    """Make a mixture of experts of a dense model: layers 1, 3, 5... get experts.

    Every expert is a copy of its layer's MLP, and routers are drawn from
    N(0, initializer_range). The function is not preserved: the weights of the chosen
    experts are not renormalised, so that the copies' outputs are scaled by their sum,
    `experts_per_token / num_experts` under a fresh router.

    Args:
        checkpoint: a NomicBERT with a plain MLP and biases, such as nomic-xlm-2048.
        num_experts: of each of those layers.
        experts_per_token: that a token goes to.
        keep_biases: the first bias of an MLP goes to each copy (`expert_bias`, which
            only this project's layout holds) and the second to the one that the
            experts share; False drops both, as the published model did.
        seed: of the routers.

    Raises:
        ValueError: the checkpoint is of another kind, or the numbers do not fit.
    """
    config = checkpoint.config
    if family_of(config) != "nomic_bert" or config.num_experts:
        raise CheckpointError(
            f"{checkpoint.folder} is a {family_of(config)} model with num_experts="
            f"{config.num_experts}; a dense NomicBERT can be upcycled"
        )
    made = dataclasses.replace(
        config,
        num_experts=num_experts,
        experts_per_token=experts_per_token,
        expert_bias=keep_biases,
    )
    random = np.random.default_rng(seed)
    tensors = {
        rule.ours: _upcycled(checkpoint, made, rule, keep_biases, random)
        for rule in rules_for(made)
    }
    return dataclasses.replace(checkpoint, config=made, tensors=tensors)


def _upcycled(
    checkpoint: Checkpoint,
    made: ModelConfig,
    rule: Rule,
    keep_biases: bool,
    random: np.random.Generator,
) -> StoredTensor:
    shape = rule.stacked_shape(made)
    if not rule.layers:
        return checkpoint.tensors[rule.ours]
    name = "encoder.blocks." + rule.ours.split(".", 3)[3]
    dtype = checkpoint.tensors[WORD_TABLE].dtype
    if name.endswith("router.kernel"):
        drawn = made.initializer_range * random.standard_normal(shape, np.float32)
        return StoredTensor(shape, dtype, lambda: drawn.astype(dtype))
    if name.endswith("experts.bias") and not keep_biases:
        return StoredTensor(shape, dtype, lambda: np.zeros(shape, dtype))
    of_experts = {
        "encoder.blocks.mlp.experts.up": "encoder.blocks.mlp.up.kernel",
        "encoder.blocks.mlp.experts.up_bias": "encoder.blocks.mlp.up.bias",
        "encoder.blocks.mlp.experts.down": "encoder.blocks.mlp.down.kernel",
        "encoder.blocks.mlp.experts.bias": "encoder.blocks.mlp.down.bias",
    }
    source = checkpoint.tensors[of_experts.get(name, name)]
    copied = "E" in rule.axes.split()
    return StoredTensor(shape, source.dtype, _layers(source, rule, shape, copied))


def _layers(
    source: StoredTensor, rule: Rule, shape: tuple[int, ...], copied: bool
) -> Callable[[], np.ndarray]:
    """Read some layers of a stacked parameter, for each expert the same."""

    def read() -> np.ndarray:
        array = source.read()[list(rule.layers)]
        return np.broadcast_to(array[:, None], shape) if copied else array

    return read
