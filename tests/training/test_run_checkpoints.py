import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from compilation import environment

from nomic_jax.training.run_checkpoints import (
    Checkpoints,
    from_named_arrays,
    named_arrays,
)
from nomic_jax.training.steps import TrainState


def state_of(value, shape=(3,)):
    parameters = {"w": jnp.full(shape, value), "b": jnp.full((2, 2), -value)}
    moments = optax.adam(0.1).init(parameters)
    return TrainState(parameters, moments, jnp.asarray(int(value), jnp.int32))


def test_names_say_where_an_array_belongs():
    named = named_arrays(state_of(1.0))
    assert {"model.w", "model.b", "step"} <= set(named)
    assert {"optimizer.0.mu.w", "optimizer.0.nu.b", "optimizer.0.count"} <= set(named)
    assert len(named) == len(jax.tree.leaves(state_of(1.0)))


def test_named_arrays_go_back_into_their_places():
    again = from_named_arrays(state_of(0.0), named_arrays(state_of(7.0)))
    assert jax.tree.structure(again) == jax.tree.structure(state_of(7.0))
    for ours, theirs in zip(
        jax.tree.leaves(again), jax.tree.leaves(state_of(7.0)), strict=True
    ):
        np.testing.assert_array_equal(ours, theirs)


def test_arrays_that_do_not_fit_are_all_named():
    arrays = named_arrays(state_of(1.0, shape=(4,)))
    arrays["model.c"] = arrays.pop("model.b")
    with pytest.raises(ValueError) as caught:
        from_named_arrays(state_of(0.0), arrays)
    for part in ("missing model.b", "unused model.c", "model.w is (4,), expected (3,)"):
        assert part in str(caught.value)


def test_the_newest_checkpoints_are_kept_and_the_newest_is_restored(tmp_path):
    with Checkpoints(tmp_path, keep=2) as checkpoints:
        assert checkpoints.latest_step is None
        for step in (1, 2, 3, 5):
            checkpoints.save(step, state_of(float(step)))
        checkpoints.save(5, state_of(9.0))  # a step is saved once
    with Checkpoints(tmp_path, keep=2) as checkpoints:
        assert checkpoints.latest_step == 5
        restored = checkpoints.restore(state_of(0.0))
    np.testing.assert_array_equal(restored.model["w"], np.full(3, 5.0))
    assert int(restored.step) == 5
    names = {path.name for path in (tmp_path / "checkpoints").iterdir()}
    assert names == {"3", "5"}


def test_a_checkpoint_is_plain_arrays_to_who_knows_nothing_of_this_project(tmp_path):
    import orbax.checkpoint as ocp

    with Checkpoints(tmp_path, keep=1) as checkpoints:
        checkpoints.save(4, state_of(4.0))
    with ocp.StandardCheckpointer() as reader:
        found = reader.restore(tmp_path.resolve() / "checkpoints" / "4" / "default")
    expected = named_arrays(state_of(4.0))
    assert set(found) == set(expected)
    for name, array in expected.items():
        assert found[name].dtype == array.dtype
        np.testing.assert_array_equal(found[name], array)


def test_a_state_may_be_overwritten_as_soon_as_save_returns(tmp_path):
    # 16 MB an array: long enough to write that the next steps run next to it.
    shape = (2048, 2048)

    def overwrite(state):
        return jax.tree.map(lambda x: x + 1, state)

    step = jax.jit(overwrite, donate_argnums=0)
    state = TrainState({"w": jnp.zeros(shape)}, (), jnp.zeros((), jnp.int32))
    with Checkpoints(tmp_path, keep=9) as checkpoints:
        for number in range(0, 12, 3):
            checkpoints.save(number, state)
            for _ in range(3):
                state = step(state)
        jax.block_until_ready(state)
    import orbax.checkpoint as ocp

    with ocp.StandardCheckpointer() as reader:
        for number in range(0, 12, 3):
            path = tmp_path.resolve() / "checkpoints" / str(number) / "default"
            found = reader.restore(path)
            assert int(found["step"]) == number
            assert (np.asarray(found["model.w"]) == number).all()


def test_an_unfinished_checkpoint_is_not_the_newest(tmp_path):
    with Checkpoints(tmp_path, keep=2) as checkpoints:
        checkpoints.save(2, state_of(2.0))
    # What a kill leaves of a write in progress.
    partial = tmp_path / "checkpoints" / "4.orbax-checkpoint-tmp-17"
    partial.mkdir()
    (partial / "half").write_text("of it")
    with Checkpoints(tmp_path, keep=2) as checkpoints:
        assert checkpoints.latest_step == 2
        checkpoints.save(4, state_of(4.0))
    with Checkpoints(tmp_path, keep=2) as checkpoints:
        restored = checkpoints.restore(state_of(0.0))
    assert int(restored.step) == 4


def files_of(folder, step):
    """The files of a checkpoint, largest last."""
    files = [f for f in (folder / "checkpoints" / str(step)).rglob("*") if f.is_file()]
    return sorted(files, key=lambda file: file.stat().st_size)


def two_checkpoints(folder):
    with Checkpoints(folder, keep=2) as checkpoints:
        for step in (2, 4):
            checkpoints.save(step, state_of(float(step), shape=(64, 64)))


def cut_the_largest(folder, step):
    file = files_of(folder, step)[-1]
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


