import jax
import jax.numpy as jnp
import numpy as np
import pytest

from nomic_jax.model.moe import (
    Routing,
    expert_shares,
    load_balancing_loss,
    route,
    routing_sums,
)


def random_routing(tokens=20, experts=5, seed=0):
    logits = np.random.default_rng(seed).standard_normal((tokens, experts))
    return route(jnp.asarray(logits, jnp.float32), num_chosen=2)


def test_weights_are_the_largest_probabilities_as_they_are():
    routing = route(jnp.log(jnp.array([[1.0, 5.0, 1.0, 3.0]])), num_chosen=2)
    # 1 + 5 + 1 + 3 = 10
    np.testing.assert_allclose(routing.probabilities, [[0.1, 0.5, 0.1, 0.3]], rtol=1e-6)
    np.testing.assert_allclose(routing.weights, [[0.5, 0.3]], rtol=1e-6)
    np.testing.assert_array_equal(routing.experts, [[1, 3]])


def test_probabilities_of_bfloat16_logits_are_float32():
    logits = jnp.array([[1.0, 2.0, 3.0]], jnp.bfloat16)
    routing = route(logits, num_chosen=1)
    assert routing.probabilities.dtype == jnp.float32
    np.testing.assert_allclose(routing.probabilities.sum(), 1, rtol=1e-6)


def test_the_loss_of_uniform_routing_is_1():
    routing = Routing(
        weights=jnp.full((4, 2), 0.25),
        experts=jnp.array([[0, 1], [2, 3], [0, 2], [1, 3]]),  # each expert twice
        probabilities=jnp.full((4, 4), 0.25),
    )
    sums = routing_sums(routing, None)
    # 4 experts / (2 chosen * 4 tokens) * 4 * (2 * 0.25) = 1
    assert load_balancing_loss(sums) == 1
    np.testing.assert_array_equal(expert_shares(sums), [0.25] * 4)


@pytest.mark.parametrize("chosen", [1, 2])
def test_the_loss_of_all_on_one_expert_is_experts_by_chosen(chosen):
    routing = route(
        jnp.tile(jnp.array([[200.0, 0, 0, 0, 0, 0]]), (7, 1)), num_chosen=chosen
    )
    # Probability 1 on expert 0, which 7 of 7 tokens chose:
    # 6 experts / (chosen * 7) * 7 * 1 = 6 / chosen; the others' probability is 0.
    loss = load_balancing_loss(routing_sums(routing, None))
    np.testing.assert_allclose(loss, 6 / chosen, rtol=1e-6)


@pytest.mark.slow
def test_the_loss_and_its_gradient_are_as_computed_by_hand():
    def loss(logits):
        return load_balancing_loss(routing_sums(route(logits, num_chosen=1), None))

    logits = jnp.log(jnp.array([[3.0, 1.0], [3.0, 1.0], [1.0, 4.0]]))
    # Counts 2 and 1 of 3; mean probabilities (3/4 + 3/4 + 1/5) / 3 = 17/30 and 13/30:
    # 2 (2/3 * 17/30 + 1/3 * 13/30) = 47/45.
    np.testing.assert_allclose(loss(logits), 47 / 45, rtol=1e-6)
    # d p_0 / d logit_0 is p_0 p_1: 3/16, 3/16, 4/25. The loss is 2/3 (2 p_0 + p_1) / 3
    # a token, p_1 = 1 - p_0, so each is 2/9 of that.
    slope = np.array([3 / 16, 3 / 16, 4 / 25]) * 2 / 9
    np.testing.assert_allclose(
        jax.grad(loss)(logits), np.stack([slope, -slope], axis=1), rtol=1e-5
    )


def test_only_counted_tokens_count():
    routing = random_routing()
    counted = jnp.arange(20) % 3 != 0
    kept = jax.tree.map(lambda array: array[np.asarray(counted)], routing)
    jax.tree.map(
        lambda one, other: np.testing.assert_allclose(one, other, rtol=1e-6),
        routing_sums(routing, counted),
        routing_sums(kept, None),
    )
    everything = routing_sums(routing, None)
    assert everything.tokens == 20 and everything.chosen.sum() == 40


def test_sums_of_microbatches_add_up_to_those_of_the_batch():
    routing = random_routing()
    counted = jnp.arange(20) < 17
    whole = routing_sums(routing, counted)
    parts = jax.tree.map(lambda array: array.reshape(4, 5, -1), routing)
    each = jax.lax.map(lambda part: routing_sums(*part), (parts, counted.reshape(4, 5)))
    added = jax.tree.map(lambda array: array.sum(axis=0), each)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6), added, whole)
    loss = load_balancing_loss(whole)
    np.testing.assert_allclose(load_balancing_loss(added), loss, rtol=1e-6)
    # Stacked, the sums are those of layers, or parts, and each has a loss of its own.
    assert load_balancing_loss(each).shape == (4,)
    assert abs(load_balancing_loss(each).mean() - loss) > 1e-3


def test_no_counted_token_gives_a_loss_of_0():
    sums = routing_sums(random_routing(), jnp.zeros(20, bool))
    assert load_balancing_loss(sums) == 0
