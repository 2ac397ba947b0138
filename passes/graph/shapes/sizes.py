"""Operators between shapes and values: Shape and Size read a shape, ConstantOfShape and Range make a tensor of a given size."""

from __future__ import annotations

from onnx import TensorProto, numpy_helper

from onnx_fuse.passes.graph import dims as d
from onnx_fuse.passes.graph.node import Node
from onnx_fuse.passes.graph.shapes.inference import CONTENT_LIMIT, Content, Inference, Info, Rule, whole_numbers


def _shape(inference: Inference, node: Node) -> Info:
    shape = inference.shape(node.inputs[0])
    if shape is None:
        return Info(TensorProto.INT64)
    start, end = inference.attribute(node, "start") or 0, inference.attribute(node, "end")
    content: Content = shape[slice(start, end)]
    return Info(TensorProto.INT64, (len(content),), content)


def _size(inference: Inference, node: Node) -> Info:
    shape = inference.shape(node.inputs[0])
    return Info(TensorProto.INT64, (), None if shape is None else (d.product(shape),))


def _constant_of_shape(inference: Inference, node: Node) -> Info:
    target = inference.content(node.inputs[0])
    tensor = inference.attribute(node, "value")
    dtype = tensor.data_type if isinstance(tensor, TensorProto) else TensorProto.FLOAT
    if target is None:
        return Info(dtype)
    shape = inference.named(node, list(target)) or ()
    content: Content | None = None
    if len(shape) <= 1 and dtype in (TensorProto.INT64, TensorProto.INT32):
        size = shape[0] if shape else 1
        if isinstance(size, int) and size <= CONTENT_LIMIT:
            content = (int(numpy_helper.to_array(tensor).reshape(-1)[0]),) * size
    return Info(dtype, shape, content)


def _range(inference: Inference, node: Node) -> Info:
    info = inference.info(node.inputs[0])
    start, limit, delta = (whole_numbers(inference, item) for item in node.inputs)
    if start is not None and limit is not None and delta == (1,) and None not in (*start, *limit):
        size = d.subtract(limit[0] or 0, start[0] or 0)
        return Info(info.dtype, (max(size, 0) if isinstance(size, int) else size,))
    return Info(info.dtype, (inference.fresh(node, 0),))


RULES: dict[str, Rule] = {
    "Shape": _shape,
    "Size": _size,
    "ConstantOfShape": _constant_of_shape,
    "Range": _range,
}
