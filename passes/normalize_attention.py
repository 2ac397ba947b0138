"""ONNX's `Attention` (opset 23) as the products and the Softmax it stands for, so that one pattern serves both."""

from __future__ import annotations

import math

import numpy as np
from onnx import TensorProto, helper

from onnx_fuse.passes.graph import Node
from onnx_fuse.passes.view import View


def decompose_attention(view: View, node: Node) -> bool:
    """Attention on four-dimensional inputs without cache, soft cap or causal flag, of which only Y is used."""
    shapes = [view.shape(value) for value in node.inputs[:3]]
    if any(shape is None or len(shape) != 4 for shape in shapes):
        return False
    if any(node.inputs[4:]) or any(name and name in view.graph.readers for name in node.outputs[1:]):
        return False
    if view.attribute(node, "is_causal") or view.attribute(node, "softcap"):
        return False
    query, key = shapes[0], shapes[1]
    if query is None or key is None or query[1] != key[1] or not isinstance(query[3], int):
        return False
    scale = view.attribute(node, "scale")
    factor = 1.0 / math.sqrt(query[3]) if scale is None else float(scale)
    dtype = view.dtype(node.inputs[0]) or TensorProto.FLOAT
    kind = helper.tensor_dtype_to_np_dtype(dtype)
    name = node.outputs[0]
    key_t = view.add("Transpose", [node.inputs[1]], {"perm": [0, 1, 3, 2]}, like=node, covers=[node])
    scores = view.add("MatMul", [node.inputs[0], key_t], like=node, covers=[node])
    scores = view.add("Mul", [scores, view.array(np.array(factor, dtype=kind), name)], like=node, covers=[node])
    mask = node.inputs[3] if len(node.inputs) > 3 else ""
    if mask and view.dtype(mask) == TensorProto.BOOL:
        lowest = view.array(np.array(-np.inf, dtype=kind), name)
        scores = view.add("Where", [mask, scores, lowest], like=node, covers=[node])
    elif mask:
        scores = view.add("Add", [scores, mask], like=node, covers=[node])
    probabilities = view.add("Softmax", [scores], {"axis": -1}, like=node, covers=[node])
    # ONNX defines the output of a fully masked row as zero, where Softmax gives NaN.
    zero = view.array(np.array(0.0, dtype=kind), name)
    undefined = view.add("IsNaN", [probabilities], like=node, covers=[node])
    probabilities = view.add("Where", [undefined, zero, probabilities], like=node, covers=[node])
    view.replace(name, "MatMul", [probabilities, node.inputs[2]], like=node, covers=[node])
    return True
