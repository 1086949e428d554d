"""The encoder whose every second layer is a mixture of experts."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from published_names import published_experts

from nomic_jax.batch import Tokens
from nomic_jax.data.tokenizer import pad
from nomic_jax.model.encoder import NomicBert
from nomic_jax.model.moe import load_balancing_loss

LENGTHS = (3, 16, 9, 12)


@jax.jit
def encode(model, tokens, counted=None):
    found = model.encode(tokens, counted=counted)
    return found.hidden, found.routing


@jax.jit
@jax.grad
def gradient(model, tokens, wanted):
    found = model.encode(tokens)
    balance = load_balancing_loss(found.routing).mean()
    return jnp.mean(jnp.sin(found.hidden) * wanted) + 0.1 * balance


@pytest.fixture(scope="module")
def config(tiny_config):
    """Two pairs of layers of nomic-embed-text-v2-moe, small."""
    return dataclasses.replace(
        tiny_config,
        type_vocab_size=1,
        num_layers=4,
        layer_norm_epsilon=1e-5,
        rope_base=10000.0,
        activation="gelu",
        bias=True,
        num_experts=8,
        pad_token_id=1,
    )


def made(config, seed=0):
    """A model in which nothing is 0 or 1, as fresh biases and norms are."""
    shapes = jax.eval_shape(lambda: NomicBert(config, rngs=nnx.Rngs(0)))
    random = np.random.default_rng(seed)

    def draw(path, leaf):
        drawn = 0.2 * random.normal(size=leaf.shape)
        centre = "scale" in jax.tree_util.keystr(path)
        return jnp.asarray(drawn + centre, jnp.float32)

    return jax.tree_util.tree_map_with_path(draw, shapes)


def random_texts(lengths=LENGTHS, seed=0):
    random = np.random.default_rng(seed)
    return [random.integers(5, 128, length).astype(np.int32) for length in lengths]


def padded(texts, extra=0):
    return pad(texts, length=max(map(len, texts)) + extra, pad_id=1)


def direction(*shape):
    return np.random.default_rng(1).normal(size=shape).astype(np.float32)


@pytest.mark.torch
@pytest.mark.parametrize(("seed", "expert_bias"), [(0, False), (1, True)])
def test_it_chooses_computes_and_differentiates_as_the_torch_reference(
    config, seed, expert_bias
):
    import torch
    import torch_reference

    model = made(dataclasses.replace(config, expert_bias=expert_bias), seed)
    tokens = padded(random_texts(seed=seed))
    weights = {
        name: torch.from_numpy(np.array(array)).requires_grad_()
        for name, array in published_experts(model).items()
    }
    shape = torch_reference.Shape(
        num_layers=4, num_heads=2, epsilon=1e-5, base=10000.0, trained=16
    )
    routed = []
    expected = torch_reference.hidden_states(
        weights,
        torch.from_numpy(tokens.ids).long(),
        torch.from_numpy(tokens.mask),
        shape,
        routed=routed,
    )[-1]
    hidden, routing = encode(model, tokens)
    # Sums of at most 64 terms in float32, four layers deep; measured below 2e-5.
    np.testing.assert_allclose(
        np.asarray(hidden)[tokens.mask],
        expected.detach().numpy()[tokens.mask],
        atol=5e-5,
    )
    assert routing.chosen.shape == (2, 8) and routing.tokens.tolist() == [40, 40]
    mask = torch.from_numpy(tokens.mask)
    for layer, (probabilities, places) in enumerate(routed):
        counts = torch.bincount(places[mask].flatten(), minlength=8)
        np.testing.assert_array_equal(routing.chosen[layer], counts.numpy())
        np.testing.assert_allclose(
            routing.probability[layer],
            probabilities[mask].sum(dim=0).detach().numpy(),
            rtol=1e-4,
        )

    wanted = direction(*tokens.ids.shape, 32) * tokens.mask[..., None]

    got = published_experts(gradient(model, tokens, wanted))
    balance = 0.0
    for probabilities, places in routed:
        own = torch.nn.functional.one_hot(places[mask], 8).sum(dim=(0, 1)) / 80
        balance = balance + 8 * (own * probabilities[mask].mean(dim=0)).sum() / 2
    (
        torch.mean(torch.sin(expected) * torch.from_numpy(wanted)) + 0.1 * balance
    ).backward()
    grads = {name: np.asarray(weight.grad) for name, weight in weights.items()}
    whole = max(np.abs(theirs).max() for theirs in grads.values())
    for name, theirs in grads.items():
        # Relative to the tensor's largest entry; the biases of keys have no gradient.
        limit = 1e-4 * np.abs(theirs).max() + 1e-7 * whole
        np.testing.assert_allclose(got[name], theirs, atol=limit, err_msg=name)


@pytest.mark.slow
def test_packed_texts_equal_texts_in_rows_of_their_own(config):
    config = dataclasses.replace(config, num_layers=2)
    model, texts = made(config), random_texts((5, 7, 4))
    ids = np.concatenate([*texts, np.ones(3, np.int32)])
    segments = np.repeat([1, 2, 3, 0], [5, 7, 4, 3]).astype(np.int32)
    packed, apart = Tokens(ids[None], segments[None]), padded(texts)
    # A row of 19 columns, of which no text is longer than the trained 16.
    wanted = direction(16, 32)

    def of(tokens):
        places = np.nonzero(tokens.mask)

        def loss(model):
            found = model.encode(tokens)
            hidden = found.hidden[places]
            balance = load_balancing_loss(found.routing).mean()
            return jnp.sum(jnp.sin(hidden) * wanted) + balance, (hidden, found.routing)

        return jax.jit(jax.value_and_grad(loss, has_aux=True))(model)

    found = [of(tokens) for tokens in (packed, apart)]
    for one, other in zip(*map(jax.tree.leaves, found), strict=True):
        # float32 sums over 16 tokens in another order, by the array's largest entry.
        limit = 1e-5 * np.abs(other).max() + 1e-6
        np.testing.assert_allclose(one, other, atol=limit)


@pytest.mark.slow
def test_routing_is_that_of_tokens_alone_unless_columns_are_told(config):
    model, texts = made(config), random_texts()
    narrow, wide = padded(texts), padded(texts, 7)
    one, other = (encode(model, tokens)[1] for tokens in (narrow, wide))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5), one, other)
    everything = jnp.ones(wide.ids.shape, bool)
    assert encode(model, wide, everything)[1].tokens.tolist() == [4 * 23] * 2
    of_row = jnp.asarray(wide.mask) & (jnp.arange(4) == 1)[:, None]
    parts = [
        encode(model, wide, jnp.asarray(wide.mask) & x)[1] for x in (of_row, ~of_row)
    ]
    assert parts[0].tokens.tolist() == [16, 16]
    jax.tree.map(
        lambda a, b, whole: np.testing.assert_allclose(a + b, whole, rtol=1e-5),
        *parts,
        one,
    )


@pytest.mark.slow
def test_expert_dropout_is_of_the_layers_with_experts_alone(config):
    config = dataclasses.replace(config, num_layers=2)
    tokens = padded(random_texts())
    keys = jax.random.split(jax.random.key(0), tokens.ids.shape)
    found = {}
    for rates in ({}, {"expert_dropout": 0.5}):
        model = made(dataclasses.replace(config, **rates))
        states = jax.jit(lambda m: m.encode(tokens, dropout_keys=keys, states=True))(
            model
        ).states
        found[next(iter(rates), "none")] = np.asarray(states)[:, tokens.mask]
    none, sparse = found["none"], found["expert_dropout"]
    np.testing.assert_array_equal(sparse[:2], none[:2])  # embeddings, a dense layer
    assert (np.abs(sparse[2] - none[2]) > 0.01).mean() > 0.5
