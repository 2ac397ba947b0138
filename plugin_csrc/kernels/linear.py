"""A matrix product with what follows it: the whole of FusedLinearLayerNorm, and the output projection of attention.

    z = x weight + bias + residual;  output = norm(z) * gamma + beta

Where a program holds whole rows, the norm is its epilogue; wider rows are normalised by a second launch, of norm_rows.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import triton
import triton.language as tl

from onnx_fuse.plugin_csrc.kernels import norm_rows
from onnx_fuse.plugin_csrc.kernels.common import (
    NO_NORM,
    NORMS,
    dot,
    element_of,
    kind_of,
    load_optional,
    start,
    store,
    store_as,
    table,
    variant,
)
from onnx_fuse.plugin_csrc.kernels.manifest import TYPES, Variant
from onnx_fuse.plugin_csrc.kernels.norm_rows import affine, moments


@triton.jit
def epilogue(
    z,
    row,
    rows,
    columns,
    width,
    bias,
    residual,
    gamma,
    beta,
    output,
    total,
    epsilon,
    norm,
    bias_kind,
    residual_kind,
    gamma_kind,
    beta_kind,
    output_kind,
    has_total,
):
    """Adds, normalises (where the tile has whole rows) and stores a tile of products."""
    known = columns < width
    inside = (row < rows)[:, None] & known[None, :]
    offsets = row[:, None] * width + columns[None, :]
    z += load_optional(bias, bias_kind, columns, known, 0.0)[None, :]
    z += load_optional(residual, residual_kind, offsets, inside, 0.0)
    if has_total:
        store(total, offsets, z, inside)
    if norm != NO_NORM:
        mean, square = moments(tl.where(inside, z, 0.0), inside, width, norm)
        z = affine(z, mean, 1.0 / tl.sqrt(square / width + epsilon), gamma, gamma_kind, beta, beta_kind, columns, known)
    store_as(output, output_kind, offsets, z, inside)


@triton.jit
def linear(
    x,
    weight,
    bias,
    residual,
    gamma,
    beta,
    output,
    total,
    rows,
    inner,
    width,
    epsilon,
    norm,
    bias_kind,
    residual_kind,
    gamma_kind,
    beta_kind,
    output_kind,
    has_total,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    INNER: tl.constexpr,
):
    tiles = tl.cdiv(width, COLUMNS)
    row = (tl.program_id(0) // tiles).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    columns = tl.program_id(0) % tiles * COLUMNS + tl.arange(0, COLUMNS)
    z = tl.zeros([ROWS, COLUMNS], tl.float32)
    for first in range(0, inner, INNER):
        part = first + tl.arange(0, INNER)
        left = tl.load(
            x + row[:, None] * inner + part[None, :], mask=(row < rows)[:, None] & (part < inner)[None, :], other=0.0
        )
        right = tl.load(
            weight + part.to(tl.int64)[:, None] * width + columns[None, :],
            mask=(part < inner)[:, None] & (columns < width)[None, :],
            other=0.0,
        )
        z = dot(left, right, z)
    epilogue(
        z,
        row,
        rows,
        columns,
        width,
        bias,
        residual,
        gamma,
        beta,
        output,
        total,
        epsilon,
        norm,
        bias_kind,
        residual_kind,
        gamma_kind,
        beta_kind,
        output_kind,
        has_total,
    )


_TYPES = table(("*T", "x weight bias residual gamma beta output total"), ("i64", "rows"), ("fp32", "epsilon"))


def pick(element: str, inner: int, width: int, norm: str) -> Variant:
    """The variant for a weight of inner x width, which may be any: `.h128` and `.h512` hold that many columns, of which only
    the first is used in several tiles; `.any`, of 128 columns, is for sizes that are no multiples of 16."""
    aligned = inner % 16 == 0 and width % 16 == 0
    wide = aligned and norm != "none" and 128 < width <= 512
    if element == "fp32":
        constants = {"ROWS": 16, "COLUMNS": 512, "INNER": 16} if wide else {"ROWS": 32, "COLUMNS": 128, "INNER": 32}
    else:
        constants = {"ROWS": 32, "COLUMNS": 512, "INNER": 32} if wide else {"ROWS": 64, "COLUMNS": 128, "INNER": 64}
    name = f"linear.{element}.{'any' if not aligned else 'h512' if wide else 'h128'}"
    divisible = ("inner", "width") if aligned else ()
    return variant(name, linear, element, _TYPES, constants, divisible, num_warps=8 if wide else 4, aligned=aligned)


def variants() -> Iterator[Variant]:
    return (pick(element, 16, width, "layer") for element in TYPES for width in (128, 512, 1))


def launch(
    x: Any,
    weight: Any,
    *,
    norm: str,
    epsilon: float,
    bias: Any = None,
    residual: Any = None,
    gamma: Any = None,
    beta: Any = None,
    residual_sum: bool = False,
) -> tuple[Any, Any]:
    """(output, z or None) [..., H] of the type T of x [..., K], weight [K, H] and residual [..., H].

    bias, gamma and beta [H] are T or float32. Every shape is accepted.

    The norm is the kernel's where a tile has whole rows (H <= COLUMNS). Otherwise two launches: this kernel with norm 0 and no
    total writes z as float32, to the output itself where T is float32 and else to a workspace of rows * H numbers, and norm_rows
    makes output and total of it.

    Arguments: x, weight, bias, residual, gamma, beta (x in place of what is absent), output, total, rows (int64), inner = K,
    width = H, epsilon, norm (`NORMS`), kinds of bias, residual, gamma, beta, output, has_total.
    Grid: ceil(rows / ROWS) * ceil(H / COLUMNS).
    """
    import torch

    inner, width = weight.shape
    chosen = pick(element_of(x), inner, width, norm)
    output = x.new_empty((*x.shape[:-1], width))
    total = output.new_empty(output.shape) if residual_sum else None
    two_launches = norm != "none" and width > chosen.constants["COLUMNS"]
    workspace = two_launches and element_of(x) != "fp32"
    z = output.new_empty(output.shape, dtype=torch.float32) if workspace else output
    rows = output.numel() // width if width else 0
    start(
        chosen,
        triton.cdiv(rows, chosen.constants["ROWS"]) * triton.cdiv(width, chosen.constants["COLUMNS"]),
        x,
        weight,
        *(x if tensor is None else tensor for tensor in (bias, residual, gamma, beta)),
        z,
        x if total is None else total,
        rows,
        inner,
        width,
        epsilon,
        NORMS["none" if two_launches else norm],
        *(kind_of(tensor, x) for tensor in (bias, residual, gamma, beta, z)),
        int(total is not None and not two_launches),
    )
    if two_launches:
        norm_rows.launch(z, output, norm=norm, epsilon=epsilon, gamma=gamma, beta=beta, total=total)
    return output, total
