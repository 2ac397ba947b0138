"""Operators whose outputs have the shape of their input, or the shape that their inputs broadcast to: arithmetic, comparisons,
activations, norms. What is done to small integer tensors is done to their contents as well."""

from __future__ import annotations

from collections.abc import Callable

from onnx import TensorProto

from onnx_fuse.passes.graph import dims as d
from onnx_fuse.passes.graph.dims import Dim
from onnx_fuse.passes.graph.node import Node
from onnx_fuse.passes.graph.shapes.inference import (
    WHOLE_FLOATS,
    Content,
    Inference,
    Info,
    Rule,
    held_as_float,
    whole_numbers,
)

_LIKE_FIRST_INPUT = (
    "Identity Relu Sqrt Erf Tanh Sigmoid Exp Log Neg Abs Not Softmax LogSoftmax Gelu Reciprocal Clip Floor Ceil Round Sign Swish "
    "LeakyRelu Elu Selu Softplus Softsign Mish HardSigmoid HardSwish Sin Cos Trilu CumSum RMSNormalization Dropout "
    "BatchNormalization InstanceNormalization LayerNormalization GroupNormalization LpNormalization PRelu ThresholdedRelu Celu "
    "SimplifiedLayerNormalization com.microsoft.SimplifiedLayerNormalization com.microsoft.Gelu com.microsoft.BiasGelu "
    "com.microsoft.FastGelu com.microsoft.QuickGelu ScatterElements ScatterND"
)


def _like_first_input(inference: Inference, node: Node) -> Info | tuple[Info, ...]:
    info = inference.info(node.inputs[0])
    if node.op_type == "Identity":
        return info
    if node.op_type in ("Floor", "Ceil", "Round") and info.content is not None:
        return info
    if node.op_type == "Neg" and info.content is not None and info.dtype not in WHOLE_FLOATS:
        negated = tuple(-item if isinstance(item, int) else None for item in info.content)
        return Info(info.dtype, info.shape, negated)
    first = Info(info.dtype, info.shape)
    return (first, Info(TensorProto.BOOL, info.shape)) if node.op_type == "Dropout" else (first,)


def _cast(inference: Inference, node: Node) -> Info:
    info = inference.info(node.inputs[0])
    dtype = inference.attribute(node, "to") if node.op_type == "Cast" else inference.info(node.inputs[1]).dtype
    content = info.content if dtype in (TensorProto.INT64, TensorProto.INT32) else None
    if dtype in WHOLE_FLOATS and info.content is not None:
        content = held_as_float(info.content)
    known = dtype in TensorProto.DataType.values()  # a damaged model may ask for any number
    return Info(dtype if known else 0, info.shape, content)


def _predicate(inference: Inference, node: Node) -> Info:
    shapes = [inference.shape(item) for item in node.inputs]
    content: Content | None = None
    if node.op_type == "Equal":
        content = _combine(inference, node, _equal)
    return Info(TensorProto.BOOL, inference.named(node, d.broadcast_shapes(shapes)), content)


def _equal(a: Dim, b: Dim) -> Dim | None:
    if isinstance(a, int) and isinstance(b, int):
        return int(a == b)
    if a == b:
        return 1
    negative = (isinstance(a, int) and a < 0) or (isinstance(b, int) and b < 0)
    return 0 if negative else None  # a dimension is never negative


def _combine(inference: Inference, node: Node, function: Callable[[Dim, Dim], Dim | None]) -> Content | None:
    left, right = (whole_numbers(inference, item) for item in node.inputs[:2])
    if left is None or right is None:
        return None
    size = max(len(left), len(right))
    if len(left) not in (1, size) or len(right) not in (1, size):
        return None
    out: list[Dim | None] = []
    for index in range(size):
        a, b = left[index % len(left)], right[index % len(right)]
        out.append(None if a is None or b is None else function(a, b))
    return tuple(out)


def _quotient(a: Dim, b: Dim) -> Dim | None:
    if isinstance(a, int) and isinstance(b, int):
        return _truncated(a, b) if b else None  # ONNX integer division truncates
    return d.divide(a, b)


def _truncated(a: int, b: int) -> int:
    size = abs(a) // abs(b)
    return size if (a < 0) == (b < 0) else -size


def _remainder(a: Dim, b: Dim) -> Dim | None:
    """Of Mod as it is by default: of the sign of the divisor."""
    return a % b if isinstance(a, int) and isinstance(b, int) and b else None


def _fmod(a: Dim, b: Dim) -> Dim | None:
    """Of Mod with fmod: of the sign of the dividend."""
    return a - b * _truncated(a, b) if isinstance(a, int) and isinstance(b, int) and b else None


_ARITHMETIC: dict[str, Callable[[Dim, Dim], Dim | None]] = {
    "Add": d.add,
    "Sub": d.subtract,
    "Mul": d.multiply,
    "Div": _quotient,
    "Mod": _remainder,
    "Min": d.minimum,
    "Max": d.maximum,
}
_ON_FLOATS: dict[str, Callable[[Dim, Dim], Dim | None]] = {
    "Add": d.add,
    "Sub": d.subtract,
    "Mul": d.multiply,
    "Div": d.divide,
}
"""Of sizes as floats: what gives a whole number without rounding."""


def _arithmetic(inference: Inference, node: Node) -> Info:
    infos = [inference.info(item) for item in node.inputs]
    shape = inference.named(node, d.broadcast_shapes([info.shape for info in infos]))
    function = _ARITHMETIC.get(node.op_type)
    if node.op_type == "Mod" and inference.attribute(node, "fmod"):
        function = _fmod
    content = None
    if function is not None and len(infos) == 2 and infos[0].dtype in (TensorProto.INT64, TensorProto.INT32):
        content = _combine(inference, node, function)
    elif infos[0].dtype in WHOLE_FLOATS and node.op_type in _ON_FLOATS and any(info.content for info in infos):
        found = _combine(inference, node, _ON_FLOATS[node.op_type])
        content = None if found is None else held_as_float(found)
    return Info(infos[0].dtype, shape, content)


def _where(inference: Inference, node: Node) -> Info:
    infos = [inference.info(item) for item in node.inputs]
    shape = inference.named(node, d.broadcast_shapes([info.shape for info in infos]))
    content: Content | None = None
    condition, yes, no = (info.content for info in infos)
    if condition is not None and yes is not None and no is not None:
        size = max(len(condition), len(yes), len(no))
        picked: list[Dim | None] = []
        for index in range(size):
            flag = condition[index % len(condition)]
            picked.append(None if flag is None else (yes[index % len(yes)] if flag else no[index % len(no)]))
        content = tuple(picked)
    return Info(infos[1].dtype, shape, content)


_PREDICATES = "IsNaN IsInf Equal Less LessOrEqual Greater GreaterOrEqual And Or Xor"

RULES: dict[str, Rule] = {
    **dict.fromkeys(_LIKE_FIRST_INPUT.split(), _like_first_input),
    **dict.fromkeys(("Cast", "CastLike"), _cast),
    **dict.fromkeys(_PREDICATES.split(), _predicate),
    **dict.fromkeys((*_ARITHMETIC, "Pow", "Sum", "Mean"), _arithmetic),
    "Where": _where,
}
