"""Objectives of an encoder with experts: their load-balancing loss and metrics."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from nomic_jax.batch import MlmBatch, PackedTexts, PairBatch, Tokens
from nomic_jax.config import EmbeddingConfig
from nomic_jax.distributed.mesh import MeshConfig
from nomic_jax.model.encoder import NomicBert
from nomic_jax.model.heads import MaskedLanguageModel
from nomic_jax.model.moe import RoutingSums
from nomic_jax.model.pooling import embed_packed
from nomic_jax.training.contrastive import BiEncoder, contrastive_objective
from nomic_jax.training.dropout import row_numbers, text_numbers, token_keys
from nomic_jax.training.experts import ExpertsConfig, balanced, check_experts
from nomic_jax.training.losses.contrastive import ContrastiveLoss, contrastive_loss
from nomic_jax.training.mlm import mlm_objective
from nomic_jax.training.optimizer import decay_mask, parameter_name
from nomic_jax.training.placement import Placement

LOSS = ContrastiveLoss(temperature=0.2)
EMBEDDING = EmbeddingConfig(pooling="mean", layer_norm=False, max_length=12)
ROWS, LENGTH, EXPERTS = 7, 12, 4
KEY = jax.random.key(3)


@pytest.fixture(scope="module")
def config(tiny_config):
    return dataclasses.replace(
        tiny_config,
        activation="gelu",
        bias=True,
        num_experts=EXPERTS,
        dropout=0.1,
        expert_dropout=0.2,
    )


def made(kind, config, seed=0):
    """A model drawn by NumPy, for which nothing is compiled."""
    shapes = jax.eval_shape(lambda: kind(config, rngs=nnx.Rngs(0)))
    random = np.random.default_rng(seed)

    def draw(path, leaf):
        drawn = 0.2 * random.normal(size=leaf.shape)
        return jnp.asarray(drawn + ("scale" in parameter_name(path)), jnp.float32)

    return jax.tree_util.tree_map_with_path(draw, shapes)


def tokens(seed=0):
    """Rows of texts of 4 to 12 tokens."""
    random = np.random.default_rng(seed)
    lengths = random.integers(4, LENGTH + 1, size=(ROWS, 1))
    ids = random.integers(5, 128, size=(ROWS, LENGTH))
    there = np.arange(LENGTH) < lengths
    return Tokens((ids * there).astype(np.int32), there.astype(np.int32)), lengths


def mlm_batch():
    rows, lengths = tokens()
    random = np.random.default_rng(1)
    places = np.stack([random.permutation(4)[:3] for _ in range(ROWS)])
    return MlmBatch(
        rows,
        places.astype(np.int32),
        random.integers(5, 128, size=(ROWS, 3)).astype(np.int32),
        random.random((ROWS, 3)) < 0.7,
    )


def pair_batch():
    """Two queries and four documents, one of the seven rows empty."""
    rows, lengths = tokens()
    segments = rows.segment_ids * (np.arange(ROWS) < 6)[:, None]
    lengths = (lengths * (np.arange(ROWS) < 6)[:, None]).astype(np.int32)
    places, names = np.arange(6), np.arange(14, dtype=np.int32).reshape(1, ROWS, 2)
    texts = PackedTexts(Tokens(rows.ids, segments.astype(np.int32)), lengths)
    return PairBatch(texts, np.arange(ROWS)[None], places[:2], places[2:], names)


def mlm_at_once(model, batch, experts):
    """The objective without its machinery, and the balance as it is published."""
    keys = token_keys(KEY, row_numbers(ROWS), jnp.asarray(batch.tokens.segment_ids))
    found = of_columns(model.encoder, batch.tokens, keys, experts)
    masked = jnp.take_along_axis(found.hidden, batch.positions[..., None], axis=1)
    losses = optax.softmax_cross_entropy_with_integer_labels(
        model.logits(masked), batch.targets
    )
    mean = jnp.sum(losses * batch.weights) / batch.weights.sum()
    return mean + published_balance(found.routing, experts)


def pairs_at_once(model, batch, experts):
    segments = jnp.asarray(batch.texts.tokens.segment_ids)
    keys = token_keys(KEY, text_numbers(jax.tree.map(jnp.asarray, batch)), segments)
    found = of_columns(model.encoder, batch.texts.tokens, keys, experts)
    vectors = embed_packed(found.hidden, batch.texts, EMBEDDING)[:, 0]
    value, _ = contrastive_loss(
        vectors[batch.query_places],
        vectors[batch.document_places],
        LOSS,
        document_ids=jnp.asarray(batch.document_ids)[0][batch.document_places],
        log_scale=model.log_scale,
    )
    return value + published_balance(found.routing, experts)


def of_columns(encoder, tokens, keys, experts):
    counted = jnp.ones(tokens.ids.shape, bool) if experts.count_padding else None
    return encoder.encode(tokens, dropout_keys=keys, counted=counted)


def published_balance(sums, experts):
    """coefficient E / (layers T K) * sum over layers and experts of count * mean p."""
    layers, count = sums.chosen.shape
    means = sums.probability / sums.tokens[:, None]
    whole = count / (layers * sums.tokens[0] * 2) * (sums.chosen * means).sum()
    return experts.balance_coefficient * whole


CASES = {"mlm": (mlm_batch, mlm_at_once), "contrastive": (pair_batch, pairs_at_once)}


def objective_of(case, experts, most):
    if case == "mlm":
        return mlm_objective(Placement(most_rows=most), experts=experts)
    return contrastive_objective(
        EMBEDDING, LOSS, Placement(most_rows=most), experts=experts
    )


def model_of(case, config):
    if case == "mlm":
        return made(MaskedLanguageModel, dataclasses.replace(config, head="mlm"))
    return BiEncoder.of(made(NomicBert, config), LOSS)


def largest_error(found, expected):
    """Of losses, and of gradients by their largest entry, floored by the tree's."""
    (value, gradient), (wanted, reference) = found, expected
    errors = [abs(float(value / wanted) - 1)]
    leaves = list(map(np.asarray, jax.tree.leaves(reference)))
    floor = 1e-3 * max(np.abs(leaf).max() for leaf in leaves)
    for ours, theirs in zip(jax.tree.leaves(gradient), leaves, strict=True):
        scale = max(np.abs(theirs).max(), floor)
        errors.append(np.abs(np.asarray(ours) - theirs).max() / scale)
    return max(errors)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("case", "count_padding", "dropout"),
    [
        ("mlm", True, 0.1),
        ("contrastive", False, 0.1),
        pytest.param("contrastive", True, 0.0, marks=pytest.mark.sweep),
    ],
)
def test_objectives_whole_and_in_microbatches_are_that_of_sums_at_once(
    config, case, count_padding, dropout
):
    config = dataclasses.replace(config, dropout=dropout, expert_dropout=2 * dropout)
    experts = ExpertsConfig(balance_coefficient=3.0, count_padding=count_padding)
    model, (make, at_once) = model_of(case, config), CASES[case]
    batch = make()
    expected = gradient(lambda m: at_once(m, batch, experts), model)
    # 7 rows at once; and 3 and 3 and 1, with two rows more that are nothing.
    for most in (None, 3):
        objective = objective_of(case, experts, most)
        found = gradient(lambda m, f=objective: f(m, batch, KEY)[0], model)
        # Sums of 84 tokens and some layers in other orders: 3e-6 was measured.
        assert largest_error(found, expected) < 2e-5, most


