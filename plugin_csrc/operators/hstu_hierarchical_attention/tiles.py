"""HSTU's SiLU attention for heads of 32, 64, 128 or 256 in 16-bit types, without a question asked in its loops.

A program makes a tile of rows of one head. Its loop over keys is cut in two: tiles in which every key counts for every row need no
bounds and no causal mask, and are loaded ahead; then come those with the diagonal or the end of the keys. Which inputs there are
is a constant (`BIAS`, `MASK`), so that the loop over full tiles has nothing in it but loads, two products and the activation.

`TANH`, for bfloat16 without a bias: sigmoid(x) = (1 + tanh(x / 2)) / 2 with tanh.approx.f32, one special instruction where exp2 and
a reciprocal are two. NVIDIA promises tanh to 2^-11 relative, so that a weight silu(x) is off by at most |x| / 2 * 2^-11. Rounding
the weight x of a large score to bfloat16 costs eight times as much; a very negative score, whose weight is nearly 0, is off by as
much as a positive one of that size. With exp2 a weight is off by a few units of float32's last place, whatever x is. float16, whose
own rounding is finer, needs that, as does a bias that takes keys out by being very negative; heads of 128 and 256 have the time.
"""

from __future__ import annotations

import triton
import triton.language as tl

from onnx_fuse.plugin_csrc.kernels.common import ABSENT, INTERPRETED, dot, narrow, pairs_to_float32

NEGATIVE_LOG2_E = tl.constexpr(-1.4426950408889634)
_MASKED_NARROW = """{
    .reg .b32 m, x;
    shl.b32 m, $4, 7;
    prmt.b32 m, m, 0, 0x9988;
    cvt.rn.TYPEx2.f32 x, $3, $2;
    and.b32 x, x, m;
    mov.b32 {$0, $1}, x;
}"""
MASKED_NARROW_BFLOAT16 = tl.constexpr(_MASKED_NARROW.replace("TYPE", "bf16"))
MASKED_NARROW_FLOAT16 = tl.constexpr(_MASKED_NARROW.replace("TYPE", "f16"))
TANH_ERROR = 2.0**-11
"""What the interpreter's tanh is off by, relative: the most that is promised of tanh.approx.f32. The tests try both signs."""


@triton.jit
def tanh(x):
    if INTERPRETED:
        return (2.0 * tl.sigmoid(2.0 * x) - 1.0) * (1.0 + TANH_ERROR)
    else:
        return tl.inline_asm_elementwise("tanh.approx.f32 $0, $1;", "=f,f", [x], dtype=tl.float32, is_pure=True, pack=1)


@triton.jit
def reciprocal(x):
    if INTERPRETED:
        return 1.0 / x
    else:
        return tl.inline_asm_elementwise(
            "rcp.approx.ftz.f32 $0, $1;", "=f,f", [x], dtype=tl.float32, is_pure=True, pack=1
        )


@triton.jit
def silu(s, alpha, TANH: tl.constexpr, SCALED: tl.constexpr):
    """silu(alpha s); with SCALED without its factor alpha."""
    if TANH:
        half = s * (alpha * 0.5)
        return half * tanh(half) + half
    else:
        factor = s if SCALED else s * alpha
        return factor * reciprocal(1.0 + tl.math.exp2(s * (alpha * NEGATIVE_LOG2_E)))


