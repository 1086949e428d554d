"""Attention by Pallas' splash kernel for TPUs: tiles, of which a window skips most.

Its backward pass is one kernel that computes the scores again (Dao 2023, arXiv:
2307.08691, section 3.1): five products where two kernels would take seven.
"""

import dataclasses
import functools
import re

import jax
import jax.numpy as jnp
from jax.experimental.pallas.ops.tpu.splash_attention import (
    splash_attention_kernel as splash,
)
from jax.experimental.pallas.ops.tpu.splash_attention import (
    splash_attention_mask as masks,
)
from jaxtyping import Array, Float, Int

from nomic_jax.model.attention.backends import AttentionSpec
from nomic_jax.model.attention.blockwise import OUTSIDE
from nomic_jax.model.attention.mesh import on_each_device

WIDEST_HEAD = 256  # whose tiles fit next to one another in VMEM
# Columns from which a TPU's rows are worth a kernel that works in tiles: below, the
# scores of a row and head fit in less than a megabyte, and XLA has them at once.
FEWEST_COLUMNS = 512
# Sides of a tile, the largest first. One of 512 has its scores in a megabyte of VMEM.
TILES = (512, 384, 256, 128)
LANES = 128  # of a TPU's vectors
PASS = re.compile(r"splash_(forward|backward)_(all|\d+)")  # its name in programs


@dataclasses.dataclass(frozen=True)
class _Form:
    """What is fixed when a kernel is made, but for the shapes."""

    window: int | None
    tile: int
    interpret: bool


def unsupported(spec: AttentionSpec) -> str | None:
    """Return why it cannot compute a case; None: it can."""
    if spec.platform != "tpu":
        return f"runs on TPUs, and these devices are of the kind {spec.platform}"
    if spec.head_width > WIDEST_HEAD:
        return f"takes heads up to {WIDEST_HEAD} wide, not {spec.head_width}"
    return None


def auto_skips(spec: AttentionSpec) -> bool:
    """Say whether rows are so short that `auto` takes another backend."""
    return spec.length < FEWEST_COLUMNS


def attend(
    q: Float[Array, "B S H K"],
    k: Float[Array, "B S H K"],
    v: Float[Array, "B S H K"],
    segment_ids: Int[Array, "B S"],
    window: int | None = None,
    *,
    texts: int | None = None,
    interpret: bool = False,
) -> Float[Array, "B S H K"]:
    """Attend as `layer.attend` says.

    Args:
        q: queries.
        k: keys.
        v: values.
        segment_ids: of the tokens.
        window: columns to either side that a token attends to; None: all.
        texts: however many a row holds.
        interpret: run the kernel step by step, as a processor can.
    """
    length = q.shape[1]
    columns, tile = tiled(length)
    # The kernel has no scale of its own. Rounding to bfloat16 is exact where the width
    # is a power of 4, as 64 is.
    q = (q.astype(jnp.float32) * q.shape[3] ** -0.5).astype(q.dtype)
    after = (0, columns - length)
    segments = jnp.pad(segment_ids, ((0, 0), after), constant_values=OUTSIDE)
    q, k, v = (
        jnp.pad(jnp.swapaxes(x, 1, 2), ((0, 0), (0, 0), after, (0, 0)))
        for x in (q, k, v)
    )  # B H S K
    out: jax.Array = _attend(_Form(window, tile, interpret), q, k, v, segments)
    return jnp.swapaxes(out[:, :, :length], 1, 2)


def tiled(length: int) -> tuple[int, int]:
    """Return the columns that rows of a length are padded to, and a tile's side.

    Of the tiles with the fewest columns it is the largest.
    """
    choices = ((-(-length // tile) * tile, tile) for tile in TILES)
    return min(choices, key=lambda choice: (choice[0], -choice[1]))


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _attend(form: _Form, q, k, v, segments) -> jax.Array:
    return _forward(form, q, k, v, segments)[0]


def _forward(form, q, k, v, segments):
    # The kernel has a derivative of its own. It is taken here, outside of the devices'
    # programs, since it forgets along which axes of the mesh arrays differ.
    forward = on_each_device(
        _named("splash_forward", _run_forward, form),
        heads=(True, True, True, False),
        like=q,
    )
    out, log_sums = forward(q, k, v, segments)
    return out, (q, k, v, segments, out, log_sums)


def _backward(form, kept, cotangent):
    backward = on_each_device(
        _named("splash_backward", _run_backward, form),
        heads=(True, True, True, False, True, True, True),
        like=kept[0],
    )
    return *backward(*kept, cotangent), None


_attend.defvjp(_forward, _backward)


def _named(name, function, form):
    """Give a pass the name that tells in programs what it computes."""

    def run(*arrays):
        return function(form, *arrays)

    run.__name__ = f"{name}_{'all' if form.window is None else form.window}"
    return jax.jit(run)


def _run_forward(form, q, k, v, segments):
    kernel = _kernel(form, q.shape[1], q.shape[2])

    def row(q, k, v, segments):
        found = kernel(q, k, v, segment_ids=splash.SegmentIds(segments, segments))
        out, (log_sums,) = found
        return out, log_sums

    return jax.vmap(row)(q, k, v, segments)


def _run_backward(form, q, k, v, segments, out, log_sums, cotangent):
    kernel = _kernel(form, q.shape[1], q.shape[2])
    fixed = kernel.kwargs

    def row(q, k, v, segments, out, log_sums, cotangent):
        ids = splash.SegmentIds(segments, segments)
        infos = (kernel.dq_mask_info, kernel.dkv_mask_info)
        kept = (q, k, v, ids, None, out, log_sums, *infos)
        gradients = splash._splash_attention_bwd(
            False,  # no residuals of the backward pass
            fixed["mask_value"],
            fixed["is_mqa"],
            fixed["block_sizes"],
            fixed["residual_checkpoint_name"],
            fixed["mask_function"],
            fixed["attn_logits_soft_cap"],
            fixed["interpret"],
            kept,
            cotangent,
        )
        return gradients[3:6]

    return jax.vmap(row)(q, k, v, segments, out, log_sums, cotangent)


def _kernel(form: _Form, heads: int, columns: int) -> splash.SplashAttentionKernel:
    """Make the kernel of rows, which keeps what the backward pass needs."""
    shape = (columns, columns)
    if form.window is None:
        mask: masks.Mask = masks.FullMask(shape)
    else:
        mask = masks.LocalMask(shape, (form.window, form.window), 0)
    tile = form.tile
    return splash.make_splash_mha(
        masks.MultiHeadMask([mask] * heads),
        block_sizes=splash.BlockSizes(
            block_q=tile,
            block_kv=tile,
            block_q_dkv=tile,
            block_kv_dkv=tile,
            use_fused_bwd_kernel=True,
        ),
        head_shards=1,
        q_seq_shards=1,
        save_residuals=True,
        interpret=form.interpret,
    )
