"""How many axes the values of a model have at most: told from its operators and from the sizes of what it holds.

A file of a few kilobytes can ask for any number: each Gather of a value by itself makes twice as many. ONNX's shape inference
writes all of them down.
"""

from __future__ import annotations

import math
from collections import ChainMap
from collections.abc import Callable, Iterable, Mapping, MutableMapping
from typing import NamedTuple

from onnx import FunctionProto, GraphProto, ModelProto, NodeProto, TensorProto, TypeProto

from onnx_fuse.passes.graph.node import ONNX_DOMAINS, may_hold_subgraphs
from onnx_fuse.passes.graph.subgraphs import subgraphs

MOST_AXES = 64
"""What no real tensor has more of; numpy's limit, too."""
_MOST_NESTED = 16
"""Graphs in graphs; some operators' inference goes through what they hold more than once."""
_MADE = 8
"""Axes of what operators make that take nothing with as many."""
_SHAPED_BY = {"ConstantOfShape": 0, "Expand": 1, "Reshape": 1, "Unsqueeze": 1}
"""Operators whose result has an axis for each element of a vector -> which input that is."""
_VECTORS = frozenset(
    {
        *("Abs", "Add", "Cast", "Ceil", "Clip", "Div", "Equal", "Floor", "GatherElements", "Identity", "Max", "Min"),
        *("Mod", "Mul", "Neg", "ScatterElements", "ScatterND", "Slice", "Sub", "Trilu"),
        *("Where", "ReduceProd", "ReduceSum", "ReduceMax", "ReduceMin"),
    }
)
"""Operators that make no vector longer than the longest that they read, if they read vectors alone."""
_ADD_AN_AXIS = frozenset({"ConcatFromSequence", "Loop", "OneHot", "Scan", "SequenceMap", "STFT", "StringSplit"})
_WRAP = frozenset({"Optional", "SequenceConstruct", "SequenceInsert", "SplitToSequence"})
"""Operators that make a type of a type."""


class _Bound(NamedTuple):
    """At most so many axes; where there is one axis or none, so many elements; where there is one element, it is no larger.

    None: not known.
    """

    axes: int
    length: int | None = None
    value: int | None = None


_NOTHING = _Bound(0)
_SCALAR = _Bound(0, 1)
_Scope = MutableMapping[str, _Bound]
_Functions = Mapping[tuple[str, str, str], FunctionProto]


class _TooMany(Exception):
    pass


def has_few_axes(model: ModelProto) -> bool:
    """Whether all values of a model have at most `MOST_AXES` axes, those in its functions and subgraphs too."""
    functions = {(body.domain, body.name, body.overload): body for body in model.functions}
    try:
        _graph(model.graph, {}, functions, {}, 0)
    except _TooMany:
        return False
    return True


def _graph(graph: GraphProto, outer: _Scope, functions: _Functions, known: dict[object, int], depth: int) -> int:
    """The most axes of a graph's outputs."""
    if depth > _MOST_NESTED:
        raise _TooMany
    scope: _Scope = ChainMap({}, outer) if outer else {}
    for value in graph.input:
        scope[value.name] = _declared(value.type)
    for tensor in graph.initializer:
        scope[tensor.name] = _checked(len(tensor.dims), math.prod(tensor.dims), tensor)
    for value in (*graph.value_info, *graph.output):
        _declared(value.type)
    _nodes(graph.node, scope, functions, known, depth)
    return max((scope.get(value.name, _NOTHING).axes for value in graph.output), default=0)


def _nodes(
    nodes: Iterable[NodeProto], scope: _Scope, functions: _Functions, known: dict[object, int], depth: int
) -> None:
    wraps = 0
    for node in nodes:
        op_type = node.op_type
        given = [scope.get(name, _NOTHING) for name in node.input]
        axes = max([bound.axes for bound in given]) if given else 0
        length: int | None = None
        value: int | None = None
        rule = _GROWS.get(op_type)
        if node.domain not in ONNX_DOMAINS:
            axes = _called(node, axes, functions, known, depth)
        elif rule is not None:
            axes, length = rule(node, given)
            if op_type == "Shape" and length == 1:
                value = given[0].length
        elif not given:
            axes, length, value = _of_attributes(node)
        elif op_type in _VECTORS and axes <= 1:
            length = _longest(given)
        elif op_type in _WRAP:
            wraps += 1
        if may_hold_subgraphs(op_type, node.domain):
            more = op_type in _ADD_AN_AXIS
            for _, inner in subgraphs(node):
                axes = max(axes, _graph(inner, scope, functions, known, depth + 1) + more)
        if axes > MOST_AXES or wraps > MOST_AXES:
            raise _TooMany
        bound = _SCALAR if axes == 0 and length is None else _Bound(axes, length, value)
        for name in node.output:
            scope[name] = bound


def _longest(given: list[_Bound]) -> int | None:
    lengths = [bound.length for bound in given]
    return None if None in lengths else max(filter(None, lengths), default=0)


