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
    person = load(user, batch * size + columns, columns < tl.where(has_scores != 0, size, 0))

    kept = tl.zeros([], tl.int32)
    last = tl.zeros([], tl.int32) - 1
    for first in range(0, length, ROWS):
        position = first + tl.arange(0, ROWS)
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
        weight = tl.where(keep, load_optional(time_weights, weights_kind, place, keep, 1.0), 0.0)
        item = load(items, (place * size)[:, None] + columns[None, :], keep[:, None] & inside[None, :])

        later = kept - before - tl.cumsum(keep.to(tl.int32), 0) + 1  # kept items from this one on
        before += tl.sum(keep.to(tl.int32), 0)
        by = tl.where(later <= recent, weight * (1.0 + 0.1 * (recent - later)), 0.0)
        short_sum += tl.sum(by[:, None] * item, 0)
        short_weight += tl.sum(by, 0)
        by = weight * (0.5 + 0.5 * tl.exp(-0.1 * tl.maximum(last - position, 0).to(tl.float32)))
        long_sum += tl.sum(by[:, None] * item, 0)
        long_weight += tl.sum(by, 0)

        if (has_scores != 0) & (chunk == 0):
            product = tl.sum(item * person[None, :], 1)
            for start_of_chunk in range(BLOCK, size, BLOCK):
                others = start_of_chunk + tl.arange(0, BLOCK)
                item = load(items, (place * size)[:, None] + others[None, :], keep[:, None] & (others < size)[None, :])
                product += tl.sum(item * load(user, batch * size + others, others < size)[None, :], 1)
            store(scores, place, product * weight, valid)

    if has_short:
        by = tl.where((normalize != 0) & (short_weight != 0.0), short_weight, 1.0)
        store(short_term, batch * size + columns, short_sum / by, inside)
    if has_long:
        by = tl.where((normalize != 0) & (long_weight != 0.0), long_weight, 1.0)
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
):
    if size % 16 == 0:  # which the compiler then knows, so that rows are read in vectors
        interests(
            items,
            user,
            time_weights,
            mask,
            scores,
            short_term,
            long_term,
            length,
            size // 16 * 16,
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
            ROWS,
            BLOCK,
        )


@triton.jit
def products(items, mask, output, length, size, decay, mask_kind, ROWS: tl.constexpr, BLOCK: tl.constexpr):
    tiles = tl.cdiv(length, ROWS)
    first = tl.program_id(0) % tiles * ROWS
    second = tl.program_id(0) // tiles % tiles * ROWS
    batch = (tl.program_id(0) // tiles // tiles).to(tl.int64)
    i = first + tl.arange(0, ROWS)
    j = second + tl.arange(0, ROWS)
    z = tl.zeros([ROWS, ROWS], tl.float32)
    if first <= second:
        keep_i = load_mask(mask, mask_kind, batch * length + i, i < length) != 0.0
        keep_j = load_mask(mask, mask_kind, batch * length + j, j < length) != 0.0
        left = items + ((batch * length + i) * size)[:, None]
        right = items + ((batch * length + j) * size)[:, None]
        for start_of_block in range(0, size, BLOCK):
            columns = start_of_block + tl.arange(0, BLOCK)
            inside = (columns < size)[None, :]
            a = tl.load(left + columns[None, :], mask=keep_i[:, None] & inside, other=0.0)
            b = tl.load(right + columns[None, :], mask=keep_j[:, None] & inside, other=0.0)
            z = dot(a, tl.trans(b), z)
        distance = j[None, :] - i[:, None]
        z = tl.where(distance > 0, z * tl.exp(-decay * distance.to(tl.float32)), 0.0)
    offsets = ((batch * length + i) * length)[:, None] + j[None, :]
    store(output, offsets, z, (i < length)[:, None] & (j < length)[None, :])


@triton.jit
def sequence_cooccurrence(items, mask, output, length, size, decay, mask_kind, ROWS: tl.constexpr, BLOCK: tl.constexpr):
    if size % 16 == 0:  # which the compiler then knows, so that rows are read in vectors
        products(items, mask, output, length, size // 16 * 16, decay, mask_kind, ROWS, BLOCK)
    else:
        products(items, mask, output, length, size, decay, mask_kind, ROWS, BLOCK)


_NAME = "sequence_recommendation_interaction"
_INTEREST_TYPES = table(("*T", "items user time_weights mask scores short_term long_term"))
_PRODUCT_TYPES = table(("*T", "items mask output"), ("fp32", "decay"))


def pick(element: str, what: str) -> Variant:
    """The variant for "interests" (all outputs but one) or "cooccurrence"; every shape is accepted."""
    name = f"{_NAME}.{what}.{element}"
    if what == "interests":
        return variant(name, sequence_interests, element, _INTEREST_TYPES, {"ROWS": 32, "BLOCK": 128})
    constants = {"ROWS": 32 if element == "fp32" else 64, "BLOCK": 32 if element == "fp32" else 64}
    return variant(name, sequence_cooccurrence, element, _PRODUCT_TYPES, constants)


def variants() -> Iterator[Variant]:
    return (pick(element, what) for element in TYPES for what in ("interests", "cooccurrence"))


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
        chosen = pick(element_of(items), "cooccurrence")
        start(
            chosen,
            batch * triton.cdiv(length, chosen.constants["ROWS"]) ** 2,
            *(items, *pointers(mask), made["cooccurrence"], length, size, decay, kind_of(mask, items)),
        )
    return made
