"""A stage's memory settings where its config gives a budget: found once, then kept.

    DIR/STAGE/memory.json

A run that goes on takes what it began with, as long as it is on the same devices.
"""

import dataclasses
from typing import Any, TypeVar

import jax
import jax.numpy as jnp

from nomic_jax import hosts
from nomic_jax.backend import default_dtype
from nomic_jax.config import EmbeddingConfig, ModelConfig
from nomic_jax.held_out import say
from nomic_jax.plan.abstract import Step, step_of_model
from nomic_jax.plan.assumed import Assumptions, TrainingStage
from nomic_jax.plan.budget import enough_tokens, within_budget
from nomic_jax.storage import exists, join, read_json, write_json
from nomic_jax.training.contrastive import ContrastiveStage
from nomic_jax.training.frozen import Frozen
from nomic_jax.training.mlm import MlmStage
from nomic_jax.training.placement import MemoryConfig
from nomic_jax.training.run_folder import RunFolder

MEMORY = "memory.json"
Stage = TypeVar("Stage", MlmStage, ContrastiveStage)


def with_memory_settings(
    stage: Stage,
    config: ModelConfig,
    embedding: EmbeddingConfig,
    folder: RunFolder,
    *,
    frozen: Frozen | None = None,
) -> Stage:
    """Put the settings that fit a stage's budget in its place, on all hosts the same.

    Texts of pairs are taken as long as the config lets them be, so that no batch needs
    more than the budget.

    Args:
        stage: with a budget, or without: then it is returned as it is.
        config: of the model that it trains.
        embedding: how that embeds.
        folder: of the stage, which keeps what was found.
        frozen: the encoders beside it.

    Raises:
        ValueError: no settings fit the budget.
    """
    if stage.memory.budget is None:
        return stage
    place, devices = join(folder.place, MEMORY), jax.devices()
    found_for = {
        "budget": stage.memory.budget,
        "mesh": dataclasses.asdict(stage.mesh),
        "devices": [len(devices), devices[0].device_kind],
        "jax": jax.__version__,
    }

    def kept() -> dict[str, Any] | None:
        return read_json(place) if exists(place) else None

    known = hosts.from_first("memory settings", kept)
    if known is not None and known["found_for"] == found_for:
        return dataclasses.replace(stage, memory=MemoryConfig(**known["memory"]))
    shapes, dtype = jax.eval_shape(lambda: frozen or Frozen()), default_dtype()

    def step_of(stage: TrainingStage) -> Step:
        return step_of_model(
            *(stage, config, embedding, shapes, devices, Assumptions()),
            dtype=jnp.dtype(dtype),
        )

    enough = enough_tokens(devices[0].platform)
    # All hosts compile, as some compilers want them to. What the first finds counts.
    memory = hosts.together(
        "memory settings",
        lambda: within_budget(stage, step_of, enough=enough, say=say),
    )
    settings = hosts.from_first("memory settings", lambda: dataclasses.asdict(memory))
    if folder.writes:
        write_json(place, {"memory": settings, "found_for": found_for})
    return dataclasses.replace(stage, memory=MemoryConfig(**settings))
