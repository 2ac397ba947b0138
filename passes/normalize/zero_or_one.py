"""Numbers that are a mask in disguise: whether a value holds 0 and 1 alone, and the mask of type bool that it stands for."""

from __future__ import annotations

import numpy as np
from onnx import TensorProto, numpy_helper

from onnx_fuse.passes.graph.node import Node
from onnx_fuse.passes.view.folding import FOLDED
from onnx_fuse.passes.view.view import View

_DEPTH = 12
_MOVING = frozenset(
    {"Identity", "Reshape", "Transpose", "Squeeze", "Unsqueeze", "Flatten", "Expand", "Slice", "Gather"}
)
_CLOSED = frozenset({"Mul", "Min", "Max"})
"""Of numbers that are 0 or 1 they make numbers that are 0 or 1."""


def is_zero_or_one(view: View, value: str, depth: int = _DEPTH) -> bool:
    """Whether every element is 0 or 1, whatever the inputs of the graph are."""
    if view.dtype(value) == TensorProto.BOOL:
        return True
    array = view.constant(value)
    if array is not None:
        return bool(np.isin(array.astype(np.float64), (0.0, 1.0)).all())
    node = view.producer(value)
    if node is None or node.domain != "" or not depth:
        return False
    inputs = view.inputs(node)
    if node.op_type == "ConstantOfShape":
        fill = node.attribute("value")
        return fill is None or bool(np.isin(numpy_helper.to_array(fill).astype(np.float64), (0.0, 1.0)).all())
    if node.op_type in _MOVING or node.op_type in ("Cast", "Trilu"):
        return is_zero_or_one(view, inputs[0], depth - 1)
    if node.op_type in _CLOSED:
        return all(is_zero_or_one(view, item, depth - 1) for item in inputs)
    if node.op_type == "Where":
        return all(is_zero_or_one(view, item, depth - 1) for item in inputs[1:])
    return node.op_type == "Sub" and view.scalar(inputs[0]) == 1.0 and is_zero_or_one(view, inputs[1], depth - 1)


def as_mask(view: View, value: str, like: Node) -> str:
    """The mask of type bool that a value of 0 and 1 alone stands for."""
    root, kept = _root(view, value)
    if view.dtype(root) != TensorProto.BOOL:
        root = view.add("Cast", [root], {"to": TensorProto.BOOL}, like=like)
    return root if kept else view.add("Not", [root], like=like)


def are_opposite(view: View, one: str, other: str) -> float | None:
    """The sign s for which `other` is s * (1 - one), where `one` holds 0 and 1 alone; None where it is not."""
    node = view.producer(other)
    if node is not None and node.key == ("", "Sub") and view.scalar(node.inputs[1]) == 1.0:
        # one - 1
        same = is_zero_or_one(view, node.inputs[0]) and are_same(view, one, node.inputs[0])
        return -1.0 if same else None
    root, kept = _root(view, one)
    other_root, other_kept = _root(view, other)
    if kept == other_kept or not _is_equal(view, root, other_root):
        return None
    return 1.0 if is_zero_or_one(view, other) else None


def are_same(view: View, one: str, other: str, *, turned: bool = False) -> bool:
    """Whether two masks, of bool or of numbers that are 0 or 1, are true in the same places (turned: in the others)."""
    (root, kept), (other_root, other_kept) = _root(view, one), _root(view, other)
    return (kept == other_kept) != turned and _is_equal(view, root, other_root)


def _root(view: View, value: str) -> tuple[str, bool]:
    """(x, whether the value is true where x is), where x is what the mask was made of by Cast, Not, 1 - x and x == 0."""
    value, kept = view.resolve(value), True
    for _ in range(_DEPTH):
        node = view.producer(value)
        if node is None or node.domain != "":
            break
        inputs = view.inputs(node)
        if node.op_type == "Cast" and _says_the_same(view, inputs[0], value):
            value = inputs[0]
        elif node.op_type == "Not":
            value, kept = inputs[0], not kept
        elif node.op_type == "Sub" and view.scalar(inputs[0]) == 1.0 and is_zero_or_one(view, inputs[1]):
            value, kept = inputs[1], not kept
        elif node.op_type == "Equal" and view.scalar(inputs[1]) == 0.0 and view.dtype(inputs[0]) != TensorProto.BOOL:
            value, kept = inputs[0], not kept
        elif node.op_type == "Expand":
            value = inputs[0]
        else:
            break
    return value, kept


def _says_the_same(view: View, source: str, value: str) -> bool:
    """Whether a Cast keeps what is 0 and what is not: to bool always does, from 0 and 1 as well."""
    return view.dtype(value) == TensorProto.BOOL or is_zero_or_one(view, source)


def _is_equal(view: View, one: str, other: str, depth: int = _DEPTH) -> bool:
    """Whether two values are computed in the same way of the same values."""
    one, other = view.resolve(one), view.resolve(other)
    if one == other:
        return True
    left, right = view.producer(one), view.producer(other)
    if left is None or right is None:
        arrays = [view.constant(item) for item in (one, other)]
        if arrays[0] is None or arrays[1] is None or arrays[0].dtype != arrays[1].dtype:
            return False
        return bool(np.array_equal(arrays[0], arrays[1]))
    if left.key != right.key or left.domain != "" or not depth or len(left.inputs) != len(right.inputs):
        return False
    if len(left.outputs) > 1 or left.op_type not in FOLDED or _attributes(left) != _attributes(right):
        return False
    return all(
        (a == b if not a or not b else _is_equal(view, a, b, depth - 1))
        for a, b in zip(left.inputs, right.inputs, strict=True)
    )


def _attributes(node: Node) -> dict[str, bytes]:
    return {item.name: item.SerializeToString(deterministic=True) for item in node.proto.attribute}
