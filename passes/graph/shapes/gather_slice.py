"""Operators that pick elements: Slice and the Gather family."""

from __future__ import annotations

from onnx_fuse.passes.graph import dims as d
from onnx_fuse.passes.graph.dims import Dim
from onnx_fuse.passes.graph.node import Node
from onnx_fuse.passes.graph.shapes.inference import Content, Inference, Info, Rule, from_front

_HUGE = 1 << 31
"""From here on an end of Slice means the end of the axis, as exporters write it."""
_GREATEST = ((1 << 31) - 1, (1 << 63) - 1)
"""Ends of Slice that runtimes read differently where it goes backwards: as the last element, or as the first."""


def _slice(inference: Inference, node: Node) -> Info:
    info = inference.info(node.inputs[0])
    if info.shape is None:
        return Info(info.dtype)
    starts, ends = (inference.attribute(node, name) for name in ("starts", "ends"))
    axes, steps = (inference.attribute(node, name) for name in ("axes", "steps"))
    if not isinstance(starts, list) or not isinstance(ends, list):
        return Info(info.dtype, tuple(inference.fresh(node, axis) for axis in range(len(info.shape))))
    axes = list(range(len(starts))) if axes is None else axes
    steps = [1] * len(starts) if steps is None else steps
    out = list(info.shape)
    content = info.content
    for start, end, axis, step in zip(starts, ends, axes, steps, strict=False):
        if not isinstance(axis, int):
            return Info(info.dtype, tuple(inference.fresh(node, number) for number in range(len(info.shape))))
        axis = from_front(axis, len(out))
        size = out[axis]
        if isinstance(size, int) and isinstance(start, int) and isinstance(step, int) and step < 0:
            start = max(start, -size)  # backwards from before the first element is from the first one
        length = _slice_length(size, start, end, step)
        if content is not None and len(out) == 1:
            whole = all(isinstance(item, int) for item in (start, end, step)) and length is not None
            content = content[slice(start, end, step)] if whole else None
        out[axis] = inference.fresh(node, axis) if length is None else length
    return Info(info.dtype, tuple(out), content if len(out) == 1 else None)


def _slice_length(size: Dim, start: Dim | None, end: Dim | None, step: Dim | None) -> Dim | None:
    if start is None or end is None or not isinstance(step, int) or (step < 0 and end in _GREATEST):
        return None
    if isinstance(size, int) and isinstance(start, int) and isinstance(end, int):
        return len(range(*slice(start, end, step).indices(size)))
    if (start, step) == (-1, -1) and isinstance(end, int) and end <= -_HUGE:
        return size  # the axis reversed
    if step != 1 or not isinstance(start, int):
        return None
    if isinstance(end, int) and end >= _HUGE:
        if start >= 0:
            return d.subtract(size, start)
        return d.minimum(-start, size)
    if start == 0:
        if isinstance(end, int) and end < 0:
            return d.subtract(size, -end)
        return d.minimum(end, size)
    return None


def _gather(inference: Inference, node: Node) -> Info:
    data, indices = (inference.info(item) for item in node.inputs)
    axis = inference.attribute(node, "axis") or 0
    if data.shape is None or indices.shape is None:
        return Info(data.dtype)
    axis = from_front(axis, len(data.shape))
    content: Content | None = None
    picks = inference.integers(node.inputs[1])
    if data.content is not None and picks is not None and len(data.shape) == 1:
        size = len(data.content)
        if all(-size <= pick < size for pick in picks):
            content = tuple(data.content[pick] for pick in picks)
    return Info(data.dtype, (*data.shape[:axis], *indices.shape, *data.shape[axis + 1 :]), content)


def _gather_elements(inference: Inference, node: Node) -> Info:
    return Info(inference.info(node.inputs[0]).dtype, inference.shape(node.inputs[1]))


def _gather_nd(inference: Inference, node: Node) -> Info:
    data, indices = (inference.info(item) for item in node.inputs)
    batch = inference.attribute(node, "batch_dims") or 0
    if data.shape is None or indices.shape is None or not indices.shape or not isinstance(indices.shape[-1], int):
        return Info(data.dtype)
    return Info(data.dtype, (*indices.shape[:-1], *data.shape[batch + indices.shape[-1] :]))


RULES: dict[str, Rule] = {
    "Slice": _slice,
    "Gather": _gather,
    "GatherElements": _gather_elements,
    "GatherND": _gather_nd,
}
