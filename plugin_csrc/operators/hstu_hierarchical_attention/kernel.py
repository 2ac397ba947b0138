"""HSTUHierarchicalAttention, in both modes; a program makes a tile of rows of one head.

"silu" (arXiv 2402.17152), without a softmax and so without running maxima:

    s = alpha q k^T + bias_factor * bias;  a = silu(s) * mask * causal;  o = (a v) / norm_length, or * scale
    y = norm(o) * gamma + beta, times act(u)

"level_softmax": the keys are cut into levels of ceil(N / levels), each with a softmax of its own:

    o = sum_l w_l softmax_{j in K_l, mask}(decay^l alpha q k_j) v_j / sum over the active levels of w_l,  w_l = (l + 1) / levels

Keys at and beyond `lengths` do not count, rows there are 0. Norm and gate are part of the kernel where the norm is that of one
head; a LayerNorm over several heads is a second launch, of norm_rows.

"silu" has two kernels: `hstu_tiles` for the heads and inputs that occur most, with what there is as constants (`pick_tiles`), and
`hstu_silu`, which asks inside its loop, for all others.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any

import triton
import triton.language as tl

from onnx_fuse.plugin_csrc.kernels import norm_rows
from onnx_fuse.plugin_csrc.kernels.common import (
    ABSENT,
    are_dense,
    dot,
    element_of,
    integers_of,
    kind_of,
    load,
    load_integers,
    load_mask,
    load_optional,
    matrix,
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
from onnx_fuse.plugin_csrc.kernels.manifest import ARCHITECTURES, TYPES, Variant
from onnx_fuse.plugin_csrc.kernels.norm_rows import GATES, NO_GATE, activate
from onnx_fuse.plugin_csrc.kernels.pruning import pruned
from onnx_fuse.plugin_csrc.operators.hstu_hierarchical_attention.tiles import step


@triton.jit
def valid_length(lengths, lengths_kind, lengths_step, batch, length):
    """Rows of this sample that count."""
    limit = tl.zeros([], tl.int64) + length
    if lengths_kind != ABSENT:
        limit = tl.minimum(limit, load_integers(lengths, lengths_kind, batch * lengths_step, batch >= 0))
    return limit.to(tl.int32)


@triton.jit
def finish(
    o,
    u,
    gamma,
    beta,
    output,
    offsets,
    head,
    row,
    limit,
    inside,
    value_size,
    gamma_head,
    gamma_column,
    beta_head,
    beta_column,
    epsilon,
    head_norm,
    activation,
    gamma_kind,
    beta_kind,
    output_kind,
):
    """Norm over the head, gate and store of a tile [ROWS, SIZE] of one head."""
    column = tl.arange(0, o.shape[1])
    if head_norm:
        known = (column < value_size)[None, :]
        mean = tl.sum(tl.where(known, o, 0.0), 1) / value_size
        o = tl.where(known, o - mean[:, None], 0.0)
        o = o * (1.0 / tl.sqrt(tl.sum(o * o, 1) / value_size + epsilon))[:, None]
        place = head * gamma_head + column * gamma_column
        o *= load_optional(gamma, gamma_kind, place, column < value_size, 1.0)[None, :]
        place = head * beta_head + column * beta_column
        o += load_optional(beta, beta_kind, place, column < value_size, 0.0)[None, :]
    if activation != NO_GATE:
        o *= activate(load(u, offsets, inside), activation)
    store_as(output, output_kind, offsets, tl.where((row < limit)[:, None], o, 0.0), inside)


@triton.jit
def hstu_silu(
    q,
    k,
    v,
    bias,
    mask,
    scale,
    lengths,
    u,
    gamma,
    beta,
    output,
    length,
    heads,
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
    scale_batch,
    scale_row,
    lengths_step,
    gamma_head,
    gamma_column,
    beta_head,
    beta_column,
    alpha,
    bias_factor,
    inverse_length,
    epsilon,
    causal,
    head_norm,
    activation,
    bias_kind,
    mask_kind,
    scale_kind,
    lengths_kind,
    gamma_kind,
    beta_kind,
    output_kind,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    SIZE: tl.constexpr,
    DENSE: tl.constexpr,
):
    tiles = tl.cdiv(length, ROWS)
    tile_row = tiles - 1 - tl.program_id(0) % tiles  # the longest first, where the mask is causal
    head = tl.program_id(0) // tiles % heads
    batch = (tl.program_id(0) // tiles // heads).to(tl.int64)
    limit = valid_length(lengths, lengths_kind, lengths_step, batch, length)

    in_rows = tl.arange(0, ROWS)
    in_columns = tl.arange(0, COLUMNS)
    part = tl.arange(0, SIZE)
    row = tile_row * ROWS + in_rows
    width = heads * size
    value_width = heads * value_size
    k += batch * length * width + head * size
    v += batch * length * value_width + head * value_size
    first_row = tl.cast(tile_row * ROWS, tl.int64)
    mask = moved_as(mask, mask_kind, mask_batch * batch + mask_head * head + first_row * mask_row)
    here = batch * length + row
    inside = (row < length)[:, None] & (part < size)[None, :]
    queries = tl.load(q + (here * width + head * size)[:, None] + part[None, :], mask=inside, other=0.0)

    bias = moved_as(bias, bias_kind, bias_batch * batch + bias_head * head + first_row * bias_row)
    end = tl.where(tile_row * ROWS < limit, limit, 0)
    if causal:
        end = tl.minimum(end, (tile_row + 1) * ROWS)
    o = tl.zeros([ROWS, SIZE], tl.float32)
    for first in range(0, end, COLUMNS):
        column = first + in_columns
        valid = (column < limit)[:, None]
        keys = tl.load(
            moved(k, first, width) + (in_columns * width)[:, None] + part[None, :],
            mask=valid & (part < size)[None, :],
            other=0.0,
        )
        scores = alpha * dot(queries, tl.trans(keys))
        known = (row < length)[:, None] & (column < limit)[None, :]
        if bias_kind != ABSENT:
            offsets = tile(in_rows, bias_row, column, bias_column, DENSE)
            scores += bias_factor * load_optional(bias, bias_kind, offsets, known, 0.0)
        weights = scores * tl.sigmoid(scores)
        if mask_kind != ABSENT:
            offsets = tile(in_rows, mask_row, column, mask_column, DENSE)
            weights *= load_mask(mask, mask_kind, offsets, known)
        if causal:
            known &= column[None, :] <= row[:, None]
        weights = tl.where(known, weights, 0.0)
        values = tl.load(
            moved(v, first, value_width) + (in_columns * value_width)[:, None] + part[None, :],
            mask=valid & (part < value_size)[None, :],
            other=0.0,
        )
        o = dot(narrow(weights, v.dtype.element_ty), values, o)

    factor = load_optional(scale, scale_kind, batch * scale_batch + row * scale_row, row < length, inverse_length)
    inside = (row < length)[:, None] & (part < value_size)[None, :]
    offsets = (here * value_width + head * value_size)[:, None] + part[None, :]
    finish(
        o * factor[:, None],
        u,
        gamma,
        beta,
        output,
        offsets,
        head,
        row,
        limit,
        inside,
        value_size,
        gamma_head,
        gamma_column,
        beta_head,
        beta_column,
        epsilon,
        head_norm,
        activation,
        gamma_kind,
        beta_kind,
        output_kind,
    )


@triton.jit
def tiles_of_head(
    q, k, v, bias, mask, scale, lengths, u, gamma, beta, output, length, heads, size, value_size, bias_batch, bias_head,
    bias_row, bias_column, mask_batch, mask_head, mask_row, mask_column, scale_batch, scale_row, lengths_step,
    gamma_head, gamma_column, beta_head, beta_column, alpha, bias_factor, inverse_length, epsilon, causal, head_norm,
    activation, bias_kind, mask_kind, scale_kind, lengths_kind, gamma_kind, beta_kind, output_kind,
    key_map, value_map,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr, SIZE: tl.constexpr, BIAS: tl.constexpr, MASK: tl.constexpr, TANH: tl.constexpr,
    STAGES: tl.constexpr, PAIRS: tl.constexpr,
):  # fmt: skip
    """`hstu_silu` for heads of SIZE: see tiles.py. Strides of bias and mask are multiples of 8 and their last axes dense; `size`,
    `value_size`, bias_kind and mask_kind are told by constants. Where SCALED, the weights lack the factor alpha."""
    SCALED: tl.constexpr = (
        BIAS == ABSENT and not TANH and v.dtype.element_ty == tl.bfloat16
    )  # float16 might not hold them
    tiles = tl.cdiv(length, ROWS)
    tile_row = tiles - 1 - tl.program_id(0) % tiles  # the longest first, where the mask is causal
    head = tl.program_id(0) // tiles % heads
    batch = (tl.program_id(0) // tiles // heads).to(tl.int64)
    limit = valid_length(lengths, lengths_kind, lengths_step, batch, length)

    part = tl.arange(0, SIZE)
    row = tile_row * ROWS + tl.arange(0, ROWS)
    width = heads * SIZE
    start_of_head = batch * length * width + head * SIZE
    offsets = start_of_head + row.to(tl.int64)[:, None] * width + part[None, :]
    inside = (row < length)[:, None]
    queries = tl.load(q + offsets, mask=inside, other=0.0)
    first_row = tl.cast(tile_row * ROWS, tl.int64)
    near = tl.minimum(
        tl.arange(0, ROWS), length - 1 - tile_row * ROWS
    )  # what is read for rows beyond the end is that of the last
    bias_step = bias_row // 8 * 8
    bias += (bias_batch // 8 * batch + bias_head // 8 * head + bias_row // 8 * first_row) * 8
    mask_step = mask_row // 8 * 8
    mask += (mask_batch // 8 * batch + mask_head // 8 * head + mask_row // 8 * first_row) * 8

    end = tl.where(tile_row * ROWS < limit, limit, 0)
    full = tl.where(causal != 0, tl.minimum(end, tile_row * ROWS), end) // COLUMNS * COLUMNS
    end = tl.where(causal != 0, tl.minimum(end, (tile_row + 1) * ROWS), end)
    bound = tl.where(causal != 0, tl.minimum(limit, row + 1), limit)
    o = tl.zeros([ROWS, SIZE], tl.float32)
    for first in tl.range(0, full, COLUMNS, num_stages=STAGES):
        o = step(
            o, queries, k + start_of_head, v + start_of_head, key_map, value_map, (batch * length).to(tl.int32), head * SIZE, bias,
            mask, near * bias_step, near * mask_step, first, bound, limit, width, alpha, bias_factor,
            False, BIAS, MASK, TANH, SCALED, COLUMNS, PAIRS,
        )  # fmt: skip
    for first in tl.range(full, end, COLUMNS, num_stages=1):
        o = step(
            o, queries, k + start_of_head, v + start_of_head, None, None, 0, 0, bias,
            mask, near * bias_step, near * mask_step, first, bound, limit, width, alpha, bias_factor,
            True, BIAS, MASK, TANH, SCALED, COLUMNS, PAIRS,
        )  # fmt: skip

    factor = load_optional(scale, scale_kind, batch * scale_batch + row * scale_row, row < length, inverse_length)
    if SCALED:
        factor *= alpha
    finish(
        o * factor[:, None],
        u,
        gamma,
        beta,
        output,
        offsets,
        head,
        row,
        limit,
        inside & (part < SIZE)[None, :],
        SIZE,
        gamma_head,
        gamma_column,
        beta_head,
        beta_column,
        epsilon,
        head_norm,
        activation,
        gamma_kind,
        beta_kind,
        output_kind,
    )


@triton.jit
def hstu_tiles(
    q, k, v, bias, mask, scale, lengths, u, gamma, beta, output, length, heads, size, value_size, bias_batch, bias_head,
    bias_row, bias_column, mask_batch, mask_head, mask_row, mask_column, scale_batch, scale_row, lengths_step,
    gamma_head, gamma_column, beta_head, beta_column, alpha, bias_factor, inverse_length, epsilon, causal, head_norm,
    activation, bias_kind, mask_kind, scale_kind, lengths_kind, gamma_kind, beta_kind, output_kind,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr, SIZE: tl.constexpr, BIAS: tl.constexpr, MASK: tl.constexpr, TANH: tl.constexpr,
    STAGES: tl.constexpr, PAIRS: tl.constexpr,
):  # fmt: skip
    """`tiles_of_head`, with keys and values by pointers."""
    tiles_of_head(
        q, k, v, bias, mask, scale, lengths, u, gamma, beta, output, length, heads, size, value_size, bias_batch,
        bias_head, bias_row, bias_column, mask_batch, mask_head, mask_row, mask_column, scale_batch, scale_row,
        lengths_step, gamma_head, gamma_column, beta_head, beta_column, alpha, bias_factor, inverse_length, epsilon,
        causal, head_norm, activation, bias_kind, mask_kind, scale_kind, lengths_kind, gamma_kind, beta_kind,
        output_kind,
        None, None,
        ROWS, COLUMNS, SIZE, BIAS, MASK, TANH, STAGES, PAIRS,
    )  # fmt: skip


@triton.jit
def hstu_mapped_tiles(
    q, k, v, bias, mask, scale, lengths, u, gamma, beta, output, length, heads, size, value_size, bias_batch, bias_head,
    bias_row, bias_column, mask_batch, mask_head, mask_row, mask_column, scale_batch, scale_row, lengths_step,
    gamma_head, gamma_column, beta_head, beta_column, alpha, bias_factor, inverse_length, epsilon, causal, head_norm,
    activation, bias_kind, mask_kind, scale_kind, lengths_kind, gamma_kind, beta_kind, output_kind,
    key_map, value_map,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr, SIZE: tl.constexpr, BIAS: tl.constexpr, MASK: tl.constexpr, TANH: tl.constexpr,
    STAGES: tl.constexpr, PAIRS: tl.constexpr,
):  # fmt: skip
    """`tiles_of_head`, with the keys and values of full tiles through tensor maps: [B N, h SIZE], in blocks of [COLUMNS, SIZE]."""
    tiles_of_head(
        q, k, v, bias, mask, scale, lengths, u, gamma, beta, output, length, heads, size, value_size, bias_batch,
        bias_head, bias_row, bias_column, mask_batch, mask_head, mask_row, mask_column, scale_batch, scale_row,
        lengths_step, gamma_head, gamma_column, beta_head, beta_column, alpha, bias_factor, inverse_length, epsilon,
        causal, head_norm, activation, bias_kind, mask_kind, scale_kind, lengths_kind, gamma_kind, beta_kind,
        output_kind,
        key_map, value_map,
        ROWS, COLUMNS, SIZE, BIAS, MASK, TANH, STAGES, PAIRS,
    )  # fmt: skip


@triton.jit
def hstu_level_softmax(
    q,
    k,
    v,
    mask,
    lengths,
    gamma,
    beta,
    output,
    length,
    heads,
    size,
    value_size,
    mask_batch,
    mask_head,
    mask_row,
    mask_column,
    lengths_step,
    gamma_head,
    gamma_column,
    beta_head,
    beta_column,
    levels,
    decay,
    alpha,
    epsilon,
    head_norm,
    mask_kind,
    lengths_kind,
    gamma_kind,
    beta_kind,
    output_kind,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    SIZE: tl.constexpr,
    DENSE: tl.constexpr,
):
    tiles = tl.cdiv(length, ROWS)
    tile_row = tl.program_id(0) % tiles
    head = tl.program_id(0) // tiles % heads
    batch = (tl.program_id(0) // tiles // heads).to(tl.int64)
    limit = valid_length(lengths, lengths_kind, lengths_step, batch, length)

    in_rows = tl.arange(0, ROWS)
    in_columns = tl.arange(0, COLUMNS)
    part = tl.arange(0, SIZE)
    row = tile_row * ROWS + in_rows
    width = heads * size
    value_width = heads * value_size
    k += batch * length * width + head * size
    v += batch * length * value_width + head * value_size
    first_row = tl.cast(tile_row * ROWS, tl.int64)
    mask = moved_as(mask, mask_kind, mask_batch * batch + mask_head * head + first_row * mask_row)
    here = batch * length + row
    inside = (row < length)[:, None] & (part < size)[None, :]
    queries = tl.load(q + (here * width + head * size)[:, None] + part[None, :], mask=inside, other=0.0)

    o = tl.zeros([ROWS, SIZE], tl.float32)
    active = tl.zeros([ROWS], tl.float32)
    factor = tl.zeros([], tl.float32) + alpha
    step = tl.cdiv(length, levels)
    for level in range(levels):
        greatest = tl.full([ROWS], float("-inf"), tl.float32)
        total = tl.zeros([ROWS], tl.float32)
        part_o = tl.zeros([ROWS, SIZE], tl.float32)
        end = tl.minimum((level + 1) * step, limit)
        for first in range(level * step, end, COLUMNS):
            column = first + in_columns
            valid = (column < end)[:, None]
            keys = tl.load(
                moved(k, first, width) + (in_columns * width)[:, None] + part[None, :],
                mask=valid & (part < size)[None, :],
                other=0.0,
            )
            scores = factor * dot(queries, tl.trans(keys))
            known = (row < length)[:, None] & (column < end)[None, :]
            offsets = tile(in_rows, mask_row, column, mask_column, DENSE)
            known &= load_mask(mask, mask_kind, offsets, known) != 0.0
            higher = tl.maximum(greatest, tl.max(tl.where(known, scores, float("-inf")), 1))
            base = tl.where(higher == float("-inf"), 0.0, higher)
            weights = tl.where(known, tl.exp(scores - base[:, None]), 0.0)
            shrink = tl.exp(greatest - base)
            greatest = higher
            total = total * shrink + tl.sum(weights, 1)
            values = tl.load(
                moved(v, first, value_width) + (in_columns * value_width)[:, None] + part[None, :],
                mask=valid & (part < value_size)[None, :],
                other=0.0,
            )
            part_o = dot(narrow(weights, v.dtype.element_ty), values, part_o * shrink[:, None])
        share = tl.where(total > 0.0, (level + 1.0) / levels, 0.0)
        o += part_o * (share / tl.where(total > 0.0, total, 1.0))[:, None]
        active += share
        factor *= decay

    inside = (row < length)[:, None] & (part < value_size)[None, :]
    offsets = (here * value_width + head * value_size)[:, None] + part[None, :]
    finish(
        o / tl.where(active > 0.0, active, 1.0)[:, None],
        q,
        gamma,
        beta,
        output,
        offsets,
        head,
        row,
        limit,
        inside,
        value_size,
        gamma_head,
        gamma_column,
        beta_head,
        beta_column,
        epsilon,
        head_norm,
        NO_GATE,
        gamma_kind,
        beta_kind,
        output_kind,
    )


_STRIDES = ("i64", "bias_batch bias_head mask_batch mask_head scale_batch")
_SILU_TYPES = table(
    ("*T", "q k v bias mask scale u gamma beta output"),
    ("*i32", "lengths"),
    _STRIDES,
    ("fp32", "alpha bias_factor inverse_length epsilon"),
)
_LEVEL_TYPES = table(
    ("*T", "q k v mask gamma beta output"), ("*i32", "lengths"), _STRIDES, ("fp32", "decay alpha epsilon")
)


def tile_of(element: str, held: int, aligned: bool) -> tuple[dict[str, int], int]:
    """(tile sizes, warps) of attention whose heads are padded to `held`: what fits into 99 KB of shared memory, and into the
    registers where what is not `aligned` is loaded a number at a time."""
    if element == "fp32":
        rows, columns, warps = (32, 32, 4) if held <= 128 else (32, 16, 4)
    elif aligned:
        rows, columns, warps = {32: (128, 64, 8), 64: (128, 64, 8), 128: (128, 32, 8), 256: (64, 32, 8)}[held]
    else:
        rows, columns, warps = {64: (128, 32, 8), 256: (64, 16, 8)}[held]
    return {"ROWS": rows, "COLUMNS": columns, "SIZE": held}, warps


def held_size(size: int, value_size: int, dense: bool) -> tuple[int, bool] | None:
    """(padded head size, whether both sizes are multiples of 16 and bias and mask `are_dense`); None for heads larger than 256."""
    aligned = size % 16 == 0 and value_size % 16 == 0 and dense
    sizes = (32, 64, 128, 256) if aligned else (64, 256)
    held = next((held for held in sizes if max(size, value_size) <= held), None)
    return None if held is None else (held, aligned)


def pick(element: str, mode: str, size: int, value_size: int, dense: bool = True) -> Variant | None:
    """The variant for heads of these sizes; None for heads larger than 256. Sizes that are no multiples of 16 have `.any`, as has
    a bias or mask that broadcasts its last axis, and what is `pruned`. In 16-bit types heads of 32 mostly have a variant of
    `pick_tiles`."""
    found = held_size(size, value_size, dense)
    if found is None:
        return None
    held, aligned = found
    if mode == "silu" and aligned and element != "fp32":
        held = max(held, 64)
    if mode == "level_softmax":  # seldom used: two variants for each type
        held, aligned = (64, True) if held <= 64 and aligned else (256, False)
    function, types = (hstu_silu, _SILU_TYPES) if mode == "silu" else (hstu_level_softmax, _LEVEL_TYPES)
    name = f"hstu_hierarchical_attention.{mode}.{element}.d{held}" + ("" if aligned else ".any")
    if pruned(name):
        return pick(element, mode, size, value_size, dense=False)
    divisible = ("size", "value_size") if aligned else ()
    constants, warps = tile_of(element, held, aligned)
    if element == "fp32" and held > 64:
        warps = 8  # the sums of large heads do not fit into the registers of 4
    stages = 1 if element == "fp32" else 2
    return variant(
        name,
        function,
        element,
        types,
        {**constants, "DENSE": aligned},
        divisible,
        num_warps=warps,
        num_stages=stages,
        aligned=aligned,
    )


LARGE = frozenset({90, 100})
"""Architectures that have the shared memory for large tiles; the others have 99 KB, or share machine code with those that do."""
TILES = {
    # Head -> rows, columns and stages of the loads.
    True: {32: (128, 128, 2), 64: (128, 128, 2), 128: (128, 128, 2), 256: (128, 64, 2)},
    False: {32: (128, 64, 2), 64: (128, 64, 2), 128: (128, 64, 2), 256: (64, 64, 1)},
}
MAPPED = 64
"""Heads of at least so many, whose rows are those of a tensor map's boxes, get keys and values through tensor maps on the
architectures in `LARGE`: no thread makes addresses. Smaller ones gain nothing."""
EXTRAS = {
    # Kinds of bias and mask -> the end of the variant's name. What is not here is seldom, and taken by `hstu_silu`.
    (0, 0): "",
    (1, 0): ".bias",
    (0, 3): ".mask",
    (1, 3): ".bias.mask",
}


def pick_tiles(
    element: str, size: int, value_size: int, length: int, kinds: tuple[int, int], dense: bool, large: bool
) -> Variant | None:
    """The variant of `hstu_tiles`, `.large` for the architectures in `LARGE`; None where there is none: for float32, heads of other
    sizes, kinds of bias and mask that `EXTRAS` does not have, those whose rows do not begin at multiples of 8 elements, and what
    is `pruned`."""
    extra = EXTRAS.get(kinds)
    if element == "fp32" or size != value_size or size not in TILES[large] or extra is None:
        return None
    if extra and (length % 8 or not dense):
        return None
    rows, columns, stages = TILES[large][size]
    bias, mask = kinds
    constants = {
        "ROWS": rows,
        "COLUMNS": columns,
        "SIZE": size,
        "BIAS": bias,
        "MASK": mask,
        # Where special instructions would bind, and no bias takes keys out by a large number.
        "TANH": element == "bf16" and size <= 64 and not bias,
        "STAGES": stages,
        "PAIRS": large,  # saves with wgmma a fifth of an instruction for one score, and costs two to nine with mma
    }
    types = {**_SILU_TYPES, "mask": "*i8"}
    if large and size >= MAPPED:
        types |= dict.fromkeys(("key_map", "value_map"), f"tensordesc<T[{columns},{size}]>")
    name = f"hstu_hierarchical_attention.tiles.{element}.d{size}{extra}" + ".large" * large
    if pruned(name):
        return None
    where = LARGE if large else frozenset(ARCHITECTURES) - LARGE
    function = hstu_mapped_tiles if "key_map" in types else hstu_tiles
    return variant(name, function, element, types, constants, num_warps=8, num_stages=stages, architectures=where)


def variants() -> Iterator[Variant]:
    for element in TYPES:
        for large, size, kinds in itertools.product((False, True), TILES[True], EXTRAS):
            tiled = pick_tiles(element, size, size, 8, kinds, True, large)
            if tiled is not None:
                yield tiled
        silu = [("silu", size) for size in (32, 64, 128, 256, 63, 255) if element == "fp32" or size != 32]
        for mode, size in (*silu, ("level_softmax", 64), ("level_softmax", 256)):
            chosen = pick(element, mode, size, size)
            assert chosen is not None
            yield chosen


def launch(
    q: Any,
    k: Any,
    v: Any,
    *,
    num_heads: int,
    bias: Any = None,
    mask: Any = None,
    scale: Any = None,
    lengths: Any = None,
    u: Any = None,
    gamma: Any = None,
    beta: Any = None,
    alpha: float = 1.0,
    bias_order: str = "outside_alpha",
    norm_length: float = 0.0,
    causal: bool = False,
    norm: str = "none",
    gate_activation: str = "none",
    epsilon: float = 0.0,
    mode: str = "silu",
    num_levels: int = 1,
    decay: float = 0.9,
    architecture: int = 80,
) -> Any:
    """y [B, N, h dv] of the type T of q, k [B, N, h d] and v, u [B, N, h dv].

    bias [1|B, 1|h, 1|N, 1|N], scale [1|B, 1, 1|N, 1], gamma and beta [h dv] (with "group" also [h]) are T or float32; mask
    [1|B, 1|h, 1|N, 1|N] is T or bool; lengths [1|B] int32 or int64. Refused: heads larger than 256; bias, scale, u and causal in
    the mode "level_softmax".

    The norm is the kernel's (head_norm) where it is "group", or "layer" of one head. Otherwise "layer" takes two launches: the
    kernel writes float32 without norm and gate, to y itself where T is float32 and else to a workspace of B N h dv numbers, and
    norm_rows makes y of it, with u, gamma, beta and lengths.

    Arguments of "silu": q, k, v, bias, mask, scale, lengths, u, gamma, beta (q in place of what is absent), output, length = N,
    heads, size = d, value_size = dv; strides in elements, 0 along a broadcast axis: bias and mask (batch, head, row, column), scale
    (batch, row), of which those of batch and head are int64; of lengths; of gamma and beta from head to head and inside a head;
    alpha, bias_factor (1, or alpha for "inside_alpha"), inverse_length (1 / norm_length, 1 / N where that is 0),
    epsilon; causal, head_norm, activation (`GATES`, 0 without u or where norm_rows does it); kinds of bias, mask, scale,
    lengths, gamma, beta, output.
    `hstu_tiles` and `hstu_silu` take the same, `hstu_mapped_tiles` also the tensor maps of k and v as [B N, h d].
    Of "level_softmax": the same without bias, scale, u, causal and their like, with levels, decay, alpha, epsilon; see the
    signature. Grid of both: B h ceil(N / ROWS).
    """
    import torch

    batch, length, width = q.shape
    size, value_size = width // num_heads, v.shape[-1] // num_heads
    dense = are_dense(length, bias, mask)
    chosen = pick(element_of(q), mode, size, value_size, dense)
    if mode == "silu":
        kinds_of_both = (kind_of(bias, q), kind_of(mask, q))
        tiled = pick_tiles(element_of(q), size, value_size, length, kinds_of_both, dense, architecture in LARGE)
        chosen = tiled or chosen
    if chosen is None:
        raise ValueError(f"heads of {max(size, value_size)}: at most 256 are taken")
    if mode == "level_softmax" and (causal or any(item is not None for item in (bias, scale, u))):
        raise ValueError("level_softmax takes no bias, scale, u or causal mask")
    y = v.new_empty(v.shape)
    two_launches = norm == "layer" and num_heads > 1
    needs_workspace = two_launches and element_of(v) != "fp32"
    output = v.new_empty(v.shape, dtype=torch.float32) if needs_workspace else y
    head_norm = norm != "none" and not two_launches
    affine = [
        (1, 0) if tensor is not None and tensor.numel() == num_heads and norm == "group" else (value_size, 1)
        for tensor in (gamma, beta)
    ]
    steps = (*strides_of(lengths, 1), *affine[0], *affine[1])
    programs = batch * num_heads * triton.cdiv(length, chosen.constants["ROWS"]) if value_size else 0

    def pointers(*tensors: Any) -> list[Any]:
        return [q if tensor is None else tensor for tensor in tensors]

    maps = []
    if "key_map" in chosen.signature:
        maps = [matrix(tensor, chosen.constants["COLUMNS"], size) if programs else None for tensor in (k, v)]
    kinds = (integers_of(lengths), kind_of(gamma, q), kind_of(beta, q), kind_of(output, q))
    if mode == "silu":
        scale_strides = strides_of(scale, 4)
        start(
            chosen,
            programs,
            *(q, k, v, *pointers(bias, mask, scale, lengths, u, gamma, beta), output),
            *(length, num_heads, size, value_size),
            *(*strides_of(bias, 4), *strides_of(mask, 4), scale_strides[0], scale_strides[2], *steps),
            *(alpha, alpha if bias_order == "inside_alpha" else 1.0, 1.0 / (norm_length or length or 1), epsilon),
            *(int(causal), int(head_norm), 0 if u is None or two_launches else GATES[gate_activation]),
            *(kind_of(bias, q), kind_of(mask, q), kind_of(scale, q), *kinds, *maps),
        )
    else:
        start(
            chosen,
            programs,
            *(q, k, v, *pointers(mask, lengths, gamma, beta), output),
            *(length, num_heads, size, value_size, *strides_of(mask, 4), *steps),
            *(num_levels, decay, alpha, epsilon, int(head_norm), kind_of(mask, q), *kinds),
        )
    if two_launches:
        norm_rows.launch(
            output,
            y,
            norm="layer",
            epsilon=epsilon,
            gamma=gamma,
            beta=beta,
            gate=u,
            gate_activation=gate_activation,
            lengths=lengths,
        )
    return y
