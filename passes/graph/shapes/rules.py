"""The rules of all families of operators."""

from __future__ import annotations

from collections.abc import Mapping

from onnx_fuse.passes.graph.shapes import (
    contrib,
    elementwise,
    gather_slice,
    layout,
    products,
    quantized,
    reductions,
    sizes,
)
from onnx_fuse.passes.graph.shapes.inference import Rule

RULES: Mapping[str, Rule] = {
    **elementwise.RULES,
    **products.RULES,
    **quantized.RULES,
    **layout.RULES,
    **gather_slice.RULES,
    **reductions.RULES,
    **sizes.RULES,
    **contrib.RULES,
}
"""Operator type, with the domain in front unless it is ONNX's -> how to work out its outputs."""
