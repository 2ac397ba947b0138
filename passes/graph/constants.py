"""Constants of a graph: the tensor that a Constant node holds, and tensors as arrays."""

from __future__ import annotations

import numpy as np
from onnx import TensorProto, helper, numpy_helper

from onnx_fuse.passes.graph import spans
from onnx_fuse.passes.graph.attributes import Reference
from onnx_fuse.passes.graph.node import Node

_CONSTANT_FORMS = {
    "value_float": TensorProto.FLOAT,
    "value_floats": TensorProto.FLOAT,
    "value_int": TensorProto.INT64,
    "value_ints": TensorProto.INT64,
}

CONSTANT_LIMIT = 1 << 20
"""Constants with more elements than this are not decoded unless the caller raises the limit."""


def constant_tensor(node: Node) -> TensorProto | None:
    """The tensor that a Constant node holds; None where it is no tensor of numbers, or a function's attribute."""
    tensor = node.attribute("value")
    if isinstance(tensor, TensorProto):
        return tensor
    for name, kind in _CONSTANT_FORMS.items():
        found = node.attribute(name)
        if found is not None and not isinstance(found, Reference):
            numbers = found if isinstance(found, list) else [found]
            return helper.make_tensor(node.outputs[0], kind, [len(numbers)] if isinstance(found, list) else [], numbers)
    return None


def decode(tensor: TensorProto, limit: int = CONSTANT_LIMIT) -> np.ndarray | None:
    """The tensor as an array; None where it is larger than `limit` elements, lies in external data, or is malformed."""
    if spans.is_external(tensor):
        return None
    size = 1
    for dim in tensor.dims:
        size *= dim
    if size > limit or tensor.data_type == TensorProto.STRING:
        return None
    try:
        return numpy_helper.to_array(spans.filled(tensor))
    except (KeyError, TypeError, ValueError):  # data and dimensions contradict each other
        return None
