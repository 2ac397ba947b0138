"""Attention masks that multiply: what they are made of, and whether a causal mask or lengths are among it.

A mask is bool (true keeps) or a float tensor that the weights are multiplied with.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from onnx import TensorProto, numpy_helper

from onnx_fuse.patterns.language.interface import View
from onnx_fuse.patterns.parts.heads import four_axes

_FLIPS = {"Not": 0, "Sub": 1, "Equal": 0}
_COMPARISONS = {"LessOrEqual": (1, 0), "GreaterOrEqual": (0, 1), "Less": (0, 1), "Greater": (1, 0)}
"""Comparison -> which operands are the row and the column, in a lower triangle or (where strict) in what it leaves out."""


def split_off(
    view: View, masks: Sequence[str], like: Any, is_part: Callable[[View, str], bool]
) -> tuple[list[str], bool]:
    """The masks without those that `is_part` tells, and whether there was one: a mask of its own, or an And with it."""
    rest: list[str] = []
    found = False
    for mask in masks:
        parts = _conjuncts(view, mask, like)
        others = [part for part in parts if not is_part(view, part)]
        found = found or len(others) < len(parts)
        rest += [mask] if len(others) == len(parts) else others
    return rest, found


def lengths_behind(view: View, mask: str) -> str | None:
    """lengths [B], where the mask keeps the positions below them: position < length, with axes of size 1 put in anywhere."""
    node = view.producer(mask)
    while node is not None and node.domain == "" and node.op_type in ("Cast", "Reshape", "Unsqueeze"):
        node = view.producer(node.inputs[0])
    if node is None or node.domain != "" or node.op_type not in ("Less", "Greater"):
        return None
    position, bound = node.inputs if node.op_type == "Less" else reversed(node.inputs)
    whole, limits = view.shape(node.outputs[0]) or (), view.shape(bound) or ()
    places = [place for place in range(1, len(whole)) if _counts(view, position, place - len(whole))]
    if not places or len(limits) != len(whole) or any(dim != 1 for dim in limits[1:]) or limits[0] != whole[0]:
        return None
    maker = view.producer(bound)
    while maker is not None and maker.domain == "" and maker.op_type in ("Cast", "Reshape", "Unsqueeze"):
        bound = view.resolve(maker.inputs[0])
        maker = view.producer(bound)
    counts = view.dtype(bound) in (TensorProto.INT32, TensorProto.INT64)
    return bound if counts and view.shape(bound) == limits[:1] else None


def negated(view: View, mask: str, like: Any) -> str:
    """The bool mask that keeps what this one drops."""
    node = view.producer(mask)
    if node is not None and node.domain == "" and node.op_type == "Not":
        return view.resolve(node.inputs[0])
    return view.add("Not", [mask], like=like)


def conjunction(view: View, masks: Sequence[str], like: Any) -> str | None:
    """One mask of four axes that keeps what all of them keep; None for none."""
    kinds: dict[bool, str] = {}
    for mask in (four_axes(view, item, like) for item in masks):
        is_bool = view.dtype(mask) == TensorProto.BOOL
        so_far = kinds.get(is_bool)
        kinds[is_bool] = mask if so_far is None else view.add("And" if is_bool else "Mul", [so_far, mask], like=like)
    if len(kinds) < 2:
        return next(iter(kinds.values()), None)
    factor = view.add("Cast", [kinds[True]], {"to": view.dtype(kinds[False])}, like=like)
    return view.add("Mul", [kinds[False], factor], like=like)


def is_lower_triangle(view: View, mask: str, *, flipped: bool = False) -> bool:
    """Whether a mask keeps (flipped: drops) the columns up to the row, and no others, for every row of a square."""
    while True:
        shape = view.shape(mask)
        if shape is None or len(shape) < 2 or shape[-1] != shape[-2] or any(dim != 1 for dim in shape[:-2]):
            return False
        array = view.constant(mask)
        if array is not None:
            square = np.asarray(array).reshape(array.shape[-2:])
            wanted = np.tril(np.ones(square.shape, dtype=bool))
            return bool(np.array_equal(square.astype(np.float32), wanted != flipped))
        node = view.producer(mask)
        if node is None or node.domain != "":
            return False
        if node.op_type in ("Cast", "Reshape", "Unsqueeze"):
            mask = node.inputs[0]
        elif node.op_type in _FLIPS:
            place = _FLIPS[node.op_type]
            other = 1.0 if node.op_type == "Sub" else 0.0
            if node.op_type != "Not" and view.scalar(node.inputs[1 - place]) != other:
                return False
            mask, flipped = node.inputs[place], not flipped
        else:
            return _is_written_triangle(view, node, flipped)


def _is_written_triangle(view: View, node: Any, flipped: bool) -> bool:
    """Whether a node makes a lower triangle (flipped: what it leaves out) of ones or of positions."""
    if node.op_type == "Trilu":
        diagonal = view.scalar(node.inputs[1]) if len(node.inputs) > 1 and node.inputs[1] else 0.0
        kind = (view.attribute(node, "upper"), diagonal)
        return kind == ((1, 1.0) if flipped else (0, 0.0)) and _is_ones(view, node.inputs[0])
    if node.op_type in _COMPARISONS and (node.op_type in ("Less", "Greater")) == flipped:
        row, column = (node.inputs[place] for place in _COMPARISONS[node.op_type])
        return _counts(view, row, -2) and _counts(view, column, -1)
    return False


def _conjuncts(view: View, mask: str, like: Any) -> list[str]:
    """Bool masks of which the mask is the And, each once and each to be broadcast to four axes."""
    parts: dict[str, None] = {}
    # A mask, whether its opposite is meant, and whether an axis is put in before its last two where it has three.
    pending, seen = [(view.resolve(mask), False, False)], set()
    while pending:
        value, flipped, widened = item = pending.pop()
        if item in seen:
            continue
        seen.add(item)
        found = _operands(view, value, flipped=flipped)
        if found is not None:
            operands, flips, widens = found
            pending += [(view.resolve(part), flipped != flips, widened or widens) for part in reversed(operands)]
            continue
        part = negated(view, value, like) if flipped else value
        if widened and view.rank(part) == 3:
            axis = view.array(np.array([1], dtype=np.int64), like.outputs[0])
            part = view.add("Unsqueeze", [part, axis], like=like)
        parts[part] = None
    return list(parts)


def _operands(view: View, mask: str, *, flipped: bool) -> tuple[Sequence[str], bool, bool] | None:
    """What a mask (flipped: its opposite) is the And of: masks, whether their opposites are meant, and whether those of three
    axes get one before their last two; None where it is the And of nothing."""
    node = view.producer(mask)
    before, after = (view.shape(item) for item in (node.inputs[0], mask)) if node is not None else (None, None)
    if node is None or node.domain != "" or before is None or after is None:
        return None
    if node.op_type == ("Or" if flipped else "And"):
        return node.inputs, False, False
    if node.op_type == "Not":
        either = view.producer(node.inputs[0])
        opens = flipped or (either is not None and either.domain == "" and either.op_type == "Or")
        return (node.inputs, True, False) if opens else None
    if node.op_type in ("Reshape", "Unsqueeze") and not flipped:
        stripped = after[next((axis for axis, dim in enumerate(after) if dim != 1), len(after)) :]
        if before[len(before) - len(stripped) :] == stripped:
            return node.inputs[:1], False, False
        if len(before) == 3 and after == (before[0], 1, *before[1:]):
            return node.inputs[:1], False, True
    return None


def _is_ones(view: View, value: str) -> bool:
    node = view.producer(value)
    while node is not None and node.domain == "" and node.op_type in ("Expand", "Cast"):
        if view.scalar(node.inputs[0]) == 1.0:
            return True
        node = view.producer(node.inputs[0])
    if node is None or node.domain != "" or node.op_type != "ConstantOfShape":
        return False
    filled = view.attribute(node, "value")
    return filled is not None and bool(np.all(numpy_helper.to_array(filled) == 1))


def _counts(view: View, value: str, axis: int) -> bool:
    """Whether a value is 0, 1, 2, ... along one of its last two axes, and the same along the others."""
    shape = view.shape(value) or ()
    if len(shape) < -axis or any(dim != 1 for place, dim in enumerate(shape) if place != len(shape) + axis):
        return False
    return counts_up(view, value, ("Reshape", "Unsqueeze"))


def counts_up(view: View, value: str, through: Sequence[str]) -> bool:
    """Whether elements are 0, 1, 2, ...: a constant, or a Range that operators of these types only reshape or cast."""
    array = view.constant(value)
    if array is not None:
        return bool(np.array_equal(array.reshape(-1), np.arange(array.size)))
    node = view.producer(value)
    while node is not None and node.domain == "" and node.op_type in through:
        node = view.producer(node.inputs[0])
    if node is None or node.domain != "" or node.op_type != "Range":
        return False
    return view.scalar(node.inputs[0]) == 0.0 and view.scalar(node.inputs[2]) == 1.0
