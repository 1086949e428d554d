"""Compute a step's loss and gradient on meshes of forced CPU devices.

    python mesh_gradients.py OUT '{"8x1x1": ["mlm/0", "mlm/3"]}' [HOST PORT]

A mesh is DATAxFSDPxTENSOR devices, the first of those that XLA_FLAGS forces; with a
HOST, half of it is another process's. A mesh of four, DATAxFSDPxEXPERTxTENSOR, is for
an encoder with experts. A step is OBJECTIVE/ROWS, with the most rows at once (0: all).
For each mesh, OUT.MESH.npz gets each step's loss and the gradient of every parameter;
OUT.MESH.json what the compiled steps move between devices, the FLOPs of their products
as compiled and as traced, and the bytes of the parameters on one device.
"""

import json
import math
import re
import sys

import jax
import numpy as np
from flax import nnx
from stored_pairs import MemoryStore, random_store

from nomic_jax.config import EmbeddingConfig, ModelConfig
from nomic_jax.data.mlm import Masking, MlmBatches
from nomic_jax.data.pairs import PairBatches
from nomic_jax.data.schedule import Schedule
from nomic_jax.distributed import hosts
from nomic_jax.distributed.mesh import (
    REPEATED,
    MeshConfig,
    host_share,
    make_mesh,
    put_batch,
    row_parts,
    shardings,
)
from nomic_jax.model.encoder import NomicBert
from nomic_jax.model.heads import MaskedLanguageModel
from nomic_jax.training.contrastive import BiEncoder, contrastive_objective
from nomic_jax.training.experts import ExpertsConfig
from nomic_jax.training.losses.contrastive import ContrastiveLoss
from nomic_jax.training.mlm import mlm_objective
from nomic_jax.training.optimizer import parameter_name
from nomic_jax.training.placement import Placement
from nomic_jax.training.planning.compile import find_collectives
from nomic_jax.training.planning.flops import product_flops
from nomic_jax.training.planning.hlo import read_program

SHAPE = {
    "vocab_size": 128,
    "type_vocab_size": 2,
    "num_layers": 2,
    "width": 32,
    "num_heads": 4,
    "mlp_width": 64,
    "layer_norm_epsilon": 1e-12,
    "rope_base": 1000.0,
    "trained_positions": 64,
    "pad_token_id": 0,
    "initializer_range": 0.3,  # so that nothing is small by chance
    "dropout": 0.1,
}
MOE = SHAPE | {
    "activation": "gelu",
    "bias": True,
    "num_experts": 8,
    "expert_dropout": 0.2,
}
BALANCE = ExpertsConfig(balance_coefficient=0.5)
LOSS = ContrastiveLoss(
    temperature=0.05, learned_scale=True, both_directions=True, matryoshka_dims=(32, 8)
)


def mlm_case(mesh, shape):
    rng = np.random.default_rng(0)
    rows = rng.integers(5, 128, size=(40, 2, 16), dtype=np.int32)
    store = MemoryStore(
        "rows",
        [list(pieces) for pieces in rows],
        query_length=0,
        document_length=0,
        kind="rows",
        rule={"row_length": 32},
    )
    host, of_hosts = host_share(mesh)
    batches = MlmBatches(
        {store.name: store},
        Schedule.over({store.name: 40}, batch_size=32, seed=0),
        Masking(
            rate=0.3, mask_id=4, vocab_size=128, special_ids=(0, 1, 2, 3, 4), seed=0
        ),
        row_length=32,
        host=host,
        hosts=of_hosts,
    )
    config = ModelConfig(**shape, head="mlm")
    return lambda: MaskedLanguageModel(config, rngs=nnx.Rngs(0)), batches(0).arrays


def pair_case(mesh, shape):
    store = random_store(records=64, negatives=3, lengths=(12, 60))
    host, of_hosts = host_share(mesh)
    batches = PairBatches(
        {store.name: store},
        Schedule.over({store.name: 64}, batch_size=16, seed=0),
        query_length=12,
        document_length=60,
        num_negatives=3,
        pad_id=0,
        seed=0,
        parts=row_parts(mesh),
        host=host,
        hosts=of_hosts,
    )
    config = ModelConfig(**shape)
    return (
        lambda: BiEncoder.of(NomicBert(config, rngs=nnx.Rngs(0)), LOSS),
        batches(0).arrays,
    )


CASES = {"mlm": mlm_case, "contrastive": pair_case}
COLLECTIVE = re.compile(
    r" = (.*?) (all-reduce|all-gather|reduce-scatter|all-to-all|collective-permute)"
    r"(?:-start)?\("
)


