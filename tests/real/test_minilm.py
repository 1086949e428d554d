"""The published all-MiniLM-L6-v2 reads, and orders STS-B as sentence-transformers."""

import numpy as np
import pytest

from nomic_jax.checkpoints.reader import read_checkpoint
from nomic_jax.evaluation.kinds.sts import read_sts, spearman
from nomic_jax.inference.embedder import Embedder

pytestmark = [pytest.mark.real, pytest.mark.torch, pytest.mark.slow]

NAME = "all-MiniLM-L6-v2"


def test_spearman_on_sts_b_dev_is_sentence_transformers(
    real_weights, real_data, capsys
):
    import transformers
    from sentence_transformers import SentenceTransformer

    transformers.logging.disable_progress_bar()
    folder = real_weights / NAME
    assert read_checkpoint(folder).config.head == "pooler"
    embedder = Embedder.from_pretrained(folder, dtype="float32")
    assert not any(embedder.config.prompts.values())
    pairs = read_sts(real_data / "sts" / "stsb-dev.jsonl")
    texts = sorted({*pairs.sentence1, *pairs.sentence2})
    place = {text: i for i, text in enumerate(texts)}
    ours = embedder.encode(texts, task="classification")
    theirs = SentenceTransformer(str(folder), device="cpu").encode(texts)
    # Two orders of float32 summation over 6 layers, padding included.
    np.testing.assert_allclose(ours, theirs, atol=1e-5)
    got, expected = (
        spearman(
            vectors[[place[text] for text in pairs.sentence1]],
            vectors[[place[text] for text in pairs.sentence2]],
            pairs.scores,
        )
        for vectors in (ours, theirs)
    )
    with capsys.disabled():
        print(f"\n{NAME}, STS-B dev, Spearman: {got:.6f} here, {expected:.6f} there")
    assert abs(got - expected) <= 0.0005
    assert got > 0.8


def test_it_goes_there_and_back_bitwise(tmp_path, real_weights):
    import tiny_checkpoints as tiny

    from nomic_jax.checkpoints.writer import write_checkpoint

    source = real_weights / NAME
    place = source
    for layout in ("jax", "nomic", "transformers"):
        write_checkpoint(read_checkpoint(place), tmp_path / layout, layout=layout)
        place = tmp_path / layout
    expected = tiny.load(source)
    expected.pop("embeddings.position_ids", None)  # computed, not learned
    tiny.assert_bitwise(tiny.load(tmp_path / "transformers"), expected)
    assert read_checkpoint(place).config == read_checkpoint(source).config
