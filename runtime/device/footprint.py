"""How large the largest value of a model gets: worked out from the shapes of its inputs, without any value of that size."""

from __future__ import annotations

import math
from collections.abc import Mapping

from onnx import GraphProto, ModelProto, TensorProto, ValueInfoProto, helper

from onnx_fuse.passes.files.external_data import size_in_bytes
from onnx_fuse.passes.graph.dims import Dim
from onnx_fuse.passes.graph.index import Graph
from onnx_fuse.passes.graph.inlining import inline_calls
from onnx_fuse.passes.graph.node import Node
from onnx_fuse.passes.graph.onnx_inference import inferred_types
from onnx_fuse.passes.graph.subgraphs import subgraphs
from onnx_fuse.passes.view.view import View

_SMALL_CONSTANT = 64
_HUGE = 1 << 62
_WIDEST = 8
"""Bytes of an element whose type is not known."""
_NO_MORE = frozenset(
    {
        *("Cast", "Clip", "Compress", "ConcatFromSequence", "Dropout", "Flatten", "Identity", "Optional"),
        *("OptionalGetElement", "Relu", "Reshape", "Reverse", "SequenceAt", "SequenceErase", "Slice", "Split"),
        *("SplitToSequence", "Squeeze", "TopK", "Transpose", "Trilu", "Unique", "Unsqueeze"),
    }
)
"""Operators that give at most as many elements as their first input has, whatever that holds."""
_TOGETHER = frozenset({"Concat", "SequenceConstruct", "SequenceInsert"})
"""Operators that give at most as many elements as all of their inputs have together."""


def largest_value(model: ModelProto, shapes: Mapping[str, tuple[int, ...]]) -> int | None:
    """Bytes of the largest value, those in subgraphs and functions too, as far as shapes follow from those of the inputs.

    Returns:
        None: the shapes of all inputs are given, and yet the size of a value cannot be bounded: what an input holds says it.

    Raises:
        ModelError: functions call each other too often, or themselves.
    """
    skeleton = ModelProto(ir_version=model.ir_version, opset_import=model.opset_import, functions=model.functions)
    graph = skeleton.graph
    graph.name = model.graph.name
    graph.node.extend(model.graph.node)
    graph.output.extend(
        ValueInfoProto(name=value.name) for value in model.graph.output
    )  # what is declared may be wrong
    for value in model.graph.input:
        if value.name in shapes:
            elem_type = value.type.tensor_type.elem_type
            graph.input.append(helper.make_tensor_value_info(value.name, elem_type, shapes[value.name]))
    for tensor in model.graph.initializer:
        if tensor.data_location != TensorProto.EXTERNAL and math.prod(tensor.dims) <= _SMALL_CONSTANT:
            graph.initializer.append(tensor)  # it may be a shape or an axis
        else:
            graph.input.append(helper.make_tensor_value_info(tensor.name, tensor.data_type, list(tensor.dims)))
    if skeleton.functions:
        skeleton, _ = inline_calls(skeleton, lambda node: False)
    main = Graph(skeleton.graph, skeleton)
    view = View(main, inferred_types(main))
    weights = {tensor.name for tensor in model.graph.initializer}
    inputs = [value.name for value in model.graph.input if value.name not in weights]
    walk = _Walk(complete=shapes.keys() >= set(inputs))
    for name in inputs:
        walk.notice(view, name, None)
    # Weights are counted elsewhere; here only how many elements they have.
    sizes = {tensor.name: math.prod(tensor.dims) for tensor in model.graph.initializer}
    try:
        walk.graph(view, sizes)
    except _UnknownError:
        return None
    except _HugeError:
        return _HUGE
    return walk.largest


class _UnknownError(Exception):
    """Nothing bounds the size of a value."""


class _HugeError(Exception):
    """A value is larger than any machine."""


