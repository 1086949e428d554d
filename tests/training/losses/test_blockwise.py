import dataclasses
import itertools
import re
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from compilation import environment

from nomic_jax.training.losses.contrastive import ContrastiveLoss, contrastive_loss

NESTED = {"matryoshka_dims": (16, 8, 4), "matryoshka_weights": (1.0, 0.5, 2.0)}
VARIANTS = {
    "one_way": {},
    "both_directions": {"both_directions": True},
    "guided": {
        "both_directions": True,
        "query_negatives": True,
        "positive_negatives": True,
        "false_negative_margin": 0.1,
    },
}


def batch(seed, pairs, group, width=16):
    rng = np.random.default_rng(seed)
    query = rng.normal(size=(pairs, width)).astype(np.float32)
    document = rng.normal(size=(pairs, group, width)).astype(np.float32)
    document[:, 0] += query
    names = rng.integers(2 * pairs, size=pairs * group)  # some stand twice
    ids = np.stack([names % 5, names // 5], axis=1).astype(np.int32)
    return jnp.array(query), jnp.array(document.reshape(-1, width)), jnp.array(ids)


def with_gradients(config, query, document, ids):
    def loss(query, document, log_scale):
        return contrastive_loss(
            query, document, config, document_ids=ids, log_scale=log_scale
        )

    return jax.jit(jax.value_and_grad(loss, argnums=(0, 1, 2), has_aux=True))(
        query, document, jnp.float32(3.0)
    )


CASES = (
    ("one_way", {}, 1),
    ("both_directions", {}, 2),
    ("both_directions", NESTED, 1),
    ("guided", {}, 4),
    ("guided", NESTED, 2),
)
OTHERS = [
    pytest.param(*case, marks=pytest.mark.sweep)
    for case in itertools.product(VARIANTS, ({}, NESTED), (1, 2, 4))
    if case not in CASES
]


@pytest.mark.slow
@pytest.mark.parametrize(("variant", "nested", "group"), [*CASES, *OTHERS])
def test_blocks_change_neither_loss_nor_metrics_nor_gradient(variant, nested, group):
    size = 5 if nested else 4  # which does not divide the documents, or does
    whole = ContrastiveLoss(
        temperature=0.05, learned_scale=True, **VARIANTS[variant], **nested
    )
    case = batch(group, 8, group)
    parts = dataclasses.replace(whole, block_size=size)
    for one, two in zip(
        jax.tree.leaves(with_gradients(whole, *case)),
        jax.tree.leaves(with_gradients(parts, *case)),
        strict=True,
    ):
        # The same float32 terms, at most 40 of them, summed in another order.
        np.testing.assert_allclose(one, two, rtol=1e-5, atol=2e-6)


@pytest.mark.slow
def test_a_row_without_negatives_has_no_loss_in_blocks_either():
    query, document, _ = batch(0, 6, 1)
    config = ContrastiveLoss(
        learned_scale=True, block_size=4, both_directions=True, query_negatives=True
    )
    ids = jnp.zeros((6, 2), jnp.int32)
    (loss, metrics), gradients = with_gradients(config, query, document, ids)
    assert float(loss) == 0.0 and float(metrics["accuracy"]) == 1.0
    for gradient in gradients:
        np.testing.assert_array_equal(gradient, 0)


def largest_array(compiled):
    """The number of entries of the largest array that the compiled program names."""
    shapes = re.findall(r"\b(?:f32|bf16|pred|[su]\d+)\[([\d,]+)\]", compiled.as_text())
    return max(np.prod([int(n) for n in shape.split(",")]) for shape in shapes)


# The one direction's logits are among those of both.
@pytest.mark.slow
@pytest.mark.parametrize("variant", ["both_directions", "guided"])
def test_blocks_never_hold_the_logits_of_all_documents(variant):
    queries, documents, size = 256, 1024, 32
    case = batch(0, queries, documents // queries)

    def compiled(config):
        def loss(query, document):
            return contrastive_loss(query, document, config, document_ids=case[2])[0]

        gradient = jax.jit(jax.value_and_grad(loss, argnums=(0, 1)))
        return gradient.lower(*case[:2]).compile()

    whole = ContrastiveLoss(**VARIANTS[variant], **NESTED)
    parts = compiled(dataclasses.replace(whole, block_size=size))
    dense = compiled(whole)
    assert largest_array(dense) >= queries * documents
    # The largest are the log-sums of 32 blocks and 3 dims, for all queries.
    assert largest_array(parts) <= queries * size * 3
    logits = 4 * queries * documents  # bytes
    assert dense.memory_analysis().temp_size_in_bytes > logits
    assert parts.memory_analysis().temp_size_in_bytes < logits


MESH = """
import re
import jax, jax.numpy as jnp, numpy as np
from jax.sharding import AxisType, NamedSharding, PartitionSpec as P
from nomic_jax.training.losses.contrastive import ContrastiveLoss, contrastive_loss
from test_blockwise import NESTED, VARIANTS, batch, with_gradients

assert jax.device_count() == 8
axes = ("data", "fsdp")
mesh = jax.make_mesh((4, 2), axes, axis_types=(AxisType.Auto,) * 2)
rows, everywhere = NamedSharding(mesh, P(axes)), NamedSharding(mesh, P())

def on_each_device(config, query, document, ids):
    def part(query, document, ids, log_scale):
        return contrastive_loss(
            query, document, config, document_ids=ids, log_scale=log_scale, axis=axes
        )

    def loss(query, document, log_scale):
        whole = jax.shard_map(part, mesh=mesh, in_specs=P(), out_specs=P())
        return whole(query, document, ids, log_scale)

    gradient = jax.jit(jax.value_and_grad(loss, argnums=(0, 1, 2), has_aux=True))
    inputs = (query, document, jnp.float32(3.0))
    program = gradient.lower(*inputs).compile().as_text()
    *loops, entry = program.split("\\nENTRY ")
    collectives = "all-gather|all-reduce|reduce-scatter"
    assert not re.findall(f" ({collectives})\\\\(", "".join(loops))
    assert not re.findall(r"= f32\\[\\S+\\]\\S* all-gather\\(", entry)
    return gradient(*inputs)

for name, size in (("both_directions", None), ("one_way", 16), ("guided", 16)):
    fields = VARIANTS[name]
    config = ContrastiveLoss(
        temperature=0.05, learned_scale=True, block_size=size, **fields, **NESTED
    )
    case = batch(0, 16, 4)
    one = with_gradients(config, *case)
    eights = [with_gradients(config, *jax.device_put(case, rows))]
    eights.append(on_each_device(config, *jax.device_put(case, everywhere)))
    for eight in eights:
        assert len(eight[1][0].sharding.device_set) == 8
        for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(eight), strict=True):
            # The same float32 terms, at most 80 of them, summed in another order.
            np.testing.assert_allclose(a, b, rtol=1e-5, atol=2e-6)
print("EQUAL")
"""


@pytest.mark.slow
def test_eight_devices_give_what_one_gives_and_move_nothing_in_loops():
    done = subprocess.run(
        [sys.executable, "-c", MESH],
        env=environment(devices=8, test=__file__),
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0 and "EQUAL" in done.stdout, done.stderr
