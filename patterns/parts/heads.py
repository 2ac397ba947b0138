"""What fusions of multi-head attention ask of the view: heads before they were split, masks before they were expanded."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from onnx import TensorProto

from onnx_fuse.patterns.language.interface import View


def wide(to: int) -> bool | str:
    """The `to` of a Cast to float32."""
    return to == TensorProto.FLOAT or "float32"


def narrow(to: int) -> bool | str:
    """The `to` of a Cast to float16 or bfloat16."""
    return to in (TensorProto.FLOAT16, TensorProto.BFLOAT16) or "float16 or bfloat16"


def producer(view: View, value: str, op_type: str) -> Any:
    """The ONNX node of this type that makes a value, or None."""
    node = view.producer(value)
    return node if node is not None and node.domain == "" and node.op_type == op_type else None


def before_split(view: View, value: str, heads: int, like: Any, *, key: bool = False) -> str | None:
    """x [B, S, h*d] where `value` is x split into heads, [B, h, S, d] (or [B, h, d, S] for a transposed key).

    Tokens that lie on other axes in what was split, as on two or behind an axis of size 1, are put on these two.
    """
    shape = view.shape(value)
    if shape is None or len(shape) != 4:
        return None
    batch, rows, size = shape[0], shape[3 if key else 2], shape[2 if key else 3]
    transpose = producer(view, value, "Transpose")
    perm = None if transpose is None else list(view.attribute(transpose, "perm") or [])
    if transpose is not None and perm == ([0, 2, 3, 1] if key else [0, 2, 1, 3]):
        reshape = producer(view, transpose.inputs[0], "Reshape")
    elif rows == 1 or (heads == 1 and not key):
        reshape = producer(view, value, "Reshape") or producer(view, value, "Unsqueeze")  # there is nothing to turn
    else:
        return None
    before = None if reshape is None else view.shape(reshape.inputs[0])
    if before is None or shape[1] != heads or not isinstance(size, int):
        return None
    if before == (batch, rows, heads * size):
        return view.resolve(reshape.inputs[0])
    if before[-1:] != (heads * size,) and before[-2:] != (heads, size):
        return None
    target = [dim if isinstance(dim, int) else -1 for dim in (batch, rows)]
    if target.count(-1) > 1:
        return None
    return view.add("Reshape", [reshape.inputs[0], view.array(np.array([*target, heads * size]), value)], like=like)


def rows(view: View, value: str, heads: int | None, like: Any, *, key: bool = False) -> str:
    """[B, S, h*d] for heads [B, h, S, d] (or a transposed key): what was split into them, or what they make when merged again.

    Args:
        heads: h; None where there is no axis for it.
    """
    if heads is None:
        return _turned(view, value, [0, 2, 1], like) if key else value
    whole = before_split(view, value, heads, like, key=key)
    if whole is not None:
        return whole
    reshape = producer(view, value, "Reshape")
    if key and reshape is not None and heads == 1 and view.rank(reshape.inputs[0]) == 3:
        return _turned(view, view.resolve(reshape.inputs[0]), [0, 2, 1], like)
    shape = view.shape(value) or ()
    four = _turned(view, value, [0, 3, 1, 2] if key else [0, 2, 1, 3], like)
    target = view.array(np.array([0, 0, heads * shape[2 if key else 3]], dtype=np.int64), value)
    return view.add("Reshape", [four, target], like=like)


def _turned(view: View, value: str, perm: list[int], like: Any) -> str:
    """The value transposed, or what it was before the opposite transpose."""
    transpose = producer(view, value, "Transpose")
    opposite = [perm.index(axis) for axis in range(len(perm))]
    if transpose is not None and list(view.attribute(transpose, "perm") or []) == opposite:
        return view.resolve(transpose.inputs[0])
    return view.add("Transpose", [value], {"perm": perm}, like=like)


def unexpanded(view: View, mask: str, scores: Sequence[Any]) -> str:
    """A mask as it was before it was expanded to the shape of the scores, which it need not have."""
    expand = producer(view, mask, "Expand")
    while expand is not None and view.broadcasts_to(expand.inputs[0], scores):
        mask = view.resolve(expand.inputs[0])
        expand = producer(view, mask, "Expand")
    return mask


def four_axes(view: View, value: str, like: Any) -> str:
    """The value with axes of size 1 put in front until it has four."""
    rank = view.rank(value)
    if rank is None or rank == 4:
        return value
    axes = view.array(np.arange(4 - rank, dtype=np.int64), like.outputs[0])
    return view.add("Unsqueeze", [value, axes], like=like)


def misfit(view: View, value: str, scores: Sequence[Any], what: str) -> str | None:
    """The sentence on a bias or mask that does not broadcast to the scores; None for one that does."""
    if view.broadcasts_to(value, scores):
        return None
    shape = view.shape(value)
    found = "an unknown shape" if shape is None else f"shape [{', '.join(map(str, shape))}]"
    return f"the {what} {value} has {found}, the scores have [{', '.join(map(str, scores))}]"
