"""ONNX's `Attention` (opset 23) as the products and the Softmax it stands for, so that one pattern serves both."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
from onnx import TensorProto, helper

from onnx_fuse.passes.graph import dims as d
from onnx_fuse.passes.graph.dims import Dim
from onnx_fuse.passes.graph.node import Node
from onnx_fuse.passes.graph.shapes.inference import Info
from onnx_fuse.passes.normalize.split_heads import weighs_values
from onnx_fuse.passes.view.layout_transform import MOVES, Move, write_move
from onnx_fuse.passes.view.view import View
from onnx_fuse.patterns.language.dsl import VIEW_DOMAIN

_BEFORE_MERGE = frozenset({"Cast", "Identity", "Dropout"})
"""Operators that may stand before the moves by which heads are merged."""


def decompose_attention(view: View, node: Node) -> bool:
    """Attention without cache or soft cap, of which only Y is used."""
    problem = _beyond(view, node)
    if problem is not None:
        view.refusals.append((node, problem))
        return False
    heads = _heads(view, node)
    if heads is None:
        view.refusals.append((node, "the shapes or head counts of its inputs are unknown"))
        return False
    size = heads.size
    if not isinstance(size, int):
        view.refusals.append((node, f"the head size is {size}, it must be known"))
        return False
    query, key, value = _operands(view, node, heads)
    scale = view.attribute(node, "scale")
    kind = helper.tensor_dtype_to_np_dtype(view.dtype(node.inputs[0]) or TensorProto.FLOAT)
    name = node.outputs[0]

    def number(value: float) -> str:
        return view.array(np.array(value, dtype=kind), name)

    key_t = view.add("Transpose", [key], {"perm": [0, 1, 3, 2]}, like=node, covers=[node])
    scores = view.add("MatMul", [query, key_t], like=node, covers=[node])
    factor = 1.0 / math.sqrt(size) if scale is None else float(scale)
    scores = view.add("Mul", [scores, number(factor)], like=node, covers=[node])
    mask = node.inputs[3] if len(node.inputs) > 3 else ""
    if mask and view.dtype(mask) == TensorProto.BOOL:
        scores = view.add("Where", [mask, scores, number(-np.inf)], like=node, covers=[node])
    elif mask:
        scores = view.add("Add", [scores, mask], like=node, covers=[node])
    if view.attribute(node, "is_causal"):
        info = view.info(scores)
        scores = view.add("Causal", [scores], {"causal": "upper_left"}, like=node, covers=[node], domain=VIEW_DOMAIN)
        view.declare(scores, Info(info.dtype, info.shape))
    probabilities = view.add("Softmax", [scores], {"axis": -1}, like=node, covers=[node])
    # ONNX defines the output of a fully masked row as zero, where Softmax gives NaN.
    undefined = view.add("IsNaN", [probabilities], like=node, covers=[node])
    probabilities = view.add("Where", [undefined, number(0.0), probabilities], like=node, covers=[node])
    if view.rank(node.inputs[0]) == 4:
        if not _is_merged(view, name):
            sizes = ", ".join(map(str, view.shape(name) or ()))
            sentence = f"its output {name} [{sizes}] stays in heads: the operator gives [B, S, h*d], by a Transpose and a Reshape"
            view.refusals.append((node, f"{sentence} that merge them, and none follow it"))
        view.replace(name, "MatMul", [probabilities, value], like=node, covers=[node])
        return True
    context = view.add("MatMul", [probabilities, value], like=node, covers=[node])
    context = view.add("Transpose", [context], {"perm": [0, 2, 1, 3]}, like=node, covers=[node])
    merged = view.array(np.array([0, 0, _size(view, value, 3, heads.query)], dtype=np.int64), name)
    view.replace(name, "Reshape", [context, merged], like=node, covers=[node])
    return True


def _is_merged(view: View, value: str) -> bool:
    """Whether a move follows a value."""
    pending = [value]
    while pending:
        for reader in view.graph.readers.get(pending.pop(), ()):
            if reader.domain == "" and reader.op_type in MOVES:
                return True
            if reader.domain == "" and reader.op_type in _BEFORE_MERGE:
                pending.append(reader.outputs[0])
    return False


def _beyond(view: View, node: Node) -> str | None:
    """What of the node no fused operator does; None for nothing."""
    if any(node.inputs[4:]):
        return "it has a key-value cache or padding lengths, which no fused operator has"
    if any(map(view.is_read, node.outputs[1:])):
        return f"its further outputs are read, and {node.outputs[0]} alone can be made"
    if view.attribute(node, "softcap"):
        return "its scores are soft-capped, which no fused operator does"
    return None


class _Heads(NamedTuple):
    """How an Attention's inputs hold heads.

    Attributes:
        query, key: number of heads of the query, and of key and value; whole numbers if they differ.
        repeats: how many heads of the query share one of key and value.
        size: of a head of the query; a text where it is not known to be a whole number.
        side_by_side: whether the heads lie in the last axis, [B, S, h*d], and not in one of their own, [B, h, S, d].
    """

    query: Dim
    key: Dim
    repeats: int
    size: Dim | str
    side_by_side: bool


def _heads(view: View, node: Node) -> _Heads | None:
    """What the shapes say of the heads; None where they, or the head counts, are unknown or do not fit."""
    shapes = [shape for value in node.inputs[:3] if (shape := view.shape(value)) is not None]
    ranks = {len(shape) for shape in shapes}
    if len(shapes) != 3 or ranks not in ({3}, {4}):
        return None
    query, key = shapes[:2]
    if ranks == {3}:
        heads, groups = view.attribute(node, "q_num_heads"), view.attribute(node, "kv_num_heads")
        if not isinstance(heads, int) or not isinstance(groups, int) or not heads or not groups:
            return None
        width = d.divide(query[2], heads)
        size = f"{query[2]}/{heads}" if width is None else width
    else:
        heads, groups, size = query[1], key[1], query[3]
    if heads == groups:
        return _Heads(heads, groups, 1, size, side_by_side=ranks == {3})
    if not isinstance(heads, int) or not isinstance(groups, int) or not heads or not groups or heads % groups:
        return None
    return _Heads(heads, groups, heads // groups, size, side_by_side=ranks == {3})


def _operands(view: View, node: Node, heads: _Heads) -> list[str]:
    """Query, key and value as [B, h, S, d], key and value repeated to the query's heads."""
    operands = list(node.inputs[:3])
    counts = (heads.query, heads.key, heads.key)
    if heads.side_by_side:
        operands = [_split(view, value, count, node) for value, count in zip(operands, counts, strict=True)]
    if heads.repeats > 1:
        operands[1:] = [repeated(view, value, heads.repeats, node) for value in operands[1:]]
    return operands


