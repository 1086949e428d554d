"""`nomic-jax plan`, with the processor in the place of a pod's chips."""

import os
import subprocess
import sys
from unittest import mock

import jax
import pytest
from paths import HELPERS

from nomic_jax.cli.main import nomic_jax as run
from nomic_jax.training.planning import budget, compile, topology
from nomic_jax.training.planning.compile import Compiled, DeviceMemory, Refusal
from nomic_jax.training.planning.roofline import COLUMNS
from nomic_jax.training.planning.topology import CHIPS, Topology

STAGES = HELPERS / "plan_stages.py"
BOTH = ("plan", "--config", str(STAGES), "--topology", "v5e:1x1")


@pytest.fixture(autouse=True)
def environment():
    """Keep what the command sets for libtpu out of other tests."""
    with mock.patch.dict(os.environ):
        yield


@pytest.fixture(autouse=True)
def pod_here(monkeypatch):
    """Let a topology of one chip be the processor, and no real compiler run.

    A row takes a MiB at a time, half of it where layers keep their inputs alone.
    """

    def compile_step(step, chip):
        memory, length = step.stage.memory, step.columns // step.rows
        at_once = memory.tokens_at_once or step.columns
        needed = min(step.rows, at_once // length) * 2**20
        needed /= 2 if memory.remat == "full" else 1
        if needed > 16 * 2**20:
            return Refusal(f"{needed / 2**20:.0f} MiB needed")
        held = DeviceMemory(
            parameters=0, optimizer=0, batch=0, temporaries=needed, program=0
        )
        return Compiled(memory=held, flops=1e12, traffic=1e9, collectives=())

    real, one = topology.open_topology, jax.devices()[:1]
    monkeypatch.setattr(compile, "compile_step", compile_step)
    monkeypatch.setattr(
        topology,
        "open_topology",
        lambda name: Topology(name, CHIPS["v5e"], one) if "1x1" in name else real(name),
    )


def test_every_training_stage_is_planned(capsys):
    assert run([*BOTH, "--train.steps", "50", "--train.batch_size", "4"]) == 0
    out = capsys.readouterr().out
    for part in ("mlm on v5e:1x1 (1 chips), 1 device", "pretrain on v5e:1x1"):
        assert part in out
    assert out.count("for 50 steps") == out.count("bound by arithmetic") == 2
    assert "queries full, 32 tokens" in out


def test_a_table_has_a_row_for_each_stage(capsys):
    assert run([*BOTH, "--train.batch_size", "4", "--markdown"]) == 0
    head, _, *rows = capsys.readouterr().out.splitlines()
    assert [row.split(",")[0] for row in rows] == ["| mlm", "| pretrain"]
    assert {line.count("|") for line in (head, *rows)} == {len(COLUMNS) + 1}


@pytest.mark.slow
def test_what_does_not_fit_is_refused_with_two_settings_that_do(capsys):
    # 20 rows do not, 10 do, or 20 of whose layers the inputs are kept.
    sizes = "--mlm.train.batch_size 20 --pretrain.train.batch_size 4"
    command = [*BOTH, *sizes.split()]
    assert run(command) == 2
    said = capsys.readouterr()
    assert said.err.splitlines()[-1] == (
        "error: does not fit v5e:1x1: mlm: 20 MiB needed; these fit: "
        "--mlm.memory.tokens_at_once 640, or --mlm.memory.remat full"
    )
    assert "pretrain on v5e:1x1" in said.out and "mlm on" not in said.out
    for option in ("--mlm.memory.tokens_at_once 640", "--mlm.memory.remat full"):
        assert run([*command, *option.split()]) == 0


@pytest.mark.slow
def test_a_budget_is_turned_into_the_settings_that_meet_it(capsys, monkeypatch):
    def step_memory(step):
        rows = (step.stage.memory.tokens_at_once or step.columns) // 64
        held = rows * 2**20 / (1 if step.stage.memory.remat == "none" else 2)
        return DeviceMemory(
            parameters=0, optimizer=0, batch=0, temporaries=held, program=0
        )

    monkeypatch.setattr(budget, "step_memory", step_memory)
    sizes = "--mlm.train.batch_size 16 --pretrain.train.batch_size 4"
    command = [*BOTH, *sizes.split(), "--mlm.memory.budget", str(8 / 1024)]
    assert run(command) == 0
    said = capsys.readouterr()
    assert "mlm: tokens_at_once=None, remat=none does not fit: 0.02 GiB" in said.err
    assert "1 device; tokens_at_once=all, remat=dots" in said.out
    assert run([*command[:-1], str(0.4 / 1024)]) == 2
    assert "GiB holds no step, not even of one row" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--topology", "v9:4x4"), "no chip is named 'v9'"),
        (("--realistic", "2"), "--realistic 2.0 must"),
        (("--memory.tokens_at_onc", "9"), "did you mean 'memory.tokens_at_once'?"),
        (("--memory.tokens_at_once", "9"), "tokens_at_once=9 holds no row of 64"),
        (("--mesh.fsdp", "2"), "does not fit 1 devices"),
    ],
)
def test_wrong_input_is_one_line_and_status_2(arguments, said, capsys):
    assert run([*BOTH, *arguments]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ") and said in line


def test_a_config_that_trains_nothing_is_refused(tmp_path, capsys):
    config = tmp_path / "prepare.py"
    config.write_text(
        "from nomic_jax.data.store.stage import PrepareConfig, PrepareStage\n"
        "stages = (PrepareStage(name='prepare', data=PrepareConfig(pairs='python', "
        "row_length=8, query_length=8, document_length=8)),)"
    )
    assert run(["plan", "--config", str(config), "--topology", "v5e:1x1"]) == 2
    assert "has no stage that trains" in capsys.readouterr().err


def test_the_environment_is_prepared_before_jax_reads_it():
    code = (
        "import sys; from nomic_jax.cli import plan; "
        "from nomic_jax.training.planning import prepare_environment; "
        "prepare_environment(); assert 'jax' not in sys.modules; "
        "import jax; assert jax.config.values['jax_platforms'] == 'cpu'"
    )
    elsewhere = os.environ | {"JAX_PLATFORMS": "tpu"}
    subprocess.run([sys.executable, "-c", code], env=elsewhere, check=True)


def test_a_command_without_a_config_takes_no_fields_of_one():
    with pytest.raises(SystemExit) as end:
        run(["verify", "folder", "--memory.remat", "full"])
    assert end.value.code == 2
