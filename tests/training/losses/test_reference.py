"""The contrastive losses next to plain ones in float64, and sentence-transformers'."""

import dataclasses
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from sweeps import pairwise

from nomic_jax.training.losses.contrastive import ContrastiveLoss, contrastive_loss

pytestmark = pytest.mark.torch

PAIRS, WIDTH = 6, 16
NESTED = {"matryoshka_dims": (16, 8, 4), "matryoshka_weights": (1.0, 0.5, 2.0)}
DIMS = {"full": {}, "matryoshka": NESTED}


def batch(seed, group, width=WIDTH):
    """Queries, and documents of which the positives are near and some negatives too."""
    rng = np.random.default_rng(seed)
    query = rng.normal(size=(PAIRS, width))
    document = rng.normal(size=(PAIRS, group, width))
    document[:, 0] += 0.7 * query
    document[:, 1:] += 0.6 * query[:, None]
    document[1::2] *= 3.0
    return query.astype(np.float32), document.reshape(-1, width).astype(np.float32)


def value_and_gradients(config, query, document, **others):
    """Our loss and its gradients by queries and documents."""

    def loss(query, document):
        return contrastive_loss(query, document, config, **others)[0]

    # Not compiled: the variants share their operations, compiled programs nothing.
    return jax.value_and_grad(loss, argnums=(0, 1))(
        jnp.array(query), jnp.array(document)
    )


def assert_equal(ours, theirs, columns):
    """Compare with a scalar of torch and the leaves it was made of."""
    loss, gradients = ours
    theirs.backward()
    # Logits of up to 50 in float32 carry errors of a few 50 * 2**-24, about 1e-5; so
    # do, relatively, the exponentials that make the gradients.
    assert float(loss) == pytest.approx(theirs.item(), rel=1e-5, abs=1e-5)
    for mine, leaf in zip(gradients, columns, strict=True):
        expected = leaf.grad.numpy()
        np.testing.assert_allclose(mine, expected, atol=2e-5 * np.abs(expected).max())


def leaves(*arrays):
    import torch

    return [torch.tensor(np.float64(x), requires_grad=True) for x in arrays]


def plain(config, query, document, ids, guide):
    """Write the loss down pair by pair, negative by negative."""
    import torch

    def cosine(a, b):
        return torch.nn.functional.cosine_similarity(a, b, dim=0)

    group = len(document) // len(query)
    positive = document[::group]
    guide_query, guide_document = (torch.tensor(np.float64(x)) for x in guide)
    guide_positive = guide_document[::group]
    ids = np.arange(len(document)) if ids is None else ids
    of_queries = [ids[j * group] for j in range(len(query))]
    sides = {
        "query": (query, guide_query, of_queries),
        "positive": (positive, guide_positive, of_queries),
        "document": (document, guide_document, list(ids)),
    }
    ways = [("query", "document")]
    ways += [("query", "query")] * config.query_negatives
    ways += [("positive", "positive")] * config.positive_negatives
    softmaxes = [ways, [("positive", "query")]][: 1 + config.both_directions]

    def masked(i, row, side, j):
        _, told, names = sides[side]
        own = cosine(guide_query[i], guide_positive[i])
        if names[j] == ids[i * group]:  # the positive itself too
            return True
        margin = config.false_negative_margin
        if margin is None:
            return False
        allowed = own - margin * (own.abs() if config.relative_margin else 1)
        return bool(cosine(sides[row][1][i], told[j]) > allowed)

    total = 0
    for dim, weight in zip(
        config.matryoshka_dims or (query.shape[1],), config.weights, strict=True
    ):
        for ways, i in itertools.product(softmaxes, range(len(query))):
            own = cosine(query[i, :dim], positive[i, :dim]) / config.temperature
            logits = [own]
            for row, side in ways:
                for j, column in enumerate(sides[side][0]):
                    if not masked(i, row, side, j):
                        value = cosine(sides[row][0][i, :dim], column[:dim])
                        logits.append(value / config.temperature)
            loss = torch.logsumexp(torch.stack(logits), 0) - own
            total = total + weight * loss / len(query) / len(softmaxes)
    return total


EVERYTHING = {
    "both_directions": True,
    "query_negatives": True,
    "positive_negatives": True,
    "false_negative_margin": 0.1,
}
VARIANTS = {
    "one_way": {},
    "both_directions": {"both_directions": True},
    "all_sides": {"query_negatives": True, "positive_negatives": True},
    "margin": {"false_negative_margin": 0.05},
    "relative_margin": {"false_negative_margin": 0.2, "relative_margin": True},
    "everything": EVERYTHING,
}


