"""What a TPU's compiler makes of a step for a pod of sixteen chips, without a TPU."""

import importlib.util
import json
import re
import subprocess
import sys

import pytest
from compilation import of_a_user
from paths import HELPERS

pytestmark = [pytest.mark.tpu, pytest.mark.slow]

ALL, SOME = "None", "3"  # rows at once


@pytest.fixture(scope="module", autouse=True)
def compiler():
    if importlib.util.find_spec("libtpu") is None:
        pytest.skip("libtpu is not installed; the extra [tpu] brings it")


@pytest.fixture(scope="module")
def made(compiler, tmp_path_factory):
    """What the compiler made of small steps, compiled once."""
    out = tmp_path_factory.mktemp("programs") / "found.json"
    script = [sys.executable, HELPERS / "tpu_programs.py", out]
    subprocess.run(script, env=of_a_user(), check=True)
    return json.loads(out.read_text())


@pytest.mark.parametrize("most", [ALL, SOME])
def test_a_contrastive_step_gathers_embeddings_and_reduces_gradients_once(made, most):
    step = made[f"contrastive/{most}"]
    assert step["rows"] == 10
    collectives = step["collectives"]
    assert not any(in_loop for _, in_loop, _ in collectives)
    assert {kind for kind, _, _ in collectives} == {"all-gather", "all-reduce"}
    arrays = {
        kind: [a for k, _, each in collectives if k == kind for a in each]
        for kind in ("all-gather", "all-reduce")
    }
    # The texts' vectors, and the hashes that tell equal documents: no parameters.
    listed = ",".join(map(str, step["listed"]))
    assert sorted(arrays["all-gather"]) == [f"f32[{listed},128]", f"s32[{listed},2]"]
    # A stacked kernel, and the word table.
    assert arrays["all-reduce"].count("f32[2,128,3,4,32]") == 1
    assert arrays["all-reduce"].count("f32[1024,128]") == 1


@pytest.mark.parametrize(("axis", "factor"), [("fsdp", 16), ("tensor", 4)])
def test_bytes_of_a_chip_fall_by_the_axis_that_splits(made, axis, factor):
    # The tensor axis leaves the word table and the head whole: 12 bytes a parameter,
    # with its two moments.
    stays = 12 * (1024 * 128 + 128 * 128) if axis == "tensor" else 0
    expected = (made["data"] - stays) / factor + stays
    # Norms and token types are everywhere, and a TPU pads arrays to tiles of 8 x 128:
    # 38,000 bytes more with the tensor axis, 322,000 where a width of 128 is in 16.
    assert expected <= made[axis] <= expected + 350_000


def test_no_array_of_a_step_has_every_token_in_every_expert(made):
    largest, everything = made["experts"]
    # Forward and backward. What is there are the rows of both experts of each token,
    # a quarter of it, and the gradient of all experts' matrices.
    assert largest < everything / 2


def plan(config, *arguments):
    command = [
        sys.executable,
        "-m",
        "nomic_jax.cli.main",
        "plan",
        "--topology",
        "v5e:4x4",
    ]
    command += ["--config", str(config), "--vocabulary", "1000", *arguments]
    return subprocess.run(command, env=of_a_user(), capture_output=True, text=True)


def test_the_command_plans_every_stage():
    done = plan(HELPERS / "plan_stages.py")
    assert done.returncode == 0, done.stderr
    for part in (
        "mlm on v5e:4x4 (16 chips), a mesh of data=16, fsdp=1, expert=1, tensor=1",
        "pretrain on v5e:4x4",
        "all-reduce of ",
        "of 15.75 GiB",
        "for 100 steps",
    ):
        assert part in done.stdout, done.stdout
    # Nothing but what is being compiled; no complaints of a machine without a TPU.
    lines = done.stderr.splitlines()
    assert [line.split(" for ")[0] for line in lines] == [
        "compiling mlm",
        "compiling pretrain",
    ]


def test_a_tensor_axis_that_does_not_divide_the_heads_is_an_error():
    done = plan(HELPERS / "plan_stages.py", "--mesh.data", "2", "--mesh.tensor", "8")
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    assert "attention.qkv.kernel has shape (2, 128, 3, 4, 32)" in line
    assert "4 does not split over tensor=8" in line


def test_what_does_not_fit_is_refused_with_two_settings_that_do(tmp_path):
    # Many layers, since the compiler takes long over large arrays and not over loops.
    config = tmp_path / "large.py"
    config.write_text(
        "import dataclasses, sys\n"
        f"sys.path.insert(0, {str(HELPERS)!r})\n"
        "from plan_stages import MLM\n"
        "stages = (dataclasses.replace(\n"
        "    MLM,\n"
        "    model=dataclasses.replace(MLM.model, num_layers=480),\n"
        "    train=dataclasses.replace(MLM.train, batch_size=16 * 64),\n"
        "),)\n"
    )
    refused = plan(config)
    assert refused.returncode == 2
    line = refused.stderr.splitlines()[-1]
    assert re.search(r"mlm: [\d.]+ GiB needed .* of 15.75 GiB of HBM", line)
    options = line.partition("these fit: ")[2].split(", or ")
    assert [option.split()[0] for option in options] == [
        "--mlm.memory.tokens_at_once",
        "--mlm.memory.remat",
    ]
    for option in options:
        done = plan(config, *option.split())
        assert done.returncode == 0 and "mlm on v5e:4x4" in done.stdout, done.stderr
