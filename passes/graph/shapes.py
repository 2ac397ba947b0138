"""Element types, symbolic shapes and the contents of small integer tensors, worked out on demand, value by value.

ONNX's own shape inference gives every unknown dimension a new name and leaves `-1` in a Reshape target open, so that it cannot
tell that [B, S, -1, 16] made from [B, S, 64] has 4 heads. The rules here keep dimension names and do the arithmetic on them;
operators without a rule fall back to ONNX's inference (`fallback`), which runs at most once and only if it is needed.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
from onnx import TensorProto, TypeProto

from onnx_fuse.passes.graph import dims as d
from onnx_fuse.passes.graph.dims import Dim, Product, Shape
from onnx_fuse.passes.graph.index import Node

CONTENT_LIMIT = 64
"""Integer tensors of rank 0 or 1 with at most this many elements are followed element by element."""

HUGE = 1 << 31

Content = tuple["Dim | None", ...]


class Info(NamedTuple):
    """What is known of a value.

    Attributes:
        dtype: TensorProto.DataType, or 0 where unknown.
        shape: one `Dim` per axis, or None where the rank is unknown.
        content: the elements of a small integer tensor, None for each that is unknown; None where not followed.
    """

    dtype: int = 0
    shape: Shape | None = None
    content: Content | None = None


UNKNOWN = Info()

Rule = Callable[["Inference", Node], "Info | tuple[Info, ...] | None"]
_RULES: dict[str, Rule] = {}


def _rule(*op_types: str) -> Callable[[Rule], Rule]:
    def register(function: Rule) -> Rule:
        for op_type in op_types:
            _RULES[op_type] = function
        return function

    return register


class Inference:
    """Works out and remembers `Info` for values.

    Args:
        definition: value -> the node that makes it, or None for inputs and constants.
        leaf: value -> what is known of a value that no node makes.
        fallback: value -> declared or ONNX-inferred type.
        attribute: (node, name) -> attribute value, with the schema's defaults.
        constant: value -> array of a value that no node with inputs makes.
    """

    def __init__(
        self,
        definition: Callable[[str], Node | None],
        leaf: Callable[[str], Info],
        fallback: Callable[[str], Info],
        attribute: Callable[[Node, str], Any],
        array: Callable[[str], np.ndarray | None],
    ) -> None:
        self._definition = definition
        self._leaf = leaf
        self._fallback = fallback
        self.attribute = attribute
        self.array = array
        self._memo: dict[str, Info] = {}
        self.equalities: dict[str, int] = {}

    def info(self, value: str) -> Info:
        """What is known of a value; computing it never recurses, so deep graphs are fine."""
        if not value:
            return UNKNOWN
        found = self._memo.get(value)
        if found is None:
            self._compute(value)
            found = self._memo[value]
        return self._substituted(value, found) if self.equalities else found

    def declare(self, value: str, info: Info) -> None:
        """Records what is known of a value for which there is no rule."""
        self._memo[value] = info

    def equate(self, dim: Dim, size: int) -> None:
        """Records that a symbol must have this size in every run that does not fail (a hard-coded Reshape says so)."""
        if isinstance(dim, Product) and len(dim.symbols) == 1 and dim.factor == 1:
            self.equalities[dim.symbols[0]] = size

    def _substituted(self, value: str, info: Info) -> Info:
        def swap(dim: Any) -> Any:
            if not isinstance(dim, Product) or not any(name in self.equalities for name in dim.symbols):
                return dim
            return d.multiply(
                dim.factor, d.product(self.equalities.get(name) or d.symbol(name) for name in dim.symbols)
            )

        shape = None if info.shape is None else tuple(swap(dim) for dim in info.shape)
        content = None if info.content is None else tuple(swap(dim) for dim in info.content)
        if shape != info.shape or content != info.content:
            info = Info(info.dtype, shape, content)
            self._memo[value] = info
        return info

    def _compute(self, value: str) -> None:
        memo = self._memo
        stack = [value]
        active: set[str] = set()
        while stack:
            name = stack[-1]
            if name in memo:
                stack.pop()
                continue
            node = self._definition(name)
            if node is None:
                memo[name] = self._leaf(name)
                continue
            rule = _RULES.get(node.qualified)
            if rule is None:
                for output in node.outputs:
                    memo[output] = self._fallback(output)
                continue
            missing = [item for item in node.inputs if item not in memo and item]
            if missing and name not in active:
                active.add(name)
                stack.extend(missing)
                continue
            for item in missing:  # only a cyclic graph gets here
                memo[item] = UNKNOWN
            self._store(node, rule)

    def _store(self, node: Node, rule: Rule) -> None:
        try:
            result = rule(self, node)
        except (ArithmeticError, AttributeError, LookupError, RuntimeError, TypeError, ValueError):
            # A malformed node, or an attribute known only when a function is called: nothing can be said.
            result = None
        if isinstance(result, Info):
            result = (result,) * len(node.outputs)
        infos = result or ()
        for number, output in enumerate(node.outputs):
            if not output:
                continue
            info = infos[number] if number < len(infos) else None
            if info is None or info.shape is None or not info.dtype:
                declared = self._fallback(output)
                info = info or UNKNOWN
                shape = info.shape if info.shape is not None else declared.shape
                info = Info(info.dtype or declared.dtype, shape, info.content)
            self._memo[output] = info

    def fresh(self, node: Node, axis: int, output: int = 0) -> Dim:
        """A dimension of which only its identity is known (the declared one, where there is one)."""
        value = node.outputs[output]
        declared = self._fallback(value).shape
        if declared is not None and axis < len(declared):
            return declared[axis]
        return d.symbol(f"{value}#{axis}")

    def shape(self, value: str) -> Shape | None:
        """Shape of a value, or None where its rank is unknown."""
        return self.info(value).shape

    def content(self, value: str) -> Content | None:
        """Elements of a small integer tensor."""
        return self.info(value).content

    def integers(self, value: str) -> list[int] | None:
        """Elements of a small integer tensor where all of them are known numbers."""
        content = self.content(value)
        if content is None or not all(isinstance(item, int) for item in content):
            return None
        return [item for item in content if isinstance(item, int)]


def array_info(array: np.ndarray, dtype: int) -> Info:
    """What a constant array tells."""
    content: Content | None = None
    if array.ndim <= 1 and array.size <= CONTENT_LIMIT and array.dtype.kind in "iub":
        content = tuple(int(item) for item in array.reshape(-1))
    return Info(dtype, tuple(array.shape), content)


def type_info(kind: TypeProto, value: str) -> Info:
    """What a declared type tells; an unnamed dimension is a symbol of its own."""
    tensor = kind.tensor_type
    if not kind.HasField("tensor_type"):
        return UNKNOWN
    if not tensor.HasField("shape"):
        return Info(tensor.elem_type, None)
    shape: list[Dim] = []
    for axis, dim in enumerate(tensor.shape.dim):
        if dim.HasField("dim_value"):
            shape.append(dim.dim_value)
        elif dim.dim_param:
            shape.append(d.symbol(dim.dim_param))
        else:
            shape.append(d.symbol(f"{value}#{axis}"))
    return Info(tensor.elem_type, tuple(shape))


def broadcast_shapes(shapes: Sequence[Shape | None]) -> tuple[Dim | None, ...] | None:
    """numpy's broadcasting on symbolic shapes; None per axis where the outcome is unknown."""
    if not shapes or None in shapes:
        return None if shapes else ()
    first = shapes[0]
    return first if shapes.count(first) == len(shapes) else _broadcast(*shapes)


