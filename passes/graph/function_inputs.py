"""What is known of a model-local function's inputs: the types and shapes that all of its calls agree on."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

from onnx import FunctionProto, ModelProto, NodeProto, TensorProto, TypeProto

from onnx_fuse.passes.graph.index import Graph
from onnx_fuse.passes.graph.subgraphs import subgraphs

Types = dict[str, TypeProto]
_Key = tuple[str, str, str]


class CallTypes:
    """Types of function inputs, worked out when a function first needs one.

    Args:
        model: the model whose functions are meant.
        types: gives name -> type for what the nodes of the main graph make.
    """

    def __init__(self, model: ModelProto, types: Callable[[], Types]) -> None:
        self._model = model
        self._types = types
        self._inputs: dict[_Key, list[TypeProto | None]] | None = None

    def of(self, graph: Graph) -> Callable[[], Types] | None:
        """A function that gives input name -> type for a function's graph; None for other graphs."""
        function = graph.proto
        if graph.outer is not None or not isinstance(function, FunctionProto):
            return None

        def infer() -> Types:
            if self._inputs is None:
                self._inputs = self._agreed()
            known = self._inputs.get(_key(function), [])
            return {name: kind for name, kind in zip(function.input, known, strict=False) if kind is not None}

        return infer

    def _agreed(self) -> dict[_Key, list[TypeProto | None]]:
        main = self._model.graph
        declared = {value.name: value.type for value in main.input}
        declared.update((tensor.name, _type_of(tensor)) for tensor in main.initializer)
        declared.update(self._types())
        called: dict[_Key, list[TypeProto | None]] = {}
        functions = {_key(function) for function in self._model.functions}
        for node in main.node:
            _merge(called, functions, node, [declared.get(name) for name in node.input])
        # Of a call from anywhere else the types are not known, so nothing is known of the function.
        for node in _inner_nodes(self._model):
            _merge(called, functions, node, [None] * len(node.input))
        return called


def _key(item: FunctionProto | NodeProto) -> _Key:
    name = item.name if isinstance(item, FunctionProto) else item.op_type
    return item.domain, name, item.overload


def _merge(
    called: dict[_Key, list[TypeProto | None]],
    functions: set[_Key],
    node: NodeProto,
    given: Sequence[TypeProto | None],
) -> None:
    key = _key(node)
    if key not in functions:
        return
    if key not in called:
        called[key] = list(given)
        return
    known = called[key]
    called[key] = [_common(one, other) for one, other in zip(known, given, strict=False)]


def _common(one: TypeProto | None, other: TypeProto | None) -> TypeProto | None:
    """What two types share: dimensions that differ, or have no name, are unknown."""
    if one is None or other is None or one.tensor_type.elem_type != other.tensor_type.elem_type:
        return None
    shared = TypeProto()
    shared.CopyFrom(one)
    dims, others = shared.tensor_type.shape.dim, other.tensor_type.shape.dim
    has_shapes = one.tensor_type.HasField("shape") and other.tensor_type.HasField("shape")
    if not has_shapes or len(dims) != len(others):
        shared.tensor_type.ClearField("shape")
        return shared
    for dim, have in zip(dims, others, strict=True):
        if dim != have:
            dim.Clear()
    return shared


def _type_of(tensor: TensorProto) -> TypeProto:
    kind = TypeProto()
    kind.tensor_type.elem_type = tensor.data_type
    kind.tensor_type.shape.SetInParent()
    for size in tensor.dims:
        kind.tensor_type.shape.dim.add(dim_value=size)
    return kind


def _inner_nodes(model: ModelProto) -> Iterator[NodeProto]:
    """Nodes outside the main graph: of subgraphs and of functions."""
    pending = [inner for node in model.graph.node for _, inner in subgraphs(node)]
    for function in model.functions:
        yield from function.node
        pending += [inner for node in function.node for _, inner in subgraphs(node)]
    while pending:
        graph = pending.pop()
        yield from graph.node
        pending += [inner for node in graph.node for _, inner in subgraphs(node)]
