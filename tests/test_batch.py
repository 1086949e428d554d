import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jaxtyping import TypeCheckError

from nomic_jax.batch import (
    MlmBatch,
    PackedTexts,
    PairBatch,
    Tokens,
    positions_and_lengths,
)


def tokens(rows=2, columns=5):
    ids = np.arange(rows * columns, dtype=np.int32).reshape(rows, columns)
    return Tokens(ids, np.ones_like(ids))


def pair_batch(queries=2, documents=4, halves=2):
    """Make rows of one text each."""
    rows = queries + documents
    texts = PackedTexts(tokens(rows), np.full((rows, 1), 5, np.int32))
    places = np.split(np.arange(rows), [queries])
    ids = np.zeros((1, rows, halves), np.int32)
    return PairBatch(texts, np.arange(rows)[None], *places, ids)


def test_positions_and_lengths_are_each_texts_own():
    segment_ids = jnp.array([[1, 1, 1, 2, 2, 0, 0], [1, 2, 3, 3, 3, 3, 0], [0] * 7])
    positions, lengths = positions_and_lengths(segment_ids)
    np.testing.assert_array_equal(positions[0], [0, 1, 2, 0, 1, 0, 1])
    np.testing.assert_array_equal(lengths[0, :5], [3, 3, 3, 2, 2])
    np.testing.assert_array_equal(positions[1, :6], [0, 0, 0, 1, 2, 3])
    np.testing.assert_array_equal(lengths[1, :6], [1, 1, 4, 4, 4, 4])
    assert np.isfinite(positions[2]).all() and (np.asarray(lengths[2]) > 0).all()


@pytest.mark.parametrize("columns", [1, 2, 9])
def test_a_text_that_fills_its_row_has_the_rows_length(columns):
    positions, lengths = positions_and_lengths(jnp.ones((1, columns), jnp.int32))
    np.testing.assert_array_equal(positions[0], np.arange(columns))
    np.testing.assert_array_equal(lengths[0], columns)


def test_the_mask_is_where_a_segment_is():
    batch = Tokens(np.ones((1, 3), np.int32), np.array([[1, 2, 0]], np.int32))
    np.testing.assert_array_equal(batch.mask, [[True, True, False]])


def test_shapes_are_checked_while_tests_run():
    ones = np.ones((2, 5), np.int32)
    with pytest.raises(TypeCheckError):
        Tokens(ones, ones[:, :4])
    with pytest.raises(TypeCheckError):
        Tokens(ones.astype(np.float32), ones)
    with pytest.raises(TypeCheckError):
        positions_and_lengths(jnp.ones(3, jnp.int32))
    with pytest.raises(TypeCheckError):
        PackedTexts(tokens(2), np.ones(2, np.int32))
    with pytest.raises(TypeCheckError):  # a hash of one half
        pair_batch(halves=1)


def test_transformations_put_what_they_like_into_a_batch():
    batch = pair_batch()
    specs = jax.tree.map(lambda leaf: object(), batch)
    assert isinstance(specs.texts, PackedTexts)
    assert specs.texts.tokens.type_ids is None
    stacked = jax.tree.map(lambda leaf: jnp.stack([leaf] * 3), batch)
    total = jax.lax.scan(
        lambda sum, b: (sum + b.texts.tokens.ids.sum(), None), 0, stacked
    )
    assert total[0] == 3 * batch.texts.tokens.ids.sum()
    assert jax.vmap(lambda b: b.document_places.sum())(stacked).shape == (3,)
    shapes = jax.eval_shape(lambda b: b, batch)
    assert shapes.texts.tokens.ids == jax.ShapeDtypeStruct((6, 5), jnp.int32)
    assert jax.jit(lambda b: b)(batch).texts.tokens.ids.shape == (6, 5)


def test_a_batch_keeps_its_fields_through_flattening():
    slots = (np.full((2, 3), i, np.int32) for i in (1, 2))
    batch = MlmBatch(tokens(), *slots, np.ones((2, 3), bool))
    leaves, structure = jax.tree.flatten_with_path(batch)
    names = [
        jax.tree_util.keystr(path, simple=True, separator=".") for path, _ in leaves
    ]
    assert names == [
        "tokens.ids",
        "tokens.segment_ids",
        "positions",
        "targets",
        "weights",
    ]
    back = jax.tree.unflatten(structure, [leaf for _, leaf in leaves])
    assert isinstance(back, MlmBatch)
    np.testing.assert_array_equal(back.targets, batch.targets)
    with pytest.raises(dataclasses.FrozenInstanceError):
        back.targets = None
