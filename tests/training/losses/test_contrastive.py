import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from nomic_jax.training.losses import contrastive
from nomic_jax.training.losses.contrastive import ContrastiveLoss, bounded_log_scale

info_nce = jax.jit(contrastive.info_nce)
contrastive_loss = jax.jit(contrastive.contrastive_loss, static_argnums=2)


def vectors(seed, rows, dim=16):
    return np.random.default_rng(seed).normal(size=(rows, dim)).astype(np.float32)


@pytest.mark.slow
def test_info_nce_of_a_case_worked_by_hand():
    query = jnp.array([[2.0, 0.0], [0.0, 0.5]])
    document = jnp.array([[3.0, 0.0], [0.6, 0.8]])
    loss, accuracy = info_nce(query, document, scale=10.0)
    # Cosines: 1 and 0.6 for the first query, 0 and 0.8 for the second.
    expected = (np.log(1 + np.exp(6 - 10)) + np.log(1 + np.exp(0 - 8))) / 2
    # Logits of 10 in float32 err by an ulp or two, 1e-6 each.
    assert float(loss) == pytest.approx(expected, abs=3e-6)
    assert float(accuracy) == 1.0


@pytest.mark.slow
def test_accuracy_is_the_share_of_positives_that_score_highest():
    query = jnp.eye(4)
    document = jnp.eye(4)[jnp.array([0, 2, 1, 3])]
    assert float(info_nce(query, document, scale=1.0)[1]) == 0.5
    # Two documents each, positive first: only the last query's negative is nearer.
    document = jnp.repeat(jnp.eye(4), 2, axis=0).at[1::2].multiply(-1.0)
    document = document.at[6].set(-document[6]).at[7].set(-document[7])
    assert float(info_nce(query, document, scale=1.0)[1]) == 0.75


@pytest.mark.slow
def test_a_negative_that_is_the_positive_costs_log_two():
    query = jnp.eye(3, 8)
    document = jnp.repeat(query, 2, axis=0)
    loss, _ = info_nce(query, document, scale=50.0)
    # The others, 50 lower, add nothing; the logits of 50 err by an ulp, 4e-6.
    assert float(loss) == pytest.approx(np.log(2), abs=4e-6)


def test_lengths_of_vectors_do_not_matter():
    query, document = vectors(0, 4), vectors(1, 8)
    loss, _ = info_nce(jnp.array(query), jnp.array(document), scale=50.0)
    longer, _ = info_nce(jnp.array(query) * 8, jnp.array(document) / 4, scale=50.0)
    assert float(loss) == float(longer)  # powers of two are exact


def test_documents_that_do_not_split_among_queries_are_refused():
    with pytest.raises(ValueError, match="7 documents do not split among 3 queries"):
        info_nce(jnp.ones((3, 4)), jnp.ones((7, 4)), scale=1.0)


@pytest.mark.torch
@pytest.mark.parametrize("group", [1, 4])
@pytest.mark.parametrize("seed", range(2))
def test_info_nce_and_its_gradients_equal_torch(group, seed):
    import torch

    query, document = vectors(seed, 6), vectors(seed + 10, 6 * group)

    def ours(query, document):
        return info_nce(query, document, scale=50.0)[0]

    loss, gradients = jax.jit(jax.value_and_grad(ours, argnums=(0, 1)))(
        jnp.array(query), jnp.array(document)
    )
    inputs = [torch.tensor(x, requires_grad=True) for x in (query, document)]
    unit = [torch.nn.functional.normalize(x, dim=-1) for x in inputs]
    theirs = torch.nn.functional.cross_entropy(
        50.0 * unit[0] @ unit[1].T, torch.arange(6) * group
    )
    theirs.backward()
    # float32: logits of up to 50 carry errors of 50 * 2**-24 * a few, 1e-5.
    assert float(loss) == pytest.approx(theirs.item(), abs=2e-5)
    for ours_, theirs_ in zip(gradients, inputs, strict=True):
        scale = np.abs(theirs_.grad.numpy()).max()
        np.testing.assert_allclose(ours_, theirs_.grad.numpy(), atol=2e-5 * scale)


# Queries 0, 2 and 5 have one positive; document 0's copy is also a negative of query 1;
# a negative of query 3 is twice and is nobody's positive. Groups of two.
NAMES = ["a", "x", "b", "a", "a", "y", "c", "z", "d", "z", "a", "b"]