@lru_cache(maxsize=4096)
def _broadcast(*shapes: Shape) -> tuple[Dim | None, ...]:
    rank = max(map(len, shapes), default=0)
    out: list[Dim | None] = []
    for axis in range(rank):
        result: Dim | None = 1
        for shape in shapes:
            position = axis - (rank - len(shape))
            if position >= 0 and result is not None:
                result = d.broadcast(result, shape[position])
        out.append(result)
    return tuple(out)


def _named(inference: Inference, node: Node, dims: Sequence[Dim | None] | None) -> Shape | None:
    if dims is None:
        return None
    if isinstance(dims, tuple) and all(dim is not None for dim in dims):
        return dims  # the same object for all values of a shape
    return tuple([inference.fresh(node, axis) if dim is None else dim for axis, dim in enumerate(dims)])


def _axis(axis: int, rank: int) -> int:
    return axis + rank if axis < 0 else axis


_ELEMENTWISE = (
    "Identity Relu Sqrt Erf Tanh Sigmoid Exp Log Neg Abs Not Softmax LogSoftmax Gelu Reciprocal Clip Floor Ceil Round Sign Swish "
    "LeakyRelu Elu Selu Softplus Softsign Mish HardSigmoid HardSwish Sin Cos Trilu CumSum RMSNormalization Dropout "
    "BatchNormalization InstanceNormalization GroupNormalization LpNormalization PRelu ThresholdedRelu Celu "
    "SimplifiedLayerNormalization com.microsoft.SimplifiedLayerNormalization com.microsoft.Gelu com.microsoft.BiasGelu "
    "com.microsoft.FastGelu com.microsoft.QuickGelu"
)


