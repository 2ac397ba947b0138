"""SequenceRecommendationInteraction: a user against a sequence of items, in two kernels.

One goes once over the items of a sample and makes scores, short_term and long_term:

    scores = mask * time_weight * <user, item>
    short_term = sum over the last `short_window` kept items of time_weight * (1 + 0.1 * rank) * item
    long_term = sum over kept items of time_weight * (0.5 + 0.5 * exp(-0.1 * (last - s))) * item

The other makes tiles of cooccurrence_ij = mask_i mask_j exp(-decay (j - i)) <item_i, item_j> for i < j, and zeros elsewhere.
Items that the mask leaves out are not read.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from typing import Any

import triton
import triton.language as tl

from onnx_fuse.plugin_csrc.kernels.common import (
    ABSENT,
    VECTOR,
    dot,
    element_of,
    kind_of,
    load,
    load_mask,
    load_optional,
    start,
    store,
    table,
    variant,
)
from onnx_fuse.plugin_csrc.kernels.manifest import TYPES, Variant

AT_ONCE = tl.constexpr(1024)
"""Numbers of a mask that are read before one is used."""


@triton.jit
def interests(
    items,
    user,
    time_weights,
    mask,
    scores,
    short_term,
    long_term,
    length,
    size,
    short_window,
    normalize,
    weights_kind,
    mask_kind,
    has_scores,
    has_short,
    has_long,
    ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    chunks = tl.cdiv(size, BLOCK)
    chunk = tl.program_id(0) % chunks
    batch = (tl.program_id(0) // chunks).to(tl.int64)
    columns = chunk * BLOCK + tl.arange(0, BLOCK)
    inside = columns < size
    person = tl.load(user + batch * size + columns, mask=columns < tl.where(has_scores != 0, size, 0), other=0.0)

    kept = tl.zeros([], tl.int32) + length
    last = kept - 1
    if mask_kind != ABSENT:
        kept = tl.zeros([], tl.int32)
        last = kept - 1
        for first in range(0, length, AT_ONCE):
            position = first + tl.arange(0, AT_ONCE)
            keep = load_mask(mask, mask_kind, batch * length + position, position < length) != 0.0
            kept += tl.sum(keep.to(tl.int32), 0)
            last = tl.maximum(last, tl.max(tl.where(keep, position, -1), 0))
    recent = tl.minimum(kept, short_window)

    before = tl.zeros([], tl.int32)
    short_sum = tl.zeros([BLOCK], tl.float32)
    short_weight = tl.zeros([], tl.float32)
    long_sum = tl.zeros([BLOCK], tl.float32)
    long_weight = tl.zeros([], tl.float32)
    for first in range(0, length, ROWS):
        position = first + tl.arange(0, ROWS)
        valid = position < length
        place = batch * length + position
        keep = load_mask(mask, mask_kind, place, valid) != 0.0
        rows = items + place[:, None] * size
        item = tl.load(rows + columns[None, :], mask=keep[:, None] & inside[None, :], other=0.0)
        weight = tl.where(keep, load_optional(time_weights, weights_kind, place, keep, 1.0), 0.0)

        later = kept - position
        if mask_kind != ABSENT:
            later = kept - before - tl.cumsum(keep.to(tl.int32), 0) + 1  # kept items from this one on
            before += tl.sum(keep.to(tl.int32), 0)
        short = tl.where(later <= recent, weight * (1.0 + 0.1 * (recent - later)), 0.0)
        long = weight * (0.5 + 0.5 * tl.exp(-0.1 * tl.maximum(last - position, 0).to(tl.float32)))
        item = item.to(tl.float32)
        short_sum += tl.sum(short[:, None] * item, 0)
        long_sum += tl.sum(long[:, None] * item, 0)
        if normalize:
            short_weight += tl.sum(short, 0)
            long_weight += tl.sum(long, 0)
        if (has_scores != 0) & (chunk == 0):
            product = tl.sum(item * person.to(tl.float32)[None, :], 1)
            for start_of_chunk in range(BLOCK, size, BLOCK):
                others = start_of_chunk + tl.arange(0, BLOCK)
                item = load(rows, others[None, :], keep[:, None] & (others < size)[None, :])
                product += tl.sum(item * load(user, batch * size + others, others < size)[None, :], 1)
            store(scores, place, product * weight, valid)

    if has_short:
        by = tl.where(short_weight != 0.0, short_weight, 1.0)
        store(short_term, batch * size + columns, short_sum / by, inside)
    if has_long:
        by = tl.where(long_weight != 0.0, long_weight, 1.0)
        store(long_term, batch * size + columns, long_sum / by, inside)


@triton.jit
def sequence_interests(
    items,
    user,
    time_weights,
    mask,
    scores,
    short_term,
    long_term,
    length,
    size,
    short_window,
    normalize,
    weights_kind,
    mask_kind,
    has_scores,
    has_short,
    has_long,
    ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
    STEP: tl.constexpr,
):
    if size % STEP == 0:  # which the compiler then knows, so that rows are read in vectors
        interests(
            items,
            user,
            time_weights,
            mask,
            scores,
            short_term,
            long_term,
            length,
            size // STEP * STEP,
            short_window,
            normalize,
            weights_kind,
            mask_kind,
            has_scores,
            has_short,
            has_long,
            ROWS,
            BLOCK,
        )
    else:
        interests(
            items,
            user,
            time_weights,
            mask,
            scores,
            short_term,
            long_term,
            length,
            size,
            short_window,
            normalize,
            weights_kind,
            mask_kind,
            has_scores,
            has_short,
            has_long,
            ROWS // 8,
            BLOCK,
        )


@triton.jit
def products(left, right, keep_i, keep_j, size, ROWS: tl.constexpr, BLOCK: tl.constexpr):
    """<item_i, item_j> of a tile."""
    z = tl.zeros([ROWS, ROWS], tl.float32)
    rows = (tl.arange(0, ROWS) * size)[:, None]
    for first in range(0, size, BLOCK):
        columns = first + tl.arange(0, BLOCK)
        inside = (columns < size)[None, :]
        a = tl.load(left + rows + columns[None, :], mask=keep_i[:, None] & inside, other=0.0)
        b = tl.load(right + rows + columns[None, :], mask=keep_j[:, None] & inside, other=0.0)
        z = dot(a, tl.trans(b), z)
    return z


@triton.jit
def sequence_cooccurrence(
    items,
    mask,
    output,
    length,
    size,
    decay,
    mask_kind,
    ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
    STEP: tl.constexpr,
):
    size = size // STEP * STEP  # as the compiler then knows
    tiles = tl.cdiv(length, ROWS)
    first = tl.program_id(0) % tiles * ROWS
    second = tl.program_id(0) // tiles % tiles * ROWS
    sample = (tl.program_id(0) // tiles // tiles).to(tl.int64) * length
    step = tl.arange(0, ROWS)
    present_i = step < length - first
    present_j = step < length - second
    z = tl.zeros([ROWS, ROWS], tl.float32)
    if first <= second:
        keep_i = load_mask(mask, mask_kind, sample + first + step, present_i) != 0.0
        keep_j = load_mask(mask, mask_kind, sample + second + step, present_j) != 0.0
        left, right = items + (sample + first) * size, items + (sample + second) * size
        z = products(left, right, keep_i, keep_j, size, ROWS, BLOCK)
        distance = second - first + step[None, :] - step[:, None]
        z = tl.where(distance > 0, z * tl.exp(-decay * distance.to(tl.float32)), 0.0)
    inside = present_i[:, None] & present_j[None, :]
    if length % STEP == 0:  # rows are written in vectors
        known = length // STEP * STEP
        inside = present_i[:, None] & (step < known - second)[None, :]
        store(
            output + ((sample + first) * known + second) // STEP * STEP,
            step[:, None] * known + step[None, :],
            z,
            inside,
        )
    else:
        store(output + (sample + first) * length + second, step[:, None] * length + step[None, :], z, inside)


_NAME = "sequence_recommendation_interaction"
_INTEREST_TYPES = table(("*T", "items user time_weights mask scores short_term long_term"))
_PRODUCT_TYPES = table(("*T", "items mask output"), ("fp32", "decay"))


def pick(element: str, what: str, size: int = 16) -> Variant:
    """The variant for "interests" (all outputs but one) or "cooccurrence" of items of `size`; every shape is accepted.

    `.any`, of the latter, is for rows that begin at no multiples of 16 bytes.
    """
    name, step = f"{_NAME}.{what}.{element}", VECTOR[element]
    if what == "interests":
        constants = {"ROWS": 32 * step, "BLOCK": 64, "STEP": step}
        return variant(name, sequence_interests, element, _INTEREST_TYPES, constants, num_warps=8)
    odd = size % step != 0
    constants = {"ROWS": 8 * step, "BLOCK": 16 if odd else 8 * step, "STEP": 1 if odd else step}
    name += ".any" if odd else ""
    return variant(name, sequence_cooccurrence, element, _PRODUCT_TYPES, constants, aligned=not odd)


def variants() -> Iterator[Variant]:
    for element in TYPES:
        yield pick(element, "interests")
        yield from (pick(element, "cooccurrence", size) for size in (16, 1))


def launch(
    items: Any,
    user: Any = None,
    time_weights: Any = None,
    mask: Any = None,
    *,
    outputs: Collection[str],
    short_window: int = 0,
    decay: float = 0.0,
    normalize: bool = False,
) -> dict[str, Any]:
    """The wanted ones of scores [B, S], short_term [B, D], long_term [B, D], cooccurrence [B, S, S], of the type T of items
    [B, S, D] and user [B, D] (which only scores need).

    time_weights [B, S] is T or float32, mask [B, S] bool or T.

    "interests", where any of the first three is wanted; arguments: items, user, time_weights, mask, scores, short_term, long_term
    (items in place of what is absent), length = S, size = D, short_window, normalize, kinds of time_weights and mask, has_scores,
    has_short, has_long. Grid: B ceil(D / BLOCK); where D is 0 nothing is launched and scores are cleared.
    "cooccurrence"; arguments: items, mask, output, length = S, size = D, decay, kind of mask. Grid: B ceil(S / ROWS)^2.
    """
    batch, length, size = items.shape
    shapes = {
        "scores": (batch, length),
        "short_term": (batch, size),
        "long_term": (batch, size),
        "cooccurrence": (batch, length, length),
    }
    made = {name: items.new_empty(shape) for name, shape in shapes.items() if name in outputs}

    def pointers(*tensors: Any) -> list[Any]:
        return [items if tensor is None else tensor for tensor in tensors]

    first_three = [made.get(name) for name in ("scores", "short_term", "long_term")]
    if any(tensor is not None for tensor in first_three):
        chosen = pick(element_of(items), "interests")
        start(
            chosen,
            batch * triton.cdiv(size, chosen.constants["BLOCK"]),
            items,
            *pointers(user, time_weights, mask, *first_three),
            *(length, size, short_window, int(normalize), kind_of(time_weights, items), kind_of(mask, items)),
            *(int(tensor is not None) for tensor in first_three),
        )
    if "cooccurrence" in made:
        chosen = pick(element_of(items), "cooccurrence", size)
        start(
            chosen,
            batch * triton.cdiv(length, chosen.constants["ROWS"]) ** 2,
            *(items, *pointers(mask), made["cooccurrence"], length, size, decay, kind_of(mask, items)),
        )
    return made
