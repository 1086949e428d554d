"""What cuDNN is asked to compute, as far as it shows without a GPU."""

import json
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from attention_cases import exact_attention, values_and_gradients

from nomic_jax.model.attention import cudnn
from nomic_jax.model.attention.cudnn import text_places

# Rows of no text, one, two, and two with padding between them.
SEGMENTS = np.array(
    [
        [0, 0, 0, 0, 0, 0, 0, 0],
        [1, 1, 1, 1, 1, 0, 0, 0],
        [1, 1, 1, 2, 2, 2, 2, 0],
        [0, 3, 3, 0, 1, 1, 1, 1],
    ],
    np.int32,
)


def test_texts_are_found_in_their_rows():
    starts, lengths, kept = text_places(jnp.asarray(SEGMENTS), 3)
    np.testing.assert_array_equal(
        starts, [[-1, -1, -1, -1], [0, -1, -1, -1], [0, 3, -1, -1], [1, 4, -1, -1]]
    )
    np.testing.assert_array_equal(
        lengths, [[-1, -1, -1], [5, -1, -1], [3, 4, -1], [2, 4, -1]]
    )
    assert kept.all()


@pytest.mark.slow
def test_rows_of_more_texts_than_promised_are_told():
    # One text may not begin after padding either: rows of one have a length alone.
    assert text_places(jnp.asarray(SEGMENTS), 1)[2].tolist() == [1, 1, 0, 0]
    late = np.array([[0, 1, 1]], np.int32)
    assert text_places(jnp.asarray(late), 1)[2].tolist() == [0]
    assert text_places(jnp.asarray(late), 2)[2].tolist() == [1]


def as_documented(
    q, k, v, *, scale, mask_type, q_seqlen, kv_seqlen, q_offsets=None, kv_offsets=None
):
    """What the library says it computes; beyond lengths it leaves what it likes."""
    columns = jnp.arange(q.shape[1])[None, None]
    if q_offsets is None:
        begins, lengths = jnp.zeros((len(q), 1), int), q_seqlen[:, None]
    else:
        begins, lengths = q_offsets[:, :-1], q_seqlen
    assert kv_seqlen is q_seqlen and kv_offsets is q_offsets
    inside = (columns >= begins[..., None]) & (columns < (begins + lengths)[..., None])
    inside &= (begins >= 0)[..., None]  # B T S
    both = jnp.einsum("btq,bts->bqs", *[inside.astype(int)] * 2)
    seen = both[:, None] > 0
    scores = jnp.einsum("bqhk,bshk->bhqs", q, k) * scale
    weights = jax.nn.softmax(jnp.where(seen, scores, -1e30), axis=-1)
    out = jnp.einsum("bhqs,bshk->bqhk", weights, v)
    return jnp.where(inside.any(1)[..., None, None], out, jnp.inf)


@pytest.mark.parametrize(("rows", "texts"), [(2, 1), (4, 2), (4, 5)])
def test_what_it_is_told_comes_to_attention_by_definition(monkeypatch, rows, texts):
    monkeypatch.setattr(cudnn, "dot_product_attention", as_documented)
    random = np.random.default_rng(0)
    q, k, v = (
        jnp.asarray(random.normal(size=(rows, 8, 2, 4)), "float32") for _ in "qkv"
    )
    segments = jnp.asarray(SEGMENTS[:rows])
    held = (SEGMENTS[:rows] > 0)[..., None, None]
    direction = jnp.asarray(random.normal(size=q.shape))
    found = values_and_gradients(
        lambda *qkv: cudnn.attend(*qkv, segments, texts=texts),
        *(q, k, v, direction),
    )
    exact = values_and_gradients(
        lambda *qkv: exact_attention(*qkv, segments) * held, *(q, k, v, direction)
    )
    for got, expected in zip(found, exact, strict=True):
        # Sums of 8 terms of unit scale; zero, and no infinity, at padding.
        np.testing.assert_allclose(got, expected, atol=2e-6)


def test_a_row_of_more_texts_than_promised_is_not_a_number(monkeypatch):
    monkeypatch.setattr(cudnn, "dot_product_attention", as_documented)
    q = jnp.ones((4, 8, 2, 4))
    out = cudnn.attend(q, q, q, jnp.asarray(SEGMENTS), texts=1)
    broken = np.isnan(np.asarray(out)).any((1, 2, 3))
    assert broken.tolist() == [False, False, True, True]


@pytest.fixture
def hopper(monkeypatch):
    """Let what is lowered believe in cuDNN 9.10 on a Hopper GPU."""
    library = "jax._src.cudnn.fused_attention_stablehlo"
    monkeypatch.setattr(f"{library}.check_cudnn_version", lambda: 91000)
    monkeypatch.setattr(f"{library}.check_compute_capability", lambda _: True)


def lowered(texts, *, rows=4, length=640, heads=12, width=64, dtype=jnp.bfloat16):
    """Lower attention, forward and backward, for a GPU that is not here."""
    shape = jax.ShapeDtypeStruct((rows, length, heads, width), dtype)
    segments = jax.ShapeDtypeStruct((rows, length), jnp.int32)

    def step(q, k, v, segments):
        def total(q, k, v):
            out = cudnn.attend(q, k, v, segments, texts=texts)
            return out.astype(jnp.float32).sum()

        return jax.value_and_grad(total, argnums=(0, 1, 2))(q, k, v)

    traced = jax.jit(step).trace(shape, shape, shape, segments)
    text = traced.lower(lowering_platforms=("cuda",)).as_text()
    calls = re.findall(r"custom_call @(__cudnn\$\w+)\((.*)", text)
    found = {}
    for name, rest in calls:
        config = re.search(r'backend_config = "(\{.*?\})", ', rest)[1]
        operands = rest.partition(") ")[0].count("%")
        config = json.loads(config.replace("\\22", '"'))
        found[name] = operands, config["cudnn_fmha_backend_config"], rest
    return text, found


FORWARD, BACKWARD = "__cudnn$fmhaSoftmax", "__cudnn$fmhaSoftmaxBackward"


@pytest.mark.parametrize("texts", [1, 5])
def test_lengths_and_offsets_reach_the_kernels_both_ways(hopper, texts):
    text, calls = lowered(texts)
    assert set(calls) == {FORWARD, BACKWARD}
    for name, arrays in ((FORWARD, 3), (BACKWARD, 6)):
        operands, config, rest = calls[name]
        # Lengths of queries and keys; of several texts, where they begin too.
        assert operands == arrays + (2 if texts == 1 else 4)
        assert config["mask_type"] == "PADDING"
        assert config["max_seg_per_batch"] == texts
        assert config["sliding_window_length"] == 0
        assert config["fmha_scale"] == 64**-0.5
        assert "tensor<4x640x12x64xbf16>" in rest
    # No scores of all queries and keys anywhere.
    assert "640x640" not in text


def test_float32_is_refused_by_the_library_too(hopper):
    with pytest.raises(NotImplementedError, match="float32"):
        lowered(1, dtype=jnp.float32)
