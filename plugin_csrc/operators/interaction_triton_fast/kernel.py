"""InteractionTritonFast: the products of all pairs of features, Z = E E^T, one triangle of it written row by row.

Each feature is read once, from where it is: the features are pointer slots of the kernel, so that no Concat builds E. A program
holds several samples at a time and goes from tile to tile of the batch.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import triton
import triton.language as tl

from onnx_fuse.plugin_csrc.kernels.common import dot, element_of, start, store, table, variant
from onnx_fuse.plugin_csrc.kernels.manifest import TYPES, Variant
from onnx_fuse.plugin_csrc.kernels.pruning import pruned

SEPARATE = tl.constexpr(0)
STACKED = tl.constexpr(1)
DENSE_AND_SPARSE = tl.constexpr(2)
"""Form of the input: F tensors [B, D]; E [B, F, D] in the first slot; dense [B, D] and sparse [B, F - 1, D] in the first two."""

SLOTS = 64
"""Features that the kernel takes."""

SAMPLES = {16: 8, 32: 4, 64: 2}
"""Features held at once -> samples of a tile."""


@triton.jit
def rows_of(slots, form, feature, features, size):
    """(address of the first sample, elements from one sample to the next) of each feature."""
    address = slots[0].to(tl.int64) + tl.zeros(feature.shape, tl.int64)
    pointer = slots[0].dtype
    stride = tl.zeros(feature.shape, tl.int64) + size
    if form == SEPARATE:
        for slot in tl.static_range(1, len(slots)):
            address = tl.where(feature == slot, slots[slot].to(tl.int64), address)
    elif form == STACKED:
        address = (slots[0] + feature.to(tl.int64) * size).to(tl.int64)
        stride = stride * features
    else:
        sparse = (slots[1] + (feature.to(tl.int64) - 1) * size).to(tl.int64)
        address = tl.where(feature == 0, address, sparse)
        stride = tl.where(feature == 0, stride, stride * (features - 1))
    return address.to(pointer, bitcast=True), stride


@triton.jit
def place_of(i, j, features, upper, diagonal):
    """(where (i, j) stands in the triangle, row by row; whether it does)."""
    lower_place = i * (i - 1 + 2 * diagonal) // 2 + j
    upper_place = i * features - i * (i + 1 - 2 * diagonal) // 2 + j - i - 1 + diagonal
    inside = tl.where(upper != 0, j + diagonal > i, j < i + diagonal) & (i < features) & (j < features)
    return tl.where(upper != 0, upper_place, lower_place), inside


@triton.jit
def interaction_triton_fast(
    feature_1,
    feature_2,
    feature_3,
    feature_4,
    feature_5,
    feature_6,
    feature_7,
    feature_8,
    feature_9,
    feature_10,
    feature_11,
    feature_12,
    feature_13,
    feature_14,
    feature_15,
    feature_16,
    feature_17,
    feature_18,
    feature_19,
    feature_20,
    feature_21,
    feature_22,
    feature_23,
    feature_24,
    feature_25,
    feature_26,
    feature_27,
    feature_28,
    feature_29,
    feature_30,
    feature_31,
    feature_32,
    feature_33,
    feature_34,
    feature_35,
    feature_36,
    feature_37,
    feature_38,
    feature_39,
    feature_40,
    feature_41,
    feature_42,
    feature_43,
    feature_44,
    feature_45,
    feature_46,
    feature_47,
    feature_48,
    feature_49,
    feature_50,
    feature_51,
    feature_52,
    feature_53,
    feature_54,
    feature_55,
    feature_56,
    feature_57,
    feature_58,
    feature_59,
    feature_60,
    feature_61,
    feature_62,
    feature_63,
    feature_64,
    output,
    batch,
    features,
    size,
    form,
    upper,
    diagonal,
    triangle_at,
    dense_at,
    stride,
    FEATURES: tl.constexpr,
    SAMPLES: tl.constexpr,
    BLOCK: tl.constexpr,
    ALIGNED: tl.constexpr,
):
    # fmt: off
    every = (
        feature_1, feature_2, feature_3, feature_4, feature_5, feature_6, feature_7, feature_8, feature_9,
        feature_10, feature_11, feature_12, feature_13, feature_14, feature_15, feature_16, feature_17, feature_18,
        feature_19, feature_20, feature_21, feature_22, feature_23, feature_24, feature_25, feature_26, feature_27,
        feature_28, feature_29, feature_30, feature_31, feature_32, feature_33, feature_34, feature_35, feature_36,
        feature_37, feature_38, feature_39, feature_40, feature_41, feature_42, feature_43, feature_44, feature_45,
        feature_46, feature_47, feature_48, feature_49, feature_50, feature_51, feature_52, feature_53, feature_54,
        feature_55, feature_56, feature_57, feature_58, feature_59, feature_60, feature_61, feature_62, feature_63,
        feature_64,
    )
    # fmt: on
    feature = tl.arange(0, FEATURES)
    address, step = rows_of(every[:FEATURES], form, feature, features, size)
    place, chosen = place_of(feature[:, None], feature[None, :], features, upper, diagonal)
    block = tl.arange(0, BLOCK)

    for tile in range(tl.program_id(0), tl.cdiv(batch, SAMPLES), tl.num_programs(0)):
        sample = tl.arange(0, SAMPLES).to(tl.int64) + tile * SAMPLES
        pointers = address[None, :] + sample[:, None] * step[None, :]
        pointers = tl.reshape(pointers, [SAMPLES * FEATURES])
        if ALIGNED:  # which the compiler cannot know of pointers that were chosen
            pointers = tl.multiple_of(pointers, 16)
        present = tl.reshape((sample < batch)[:, None] & (feature < features)[None, :], [SAMPLES * FEATURES])
        z = tl.zeros([SAMPLES, FEATURES, FEATURES], tl.float32)
        for first in range(0, size, BLOCK):
            columns = first + block
            mask = present[:, None] & (columns < size)[None, :]
            e = tl.load(pointers[:, None] + columns[None, :], mask=mask, other=0.0)
            e = tl.reshape(e, [SAMPLES, FEATURES, BLOCK])
            z = dot(e, tl.trans(e, (0, 2, 1)), z)
        offsets = (sample * stride)[:, None, None] + triangle_at + place[None, :, :]
        store(output, offsets, z, (sample < batch)[:, None, None] & chosen[None, :, :])
        if dense_at >= 0:
            dense = feature_1 + sample * tl.where(form == STACKED, features, 1) * size
            for first in range(0, size, BLOCK):
                columns = first + block
                mask = (sample < batch)[:, None] & (columns < size)[None, :]
                row = tl.load(dense[:, None] + columns[None, :], mask=mask, other=0.0)
                tl.store(output + (sample * stride)[:, None] + dense_at + columns[None, :], row, mask=mask)


_TYPES = table(("*T", " ".join(f"feature_{slot}" for slot in range(1, SLOTS + 1)) + " output"))


def pick(element: str, features: int, size: int) -> Variant | None:
    """The variant for F features of `size`: `.f16`, `.f32` and `.f64` for at most so many features whose size is a multiple of
    16, `.any` for other sizes and what is `pruned`; None for more than 64 features."""
    if features > SLOTS:
        return None
    held = next(held for held in SAMPLES if features <= held)
    odd = size % 16 != 0 or pruned(f"interaction_triton_fast.{element}.f{held}") is not None
    held = SLOTS if odd else held
    constants = {
        "FEATURES": held,
        "SAMPLES": SAMPLES[held],
        "BLOCK": 32 if element == "fp32" else 64,
        "ALIGNED": not odd,
    }
    name = f"interaction_triton_fast.{element}.{'any' if odd else f'f{held}'}"
    return variant(name, interaction_triton_fast, element, _TYPES, constants, () if odd else ("size",), aligned=not odd)


def variants() -> Iterator[Variant]:
    for element in TYPES:
        for features, size in ((16, 16), (32, 16), (64, 16), (64, 1)):
            chosen = pick(element, features, size)
            assert chosen is not None
            yield chosen


def launch(
    inputs: Sequence[Any],
    form: str,
    *,
    triangle: str = "lower",
    self_interaction: bool = False,
    concat_dense: str = "none",
    programs: int = 1056,
) -> Any:
    """out [B, P (+ D)], P = F (F - 1) / 2 (+ F with the diagonal).

    inputs and form: F tensors [B, D] and "separate"; [E [B, F, D]] and "stacked"; [dense [B, D], sparse [B, F - 1, D]] and
    "dense_and_sparse". Refused: F > 64.

    Arguments: 64 slots (unused ones repeat the first), output, batch = B, features = F, size = D, form (0, 1, 2 in the order
    above), upper, diagonal, where in a row the triangle begins, where the dense row begins (-1 for nowhere), elements of a row.
    Grid: min(ceil(B / SAMPLES), programs), where programs is 8 for each multiprocessor; none where a row has no element.
    """
    first = inputs[0]
    batch, size = first.shape[0], first.shape[-1]
    features = {
        "separate": len(inputs),
        "stacked": first.shape[1],
        "dense_and_sparse": 1 + inputs[-1].shape[1],
    }[form]
    pairs = features * (features - 1) // 2 + features * self_interaction
    stride = pairs + size * (concat_dense != "none")
    output = first.new_empty((batch, stride))
    chosen = pick(element_of(first), features, size)
    if chosen is None:
        raise ValueError(f"{features} features: at most {SLOTS} are taken")
    tiles = triton.cdiv(batch, chosen.constants["SAMPLES"]) if stride else 0
    start(
        chosen,
        min(tiles, programs),
        *inputs,
        *[first] * (SLOTS - len(inputs)),
        output,
        batch,
        features,
        size,
        ("separate", "stacked", "dense_and_sparse").index(form),
        int(triangle == "upper"),
        int(self_interaction),
        size if concat_dense == "first" else 0,
        {"none": -1, "first": 0, "last": pairs}[concat_dense],
        stride,
    )
    return output