def case_with_copies(seed):
    """Return queries, documents of which some are equal, and their ids."""
    document = vectors(seed + 10, len(NAMES))
    document = document[[NAMES.index(name) for name in NAMES]]
    numbers = np.array([ord(name) for name in NAMES], np.int32)
    # The halves of different documents' ids agree now and then.
    ids = np.stack([numbers % 7, numbers // 7], axis=1)
    return vectors(seed, len(NAMES) // 2), document, ids


@pytest.mark.torch
@pytest.mark.parametrize("seed", range(3))
def test_copies_of_a_positive_are_no_negatives_of_its_query(seed):
    import torch

    query, document, ids = case_with_copies(seed)

    def ours(query, document):
        return info_nce(query, document, scale=20.0, document_ids=jnp.array(ids))[0]

    loss, gradients = jax.jit(jax.value_and_grad(ours, argnums=(0, 1)))(
        jnp.array(query), jnp.array(document)
    )
    inputs = [torch.tensor(x, requires_grad=True) for x in (query, document)]
    unit = [torch.nn.functional.normalize(x, dim=-1) for x in inputs]
    terms = []
    for i in range(len(query)):
        # The plain reading: leave the copies out of the list.
        rest = [j for j, name in enumerate(NAMES) if j == 2 * i or name != NAMES[2 * i]]
        logits = 20.0 * unit[1][rest] @ unit[0][i]
        terms.append(torch.logsumexp(logits, 0) - logits[rest.index(2 * i)])
    mean = torch.stack(terms).mean()
    mean.backward()
    # float32: logits of up to 20 carry errors of 20 * 2**-24 * a few.
    assert float(loss) == pytest.approx(mean.item(), abs=1e-5)
    for ours_, theirs_ in zip(gradients, inputs, strict=True):
        scale = np.abs(theirs_.grad.numpy()).max()
        np.testing.assert_allclose(ours_, theirs_.grad.numpy(), atol=1e-5 * scale)


@pytest.mark.slow
def test_a_copy_counts_where_it_is_no_positives_copy():
    query, document, ids = map(jnp.array, case_with_copies(0))
    plain, _ = info_nce(query, document, scale=20.0)
    masked, _ = info_nce(query, document, scale=20.0, document_ids=ids)
    assert float(masked) < float(plain)  # there are fewer negatives
    # Query 3's negative "z" and its copy are both still there.
    apart = ids.at[7].set(jnp.array([99, 99]))
    same, _ = info_nce(query, document, scale=20.0, document_ids=apart)
    assert float(same) == float(masked)


@pytest.mark.parametrize("group", [1, 3])
def test_without_copies_ids_change_neither_loss_nor_gradient(group):
    query, document = vectors(0, 4), vectors(1, 4 * group)
    # Each half agrees for some documents, never both.
    numbers = np.arange(4 * group, dtype=np.int32)
    ids = jnp.array(np.stack([numbers % 2, numbers // 2], axis=1))

    def both(ids):
        def loss(query, document):
            return info_nce(query, document, scale=50.0, document_ids=ids)[0]

        return jax.jit(jax.value_and_grad(loss, argnums=(0, 1)))(query, document)

    for one, two in zip(
        jax.tree.leaves(both(ids)), jax.tree.leaves(both(None)), strict=True
    ):
        # The same sums; compilers may order them otherwise.
        np.testing.assert_allclose(one, two, rtol=1e-5, atol=1e-7)


@pytest.mark.slow
def test_a_query_whose_negatives_are_all_copies_has_no_loss():
    query, document = jnp.array(vectors(0, 3)), jnp.ones((3, 16))
    ids = jnp.zeros((3, 2), jnp.int32)
    (loss, accuracy), gradient = jax.value_and_grad(
        lambda query: info_nce(query, document, scale=50.0, document_ids=ids),
        has_aux=True,
    )(query)
    assert float(loss) == 0.0 and float(accuracy) == 1.0
    np.testing.assert_array_equal(gradient, 0)


@functools.partial(jax.jit, static_argnums=0)
def loss_and_gradients(config, query, document, **others):
    def loss(query, document):
        return contrastive_loss(query, document, config, **others)

    (value, metrics), gradients = jax.value_and_grad(
        loss, argnums=(0, 1), has_aux=True
    )(query, document)
    return value, metrics, gradients


EVERYTHING = ContrastiveLoss(
    temperature=0.05,
    both_directions=True,
    query_negatives=True,
    positive_negatives=True,
    false_negative_margin=0.1,
    matryoshka_dims=(16, 8),
)


def test_a_plain_contrastive_loss_is_info_nce():
    query, document, ids = map(jnp.array, case_with_copies(0))
    loss, metrics = contrastive_loss(
        query, document, ContrastiveLoss(temperature=0.05), document_ids=ids
    )
    plain = info_nce(query, document, scale=20.0, document_ids=ids)
    # 1 / 0.05 and 20 differ by an ulp at most.
    np.testing.assert_allclose([loss, metrics["accuracy"]], plain, rtol=1e-6)
    assert set(metrics) == {"accuracy"}


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(2))
def test_the_order_of_pairs_and_of_hard_negatives_does_not_matter(seed):
    query, document, ids = case_with_copies(seed)
    rng = np.random.default_rng(seed)
    # Groups of three: the positive, then the negatives in any order.
    query, document = query[:4], document.reshape(4, 3, -1)
    ids = ids.reshape(4, 3, 2)
    pairs = rng.permutation(4)
    places = np.stack([np.append(0, 1 + rng.permutation(2)) for _ in range(4)])
    rows = np.arange(4)[:, None]

    def value(query, document, ids):
        loss, _, (by_query, by_document) = loss_and_gradients(
            EVERYTHING,
            jnp.array(query),
            jnp.array(document.reshape(12, -1)),
            document_ids=jnp.array(ids.reshape(12, 2)),
        )
        return loss, by_query, np.asarray(by_document).reshape(4, 3, -1)

    loss, by_query, by_document = value(query, document, ids)
    moved = value(query[pairs], document[rows, places][pairs], ids[rows, places][pairs])
    # The same float32 terms in another order.
    assert float(moved[0]) == pytest.approx(float(loss), rel=1e-5)
    for got, expected in zip(
        moved[1:], (by_query[pairs], by_document[rows, places][pairs]), strict=True
    ):
        np.testing.assert_allclose(got, expected, rtol=1e-4, atol=2e-6)


def test_the_loss_of_each_dim_is_that_of_its_prefix():
    query, document = jnp.array(vectors(0, 4)), jnp.array(vectors(1, 8))
    config = ContrastiveLoss(
        temperature=0.05, matryoshka_dims=(4, 16), matryoshka_weights=(3.0, 0.5)
    )
    loss, metrics = contrastive_loss(query, document, config)
    short, _ = info_nce(query[:, :4], document[:, :4], scale=20.0)
    full, accuracy = info_nce(query, document, scale=20.0)
    assert set(metrics) == {"accuracy", "loss_4", "loss_16"}
    # 1 / 0.05 and 20 differ by an ulp at most.
    assert float(metrics["loss_4"]) == pytest.approx(float(short), rel=1e-6)
    assert float(metrics["loss_16"]) == pytest.approx(float(full), rel=1e-6)
    assert float(metrics["accuracy"]) == float(accuracy)  # of the larger
    assert float(loss) == pytest.approx(float(3 * short + full / 2), rel=1e-6)


def test_false_negatives_of_a_prefix_are_those_of_the_whole():
    # At two of three dims the second document equals the first; at three it is far.
    query = jnp.array([[1.0, 0.0, 1.0], [0.0, 1.0, 0.0]])
    document = jnp.array([[1.0, 0.0, 1.0], [1.0, 0.0, -1.0]])
    config = ContrastiveLoss(
        temperature=1.0, false_negative_margin=0.5, matryoshka_dims=(2,)
    )
    _, metrics = contrastive_loss(query, document, config)
    # The first query has two equal logits; of the second the negative is masked.
    assert float(metrics["loss_2"]) == pytest.approx(np.log(2) / 2, rel=1e-6)


def test_no_gradient_reaches_the_guide():
    query, document = jnp.array(vectors(0, 4)), jnp.array(vectors(1, 8))

    def loss(guide):
        return contrastive_loss(query, document, EVERYTHING, guide=guide)[0]

    for gradient in jax.grad(loss)((query, document)):
        np.testing.assert_array_equal(gradient, 0)


@pytest.mark.slow
@pytest.mark.parametrize("negative", [0.5, 0.9, -1.0])
def test_a_tiny_loss_at_a_scale_of_100_keeps_its_digits(negative):
    query = jnp.array([[1.0, 0.0], [-negative, -np.sqrt(1 - negative**2)]])
    document = jnp.array([[1.0, 0.0], [negative, np.sqrt(1 - negative**2)]])
    config = ContrastiveLoss(temperature=0.01, block_size=1)
    pair, metrics, gradients = loss_and_gradients(config, query, document)
    # The second query is its positive's opposite, at -100, the other at -100 * cosine.
    expected = [
        np.log1p(np.exp(100 * (negative - 1))),
        np.logaddexp(0, 100 - 100 * negative),
    ]
    # Logits of 100 in float32 err by an ulp, 8e-6, and so do exponentials, relatively.
    assert float(pair) == pytest.approx(np.mean(expected), rel=3e-5)
    assert float(metrics["accuracy"]) == 0.5
    assert all(np.isfinite(gradient).all() for gradient in gradients)
    alone, _ = info_nce(query[:1], document, scale=100.0)
    # Far below float32's resolution at 100.
    assert float(alone) == pytest.approx(expected[0], rel=3e-5)


def test_a_learned_scale_is_set_back_to_its_maximum_and_no_further():
    bound = np.float32(np.log(100.0))
    for log_scale, kept in ((-1.0, -1.0), (4.6, 4.6), (4.7, bound), (1e4, bound)):
        assert bounded_log_scale(jnp.float32(log_scale), 100.0) == np.float32(kept)


@pytest.mark.slow
def test_a_learned_scale_is_the_one_that_counts_and_has_a_gradient_everywhere():
    query, document = jnp.array(vectors(0, 4)), jnp.array(vectors(1, 8))
    config = ContrastiveLoss(learned_scale=True, max_scale=60.0)

    def of(log_scale):
        return contrastive_loss(query, document, config, log_scale=log_scale)

    for scale in (10.0, 60.0, 90.0):
        log_scale = jnp.log(jnp.float32(scale))
        (loss, metrics), slope = jax.value_and_grad(of, has_aux=True)(log_scale)
        expected, _ = info_nce(query, document, scale=scale)
        # exp(log(scale)) errs by a few ulp.
        assert float(loss) == pytest.approx(float(expected), rel=1e-5)
        assert float(metrics["scale"]) == pytest.approx(scale, rel=1e-6)
        # At random these pairs are told apart better by a smaller scale.
        assert float(slope) > 0.1


@pytest.mark.parametrize(
    "fields, message",
    [
        ({"temperature": 0.0}, "temperature=0.0 must be positive"),
        ({"learned_scale": True, "max_scale": 40.0}, "max_scale=40.0 is below"),
        ({"max_scale": 50.0}, "max_scale bounds a learned scale; set learned_scale"),
        ({"false_negative_margin": 1.0}, "above -1 and below 1"),
        ({"relative_margin": True}, "relative_margin needs false_negative_margin"),
        ({"matryoshka_dims": (8, 8)}, r"\(8, 8\) must be different"),
        ({"matryoshka_dims": (0,)}, r"\(0,\) must be different"),
        ({"matryoshka_weights": (1.0,)}, "1 matryoshka weights for 0 dims"),
        ({"block_size": 0}, "block_size=0 must be at least 1"),
    ],
)
def test_settings_without_meaning_are_refused(fields, message):
    with pytest.raises(ValueError, match=message):
        ContrastiveLoss(**fields)


@pytest.mark.parametrize(
    "fields, given, message",
    [
        ({"matryoshka_dims": (32, 8)}, {}, "from 1 to the embedding's width, 16"),
        ({"learned_scale": True}, {}, "log_scale must be given"),
        ({}, {"log_scale": jnp.float32(1)}, "log_scale must not be given"),
        ({}, {"guide": (jnp.ones((2, 3)),) * 2}, "a guide needs false_negative_margin"),
    ],
)
def test_what_does_not_fit_the_settings_is_refused(fields, given, message):
    query = jnp.array(vectors(0, 2))
    with pytest.raises(ValueError, match=message):
        contrastive_loss(query, query, ContrastiveLoss(**fields), **given)