@_rule(*_ELEMENTWISE.split())
def _elementwise(inference: Inference, node: Node) -> Info | tuple[Info, ...]:
    info = inference.info(node.inputs[0])
    if node.op_type in ("Identity",):
        return info
    if node.op_type == "Neg" and info.content is not None:
        negated = tuple(-item if isinstance(item, int) else None for item in info.content)
        return Info(info.dtype, info.shape, negated)
    first = Info(info.dtype, info.shape)
    return (first, Info(TensorProto.BOOL, info.shape)) if node.op_type == "Dropout" else (first,)


@_rule("LayerNormalization")
def _layer_normalization(inference: Inference, node: Node) -> tuple[Info, ...]:
    info = inference.info(node.inputs[0])
    return (Info(info.dtype, info.shape),)


@_rule("Cast", "CastLike")
def _cast(inference: Inference, node: Node) -> Info:
    info = inference.info(node.inputs[0])
    dtype = inference.attribute(node, "to") if node.op_type == "Cast" else inference.info(node.inputs[1]).dtype
    integral = dtype in (TensorProto.INT64, TensorProto.INT32)
    return Info(dtype if isinstance(dtype, int) else 0, info.shape, info.content if integral else None)


@_rule("IsNaN", "IsInf", "Equal", "Less", "LessOrEqual", "Greater", "GreaterOrEqual", "And", "Or", "Xor")
def _predicate(inference: Inference, node: Node) -> Info:
    shapes = [inference.shape(item) for item in node.inputs]
    content: Content | None = None
    if node.op_type == "Equal":
        content = _combine(inference, node, _equal)
    return Info(TensorProto.BOOL, _named(inference, node, broadcast_shapes(shapes)), content)


def _equal(a: Dim, b: Dim) -> Dim | None:
    if isinstance(a, int) and isinstance(b, int):
        return int(a == b)
    if a == b:
        return 1
    negative = (isinstance(a, int) and a < 0) or (isinstance(b, int) and b < 0)
    return 0 if negative else None  # a dimension is never negative


def _combine(inference: Inference, node: Node, function: Callable[[Dim, Dim], Dim | None]) -> Content | None:
    left, right = (inference.content(item) for item in node.inputs[:2])
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
        return int(a / b) if b else None  # ONNX integer division truncates
    return d.divide(a, b)


def _remainder(a: Dim, b: Dim) -> Dim | None:
    return a % b if isinstance(a, int) and isinstance(b, int) and b else None