def _of_vector(node: NodeProto, given: list[_Bound]) -> tuple[int, int | None]:
    """Axes and length of what a node makes that a vector gives the shape or further axes of."""
    which = _SHAPED_BY[node.op_type]
    if which < len(given):
        length = given[which].length
    else:  # in old opsets it is an attribute
        length = max((len(item.ints) for item in node.attribute if item.name in ("axes", "shape")), default=0)
    if length is None:
        raise _TooMany
    first = given[0].axes if given else 0
    if node.op_type == "ConstantOfShape":
        value = given[0].value
        return length, None if length != 1 or value is None else max(value, 0)
    if node.op_type == "Unsqueeze":
        return length + first, _longest(given)
    if node.op_type == "Reshape":
        return length, _longest(given) if first <= 1 else None
    return max(length, first), None


def _of_gather(node: NodeProto, given: list[_Bound]) -> tuple[int, int | None]:
    axes = max(sum(bound.axes for bound in given) - 1, 0)
    return axes, given[1].length if len(given) == 2 and axes <= 1 and given[0].axes <= 1 else None


def _of_squeeze(node: NodeProto, given: list[_Bound]) -> tuple[int, int | None]:
    if len(given) > 1:
        gone = given[1].length if given[1].axes == 1 else None
    else:
        gone = next((len(item.ints) for item in node.attribute if item.name == "axes"), None)
    longest = _longest(given[:1]) if given and given[0].axes <= 1 else None
    return max(given[0].axes - (gone or 0), 0) if given else 0, longest


def _of_shape(node: NodeProto, given: list[_Bound]) -> tuple[int, int | None]:
    return 1, given[0].axes if given else 0


def _of_concat(node: NodeProto, given: list[_Bound]) -> tuple[int, int | None]:
    lengths = [bound.length for bound in given]
    axes = max([bound.axes for bound in given], default=0)
    return axes, None if axes != 1 or None in lengths else sum(filter(None, lengths))


def _one_more(node: NodeProto, given: list[_Bound]) -> tuple[int, int | None]:
    return max([bound.axes for bound in given], default=0) + 1, None


def _of_attributes(node: NodeProto) -> tuple[int, int | None, int | None]:
    """Axes, length and value of what a node makes of its attributes alone."""
    for item in node.attribute:
        if item.name in ("value", "sparse_value"):
            dims = item.t.dims if item.HasField("t") else item.sparse_tensor.dims
            return len(dims), math.prod(dims), _value(item.t) if item.HasField("t") else None
        if item.name in ("value_ints", "value_floats", "value_strings"):
            length = max(len(item.ints), len(item.floats), len(item.strings))
            return 1, length, item.ints[0] if len(item.ints) == 1 else None
        if item.name == "shape":  # of random numbers
            return len(item.ints), None, None
        if item.name in ("value_int", "value_float", "value_string"):
            return 0, 1, item.i
    return _MADE, None, None


def _value(tensor: TensorProto) -> int | None:
    """The element of a whole number of 64 bits."""
    if tensor.data_type != TensorProto.INT64 or math.prod(tensor.dims) != 1:
        return None
    if len(tensor.raw_data) == 8:
        return int.from_bytes(tensor.raw_data, "little", signed=True)
    return tensor.int64_data[0] if len(tensor.int64_data) == 1 else None


def _called(node: NodeProto, axes: int, functions: _Functions, known: dict[object, int], depth: int) -> int:
    """Most axes of what a function makes of inputs of so many axes."""
    call = (node.domain, node.op_type, node.overload)
    function = functions.get(call)
    if function is None:
        return _MADE if axes < _MADE else axes  # ONNX has no inference for it
    if (call, axes) not in known:
        known[call, axes] = MOST_AXES + 1  # where it calls itself
        scope: _Scope = {name: _Bound(axes) for name in function.input}
        _nodes(function.node, scope, functions, known, depth + 1)
        known[call, axes] = max((scope.get(name, _NOTHING).axes for name in function.output), default=0)
    return known[call, axes]


def _declared(kind: TypeProto) -> _Bound:
    tensor = kind.tensor_type
    if not kind.HasField("tensor_type") or not tensor.HasField("shape"):
        return _NOTHING
    dims = tensor.shape.dim
    sizes = [dim.dim_value for dim in dims if dim.HasField("dim_value")]
    return _checked(len(dims), math.prod(sizes) if len(sizes) == len(dims) else None)


def _checked(axes: int, length: int | None, tensor: TensorProto | None = None) -> _Bound:
    if axes > MOST_AXES:
        raise _TooMany
    if axes > 1:
        return _Bound(axes)
    return _Bound(axes, length, _value(tensor) if tensor is not None and length == 1 else None)


_GROWS: dict[str, Callable[[NodeProto, list[_Bound]], tuple[int, int | None]]] = {
    **dict.fromkeys(_SHAPED_BY, _of_vector),
    **dict.fromkeys(("Gather", "GatherND"), _of_gather),
    **dict.fromkeys(_ADD_AN_AXIS, _one_more),
    "Concat": _of_concat,
    "Shape": _of_shape,
    "Squeeze": _of_squeeze,
    "Size": lambda node, given: (0, 1),
}
"""Operator -> axes and length of what it makes, of its node and what is known of its inputs."""
