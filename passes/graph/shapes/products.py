"""Operators that multiply and sum over axes: MatMul, Einsum, Gemm, Conv, Attention."""

from __future__ import annotations

from onnx_fuse.passes.graph import dims as d
from onnx_fuse.passes.graph.dims import Dim, Shape
from onnx_fuse.passes.graph.node import Node
from onnx_fuse.passes.graph.shapes.inference import Inference, Info, Rule


def matmul_shape(inference: Inference, node: Node, left: str, right: str) -> Shape | None:
    """Shape of the product of two of a node's inputs; None where one of their ranks is unknown."""
    a, b = inference.shape(left), inference.shape(right)
    if a is None or b is None or len(a) < 1 or len(b) < 1:
        return None
    if len(a) == 1 or len(b) == 1:
        return (*a[:-1], *b[:-2], *b[-1:])[: max(len(a), len(b)) - 1]
    named = inference.named(node, d.broadcast_shapes([a[:-2], b[:-2]]) or ()) or ()
    return (*named, a[-2], b[-1])


def _matmul(inference: Inference, node: Node) -> Info:
    return Info(inference.info(node.inputs[0]).dtype, matmul_shape(inference, node, *node.inputs))


def _einsum(inference: Inference, node: Node) -> Info:
    dtype = inference.info(node.inputs[0]).dtype
    terms, arrow, out = str(inference.attribute(node, "equation") or "").replace(" ", "").partition("->")
    sizes: dict[str, Dim] = {}
    for value, term in zip(node.inputs, terms.split(","), strict=True):
        shape = inference.shape(value)
        if not arrow or shape is None or len(shape) != len(term) or not term.isalpha():
            return Info(dtype)
        for letter, size in zip(term, shape, strict=True):
            sizes[letter] = sizes.get(letter, size)
    return Info(dtype, tuple(sizes[letter] for letter in out))


def _gemm(inference: Inference, node: Node) -> Info:
    a, b = (inference.info(item) for item in node.inputs[:2])
    if a.shape is None or b.shape is None or len(a.shape) != 2 or len(b.shape) != 2:
        return Info(a.dtype)
    rows = a.shape[1 if inference.attribute(node, "transA") else 0]
    columns = b.shape[0 if inference.attribute(node, "transB") else 1]
    return Info(a.dtype, (rows, columns))


def _conv(inference: Inference, node: Node) -> Info:
    x, weight = inference.info(node.inputs[0]), inference.info(node.inputs[1]).shape
    if x.shape is None or weight is None or len(x.shape) != len(weight) or len(x.shape) < 3:
        return Info(x.dtype)
    axes = len(weight) - 2
    steps = {name: inference.attribute(node, name) or [1] * axes for name in ("strides", "dilations")}
    pads = inference.attribute(node, "pads") or [0] * 2 * axes
    automatic = inference.attribute(node, "auto_pad") not in (None, "NOTSET", "VALID")
    dims: list[Dim | None] = [x.shape[0], weight[0]]
    for axis, (size, kernel) in enumerate(zip(x.shape[2:], weight[2:], strict=True)):
        if automatic or not isinstance(size, int) or not isinstance(kernel, int):
            dims.append(None)
            continue
        padded = size + pads[axis] + pads[axis + axes]
        dims.append((padded - steps["dilations"][axis] * (kernel - 1) - 1) // steps["strides"][axis] + 1)
    return Info(x.dtype, inference.named(node, dims))


def _attention(inference: Inference, node: Node) -> tuple[Info, ...]:
    query, value = inference.info(node.inputs[0]), inference.info(node.inputs[2])
    if query.shape is None or value.shape is None or len(query.shape) != 4 or len(value.shape) != 4:
        return (Info(query.dtype),)
    return (Info(query.dtype, (*query.shape[:3], value.shape[3])),)


RULES: dict[str, Rule] = {
    "MatMul": _matmul,
    "Einsum": _einsum,
    "Gemm": _gemm,
    "Conv": _conv,
    "Attention": _attention,
}
