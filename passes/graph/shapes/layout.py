"""Operators that lay elements out anew without looking at them: reshaped, transposed, joined, split, padded, repeated."""

from __future__ import annotations

from onnx_fuse.passes.graph import dims as d
from onnx_fuse.passes.graph.dims import Dim
from onnx_fuse.passes.graph.node import Node
from onnx_fuse.passes.graph.shapes.inference import CONTENT_LIMIT, Content, Inference, Info, Rule, from_front


def _reshape(inference: Inference, node: Node) -> Info:
    info = inference.info(node.inputs[0])
    target = inference.content(node.inputs[1])
    if target is None:
        rank = inference.shape(node.inputs[1])
        if rank is None or len(rank) != 1 or not isinstance(rank[0], int):
            return Info(info.dtype)
        return Info(info.dtype, tuple(inference.fresh(node, axis) for axis in range(rank[0])))
    keep_zero = bool(inference.attribute(node, "allowzero"))
    out: list[Dim | None] = []
    for axis, item in enumerate(target):
        if item == 0 and not keep_zero:
            out.append(info.shape[axis] if info.shape is not None and axis < len(info.shape) else None)
        elif item == -1:
            out.append(None)
        else:
            out.append(item)
    if info.shape is not None and out.count(None) == 1:
        rest = d.divide(d.product(info.shape), d.product(item for item in out if item is not None))
        if rest is not None:
            out[out.index(None)] = rest
    elif info.shape is not None and None not in out:
        have, want = d.cancel(d.product(info.shape), d.product(item for item in out if item is not None))
        if isinstance(want, int) and not isinstance(have, int):
            inference.equate(have, want)
    # Only shapes matter below; a one-element reshape keeps its content.
    content = info.content if len(out) <= 1 else None
    return Info(info.dtype, inference.named(node, out), content)


def _transpose(inference: Inference, node: Node) -> Info:
    info = inference.info(node.inputs[0])
    if info.shape is None:
        return Info(info.dtype)
    perm = inference.attribute(node, "perm") or list(reversed(range(len(info.shape))))
    if not isinstance(perm, list) or sorted(perm) != list(range(len(info.shape))):
        return Info(info.dtype)
    return Info(info.dtype, tuple(info.shape[axis] for axis in perm))


def _unsqueeze(inference: Inference, node: Node) -> Info:
    info = inference.info(node.inputs[0])
    axes = inference.attribute(node, "axes")
    if info.shape is None or not isinstance(axes, list):
        return Info(info.dtype)
    rank = len(info.shape) + len(axes)
    places = {from_front(axis, rank) for axis in axes}
    rest = iter(info.shape)
    shape = tuple(1 if axis in places else next(rest) for axis in range(rank))
    return Info(info.dtype, shape, info.content if rank <= 1 else None)


def _squeeze(inference: Inference, node: Node) -> Info:
    info = inference.info(node.inputs[0])
    axes = inference.attribute(node, "axes")
    if info.shape is None:
        return Info(info.dtype)
    if axes is None:
        if not all(isinstance(dim, int) for dim in info.shape):
            return Info(info.dtype)
        places = {axis for axis, dim in enumerate(info.shape) if dim == 1}
    elif isinstance(axes, list):
        places = {from_front(axis, len(info.shape)) for axis in axes}
    else:
        return Info(info.dtype)
    shape = tuple(dim for axis, dim in enumerate(info.shape) if axis not in places)
    return Info(info.dtype, shape, info.content)


def _flatten(inference: Inference, node: Node) -> Info:
    info = inference.info(node.inputs[0])
    if info.shape is None:
        return Info(info.dtype)
    axis = inference.attribute(node, "axis")
    axis = from_front(1 if axis is None else axis, len(info.shape))
    return Info(info.dtype, (d.product(info.shape[:axis]), d.product(info.shape[axis:])))


