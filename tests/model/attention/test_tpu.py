"""What a TPU's compiler makes of attention, and of a step with it, without a TPU."""

import importlib.util
import json
import subprocess
import sys

import pytest
from compilation import of_a_user
from paths import HELPERS

pytestmark = [pytest.mark.tpu, pytest.mark.slow]


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """What the compiler made of all cases, compiled once."""
    if importlib.util.find_spec("libtpu") is None:
        pytest.skip("libtpu is not installed; the extra [tpu] brings it")
    out = tmp_path_factory.mktemp("programs") / "found.json"
    script = [sys.executable, HELPERS / "attention_tpu_programs.py", out]
    subprocess.run(script, env=of_a_user(), check=True)
    return json.loads(out.read_text())


def test_each_chip_has_a_kernel_for_each_pass_and_no_array_of_all_scores(made):
    assert len(made["attention"]) == 12
    for case, (kernels, scores) in made["attention"].items():
        assert sorted(kernel[:14] for kernel in kernels) == [
            "splash_mha_dkv",
            "splash_mha_fwd",
        ], case
        assert not scores, case


def test_a_step_for_tpus_takes_splash_on_every_mesh(made):
    assert len(made["step"]) == 4
    assert {step["attention"] for step in made["step"].values()} == {"splash"}


def test_the_compiler_computes_the_products_it_was_given(made):
    for name, step in made["step"].items():
        # A tensor axis leaves the MLM head whole on each of its devices.
        if "tensor" not in name:
            assert step["compiled"] == step["traced"], name
        assert step["compiled"] >= step["traced"], name


def test_what_is_outside_the_model_is_the_slots_and_the_scores_again(made):
    # In a step of 3 forward passes 1 of its attention's 6 products is the scores',
    # computed again, and the head has 366 slots for the 307 masked tokens of a row; the
    # 4 rows of a device at once fill 2 blocks of 1,024, which are 512 a row.
    # By hand, of width 128, 2 layers and 1,000 tokens:
    width, length, layers, vocabulary = 128, 1024, 2, 1024
    attention = layers * 4 * width * length
    body = layers * (8 * width**2 + 6 * width * 256) + attention
    transform, decoder = 2 * width**2, 2 * width * vocabulary
    model = 3 * (length * body + 307 * (transform + decoder))
    for tokens, in_blocks in (("None", 512), (str(length), 366)):
        slots = (366 - 307) * transform + (in_blocks - 307) * decoder
        extra = length * attention / 2 + 3 * slots
        found = made["step"][f"data, {tokens}"]["outside"]
        assert found == pytest.approx(extra / (model + extra), rel=0.01)
