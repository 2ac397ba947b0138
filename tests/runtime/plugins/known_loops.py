"""Kernels whose loops are known, for the reader of machine code to find."""

from __future__ import annotations

import triton
import triton.language as tl

from onnx_fuse.plugin_csrc.kernels.manifest import Variant

SIDE = 64


@triton.jit
def copied(x, y, BLOCK: tl.constexpr):
    place = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    tl.store(y + place, tl.load(x + place))


@triton.jit
def multiplied(x, y, steps, flag, SIDE: tl.constexpr):
    """A loop of one product, in which exp2 of every element is taken where the flag is set."""
    place = tl.arange(0, SIDE)[:, None] * SIDE + tl.arange(0, SIDE)[None, :]
    total = tl.zeros([SIDE, SIDE], tl.float32)
    for step in tl.range(0, steps, num_stages=1):
        part = tl.load(x + step * SIDE * SIDE + place)
        total = tl.dot(part, tl.trans(part), total)
        if flag > step:
            total = tl.math.exp2(total)
    tl.store(y + place, total.to(y.dtype.element_ty))


@triton.jit
def nested(x, y, tiles, steps, SIDE: tl.constexpr):
    """The products of `multiplied` in the inner of two loops."""
    place = tl.arange(0, SIDE)[:, None] * SIDE + tl.arange(0, SIDE)[None, :]
    for tile in range(tiles):
        total = tl.zeros([SIDE, SIDE], tl.float32)
        for step in tl.range(0, steps, num_stages=1):
            part = tl.load(x + (tile * steps + step) * SIDE * SIDE + place)
            total = tl.dot(part, tl.trans(part), total)
        tl.store(y + tile * SIDE * SIDE + place, total.to(y.dtype.element_ty))


@triton.jit
def divided(x, y, count, divisor, BLOCK: tl.constexpr):
    """64-bit division, which is a function of its own in the machine code."""
    place = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    tl.store(y + place // divisor, tl.load(x + place), mask=place < count)


def variants() -> list[Variant]:
    pointers = {"x": "*fp16", "y": "*fp16"}
    side = {"SIDE": SIDE}
    return [
        Variant("copied", copied, pointers, {"BLOCK": 2048}),
        Variant("multiplied", multiplied, {**pointers, "steps": "i32", "flag": "i32"}, side),
        Variant("nested", nested, {**pointers, "tiles": "i32", "steps": "i32"}, side),
        Variant("divided", divided, {**pointers, "count": "i64", "divisor": "i64"}, {"BLOCK": 128}),
    ]