def gradient(function, model):
    return jax.jit(jax.value_and_grad(function))(model)


@pytest.mark.slow
def test_uniform_routing_adds_exactly_the_coefficient(config):
    """A router of zeros gives every expert the same; ties go to the first two."""
    model, batch = model_of("mlm", dataclasses.replace(config, dropout=0)), mlm_batch()
    router = model.encoder.blocks["sparse"].mlp.router
    router.kernel.set_value(jnp.zeros_like(router.kernel[...]))

    @jax.jit
    def of(model):
        plain = mlm_objective()(model, batch, KEY)[0]
        experts = ExpertsConfig(balance_coefficient=0.5)
        return plain, mlm_objective(experts=experts)(model, batch, KEY)

    plain, (value, metrics) = of(model)
    # Exact but for the last place of the loss that it is added to.
    assert float(value - plain) == pytest.approx(0.5, abs=1e-6)
    assert float(metrics["experts/balance"]) == pytest.approx(1, abs=1e-6)
    assert float(metrics["experts/1/largest_share"]) == 0.5
    assert float(metrics["experts/1/smallest_share"]) == 0


def test_metrics_say_of_each_layer_how_its_experts_are_used():
    parts = RoutingSums(
        # Two parts of a batch, two layers, two experts.
        chosen=jnp.array([[[3.0, 1], [2, 2]], [[3, 1], [0, 4]]]),
        probability=jnp.array([[[1.5, 0.5], [1, 1]], [[1.5, 0.5], [0.5, 1.5]]]),
        tokens=jnp.array([[2.0, 2], [2, 2]]),
    )
    experts = ExpertsConfig(balance_coefficient=0.1)
    value, metrics = balanced(jnp.float32(1), {"a": jnp.float32(7)}, parts, experts)
    # Layer 1: shares 6/8 and 2/8, mean probabilities 3/4 and 1/4: 2 (9/16 + 1/16).
    # Layer 3: shares 2/8 and 6/8, means 3/8 and 5/8: 2 (3/32 + 15/32).
    expected = {
        "a": 7,
        "experts/balance": (1.25 + 1.125) / 2,
        "experts/1/balance": 1.25,
        "experts/1/largest_share": 0.75,
        "experts/1/smallest_share": 0.25,
        "experts/3/balance": 1.125,
        "experts/3/largest_share": 0.75,
        "experts/3/smallest_share": 0.25,
    }
    assert {name: float(x) for name, x in metrics.items()} == pytest.approx(expected)
    assert float(value) == pytest.approx(1 + 0.1 * (1.25 + 1.125) / 2)


