"""One pass over rows: sum, LayerNorm or RMSNorm, gate. The whole of FusedSkipLayerNorm; what follows the products of
FusedAttentionLayerNorm, FusedLinearLayerNorm and HSTUHierarchicalAttention where their own kernels cannot hold a row.

    z = x + bias + skip
    y = norm(z) * gamma + beta
    y = y * act(gate), 0 for rows at and beyond `lengths`
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import triton
import triton.language as tl

from onnx_fuse.plugin_csrc.kernels.common import (
    ABSENT,
    FLOAT32,
    LAYER,
    NO_NORM,
    NORMS,
    SAME,
    VECTOR,
    element_of,
    integers_of,
    kind_of,
    load_either,
    load_factor,
    load_integers,
    load_optional,
    start,
    store,
    strides_of,
    table,
    variant,
)
from onnx_fuse.plugin_csrc.kernels.manifest import TYPES, Variant

NO_GATE = tl.constexpr(0)
PLAIN = tl.constexpr(1)
SILU = tl.constexpr(2)
SIGMOID = tl.constexpr(3)
"""The attribute `gate_activation`; `NO_GATE` where there is no gate."""

GATES = {"none": 1, "silu": 2, "sigmoid": 3}


@triton.jit
def activate(gate, activation):
    """act(gate)"""
    factor = tl.sigmoid(gate)
    return tl.where(activation == PLAIN, gate, tl.where(activation == SILU, gate * factor, factor))


@triton.jit
def moments(z, inside, count, norm):
    """(mean, sum of squares around it) of each row of a tile of which `count` columns are inside; the mean is 0 unless "layer"."""
    mean = tl.where(norm == LAYER, tl.sum(z, 1) / count, 0.0)
    centred = tl.where(inside, z - mean[:, None], 0.0)
    return mean, tl.sum(centred * centred, 1)


@triton.jit
def merged(mean, square, z, inside, before, count, norm):
    """`moments` of the first `before` columns and of a tile with the next `count`, together (Chan et al., 1979)."""
    part_mean, part_square = moments(z, inside, count, norm)
    step = part_mean - mean
    share = count.to(tl.float32) / (before + count)
    return mean + step * share, square + part_square + step * step * share * before


@triton.jit
def affine(z, mean, scale, gamma, gamma_kind, beta, beta_kind, columns, inside):
    """(z - mean) * scale * gamma + beta for a tile of rows."""
    factor = load_optional(gamma, gamma_kind, columns, inside, 1.0)
    shift = load_optional(beta, beta_kind, columns, inside, 0.0)
    return (z - mean[:, None]) * scale[:, None] * factor[None, :] + shift[None, :]


@triton.jit
def terms(x, bias, bias_kind, skip, skip_kind, offsets, present, columns, width):
    """x + bias + skip for a tile of rows: all are loaded before one is used."""
    inside = present[:, None] & (columns < width)[None, :]
    z = tl.load(x + offsets, mask=inside, other=0.0)
    same = present[:, None] & (columns < tl.where(skip_kind == SAME, width, 0))[None, :]
    added = tl.load(skip + offsets, mask=same, other=0.0)
    shift = load_either(bias, bias_kind, columns, width)
    z = z.to(tl.float32) + shift[None, :] + added.to(tl.float32)
    if skip_kind == FLOAT32:
        z += tl.load(skip.to(tl.pointer_type(tl.float32), bitcast=True) + offsets, mask=inside, other=0.0)
    return tl.where(inside, z, 0.0)


@triton.jit
def summed(x, x_kind, bias, bias_kind, skip, skip_kind, offsets, present, columns, width):
    """`terms` of an x of type T or float32."""
    if x.dtype.element_ty == tl.float32:
        z = terms(x, bias, bias_kind, skip, skip_kind, offsets, present, columns, width)
    elif x_kind == FLOAT32:
        wide = x.to(tl.pointer_type(tl.float32), bitcast=True)
        z = terms(wide, bias, bias_kind, skip, skip_kind, offsets, present, columns, width)
    else:
        z = terms(x, bias, bias_kind, skip, skip_kind, offsets, present, columns, width)
    return z


@triton.jit
def written(z, mean, scale, factor, shift, weight, activation, keep, output, total, has_total, offsets, inside):
    if has_total:
        store(total, offsets, z, inside)
    y = (z - mean[:, None]) * scale[:, None] * factor[None, :] + shift[None, :]
    if activation != NO_GATE:
        y *= activate(weight.to(tl.float32), activation)
    store(output, offsets, tl.where(keep[:, None], y, 0.0), inside)


@triton.jit
def norm_rows(
    x,
    bias,
    skip,
    gamma,
    beta,
    gate,
    lengths,
    output,
    total,
    rows,
    width,
    positions,
    lengths_step,
    epsilon,
    norm,
    x_kind,
    bias_kind,
    skip_kind,
    gamma_kind,
    beta_kind,
    activation,
    lengths_kind,
    has_total,
    ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
    STEP: tl.constexpr,
    WHOLE: tl.constexpr,
):
    width = width // STEP * STEP  # as the compiler then knows
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    present = row < rows
    start_of_row = row[:, None] * width
    gated = tl.where(activation != NO_GATE, width, 0)
    keep = present
    if WHOLE:
        columns = tl.arange(0, BLOCK)
        inside = present[:, None] & (columns < width)[None, :]
        offsets = start_of_row + columns[None, :]
        weight = tl.load(gate + offsets, mask=present[:, None] & (columns < gated)[None, :], other=0.0)
        z = summed(x, x_kind, bias, bias_kind, skip, skip_kind, offsets, present, columns, width)
        factor = load_factor(gamma, gamma_kind, columns, width)
        shift = load_either(beta, beta_kind, columns, width)
        mean, square = moments(z, inside, width, norm)
        scale = tl.where(norm == NO_NORM, 1.0, 1.0 / tl.sqrt(square / width + epsilon))
        if lengths_kind != ABSENT:
            length = load_integers(lengths, lengths_kind, row // positions * lengths_step, present)
            keep &= row % positions < length
        written(z, mean, scale, factor, shift, weight, activation, keep, output, total, has_total, offsets, inside)
    else:
        mean = tl.zeros([ROWS], tl.float32)
        square = tl.zeros([ROWS], tl.float32)
        for first in range(0, width, BLOCK):
            columns = first + tl.arange(0, BLOCK)
            inside = present[:, None] & (columns < width)[None, :]
            offsets = start_of_row + columns[None, :]
            z = summed(x, x_kind, bias, bias_kind, skip, skip_kind, offsets, present, columns, width)
            mean, square = merged(mean, square, z, inside, first, tl.minimum(width - first, BLOCK), norm)
        scale = tl.where(norm == NO_NORM, 1.0, 1.0 / tl.sqrt(square / width + epsilon))
        if lengths_kind != ABSENT:
            length = load_integers(lengths, lengths_kind, row // positions * lengths_step, present)
            keep &= row % positions < length
        for first in range(0, width, BLOCK):
            columns = first + tl.arange(0, BLOCK)
            inside = present[:, None] & (columns < width)[None, :]
            offsets = start_of_row + columns[None, :]
            weight = tl.load(gate + offsets, mask=present[:, None] & (columns < gated)[None, :], other=0.0)
            z = summed(x, x_kind, bias, bias_kind, skip, skip_kind, offsets, present, columns, width)
            factor = load_factor(gamma, gamma_kind, columns, width)
            shift = load_either(beta, beta_kind, columns, width)
            written(z, mean, scale, factor, shift, weight, activation, keep, output, total, has_total, offsets, inside)


VECTORS = 2
"""Loads of 16 bytes of x that a thread of a variant for whole rows holds, where a block has more than one row."""
HELD = (128, 256, 512, 1024, 2048, 4096)
"""Columns that the variants for whole rows hold."""

_TYPES = table(
    ("*T", "x bias skip gamma beta gate output total"), ("*i32", "lengths"), ("i64", "rows"), ("fp32", "epsilon")
)


def pick(element: str, width: int) -> Variant:
    """The variant for rows of `width`; every width is accepted.

    Rows of up to 4096 columns that begin at multiples of 16 bytes are held in registers by the smallest of `HELD` that they fit
    in; `.wide` takes longer ones and `.any` the rest, both in several steps, of which the later ones read from the cache.
    """
    step = VECTOR[element]
    held = next((held for held in HELD if width <= held), None)
    if width % step:
        suffix, constants = "any", {"ROWS": 4, "BLOCK": 256, "STEP": 1, "WHOLE": False}
    elif held is None:
        suffix, constants = "wide", {"ROWS": 1, "BLOCK": 2048, "STEP": step, "WHOLE": False}
    else:
        rows = max(1, 128 * VECTORS * step // held)
        suffix, constants = str(held), {"ROWS": rows, "BLOCK": held, "STEP": step, "WHOLE": True}
    warps = {"2048": 8, "4096": 16}.get(suffix, 4)
    name = f"norm_rows.{element}.{suffix}"
    return variant(name, norm_rows, element, _TYPES, constants, num_warps=warps, aligned=suffix != "any")


def variants() -> Iterator[Variant]:
    return (pick(element, width) for element in TYPES for width in (*HELD, 8192, 1))


def launch(
    x: Any,
    output: Any,
    *,
    norm: str,
    epsilon: float,
    bias: Any = None,
    skip: Any = None,
    gamma: Any = None,
    beta: Any = None,
    gate: Any = None,
    gate_activation: str = "none",
    lengths: Any = None,
    total: Any = None,
) -> None:
    """output[rows, width] (type T) from x (T or float32, may be `output` itself) along its last axis.

    skip and gate have the shape of x; skip, bias, gamma and beta are T or float32; gate is T; lengths [1|B] is int32 or int64,
    where x is [B, positions, width]. `total` (T) receives z where the operator has that output.

    Arguments: x, bias, skip, gamma, beta, gate, lengths, output, total (x in place of what is absent), rows (int64), width,
    positions (1 without lengths), stride of lengths (0 where it is [1] or absent), epsilon, norm (`NORMS`), kinds of x, bias,
    skip, gamma, beta, activation (`GATES`, 0 without gate), kind of lengths, has_total. Grid: ceil(rows / ROWS).
    """
    width = x.shape[-1]
    rows = x.numel() // width if width else 0
    chosen = pick(element_of(output), width)
    optional = (bias, skip, gamma, beta, gate, lengths)
    start(
        chosen,
        triton.cdiv(rows, chosen.constants["ROWS"]),
        x,
        *(x if tensor is None else tensor for tensor in optional),
        output,
        x if total is None else total,
        rows,
        width,
        1 if lengths is None else x.shape[1],
        *strides_of(lengths, 1),
        epsilon,
        NORMS[norm],
        *(kind_of(tensor, output) for tensor in (x, bias, skip, gamma, beta)),
        0 if gate is None else GATES[gate_activation],
        integers_of(lengths),
        int(total is not None),
    )
