"""An encoder with experts computes on any mesh what it computes on one device."""

import jax
import pytest
from flax import nnx
from jax.sharding import AbstractMesh, PartitionSpec
from mesh_gradients import MOE
from mesh_steps import GRADIENT, LOSS, SOME, begin, read, worst_error

from nomic_jax.config import ModelConfig
from nomic_jax.distributed.mesh import AXES, parameter_spec, shardings
from nomic_jax.model.encoder import NomicBert
from nomic_jax.training.placement import parameter_names

ONE = (1, 1, 1, 1)
# Data, fsdp, expert and tensor: which steps are taken.
STEPS = {
    ONE: ("mlm/0", "contrastive/0"),
    (1, 1, 8, 1): ("contrastive/3",),
    (2, 2, 2, 1): ("contrastive/3",),
    (2, 1, 2, 2): ("mlm/0",),
}
TRIED = [
    (sizes, *step.split("/"))
    for sizes, steps in STEPS.items()
    for step in steps
    if sizes != ONE
]


@pytest.fixture(scope="module")
def run_on(tmp_path_factory):
    """What the steps find and move on a mesh."""
    out = tmp_path_factory.mktemp("meshes") / "experts"
    assert begin(out, STEPS, 8).wait() == 0
    return lambda *sizes: read(out, sizes)


@pytest.mark.slow
@pytest.mark.parametrize(("sizes", "case", "most"), TRIED)
def test_a_mesh_gives_the_gradient_of_one_device(run_on, sizes, case, most):
    expected, _ = run_on(*ONE)
    found, _ = run_on(*sizes)
    loss, gradient = worst_error(found, expected, case, most)
    assert loss < LOSS and gradient < GRADIENT


@pytest.mark.slow
def test_bytes_of_a_device_fall_by_the_expert_axis(run_on):
    _, whole = run_on(*ONE)
    _, split = run_on(1, 1, 8, 1)
    experts = 4 * 2 * 8 * 32 * 64  # up and down of eight, in float32
    fallen = whole["contrastive/bytes"] - split["contrastive/bytes"]
    assert fallen == experts * 7 / 8


@pytest.mark.slow
def test_what_goes_along_the_expert_axis_is_tokens(run_on):
    _, moved = run_on(1, 1, 8, 1)
    along = [
        (kind, array)
        for kind, group, arrays in moved[f"contrastive/{SOME}/groups"]
        for array in (arrays if group == 8 else ())
    ]
    # Hidden states of three rows of 60, their gradients, and those of the two weights.
    assert {kind for kind, _ in along} == {"all-reduce"}
    assert {array for _, array in along} == {"f32[180,32]", "f32[180,2]"}


@pytest.fixture(scope="module")
def shapes():
    config = ModelConfig(**MOE, expert_bias=True)
    model = jax.eval_shape(lambda: NomicBert(config, rngs=nnx.Rngs(0)))
    return model, parameter_names(model)


def test_experts_are_split_by_number_and_width_and_routers_repeated(shapes):
    places = {
        name.rpartition("mlp.")[2]: parameter_spec(name)
        for name in jax.tree.leaves(shapes[1])
        if "sparse.mlp." in name
    }
    assert places == {
        "router.kernel": PartitionSpec(),
        "experts.up": PartitionSpec(None, "expert", "fsdp", "tensor"),
        "experts.down": PartitionSpec(None, "expert", "tensor", "fsdp"),
        "experts.up_bias": PartitionSpec(None, "expert", "tensor"),
        "experts.bias": PartitionSpec(),
    }


def test_an_expert_axis_that_does_not_divide_them_is_an_error(shapes):
    with pytest.raises(ValueError) as caught:
        shardings(*shapes, AbstractMesh((1, 1, 3, 1), AXES))
    for part in ("experts.up has shape", "8 does not split over expert=3"):
        assert part in str(caught.value)
