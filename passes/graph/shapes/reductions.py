"""Operators that reduce axes to one element, or to its place."""

from __future__ import annotations

from onnx import TensorProto

from onnx_fuse.passes.graph import dims as d
from onnx_fuse.passes.graph.node import Node
from onnx_fuse.passes.graph.shapes.inference import Content, Inference, Info, Rule, from_front

_LARGEST_EXACT = 1 << 53


def _reduce(inference: Inference, node: Node) -> Info:
    info = inference.info(node.inputs[0])
    dtype = TensorProto.INT64 if node.op_type.startswith("Arg") else info.dtype
    if info.shape is None:
        return Info(dtype)
    rank = len(info.shape)
    axes = inference.attribute(node, "axis" if node.op_type.startswith("Arg") else "axes")
    if isinstance(axes, int):
        axes = [axes]
    if axes is None or axes == []:
        axes = [] if inference.attribute(node, "noop_with_empty_axes") else list(range(rank))
    if not isinstance(axes, list):
        return Info(dtype)
    places = {from_front(axis, rank) for axis in axes}
    keep = inference.attribute(node, "keepdims")
    content: Content | None = None
    if node.op_type == "ReduceProd" and places and info.content is not None and None not in info.content:
        product = d.product(item for item in info.content if item is not None)
        # ONNX Runtime multiplies whole numbers in double precision.
        content = (product if not isinstance(product, int) or abs(product) <= _LARGEST_EXACT else None,)
    if keep is None or keep:
        return Info(dtype, tuple(1 if axis in places else dim for axis, dim in enumerate(info.shape)), content)
    return Info(dtype, tuple(dim for axis, dim in enumerate(info.shape) if axis not in places), content)


_REDUCTIONS = "ReduceMean ReduceSum ReduceMax ReduceMin ReduceProd ReduceL2 ReduceSumSquare ArgMax ArgMin"

RULES: dict[str, Rule] = dict.fromkeys(_REDUCTIONS.split(), _reduce)
