"""The model that a stage starts with, and a mixture of experts made of it.

Sparse upcycling: Komatsuzaki et al. 2022, arXiv:2212.05055.
"""

import dataclasses

from nomic_jax.checkpoints.hub import resolve
from nomic_jax.checkpoints.model_folder import build
from nomic_jax.checkpoints.reader import Checkpoint, read_checkpoint, without_head
from nomic_jax.checkpoints.upcycling import upcycled
from nomic_jax.config import ModelConfig
from nomic_jax.model.encoder import NomicBert


@dataclasses.dataclass(frozen=True, kw_only=True)
class StartConfig:
    """The model that training starts with."""

    model: str = ""  # folder or hub id; empty: fresh, or what the stage before left
    num_experts: int = 0  # to make of each MLP of layers 1, 3, 5...; 0: leave them
    experts_per_token: int = 2  # of those experts
    keep_biases: bool = True  # give experts the MLP's biases; Nomic's code dropped them

    def __post_init__(self) -> None:
        """Refuse experts of a model that is not named.

        Raises:
            ValueError: with what to set.
        """
        if self.num_experts and not self.model:
            raise ValueError(
                f"start.num_experts={self.num_experts} makes a mixture of experts of a "
                "dense model: name it in start.model"
            )
        if self.num_experts < 0:
            raise ValueError(f"num_experts={self.num_experts} must not be negative")


def config_with_experts(start: StartConfig, config: ModelConfig) -> ModelConfig:
    """Return the config of what `with_experts` makes."""
    if not start.num_experts:
        return config
    return dataclasses.replace(
        config,
        num_experts=start.num_experts,
        experts_per_token=start.experts_per_token,
        expert_bias=start.keep_biases,
    )


def with_experts(start: StartConfig, checkpoint: Checkpoint, seed: int) -> Checkpoint:
    """Make a mixture of experts of a checkpoint where the start asks for it.

    Args:
        start: how many experts, and what becomes of the MLP's biases.
        checkpoint: of a dense model.
        seed: of the routers.

    Raises:
        ValueError: it is no NomicBERT with plain MLPs and biases.
    """
    if not start.num_experts:
        return checkpoint
    return upcycled(
        checkpoint,
        num_experts=start.num_experts,
        experts_per_token=start.experts_per_token,
        keep_biases=start.keep_biases,
        seed=seed,
    )


def upcycled_encoder(start: StartConfig, *, seed: int, dtype: str) -> NomicBert:
    """Load the encoder that a start names as a mixture of experts.

    Args:
        start: with a number of experts.
        seed: of the routers.
        dtype: what products run in.

    Raises:
        ValueError: there is no such model, or it is not a dense NomicBERT with biases.
    """
    checkpoint = without_head(read_checkpoint(resolve(start.model)))
    encoder = build(with_experts(start, checkpoint, seed), dtype=dtype)
    assert isinstance(encoder, NomicBert), "it has no head"
    return encoder