_ARITHMETIC: dict[str, Callable[[Dim, Dim], Dim | None]] = {
    "Add": d.add,
    "Sub": d.subtract,
    "Mul": d.multiply,
    "Div": _quotient,
    "Mod": _remainder,
    "Min": d.minimum,
    "Max": lambda a, b: max(a, b) if isinstance(a, int) and isinstance(b, int) else (a if a == b else None),
}


@_rule("Add", "Sub", "Mul", "Div", "Pow", "Mod", "Max", "Min", "Sum", "Mean")
def _arithmetic(inference: Inference, node: Node) -> Info:
    infos = [inference.info(item) for item in node.inputs]
    shape = _named(inference, node, broadcast_shapes([info.shape for info in infos]))
    function = _ARITHMETIC.get(node.op_type)
    content = None
    if function is not None and len(infos) == 2 and infos[0].dtype in (TensorProto.INT64, TensorProto.INT32):
        content = _combine(inference, node, function)
    return Info(infos[0].dtype, shape, content)


@_rule("Where")
def _where(inference: Inference, node: Node) -> Info:
    infos = [inference.info(item) for item in node.inputs]
    shape = _named(inference, node, broadcast_shapes([info.shape for info in infos]))
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


@_rule("MatMul")
def _matmul(inference: Inference, node: Node) -> Info:
    a, b = (inference.info(item) for item in node.inputs)
    if a.shape is None or b.shape is None or len(a.shape) < 1 or len(b.shape) < 1:
        return Info(a.dtype)
    if len(a.shape) == 1 or len(b.shape) == 1:
        return Info(a.dtype, (*a.shape[:-1], *b.shape[:-2], *b.shape[-1:])[: max(len(a.shape), len(b.shape)) - 1])
    batch = broadcast_shapes([a.shape[:-2], b.shape[:-2]]) or ()
    named = _named(inference, node, batch) or ()
    return Info(a.dtype, (*named, a.shape[-2], b.shape[-1]))


@_rule("Einsum")
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


@_rule("Gemm")
def _gemm(inference: Inference, node: Node) -> Info:
    a, b = (inference.info(item) for item in node.inputs[:2])
    if a.shape is None or b.shape is None or len(a.shape) != 2 or len(b.shape) != 2:
        return Info(a.dtype)
    rows = a.shape[1 if inference.attribute(node, "transA") else 0]
    columns = b.shape[0 if inference.attribute(node, "transB") else 1]
    return Info(a.dtype, (rows, columns))


@_rule("Conv")
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
    return Info(x.dtype, _named(inference, node, dims))


@_rule("Reshape")
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
    return Info(info.dtype, _named(inference, node, out), content)


@_rule("Transpose")
def _transpose(inference: Inference, node: Node) -> Info:
    info = inference.info(node.inputs[0])
    if info.shape is None:
        return Info(info.dtype)
    perm = inference.attribute(node, "perm") or list(reversed(range(len(info.shape))))
    if not isinstance(perm, list) or sorted(perm) != list(range(len(info.shape))):
        return Info(info.dtype)
    return Info(info.dtype, tuple(info.shape[axis] for axis in perm))


@_rule("Unsqueeze")
def _unsqueeze(inference: Inference, node: Node) -> Info:
    info = inference.info(node.inputs[0])
    axes = inference.attribute(node, "axes")
    if info.shape is None or not isinstance(axes, list):
        return Info(info.dtype)
    rank = len(info.shape) + len(axes)
    places = {_axis(axis, rank) for axis in axes}
    rest = iter(info.shape)
    shape = tuple(1 if axis in places else next(rest) for axis in range(rank))
    return Info(info.dtype, shape, info.content if rank <= 1 else None)


@_rule("Squeeze")
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
        places = {_axis(axis, len(info.shape)) for axis in axes}
    else:
        return Info(info.dtype)
    shape = tuple(dim for axis, dim in enumerate(info.shape) if axis not in places)
    return Info(info.dtype, shape, info.content)


