import jax
import jax.numpy as jnp
import numpy as np
import pytest

from nomic_jax.downstream.losses import (
    LossSums,
    answer_cross_entropy,
    binary_cross_entropy,
    cross_entropy,
    pretraining_loss,
    squared_error,
)

ALL = jnp.ones(4, bool)
LENGTH = 6


def scores(*shape, seed=0):
    drawn = np.random.default_rng(seed).normal(size=shape).astype(np.float32)
    return jnp.asarray(3 * drawn)


def our_answers(scores, labels):
    return answer_cross_entropy(
        scores, labels[0], labels[1], ALL, columns=jnp.ones((4, LENGTH), bool)
    )


def their_answers(scores, labels):
    from transformers.loss.loss_utils import ForQuestionAnsweringLoss

    starts, ends = scores.split(1, dim=-1)
    return ForQuestionAnsweringLoss(starts.squeeze(-1), ends.squeeze(-1), *labels)


def their_tokens(scores, labels):
    from torch.nn import functional

    return functional.cross_entropy(scores.reshape(-1, 3), labels.reshape(-1))


def torch_loss(name):
    def loss(scores, labels):
        from torch.nn import functional

        return getattr(functional, name)(scores, labels)

    return loss


NUMBERS = np.random.default_rng(1).normal(size=(4, 3)).astype(np.float32)
SOME = np.array([[0, -100, 2, -100], [1, 1, -100, -100]])
ANSWERS = np.array([[0, 3, 5, 2], [LENGTH, 3, 9, 4]])  # two ends beyond the row


@pytest.mark.torch
@pytest.mark.parametrize(
    ("ours", "theirs", "shape", "labels"),
    [
        (lambda s, y: squared_error(s, y, ALL), "mse_loss", (4, 3), NUMBERS),
        (lambda s, y: squared_error(s, y, ALL), "mse_loss", (4, 1), NUMBERS[:, :1]),
        (
            lambda s, y: cross_entropy(s, y, ALL),
            "cross_entropy",
            (4, 3),
            np.array([2, 0, 1, 1]),
        ),
        (
            lambda s, y: binary_cross_entropy(s, y, ALL),
            "binary_cross_entropy_with_logits",
            (4, 3),
            (NUMBERS > 0).astype(np.float32),
        ),
        (lambda s, y: cross_entropy(s, y, y >= 0), their_tokens, (2, 4, 3), SOME),
        (our_answers, their_answers, (4, LENGTH, 2), ANSWERS),
    ],
    ids=["regression", "one-target", "one-label", "many-labels", "tokens", "answers"],
)
def test_losses_and_gradients_are_those_of_pytorch(ours, theirs, shape, labels):
    import torch

    theirs = torch_loss(theirs) if isinstance(theirs, str) else theirs
    x = scores(*shape)
    value, gradient = jax.jit(
        jax.value_and_grad(lambda x: ours(x, jnp.asarray(labels)).loss)
    )(x)
    given = torch.tensor(np.asarray(x), requires_grad=True)
    expected = theirs(given, torch.from_numpy(labels))
    expected.backward()
    # Logits of up to 8 in float32, and a few exponentials of them.
    assert float(value) == pytest.approx(expected.item(), abs=2e-6)
    np.testing.assert_allclose(gradient, given.grad.numpy(), atol=2e-7)


@pytest.mark.slow
def test_losses_of_cases_worked_by_hand():
    even = jnp.zeros((1, 4))
    one, sure = jnp.ones(1, bool), jnp.array([[40.0, 0.0, 0.0, 0.0]])
    right, wrong = jnp.array([0]), jnp.array([1])
    assert float(cross_entropy(even, wrong, one).loss) == pytest.approx(np.log(4))
    assert float(cross_entropy(sure, right, one).loss) == 0
    assert float(cross_entropy(sure, wrong, one).loss) == 40
    many = binary_cross_entropy(even, jnp.array([[0.0, 1.0, 0.0, 1.0]]), one)
    assert float(many.loss) == pytest.approx(np.log(2))
    assert float(squared_error(sure, jnp.zeros((1, 4)), one).loss) == 400
    # A start that is sure and right, an end among four equal columns: half of log 4.
    ends = jnp.stack([sure, even], axis=-1)
    columns = jnp.ones((1, 4), bool)
    got = answer_cross_entropy(ends, right, wrong, one, columns=columns)
    assert float(got.loss) == pytest.approx(np.log(4) / 2)
    both = pretraining_loss(
        cross_entropy(even, wrong, one), cross_entropy(sure, wrong, one)
    )
    assert float(both.loss) == pytest.approx(np.log(4) + 40)


