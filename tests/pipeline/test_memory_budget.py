import dataclasses
import json

import pytest
from plan_stages import MLM

from nomic_jax.config import EmbeddingConfig
from nomic_jax.pipeline import train_encoder
from nomic_jax.pipeline.train_encoder import with_memory_settings
from nomic_jax.training.placement import MemoryConfig
from nomic_jax.training.run_folder import RunFolder

EMBEDDING = EmbeddingConfig(pooling="mean", layer_norm=False, max_length=64)
CONFIG = MLM.model.config(vocab_size=128, pad_token_id=0)
FOUND = MemoryConfig(tokens_at_once=512, remat="dots")


@pytest.fixture
def searches(monkeypatch):
    """Count searches, and let them find the same."""
    made = []

    def search(stage, step_of, **asked):
        made.append(step_of(dataclasses.replace(stage, memory=FOUND)))
        return FOUND

    monkeypatch.setattr(train_encoder, "within_budget", search)
    return made


def settings(stage, folder):
    found = with_memory_settings(stage, CONFIG, EMBEDDING, folder)
    assert dataclasses.replace(found, memory=stage.memory) == stage
    return found.memory


def test_a_run_that_goes_on_takes_the_settings_it_began_with(tmp_path, searches):
    folder = RunFolder(str(tmp_path))
    stage = dataclasses.replace(MLM, memory=MemoryConfig(budget=1.0))
    assert settings(stage, folder) == settings(stage, folder) == FOUND
    (step,) = searches
    # What is compiled is what this machine runs, not what an accelerator would.
    assert step.state.model.encoder.dtype == "float32"
    assert step.state.model.encoder.config == CONFIG
    kept = json.loads((tmp_path / "memory.json").read_text())
    assert kept["memory"] == dataclasses.asdict(FOUND)
    assert kept["found_for"]["budget"] == 1.0


def test_another_budget_or_device_is_searched_for_anew(tmp_path, searches):
    folder = RunFolder(str(tmp_path))
    for budget in (1.0, 2.0):
        settings(dataclasses.replace(MLM, memory=MemoryConfig(budget=budget)), folder)
    assert len(searches) == 2
    kept = json.loads((tmp_path / "memory.json").read_text())
    kept["found_for"]["devices"] = [8, "TPU v5e"]
    (tmp_path / "memory.json").write_text(json.dumps(kept))
    settings(dataclasses.replace(MLM, memory=MemoryConfig(budget=2.0)), folder)
    assert len(searches) == 3


def test_without_a_budget_nothing_is_searched_for(tmp_path, searches):
    folder = RunFolder(str(tmp_path))
    assert settings(MLM, folder) == MLM.memory
    assert not searches and not list(tmp_path.iterdir())