@_rule("Flatten")
def _flatten(inference: Inference, node: Node) -> Info:
    info = inference.info(node.inputs[0])
    if info.shape is None:
        return Info(info.dtype)
    axis = inference.attribute(node, "axis")
    axis = _axis(1 if axis is None else axis, len(info.shape))
    return Info(info.dtype, (d.product(info.shape[:axis]), d.product(info.shape[axis:])))


@_rule("Concat")
def _concat(inference: Inference, node: Node) -> Info:
    infos = [inference.info(item) for item in node.inputs]
    shapes = [info.shape for info in infos]
    axis = inference.attribute(node, "axis")
    if any(shape is None for shape in shapes) or not isinstance(axis, int):
        return Info(infos[0].dtype)
    known = [shape for shape in shapes if shape is not None]
    axis = _axis(axis, len(known[0]))
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


@_rule("Split")
def _split(inference: Inference, node: Node) -> tuple[Info, ...] | None:
    info = inference.info(node.inputs[0])
    if info.shape is None:
        return (Info(info.dtype),) * len(node.outputs)
    axis = _axis(inference.attribute(node, "axis") or 0, len(info.shape))
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


@_rule("Slice")
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
        axis = _axis(axis, len(out))
        length = _slice_length(out[axis], start, end, step)
        if content is not None and len(out) == 1:
            whole = all(isinstance(item, int) for item in (start, end, step))
            content = content[slice(start, end if abs(end) < HUGE or end < 0 else None, step)] if whole else None
        out[axis] = inference.fresh(node, axis) if length is None else length
    return Info(info.dtype, tuple(out), content if len(out) == 1 else None)


def _slice_length(size: Dim, start: Dim | None, end: Dim | None, step: Dim | None) -> Dim | None:
    if start is None or end is None or not isinstance(step, int):
        return None
    if isinstance(size, int) and isinstance(start, int) and isinstance(end, int):
        return len(range(*slice(start, end, step).indices(size)))
    if (start, step) == (-1, -1) and isinstance(end, int) and end <= -HUGE:
        return size  # the axis reversed
    if step != 1 or not isinstance(start, int):
        return None
    if isinstance(end, int) and end >= HUGE:
        if start >= 0:
            return d.subtract(size, start)
        return d.minimum(-start, size)
    if start == 0:
        if isinstance(end, int) and end < 0:
            return d.subtract(size, -end)
        return d.minimum(end, size)
    return None


@_rule("Pad")
def _pad(inference: Inference, node: Node) -> Info:
    info = inference.info(node.inputs[0])
    pads = inference.attribute(node, "pads")
    if info.shape is None:
        return Info(info.dtype)
    rank = len(info.shape)
    if not isinstance(pads, list) or len(pads) != 2 * rank or len(node.inputs) > 3:
        return Info(info.dtype, tuple(inference.fresh(node, axis) for axis in range(rank)))
    return Info(info.dtype, tuple(d.add(dim, pads[axis] + pads[axis + rank]) for axis, dim in enumerate(info.shape)))


@_rule("Gather")
def _gather(inference: Inference, node: Node) -> Info:
    data, indices = (inference.info(item) for item in node.inputs)
    axis = inference.attribute(node, "axis") or 0
    if data.shape is None or indices.shape is None:
        return Info(data.dtype)
    axis = _axis(axis, len(data.shape))
    content: Content | None = None
    picks = inference.integers(node.inputs[1])
    if data.content is not None and picks is not None and len(data.shape) == 1:
        size = len(data.content)
        if all(-size <= pick < size for pick in picks):
            content = tuple(data.content[pick] for pick in picks)
    return Info(data.dtype, (*data.shape[:axis], *indices.shape, *data.shape[axis + 1 :]), content)


@_rule("GatherElements")
def _gather_elements(inference: Inference, node: Node) -> Info:
    return Info(inference.info(node.inputs[0]).dtype, inference.shape(node.inputs[1]))


