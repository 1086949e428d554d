"""The sweep over GLUE: what is trained, what is kept, and what goes on."""

import dataclasses
import json
from pathlib import Path

import pytest
from task_files import write_model

from nomic_jax.glue import sweep as module
from nomic_jax.glue.grid import BATCHES, RATES, SEEDS, TASKS, cells
from nomic_jax.glue.sweep import Sweep, sweep
from nomic_jax.glue.tasks import GLUE, file_of
from nomic_jax.glue_command import Glue, glue

ROWS = 12  # of each file


def write_data(folder, tasks):
    folder.mkdir()
    for name in tasks:
        task = GLUE[name]
        for split in ("train", *task.splits):
            lines = []
            for number in range(ROWS):
                label = number % max(1, len(task.labels)) if task.labels else number / 3
                line = {task.first: "red fox" if number % 2 else "lazy dogs"}
                if task.second:
                    line[task.second] = "the quick brown fox"
                lines.append(json.dumps(line | {"label": label}) + "\n")
            (folder / f"{name}.{split}.jsonl").write_text("".join(lines))
    return str(folder)


@pytest.fixture
def plan(tmp_path):
    return Sweep(
        model="mine",
        data=write_data(tmp_path / "data", ("cola", "mnli", "rte")),
        out=tmp_path / "out",
        tasks=("rte", "cola", "mnli"),
        rates=(1e-5, 3e-5),
        batches=(4,),
        seeds=(3, 5),
    )


@pytest.fixture
def runs(monkeypatch):
    """What would be trained; figures rise from run to run but in MNLI's last cell."""
    seen = []

    def run(stages, out):
        (stage,) = stages
        seen.append(stage)
        folder = Path(out) / stage.name
        for part in (folder / "checkpoints", folder / "model", Path(out) / "model"):
            part.mkdir(parents=True)
            (part / "weights").touch()
        last = stage.name == "mnli" and stage.train.seed == 5
        figure = 0.0 if last else len(seen) / 100
        metrics = {"accuracy": figure, "matthews": figure + 0.5}
        files = [Path(file).stem for file in stage.data.validation]
        found = {file: metrics for file in files}
        (folder / "evaluation.json").write_text(json.dumps(found))

    monkeypatch.setattr(module, "run", run)
    return seen


def test_the_grid_is_the_papers():
    grid = [cell for task in TASKS for cell in cells(task, RATES, BATCHES, SEEDS)]
    assert len({(cell.task, cell.name) for cell in grid}) == 8 * 3 * 2 * 5
    assert file_of("tfds:glue", "mnli", "train") == "tfds:glue/mnli:train"


def test_the_best_of_mnli_is_what_rte_starts_with(plan, runs):
    rows = sweep(plan)
    tasks = [stage.name for stage in runs]
    assert tasks == ["cola"] * 4 + ["mnli"] * 4 + ["rte"] * 4
    # Of MNLI, seed 3 of the second rate was the best: 7 runs before and with it.
    best = plan.out / "mnli" / "rate_3e-05_batch_4_seed_3"
    starts = {(stage.name, stage.start.model) for stage in runs}
    model = str(best / "mnli" / "model")
    assert starts == {("cola", "mine"), ("mnli", "mine"), ("rte", model)}
    # Only that model is left, and no checkpoint.
    assert [path.parent for path in plan.out.rglob("weights")] == [Path(model)]
    found = {row.task: (row.metric, row.rate, row.median) for row in rows}
    assert found["cola"] == ("matthews", 3e-5, pytest.approx(0.535))
    assert found["mnli-m"] == ("accuracy", 3e-5, pytest.approx(0.035))
    assert found["rte"] == ("accuracy", 3e-5, pytest.approx(0.115))
    # Ten epochs of the 12 lines that there are, 6 % of them warmup.
    assert {stage.train.steps for stage in runs} == {30}
    assert {stage.optimizer.warmup_steps for stage in runs} == {1}
    assert json.loads((plan.out / "glue.json").read_text())["average"] is None
    assert (plan.out / "glue.md").read_text().count("\n") == 2 + len(rows)