@triton.jit
def masked_narrow(w, pairs, dtype: tl.constexpr):
    """w in a 16-bit type, 0 where the mask's byte (0 or 1) is 0. The mask is read as int16 [ROWS, COLUMNS // 2]: two bytes are
    widened to 16 bits each, and one AND does for two weights."""
    a, b = tl.split(w.reshape(w.shape[0], w.shape[1] // 2, 2))
    if INTERPRETED:
        a = narrow(tl.where((pairs & 255) != 0, a, 0.0), dtype)
        b = narrow(tl.where((pairs & -256) != 0, b, 0.0), dtype)
    elif dtype == tl.bfloat16:
        a, b = tl.inline_asm_elementwise(
            MASKED_NARROW_BFLOAT16,
            "=h,=h,f,f,r",
            [a, b, pairs.to(tl.uint16, bitcast=True).to(tl.int32)],
            dtype=(tl.bfloat16, tl.bfloat16),
            is_pure=True,
            pack=1,
        )
    else:
        a, b = tl.inline_asm_elementwise(
            MASKED_NARROW_FLOAT16,
            "=h,=h,f,f,r",
            [a, b, pairs.to(tl.uint16, bitcast=True).to(tl.int32)],
            dtype=(tl.float16, tl.float16),
            is_pure=True,
            pack=1,
        )
    return tl.join(a, b).reshape(w.shape[0], w.shape[1])


@triton.jit
def step(
    o, queries, k, v, key_map, value_map, map_row, map_column, bias, mask, bias_start, mask_start, first, bound, limit, width,
    alpha, bias_factor,
    EDGE: tl.constexpr, BIAS: tl.constexpr, MASK: tl.constexpr, TANH: tl.constexpr, SCALED: tl.constexpr, COLUMNS: tl.constexpr,
    PAIRS: tl.constexpr,
):  # fmt: skip
    """o + silu(...) v of the keys from `first` on. Only with EDGE some do not count: for each row those from its `bound` on. With
    PAIRS a bfloat16 bias is read two numbers at a time. Where there are maps, keys and values come through them: from (`map_row` +
    first, `map_column`), which is where k and v point to."""
    dtype: tl.constexpr = v.dtype.element_ty
    in_columns = tl.arange(0, COLUMNS)
    column = first + in_columns
    offsets = (in_columns * width)[:, None] + tl.arange(0, queries.shape[1])[None, :]
    keys_at = k + tl.cast(width, tl.int64) * first + offsets
    values_at = v + tl.cast(width, tl.int64) * first + offsets
    if EDGE:
        keys = tl.load(keys_at, mask=(column < limit)[:, None], other=0.0)
    elif key_map is not None:
        keys = key_map.load([map_row + first, map_column])
    else:
        keys = tl.load(keys_at)
    scores = dot(queries, tl.trans(keys))
    if BIAS == ABSENT:
        w = silu(scores, alpha, TANH, SCALED)
    else:
        place = bias_start[:, None] + column[None, :]
        if EDGE:
            b = tl.load(bias + place, mask=(column < limit)[None, :], other=0.0).to(tl.float32)
        elif bias.dtype.element_ty == tl.bfloat16 and PAIRS:
            pair = (bias_start // 2)[:, None] + (first // 2 + tl.arange(0, COLUMNS // 2))[None, :]
            b = pairs_to_float32(tl.load(bias.to(tl.pointer_type(tl.int32), bitcast=True) + pair))
        else:
            b = tl.load(bias + place).to(tl.float32)
        w = silu(scores * alpha + b * bias_factor, 1.0, TANH, True)
    if EDGE:
        w = tl.where(column[None, :] < bound[:, None], w, 0.0)
        values = tl.load(values_at, mask=(column < limit)[:, None], other=0.0)
    elif value_map is not None:
        values = value_map.load([map_row + first, map_column])
    else:
        values = tl.load(values_at)
    if MASK == ABSENT:
        weights = narrow(w, dtype)
    elif EDGE:
        keep = tl.load(mask + mask_start[:, None] + column[None, :], mask=(column < limit)[None, :], other=0)
        weights = narrow(tl.where(keep != 0, w, 0.0), dtype)
    else:
        pair = (mask_start // 2)[:, None] + (first // 2 + tl.arange(0, COLUMNS // 2))[None, :]
        weights = masked_narrow(w, tl.load(mask.to(tl.pointer_type(tl.int16), bitcast=True) + pair), dtype)
    return dot(weights, values, o)
