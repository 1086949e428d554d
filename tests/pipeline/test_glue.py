"""The sweep over GLUE: what is trained, what is kept, and what goes on."""

import dataclasses
import json
import shutil
from pathlib import Path

import pytest
from task_files import write_model

from nomic_jax.cli.glue import Glue, glue
from nomic_jax.downstream.glue import GLUE, file_of
from nomic_jax.downstream.glue_grid import BATCHES, RATES, SEEDS, TASKS, Sweep, cells
from nomic_jax.pipeline import glue as module
from nomic_jax.pipeline.glue import sweep

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
def mine(tmp_path, monkeypatch):
    """What only the digest of a model looks at, as nothing is trained."""
    monkeypatch.chdir(tmp_path)
    Path("mine").mkdir()
    Path("mine/config.json").write_text('{"model_type": "other"}')
    Path("mine/model.safetensors").write_text("weights")


@pytest.fixture
def plan(tmp_path, mine):
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
            (part / "model.safetensors").write_text(f"of run {len(seen)}")
        last = stage.name == "mnli" and stage.train.seed == 5
        figure = 0.0 if last else len(seen) / 100
        metrics = {"accuracy": figure, "matthews": figure + 0.5}
        files = [Path(file).stem for file in stage.data.validation]
        found = {file: metrics for file in files}
        (folder / "evaluation.json").write_text(json.dumps(found))

    monkeypatch.setattr(module, "run", run)
    return seen


def weights(out):
    return [path.parent for path in out.rglob("model.safetensors")]


def test_the_grid_is_the_papers():
    grid = [cell for task in TASKS for cell in cells(task, RATES, BATCHES, SEEDS)]
    assert len({(cell.task, cell.name) for cell in grid}) == 8 * 3 * 2 * 5
    assert file_of("tfds:glue", "mnli", "train") == "tfds:glue/mnli:train"


@pytest.mark.slow
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
    assert weights(plan.out) == [Path(model)]
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


@pytest.mark.usefixtures("mine")
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
        ({"data": "nowhere"}, r"--data nowhere is not a folder"),
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
    with pytest.raises(
        ValueError, match=r"another sweep: fixed_steps was None and is 7"
    ):
        sweep(dataclasses.replace(plan, steps=7))
    assert len(runs) == 12


def replace_mnli(plan):
    shutil.rmtree(plan.out / "mnli")


def retrained_mnli(plan):
    for file in (plan.out / "mnli").glob("*/cell.json"):
        file.write_text(
            file.read_text().replace('"left_digest": "', '"left_digest": "0')
        )


def replace_model(plan):
    Path("mine/model.safetensors").write_text("others")


def replace_data(plan):
    file = Path(plan.data) / "rte.validation.jsonl"
    file.write_text(file.read_text().replace("red fox", "red dog"))


@pytest.mark.parametrize(
    ("replace", "said", "trained"),
    [
        (replace_model, r"cola.*model_digest was '", 12),
        (replace_data, r"rte.*another sweep: data_digest was '", 12),
        # Trained again it is another one; its cells carry the names of the old ones.
        (replace_mnli, r"rte.*another sweep: start_digest was '", 16),
        (retrained_mnli, r"rte.*another sweep: start_digest was '", 12),
    ],
)
def test_what_is_replaced_under_the_same_name_is_noticed(
    replace, said, trained, plan, runs
):
    sweep(plan)
    replace(plan)
    with pytest.raises(ValueError, match=said):
        sweep(plan)
    assert len(runs) == trained


def test_the_same_model_and_data_elsewhere_are_the_same_sweep(plan, runs):
    rows = sweep(plan)
    Path("mine").rename("moved")
    Path(plan.data).rename("data2")
    moved = dataclasses.replace(plan, model="moved", data="data2")
    assert sweep(moved) == rows and len(runs) == 12


