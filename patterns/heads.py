"""What fusions of multi-head attention ask of the view: heads before they were split, masks before they were expanded."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from onnx_fuse.patterns.interface import View


def producer(view: View, value: str, op_type: str) -> Any:
    """The ONNX node of this type that makes a value, or None."""
    node = view.producer(value)
    return node if node is not None and node.domain == "" and node.op_type == op_type else None


def before_split(view: View, value: str, heads: int, *, key: bool = False) -> str | None:
    """x [B, S, h*d] where `value` is x split into heads, [B, h, S, d] (or [B, h, d, S] for a transposed key)."""
    transpose = producer(view, value, "Transpose")
    if transpose is None or list(view.attribute(transpose, "perm") or []) != ([0, 2, 3, 1] if key else [0, 2, 1, 3]):
        return None
    reshape = producer(view, transpose.inputs[0], "Reshape")
    if reshape is None:
        return None
    before, after = view.shape(reshape.inputs[0]), view.shape(reshape.outputs[0])
    if before is None or after is None or len(before) != 3 or len(after) != 4:
        return None
    return view.resolve(reshape.inputs[0]) if before[:2] == after[:2] and after[2] == heads else None


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
