import dataclasses
import socket

import jax
import pytest
from flax import nnx
from jax.sharding import AbstractMesh, PartitionSpec
from mesh_steps import ALL, GRADIENT, LOSS, SOME, begin, read, worst_error

from nomic_jax.distributed.mesh import (
    AXES,
    REPEATED,
    MeshConfig,
    make_mesh,
    parameter_spec,
    row_parts,
    shardings,
)
from nomic_jax.model.heads import MaskedLanguageModel
from nomic_jax.training.optimizer import parameter_name

ONE = (1, 1, 1)
# The steps that are taken on a mesh of data, fsdp and tensor: each axis has both
# objectives, and a batch at once as well as in parts.
STEPS = {
    ONE: ("mlm/0", "contrastive/0"),
    (8, 1, 1): ("mlm/0", "mlm/3", "contrastive/0", "contrastive/3"),
    (1, 8, 1): ("mlm/3", "contrastive/0"),
    (1, 1, 4): ("contrastive/0",),
    (2, 4, 1): ("contrastive/3",),
    (2, 2, 2): ("mlm/3", "contrastive/3"),
}
ON_TWO_HOSTS = {(4, 2, 1): ("contrastive/3",)}


def of_meshes(*meshes):
    """The steps of meshes: what a test of each is given."""
    return [(sizes, *step.split("/")) for sizes in meshes for step in STEPS[sizes]]


@pytest.fixture(scope="module")
def run_on(tmp_path_factory):
    """What the steps find and move on a mesh; one process has them all."""
    out = tmp_path_factory.mktemp("meshes") / "one"
    assert begin(out, STEPS, 8).wait() == 0
    return lambda *sizes: read(out, sizes)


@pytest.fixture(scope="module")
def run_on_two_hosts(tmp_path_factory):
    """The same on a mesh whose devices are four of each of two processes."""
    out = tmp_path_factory.mktemp("meshes") / "two"
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        port = probe.getsockname()[1]
    both = [begin(out, ON_TWO_HOSTS, 4, host, port) for host in (0, 1)]
    assert [process.wait() for process in both] == [0, 0]
    return lambda *sizes: read(out, sizes)


@pytest.mark.slow
@pytest.mark.parametrize(("sizes", "case", "most"), of_meshes(*STEPS)[2:])
def test_a_mesh_gives_the_gradient_of_one_device(run_on, sizes, case, most):
    expected, _ = run_on(*ONE)
    found, _ = run_on(*sizes)
    loss, gradient = worst_error(found, expected, case, most)
    assert loss < LOSS and gradient < GRADIENT


@pytest.mark.slow
def test_two_hosts_of_4_devices_have_the_gradient_of_one_of_8_and_of_one_device(
    run_on, run_on_two_hosts
):
    case = "contrastive"
    found, _ = run_on_two_hosts(4, 2, 1)
    for one, most in (((8, 1, 1), SOME), (ONE, ALL)):
        expected, _ = run_on(*one)
        loss, gradient = worst_error(found, expected, case, SOME, most)
        assert loss < LOSS and gradient < GRADIENT


@pytest.mark.slow
@pytest.mark.parametrize("most", [ALL, SOME])
def test_a_contrastive_step_gathers_embeddings_and_reduces_gradients_once(run_on, most):
    _, moved = run_on(8, 1, 1)
    collectives = moved[f"contrastive/{most}/"]
    assert not any(in_loop for _, _, in_loop in collectives)
    # P C D: all parts' texts.
    gathers = [s for kind, s, _ in collectives if kind == "all-gather" and "f32" in s]
    assert [shapes.partition("{")[0] for shapes in gathers] == ["f32[8,17,32]"]
    of_parameters = [
        shapes
        for kind, shapes, _ in collectives
        if kind == "all-reduce" and "f32[2,32,3,4,8]" in shapes
    ]
    assert len(of_parameters) == 1
    # The word table's gradient is in the same reduction, and nowhere else.
    tables = [shapes.count("f32[128,32]") for _, shapes, _ in collectives]
    assert sum(tables) == of_parameters[0].count("f32[128,32]") == 1


@pytest.mark.slow
def test_an_mlm_step_reduces_gradients_once(run_on):
    _, moved = run_on(8, 1, 1)
    for most in (ALL, SOME):
        kinds = [kind for kind, _, _ in moved[f"mlm/{most}/"]]
        assert kinds == ["all-reduce"] * 2  # sums and counts; gradients
        assert not any(in_loop for _, _, in_loop in moved[f"mlm/{most}/"])


