"""FusedAttentionLayerNorm: softmax attention without the scores in memory (FlashAttention, arXiv 2205.14135), and its rim.

    s = scale q k^T + attention_bias;  s = where(mask and causal, s, mask_value);  P = softmax(s)
    z = (concat_heads(P v) out_weight + out_bias) + residual;  output = norm(z)

A program makes a tile of rows of one head, and the rim is a second launch: of linear where there is a projection, else of
norm_rows. Where there are tiles enough to fill the chip and a row is short enough, a program makes a tile of rows of all heads
instead, one after the other, and the whole rim is its epilogue.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any

import triton
import triton.language as tl

from onnx_fuse.plugin_csrc.kernels import linear, norm_rows
from onnx_fuse.plugin_csrc.kernels.common import (
    ABSENT,
    BYTES,
    INTERPRETED,
    NORMS,
    SAME,
    are_dense,
    dot,
    element_of,
    kind_of,
    load_optional,
    moved,
    moved_as,
    narrow,
    pairs_to_float32,
    start,
    store_as,
    strides_of,
    table,
    tile,
    variant,
)
from onnx_fuse.plugin_csrc.kernels.linear import epilogue
from onnx_fuse.plugin_csrc.kernels.manifest import ARCHITECTURES, TYPES, Variant
from onnx_fuse.plugin_csrc.kernels.pruning import pruned
from onnx_fuse.plugin_csrc.operators.hstu_hierarchical_attention.kernel import LARGE, held_size, tile_of

LOG2_E = tl.constexpr(1.4426950408889634)
LEAST = tl.constexpr(-3.4028234663852886e38)
NEGLIGIBLE = tl.constexpr(104.0)
"""exp of less than minus this is 0 in float32."""
LARGE_SCORE = tl.constexpr(2.0**28)
"""Neighbouring float32 numbers are 32 apart from here on."""
ANY = tl.constexpr(-1)
"""What a bias or mask is comes at run time, in `bias_kind` and `mask_kind`."""


@triton.jit
def rounded_product(a, b):
    """a b, rounded before anything is added to it."""
    if INTERPRETED:
        return a * b
    else:
        return tl.inline_asm_elementwise(
            "mul.rn.f32 $0, $1, $2;", "=f,f,f", [a, b], dtype=tl.float32, is_pure=True, pack=1
        )


@triton.jit
def select_pairs(x, pairs, other):
    """x where the mask's byte is not 0, else other. The mask is read as int16 [ROWS, COLUMNS // 2]."""
    a, b = tl.split(x.reshape(x.shape[0], x.shape[1] // 2, 2))
    if INTERPRETED:
        a = tl.where((pairs & 255) != 0, a, other)
        b = tl.where((pairs & -256) != 0, b, other)
    else:  # the compiler would make two instructions of each test
        a, b = tl.inline_asm_elementwise(
            """{
            .reg .pred p, q;
            .reg .b32 m;
            and.b32 m, $4, 255;
            setp.ne.u32 p, m, 0;
            and.b32 m, $4, 65280;
            setp.ne.u32 q, m, 0;
            selp.f32 $0, $2, $5, p;
            selp.f32 $1, $3, $5, q;
            }""",
            "=f,=f,f,f,r,f",
            [a, b, pairs.to(tl.uint16, bitcast=True).to(tl.int32), tl.zeros_like(a) + other],
            dtype=(tl.float32, tl.float32),
            is_pure=True,
            pack=1,
        )
    return tl.join(a, b).reshape(x.shape[0], x.shape[1])


@triton.jit
def load_pairs(pointer, start, first, keys, COLUMNS: tl.constexpr, EDGE: tl.constexpr):
    """Two neighbours of an even row at a time: [ROWS, COLUMNS // 2]. `start` and `keys` are multiples of 8 of them."""
    column = first // 2 + tl.arange(0, COLUMNS // 2)
    offsets = (start // 2)[:, None] + column[None, :]
    if EDGE:
        pairs = tl.load(pointer + offsets, mask=(column < keys // 2)[None, :], other=0)
    else:
        pairs = tl.load(pointer + offsets)
    return pairs


@triton.jit
def add_bias(
    x,
    scale,
    bias,
    kind,
    start,
    first,
    keys,
    known,
    column_step,
    BIAS: tl.constexpr,
    EDGE: tl.constexpr,
    DENSE: tl.constexpr,
):
    """scale x + bias, of a bias of which row r of this tile begins `start[r]` elements behind the pointer."""
    COLUMNS: tl.constexpr = x.shape[1]
    column = first + tl.arange(0, COLUMNS)
    if BIAS == ANY:
        added = load_optional(bias, kind, tile(start, 1, column, column_step, DENSE), known, 0.0)
    elif bias.dtype.element_ty == tl.bfloat16:
        added = pairs_to_float32(
            load_pairs(bias.to(tl.pointer_type(tl.int32), bitcast=True), start, first, keys, COLUMNS, EDGE)
        )
    elif EDGE:
        added = tl.load(bias + start[:, None] + column[None, :], mask=known, other=0.0).to(tl.float32)
    else:
        added = tl.load(bias + start[:, None] + column[None, :]).to(tl.float32)
    return x * scale + added


@triton.jit
def masked(
    x,
    other,
    mask,
    kind,
    start,
    first,
    keys,
    known,
    column_step,
    MASK: tl.constexpr,
    EDGE: tl.constexpr,
    DENSE: tl.constexpr,
):
    """x where the mask is true, else other."""
    COLUMNS: tl.constexpr = x.shape[1]
    column = first + tl.arange(0, COLUMNS)
    at = mask.to(tl.pointer_type(tl.int8), bitcast=True)
    if MASK == ANY:
        if kind != ABSENT:
            x = tl.where(tl.load(at + tile(start, 1, column, column_step, DENSE), mask=known, other=0) != 0, x, other)
    else:
        pairs = load_pairs(mask.to(tl.pointer_type(tl.int16), bitcast=True), start, first, keys, COLUMNS, EDGE)
        x = select_pairs(x, pairs, other)
    return x


@triton.jit
def rescaled(greatest, higher, slope, GUARDED: tl.constexpr):
    """(slopes of the rows, higher in their units, what weights against `greatest` are multiplied with to be against `higher`).

    GUARDED: rows may have no key yet, or nothing but scores of a large magnitude.
    """
    steep = tl.zeros_like(higher) + slope
    top = higher
    if GUARDED:
        top = tl.where(higher == float("-inf"), 0.0, higher)
        steep = tl.where(tl.abs(top) < LARGE_SCORE, slope, 1.0)
    base = rounded_product(top, steep)
    return steep, base, tl.math.exp2(rounded_product(greatest, steep) - base)


@triton.jit
def step(
    queries,
    o,
    greatest,
    total,
    key,
    value,
    attention_bias,
    mask,
    first,
    row,
    keys,
    size,
    value_size,
    key_step,
    value_step,
    bias_start,
    bias_column,
    bias_kind,
    mask_start,
    mask_column,
    mask_kind,
    scale,
    slope,
    other,
    causal,
    shift,
    EDGE: tl.constexpr,
    BIAS: tl.constexpr,
    MASK: tl.constexpr,
    WHOLE: tl.constexpr,
    DENSE: tl.constexpr,
    ONES: tl.constexpr,
    SKIP: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    """(o, greatest, total) with the keys from `first` on. Only with EDGE some may be beyond the last or the causal limit."""
    in_columns = tl.arange(0, COLUMNS)
    column = first + in_columns
    part = tl.arange(0, queries.shape[1])[None, :]
    there = (column < keys)[:, None]
    keys_at = moved(key, first, key_step) + (in_columns * key_step)[:, None] + part
    values_at = moved(value, first, value_step) + (in_columns * value_step)[:, None] + part
    if EDGE:
        k = tl.load(keys_at, mask=there & (part < size), other=0.0)
    elif WHOLE:
        k = tl.load(keys_at)
    else:
        k = tl.load(keys_at, mask=part < size, other=0.0)
    x = dot(queries, tl.trans(k))
    known = tl.broadcast_to((column < keys)[None, :], x.shape)
    if BIAS != ABSENT:
        x = add_bias(
            x, scale, attention_bias, bias_kind, bias_start, first, keys, known, bias_column, BIAS, EDGE, DENSE
        )
    if MASK != ABSENT:
        x = masked(x, other, mask, mask_kind, mask_start, first, keys, known, mask_column, MASK, EDGE, DENSE)
    if EDGE:
        if causal:
            x = tl.where(column[None, :] <= row[:, None] + shift, x, other)
        x = tl.where(known, x, float("-inf"))
    higher = tl.maximum(greatest, tl.max(x, 1))
    if key.dtype.element_ty == tl.float32:  # as exact as it gets
        base = tl.where(higher == float("-inf"), 0.0, higher)
        p = tl.exp(x - base[:, None])
        shrink = tl.exp(greatest - base)
    else:
        steep, base, shrink = rescaled(greatest, higher, slope, EDGE or BIAS != ABSENT or MASK != ABSENT)
        p = tl.math.exp2(x * steep[:, None] - base[:, None])
    if EDGE:
        v = tl.load(values_at, mask=there & (part < value_size), other=0.0)
    elif WHOLE:
        v = tl.load(values_at)
    else:
        v = tl.load(values_at, mask=part < value_size, other=0.0)
    if SKIP and not EDGE:
        if tl.max((higher > greatest).to(tl.int32), 0) > 0:  # all warps together
            o = o * shrink[:, None]
    else:
        o = o * shrink[:, None]
    weights = narrow(p, v.dtype)
    if ONES:
        total = dot(weights, tl.full([COLUMNS, 8], 1.0, v.dtype), total * shrink[:, None])
    else:
        total = total * shrink + tl.sum(p, 1)
    return dot(weights, v, o), higher, total


@triton.jit
def weigh_masked(greatest, there, slope, other):
    """Whether a masked key has weight in some row of the tile."""
    least = tl.min(tl.where(there, greatest, float("inf")), 0)
    return (other > float("-inf")) & (least * slope <= other * slope + NEGLIGIBLE * LOG2_E)


@triton.jit
def attend(
    query,
    key,
    value,
    attention_bias,
    mask,
    queries,
    keys,
    heads,
    groups,
    size,
    value_size,
    bias_batch,
    bias_head,
    bias_row,
    bias_column,
    mask_batch,
    mask_head,
    mask_row,
    mask_column,
    scale,
    mask_value,
    causal,
    shift,
    zero_masked,
    head_major,
    bias_kind,
    mask_kind,
    batch,
    head,
    tile_row,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    SIZE: tl.constexpr,
    BIAS: tl.constexpr,
    MASK: tl.constexpr,
    WHOLE: tl.constexpr,
    DENSE: tl.constexpr,
    ONES: tl.constexpr,
    SKIP: tl.constexpr,
    RIM: tl.constexpr,
    STAGES: tl.constexpr,
):
    """P v of a tile of rows of one head, [ROWS, SIZE], float32.

    Scores are kept as x and weights as 2^(slope x - slope m), m being the greatest x of the row so far: one FFMA and one MUFU.
    Without a bias x is q k^T, and the slope has the scale (> 0); else x is the score.

    The product slope x is exact inside of the FFMA, but slope m is rounded before it. That factor is the same in all weights of
    a row and cancels, unless it overflows: in rows of nothing but keys that -3.4e38 or the like takes out. There the slope is 1:
    equal scores weigh the same, and unequal ones are too far apart for their ratio to matter (`LARGE_SCORE`).

    WHOLE: heads are of SIZE, and rows of bias and mask begin at multiples of 8 elements. ONES: a product with ones makes the sums
    of weights, on tensor cores. SKIP: o is multiplied only where a maximum grew.
    """
    row = tile_row * ROWS + tl.arange(0, ROWS)
    part = tl.arange(0, SIZE)[None, :]
    if WHOLE:
        size = SIZE
        value_size = SIZE
        bias_row = bias_row // 8 * 8
        mask_row = mask_row // 8 * 8
        bias_batch = bias_batch // 8 * 8
        mask_batch = mask_batch // 8 * 8
        bias_head = bias_head // 8 * 8
        mask_head = mask_head // 8 * 8
    group = (head // (heads // groups)).to(tl.int64)
    row_step = size * tl.where(head_major != 0, 1, heads)
    key_step = size * tl.where(head_major != 0, 1, groups)
    value_step = value_size * tl.where(head_major != 0, 1, groups)
    query += batch * queries * heads * size
    query = moved(query, tl.cast(head, tl.int64) * tl.where(head_major != 0, queries, 1), size)
    query = moved(query, tile_row * ROWS, row_step)
    key += batch * keys * groups * size
    key = moved(key, group * tl.where(head_major != 0, keys, 1), size)
    value += batch * keys * groups * value_size
    value = moved(value, group * tl.where(head_major != 0, keys, 1), value_size)
    q = tl.load(
        query + (tl.arange(0, ROWS) * row_step)[:, None] + part,
        mask=(row < queries)[:, None] & (part < size),
        other=0.0,
    )
    first_row = tl.cast(tile_row * ROWS, tl.int64)
    near = tl.minimum(tl.arange(0, ROWS), queries - 1 - tile_row * ROWS)  # beyond the end that of the last row is read
    at = batch * bias_batch + head * bias_head + first_row * bias_row
    attention_bias = moved_as(attention_bias, bias_kind if BIAS == ANY else SAME, at)
    at = batch * mask_batch + head * mask_head + first_row * mask_row
    mask = moved_as(mask, BYTES, at)

    slope = LOG2_E
    other = tl.zeros([], tl.float32) + mask_value
    if BIAS == ABSENT:
        slope = scale * LOG2_E
        other = tl.where(other == float("-inf"), other, tl.maximum(other / scale, LEAST))
    end = tl.zeros([], tl.int32) + keys
    full = end
    if causal:
        full = tl.maximum(tl.minimum(keys, tile_row * ROWS + shift + 1), 0)
        end = tl.maximum(tl.minimum(keys, tl.minimum((tile_row + 1) * ROWS, queries) + shift), 0)
    # Products of float32 are written out, and once is enough: nothing is loaded ahead there.
    full = (0 if key.dtype.element_ty == tl.float32 else full) // COLUMNS * COLUMNS
    greatest = tl.full([ROWS], float("-inf"), tl.float32)
    o = tl.zeros([ROWS, SIZE], tl.float32)
    total = tl.zeros([ROWS, 8] if ONES else [ROWS], tl.float32)
    if key.dtype.element_ty != tl.float32:
        for first in tl.range(0, full, COLUMNS, num_stages=STAGES):
            o, greatest, total = step(
                q, o, greatest, total, key, value, attention_bias, mask, first, row, keys, size, value_size, key_step,
                value_step, near * bias_row, bias_column, bias_kind, near * mask_row, mask_column, mask_kind, scale, slope, other,
                causal, shift, False, BIAS, MASK, WHOLE, DENSE, ONES, SKIP, COLUMNS,
            )  # fmt: skip
    # Keys that were skipped have the mask value, which has weight in rows that have no other key.
    if WHOLE:
        for first in tl.range(full, end, RIM, num_stages=1):
            o, greatest, total = step(
                q, o, greatest, total, key, value, attention_bias, mask, first, row, keys, size, value_size, key_step, value_step,
                near * bias_row, bias_column, bias_kind, near * mask_row, mask_column, mask_kind, scale, slope, other, causal,
                shift, True, BIAS, MASK, WHOLE, DENSE, ONES, SKIP, RIM,
            )  # fmt: skip
        sums = tl.max(total, 1) if ONES else total
        begin = full + tl.cdiv(end - full, RIM) * RIM
        if (begin < keys) & weigh_masked(greatest, row < queries, slope, other):
            skipped = tl.zeros([SIZE], tl.float32)
            for first in tl.range(begin, keys, COLUMNS, num_stages=1):
                in_columns = tl.arange(0, COLUMNS)
                v = tl.load(
                    moved(value, first, value_step) + (in_columns * value_step)[:, None] + part,
                    mask=(first + in_columns < keys)[:, None] & (part < value_size),
                    other=0.0,
                )
                skipped += tl.sum(v.to(tl.float32), 0)
            higher = tl.maximum(greatest, other)
            steep, base, shrink = rescaled(greatest, higher, slope, True)
            p = tl.math.exp2(other * steep - base)
            o = o * shrink[:, None] + p[:, None] * skipped[None, :]
            sums = sums * shrink + p * (keys - begin)
    else:
        for _ in range(2):  # a second time for the keys that were skipped
            for first in tl.range(full, end, RIM, num_stages=1):
                o, greatest, total = step(
                    q, o, greatest, total, key, value, attention_bias, mask, first, row, keys, size, value_size, key_step,
                    value_step, near * bias_row, bias_column, bias_kind, near * mask_row, mask_column, mask_kind, scale, slope,
                    other, causal, shift, True, BIAS, MASK, WHOLE, DENSE, ONES, SKIP, RIM,
                )  # fmt: skip
            full += tl.cdiv(end - full, RIM) * RIM
            end = tl.where(weigh_masked(greatest, row < queries, slope, other), keys, end)
        sums = total
    empty = tl.where((zero_masked != 0) | (keys == 0), 0.0, float("nan"))
    return tl.where((sums > 0.0)[:, None], o / tl.where(sums > 0.0, sums, 1.0)[:, None], empty)


@triton.jit
def attention(
    query,
    key,
    value,
    attention_bias,
    mask,
    output,
    queries,
    keys,
    heads,
    groups,
    size,
    value_size,
    bias_batch,
    bias_head,
    bias_row,
    bias_column,
    mask_batch,
    mask_head,
    mask_row,
    mask_column,
    scale,
    mask_value,
    causal,
    shift,
    zero_masked,
    head_major,
    bias_kind,
    mask_kind,
    output_kind,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    SIZE: tl.constexpr,
    BIAS: tl.constexpr,
    MASK: tl.constexpr,
    WHOLE: tl.constexpr,
    DENSE: tl.constexpr,
    ONES: tl.constexpr,
    SKIP: tl.constexpr,
    RIM: tl.constexpr,
    STAGES: tl.constexpr,
):
    tiles = tl.cdiv(queries, ROWS)
    tile_row = tiles - 1 - tl.program_id(0) % tiles  # the longest first, where the mask is causal
    head = tl.program_id(0) // tiles % heads
    batch = (tl.program_id(0) // tiles // heads).to(tl.int64)
    o = attend(
        query,
        key,
        value,
        attention_bias,
        mask,
        queries,
        keys,
        heads,
        groups,
        size,
        value_size,
        bias_batch,
        bias_head,
        bias_row,
        bias_column,
        mask_batch,
        mask_head,
        mask_row,
        mask_column,
        scale,
        mask_value,
        causal,
        shift,
        zero_masked,
        head_major,
        bias_kind,
        mask_kind,
        batch,
        head,
        tile_row,
        ROWS,
        COLUMNS,
        SIZE,
        BIAS,
        MASK,
        WHOLE,
        DENSE,
        ONES,
        SKIP,
        RIM,
        STAGES,
    )
    if WHOLE:
        value_size = SIZE
    row = tile_row * ROWS + tl.arange(0, ROWS)
    part = tl.arange(0, SIZE)
    offsets = ((batch * queries + row) * heads * value_size + head * value_size)[:, None] + part[None, :]
    store_as(output, output_kind, offsets, o, (row < queries)[:, None] & (part < value_size)[None, :])


@triton.jit
def attention_projected(
    query,
    key,
    value,
    attention_bias,
    mask,
    out_weight,
    out_bias,
    residual,
    gamma,
    beta,
    output,
    total,
    queries,
    keys,
    heads,
    groups,
    size,
    value_size,
    bias_batch,
    bias_head,
    bias_row,
    bias_column,
    mask_batch,
    mask_head,
    mask_row,
    mask_column,
    scale,
    mask_value,
    causal,
    shift,
    zero_masked,
    head_major,
    bias_kind,
    mask_kind,
    width,
    epsilon,
    norm,
    out_bias_kind,
    residual_kind,
    gamma_kind,
    beta_kind,
    has_total,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    SIZE: tl.constexpr,
    WIDTH: tl.constexpr,
    STAGES: tl.constexpr,
):
    tiles = tl.cdiv(queries, ROWS)
    tile_row = tiles - 1 - tl.program_id(0) % tiles
    batch = (tl.program_id(0) // tiles).to(tl.int64)
    part = tl.arange(0, SIZE)
    columns = tl.arange(0, WIDTH)
    z = tl.zeros([ROWS, WIDTH], tl.float32)
    for head in range(heads):
        o = attend(
            query,
            key,
            value,
            attention_bias,
            mask,
            queries,
            keys,
            heads,
            groups,
            size,
            value_size,
            bias_batch,
            bias_head,
            bias_row,
            bias_column,
            mask_batch,
            mask_head,
            mask_row,
            mask_column,
            scale,
            mask_value,
            causal,
            shift,
            zero_masked,
            head_major,
            bias_kind,
            mask_kind,
            batch,
            head,
            tile_row,
            ROWS,
            COLUMNS,
            SIZE,
            ANY,
            ANY,
            False,
            True,
            False,
            False,
            COLUMNS,
            STAGES,
        )
        weight = tl.load(
            out_weight + (tl.cast(head, tl.int64) * value_size + part)[:, None] * width + columns[None, :],
            mask=(part < value_size)[:, None] & (columns < width)[None, :],
            other=0.0,
        )
        z = dot(narrow(o, out_weight.dtype.element_ty), weight, z)
    row = tile_row * ROWS + tl.arange(0, ROWS)
    epilogue(
        z,
        batch * queries + row,
        (batch + 1) * queries,
        columns,
        width,
        out_bias,
        residual,
        gamma,
        beta,
        output,
        total,
        epsilon,
        norm,
        out_bias_kind,
        residual_kind,
        gamma_kind,
        beta_kind,
        SAME,
        has_total,
    )


_STRIDES = ("i64", "bias_batch bias_head mask_batch mask_head")
_TYPES = table(("*T", "query key value attention_bias mask output"), _STRIDES, ("fp32", "scale mask_value"))
_PROJECTED_TYPES = table(
    ("*T", "query key value attention_bias mask out_weight out_bias residual gamma beta output total"),
    _STRIDES,
    ("fp32", "scale mask_value epsilon"),
)


def pick(element: str, size: int, value_size: int, dense: bool = True) -> Variant | None:
    """The variant for heads of these sizes that takes every bias and mask; None for heads larger than 256. Sizes that are no
    multiples of 16 have `.any`, as has a bias or mask that broadcasts its last axis, and what is `pruned`. In 16-bit types heads
    of 32 take that of 64: they mostly have one of `pick_whole`."""
    found = held_size(size, value_size, dense)
    if found is None:
        return None
    held, aligned = found
    if aligned and element != "fp32":
        held = max(held, 64)
    name = f"fused_attention_layer_norm.{element}.d{held}" + ("" if aligned else ".any")
    if pruned(name):
        return pick(element, size, value_size, dense=False)
    divisible = ("size", "value_size") if aligned else ()
    tiled, warps = tile_of(element, held, aligned)
    stages = 1 if element == "fp32" else 2
    constants = {
        **tiled,
        "BIAS": ANY.value,
        "MASK": ANY.value,
        "WHOLE": False,
        "DENSE": aligned,
        "ONES": False,
        "SKIP": False,
        "RIM": tiled["COLUMNS"],
        "STAGES": stages,
    }
    return variant(
        name,
        attention,
        element,
        _TYPES,
        constants,
        divisible,
        num_warps=warps,
        num_stages=stages,
        aligned=aligned,
    )


TILES = {
    # For architectures of LARGE or not: head -> rows, columns, stages of the loads.
    True: {32: (128, 128, 2), 64: (128, 128, 2), 128: (128, 128, 2), 256: (128, 64, 2)},
    False: {32: (128, 64, 2), 64: (128, 64, 2), 128: (128, 64, 2), 256: (64, 64, 1)},
}
EXTRAS = {
    # Kinds of bias and mask -> the end of the variant's name. What is not here is taken by the variants of `pick`.
    (0, 0): "",
    (1, 0): ".bias",
    (0, 3): ".mask",
}
NARROW_RIMS = {(128, ".bias"), (128, ".mask"), (256, ".mask")}
"""Heads with an extra whose last tiles are a quarter as wide as the others, and not half: more does not fit into the registers."""


def pick_whole(
    element: str,
    size: int,
    value_size: int,
    keys: int,
    kinds: tuple[int, int],
    scale: float,
    large: bool,
    dense: bool = True,
) -> Variant | None:
    """The variant that has these kinds of bias and mask as constants, `.large` for the architectures in `LARGE`.

    None where there is none: for float32, heads of sizes that `TILES` does not have, kinds that `EXTRAS` does not have, a scale
    that is not positive, a bias or mask that broadcasts its last axis or whose rows do not begin at multiples of 8 elements, and
    what is `pruned`.
    """
    extra = EXTRAS.get(kinds)
    if element == "fp32" or size != value_size or size not in TILES[large] or extra is None or scale <= 0:
        return None
    if extra and (keys % 8 or not dense):
        return None
    name = f"fused_attention_layer_norm.whole.{element}.d{size}{extra}" + ".large" * large
    if pruned(name):
        return None
    rows, columns, stages = TILES[large][size]
    constants = {
        "ROWS": rows,
        "COLUMNS": columns,
        "SIZE": size,
        "BIAS": kinds[0],
        "MASK": kinds[1],
        "WHOLE": True,
        "DENSE": True,
        "ONES": size < 256,
        "SKIP": size >= 128,
        "RIM": columns // (4 if (size, extra) in NARROW_RIMS else 2),
        "STAGES": stages,
    }
    return variant(
        name,
        attention,
        element,
        _TYPES,
        constants,
        num_warps=8,
        num_stages=stages,
        architectures=LARGE if large else frozenset(ARCHITECTURES) - LARGE,
    )


def pick_projected(element: str, size: int, value_size: int, width: int, dense: bool = True) -> Variant | None:
    """The variant that has the rim as its epilogue; None where there is none: for float32, for heads larger than 64, for a
    projection to more than 512, for sizes that are no multiples of 16, for a bias or mask that broadcasts its last axis, and for
    what is `pruned`."""
    held = next((held for held in (128, 512) if width <= held), None)
    if (
        element == "fp32"
        or not dense
        or held is None
        or max(size, value_size) > 64
        or size % 16
        or value_size % 16
        or width % 16
    ):
        return None
    name = f"fused_attention_layer_norm.projected.{element}.h{held}"
    if pruned(name):
        return None
    constants = {"ROWS": 64 if held == 128 else 32, "COLUMNS": 32, "SIZE": 64, "WIDTH": held, "STAGES": 2}
    divisible = ("size", "value_size", "width")
    return variant(
        name,
        attention_projected,
        element,
        _PROJECTED_TYPES,
        constants,
        divisible,
        num_warps=8 if held == 512 else 4,
        num_stages=2,
    )


def variants() -> Iterator[Variant]:
    for element in TYPES:
        projected = (pick_projected(element, 64, 64, width) for width in (128, 512))
        yield from (chosen for chosen in projected if chosen is not None)
        for size in (32, 64, 128, 256, 63, 255) if element == "fp32" else (64, 128, 256, 63, 255):
            chosen = pick(element, size, size)
            assert chosen is not None
            yield chosen
        for large, size, kinds in itertools.product((False, True), TILES[True], EXTRAS):
            whole = pick_whole(element, size, size, 8, kinds, 1.0, large)
            if whole is not None:
                yield whole


def launch(
    query: Any,
    key: Any,
    value: Any,
    *,
    num_heads: int,
    num_key_value_heads: int,
    scale: float,
    attention_bias: Any = None,
    mask: Any = None,
    out_weight: Any = None,
    out_bias: Any = None,
    residual: Any = None,
    gamma: Any = None,
    beta: Any = None,
    mask_value: float = float("-inf"),
    causal: str = "none",
    masked_row: str = "nan",
    norm: str = "none",
    epsilon: float = 0.0,
    layout: str = "BSH",
    residual_sum: bool = False,
    multiprocessors: int = 132,
    architecture: int = 80,
) -> tuple[Any, Any]:
    """(output, residual_sum or None) [B, Sq, Ho] of the type T of query, key and value.

    query [B, Sq, h d], key [B, Sk, hkv d], value [B, Sk, hkv dv], or with layout "BHSD" [B, h, Sq, d] and so on; attention_bias
    [1|B, 1|h, 1|Sq, 1|Sk], out_bias, gamma and beta [Ho] are T or float32; mask of that form is bool; out_weight [h dv, Ho]
    and residual [B, Sq, Ho] are T. Refused: heads larger than 256.

    With out_weight, where `pick_projected` has a variant and B ceil(Sq / ROWS) >= multiprocessors, one launch does it all;
    its arguments: query, key, value, attention_bias, mask, out_weight, out_bias, residual, gamma, beta (query in place of what
    is absent), output, total, then queries ... kind of mask as below, width = Ho, epsilon, norm (`NORMS`), kinds of out_bias,
    residual, gamma, beta, has_total. Grid: B ceil(Sq / ROWS).

    Otherwise one launch writes P v of all heads, [B, Sq, h dv]: to the output where nothing follows. With out_weight to a
    workspace of type T, from which linear makes the rest; with any other rim as float32 (to the output where T is float32, else
    to a workspace), from which norm_rows makes the rest, out_bias being its bias.

    Arguments: query, key, value, attention_bias, mask (query in place of what is absent), output, queries = Sq, keys = Sk,
    heads, groups = hkv, size = d, value_size = dv; strides in elements of attention_bias and of mask along their four axes, 0
    along a broadcast one (int64 for the first two axes); scale, mask_value; causal, shift (Sk - Sq for "lower_right", else 0),
    zero_masked (1 for masked_row "zero"), head_major (1 for BHSD), kinds of attention_bias, mask, output.
    Grid: B h ceil(Sq / ROWS).
    """
    import torch

    head_major = layout == "BHSD"
    batch, queries, keys = query.shape[0], query.shape[-2], key.shape[-2]
    size = query.shape[-1] if head_major else query.shape[-1] // num_heads
    value_size = value.shape[-1] if head_major else value.shape[-1] // num_key_value_heads
    dense = are_dense(keys, attention_bias, mask)
    kinds = (kind_of(attention_bias, query), kind_of(mask, query))
    large = architecture in LARGE
    whole = pick_whole(element_of(query), size, value_size, keys, kinds, scale, large, dense)
    chosen = whole or pick(element_of(query), size, value_size, dense)
    if chosen is None:
        raise ValueError(f"heads of {max(size, value_size)}: at most 256 are taken")
    sizes = (
        *(queries, keys, num_heads, num_key_value_heads, size, value_size),
        *(*strides_of(attention_bias, 4), *strides_of(mask, 4)),
        *(scale, mask_value),
        *(int(causal != "none"), keys - queries if causal == "lower_right" else 0, int(masked_row == "zero")),
        *(int(head_major), *kinds),
    )

    def pointers(*tensors: Any) -> list[Any]:
        return [query if tensor is None else tensor for tensor in tensors]

    width = 0 if out_weight is None else out_weight.shape[1]
    projected = pick_projected(element_of(query), size, value_size, width, dense) if width else None
    tiles = batch * triton.cdiv(queries, projected.constants["ROWS"]) if projected else 0
    if projected is not None and tiles >= multiprocessors:
        output = query.new_empty((batch, queries, width))
        total = output.new_empty(output.shape) if residual_sum else None
        start(
            projected,
            tiles,
            *(query, key, value, *pointers(attention_bias, mask), out_weight),
            *(*pointers(out_bias, residual, gamma, beta), output, *pointers(total)),
            *(*sizes, width, epsilon, NORMS[norm]),
            *(kind_of(tensor, query) for tensor in (out_bias, residual, gamma, beta)),
            int(total is not None),
        )
        return output, total
    rim = norm != "none" or residual_sum or any(item is not None for item in (out_weight, out_bias, residual))
    wide = rim and out_weight is None
    context = query.new_empty((batch, queries, num_heads * value_size), dtype=torch.float32 if wide else query.dtype)
    start(
        chosen,
        batch * num_heads * triton.cdiv(queries, chosen.constants["ROWS"]) if value_size else 0,
        *(query, key, value, *pointers(attention_bias, mask), context, *sizes, kind_of(context, query)),
    )
    if not rim:
        return context, None
    if out_weight is not None:
        return linear.launch(
            context,
            out_weight,
            norm=norm,
            epsilon=epsilon,
            bias=out_bias,
            residual=residual,
            gamma=gamma,
            beta=beta,
            residual_sum=residual_sum,
        )
    output = query.new_empty(context.shape)
    total = output.new_empty(output.shape) if residual_sum else None
    norm_rows.launch(
        context,
        output,
        norm=norm,
        epsilon=epsilon,
        bias=out_bias,
        skip=residual,
        gamma=gamma,
        beta=beta,
        total=total,
    )
    return output, total
