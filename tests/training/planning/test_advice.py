import dataclasses

import pytest
from plan_stages import MLM

from nomic_jax.distributed.mesh import MeshConfig
from nomic_jax.training.placement import MemoryConfig
from nomic_jax.training.planning.budget import nearest_fits

WIDE = dataclasses.replace(MLM, memory=MemoryConfig(tokens_at_once=16 * 64))


def advised(stage, fits, *, devices=16, rows=40):
    tried = []

    def asked(candidate):
        tried.append(candidate)
        return fits(candidate)

    found = nearest_fits(stage, devices=devices, rows=rows, fits=asked)
    return [setting.options for setting in found], tried


def test_the_first_of_each_kind_that_fits_is_named():
    def fits(stage):
        most = 8 if stage.memory.remat == "full" else 2
        return stage.memory.tokens_at_once <= most * 64

    options, tried = advised(WIDE, fits)
    assert options == [
        "--mlm.memory.tokens_at_once 128",
        "--mlm.memory.tokens_at_once 512 --mlm.memory.remat full",
    ]
    # 8, 4 and 2 rows; then the products of 16, and the inputs alone of 16 and of 8.
    rows = [stage.memory.tokens_at_once // 64 for stage in tried]
    assert rows == [8, 4, 2, 16, 16, 8]
    kept = [stage.memory.remat for stage in tried]
    assert kept == [*["none"] * 3, "dots", "full", "full"]


def test_where_products_are_kept_inputs_alone_are_less():
    stage = dataclasses.replace(MLM, memory=MemoryConfig(remat="dots"))
    options, tried = advised(stage, lambda stage: stage.memory.remat == "full", rows=1)
    assert options[0] == "--mlm.memory.remat full"
    assert tried[0].memory.remat == "full"


def test_without_a_limit_the_way_down_begins_at_half_of_what_a_device_takes():
    _, tried = advised(MLM, lambda stage: False, rows=40)
    tokens = [stage.memory.tokens_at_once for stage in tried]
    assert tokens[:6] == [64 * n for n in (20, 10, 5, 3, 2, 1)]
    assert tokens[6] is None  # all rows, of each layer the products


@pytest.mark.parametrize(
    "mesh",
    [MeshConfig(data=-1, tensor=2), MeshConfig(data=8, tensor=-1)],
)
def test_parameters_are_split_where_activations_are_not_what_is_too_much(mesh):
    stage = dataclasses.replace(WIDE, mesh=mesh)
    options, tried = advised(stage, lambda stage: stage.mesh.fsdp >= 4)
    sizes = (
        "--mlm.mesh.data 2 --mlm.mesh.fsdp 4 --mlm.mesh.expert 1 --mlm.mesh.tensor 2"
    )
    assert options == [
        sizes,
        f"--mlm.memory.tokens_at_once 64 --mlm.memory.remat full {sizes}",
    ]
    assert all(stage.mesh.shape(16)[3] == 2 for stage in tried)


def test_nothing_is_named_where_nothing_fits():
    options, tried = advised(WIDE, lambda stage: False)
    assert not options
    assert len(set(map(str, tried))) == len(tried)