@pytest.mark.parametrize("checkpoint", [True, False])
def test_a_stopped_cell_goes_on_with_the_model_it_began_with(
    checkpoint, plan, runs, monkeypatch
):
    plan, real = dataclasses.replace(plan, tasks=("cola",)), module.run

    def stopped(stages, out):
        if checkpoint:
            (Path(out) / "cola" / "checkpoints").mkdir(parents=True)
        raise SystemExit(75)

    monkeypatch.setattr(module, "run", stopped)
    with pytest.raises(SystemExit):
        sweep(plan)
    monkeypatch.setattr(module, "run", real)
    replace_model(plan)
    if checkpoint:
        with pytest.raises(ValueError, match=r"another sweep: model_digest was"):
            sweep(plan)
    else:
        sweep(plan)
    assert len(runs) == (0 if checkpoint else 4)


def test_the_table_is_of_the_cells_of_all_commands(plan, runs):
    sweep(dataclasses.replace(plan, tasks=("cola",), rates=(1e-5,)))
    sweep(dataclasses.replace(plan, tasks=("rte",), seeds=(7,)))
    rows = sweep(dataclasses.replace(plan, tasks=("cola",), rates=(1.0000001e-5,)))
    assert len(runs) == 2 + 2 + 2  # rates that differ a little have cells of their own
    assert {row.task: row.rate for row in rows} == {"cola": 1.0000001e-5, "rte": 3e-5}
    found = json.loads((plan.out / "glue.json").read_text())
    assert [cell["cell"]["task"] for cell in found["cells"]] == ["cola"] * 4 + [
        "rte"
    ] * 2
    assert "| rte |" in (plan.out / "glue.md").read_text()


def test_mnli_after_the_tasks_that_would_start_with_it_is_refused_at_once(plan, runs):
    sweep(dataclasses.replace(plan, tasks=("rte",)))
    with pytest.raises(
        ValueError, match=r"rte holds cells that started with mine, and"
    ):
        sweep(plan)
    assert len(runs) == 4


def test_seeds_of_a_task_start_with_one_model(plan, runs):
    plan = dataclasses.replace(plan, tasks=("mnli",), rates=(1e-5,), seeds=(5,))
    sweep(plan)
    sweep(dataclasses.replace(plan, tasks=("rte",), seeds=(7,)))
    both = dataclasses.replace(plan, tasks=("mnli", "rte"), seeds=(3,))
    with pytest.raises(ValueError, match=r"rte.*_seed_7 holds .* start_digest was"):
        sweep(both)  # its MNLI is better than that which seed 7 of RTE started with
    assert [stage.name for stage in runs] == ["mnli", "rte", "mnli"]


def test_a_table_is_of_one_model(plan, runs):
    sweep(dataclasses.replace(plan, tasks=("cola",)))
    replace_model(plan)
    with pytest.raises(ValueError, match=r"cola.*model_digest"):
        sweep(dataclasses.replace(plan, tasks=("mnli",)))
    assert len(runs) == 4


def test_a_model_of_mnli_that_is_the_best_no_longer_is_removed(plan, runs):
    plan = dataclasses.replace(plan, tasks=("mnli",), rates=(1e-5,), seeds=(5,))
    sweep(plan)
    assert [path.parts[-3] for path in weights(plan.out)] == [
        "rate_1e-05_batch_4_seed_5"
    ]
    sweep(dataclasses.replace(plan, seeds=(3,)))
    assert [path.parts[-3] for path in weights(plan.out)] == [
        "rate_1e-05_batch_4_seed_3"
    ]


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (lambda text: "{}", r"missing field 'batch'"),
        (lambda text: text[:20], r"is not JSON"),
        (lambda text: "3", r"no object"),
        (lambda text: text.replace('"seed": 3', '"seed": 5'), r"is of cola/.*seed_5"),
        (lambda text: text.replace('"figures": [', '"figures": [1.0,'), r"not one of"),
    ],
)
def test_a_damaged_cell_is_named(damage, said, plan, runs):
    plan = dataclasses.replace(plan, tasks=("cola",), rates=(1e-5,))
    sweep(plan)
    file = plan.out / "cola" / "rate_1e-05_batch_4_seed_3" / "cell.json"
    file.write_text(damage(file.read_text()))
    with pytest.raises(ValueError, match=rf"seed_3.cell\.json .*{said}.*; remove "):
        sweep(plan)
    assert len(runs) == 2


@pytest.mark.slow
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
