"""Compute a step's loss and gradient on a mesh of forced CPU devices.

    python tests/mesh_gradients.py OUT DATA FSDP TENSOR

The mesh is DATA x FSDP x TENSOR devices, as many as XLA_FLAGS forces. OUT.npz gets, for
each objective and number of rows at once, the loss and the gradient of every parameter;
OUT.json what the compiled steps move between devices, and the bytes of the parameters
on one of them.
"""

import json
import re
import sys

import jax
import numpy as np
from flax import nnx
from stored_pairs import random_store

from nomic_jax.config import EmbeddingConfig, ModelConfig
from nomic_jax.data.mlm import Masking, corrupt
from nomic_jax.data.pairs import PairBatches
from nomic_jax.data.schedule import Schedule
from nomic_jax.model.encoder import NomicBert
from nomic_jax.model.heads import MaskedLanguageModel
from nomic_jax.sharding import (
    MeshConfig,
    make_mesh,
    put_batch,
    row_parts,
    shardings,
)
from nomic_jax.training.losses import ContrastiveLoss
from nomic_jax.training.optimizer import parameter_name
from nomic_jax.training.placement import Placement
from nomic_jax.training.steps import (
    BiEncoder,
    contrastive_objective,
    mlm_objective,
)

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
LOSS = ContrastiveLoss(
    temperature=0.05, learned_scale=True, both_directions=True, matryoshka_dims=(32, 8)
)
MOST_ROWS = (None, 3)


def mlm_case():
    rows = np.random.default_rng(0).integers(5, 128, size=(16, 32), dtype=np.int32)
    masking = Masking(
        rate=0.3, mask_id=4, vocab_size=128, special_ids=(0, 1, 2, 3, 4), seed=0
    )
    config = ModelConfig(**SHAPE, head="mlm")
    batch = corrupt(rows, masking, step=0, row_numbers=range(16))
    return lambda: MaskedLanguageModel(config, rngs=nnx.Rngs(0)), batch


def pair_case(parts):
    store = random_store(records=64, negatives=3, lengths=(12, 60))
    batches = PairBatches(
        {store.name: store},
        Schedule.over({store.name: 64}, batch_size=16, seed=0),
        query_length=12,
        document_length=60,
        num_negatives=3,
        pad_id=0,
        seed=0,
        parts=parts,
    )
    # Dropout is keyed by row, and which text shares a row with which is the mesh's.
    config = ModelConfig(**SHAPE | {"dropout": 0.0})
    return (
        lambda: BiEncoder.of(NomicBert(config, rngs=nnx.Rngs(0)), LOSS),
        batches(0).arrays,
    )


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


def main(out, data, fsdp, tensor):
    mesh = make_mesh(MeshConfig(data=data, fsdp=fsdp, tensor=tensor))
    embedding = EmbeddingConfig(pooling="mean", layer_norm=True, max_length=64)
    found, moved = {}, {}
    for case, (draw, batch) in {
        "mlm": mlm_case(),
        "contrastive": pair_case(row_parts(mesh)),
    }.items():
        model = jax.jit(draw)()
        paths = jax.tree_util.tree_map_with_path(lambda p, _: parameter_name(p), model)
        if mesh is not None:
            model = jax.device_put(model, shardings(model, paths, mesh))
        placed = put_batch(batch, mesh)
        for most in MOST_ROWS:
            placement = Placement(mesh, most)
            objective = (
                mlm_objective(placement)
                if case == "mlm"
                else contrastive_objective(embedding, LOSS, placement)
            )
            step = jax.jit(jax.value_and_grad(objective, has_aux=True))
            compiled = step.lower(model, placed, jax.random.key(7)).compile()
            (loss, _), gradient = compiled(model, placed, jax.random.key(7))
            prefix = f"{case}/{most}/"
            moved[prefix] = collectives(compiled.as_text())
            found[prefix + "loss"] = loss
            leaves = jax.tree_util.tree_flatten_with_path(gradient)[0]
            for path, leaf in leaves:
                found[prefix + parameter_name(path)] = leaf
        moved[f"{case}/bytes"] = sum(
            leaf.addressable_shards[0].data.nbytes for leaf in jax.tree.leaves(model)
        )
    np.savez(out + ".npz", **jax.device_get(found))
    with open(out + ".json", "w") as file:
        json.dump(moved, file)


if __name__ == "__main__":
    main(sys.argv[1], *map(int, sys.argv[2:]))
