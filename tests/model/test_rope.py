import dataclasses

import jax.numpy as jnp
import numpy as np
import pytest

from nomic_jax.config import PUBLISHED
from nomic_jax.model.rope import inverse_frequencies, rotary_table, rotate

PLAIN = PUBLISHED["nomic-embed-text-v1.5"]
STRETCHED = dataclasses.replace(PLAIN, rope_scaling_factor=2.0)


def exact_base(config, length):
    """The Dynamic NTK base in float64."""
    if length <= config.trained_positions:
        return config.rope_base
    factor, width = config.rope_scaling_factor, config.head_width
    stretch = factor * length / config.trained_positions - (factor - 1)
    return config.rope_base * stretch ** (width / (width - 2))


def one_text(length, columns=None):
    segment_ids = np.zeros((1, columns or length), np.int32)
    segment_ids[0, :length] = 1
    return jnp.asarray(segment_ids)


def test_the_base_of_a_long_text_is_the_one_worked_by_hand(tiny_config):
    # 16 trained positions, factor 2, head of 16: 1000 * (2*40/16 - 1)**(16/14).
    table = inverse_frequencies(tiny_config, 40)
    assert table.shape == (25, 8)
    np.testing.assert_allclose(1 / table[24, 4] ** 2, 4876.0546, rtol=1e-6)
    np.testing.assert_allclose(1 / table[0, 4] ** 2, 1000, rtol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("length", [3, 2048, 2049, 3000, 8192])
def test_angles_are_within_float32_of_the_exact_ones(length):
    cos, sin = rotary_table(STRETCHED, one_text(length))
    base = exact_base(STRETCHED, length)
    exact = np.arange(length)[:, None] / base ** (np.arange(0, 64, 2) / 64)
    # Four roundings of a relative 6e-8 each, times the angle, and one of the cosine.
    tolerance = 2.5e-7 * exact + 1e-7
    assert (np.abs(cos[0] - np.cos(exact)) <= tolerance).all()
    assert (np.abs(sin[0] - np.sin(exact)) <= tolerance).all()


@pytest.mark.torch
def test_frequencies_round_as_in_torch():
    import torch
    import torch_reference

    def shape(config):
        return torch_reference.Shape(
            num_layers=1,
            num_heads=1,
            epsilon=1e-12,
            base=config.rope_base,
            trained=config.trained_positions,
            factor=config.rope_scaling_factor,
        )

    table = inverse_frequencies(STRETCHED, 8192)
    expected = torch_reference.inverse_frequencies(shape(STRETCHED), 64, 2048)
    np.testing.assert_array_equal(table[0], expected.numpy())
    for length in (2049, 3000, 5000, 8192):
        expected = torch_reference.inverse_frequencies(shape(STRETCHED), 64, length)
        got = torch.from_numpy(table[length - 2048])
        # PyTorch's vectorised power is off by a last place now and then, 1.2e-7.
        assert (got != expected).sum() <= 3, length
        torch.testing.assert_close(got, expected, rtol=2.5e-7, atol=0)


@pytest.mark.slow
def test_each_text_of_a_row_turns_by_its_own_length(tiny_config):
    lengths = (5, 40, 20)
    segments = np.repeat(np.arange(1, 4), lengths).astype(np.int32)[None]
    cos, sin = rotary_table(tiny_config, jnp.asarray(segments))
    start = 0
    for length in lengths:
        alone = rotary_table(tiny_config, one_text(length, length + 7))
        for got, expected in zip((cos, sin), alone, strict=True):
            np.testing.assert_array_equal(
                got[0, start : start + length], expected[0, :length]
            )
        start += length


@pytest.mark.parametrize("shift", [1, 100, 1900])
def test_scores_depend_on_distance_only(shift):
    random = np.random.default_rng(shift)
    q, k = random.normal(size=(2, 64)).astype(np.float32)
    cos, sin = rotary_table(PLAIN, one_text(2048))
    rows = jnp.broadcast_to(jnp.stack([q, k])[:, None, None], (2, 2048, 1, 64))
    rotary = (jnp.broadcast_to(x, (2, *x.shape[1:])) for x in (cos, sin))
    turned = np.asarray(rotate(rows, *rotary))[:, :, 0]  # q and k at every position
    for distance in (0, 1, 37):
        here = turned[0, distance] @ turned[1, 0]
        there = turned[0, distance + shift] @ turned[1, shift]
        # An angle of 2,000 is known to 1.2e-4 in float32; |q||k| is about 64.
        np.testing.assert_allclose(there, here, atol=64 * 1.2e-4)
    assert abs(turned[0, 3] @ turned[1, 0] - turned[0, 0] @ turned[1, 3]) > 0.01


@pytest.mark.slow
def test_halves_turn_against_each_other_and_lengths_stay(tiny_config):
    random = np.random.default_rng(0)
    x = random.normal(size=(1, 7, 2, 16)).astype(np.float32)
    cos, sin = rotary_table(tiny_config, one_text(7))
    got = np.asarray(rotate(jnp.asarray(x), cos, sin))
    rotary = np.exp(1j * np.arange(7)[:, None] / 1000.0 ** (np.arange(8) / 8))
    expected = (x[..., :8] + 1j * x[..., 8:]) * rotary[None, :, None]
    np.testing.assert_allclose(got[..., :8], expected.real, atol=1e-5)
    np.testing.assert_allclose(got[..., 8:], expected.imag, atol=1e-5)
