"""The published v1.5 orders STS-B's sentence pairs as it does on PyTorch."""

import numpy as np
import pytest

from nomic_jax.evaluation.kinds.sts import read_sts, spearman
from nomic_jax.inference.embedder import Embedder

ROWS = 64  # texts of a PyTorch batch, sorted by length


def embed_with_torch(folder, texts, tokenizer):
    """transformers' NomicBert, mean pooling, v1.5's layer norm, unit length."""
    import torch
    import transformers
    from torch.nn.functional import layer_norm, normalize

    transformers.utils.logging.disable_progress_bar()
    model = transformers.AutoModel.from_pretrained(folder, dtype=torch.float32).eval()
    rows = tokenizer.encode(texts, max_length=512).ids
    order = sorted(range(len(rows)), key=lambda i: len(rows[i]))
    out = np.empty((len(rows), model.config.hidden_size), np.float32)
    for start in range(0, len(order), ROWS):
        members = order[start : start + ROWS]
        length = max(len(rows[i]) for i in members)
        ids = torch.zeros((len(members), length), dtype=torch.long)
        mask = torch.zeros_like(ids)
        for row, i in enumerate(members):
            ids[row, : len(rows[i])] = torch.from_numpy(rows[i])
            mask[row, : len(rows[i])] = 1
        with torch.no_grad():
            hidden = model(input_ids=ids, attention_mask=mask).last_hidden_state
            pooled = (hidden * mask[..., None]).sum(1) / mask.sum(1, keepdim=True)
            vectors = normalize(layer_norm(pooled, pooled.shape[1:]))
        out[members] = vectors.numpy()
    return out


@pytest.mark.real
@pytest.mark.torch
@pytest.mark.slow
def test_spearman_on_sts_b_dev_is_pytorchs(real_weights, real_data, capsys):
    folder = real_weights / "nomic-embed-text-v1.5"
    pairs = read_sts(real_data / "sts" / "stsb-dev.jsonl")
    texts = sorted({*pairs.sentence1, *pairs.sentence2})
    place = {text: i for i, text in enumerate(texts)}
    embedder = Embedder.from_pretrained(folder, dtype="float32")
    task = "classification"  # on both sides, as MTEB's results for Nomic
    ours = embedder.encode(texts, task=task)
    prefix = embedder.config.prompts[task]
    theirs = embed_with_torch(
        folder, [prefix + text for text in texts], embedder.tokenizer
    )
    # Two orders of float32 summation over 12 layers, padding included.
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
        print(f"\nSTS-B dev, Spearman: {got:.6f} here, {expected:.6f} on PyTorch")
    assert abs(got - expected) <= 0.0005
    # Any encoder of worth exceeds it; random weights reach about 0.5.
    assert got > 0.8
