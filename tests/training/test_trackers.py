import sys
from types import ModuleType

import pytest

from nomic_jax.training.metrics import open_trackers


class Recorder:
    """Stands for SummaryWriter and for a run of Weights & Biases."""

    def __init__(self, *arguments, **options):
        self.arguments, self.options = arguments, options
        self.calls = []

    def __getattr__(self, name):
        return lambda *arguments, **options: self.calls.append(
            (name, *arguments, *options.items())
        )


def stand_in(monkeypatch, package, member):
    module = ModuleType(package)
    setattr(module, member, Recorder)
    monkeypatch.setitem(sys.modules, package, module)


def opened(folder, *, tensorboard=False, wandb="", start=0, writes=True):
    return open_trackers(
        str(folder),
        name="mlm",
        config={"kind": "mlm"},
        start=start,
        tensorboard=tensorboard,
        wandb=wandb,
        writes=writes,
    )


def test_nothing_is_imported_unless_asked_for(tmp_path, monkeypatch):
    for name in ("tensorboardX", "wandb"):
        monkeypatch.setitem(sys.modules, name, None)  # importing it fails
    assert opened(tmp_path) == []


@pytest.mark.parametrize(
    "asked, package",
    [({"tensorboard": True}, "tensorboardX"), ({"wandb": "p"}, "wandb")],
)
def test_a_missing_package_is_named(tmp_path, monkeypatch, asked, package):
    monkeypatch.setitem(sys.modules, package, None)
    for writes in (True, False):  # on every host, so that all of them stop
        with pytest.raises(ValueError, match=f"pip install {package}"):
            opened(tmp_path, **asked, writes=writes)


def test_tensorboard_gets_every_number_and_drops_what_a_resumed_run_repeats(
    tmp_path, monkeypatch
):
    stand_in(monkeypatch, "tensorboardX", "SummaryWriter")
    (tracker,) = opened(tmp_path, tensorboard=True, start=7)
    tracker.log(10, {"loss": 0.5, "accuracy/web": 0.25})
    tracker.close()
    writer = tracker._writer
    assert writer.arguments == (str(tmp_path / "tensorboard"),)
    assert writer.options == {"purge_step": 8}
    assert writer.calls == [
        ("add_scalar", "loss", 0.5, 10),
        ("add_scalar", "accuracy/web", 0.25, 10),
        ("close",),
    ]


def test_one_host_of_several_writes(tmp_path, monkeypatch):
    stand_in(monkeypatch, "wandb", "init")
    assert opened(tmp_path, wandb="project", writes=False) == []


def test_weights_and_biases_knows_a_resumed_folder_again(tmp_path, monkeypatch):
    stand_in(monkeypatch, "wandb", "init")
    (one,) = opened(tmp_path / "a", wandb="project")
    (again,) = opened(tmp_path / "a", wandb="project", start=7)
    (other,) = opened(tmp_path / "b", wandb="project")
    ids = [tracker._run.options["id"] for tracker in (one, again, other)]
    assert ids[0] == ids[1] != ids[2]
    assert one._run.options["resume"] == "allow"
    assert one._run.options["config"] == {"kind": "mlm"}
    one.log(3, {"loss": 0.5})
    one.close()
    assert one._run.calls == [("log", {"loss": 0.5}, ("step", 3)), ("finish",)]


def test_tensorboard_reads_what_is_written(tmp_path):
    pytest.importorskip("tensorboardX")
    (tracker,) = opened(tmp_path, tensorboard=True)
    tracker.log(1, {"loss": 0.5})
    tracker.close()
    (file,) = (tmp_path / "tensorboard").iterdir()
    assert b"loss" in file.read_bytes()
