import logging

import numpy as np
import pytest
from flax import nnx

from nomic_jax.data.mlm import Masking, corrupt
from nomic_jax.data.packing import pack_texts
from nomic_jax.data.tokenizer import pad
from nomic_jax.model.encoder import NomicBert
from nomic_jax.training.placement import ComputeConfig


def test_a_stage_says_what_computes_its_attention(tiny_config, caplog):
    encoder = NomicBert(tiny_config, rngs=nnx.Rngs(0))
    rows = {"stage": "mlm", "row_length": 16, "texts": 1, "mesh": None}
    with caplog.at_level(logging.INFO, "nomic_jax.training.placement"):
        ComputeConfig().of(encoder, **rows)
        ComputeConfig(attention="blockwise").of(encoder, **rows)
    assert caplog.messages == ["mlm: attention: blockwise"] * 2
    assert encoder.backend == "blockwise"
    with pytest.raises(ValueError, match="attention='cudnn' runs on GPUs"):
        ComputeConfig(attention="cudnn").of(encoder, **rows)


def test_a_batch_says_how_many_texts_its_rows_hold():
    texts = [np.arange(3, dtype=np.int32), np.arange(9, dtype=np.int32)]
    assert pad(texts, length=16, pad_id=0).texts == 1
    plan = pack_texts(np.array([3, 9]), row_length=16)
    packed = plan.lay_out(texts[::-1], range(plan.rows), pad_id=0).tokens
    assert packed.texts == 2 >= packed.segment_ids.max()
    masking = Masking(rate=0.3, mask_id=1, vocab_size=9, special_ids=(), seed=0)
    where = {"step": 0, "row_numbers": range(2)}
    rows = np.full((2, 16), 5, np.int32)
    assert corrupt(rows, masking, **where).tokens.texts == 1
    segments = np.ones_like(rows)
    separate = corrupt(rows, masking, segment_ids=segments, **where)
    assert separate.tokens.texts is None
