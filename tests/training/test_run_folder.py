import json

import pytest

from nomic_jax.training.metrics import MetricsFile, read_metrics
from nomic_jax.training.run_folder import RunFolder, config_hash

CONFIG = {"name": "mlm", "train": {"steps": 5, "seed": 0}, "dims": (1, 2), "clip": None}


def began(path):
    """A folder in which a run has logged something."""
    MetricsFile(RunFolder.open(path, CONFIG).metrics_file).append({"step": 1})


def tree_of(folder):
    return {
        path: path.read_bytes() if path.is_file() else None
        for path in folder.rglob("*")
    }


def test_the_same_config_opens_its_folder_again(tmp_path):
    began(tmp_path / "mlm")
    RunFolder.open(tmp_path / "mlm", dict(reversed(CONFIG.items())))
    written = json.loads((tmp_path / "mlm" / "config.json").read_text())
    assert written["stage"]["train"] == {"steps": 5, "seed": 0}
    assert written["hash"] == config_hash(CONFIG)
    assert written["hash"] != config_hash(CONFIG | {"clip": 1.0})


def test_another_config_is_refused_with_its_fields_and_nothing_changes(tmp_path):
    began(tmp_path / "mlm")
    before = tree_of(tmp_path)
    other = CONFIG | {"train": {"steps": 6, "seed": 0}, "clip": 1.0}
    with pytest.raises(ValueError) as caught:
        RunFolder.open(tmp_path / "mlm", other)
    message = str(caught.value)
    for part in ("train.steps was 5 and is 6", "clip was None and is 1.0", "--out"):
        assert part in message
    assert "seed" not in message
    assert tree_of(tmp_path) == before


def test_a_stage_that_left_nothing_but_its_config_may_be_changed(tmp_path):
    RunFolder.open(tmp_path / "prepare", CONFIG)
    RunFolder.open(tmp_path / "prepare", CONFIG | {"clip": 1.0})


def test_metrics_beyond_the_checkpoint_are_forgotten(tmp_path):
    place = tmp_path / "metrics.jsonl"
    file = MetricsFile(place, after=3)  # there is no file yet
    for step in (2, 4, 6):
        file.append({"step": step, "loss": 0.1 + step})
    MetricsFile(place, after=4).append({"step": 5})
    assert [line["step"] for line in read_metrics(place)] == [2, 4, 5]
    assert read_metrics(place)[1] == {"step": 4, "loss": 4.1}


def test_a_last_line_cut_short_is_ignored_and_then_gone(tmp_path):
    place = tmp_path / "metrics.jsonl"
    file = MetricsFile(place)
    for step in (2, 4):
        file.append({"step": step})
    place.write_text(place.read_text() + '{"step": 6, "lo')
    assert [line["step"] for line in read_metrics(place)] == [2, 4]
    MetricsFile(place, after=6).append({"step": 6})
    assert [line["step"] for line in read_metrics(place)] == [2, 4, 6]


def test_a_run_folder_may_be_a_url():
    place = "memory://runs/one/mlm"
    folder = RunFolder.open(place, CONFIG)
    assert folder.config["train"] == {"steps": 5, "seed": 0}
    file = MetricsFile(folder.metrics_file)
    for step in (2, 4):
        file.append({"step": step})
    file.flush()
    assert [line["step"] for line in read_metrics(folder.metrics_file)] == [2, 4]
    again = MetricsFile(folder.metrics_file, after=2)
    again.append({"step": 3})
    again.flush()
    assert [line["step"] for line in read_metrics(folder.metrics_file)] == [2, 3]
    with pytest.raises(ValueError, match="clip was None and is 1.0"):
        RunFolder.open(place, CONFIG | {"clip": 1.0})


def test_a_run_goes_on_elsewhere_and_nothing_else_may_change(tmp_path):
    here = CONFIG | {"mesh": {"fsdp": 8}, "memory": {"tokens_at_once": 64}}
    elsewhere = here | {"mesh": {"fsdp": 1}, "memory": {"tokens_at_once": None}}
    elsewhere |= {"compute": {"attention": "blockwise"}}
    assert config_hash(here) == config_hash(elsewhere) == config_hash(CONFIG)
    file = MetricsFile(RunFolder.open(tmp_path, here).metrics_file)
    file.append({"step": 1})
    assert RunFolder.open(tmp_path, elsewhere).config["mesh"] == {"fsdp": 1}
    with pytest.raises(ValueError, match="clip was None and is 1.0"):
        RunFolder.open(tmp_path, elsewhere | {"clip": 1.0})


def test_a_host_that_does_not_write_leaves_the_folder_alone(tmp_path):
    RunFolder.open(tmp_path / "mlm", CONFIG, write=False)
    assert not (tmp_path / "mlm").exists()
