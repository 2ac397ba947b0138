"""FusedAttentionLayerNorm: softmax attention without the scores in memory (FlashAttention, arXiv 2205.14135), and its rim.

    s = scale q k^T + attention_bias;  s = where(mask and causal, s, mask_value);  P = softmax(s)
    z = (concat_heads(P v) out_weight + out_bias) + residual;  output = norm(z)

A program makes a tile of rows of one head, and the rim is a second launch: of linear where there is a projection, else of
norm_rows. Where there are tiles enough to fill the chip and a row is short enough, a program makes a tile of rows of all heads
instead, one after the other, and the whole rim is its epilogue.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import triton
import triton.language as tl

from onnx_fuse.plugin_csrc.kernels import linear, norm_rows
from onnx_fuse.plugin_csrc.kernels.common import (
    ABSENT,
    NORMS,
    SAME,
    are_dense,
    dot,
    element_of,
    kind_of,
    load_mask,
    load_optional,
    moved,
    moved_as,
    narrow,
    start,
    store_as,
    strides_of,
    table,
    tile,
    variant,
)
from onnx_fuse.plugin_csrc.kernels.linear import epilogue
from onnx_fuse.plugin_csrc.kernels.manifest import TYPES, Variant
from onnx_fuse.plugin_csrc.operators.hstu_hierarchical_attention.kernel import held_size, tile_of

NEGLIGIBLE = tl.constexpr(104.0)
"""exp of less than minus this is 0 in float32."""


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
    DENSE: tl.constexpr,
):
    """P v of a tile of rows of one head, [ROWS, SIZE], float32."""
    in_rows = tl.arange(0, ROWS)
    in_columns = tl.arange(0, COLUMNS)
    part = tl.arange(0, SIZE)
    row = tile_row * ROWS + in_rows
    group = head // (heads // groups)
    row_step = size * tl.where(head_major != 0, 1, heads)
    key_step = size * tl.where(head_major != 0, 1, groups)
    value_step = value_size * tl.where(head_major != 0, 1, groups)
    query += batch * queries * heads * size
    at_head = tl.cast(head, tl.int64) * tl.where(head_major != 0, queries, 1)
    query = moved(moved(query, at_head, size), tile_row * ROWS, row_step)
    key += batch * keys * groups * size
    key = moved(key, tl.cast(group, tl.int64) * tl.where(head_major != 0, keys, 1), size)
    value += batch * keys * groups * value_size
    value = moved(value, tl.cast(group, tl.int64) * tl.where(head_major != 0, keys, 1), value_size)
    first_row = tl.cast(tile_row * ROWS, tl.int64)
    bias_start = batch * bias_batch + head * bias_head + first_row * bias_row
    attention_bias = moved_as(attention_bias, bias_kind, bias_start)
    mask = moved_as(mask, mask_kind, batch * mask_batch + head * mask_head + first_row * mask_row)
    inside = (row < queries)[:, None] & (part < size)[None, :]
    q = tl.load(query + (in_rows * row_step)[:, None] + part[None, :], mask=inside, other=0.0)

    greatest = tl.full([ROWS], float("-inf"), tl.float32)
    total = tl.zeros([ROWS], tl.float32)
    o = tl.zeros([ROWS, SIZE], tl.float32)
    begin = 0
    end = tl.zeros([], tl.int32) + keys
    if causal:
        end = tl.minimum(end, tl.maximum(tl.cdiv((tile_row + 1) * ROWS + shift, COLUMNS) * COLUMNS, 0))
    for _ in range(2):  # a second time where masked keys that were skipped have weight: in rows that have no other
        for first in range(begin, end, COLUMNS):
            column = first + in_columns
            valid = (column < keys)[:, None]
            k = tl.load(
                moved(key, first, key_step) + (in_columns * key_step)[:, None] + part[None, :],
                mask=valid & (part < size)[None, :],
                other=0.0,
            )
            scores = scale * dot(q, tl.trans(k))
            known = (row < queries)[:, None] & (column < keys)[None, :]
            if bias_kind != ABSENT:
                offsets = tile(in_rows, bias_row, column, bias_column, DENSE)
                scores += load_optional(attention_bias, bias_kind, offsets, known, 0.0)
            if mask_kind != ABSENT:
                offsets = tile(in_rows, mask_row, column, mask_column, DENSE)
                scores = tl.where(load_mask(mask, mask_kind, offsets, known) != 0.0, scores, mask_value)
            if causal:
                scores = tl.where(column[None, :] <= row[:, None] + shift, scores, mask_value)
            scores = tl.where(known, scores, float("-inf"))
            higher = tl.maximum(greatest, tl.max(scores, 1))
            base = tl.where(higher == float("-inf"), 0.0, higher)
            weights = tl.exp(scores - base[:, None])
            shrink = tl.exp(greatest - base)
            greatest = higher
            total = total * shrink + tl.sum(weights, 1)
            v = tl.load(
                moved(value, first, value_step) + (in_columns * value_step)[:, None] + part[None, :],
                mask=valid & (part < value_size)[None, :],
                other=0.0,
            )
            o = dot(narrow(weights, value.dtype.element_ty), v, o * shrink[:, None])
        least = tl.min(tl.where(row < queries, greatest, float("inf")), 0)
        begin = end
        end = tl.where((least <= mask_value + NEGLIGIBLE) & (mask_value > float("-inf")), keys, end)
    empty = tl.where((zero_masked != 0) | (keys == 0), 0.0, float("nan"))
    return tl.where((total > 0.0)[:, None], o / tl.where(total > 0.0, total, 1.0)[:, None], empty)


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
    DENSE: tl.constexpr,
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
        DENSE,
    )
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
            True,
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
    """The variant for heads of these sizes; None for heads larger than 256. Sizes that are no multiples of 16 have `.any`, as has
    a bias or mask that broadcasts its last axis."""
    found = held_size(size, value_size, dense)
    if found is None:
        return None
    held, aligned = found
    name = f"fused_attention_layer_norm.{element}.d{held}" + ("" if aligned else ".any")
    divisible = ("size", "value_size") if aligned else ()
    constants, warps = tile_of(element, held)
    stages = 1 if element == "fp32" else 2
    return variant(
        name,
        attention,
        element,
        _TYPES,
        {**constants, "DENSE": aligned},
        divisible,
        num_warps=warps,
        num_stages=stages,
        aligned=aligned,
    )


def pick_projected(element: str, size: int, value_size: int, width: int, dense: bool = True) -> Variant | None:
    """The variant that has the rim as its epilogue; None where there is none: for float32, for heads larger than 64, for a
    projection to more than 512, for sizes that are no multiples of 16, and for a bias or mask that broadcasts its last axis."""
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
    constants = {"ROWS": 64 if held == 128 else 32, "COLUMNS": 32, "SIZE": 64, "WIDTH": held}
    name = f"fused_attention_layer_norm.projected.{element}.h{held}"
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
        for size in (32, 64, 128, 256, 63, 255):
            chosen = pick(element, size, size)
            assert chosen is not None
            yield chosen


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
) -> tuple[Any, Any]:
    """(output, residual_sum or None) [B, Sq, Ho] of the type T of query, key and value.

    query [B, Sq, h d], key [B, Sk, hkv d], value [B, Sk, hkv dv], or with layout "BHSD" [B, h, Sq, d] and so on; attention_bias
    [1|B, 1|h, 1|Sq, 1|Sk], out_bias, gamma and beta [Ho] are T or float32; mask of that form is bool (or T); out_weight [h dv, Ho]
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
    chosen = pick(element_of(query), size, value_size, dense)
    if chosen is None:
        raise ValueError(f"heads of {max(size, value_size)}: at most 256 are taken")
    sizes = (
        *(queries, keys, num_heads, num_key_value_heads, size, value_size),
        *(*strides_of(attention_bias, 4), *strides_of(mask, 4)),
        *(scale, mask_value),
        *(int(causal != "none"), keys - queries if causal == "lower_right" else 0, int(masked_row == "zero")),
        *(int(head_major), kind_of(attention_bias, query), kind_of(mask, query)),
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