def test_only_models_with_experts_have_them_balanced_or_split(config, tiny_config):
    balance, alone = ExpertsConfig(balance_coefficient=1), ExpertsConfig()
    assert check_experts("mlm", config, balance, MeshConfig(expert=2)) == balance
    assert check_experts("mlm", tiny_config, alone, MeshConfig()) is None
    for experts, mesh in (
        (balance, MeshConfig()),
        (ExpertsConfig(count_padding=True), MeshConfig()),
        (alone, MeshConfig(expert=2)),
    ):
        with pytest.raises(ValueError, match="mlm: .*are of models with experts"):
            check_experts("mlm", tiny_config, experts, mesh)
    rest = MeshConfig(data=2, expert=-1)
    assert check_experts("mlm", tiny_config, alone, rest, devices=2) is None
    with pytest.raises(ValueError, match="mlm: .*are of models with experts"):
        check_experts("mlm", tiny_config, alone, rest, devices=4)
    with pytest.raises(ValueError, match="balance_coefficient=-1 must not be negative"):
        ExpertsConfig(balance_coefficient=-1)


def test_routers_and_experts_decay_and_their_biases_do_not(config):
    config = dataclasses.replace(config, expert_bias=True)
    mask = decay_mask(made(NomicBert, config))
    decays = {
        parameter_name(path): decay
        for path, decay in jax.tree_util.tree_leaves_with_path(mask)
        if "sparse.mlp." in parameter_name(path)
    }
    mlp = "blocks.sparse.mlp"
    assert decays == {
        f"{mlp}.router.kernel": True,
        f"{mlp}.experts.up": True,
        f"{mlp}.experts.down": True,
        f"{mlp}.experts.bias": False,
        f"{mlp}.experts.up_bias": False,
    }
