"""A rule on GroupNorm with a group for each row: it is LayerNorm of the rows, then a scale and a shift for each channel."""

from __future__ import annotations

import numpy as np

from onnx_fuse.passes.graph.node import Node
from onnx_fuse.passes.view.view import View


def group_norm_of_rows(view: View, node: Node) -> bool:
    """GroupNormalization of [R, G, D], or of [R, G*D], in G groups is LayerNorm of D numbers, scaled and shifted by channel.

    InstanceNormalization, which exporters write GroupNorm with, has as many groups as channels.
    """
    value, vectors = node.inputs[0], node.inputs[1:]
    shape = view.shape(value)
    if shape is None or len(shape) not in (2, 3) or any(view.shape(vector) != (shape[1],) for vector in vectors):
        return False
    channels = shape[1]
    groups = channels if node.op_type == "InstanceNormalization" else view.attribute(node, "num_groups")
    if not isinstance(channels, int) or not isinstance(groups, int) or channels % groups:
        return False
    if (len(shape) == 3 and groups != channels) or (len(shape) == 2 and groups == channels):
        return False

    def ints(*numbers: int) -> str:
        return view.array(np.array(numbers, dtype=np.int64), node.outputs[0])

    if len(shape) == 2:
        value = view.add("Reshape", [value, ints(0, groups, channels // groups)], like=node, covers=[node])
    attributes = {"axis": -1, "epsilon": view.attribute(node, "epsilon")}
    value = view.add("LayerNormalization", [value], attributes, like=node, covers=[node])
    if len(shape) == 2:
        value = view.add("Reshape", [value, ints(0, channels)], like=node, covers=[node])
    for op_type, vector, neutral in zip(("Mul", "Add"), vectors, (1.0, 0.0), strict=True):
        if not _is_all(view, vector, neutral):
            column = vector if len(shape) == 2 else view.add("Unsqueeze", [vector, ints(1)], like=node, covers=[node])
            value = view.add(op_type, [value, column], like=node, covers=[node])
    made = view.producer(value)
    if made is not None:
        view.adopt(node.outputs[0], made)
    return made is not None


def _is_all(view: View, vector: str, number: float) -> bool:
    array = view.constant(vector)
    return array is not None and bool(np.all(np.asarray(array, dtype=np.float32) == number))