def collectives(program):
    """List (kind, shapes, whether a loop runs it) of a compiled program's text."""
    found, callers, name = {}, {}, ""
    for line in program.splitlines():
        if line and not line.startswith((" ", "}")):
            name = line.removeprefix("ENTRY ").split(" ")[0].lstrip("%")
            found[name] = []
        if match := COLLECTIVE.search(line):
            found[name].append((match[2], match[1]))
        is_loop = " while(" in line
        for called in re.findall(
            r"(?:body|condition|calls|to_apply)=%?([\w.-]+)", line
        ):
            callers.setdefault(called, set()).add((name, is_loop))

    def in_loop(name, seen=()):
        return any(
            loop or (caller not in seen and in_loop(caller, (*seen, name)))
            for caller, loop in callers.get(name, ())
        )

    return [
        (kind, shapes, in_loop(name)) for name in found for kind, shapes in found[name]
    ]


def compiled_flops(program):
    """Count the FLOPs of one device's products in a compiled program."""
    total = 0
    for name, runs in program.runs(through_fusions=True).items():
        instructions = program.computations[name].instructions
        for each in instructions.values():
            if each.opcode == "dot":
                axes = each.text.partition("lhs_contracting_dims={")[2].partition("}")[
                    0
                ]
                left = instructions[each.operands[0]].result[0].sizes
                summed = math.prod(left[int(axis)] for axis in axes.split(",") if axis)
                total += 2 * runs.times * math.prod(each.result[0].sizes) * summed
    return total


def main(out, steps, host="-1", port="0"):
    """Compute all of it; of two hosts, the first writes."""
    hosts.start(
        f"localhost:{port}" if host != "-1" else "", 2 - (host == "-1"), int(host)
    )
    for sizes, of_mesh in json.loads(steps).items():
        rows = {}
        for step in of_mesh:
            case, most = step.split("/")
            rows.setdefault(case, []).append(int(most))
        found, moved = on_mesh([int(size) for size in sizes.split("x")], rows)
        if hosts.is_first():
            np.savez(f"{out}.{sizes}.npz", **found)
            with open(f"{out}.{sizes}.json", "w") as file:
                json.dump(moved, file)


DRAWN = {}  # models by case, and whether they have experts; they fit any mesh


def drawn(draw, *kind):
    """Draw a model once, on the host."""
    if kind not in DRAWN:
        DRAWN[kind] = jax.device_get(jax.jit(draw)())
    return jax.tree.map(jax.numpy.asarray, DRAWN[kind])


def on_mesh(shape, rows):
    """Take steps on a mesh, and say what they found and what they moved."""
    data, fsdp, *expert, tensor = shape
    sizes, experts = (MOE, BALANCE) if expert else (SHAPE, None)
    layout = MeshConfig(data=data, fsdp=fsdp, expert=(*expert, 1)[0], tensor=tensor)
    mesh = make_mesh(layout, jax.devices()[: math.prod(shape)])
    embedding = EmbeddingConfig(pooling="mean", layer_norm=True, max_length=64)
    found, moved = {}, {}
    for case, max_rows in rows.items():
        # Of experts with a bias before their activation too, in one of the cases.
        biased = {"expert_bias": True} if expert and case == "mlm" else {}
        draw, batch = CASES[case](mesh, sizes | biased)
        model = drawn(draw, case, bool(expert))
        paths = jax.tree_util.tree_map_with_path(lambda p, _: parameter_name(p), model)
        everywhere = None
        if mesh is not None:
            model = jax.device_put(model, shardings(model, paths, mesh))
            everywhere = jax.NamedSharding(mesh, REPEATED)
        placed = put_batch(batch, mesh)
        for most in max_rows:
            placement = Placement(mesh, most or None)
            objective = (
                mlm_objective(placement, experts=experts)
                if case == "mlm"
                else contrastive_objective(embedding, LOSS, placement, experts=experts)
            )
            step = jax.jit(jax.value_and_grad(objective, has_aux=True))
            traced = step.trace(model, placed, jax.random.key(7))
            compiled = traced.lower().compile()
            (loss, _), gradient = compiled(model, placed, jax.random.key(7))
            prefix = f"{case}/{most}/"
            text = compiled.as_text()
            moved[prefix] = collectives(text)
            program = read_program(text)
            moved[prefix + "groups"] = [
                (each.kind, each.group, [*map(str, each.arrays)])
                for each in find_collectives(program, devices=math.prod(shape))
            ]
            moved[prefix + "flops"] = (
                math.prod(shape) * compiled_flops(program),
                product_flops(traced.jaxpr.jaxpr),
            )
            found[prefix + "loss"] = jax.device_get(loss)
            if jax.process_count() > 1:
                gradient = jax.jit(lambda tree: tree, out_shardings=everywhere)(
                    gradient
                )
            leaves = jax.tree_util.tree_flatten_with_path(jax.device_get(gradient))[0]
            for path, leaf in leaves:
                found[prefix + parameter_name(path)] = leaf
        moved[f"{case}/bytes"] = sum(
            leaf.addressable_shards[0].data.nbytes for leaf in jax.tree.leaves(model)
        )
    return found, moved


if __name__ == "__main__":
    main(*sys.argv[1:])
