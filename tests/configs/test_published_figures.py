"""Figures of model cards, where NOMIC_JAX_REAL_WEIGHTS holds the model they are of."""

import numpy as np
import pytest

from nomic_jax.inference.embedder import Embedder


@pytest.fixture
def published(request, real_weights):
    folder = real_weights / request.param
    if not folder.is_dir():
        pytest.skip(f"{request.param} is not in NOMIC_JAX_REAL_WEIGHTS")
    return Embedder.from_pretrained(folder, dtype="float32")


@pytest.mark.parametrize("published", ["nomic-embed-text-v2-moe"], indirect=True)
def test_greetings_in_two_languages_have_the_cosine_of_the_card(published):
    english, spanish = published.encode_document(["Hello!", "¡Hola!"])
    # The card gives four digits.
    np.testing.assert_allclose(english @ spanish, 0.9118, atol=5e-5)
