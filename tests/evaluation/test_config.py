import numpy as np
import pytest

from nomic_jax.evaluation.config import (
    at_precision,
    binary_codes,
    int8_codes,
    int8_ranges,
)


@pytest.mark.torch
@pytest.mark.parametrize("seed", range(2))
def test_codes_are_those_of_sentence_transformers(seed):
    from sentence_transformers.util.quantization import quantize_embeddings

    random = np.random.default_rng(seed)
    corpus = random.normal(size=(120, 16)).astype(np.float32)
    corpus[:, 3] = 0.25  # a dimension without a range
    queries = 1.5 * random.normal(size=(20, 16)).astype(np.float32)  # some out of range
    ranges = int8_ranges([corpus[:50], corpus[50:]])
    for rows in (queries, corpus):
        expected = quantize_embeddings(rows, "int8", calibration_embeddings=corpus)
        np.testing.assert_array_equal(int8_codes(rows, ranges), expected)
        packed = np.packbits(binary_codes(rows), axis=-1)
        np.testing.assert_array_equal(packed, quantize_embeddings(rows, "ubinary"))


def test_only_the_corpus_gives_ranges():
    corpus = np.array([[0, 10], [255, 265]], np.float32)
    queries = np.array([[-50, 500], [128, 10]], np.float32)
    got, _ = at_precision([queries, corpus], [False, True], "int8")
    np.testing.assert_array_equal(got, [[-128, 127], [0, -128]])


def test_a_classifier_gets_codes_in_the_embeddings_own_size():
    random = np.random.default_rng(0)
    train, test = random.normal(size=(2, 300, 16)).astype(np.float32) * 0.03 + 0.5
    calibrating = [True, False]
    ours = at_precision([train, test], calibrating, "int8", decoded=True)
    step = (train.max(axis=0) - train.min(axis=0)) / 255
    # Half a step, and rounding of float32; what is out of range is further away.
    np.testing.assert_allclose((ours[0] - train) / step, 0, atol=0.51)
    inside = (test > train.min(axis=0)) & (test < train.max(axis=0))
    np.testing.assert_allclose(((ours[1] - test) / step)[inside], 0, atol=0.51)
    signs, _ = at_precision([train - 0.5, test], calibrating, "binary", decoded=True)
    np.testing.assert_array_equal(signs > 0, train > 0.5)
    # Twice the mean of squares in another order.
    size = np.sqrt(np.mean(np.square(train - np.float32(0.5))))
    np.testing.assert_allclose(np.abs(signs), size, rtol=1e-5)


def test_the_inner_product_of_binary_codes_is_hammings():
    random = np.random.default_rng(0)
    first, second = random.normal(size=(2, 5, 24)).astype(np.float32)
    a, b = at_precision([first, second], [True, True], "binary")
    distances = ((first[:, None] > 0) != (second > 0)).sum(axis=-1)
    np.testing.assert_array_equal(a @ b.T, 24 - 2 * distances)
