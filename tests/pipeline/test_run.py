"""A whole run at the smallest size: it finishes, resumes, refuses, and embeds."""

import dataclasses
import json
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from compilation import environment
from paths import ROOT

from nomic_jax.config import did_you_mean
from nomic_jax.data.mlm import MlmBatches
from nomic_jax.data.pairs import PairBatches
from nomic_jax.inference.embedder import Embedder
from nomic_jax.inference.verify import check_fingerprint
from nomic_jax.pipeline.overrides import override
from nomic_jax.pipeline.runner import run
from nomic_jax.pipeline.stages import load_stages
from nomic_jax.training.metrics import read_metrics

pytestmark = pytest.mark.slow

QUICKSTART = ROOT / "configs" / "quickstart.py"
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


@pytest.fixture(scope="module")
def pretrained(pairs, tmp_path_factory) -> Path:
    """The same up to contrastive pretraining, compiled as users' programs are."""
    out = tmp_path_factory.mktemp("runs") / "pretrained"
    run(stages(pairs)[:3], out)
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


@pytest.mark.optimized
def test_an_interrupted_run_ends_with_the_uninterrupted_parameters(
    pretrained, pairs, tmp_path, monkeypatch
):
    whole = PairBatches.__call__

    def interrupted(self, step):
        if step == 3:
            raise KeyboardInterrupt
        return whole(self, step)

    monkeypatch.setattr(PairBatches, "__call__", interrupted)
    with pytest.raises(KeyboardInterrupt):
        run(stages(pairs)[:3], tmp_path)
    monkeypatch.undo()
    assert not (tmp_path / "pretrain" / "evaluation.json").exists()
    run(stages(pairs)[:3], tmp_path)
    weights = "model/model.safetensors"
    assert (tmp_path / weights).read_bytes() == (pretrained / weights).read_bytes()


def free_port():
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        return probe.getsockname()[1]


def on_two_hosts(out, pairs, *first, second=()):
    """Run train.py as two hosts of two devices: statuses, and what they printed."""
    root, port = QUICKSTART.parents[1], free_port()
    command = [sys.executable, root / "train.py", "--config", QUICKSTART, "--out", out]
    command += [*SMALL, f"--data.pairs={pairs}", *first, "--hosts=2"]
    command += [f"--coordinator=localhost:{port}"]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    processes = [
        subprocess.Popen(
            [*command, f"--host={host}", *own], env=environment(devices=2), **pipes
        )
        for host, own in enumerate([(), second])
    ]
    try:
        said = [process.communicate(timeout=500) for process in processes]
    finally:
        for process in processes:
            process.kill()
    return [(p.returncode, *text) for p, text in zip(processes, said, strict=True)]


def test_two_hosts_of_two_devices_in_microbatches_train_as_one_device_does(
    finished, pairs, tmp_path
):
    cut = ["--mesh.fsdp=2", "--memory.tokens_at_once=64", "--train.evaluate_every=2"]
    found = on_two_hosts(tmp_path / "two", pairs, *cut)
    assert [status for status, *_ in found] == [0, 0], found
    # The first one speaks for both.
    assert "nDCG@10" in found[0][1] and "nDCG@10" not in found[1][1]
    for stage in ("mlm", "pretrain", "finetune"):
        one, two = (
            read_metrics(out / stage / "metrics.jsonl")
            for out in (finished, tmp_path / "two")
        )
        # Four steps of float32 sums in another order.
        assert two[-1]["loss"] == pytest.approx(one[-1]["loss"], rel=1e-5), stage
        norm = one[-1]["gradient_norm"]
        assert two[-1]["gradient_norm"] == pytest.approx(norm, rel=1e-4)
        assert "evaluation/pairs/ndcg@10" in two[-1]
        files = [
            out / stage / "evaluation.json" for out in (finished, tmp_path / "two")
        ]
        figures = [json.loads(file.read_text())["pairs"]["ndcg@10"] for file in files]
        assert figures[0] == pytest.approx(figures[1], abs=0.05)  # ties may turn
    assert Embedder.from_pretrained(tmp_path / "two" / "model")


def test_hosts_with_different_configs_all_end_with_what_differs(pairs, tmp_path):
    out = tmp_path / "two"
    for status, _, errors in on_two_hosts(out, pairs, second=["--train.seed=1"]):
        assert status == 2, errors
        assert "config.mlm.train.seed is 0 on host 0 and 1 on host 1" in errors
    assert not out.exists()


def test_a_model_from_elsewhere_is_trained_on(finished, pairs, tmp_path):
    model = str(finished / "model")
    found = stages(
        pairs,
        f"--data.tokenizer={model}",
        f"--pretrain.start.model={model}",
        f"--pretrain.guide.model={model}",
        f"--pretrain.teacher.model={model}",
        "--pretrain.loss.false_negative_margin=0.9",
        "--pretrain.optimizer.learning_rate=0",
    )
    run((found[0], found[2]), tmp_path / "out")
    before = Embedder.from_pretrained(finished / "model")
    after = Embedder.from_pretrained(tmp_path / "out" / "model")
    texts = ["red green", "about a tall old square"]
    expected = before.encode(texts, task="search_query")
    # The rate is 0, so the weights are those it began with, bit for bit.
    np.testing.assert_array_equal(after.encode(texts, task="search_query"), expected)
    figures = [
        json.loads((tmp_path / "out" / "pretrain" / file).read_text())
        for file in ("evaluation_before.json", "evaluation.json")
    ]
    assert figures[0] == figures[1]
    # A teacher that is the student has nothing to teach: the divergence is 0, but for
    # the rounding of logits of 20 in float32.
    line = read_metrics(tmp_path / "out" / "pretrain" / "metrics.jsonl")[0]
    assert line["distillation"] == pytest.approx(0, abs=1e-5)
    too_long = stages(
        pairs,
        f"--data.tokenizer={model}",
        f"--pretrain.start.model={model}",
        "--data.document_length=999",
    )
    with pytest.raises(ValueError, match="texts of 999 tokens, .*trained on up to 128"):
        run((too_long[0], too_long[2]), tmp_path / "long")


