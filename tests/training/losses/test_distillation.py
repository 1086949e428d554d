import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from sweeps import pairwise

from nomic_jax.training.losses.contrastive import matryoshka_loss
from nomic_jax.training.losses.distillation import (
    TeacherConfig,
    distillation_loss,
    similarity_kl,
    similarity_mse,
)

NESTED = {"dims": (12, 8, 3), "weights": (1.0, 0.5, 2.0)}
FULL = {"dims": (12,), "weights": (1.0,)}


def case(seed, group, teacher_width=20):
    """Queries and documents of a student, then of a teacher."""
    rng = np.random.default_rng(seed)
    return [
        jnp.array(rng.normal(size=(rows, width)).astype(np.float32))
        for width in (12, teacher_width)
        for rows in (5, 5 * group)
    ]


def kl_of_torch(query, document, teacher_query, teacher_document):
    import torch

    student = torch.log_softmax(query @ document.T / 0.05, dim=1)
    teacher = torch.log_softmax(teacher_query @ teacher_document.T / 0.05, dim=1)
    return torch.nn.functional.kl_div(
        student, teacher, reduction="batchmean", log_target=True
    )


def mse_of_torch(query, document, teacher_query, teacher_document):
    import torch

    return torch.nn.functional.mse_loss(
        query @ document.T, teacher_query @ teacher_document.T
    )


LOSSES = {
    "kl": (functools.partial(similarity_kl, temperature=0.05), kl_of_torch),
    "mse": (similarity_mse, mse_of_torch),
}


@pytest.mark.torch
@pytest.mark.parametrize(
    ("name", "nested", "group"),
    pairwise(LOSSES.keys(), {"full": FULL, "matryoshka": NESTED}, [1, 2, 4]),
)
def test_the_loss_and_its_gradients_equal_torch(name, nested, group):
    import torch

    ours, theirs = LOSSES[name]
    *student, teacher_query, teacher_document = case(group, group)

    def nested_loss(query, document):
        def loss(query, document):
            return ours(query, document, teacher_query, teacher_document)

        return matryoshka_loss(loss, query, document, **nested)

    (value, losses), gradients = jax.jit(
        jax.value_and_grad(nested_loss, argnums=(0, 1), has_aux=True)
    )(*student)
    made = [torch.tensor(np.float64(x), requires_grad=True) for x in student]
    teacher = [
        torch.nn.functional.normalize(torch.tensor(np.float64(x)), dim=1)
        for x in (teacher_query, teacher_document)
    ]
    expected = [
        theirs(
            *(torch.nn.functional.normalize(x[:, :dim], dim=1) for x in made), *teacher
        )
        for dim in nested["dims"]
    ]
    # Logits of up to 20 in float32 carry errors of a few 20 * 2**-24.
    np.testing.assert_allclose(losses, [x.item() for x in expected], rtol=1e-5)
    total = sum(w * x for w, x in zip(nested["weights"], expected, strict=True))
    total.backward()
    assert float(value) == pytest.approx(total.item(), rel=1e-5)
    for mine, leaf in zip(gradients, made, strict=True):
        gradient = leaf.grad.numpy()
        np.testing.assert_allclose(mine, gradient, atol=2e-5 * np.abs(gradient).max())


@pytest.mark.slow
@pytest.mark.parametrize("block_size", [None, 1, 7])
@pytest.mark.parametrize("kind", LOSSES)
def test_a_stages_distillation_is_the_nested_loss_in_blocks_or_not(kind, block_size):
    *student, teacher_query, teacher_document = case(0, 2)

    def nested(query, document):
        def loss(query, document):
            return LOSSES[kind][0](query, document, teacher_query, teacher_document)

        return matryoshka_loss(loss, query, document, **NESTED)[0]

    def in_blocks(query, document):
        # Temperatures are of the divergence alone.
        told = {"temperature": 0.05} if kind == "kl" else {}
        return distillation_loss(
            query,
            document,
            (teacher_query, teacher_document),
            TeacherConfig(model="teacher", kind=kind, weight=3.0, **told),
            block_size=block_size,
            **NESTED,
        )

    (expected, gradients), (value, same) = (
        jax.jit(jax.value_and_grad(loss, argnums=(0, 1)))(*student)
        for loss in (nested, in_blocks)
    )
    # float32 sums of 5 queries and 10 documents in another order.
    assert float(value) == pytest.approx(float(expected), rel=1e-6)
    for one, two in zip(same, gradients, strict=True):
        np.testing.assert_allclose(one, two, atol=1e-5 * float(jnp.abs(two).max()))


@pytest.mark.parametrize("name", LOSSES)
def test_a_student_that_is_its_teacher_has_nothing_to_learn(name):
    query, document, *_ = case(0, 2)
    value, gradient = jax.jit(jax.value_and_grad(LOSSES[name][0]))(
        query, 2 * document, query, document
    )
    # Both sides are the same computation, of vectors whose lengths do not matter.
    assert float(value) == pytest.approx(0, abs=1e-6)
    np.testing.assert_allclose(gradient, 0, atol=1e-5)


@pytest.mark.parametrize("name", LOSSES)
def test_no_gradient_reaches_the_teacher(name):
    gradients = jax.jit(jax.grad(LOSSES[name][0], argnums=(2, 3)))(*case(0, 2))
    for gradient in gradients:
        np.testing.assert_array_equal(gradient, 0)


def test_dims_that_do_not_fit_are_refused():
    query, document, *_ = case(0, 1)

    def loss(query, document):
        return jnp.float32(0)

    with pytest.raises(ValueError, match="from 1 to the embedding's width, 12"):
        matryoshka_loss(loss, query, document, dims=(16, 8))
    with pytest.raises(ValueError, match="1 matryoshka weights for 2 dims"):
        matryoshka_loss(loss, query, document, dims=(8, 4), weights=(1.0,))