class _Walk:
    """A walk over the nodes of a graph and of the graphs in it.

    Args:
        complete: whether shapes are to follow, as those of all inputs are known.

    Attributes:
        largest: bytes of the largest value so far.
        counts: value -> how many elements it has at most.
        sizes: dimension that is known only as the model runs -> how large it is at most.
    """

    def __init__(self, complete: bool) -> None:
        self.complete = complete
        self.largest = 0
        self.counts: dict[str, int] = {}
        self.sizes: dict[str, int] = {}

    def graph(self, view: View, known: Mapping[str, int]) -> None:
        """Walks over a graph; `known` values are there before."""
        self.counts.update(known)
        for node in view.graph.nodes:
            inner = [graph for _, graph in subgraphs(node.proto)] if node.nests else []
            for held in inner:
                self._inside(view, node, held)
            for index, name in enumerate(node.outputs):
                if name:
                    self.notice(view, name, self._bound(view, node, index, inner))

    def notice(self, view: View, name: str, bound: int | None) -> None:
        """Counts a value, whose elements `bound` bounds if its shape does not."""
        info = view.info(name)
        count = None if info.shape is None else self._product(info.shape)
        if count is None:
            count = bound
            if count is None:
                if self.complete:
                    raise _UnknownError
                return
            fixed = math.prod(dim for dim in info.shape or () if isinstance(dim, int))
            for dim in info.shape or ():
                for symbol in () if isinstance(dim, int) else dim.symbols:
                    self.sizes.setdefault(symbol, count // max(fixed, 1))
        if count > _HUGE:  # the numbers themselves would grow without bound
            raise _HugeError
        self.counts[name] = count
        self.largest = max(self.largest, size_in_bytes(info.dtype, [count]) or _WIDEST * count)

    def _product(self, shape: tuple[Dim, ...]) -> int | None:
        total = 1
        for dim in shape:
            if isinstance(dim, int):
                total *= dim
            elif all(symbol in self.sizes for symbol in dim.symbols):
                total *= dim.factor * math.prod(self.sizes[symbol] for symbol in dim.symbols)
            else:
                return None
        return total

    def _bound(self, view: View, node: Node, index: int, inner: list[GraphProto]) -> int | None:
        """How many elements an output has at most, told from those of the inputs."""
        if node.domain:
            return None
        given = [self.counts.get(view.resolve(name), self.counts.get(name)) for name in node.inputs if name]
        first = given[0] if given else None
        if node.op_type in _NO_MORE:
            return first
        if node.op_type in _TOGETHER:
            return None if None in given else sum(filter(None, given))
        if node.op_type == "NonZero":
            rank = view.rank(node.inputs[0])
            return None if first is None or rank is None else first * max(rank, 1)
        if node.op_type == "NonMaxSuppression":
            return None if None in given[:2] else 3 * sum(filter(None, given[1:2]))
        if node.op_type == "If":
            found = [self.counts.get(graph.output[index].name) for graph in inner if index < len(graph.output)]
            return None if None in found else max(filter(None, found), default=0)
        return self._of_loop(view, node, index, inner[0]) if node.op_type == "Loop" and inner else None

    def _of_loop(self, view: View, node: Node, index: int, body: GraphProto) -> int | None:
        """How many elements an output of a Loop has at most, if what it carries on does not grow."""
        carried = len(node.inputs) - 2
        starts = [self.counts.get(view.resolve(name), self.counts.get(name)) for name in node.inputs[2:]]
        befores = [self.counts.get(value.name) for value in body.input[2:]]
        afters = [self.counts.get(value.name) for value in body.output[1:]]
        if index >= len(afters) or len(befores) < carried:
            return None
        for start, before, after in zip(starts, befores, afters, strict=False):
            if start is None or before is None or after is None or max(start, after) > before:
                return None
        found = afters[index]
        if index < carried or found is None:
            return befores[index] if index < carried else None
        trips = view.constant(node.inputs[0]) if node.inputs[0] else None
        return None if trips is None or trips.size != 1 else found * max(int(trips.reshape(-1)[0]), 0)

    def _inside(self, view: View, node: Node, held: GraphProto) -> None:
        """Walks over what a node holds; what it is given each time has to have a shape there."""
        outer = view.graph
        outer.plain_view = view  # whose facts the graph inside may ask for
        inner = View(Graph(held, outer.model, f"{outer.path}/{node.name}", outer))
        for value in held.input:
            self.notice(inner, value.name, None)
        self.graph(inner, {tensor.name: math.prod(tensor.dims) for tensor in held.initializer})
