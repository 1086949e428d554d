"""Attention by cuDNN on NVIDIA GPUs, of one text a row or of several side by side.

Rows of one text have lengths; in its packed layout each text has an offset and a
length, and counts as a row of its own. It knows neither segment ids nor a window to
both sides: the first is given as lengths here, the second is refused.
"""

import functools

import jax
import jax.numpy as jnp
from jax._src.cudnn.fused_attention_stablehlo import (
    MaskType,
    dot_product_attention,
)
from jaxtyping import Array, Bool, Float, Int, Int32

from nomic_jax.batch import PADDING
from nomic_jax.model.attention import tokamax
from nomic_jax.model.attention.backends import HOPPER, AttentionSpec, needs_gpu

# From here on the sums that cuDNN keeps of each softmax, a float32 for each query and
# text, take as much memory as the queries do in bfloat16, of 64 columns a head.
MOST_TEXTS = 32


def unsupported(spec: AttentionSpec) -> str | None:
    """Return why it cannot compute a case; None: it can."""
    if reason := needs_gpu(spec):
        return reason
    is_hopper = spec.capability is not None and spec.capability >= HOPPER
    widest = 256 if is_hopper else 128
    if spec.head_width % 8 or spec.head_width > widest:
        return (
            f"takes heads whose width is a multiple of 8 up to {widest}, not "
            f"{spec.head_width}"
        )
    if spec.window is not None:
        return f"has no window to both sides, and layers look {spec.window} columns far"
    if spec.texts is None:
        return "must know how many texts a row holds at most, which nobody said"
    if spec.texts > 1 and not is_hopper:
        return (
            f"packs texts from compute capability 9.0 on, this GPU has {spec.shown}, "
            f"and rows hold up to {spec.texts} texts"
        )
    return None


def auto_skips(spec: AttentionSpec) -> bool:
    """Say whether rows hold so many texts that `auto` takes another backend."""
    if spec.texts == 1:
        return False
    # The ranges of tokamax cost nothing for each text.
    many = spec.texts is None or spec.texts > MOST_TEXTS
    return many or tokamax.unsupported(spec) is None


def attend(
    q: Float[Array, "B S H K"],
    k: Float[Array, "B S H K"],
    v: Float[Array, "B S H K"],
    segment_ids: Int[Array, "B S"],
    window: int | None = None,
    *,
    texts: int | None = None,
) -> Float[Array, "B S H K"]:
    """Attend as `layer.attend` says, without a window.

    Padding comes out as zeros. A row that holds more texts than were promised, or in
    which padding is before a text, comes out as NaN: no token sees another text's.

    Args:
        q: queries, in bfloat16 or float16.
        k: keys.
        v: values.
        segment_ids: of the tokens.
        window: None.
        texts: the most that a row holds.
    """
    assert window is None and texts is not None, "unsupported: `choose` refuses it"
    held = (segment_ids != PADDING)[..., None, None]
    # What cuDNN leaves at padding, and in its gradient, is not said: none of it stays.
    q, k, v = (jnp.where(held, x, 0) for x in (q, k, v))
    starts, lengths, kept = text_places(segment_ids, texts)
    call = functools.partial(
        dot_product_attention,
        scale=q.shape[-1] ** -0.5,
        mask_type=MaskType.PADDING,
    )
    if texts == 1:
        # A row without a text has one of padding: a softmax needs a key.
        length = jnp.maximum(lengths[:, 0], 1)
        out = call(q, k, v, q_seqlen=length, kv_seqlen=length)
    else:
        out = call(
            q,
            k,
            v,
            q_seqlen=lengths,
            kv_seqlen=lengths,
            q_offsets=starts,
            kv_offsets=starts,
        )
    assert isinstance(out, jax.Array)
    out = jnp.where(held, out, 0)
    return jnp.where(kept[:, None, None, None], out, jnp.nan)


def text_places(
    segment_ids: Int[Array, "B S"], texts: int
) -> tuple[Int32[Array, "B ends"], Int32[Array, "B T"], Bool[Array, "B"]]:
    """Find where the texts of each row begin, and how long they are.

    Args:
        segment_ids: of the tokens.
        texts: room for them, T.

    Returns:
        First columns, one more than there is room for, and lengths, -1 where there is
        no text; and which rows hold no more than there is room for, the first one at
        their beginning where it is alone.
    """
    rows = jnp.arange(len(segment_ids))[:, None]
    held = segment_ids != PADDING
    begins = held & (jnp.diff(segment_ids, axis=1, prepend=PADDING) != 0)
    number = jnp.cumsum(begins, axis=1, dtype=jnp.int32)  # from 1
    columns = jnp.broadcast_to(
        jnp.arange(segment_ids.shape[1], dtype=jnp.int32), segment_ids.shape
    )

    def at(place, room):
        return jnp.full((len(segment_ids), room), -1, jnp.int32).at[rows, place]

    # Beyond the room is nowhere, so that what is to be left out is sent there.
    starts = at(jnp.where(begins, number - 1, texts + 1), texts + 1).max(
        columns, mode="drop"
    )
    lengths = at(jnp.where(begins, number - 1, texts), texts).set(0, mode="drop")
    lengths = lengths.at[rows, jnp.where(held, number - 1, texts)].add(1, mode="drop")
    kept = number[:, -1] <= texts
    if texts == 1:
        kept &= starts[:, 0] <= 0
    return starts, lengths, kept
