"""Attention's splash backend on meshes of four processors.

    python tests/helpers/splash_on_mesh.py OUT

The kernel itself cannot be interpreted within a `shard_map`: plain arrays stand in for
it. OUT gets, for each way arrays lie, the shape that a device's kernel was given, and
how far loss and gradients are from attention's definition on one device.
"""

import json
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
from attention_cases import exact_attention, random_heads
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from nomic_jax.model.attention import splash
from nomic_jax.model.attention.mesh import on_devices_of

GIVEN = []  # shapes that kernels were given


def scores(q, k, segments):
    seen = segments[:, None, :, None] == segments[:, None, None, :]
    return jnp.where(seen, jnp.einsum("bhqk,bhsk->bhqs", q, k), -1e30)


def forward(form, q, k, v, segments):
    GIVEN.append(q.shape)
    found = scores(q, k, segments)
    sums = jax.nn.logsumexp(found, axis=-1)
    return jnp.exp(found - sums[..., None]) @ v, sums


def backward(form, q, k, v, segments, out, sums, cotangent):
    weights = jnp.exp(scores(q, k, segments) - sums[..., None])
    by_weights = jnp.einsum("bhqk,bhsk->bhqs", cotangent, v)
    by_scores = weights * (by_weights - (out * cotangent).sum(-1, keepdims=True))
    return (
        by_scores @ k,
        jnp.einsum("bhqs,bhqk->bhsk", by_scores, q),
        jnp.einsum("bhqs,bhqk->bhsk", weights, cotangent),
    )


def mesh_of(**sizes):
    kinds = (AxisType.Auto,) * len(sizes)
    return jax.make_mesh(tuple(sizes.values()), tuple(sizes), axis_types=kinds)


def total(attend, scale, q, k, v, segments):
    return jnp.sum(attend(q * scale, k, v, segments) ** 2)


def on_one_device(arrays):
    return jax.value_and_grad(total, (1, 2, 3, 4))(exact_attention, *arrays)


def by_programs(arrays):
    """As a training step has it: one scale, a parameter, for all devices."""

    def local(scale, *arrays):
        scale = jax.lax.pcast(scale, ("data",), to="varying")
        return total(splash.attend, scale, *arrays)[None]

    mesh = mesh_of(data=2, tensor=2)
    everywhere = jax.shard_map(
        local,
        mesh=mesh,
        in_specs=(P(), *[P("data")] * 4),
        out_specs=P("data"),
        axis_names={"data"},
    )
    heads = NamedSharding(mesh, P("data", None, "tensor"))
    places = [NamedSharding(mesh, P()), *[heads] * 3, NamedSharding(mesh, P("data"))]
    placed = jax.device_put(arrays, tuple(places))
    step = jax.value_and_grad(lambda *arrays: everywhere(*arrays).sum(), (0, 1, 2, 3))
    return jax.jit(step)(*placed)


def by_the_compiler(arrays, mesh, spec):
    spec = [P(), *[spec] * 3, P(*spec[:1])]
    placed = jax.device_put(arrays, tuple(NamedSharding(mesh, each) for each in spec))

    def step(*arrays):
        return jax.value_and_grad(total, (1, 2, 3, 4))(splash.attend, *arrays)

    with on_devices_of(placed):
        return jax.jit(step)(*placed)


def main(out):
    splash._run_forward = forward
    splash._run_backward = backward
    tensor, rows = mesh_of(data=1, fsdp=1, expert=1, tensor=4), mesh_of(rows=4)
    found = {}
    for name, number, run in (
        ("rows by programs of their own, heads by the compiler", 4, by_programs),
        (
            "heads by the compiler",
            4,
            lambda arrays: by_the_compiler(arrays, tensor, P(None, None, "tensor")),
        ),
        (
            "rows by the compiler",
            4,
            lambda arrays: by_the_compiler(arrays, rows, P("rows")),
        ),
        ("rows that do not split", 3, lambda a: by_the_compiler(a, rows, P())),
    ):
        arrays = jnp.float32(1), *random_heads(300, rows=number, heads=4)
        GIVEN.clear()
        got, exact = (jax.device_get(each(arrays)) for each in (run, on_one_device))
        errors = [abs(got[0] / exact[0] - 1)]
        errors += [abs(got[1][0] / exact[1][0] - 1)]
        for one, definition in zip(got[1][1:], exact[1][1:], strict=True):
            errors.append(abs(one - definition).max())
        assert len(set(GIVEN)) == 1, GIVEN
        found[name] = {"shape": GIVEN[0], "errors": [float(each) for each in errors]}
    Path(out).write_text(json.dumps(found))


if __name__ == "__main__":
    main(sys.argv[1])
