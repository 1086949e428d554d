import json

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from nomic_jax.training.run_folder import (
    Checkpoints,
    RunFolder,
    config_hash,
    differing_fields,
    from_named_arrays,
    named_arrays,
    read_metrics,
)
from nomic_jax.training.steps import TrainState

CONFIG = {"name": "mlm", "train": {"steps": 5, "seed": 0}, "dims": (1, 2), "clip": None}


def state_of(value, shape=(3,)):
    parameters = {"w": jnp.full(shape, value), "b": jnp.full((2, 2), -value)}
    moments = optax.adam(0.1).init(parameters)
    return TrainState(parameters, moments, jnp.asarray(int(value), jnp.int32))


def tree_of(folder):
    return {
        path: path.read_bytes() if path.is_file() else None
        for path in folder.rglob("*")
    }


def test_the_same_config_opens_its_folder_again(tmp_path):
    RunFolder.open(tmp_path / "mlm", CONFIG).log({"step": 1})
    RunFolder.open(tmp_path / "mlm", dict(reversed(CONFIG.items())))
    written = json.loads((tmp_path / "mlm" / "config.json").read_text())
    assert written["stage"]["train"] == {"steps": 5, "seed": 0}
    assert written["hash"] == config_hash(CONFIG)
    assert written["hash"] != config_hash(CONFIG | {"clip": 1.0})


def test_another_config_is_refused_with_its_fields_and_nothing_changes(tmp_path):
    RunFolder.open(tmp_path / "mlm", CONFIG).log({"step": 1})
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


def test_differing_fields_looks_into_sections():
    old = {"a": {"b": {"c": 1}, "d": 2}, "e": [1, 2]}
    new = {"a": {"b": {"c": 3}, "d": 2}, "e": [1], "f": "x"}
    assert differing_fields(old, new) == [
        "a.b.c was 1 and is 3",
        "e was [1, 2] and is [1]",
        "f was None and is 'x'",
    ]


def test_metrics_beyond_the_checkpoint_are_forgotten(tmp_path):
    folder = RunFolder.open(tmp_path, CONFIG)
    folder.forget_metrics_after(3)  # there is no file yet
    for step in (2, 4, 6):
        folder.log({"step": step, "loss": 0.1 + step})
    folder.forget_metrics_after(4)
    folder.log({"step": 5})
    assert [line["step"] for line in read_metrics(folder.metrics_file)] == [2, 4, 5]
    assert read_metrics(folder.metrics_file)[1] == {"step": 4, "loss": 4.1}


def test_a_last_line_cut_short_is_ignored_and_then_gone(tmp_path):
    folder = RunFolder.open(tmp_path, CONFIG)
    for step in (2, 4):
        folder.log({"step": step})
    whole = folder.metrics_file.read_text()
    folder.metrics_file.write_text(whole + '{"step": 6, "lo')
    assert [line["step"] for line in read_metrics(folder.metrics_file)] == [2, 4]
    folder.forget_metrics_after(6)
    folder.log({"step": 6})
    assert [line["step"] for line in read_metrics(folder.metrics_file)] == [2, 4, 6]


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
    # 16 MB an array: long enough to write that the next steps run beside it.
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