def test_cells_that_are_done_are_read_back(plan, runs, monkeypatch):
    real = module.run

    def stopped(stages, out):
        if len(runs) == 5:
            raise SystemExit(75)
        real(stages, out)

    monkeypatch.setattr(module, "run", stopped)
    with pytest.raises(SystemExit):
        sweep(plan)
    monkeypatch.setattr(module, "run", real)
    rows = sweep(plan)
    assert len(runs) == 12  # none twice
    assert sweep(plan) == rows
    assert len(runs) == 12


def test_without_mnli_the_model_itself_is_said_to_be_the_start(tmp_path, runs, capsys):
    data = write_data(tmp_path / "data", ("rte",))
    options = Glue(
        model="mine", data=data, out=tmp_path / "out", tasks=("rte",), steps=2
    )
    assert glue(options) == 0
    printed = capsys.readouterr()
    assert "rte starts with mine" in printed.err and "no cell of MNLI" in printed.err
    assert printed.out.startswith("| task | metric |") and "| mine |" in printed.out
    assert {stage.start.model for stage in runs} == {"mine"} and len(runs) == 30
    assert {stage.train.steps for stage in runs} == {2}


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"tasks": ("rtw",)}, r"--tasks rtw: did you mean 'rte'"),
        ({"seeds": (1, 1)}, r"--seeds 1 1: .* none twice"),
        ({"rates": (0.0,)}, r"--rates .* above 0"),
        ({"batches": ()}, r"--batches : give at least one"),
        ({"steps": 0}, r"--steps 0"),
        ({"data": "nowhere"}, r"--data nowhere is no folder"),
        ({"tasks": ("cola", "sst2")}, r"sst2\.train\.jsonl"),
    ],
)
def test_what_cannot_be_trained_is_refused_before_anything_is(
    changes, said, plan, runs
):
    with pytest.raises(ValueError, match=said):
        sweep(dataclasses.replace(plan, **changes))
    assert not runs and not plan.out.exists()


def test_a_file_that_the_last_task_lacks_is_told_before_the_first_is_trained(
    plan, runs
):
    (Path(plan.data) / "rte.validation.jsonl").unlink()
    with pytest.raises(ValueError, match=r"rte\.validation\.jsonl"):
        sweep(plan)
    assert not runs and not plan.out.exists()


def test_a_folder_of_another_sweep_is_refused(plan, runs):
    sweep(plan)
    with pytest.raises(ValueError, match=r"another sweep: steps was 30 and is 7"):
        sweep(dataclasses.replace(plan, steps=7))
    assert len(runs) == 12


@pytest.mark.slow
@pytest.mark.usefixtures("fast_compilation")
def test_rte_trains_on_from_what_mnli_left(tmp_path):
    model = write_model(tmp_path / "model", trained_positions=128)
    options = Sweep(
        model=model,
        data=write_data(tmp_path / "data", ("mnli", "rte")),
        out=tmp_path / "out",
        tasks=("mnli", "rte"),
        rates=(1e-3,),
        batches=(4,),
        seeds=(0,),
        steps=2,
    )
    rows = sweep(options)
    assert [row.task for row in rows] == ["mnli-m", "mnli-mm", "rte"]
    assert rows[-1].start == "mnli/rate_0.001_batch_4_seed_0"
    for row in rows:
        assert row.median in [n / ROWS for n in range(ROWS + 1)]
        assert row.seeds == 1 and row.deviation is None
    # Nothing is trained again, and another order of tasks is the same sweep.
    before = sorted(path.stat().st_mtime_ns for path in (tmp_path / "out").rglob("*"))
    assert sweep(dataclasses.replace(options, tasks=("rte", "mnli"))) == rows
    after = sorted(path.stat().st_mtime_ns for path in (tmp_path / "out").rglob("*"))
    assert len(before) == len(after)