@pytest.mark.slow
@pytest.mark.parametrize(
    ("sizes", "case", "most"), of_meshes((8, 1, 1), (1, 8, 1), (2, 4, 1))
)
def test_a_row_is_computed_once_however_rows_are_split(run_on, sizes, case, most):
    _, moved = run_on(*sizes)
    computed, traced = moved[f"{case}/{most}/flops"]
    # Equal where measured; a compiler may drop or repeat a product of next to nothing.
    assert computed == pytest.approx(traced, rel=0.02)
    # Nor do rows at once depend on the axis that splits the rows.
    assert traced == run_on(8, 1, 1)[1][f"{case}/{most}/flops"][1]


@pytest.mark.slow
@pytest.mark.parametrize(("sizes", "case", "most"), of_meshes((1, 8, 1), (2, 4, 1)))
def test_split_parameters_are_gathered_once_a_step(run_on, sizes, case, most):
    _, moved = run_on(*sizes)
    collectives = moved[f"{case}/{most}/"]
    assert not any(in_loop for _, _, in_loop in collectives)
    gathered = [shapes for kind, shapes, _ in collectives if kind == "all-gather"]
    for parameter in ("f32[2,32,3,4,8]", "f32[128,32]"):  # a kernel; the word table
        assert sum(shapes.count(parameter) for shapes in gathered) == 1


@pytest.mark.slow
@pytest.mark.parametrize(("sizes", "factor"), [((1, 8, 1), 8), ((1, 1, 4), 4)])
def test_bytes_of_a_device_fall_by_the_axis_that_splits(run_on, sizes, factor):
    _, whole = run_on(*ONE)
    _, split = run_on(*sizes)
    for case in {step.split("/")[0] for step in STEPS[sizes]}:
        # Norms and token types are everywhere: 2,000 of 100,000 bytes; the tensor axis
        # leaves the word table whole too, 16,384 bytes.
        rest = 3_000 + (16_384 + 4_096 if sizes[2] > 1 else 0)
        fallen = whole[f"{case}/bytes"] / factor
        assert fallen <= split[f"{case}/bytes"] <= fallen + rest


def test_sizes_that_describe_no_mesh_are_refused():
    for wrong, said in (
        ({"data": 0}, "data=0 must be positive, or -1"),
        ({"fsdp": -2}, "fsdp=-2"),
        ({"tensor": -1}, "only one axis can take the rest"),
    ):
        with pytest.raises(ValueError, match=said):
            MeshConfig(**wrong)


@pytest.mark.parametrize(
    ("config", "shape"),
    [
        (MeshConfig(), (8, 1, 1, 1)),
        (MeshConfig(fsdp=4), (2, 4, 1, 1)),
        (MeshConfig(data=2, fsdp=2, tensor=2), (2, 2, 1, 2)),
        (MeshConfig(data=1, fsdp=-1), (1, 8, 1, 1)),
        (MeshConfig(fsdp=2, expert=4), (1, 2, 4, 1)),
    ],
)
def test_the_rest_of_the_devices_goes_to_one_axis(config, shape):
    assert config.shape(8) == shape


@pytest.mark.parametrize("config", [MeshConfig(fsdp=3), MeshConfig(data=4)])
def test_sizes_that_do_not_multiply_to_the_devices_are_refused(config):
    with pytest.raises(ValueError, match="does not fit 8 devices"):
        config.shape(8)


def test_one_device_needs_no_mesh():
    assert make_mesh(MeshConfig(), jax.devices()[:1]) is None
    assert row_parts(None) == 1


@pytest.fixture(scope="module")
def shapes(tiny_config):
    config = dataclasses.replace(tiny_config, head="mlm")
    model = jax.eval_shape(lambda: MaskedLanguageModel(config, rngs=nnx.Rngs(0)))
    paths = jax.tree_util.tree_map_with_path(lambda p, _: parameter_name(p), model)
    return model, paths


def test_every_large_parameter_has_a_rule_and_its_moments_too(shapes):
    model, paths = shapes
    for array, path in zip(jax.tree.leaves(model), jax.tree.leaves(paths), strict=True):
        spec = parameter_spec(path)
        assert len(spec) <= array.ndim
        is_large = array.size > 2 * max(array.shape) and "type_" not in path
        assert (spec != REPEATED) == is_large, path
        assert parameter_spec(f"optimizer.0.mu.{path}") == spec
    assert parameter_spec("encoder.blocks.attention.qkv.kernel") == PartitionSpec(
        None, "fsdp", None, "tensor"
    )


def test_an_axis_that_does_not_divide_is_named_with_the_parameter(shapes):
    model, paths = shapes
    with pytest.raises(ValueError) as caught:
        shardings(model, paths, AbstractMesh((1, 1, 1, 3), AXES))
    for part in ("attention.qkv.kernel has shape", "does not split over tensor=3"):
        assert part in str(caught.value)
