"""Base models at their published sizes, random weights, next to transformers."""

import dataclasses

import jax
import numpy as np
import pytest

from nomic_jax.checkpoints.model_folder import load_model
from nomic_jax.config import PUBLISHED
from nomic_jax.data.tokenizer import pad

LENGTHS = (48, 21)
KINDS = {
    "bert-base-uncased": ("BertForPreTraining", {}),
    "xlm-roberta-base": (
        "XLMRobertaForMaskedLM",
        {
            "vocab_size": 250002,
            "type_vocab_size": 1,
            "max_position_embeddings": 514,
            "layer_norm_eps": 1e-5,
        },
    ),
    "ModernBERT-base": ("ModernBertForMaskedLM", {}),
}


@pytest.mark.torch
@pytest.mark.slow
@pytest.mark.parametrize(
    "name",
    [
        "bert-base-uncased",
        # Reduced, all families are compared with the same classes.
        *(pytest.param(name, marks=pytest.mark.sweep) for name in [*KINDS][1:]),
    ],
)
def test_states_and_logits_of_a_base_model_equal_transformers(tmp_path, name):
    import torch
    import transformers

    kind, sizes = KINDS[name]
    model_of = getattr(transformers, kind)
    torch.manual_seed(0)
    reference = model_of(model_of.config_class(**sizes)).eval()
    with torch.no_grad():  # fresh norms and biases would hide what is swapped
        for parameter in reference.parameters():
            if parameter.ndim == 1:
                parameter += 0.1 * torch.randn_like(parameter)
    reference.save_pretrained(tmp_path / "model")

    model = load_model(tmp_path / "model")
    config = PUBLISHED[name]
    assert dataclasses.replace(model.encoder.config, dropout=config.dropout) == config
    random = np.random.default_rng(0)
    texts = [random.integers(5, config.vocab_size, n).astype(np.int32) for n in LENGTHS]
    tokens = pad(texts, length=max(LENGTHS), pad_id=config.pad_token_id)
    inputs = {
        "input_ids": torch.from_numpy(np.asarray(tokens.ids)).long(),
        "attention_mask": torch.from_numpy(np.asarray(tokens.mask)).long(),
    }
    with torch.no_grad():
        seen = reference(**inputs, output_hidden_states=True)
    logits = seen["prediction_logits" if "PreTraining" in kind else "logits"].numpy()
    hidden, ours = jax.jit(lambda m: ((h := m.encoder(tokens)), m.logits(h)))(model)
    held = np.asarray(tokens.mask)
    # Float32 through all layers, in another order of summation; 5e-6 was the largest.
    theirs = seen.hidden_states[-1].numpy()
    np.testing.assert_allclose(np.asarray(hidden)[held], theirs[held], atol=5e-5)
    np.testing.assert_allclose(np.asarray(ours)[held], logits[held], atol=1e-4)