@_rule("GatherND")
def _gather_nd(inference: Inference, node: Node) -> Info:
    data, indices = (inference.info(item) for item in node.inputs)
    batch = inference.attribute(node, "batch_dims") or 0
    if data.shape is None or indices.shape is None or not indices.shape or not isinstance(indices.shape[-1], int):
        return Info(data.dtype)
    return Info(data.dtype, (*indices.shape[:-1], *data.shape[batch + indices.shape[-1] :]))


@_rule("Expand")
def _expand(inference: Inference, node: Node) -> Info:
    info = inference.info(node.inputs[0])
    target = inference.content(node.inputs[1])
    if info.shape is None or target is None:
        return Info(info.dtype)
    wanted: list[Dim] = []
    for axis, item in enumerate(target):
        # A target of 1 keeps the input's size; an unknown one may be anything.
        wanted.append(inference.fresh(node, axis) if item is None else item)
    dims = broadcast_shapes([info.shape, tuple(wanted)])
    content = info.content * len(target) if info.content is not None and len(target) == 0 else None
    if info.content is not None and len(info.content) == 1 and len(wanted) == 1 and isinstance(wanted[0], int):
        content = info.content * wanted[0] if wanted[0] <= CONTENT_LIMIT else None
    return Info(info.dtype, _named(inference, node, dims), content)


@_rule("Tile")
def _tile(inference: Inference, node: Node) -> Info:
    info = inference.info(node.inputs[0])
    repeats = inference.content(node.inputs[1]) if len(node.inputs) == 2 else None
    if info.shape is None or repeats is None or len(repeats) != len(info.shape):
        return Info(info.dtype)
    dims = [None if times is None else d.multiply(dim, times) for dim, times in zip(info.shape, repeats, strict=True)]
    return Info(info.dtype, _named(inference, node, dims))


@_rule("Shape")
def _shape(inference: Inference, node: Node) -> Info:
    shape = inference.shape(node.inputs[0])
    if shape is None:
        return Info(TensorProto.INT64)
    start, end = inference.attribute(node, "start") or 0, inference.attribute(node, "end")
    content: Content = shape[slice(start, end)]
    return Info(TensorProto.INT64, (len(content),), content)


@_rule("Size")
def _size(inference: Inference, node: Node) -> Info:
    shape = inference.shape(node.inputs[0])
    return Info(TensorProto.INT64, (), None if shape is None else (d.product(shape),))


@_rule("ConstantOfShape")
def _constant_of_shape(inference: Inference, node: Node) -> Info:
    target = inference.content(node.inputs[0])
    tensor = inference.attribute(node, "value")
    dtype = tensor.data_type if isinstance(tensor, TensorProto) else TensorProto.FLOAT
    if target is None:
        return Info(dtype)
    shape = _named(inference, node, list(target)) or ()
    content: Content | None = None
    if len(shape) <= 1 and dtype in (TensorProto.INT64, TensorProto.INT32):
        size = shape[0] if shape else 1
        if isinstance(size, int) and size <= CONTENT_LIMIT:
            from onnx import numpy_helper

            content = (int(numpy_helper.to_array(tensor).reshape(-1)[0]),) * size
    return Info(dtype, shape, content)


@_rule("Range")
def _range(inference: Inference, node: Node) -> Info:
    info = inference.info(node.inputs[0])
    start, limit, delta = (inference.content(item) for item in node.inputs)
    if start is not None and limit is not None and delta == (1,) and None not in (*start, *limit):
        return Info(info.dtype, (d.subtract(limit[0] or 0, start[0] or 0),))
    return Info(info.dtype, (inference.fresh(node, 0),))