@pytest.mark.parametrize(
    ("variant", "nested", "group"), pairwise(VARIANTS.keys(), DIMS, [1, 2, 4])
)
def test_loss_and_gradient_equal_the_plain_form(variant, nested, group):
    config = ContrastiveLoss(temperature=0.05, **VARIANTS[variant], **nested)
    query, document = batch(group, group)
    # Two documents stand twice, the first of them as two pairs' positive.
    names = np.arange(PAIRS * group)
    names[2 * group], names[-1] = 0, group
    ids = np.stack([names % 3, names // 3], axis=1).astype(np.int32)
    ours = value_and_gradients(config, query, document, document_ids=jnp.array(ids))
    columns = leaves(query, document)
    assert_equal(ours, plain(config, *columns, names, (query, document)), columns)


@pytest.mark.parametrize("group", [1, 4])
def test_another_guide_of_another_width_decides(group):
    config = ContrastiveLoss(temperature=0.05, **EVERYTHING, **NESTED)
    query, document = batch(0, group)
    guide = batch(1, group, width=5)
    ours = value_and_gradients(
        config, query, document, guide=tuple(map(jnp.array, guide))
    )
    columns = leaves(query, document)
    assert_equal(ours, plain(config, *columns, None, guide), columns)
    own, _ = value_and_gradients(config, query, document)
    assert abs(float(ours[0]) - float(own)) > 1e-3


def stand_in(columns):
    """A sentence-transformers model, as its losses see one, that gives what we say."""
    import torch
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast

    class StandIn(torch.nn.Module):
        tokenizer = PreTrainedTokenizerFast(
            tokenizer_object=Tokenizer(models.WordLevel({"a": 0}, unk_token="a"))
        )
        max_seq_length = 8

        def get_embedding_dimension(self):
            return columns[0].shape[1]

        def forward(self, features):
            return {"sentence_embedding": columns[features["column"]]}

    return StandIn()


def of_sentence_transformers(make, query, document, group, nested, guide=None):
    """The value of a loss of theirs, and the leaves it came from."""
    from sentence_transformers.sentence_transformer import losses

    def columns_of(query, document):
        return [query, *(document[n::group] for n in range(group))]

    made = leaves(query, document)
    model = stand_in(columns_of(*made))
    told = None if guide is None else stand_in(columns_of(*leaves(*guide)))
    loss = make(losses, model, told)
    if nested:
        loss = losses.MatryoshkaLoss(
            model, loss, nested["matryoshka_dims"], nested["matryoshka_weights"]
        )
    return loss([{"column": n} for n in range(group + 1)], None), made


@pytest.mark.parametrize(
    ("way", "nested", "group"),
    pairwise(
        {
            "one_way": ((), "joint", {}),
            "both_directions": (
                ("doc_to_query",),
                "per_direction",
                {"both_directions": True},
            ),
            "query_negatives": (
                ("query_to_query",),
                "joint",
                {"query_negatives": True},
            ),
        },
        DIMS,
        [1, 2, 4],
    ),
)
def test_it_is_multiple_negatives_ranking_loss(way, nested, group):
    directions, mode, fields = way
    config = ContrastiveLoss(temperature=0.02, **fields, **nested)
    query, document = batch(group, group)
    theirs, columns = of_sentence_transformers(
        lambda losses, model, _: losses.MultipleNegativesRankingLoss(
            model,
            scale=50.0,
            directions=("query_to_doc", *directions),
            partition_mode=mode,
        ),
        *(query, document, group, nested),
    )
    assert_equal(value_and_gradients(config, query, document), theirs, columns)


@pytest.mark.parametrize(
    ("margins", "all_sides", "nested", "group"),
    pairwise(
        [(0.0, False), (0.1, False), (0.3, True)],
        [True, False],
        DIMS,
        [1, 2],  # theirs knows at most one hard negative
    ),
)
def test_it_is_gist_embed_loss(margins, all_sides, nested, group):
    margin, relative = margins
    config = ContrastiveLoss(
        temperature=0.05,
        false_negative_margin=margin,
        relative_margin=relative,
        query_negatives=all_sides,
        positive_negatives=all_sides,
        **nested,
    )
    (query, document), guide = batch(group, group), batch(group + 1, group, width=8)
    theirs, columns = of_sentence_transformers(
        lambda losses, model, told: losses.GISTEmbedLoss(
            model,
            told,
            temperature=0.05,
            margin_strategy="relative" if relative else "absolute",
            margin=margin,
            contrast_anchors=all_sides,
            contrast_positives=all_sides,
        ),
        *(query, document, group, nested, guide),
    )
    ours = value_and_gradients(
        config, query, document, guide=tuple(map(jnp.array, guide))
    )
    assert_equal(ours, theirs, columns)
    unmasked = dataclasses.replace(
        config, false_negative_margin=None, relative_margin=False
    )
    assert float(value_and_gradients(unmasked, query, document)[0]) > float(ours[0])


@pytest.mark.parametrize("fields", [{}, {"both_directions": True}])
def test_the_gradient_by_the_scale_equals_torch(fields):
    import torch

    config = ContrastiveLoss(temperature=0.05, learned_scale=True, **fields)
    query, document = batch(0, 2)

    def ours(log_scale):
        return contrastive_loss(
            jnp.array(query), jnp.array(document), config, log_scale=log_scale
        )[0]

    value, gradient = jax.value_and_grad(ours)(jnp.float32(3.0))
    scale = torch.tensor(3.0, dtype=torch.float64, requires_grad=True)
    q, p, d = (
        torch.nn.functional.normalize(torch.tensor(np.float64(x)), dim=1)
        for x in (query, document[::2], document)
    )
    losses = [
        torch.nn.functional.cross_entropy(
            scale.exp() * q @ d.T, 2 * torch.arange(PAIRS)
        )
    ]
    if config.both_directions:
        losses += [
            torch.nn.functional.cross_entropy(
                scale.exp() * p @ q.T, torch.arange(PAIRS)
            )
        ]
    expected = torch.stack(losses).mean()
    expected.backward()
    # Logits of up to 20 in float32.
    assert float(value) == pytest.approx(expected.item(), rel=1e-5)
    assert float(gradient) == pytest.approx(scale.grad.item(), rel=1e-5)
