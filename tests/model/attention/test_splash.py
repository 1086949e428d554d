"""The splash kernel's tiles, and its place on a mesh."""

import json
import subprocess
import sys

import numpy as np
import pytest
from compilation import environment
from paths import HELPERS

from nomic_jax.model.attention import splash
from nomic_jax.model.attention.splash import tiled
from nomic_jax.training.planning.flops import pairs


@pytest.mark.parametrize(
    ("length", "columns", "tile"),
    [
        (5, 128, 128),
        (128, 128, 128),
        (200, 256, 256),
        (640, 640, 128),
        (2048, 2048, 512),
    ],
)
def test_rows_are_padded_least_and_cut_into_the_largest_tiles(length, columns, tile):
    assert tiled(length) == (columns, tile)


@pytest.mark.parametrize("length", [100, 1024, 1300])
@pytest.mark.parametrize("window", [None, 1, 127, 128, 129, 600])
def test_the_pairs_counted_are_those_of_the_kernels_own_tiles(length, window):
    form = splash._Form(window, tiled(length)[1], True)
    infos = splash._kernel(form, 1, tiled(length)[0])
    tile = form.tile
    for info in (infos.fwd_mask_info, infos.dkv_mask_info):
        count = (tiled(length)[0] // tile) ** 2
        if info.block_mask is not None:
            count = np.count_nonzero(np.asarray(info.block_mask))
        assert count * tile**2 == pairs(length, window)


@pytest.mark.slow
def test_each_device_computes_its_rows_and_heads(tmp_path):
    """On a mesh of processors, where the kernel gives way to plain arrays."""
    script = [sys.executable, HELPERS / "splash_on_mesh.py", tmp_path / "found.json"]
    subprocess.run(script, env=environment(devices=4), check=True)
    found = json.loads((tmp_path / "found.json").read_text())
    assert {name: each["shape"] for name, each in found.items()} == {
        "rows by programs of their own, heads by the compiler": [2, 2, 384, 8],
        "heads by the compiler": [4, 1, 384, 8],
        "rows by the compiler": [1, 4, 384, 8],
        "rows that do not split": [3, 4, 384, 8],
    }
    for name, each in found.items():
        # Loss, and gradients of unit scale, in sums of up to 300 terms in float32.
        assert max(each["errors"]) < 1e-5, name