def test_a_guide_with_another_tokenizer_is_refused_before_anything_is_trained(
    finished, pairs, tmp_path
):
    options = ["--data.vocab_size=300", f"--finetune.guide.model={finished}/model"]
    options += ["--finetune.loss.false_negative_margin=0"]
    with pytest.raises(ValueError, match=r"guide\.model=.* has tokenizer"):
        run(stages(pairs, *options), tmp_path)
    assert not (tmp_path / "mlm").exists()


def test_the_best_checkpoint_by_retrieval_is_kept(pairs, tmp_path):
    sentences = tmp_path / "sts.jsonl"
    lines = [
        {"sentence1": "red old", "sentence2": other, "score": score}
        for score, other in enumerate(("hard square", "red tall", "red old"))
    ]
    sentences.write_text("\n".join(map(json.dumps, lines)))
    options = ["--mlm.train.evaluate_every=1", "--mlm.train.save_every=1"]
    options += ["--mlm.train.tasks", f"sts:{sentences}"]
    options += ["--mlm.train.keep=1", "--mlm.train.best=evaluation/pairs/ndcg@10"]
    run(stages(pairs, *options)[:2], tmp_path)
    lines = (tmp_path / "mlm" / "metrics.jsonl").read_text().splitlines()
    figures = {
        line["step"]: line["evaluation/pairs/ndcg@10"]
        for line in map(json.loads, lines)
    }
    assert sorted(figures) == [1, 2, 3, 4]
    assert all(0 < json.loads(line)["evaluation/sts/spearman"] <= 1 for line in lines)
    best = max(figures, key=lambda step: figures[step])
    kept = {int(p.name) for p in (tmp_path / "mlm" / "checkpoints").iterdir()}
    assert 4 in kept and any(figures[step] == figures[best] for step in kept)


def test_sentence_pairs_that_cannot_be_read_are_refused_at_once(pairs, tmp_path):
    options = [
        "--train.evaluate_every=2",
        "--finetune.train.tasks",
        f"sts:{tmp_path}/no.jsonl",
    ]
    with pytest.raises(ValueError, match="no.jsonl is not there"):
        run(stages(pairs, *options), tmp_path / "out")
    assert not (tmp_path / "out").exists()


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
    # The same batches, from the same start, through the same compiled programs.
    for stage in ("mlm", "pretrain"):
        lines = [
            json.loads((out / stage / "metrics.jsonl").read_text().splitlines()[-1])
            for out in (finished, tmp_path / "elsewhere")
        ]
        assert lines[0]["loss"] == lines[1]["loss"]
        assert lines[0]["gradient_norm"] == lines[1]["gradient_norm"]
    assert Embedder.from_pretrained(tmp_path / "elsewhere" / "model")
    assert (tmp_path / "elsewhere" / "report.html").is_file()


def test_stores_that_are_not_there_are_refused_before_anything_is_trained(
    pairs, tmp_path
):
    nowhere = tmp_path / "nowhere"
    with pytest.raises(ValueError, match="nowhere holds no finished collection"):
        run(stages(pairs, f"--pretrain.data.stores={nowhere}"), tmp_path / "out")
    assert not (tmp_path / "out" / "mlm").exists()
    alone = stages(pairs, f"--mlm.data.stores={nowhere}")[1:2]
    with pytest.raises(ValueError, match="nowhere holds no finished collection"):
        run(alone, tmp_path / "alone")


def test_a_stage_goes_on_with_the_stores_it_began_with_alone(
    finished, pairs, tmp_path, monkeypatch
):
    shutil.copytree(finished / "prepare" / "text", tmp_path / "text")
    only_mlm = stages(pairs, f"--mlm.data.stores={tmp_path}/text")[1:2]
    whole = MlmBatches.__call__

    def interrupted(self, step):
        if step == 3:
            raise KeyboardInterrupt
        return whole(self, step)

    monkeypatch.setattr(MlmBatches, "__call__", interrupted)
    with pytest.raises(KeyboardInterrupt):
        run(only_mlm, tmp_path / "out")
    monkeypatch.undo()
    listed = tmp_path / "text" / "stores.json"
    shutil.copytree(tmp_path / "text" / "text", tmp_path / "text" / "more")
    names = json.loads(listed.read_text()) | {"stores": ["text", "more"]}
    listed.write_text(json.dumps(names))
    with pytest.raises(ValueError, match="was trained on other stores: more was None"):
        run(only_mlm, tmp_path / "out")
    listed.write_text(json.dumps(names | {"stores": ["text"]}))
    run(only_mlm, tmp_path / "out")


def test_the_quickstart_is_what_the_design_names():
    found = load_stages(QUICKSTART)
    assert [stage.name for stage in found] == [
        *("prepare", "mlm", "pretrain", "filter", "mine", "finetune", "evaluate")
    ]
    assert all(dataclasses.is_dataclass(stage) for stage in found)
    assert "did you mean" in did_you_mean("pretrian", [stage.name for stage in found])
