"""Every command of the README runs, in a fresh copy and an empty environment.

`.ci/run` runs these apart from the other tests: they install the package from scratch
and train the quickstart for minutes.
"""

import dataclasses
import json
import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest
from compilation import of_a_user
from paths import ROOT

README = (ROOT / "README.md").read_text()
FENCE = re.compile(r"(<!-- test command -->\n)?```(bash|python)\n(.*?)```", re.S)
BLOCKS = FENCE.findall(README)
HUB_IDS = ("nomic-ai/nomic-embed-text-v1.5", "nomic-ai/nomic-bert-2048")

# The quickstart's promise: at least this much over random weights.
GAIN = 0.15


def blocks(language: str) -> list[str]:
    return [body for marked, kind, body in BLOCKS if kind == language and not marked]


def run(command: str, folder: Path, environment: dict[str, str]) -> str:
    done = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", command],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
    return done.stdout


def write_small_model(name: str, folder: Path) -> None:
    """Stand in for a published model: its conventions and width, random weights."""
    from flax import nnx

    from nomic_jax.checkpoints.model_folder import save_model
    from nomic_jax.config import PUBLISHED, PUBLISHED_EMBEDDINGS, padded_vocabulary
    from nomic_jax.data.tokenizer import TextTokenizer
    from nomic_jax.model.heads import make_model

    tokenizer = TextTokenizer.train([README], vocab_size=500)
    config = dataclasses.replace(
        PUBLISHED[name], num_layers=1, vocab_size=padded_vocabulary(tokenizer.size)
    )
    model = make_model(config, rngs=nnx.Rngs(0))
    save_model(model, config, PUBLISHED_EMBEDDINGS.get(name), tokenizer, folder)


@pytest.fixture(scope="module")
def environment(tmp_path_factory) -> dict[str, str]:
    """No network for weights: the hub's cache holds the models the README names."""
    home = tmp_path_factory.mktemp("hub")
    revision = "0" * 40
    for hub_id in HUB_IDS:
        cache = home / "hub" / f"models--{hub_id.replace('/', '--')}"
        (cache / "refs").mkdir(parents=True)
        (cache / "refs" / "main").write_text(revision)
        snapshot = cache / "snapshots" / revision
        snapshot.parent.mkdir()
        name = hub_id.partition("/")[2]
        real = Path(os.environ.get("NOMIC_JAX_REAL_WEIGHTS", "")) / name
        if real.is_dir():
            snapshot.symlink_to(real)
        else:
            write_small_model(name, snapshot)
    return {
        **of_a_user(),
        "HF_HOME": str(home),
        "HF_HUB_OFFLINE": "1",
        "JAX_PLATFORMS": "cpu",
    }


@pytest.fixture(scope="module")
def copy(tmp_path_factory) -> Path:
    """What a fresh clone would hold, and a user's pairs."""
    folder = tmp_path_factory.mktemp("clone")
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard", "-z"],
        cwd=ROOT,
        capture_output=True,
        check=True,
    )
    for name in listed.stdout.decode().split("\0"):
        if name and (ROOT / name).is_file():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, folder / name)
    with (folder / "my_pairs.jsonl").open("w") as file:
        for number in range(400):
            record = {
                "query": f"What is the {number}th square number?",
                "document": f"{number} times {number} is {number**2}, a square number.",
            }
            file.write(json.dumps(record) + "\n")
    return folder


def test_ci_runs_the_test_command_as_the_readme_has_it():
    commands = [body.strip() for marked, _, body in BLOCKS if marked]
    assert len(commands) == 1 and commands[0].startswith("python3 -m venv")
    script = (ROOT / ".ci" / "run").read_text()
    assert "grep -A 3 '<!-- test command -->' README.md" in script


@pytest.mark.fresh
def test_the_readmes_commands_run_and_the_quickstart_keeps_its_promise(
    copy, environment
):
    first, *others = blocks("bash")
    table = run(first, copy, environment)
    assert "BM25" in table.splitlines()[-1]
    before, after = (
        json.loads((copy / "runs" / "quickstart" / file).read_text())
        for file in ("mlm/evaluation_before.json", "finetune/evaluation.json")
    )
    for source, figures in after.items():
        held_out = copy / f"runs/quickstart/prepare/held_out/{source}.jsonl"
        assert len(held_out.read_text().splitlines()) >= 1000
        assert figures["ndcg@10"] - before[source]["ndcg@10"] >= GAIN, (before, after)
    for command in others:
        run(command, copy, environment)
    for made in ("vectors.npy", "vectors.parquet", "runs/my_pairs/report.html"):
        assert (copy / made).stat().st_size > 0
    for code in blocks("python"):
        # Six lines, as the README says of them, blank ones not counted.
        assert len([line for line in code.splitlines() if line]) <= 6
        script = copy / "first_embedding.py"
        script.write_text(code)
        printed = run(".venv/bin/python first_embedding.py", copy, environment)
        assert printed.startswith("[[")