def lose_the_metadata(folder, step):
    (folder / "checkpoints" / str(step) / "default" / "_METADATA").unlink()


def lose_everything(folder, step):
    for file in files_of(folder, step):
        file.unlink()


@pytest.mark.parametrize(
    "damage", [cut_the_largest, lose_the_metadata, lose_everything]
)
def test_a_damaged_newest_checkpoint_is_set_aside(tmp_path, capsys, damage):
    two_checkpoints(tmp_path)
    damage(tmp_path, 4)
    with Checkpoints(tmp_path, keep=2) as checkpoints:
        assert checkpoints.latest_step == 2
        restored = checkpoints.restore(state_of(0.0, shape=(64, 64)))
        said = capsys.readouterr().err
        assert str(tmp_path / "checkpoints" / "4") in said
        assert "4.damaged" in said and "step 2 is used" in said
        checkpoints.save(4, state_of(5.0, shape=(64, 64)))  # its place is free
    assert int(restored.step) == 2
    np.testing.assert_array_equal(restored.model["w"], np.full((64, 64), 2.0))
    assert (tmp_path / "checkpoints" / "4.damaged").is_dir()
    with Checkpoints(tmp_path, keep=2) as checkpoints:
        assert int(checkpoints.restore(state_of(0.0, shape=(64, 64))).step) == 5
    assert capsys.readouterr().err == ""


def test_where_no_checkpoint_can_be_read_nothing_is_renamed(tmp_path):
    two_checkpoints(tmp_path)
    for step in (2, 4):
        cut_the_largest(tmp_path, step)
    with pytest.raises(ValueError, match="none of the checkpoints in .* can be read"):
        Checkpoints(tmp_path, keep=2)
    names = {path.name for path in (tmp_path / "checkpoints").iterdir()}
    assert names == {"2", "4"}


def test_another_models_checkpoint_is_refused_not_set_aside(tmp_path):
    two_checkpoints(tmp_path)
    with Checkpoints(tmp_path, keep=2) as checkpoints:
        with pytest.raises(ValueError, match=r"model.w is \(64, 64\), expected \(3,\)"):
            checkpoints.restore(state_of(0.0))
    assert not (tmp_path / "checkpoints" / "4.damaged").exists()


@pytest.mark.parametrize("mode, best", [("max", 2), ("min", 3)])
def test_the_best_checkpoint_is_kept_besides_the_newest(tmp_path, mode, best):
    scores = {1: 0.4, 2: 0.9, 3: 0.1, 4: None, 5: 0.5, 6: None, 7: float("nan")}

    def opened():
        return Checkpoints(tmp_path, keep=2, best="score", best_mode=mode)

    # Across runs: what was best is known from the disk.
    for steps in ((1, 2, 3, 4), (5, 6, 7)):
        with opened() as checkpoints:
            for step in steps:
                value = scores[step]
                metrics = {} if value is None else {"score": value, "other": 9.0}
                checkpoints.save(step, state_of(float(step)), metrics)
    with opened() as checkpoints:
        assert checkpoints.best_step == best
        assert checkpoints.latest_step == 7
        assert int(checkpoints.restore(state_of(0.0)).step) == 7
    names = {path.name for path in (tmp_path / "checkpoints").iterdir()}
    assert names == {str(best), "6", "7"}


def test_checkpoints_where_orbax_does_not_write_are_refused():
    with pytest.raises(ValueError, match="cannot be written to memory://run/check"):
        Checkpoints("memory://run", keep=1)


ON_A_MESH = """
import sys
import jax, jax.numpy as jnp, numpy as np, optax
from jax.sharding import AxisType, NamedSharding, PartitionSpec as P
from nomic_jax.training.run_checkpoints import Checkpoints
from nomic_jax.training.optimizer import named_arrays
from nomic_jax.training.steps import TrainState

folder, task, *sizes = sys.argv[1:]
sizes = tuple(map(int, sizes))
mesh = jax.make_mesh(sizes, ("data", "fsdp"), axis_types=(AxisType.Auto,) * 2)
values = jax.random.normal(jax.random.key(0), (16, 8))
state = TrainState({"w": values}, optax.adam(0.1).init({"w": values * 2}), jnp.int32(3))
place = lambda x: jax.device_put(
    x, NamedSharding(mesh, P("fsdp", "data") if x.ndim == 2 else P())
)
with Checkpoints(folder, keep=1) as checkpoints:
    if task == "save":
        checkpoints.save(3, jax.tree.map(place, state))
    else:
        like = jax.tree.map(lambda x: place(jnp.zeros_like(x)), state)
        restored = checkpoints.restore(like)
        ours, theirs = named_arrays(restored), named_arrays(state)
        for name, array in ours.items():
            np.testing.assert_array_equal(array, theirs[name])
            assert array.sharding == named_arrays(like)[name].sharding
        assert len(ours["model.w"].sharding.device_set) == mesh.size
"""


@pytest.mark.slow
def test_a_checkpoint_of_eight_devices_is_restored_bitwise_onto_four_and_one(tmp_path):
    for devices, task, sizes in (
        (8, "save", "1 8"),
        (4, "restore", "2 2"),
        (1, "restore", "1 1"),
    ):
        ended = subprocess.run(
            [sys.executable, "-c", ON_A_MESH, str(tmp_path), task, *sizes.split()],
            env=environment(devices=devices),
            capture_output=True,
            text=True,
        )
        assert ended.returncode == 0, ended.stderr