@_rule(
    "ReduceMean", "ReduceSum", "ReduceMax", "ReduceMin", "ReduceProd", "ReduceL2", "ReduceSumSquare", "ArgMax", "ArgMin"
)
def _reduce(inference: Inference, node: Node) -> Info:
    info = inference.info(node.inputs[0])
    dtype = TensorProto.INT64 if node.op_type.startswith("Arg") else info.dtype
    if info.shape is None:
        return Info(dtype)
    rank = len(info.shape)
    axes = inference.attribute(node, "axis" if node.op_type.startswith("Arg") else "axes")
    if isinstance(axes, int):
        axes = [axes]
    if axes is None or axes == []:
        axes = [] if inference.attribute(node, "noop_with_empty_axes") else list(range(rank))
    if not isinstance(axes, list):
        return Info(dtype)
    places = {_axis(axis, rank) for axis in axes}
    keep = inference.attribute(node, "keepdims")
    content: Content | None = None
    if node.op_type == "ReduceProd" and info.content is not None and None not in info.content:
        content = (d.product(item for item in info.content if item is not None),)
    if keep is None or keep:
        return Info(dtype, tuple(1 if axis in places else dim for axis, dim in enumerate(info.shape)), content)
    return Info(dtype, tuple(dim for axis, dim in enumerate(info.shape) if axis not in places), content)


@_rule("Attention")
def _attention(inference: Inference, node: Node) -> tuple[Info, ...]:
    query, value = inference.info(node.inputs[0]), inference.info(node.inputs[2])
    if query.shape is None or value.shape is None or len(query.shape) != 4 or len(value.shape) != 4:
        return (Info(query.dtype),)
    return (Info(query.dtype, (*query.shape[:3], value.shape[3])),)


# -- ONNX Runtime's own operators --------------------------------------------------------------------------------------


@_rule("com.microsoft.Attention")
def _packed_attention(inference: Inference, node: Node) -> tuple[Info, ...]:
    info, weights = (inference.info(item) for item in node.inputs[:2])
    sizes = inference.attribute(node, "qkv_hidden_sizes")
    if info.shape is None or weights.shape is None:
        return (Info(info.dtype),)
    width = sizes[2] if sizes else d.divide(weights.shape[-1], 3)
    return (Info(info.dtype, None if width is None else (*info.shape[:-1], width)),)


@_rule("com.microsoft.MultiHeadAttention")
def _multi_head_attention(inference: Inference, node: Node) -> tuple[Info, ...]:
    query = inference.info(node.inputs[0])
    value = inference.info(node.inputs[2]) if len(node.inputs) > 2 else Info()
    if query.shape is None or value.shape is None or len(query.shape) != 3 or len(value.shape) != 3:
        return (Info(query.dtype),)
    return (Info(query.dtype, (*query.shape[:2], value.shape[2])),)


@_rule("com.microsoft.SkipLayerNormalization", "com.microsoft.SkipSimplifiedLayerNormalization")
def _skip_layer_normalization(inference: Inference, node: Node) -> tuple[Info, ...]:
    info = inference.info(node.inputs[0])
    first = Info(info.dtype, info.shape)
    return (first, UNKNOWN, UNKNOWN, first)


@_rule("com.microsoft.EmbedLayerNormalization")
def _embed_layer_normalization(inference: Inference, node: Node) -> tuple[Info, ...]:
    ids, table = inference.shape(node.inputs[0]), inference.info(node.inputs[2])
    if ids is None or table.shape is None or len(table.shape) != 2:
        return (Info(table.dtype),)
    rows = Info(table.dtype, (*ids, table.shape[1]))
    return (rows, Info(TensorProto.INT32, ids[:1]), rows)


@_rule("com.microsoft.FusedMatMul")
def _fused_matmul(inference: Inference, node: Node) -> Info:
    shapes = [inference.shape(item) for item in node.inputs[:2]]
    dtype = inference.info(node.inputs[0]).dtype
    if any(shape is None or len(shape) < 2 for shape in shapes):
        return Info(dtype)
    if inference.attribute(node, "transBatchA") or inference.attribute(node, "transBatchB"):
        return Info(dtype)
    known = [shape for shape in shapes if shape is not None]
    rows = known[0][-1 if inference.attribute(node, "transA") else -2]
    columns = known[1][-2 if inference.attribute(node, "transB") else -1]
    batch = broadcast_shapes([shape[:-2] for shape in known]) or ()
    return Info(dtype, (*(_named(inference, node, batch) or ()), rows, columns))
