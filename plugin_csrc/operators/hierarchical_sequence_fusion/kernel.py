"""HierarchicalSequenceFusion: each row x is mixed with its weighted level embeddings E, through a gate.

    s_l = <x, E_l> / temperature;  w = masked softmax over l;  f = sum_l w_l E_l;  g = sigmoid(<f, x> / H)
    y = g f + (1 - g) x  (+ sum_k c_k * mean of x over the window W_k)

<f, x> is temperature * sum_l w_l s_l, so that a row is gone through twice: for the scores, and for y, then from the cache. Both
products are matrix products of a tile of rows with all levels.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import triton
import triton.language as tl

from onnx_fuse.plugin_csrc.kernels.common import (
    are_dense,
    dot,
    dot_float32,
    element_of,
    kind_of,
    load,
    load_mask,
    start,
    store,
    strides_of,
    table,
    tile,
    variant,
)
from onnx_fuse.plugin_csrc.kernels.manifest import TYPES, Variant
from onnx_fuse.plugin_csrc.kernels.pruning import pruned

ROWS = 32
BLOCK = 128
SLOTS = tl.constexpr(4)
"""Windows that one kernel takes."""

LEVELS = (16, 128)
"""Level embeddings that a variant takes at most."""


@triton.jit
def neighbours(x, row, position, positions, present, columns, width, radii, factors, truncate):
    """sum_k c_k * mean over |t' - t| <= radius_k of x_t' for a tile of rows; a radius below 0 is no window."""
    reach = tl.maximum(tl.maximum(radii[0], radii[1]), tl.maximum(radii[2], radii[3]))
    reach = tl.minimum(reach, positions - 1)
    total = tl.zeros([row.shape[0], columns.shape[0]], tl.float32)
    for step in range(-reach, reach + 1):
        other = position + step
        factor = tl.zeros(row.shape, tl.float32)
        for slot in tl.static_range(SLOTS):
            radius = radii[slot]
            inside = tl.minimum(position, radius) + tl.minimum(positions - 1 - position, radius) + 1
            count = tl.where(truncate != 0, inside, 2 * radius + 1)
            factor += tl.where(tl.abs(step) <= radius, factors[slot] / count.to(tl.float32), 0.0)
        valid = present & (other >= 0) & (other < positions)
        mask = valid[:, None] & (columns < width)[None, :]
        total += factor[:, None] * load(x, (row + step)[:, None] * width + columns[None, :], mask)
    return total


@triton.jit
def hierarchical_sequence_fusion(
    x,
    level_embeddings,
    level_mask,
    y,
    level_weights,
    rows,
    positions,
    width,
    levels,
    mask_batch,
    mask_position,
    mask_level,
    temperature,
    mask_kind,
    has_weights,
    truncate,
    radius_1,
    radius_2,
    radius_3,
    radius_4,
    factor_1,
    factor_2,
    factor_3,
    factor_4,
    ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
    LEVELS: tl.constexpr,
    DENSE: tl.constexpr,
):
    radii = (radius_1, radius_2, radius_3, radius_4)
    factors = (factor_1, factor_2, factor_3, factor_4)
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    position = (row % positions).to(tl.int32)
    present = row < rows
    level = tl.arange(0, LEVELS).to(tl.int64)
    both = present[:, None] & (level < levels)[None, :]

    scores = tl.zeros([ROWS, LEVELS], tl.float32)
    for first in range(0, width, BLOCK):
        columns = first + tl.arange(0, BLOCK)
        inside = columns < width
        here = tl.load(x + row[:, None] * width + columns[None, :], mask=present[:, None] & inside[None, :], other=0.0)
        embeddings = tl.load(
            level_embeddings + level[:, None] * width + columns[None, :],
            mask=(level < levels)[:, None] & inside[None, :],
            other=0.0,
        )
        scores = dot(here, tl.trans(embeddings), scores)
    scores = scores / temperature

    place = (row // positions) * mask_batch + position * mask_position
    keep = load_mask(level_mask, mask_kind, tile(place, 1, level, mask_level, DENSE), both) != 0.0
    greatest = tl.max(tl.where(keep, scores, float("-inf")), 1)
    exponent = tl.where(keep, scores - greatest[:, None], float("-inf"))
    weights = tl.exp(exponent)
    total = tl.sum(weights, 1)
    weights = weights / tl.where(total > 0.0, total, 1.0)[:, None]
    if has_weights:
        store(level_weights, row[:, None] * levels + level[None, :], weights, both)
    product = temperature * tl.sum(weights * tl.where(keep, scores, 0.0), 1)
    gate = tl.sigmoid(product / width)[:, None]

    for first in range(0, width, BLOCK):
        columns = first + tl.arange(0, BLOCK)
        inside = columns < width
        mask = present[:, None] & inside[None, :]
        offsets = row[:, None] * width + columns[None, :]
        embeddings = tl.load(
            level_embeddings + level[:, None] * width + columns[None, :],
            mask=(level < levels)[:, None] & inside[None, :],
            other=0.0,
        )
        fused = dot_float32(weights, embeddings)
        value = gate * fused + (1.0 - gate) * load(x, offsets, mask)
        value += neighbours(x, row, position, positions, present, columns, width, radii, factors, truncate)
        store(y, offsets, value, mask)


_TYPES = table(
    ("*T", "x level_embeddings level_mask y level_weights"),
    ("i64", "rows mask_batch"),
    ("fp32", "temperature factor_1 factor_2 factor_3 factor_4"),
)


def pick(element: str, width: int, levels: int, dense: bool = True) -> Variant | None:
    """The variant for rows of `width` and this many levels; None for more than 128 levels. Every width is accepted.

    `.any` is for widths that are no multiples of 16, for a mask that broadcasts its last axis (not `dense`), and for what is
    `pruned`.
    """
    most = next((most for most in LEVELS if levels <= most), None)
    if most is None:
        return None
    odd = width % 16 != 0 or not dense
    most = LEVELS[-1] if odd else most
    constants = {"ROWS": ROWS, "BLOCK": BLOCK if most == LEVELS[0] else BLOCK // 2, "LEVELS": most, "DENSE": not odd}
    name = f"hierarchical_sequence_fusion.{element}.l{most}" + (".any" if odd else "")
    if pruned(name):
        return pick(element, width, levels, dense=False)
    divisible = () if odd else ("width",)
    return variant(name, hierarchical_sequence_fusion, element, _TYPES, constants, divisible, aligned=not odd)


def variants() -> Iterator[Variant]:
    for element in TYPES:
        for width, levels in ((16, 16), (16, 128), (1, 1)):
            chosen = pick(element, width, levels)
            assert chosen is not None
            yield chosen


def launch(
    x: Any,
    level_embeddings: Any,
    level_mask: Any = None,
    *,
    temperature: float,
    windows: Sequence[int] = (),
    window_weights: Sequence[float] = (),
    pad: str = "truncate",
    level_weights: bool = False,
) -> tuple[Any, Any]:
    """(y [B, S, H], level_weights [B, S, L] or None) of the type of x [B, S, H].

    level_embeddings [L, H] is of type T; level_mask [1|B, 1|S, 1|L] is bool or T. Refused: more than 128 levels, more than 4
    windows, even windows.

    Arguments: x, level_embeddings, level_mask, y, level_weights (x in place of what is absent), rows = B S (int64), positions =
    S, width = H, levels = L, strides of level_mask (that of the batch int64), temperature, kind of level_mask, has_weights,
    truncate (1 for pad="truncate"), then 4 radii W // 2 (-1 for no window) and 4 factors c. Grid: ceil(rows / ROWS).
    """
    batch, positions, width = x.shape
    levels = level_embeddings.shape[0]
    y = x.new_empty(x.shape)
    weights = x.new_empty((batch, positions, levels)) if level_weights else None
    chosen = pick(element_of(x), width, levels, are_dense(levels, level_mask))
    if chosen is None or len(windows) > SLOTS.value or any(window % 2 == 0 for window in windows):
        raise ValueError("more than 128 levels, more than 4 windows, or an even window")
    radii = [window // 2 for window in windows]
    missing = SLOTS.value - len(radii)
    rows = batch * positions
    start(
        chosen,
        triton.cdiv(rows, ROWS),
        x,
        level_embeddings,
        x if level_mask is None else level_mask,
        y,
        x if weights is None else weights,
        rows,
        positions,
        width,
        levels,
        *strides_of(level_mask, 3),
        temperature,
        kind_of(level_mask, x),
        int(weights is not None),
        int(pad == "truncate"),
        *radii,
        *[-1] * missing,
        *window_weights,
        *[0.0] * missing,
    )
    return y, weights
