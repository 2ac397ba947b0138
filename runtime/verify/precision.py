"""Which values of a model are computed in which type, and so how far each may be off."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator

from onnx import AttributeProto, FunctionProto, GraphProto, ModelProto, NodeProto, TensorProto

from onnx_fuse.runtime.verify.compare import TOLERANCES

_EXACT, _FLOAT32, _FLOAT16, _QUANTIZED = range(4)
_NAMES = {_EXACT: "float32", _FLOAT32: "float32", _FLOAT16: "float16", _QUANTIZED: "quantized"}


def tolerances(model: ModelProto) -> dict[str, float]:
    """Value of the main graph -> relative difference to allow: that of the coarsest type that anything before it is computed in.

    A float16 weight or input that a Cast widens is exact, and loosens nothing.
    """
    functions = {(item.domain, item.name, item.overload): item for item in model.functions}
    classes = _own_classes(functions)
    half = _half_values(model)
    level = dict.fromkeys(half, _FLOAT16)
    stored = {value.name for value in model.graph.input} | {tensor.name for tensor in model.graph.initializer}
    nodes = list(model.graph.node)
    own = [max(_own_class(inner, classes) for inner in _with_inner(node)) for node in nodes]
    # Each value rises three times at most; nodes need not be sorted.
    waiting = deque(range(len(nodes)) if half or any(own) else ())
    readers: dict[str, list[int]] = {}
    for number in waiting:
        for name in set(reads(nodes[number])):
            readers.setdefault(name, []).append(number)
    while waiting:
        number = waiting.popleft()
        node = nodes[number]
        held = [name for name in reads(node) if not (node.op_type == "Cast" and name in stored)]
        coarsest = max([own[number], *(level.get(name, _EXACT) for name in held)])
        for output in node.output:
            if output and coarsest > level.get(output, _EXACT):
                level[output] = coarsest
                waiting.extend(readers.get(output, ()))
    names = {*level, *(name for node in model.graph.node for name in node.output if name)}
    names.update(value.name for value in model.graph.output)
    return {name: TOLERANCES[_NAMES[level.get(name, _EXACT)]] for name in names}


def tolerance(model: ModelProto) -> float:
    """The relative difference to allow for any output of `model`: the largest of theirs."""
    allowed = tolerances(model)
    return max((allowed[value.name] for value in model.graph.output), default=TOLERANCES["float32"])


def reads(node: NodeProto) -> Iterator[str]:
    """The values a node reads; what its branches and loops hold counts as read."""
    for one in _with_inner(node):
        yield from (name for name in one.input if name)


def _with_inner(node: NodeProto) -> Iterator[NodeProto]:
    """The node and the nodes of its subgraphs."""
    pending = [node]
    while pending:
        one = pending.pop()
        yield one
        for graph in _graphs(one):
            pending.extend(graph.node)


def _graphs(node: NodeProto) -> Iterator[GraphProto]:
    for attribute in node.attribute:
        if attribute.type == AttributeProto.GRAPH:
            yield attribute.g
        elif attribute.type == AttributeProto.GRAPHS:
            yield from attribute.graphs


def _half_values(model: ModelProto) -> set[str]:
    """Values that are declared float16, in the main graph or below it."""
    found: set[str] = set()
    pending = [model.graph]
    while pending:
        graph = pending.pop()
        found.update(tensor.name for tensor in graph.initializer if tensor.data_type == TensorProto.FLOAT16)
        values = (*graph.input, *graph.output, *graph.value_info)
        found.update(value.name for value in values if value.type.tensor_type.elem_type == TensorProto.FLOAT16)
        pending.extend(inner for node in graph.node for inner in _graphs(node))
    return found


def _own_classes(functions: dict[tuple[str, str, str], FunctionProto]) -> dict[tuple[str, str, str], int]:
    """The coarsest type that each function computes in of its own, calls included."""
    classes = dict.fromkeys(functions, _EXACT)
    for _ in functions:  # calls of calls: as many rounds as there are functions settle it
        before = dict(classes)
        for key, function in functions.items():
            classes[key] = max([classes[key], *(_own_class(node, classes) for node in _inner_nodes(function.node))])
        if classes == before:
            break
    return classes


def _inner_nodes(nodes: Iterable[NodeProto]) -> Iterator[NodeProto]:
    for node in nodes:
        yield from _with_inner(node)


def _own_class(node: NodeProto, classes: dict[tuple[str, str, str], int]) -> int:
    """What a node makes coarser by itself."""
    called = classes.get((node.domain, node.op_type, node.overload))
    if called is not None:
        return called
    if "QuantizeLinear" in node.op_type or "Integer" in node.op_type or node.op_type.startswith("QLinear"):
        return _QUANTIZED
    if any(item.name == "to" and item.i == TensorProto.FLOAT16 for item in node.attribute):
        return _FLOAT16
    tensors = (item.t for item in node.attribute if item.type == AttributeProto.TENSOR)
    return _FLOAT16 if any(tensor.data_type == TensorProto.FLOAT16 for tensor in tensors) else _EXACT
