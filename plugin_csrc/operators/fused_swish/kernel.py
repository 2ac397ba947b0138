"""FusedSwish: y = x * sigmoid(beta x), element by element."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import triton
import triton.language as tl

from onnx_fuse.plugin_csrc.kernels.common import element_of, load, start, store, table, variant
from onnx_fuse.plugin_csrc.kernels.manifest import TYPES, Variant

BLOCK = 2048


@triton.jit
def fused_swish(x, y, count, beta, BLOCK: tl.constexpr):
    first = tl.program_id(0).to(tl.int64) * BLOCK
    offsets = first + tl.arange(0, BLOCK)
    if first + BLOCK <= count:  # without a mask, so that any count is read in whole vectors
        value = tl.load(x + offsets).to(tl.float32)
        store(y, offsets, value * tl.sigmoid(beta * value), None)
    else:
        value = load(x, offsets, offsets < count)
        store(y, offsets, value * tl.sigmoid(beta * value), offsets < count)


def pick(element: str) -> Variant:
    """The variant for a type; every shape is accepted."""
    types = table(("*T", "x y"), ("i64", "count"), ("fp32", "beta"))
    return variant(f"fused_swish.{element}", fused_swish, element, types, {"BLOCK": BLOCK})


def variants() -> Iterator[Variant]:
    return map(pick, TYPES)


def launch(x: Any, beta: float) -> Any:
    """y = x * sigmoid(beta x).

    Arguments: x, y, count (int64, elements of x), beta. Grid: ceil(count / BLOCK).
    """
    y = x.new_empty(x.shape)
    chosen = pick(element_of(x))
    start(chosen, triton.cdiv(x.numel(), BLOCK), x, y, x.numel(), beta)
    return y