@pytest.mark.slow
def test_parts_of_a_batch_add_up_to_its_mean():
    x, labels = scores(4, 8, 3), jnp.arange(32).reshape(4, 8) % 3
    weights = jnp.arange(32).reshape(4, 8) % 5 < jnp.arange(1, 5)[:, None]
    whole = cross_entropy(x, labels, weights)
    parts = jax.vmap(cross_entropy)(x, labels, weights)
    assert parts.totals.shape == (4, 1) and len(set(parts.counts[:, 0].tolist())) > 1
    added = jax.tree.map(lambda array: array.sum(axis=0), parts)
    for sums in (parts, added):
        # Four sums in another order.
        assert float(sums.loss) == pytest.approx(float(whole.loss), rel=1e-6)


def test_the_means_of_a_pretraining_batch_have_counts_of_their_own():
    sums = LossSums(jnp.array([[6.0, 1.0], [2.0, 3.0]]), jnp.array([[3.0, 1], [1, 1]]))
    assert float(sums.loss) == 8 / 4 + 4 / 2


@pytest.mark.slow
@pytest.mark.optimized
@pytest.mark.parametrize("label", [-100, -1, 99])
def test_what_does_not_count_changes_neither_loss_nor_gradient(label):
    x = scores(2, 4, 3)
    weights = jnp.array([[True, False, True, True], [False, False, True, False]])
    labels = jnp.where(weights, 1, label)

    def loss(x, labels):
        return cross_entropy(x, labels, weights).loss

    # Scores of padding are finite and mean nothing.
    other = jnp.where(weights[..., None], x, 1e4)
    value, gradient = jax.value_and_grad(loss)(x, labels)
    again, others = jax.value_and_grad(loss)(other, jnp.where(weights, 1, 0))
    assert float(value) == float(again)
    np.testing.assert_array_equal(gradient, others)
    assert not np.asarray(gradient)[~np.asarray(weights)].any()


@pytest.mark.slow
def test_a_loss_of_nothing_is_zero_and_so_is_its_gradient():
    none = jnp.zeros(4, bool)
    columns = jnp.zeros((4, LENGTH), bool)
    zeros = jnp.zeros(4, jnp.int32)
    losses = (
        (scores(4, 3), lambda x: cross_entropy(x, zeros, none)),
        (scores(4, 3), lambda x: squared_error(x, jnp.ones((4, 3)), none)),
        (scores(4, 3), lambda x: binary_cross_entropy(x, jnp.ones((4, 3)), none)),
        (
            scores(4, LENGTH, 2),
            lambda x: answer_cross_entropy(x, zeros, zeros, ALL, columns=columns),
        ),
    )
    for x, sums in losses:
        value, gradient = jax.value_and_grad(lambda x, sums=sums: sums(x).loss)(x)
        assert float(value) == 0 and not np.asarray(gradient).any()


def test_answers_compete_within_their_columns_alone():
    x = scores(4, LENGTH, 2)
    starts, ends = jnp.array([0, 1, 2, 3]), jnp.array([2, 1, -1, 5])
    columns = jnp.arange(LENGTH)[None] < jnp.array([4, 4, 4, 4])[:, None]

    def loss(x, ends, columns):
        return answer_cross_entropy(x, starts, ends, ALL, columns=columns)

    got = loss(x, ends, columns)
    # The ends before the text, and in a column that is none, do not count.
    np.testing.assert_array_equal(got.counts, [4, 2])
    cut = loss(x[:, :4], ends, columns[:, :4])
    np.testing.assert_allclose(got.totals, cut.totals, rtol=1e-6)
    elsewhere = jax.grad(lambda x: loss(x, ends, columns).loss)(x)[:, 4:]
    assert not np.asarray(elsewhere).any()
