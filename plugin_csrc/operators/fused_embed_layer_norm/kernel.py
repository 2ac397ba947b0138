"""FusedEmbedLayerNorm: output = norm(table_1[ids_1] + table_2[ids_2] + ...), each row of each table read once.

The tables are pointer slots of the kernel, of which `count` are looked at. An id wraps once if it is negative, as in Gather,
and is then clamped: nothing outside a table is read.

`embed_rows` holds whole rows. It asks nothing between its loads: what an id or a factor may be is read under a predicate for
each type, so that a block waits twice for `AHEAD` tables, for their ids and for their rows. `fused_embed_layer_norm` takes what
that one does not, one table after the other.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import triton
import triton.language as tl

from onnx_fuse.plugin_csrc.kernels.common import (
    LAYER,
    NO_NORM,
    NORMS,
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
    table,
    variant,
)
from onnx_fuse.plugin_csrc.kernels.manifest import TYPES, Variant
from onnx_fuse.plugin_csrc.kernels.norm_rows import affine, merged

SLOTS = tl.constexpr(8)
"""Tables that one kernel takes."""
AHEAD = tl.constexpr(3)
"""Tables whose rows `embed_rows` loads at a time."""


@triton.jit
def gathered(ids, tables, sizes, flags, count, row, positions, present, width, columns):
    """Sum of the tables' rows for these rows of the output, [ROWS, BLOCK]; 0 outside."""
    id_kinds, table_kinds, single_batch, single_position = flags
    inside = present[:, None] & (columns < width)[None, :]
    z = tl.zeros(inside.shape, tl.float32)
    for slot in tl.static_range(SLOTS):
        if slot < count:
            one_batch = ((single_batch >> slot) & 1) == 1
            one_position = ((single_position >> slot) & 1) == 1
            place = tl.where(one_batch, 0, row // positions * tl.where(one_position, 1, positions))
            place += tl.where(one_position, 0, row % positions)
            index = load_integers(ids[slot], 1 + ((id_kinds >> slot) & 1), place, present)
            index = tl.where(index < 0, index + sizes[slot], index)
            index = tl.minimum(tl.maximum(index, 0), sizes[slot] - 1)
            offsets = index[:, None] * width + columns[None, :]
            kind = 1 + ((table_kinds >> slot) & 1)
            z += load_optional(tables[slot], kind, offsets, inside & (index >= 0)[:, None], 0.0)
    return z


@triton.jit
def fused_embed_layer_norm(
    ids_1,
    ids_2,
    ids_3,
    ids_4,
    ids_5,
    ids_6,
    ids_7,
    ids_8,
    table_1,
    table_2,
    table_3,
    table_4,
    table_5,
    table_6,
    table_7,
    table_8,
    size_1,
    size_2,
    size_3,
    size_4,
    size_5,
    size_6,
    size_7,
    size_8,
    gamma,
    beta,
    output,
    total,
    rows,
    width,
    positions,
    epsilon,
    norm,
    count,
    id_kinds,
    table_kinds,
    single_batch,
    single_position,
    gamma_kind,
    beta_kind,
    has_total,
    ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    ids = (ids_1, ids_2, ids_3, ids_4, ids_5, ids_6, ids_7, ids_8)
    tables = (table_1, table_2, table_3, table_4, table_5, table_6, table_7, table_8)
    sizes = (size_1, size_2, size_3, size_4, size_5, size_6, size_7, size_8)
    flags = (id_kinds, table_kinds, single_batch, single_position)
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    present = row < rows

    mean = tl.zeros([ROWS], tl.float32)
    square = tl.zeros([ROWS], tl.float32)
    for first in range(0, width, BLOCK):
        columns = first + tl.arange(0, BLOCK)
        inside = present[:, None] & (columns < width)[None, :]
        z = gathered(ids, tables, sizes, flags, count, row, positions, present, width, columns)
        mean, square = merged(mean, square, z, inside, first, tl.minimum(width - first, BLOCK), norm)
    scale = tl.where(norm == NO_NORM, 1.0, 1.0 / tl.sqrt(square / width + epsilon))

    for first in range(0, width, BLOCK):
        columns = first + tl.arange(0, BLOCK)
        inside = present[:, None] & (columns < width)[None, :]
        offsets = row[:, None] * width + columns[None, :]
        z = gathered(ids, tables, sizes, flags, count, row, positions, present, width, columns)
        if has_total:
            store(total, offsets, z, inside)
        y = affine(z, mean, scale, gamma, gamma_kind, beta, beta_kind, columns, columns < width)
        store(output, offsets, y, inside)


@triton.jit
def found(ids, size, is_wide, place, row, rows):
    """Which row of a table, [ROWS] int64; one that exists beyond `rows`."""
    short = row < tl.where(is_wide == 0, rows, 0)
    long = row < tl.where(is_wide == 0, 0, rows)
    index = tl.load(ids.to(tl.pointer_type(tl.int64), bitcast=True) + place, mask=long, other=0)
    index += tl.load(ids + place, mask=short, other=0)
    index = tl.where(index < 0, index + size, index)
    return tl.minimum(tl.maximum(index, 0), size - 1)


@triton.jit
def ahead(z, slots, count, flags, row, rows, positions, width, columns, FIRST: tl.constexpr, LAST: tl.constexpr):
    """z and the rows of the tables from FIRST to LAST, of which all are loaded before one is used; z and columns are tuples of
    parts of a row."""
    ids, tables, sizes = slots
    id_kinds, single_batch, single_position = flags
    indices = ()
    for slot in tl.static_range(FIRST, LAST):
        one_batch = ((single_batch >> slot) & 1) == 1
        one_position = ((single_position >> slot) & 1) == 1
        place = tl.where(one_batch, 0, row // positions * tl.where(one_position, 1, positions))
        place += tl.where(one_position, 0, row % positions)
        asked = tl.where(count > slot, rows, 0)
        indices += (found(ids[slot], sizes[slot], (id_kinds >> slot) & 1, place, row, asked),)
    read = ()
    for slot in tl.static_range(FIRST, LAST):
        index = indices[slot - FIRST]
        there = ((row < tl.where(count > slot, rows, 0)) & (index >= 0))[:, None]
        for part in tl.static_range(len(columns)):
            offsets = index[:, None] * width + columns[part][None, :]
            mask = there & (columns[part] < width)[None, :]
            read += (tl.load(tables[slot] + offsets, mask=mask, other=0.0),)
    total = ()
    for part in tl.static_range(len(columns)):
        summed = z[part]
        for slot in tl.static_range(0, LAST - FIRST):
            summed += read[slot * len(columns) + part].to(tl.float32)
        total += (summed,)
    return total


@triton.jit
def embed_rows(
    ids_1,
    ids_2,
    ids_3,
    ids_4,
    ids_5,
    ids_6,
    ids_7,
    ids_8,
    table_1,
    table_2,
    table_3,
    table_4,
    table_5,
    table_6,
    table_7,
    table_8,
    size_1,
    size_2,
    size_3,
    size_4,
    size_5,
    size_6,
    size_7,
    size_8,
    gamma,
    beta,
    output,
    total,
    rows,
    width,
    positions,
    epsilon,
    norm,
    count,
    id_kinds,
    table_kinds,
    single_batch,
    single_position,
    gamma_kind,
    beta_kind,
    has_total,
    ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
    PARTS: tl.constexpr,
    STEP: tl.constexpr,
):
    """As `fused_embed_layer_norm`, for tables of type T whose width is a multiple of STEP and at most PARTS BLOCK."""
    width = width // STEP * STEP  # as the compiler then knows
    ids = (ids_1, ids_2, ids_3, ids_4, ids_5, ids_6, ids_7, ids_8)
    tables = (table_1, table_2, table_3, table_4, table_5, table_6, table_7, table_8)
    sizes = (size_1, size_2, size_3, size_4, size_5, size_6, size_7, size_8)
    slots = (ids, tables, sizes)
    flags = (id_kinds, single_batch, single_position)
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    present = row < rows
    columns = ()
    z = ()
    for part in tl.static_range(PARTS):
        columns += (part * BLOCK + tl.arange(0, BLOCK),)
        z += (tl.zeros([ROWS, BLOCK], tl.float32),)
    z = ahead(z, slots, count, flags, row, rows, positions, width, columns, 0, AHEAD)
    if count > AHEAD:
        z = ahead(z, slots, count, flags, row, rows, positions, width, columns, AHEAD, 2 * AHEAD)
    if count > 2 * AHEAD:
        z = ahead(z, slots, count, flags, row, rows, positions, width, columns, 2 * AHEAD, SLOTS)
    mean = tl.zeros([ROWS], tl.float32)
    for part in tl.static_range(PARTS):
        mean += tl.sum(z[part], 1)
    mean = tl.where(norm == LAYER, mean / width, 0.0)
    square = tl.zeros([ROWS], tl.float32)
    for part in tl.static_range(PARTS):
        centred = tl.where((columns[part] < width)[None, :], z[part] - mean[:, None], 0.0)
        square += tl.sum(centred * centred, 1)
    scale = tl.where(norm == NO_NORM, 1.0, 1.0 / tl.sqrt(square / width + epsilon))
    for part in tl.static_range(PARTS):
        across = columns[part] < width
        factor = load_factor(gamma, gamma_kind, columns[part], width)
        shift = load_either(beta, beta_kind, columns[part], width)
        offsets = row[:, None] * width + columns[part][None, :]
        inside = present[:, None] & across[None, :]
        if has_total:
            store(total, offsets, z[part], inside)
        y = (z[part] - mean[:, None]) * scale[:, None] * factor[None, :] + shift[None, :]
        store(output, offsets, y, inside)


_TYPES = table(
    ("*i32", " ".join(f"ids_{slot}" for slot in range(1, 9))),
    ("*T", " ".join(f"table_{slot}" for slot in range(1, 9))),
    ("i64", " ".join(f"size_{slot}" for slot in range(1, 9))),
    ("*T", "gamma beta output total"),
    ("i64", "rows"),
    ("fp32", "epsilon"),
)


VECTORS = 4
"""Loads of 16 bytes of a thread of `embed_rows` for each table, at most."""
PARTS_OF = {64: 1, 128: 1, 256: 1, 384: 3, 512: 1, 768: 3, 1024: 1, 4096: 1}
"""Columns that `embed_rows` holds -> parts, each of a power of 2 columns."""


def pick(element: str, width: int, *, plain: bool = True) -> Variant:
    """The variant for tables of `width` columns, which may be any.

    Rows of up to 4096 columns that begin at multiples of 16 bytes, of tables of type T (`plain`), are held by the smallest of
    `PARTS_OF` that they fit in; `.any` takes the rest.
    """
    step = VECTOR[element]
    held = next((held for held in PARTS_OF if width <= held), None)
    if width % step or held is None or not plain:
        name, constants = f"fused_embed_layer_norm.{element}.any", {"ROWS": 4, "BLOCK": 256}
        return variant(name, fused_embed_layer_norm, element, _TYPES, constants, aligned=False)
    warps = 8 if held == 4096 else 4
    rows = 1 << max(0, 32 * warps * VECTORS * step // held).bit_length() - 1
    constants = {"ROWS": max(1, rows), "BLOCK": held // PARTS_OF[held], "PARTS": PARTS_OF[held], "STEP": step}
    return variant(f"fused_embed_layer_norm.{element}.{held}", embed_rows, element, _TYPES, constants, num_warps=warps)


def variants() -> Iterator[Variant]:
    return (pick(element, width) for element in TYPES for width in (*PARTS_OF, 1))


def launch(
    pairs: Sequence[tuple[Any, Any]],
    gamma: Any = None,
    beta: Any = None,
    *,
    norm: str,
    epsilon: float,
    embedding_sum: bool = False,
    like: Any = None,
) -> tuple[Any, Any]:
    """(output, embedding_sum or None), [B, S, H], of the type of `like`, which is the first table unless it is given.

    pairs: up to 8 of (ids, table). ids [1|B, 1|S] are int32 or int64; table [V, H] is T or float32, as are gamma and beta [H].
    More tables are refused.

    Arguments: ids of 8 slots, tables of 8 slots, sizes V of 8 slots (int64); unused slots repeat the first. gamma, beta, output,
    total (the first table in place of what is absent), rows = B S (int64), width = H, positions = S, epsilon, norm, count of
    tables, then a bit for each slot: ids are int64, table is float32 where T is not, ids have one row where B is not 1, ids have
    one column where S is not 1; kinds of gamma and beta, has_total. Grid: ceil(rows / ROWS).
    """
    first_table = pairs[0][1]
    like = first_table if like is None else like
    batch, positions = (next((ids.shape[axis] for ids, _ in pairs if ids.shape[axis] != 1), 1) for axis in (0, 1))
    width = first_table.shape[1]
    output = like.new_empty((batch, positions, width))
    total = output.new_empty(output.shape) if embedding_sum else None
    filled = [*pairs, *[pairs[0]] * (SLOTS.value - len(pairs))]
    chosen = pick(element_of(output), width, plain=all(table.dtype == output.dtype for _, table in pairs))
    flags = [
        [integers_of(ids) == 2 for ids, _ in pairs],
        [kind_of(table, output) == 2 for _, table in pairs],
        [ids.shape[0] == 1 for ids, _ in pairs],
        [ids.shape[1] == 1 for ids, _ in pairs],
    ]
    rows = batch * positions if width else 0
    start(
        chosen,
        triton.cdiv(rows, chosen.constants["ROWS"]),
        *(ids for ids, _ in filled),
        *(table for _, table in filled),
        *(table.shape[0] for _, table in filled),
        *(first_table if tensor is None else tensor for tensor in (gamma, beta)),
        output,
        first_table if total is None else total,
        rows,
        width,
        positions,
        epsilon,
        NORMS[norm],
        len(pairs),
        *(sum(bit << slot for slot, bit in enumerate(bits)) for bits in flags),
        kind_of(gamma, output),
        kind_of(beta, output),
        int(total is not None),
    )
    return output, total