def _size(view: View, value: str, axis: int, times: Dim) -> int:
    """So many times a size, for the target of a Reshape."""
    shape = view.shape(value)
    total = None if shape is None else d.multiply(shape[axis], times)
    return total if isinstance(total, int) else -1


def _split(view: View, value: str, heads: Dim, node: Node) -> str:
    size = d.divide((view.shape(value) or (0, 0, -1))[2], heads)
    target = view.array(np.array([0, 0, heads, size if isinstance(size, int) else -1], dtype=np.int64), node.outputs[0])
    split = view.add("Reshape", [value, target], like=node, covers=[node])
    return view.add("Transpose", [split], {"perm": [0, 2, 1, 3]}, like=node, covers=[node])


def repeated(view: View, value: str, times: int, node: Node) -> str:
    """[B, hkv, S, d] with each key-value head so many times in a row."""

    def ints(*numbers: Dim) -> str:
        return view.array(np.array(numbers, dtype=np.int64), node.outputs[0])

    five = view.add("Unsqueeze", [value, ints(2)], like=node, covers=[node])
    five = view.add("Expand", [five, ints(1, 1, times, 1, 1)], like=node, covers=[node])
    sizes = dict(enumerate(view.shape(five) or ()))
    move = Move(five, sizes, ((0,), (1,), (2,), (3,), (4,)), ((0,), (1, 2), (3,), (4,)))
    return write_move(view, move, node, covers=[node])


def repeat_one_head(view: View, node: Node) -> bool:
    """MatMul of [B, h, n, k] and one key-value head [B, 1, k, m], which it broadcasts, has that head repeated (multi-query)."""
    left, right = (view.shape(value) for value in node.inputs)
    if left is None or right is None or len(left) != 4 or len(right) != 4 or left[0] != right[0]:
        return False
    heads = left[1]
    if not isinstance(heads, int) or heads < 2 or right[1] != 1 or view.is_constant(node.inputs[1]):
        return False
    # Of a key what it is before it is transposed is repeated: it is that which the operator reads.
    value, key = node.inputs[1], not weighs_values(view, node.outputs[0])
    if key:
        value = view.add("Transpose", [value], {"perm": [0, 1, 3, 2]}, like=node, covers=[node])
    value = repeated(view, value, heads, node)
    if key:
        value = view.add("Transpose", [value], {"perm": [0, 1, 3, 2]}, like=node, covers=[node])
    view.replace(node.outputs[0], "MatMul", [node.inputs[0], value], like=node, covers=[node])
    return True