def _concat(inference: Inference, node: Node) -> Info:
    infos = [inference.info(item) for item in node.inputs]
    shapes = [info.shape for info in infos]
    axis = inference.attribute(node, "axis")
    if any(shape is None for shape in shapes) or not isinstance(axis, int):
        return Info(infos[0].dtype)
    known = [shape for shape in shapes if shape is not None]
    axis = from_front(axis, len(known[0]))
    total: Dim = 0
    for shape in known:
        total = d.add(total, shape[axis])
    out = list(known[0])
    out[axis] = total
    content: Content | None = None
    if len(out) == 1 and isinstance(total, int) and total <= CONTENT_LIMIT:
        items: list[Dim | None] = []
        for info in infos:
            size = info.shape[0] if info.shape else 0
            items.extend(info.content if info.content is not None else [None] * (size if isinstance(size, int) else 0))
        content = tuple(items)
    return Info(infos[0].dtype, tuple(out), content)


def _split(inference: Inference, node: Node) -> tuple[Info, ...] | None:
    info = inference.info(node.inputs[0])
    if info.shape is None:
        return (Info(info.dtype),) * len(node.outputs)
    axis = from_front(inference.attribute(node, "axis") or 0, len(info.shape))
    sizes = inference.attribute(node, "split")
    count = len(node.outputs)
    out = []
    for number in range(count):
        if isinstance(sizes, list):
            part: Dim | None = sizes[number]
        elif isinstance(info.shape[axis], int):
            whole = info.shape[axis]
            step = -(-whole // count) if isinstance(whole, int) else 0
            part = min(step, whole - step * number) if isinstance(whole, int) else None
        else:
            part = d.divide(info.shape[axis], count)
        dim = inference.fresh(node, axis, number) if part is None else part
        out.append(Info(info.dtype, (*info.shape[:axis], dim, *info.shape[axis + 1 :])))
    return tuple(out)


def _pad(inference: Inference, node: Node) -> Info:
    info = inference.info(node.inputs[0])
    pads = inference.attribute(node, "pads")
    if info.shape is None:
        return Info(info.dtype)
    rank = len(info.shape)
    if not isinstance(pads, list) or len(pads) != 2 * rank or len(node.inputs) > 3:
        return Info(info.dtype, tuple(inference.fresh(node, axis) for axis in range(rank)))
    return Info(info.dtype, tuple(d.add(dim, pads[axis] + pads[axis + rank]) for axis, dim in enumerate(info.shape)))


def _expand(inference: Inference, node: Node) -> Info:
    info = inference.info(node.inputs[0])
    target = inference.content(node.inputs[1])
    if info.shape is None or target is None:
        return Info(info.dtype)
    wanted: list[Dim] = []
    for axis, item in enumerate(target):
        # A target of 1 keeps the input's size; an unknown one may be anything.
        wanted.append(inference.fresh(node, axis) if item is None else item)
    dims = d.broadcast_shapes([info.shape, tuple(wanted)])
    content = info.content * len(target) if info.content is not None and len(target) == 0 else None
    if info.content is not None and len(info.content) == 1 and len(wanted) == 1 and isinstance(wanted[0], int):
        content = info.content * wanted[0] if wanted[0] <= CONTENT_LIMIT else None
    return Info(info.dtype, inference.named(node, dims), content)


def _tile(inference: Inference, node: Node) -> Info:
    info = inference.info(node.inputs[0])
    repeats = inference.content(node.inputs[1]) if len(node.inputs) == 2 else None
    if info.shape is None or repeats is None or len(repeats) != len(info.shape):
        return Info(info.dtype)
    dims = [None if times is None else d.multiply(dim, times) for dim, times in zip(info.shape, repeats, strict=True)]
    return Info(info.dtype, inference.named(node, dims))


RULES: dict[str, Rule] = {
    "Reshape": _reshape,
    "Transpose": _transpose,
    "Unsqueeze": _unsqueeze,
    "Squeeze": _squeeze,
    "Flatten": _flatten,
    "Concat": _concat,
    "Split": _split,
    "Pad": _pad,
    "Expand": _expand,
    "Tile": _tile,
}
