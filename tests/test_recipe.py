"""A whole run at the smallest size: it finishes, resumes, refuses, and embeds."""

import dataclasses
import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from nomic_jax.config import nearest
from nomic_jax.data.pairs import PairBatches
from nomic_jax.embedder import Embedder
from nomic_jax.overrides import override
from nomic_jax.recipe import run
from nomic_jax.stages import load_stages
from nomic_jax.verify import check_fingerprint

QUICKSTART = Path(__file__).parents[1] / "configs" / "quickstart.py"
SMALL = (
    "--model.num_layers=1 --model.width=32 --model.mlp_width=32 --model.num_heads=2 "
    "--train.steps=4 --train.batch_size=8 --train.save_every=3 --data.row_length=32 "
    "--data.vocab_size=400 --mining.count=3 --mining.pool=5"
).split()
WORDS = "red green blue old new big small tall short round square soft hard".split()


@pytest.fixture(scope="module")
def pairs(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("text") / "pairs.jsonl"
    rng = np.random.default_rng(0)
    with path.open("w") as file:
        for number in range(240):
            query = " ".join(rng.choice(WORDS, 4)) + f" {number}"
            record = {"query": query, "document": f"About {query}: {query}."}
            file.write(json.dumps(record) + "\n")
    return path


def stages(pairs, *further):
    arguments = [*SMALL, f"--data.pairs={pairs}", *further]
    return override(load_stages(QUICKSTART), arguments)


@pytest.fixture(scope="module")
def finished(pairs, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("runs") / "small"
    run(stages(pairs), out)
    return out


def test_a_run_leaves_what_the_contract_names(finished):
    for stage in ("prepare", "mlm", "pretrain", "mine", "finetune"):
        resolved = json.loads((finished / stage / "config.json").read_text())
        assert resolved["stage"]["name"] == stage and resolved["hash"]
    for stage in ("mlm", "pretrain", "finetune"):
        lines = (finished / stage / "metrics.jsonl").read_text().splitlines()
        assert json.loads(lines[-1])["step"] == 4
        assert (finished / stage / "checkpoints" / "4").is_dir()
        figures = json.loads((finished / stage / "evaluation.json").read_text())
        assert 0 <= figures["pairs"]["ndcg@10"] <= 1
    page = (finished / "report.html").read_text()
    for said in ("random weights", "after finetune", "BM25"):
        assert said in page


def test_the_exported_model_embeds_as_its_fingerprint_says(finished):
    embedder = Embedder.from_pretrained(finished / "model")
    comparison = check_fingerprint(embedder, finished / "model")
    assert comparison is not None and comparison.passed, comparison


def test_a_finished_run_does_nothing_again(finished, pairs):
    def state(folder):
        return {
            path.relative_to(folder): path.stat().st_mtime_ns
            for path in folder.rglob("*")
            if path.is_file() and path.name not in ("report.html", "config.json")
        }

    before = state(finished)
    run(stages(pairs), finished)
    assert state(finished) == before


def test_another_config_in_the_same_folder_is_refused(finished, pairs):
    before = sorted(finished.rglob("*"))
    with pytest.raises(ValueError, match=r"pretrain.*train\.steps was 4 and is 5"):
        run(stages(pairs, "--pretrain.train.steps=5"), finished)
    assert sorted(finished.rglob("*")) == before


def test_a_stage_whose_forerunner_changed_is_refused(finished, pairs, tmp_path):
    shutil.copytree(finished, tmp_path / "small")
    shutil.rmtree(tmp_path / "small" / "mlm")
    with pytest.raises(ValueError, match=r"pretrain holds a run.*after was"):
        run(stages(pairs, "--mlm.train.steps=3"), tmp_path / "small")
    with pytest.raises(ValueError, match="model is of a run without mlm"):
        run(stages(pairs), tmp_path / "small")
    assert not (tmp_path / "small" / "mlm").exists()


def test_too_few_pairs_are_refused_before_anything_is_trained(pairs, tmp_path):
    with pytest.raises(ValueError, match="a batch takes 500 records"):
        run(stages(pairs, "--finetune.train.batch_size=500"), tmp_path)
    assert not (tmp_path / "mlm").exists()


def test_an_interrupted_run_ends_with_the_uninterrupted_parameters(
    finished, pairs, tmp_path, monkeypatch
):
    whole = PairBatches.__call__

    def interrupted(self, step):
        if step == 3:
            raise KeyboardInterrupt
        return whole(self, step)

    monkeypatch.setattr(PairBatches, "__call__", interrupted)
    with pytest.raises(KeyboardInterrupt):
        run(stages(pairs), tmp_path)
    monkeypatch.undo()
    assert not (tmp_path / "pretrain" / "evaluation.json").exists()
    run(stages(pairs), tmp_path)
    weights = "model/model.safetensors"
    assert (tmp_path / weights).read_bytes() == (finished / weights).read_bytes()


def test_mined_negatives_are_what_fine_tuning_reads(finished):
    lines = (finished / "mine" / "train" / "pairs.jsonl").read_text().splitlines()
    for record in map(json.loads, lines):
        assert len(record["negatives"]) == 3
        assert record["document"] not in record["negatives"]


def test_stores_prepared_before_need_no_prepare_stage(finished, pairs, tmp_path):
    found = stages(
        pairs,
        f"--mlm.data.stores={finished}/prepare/text",
        f"--pretrain.data.stores={finished}/prepare/pairs",
    )
    run(found[1:3], tmp_path / "elsewhere")
    # The same batches, from the same start: the parameters are the same.
    for stage in ("mlm", "pretrain"):
        lines = [
            json.loads((out / stage / "metrics.jsonl").read_text().splitlines()[-1])
            for out in (finished, tmp_path / "elsewhere")
        ]
        assert lines[0]["loss"] == lines[1]["loss"]
        assert lines[0]["gradient_norm"] == lines[1]["gradient_norm"]
    assert Embedder.from_pretrained(tmp_path / "elsewhere" / "model")
    assert (tmp_path / "elsewhere" / "report.html").is_file()


def test_the_quickstart_is_what_the_design_names():
    found = load_stages(QUICKSTART)
    assert [stage.name for stage in found] == [
        *("prepare", "mlm", "pretrain", "mine", "finetune")
    ]
    assert all(dataclasses.is_dataclass(stage) for stage in found)
    assert "did you mean" in nearest("pretrian", [stage.name for stage in found])
