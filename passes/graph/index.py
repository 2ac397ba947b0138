"""The index over one graph of a ModelProto: who makes a value, who reads it, what is constant. The only code that edits protobuf.

A model holds several graphs: the main graph, the bodies of If/Loop/Scan, and model-local functions. `graphs(model)` yields an
index for each. Weights that lie in external data are never read here: a constant is decoded only when it is asked for.
"""

from __future__ import annotations

from array import array
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import cached_property, lru_cache
from typing import Any

import numpy as np
import onnx
from onnx import AttributeProto, FunctionProto, GraphProto, ModelProto, NodeProto, TensorProto, helper, numpy_helper

ONNX_DOMAINS = ("", "ai.onnx")

_CONSTANT_FORMS = {
    "value_float": TensorProto.FLOAT,
    "value_floats": TensorProto.FLOAT,
    "value_int": TensorProto.INT64,
    "value_ints": TensorProto.INT64,
}

CONSTANT_LIMIT = 1 << 20
"""Constants with more elements than this are not decoded unless the caller raises the limit."""


class Reference:
    """The value of an attribute that refers to an attribute of the enclosing function: known only when the function is called."""

    def __init__(self, name: str) -> None:
        self.name = name

    def __repr__(self) -> str:
        return f"<function attribute {self.name}>"


class Node:
    """A read-only look at one NodeProto.

    Attributes:
        proto: the node itself; neither it nor the name are to be asked for once it was removed.
        position: index in the graph's node list; a node that exists only in a canonical view has that of the node it stands for.
        domain: operator domain, "" for ONNX's own.
        op_type: operator type.
        key: (domain, operator type), what matching is indexed by.
        qualified: operator type, with the domain in front unless it is ONNX's: com.microsoft.Gelu.
        nests: whether it holds subgraphs.
        inputs, outputs: value names; "" where an optional one is absent.
    """

    __slots__ = (
        "_field",
        "_index",
        "domain",
        "inputs",
        "key",
        "nests",
        "op_type",
        "outputs",
        "position",
        "qualified",
    )

    def __init__(
        self,
        proto: NodeProto,
        position: int,
        field: Sequence[NodeProto] | None = None,
        names: dict[str, str] | None = None,
    ) -> None:
        # Protobuf's Python object for a node takes half a kilobyte as long as it is kept: it is made anew when asked for.
        self._field, self._index = ((proto,), 0) if field is None else (field, position)
        self.position = position
        self.key, self.qualified, nests = _operator(proto.domain, proto.op_type)
        self.domain, self.op_type = self.key
        self.nests: bool = nests and any(True for _ in subgraphs(proto))
        # Protobuf makes a string whenever it is asked: `names` has one for all who read a value.
        same = ({} if names is None else names).setdefault
        inputs, outputs = proto.input[:], proto.output[:]
        self.inputs: tuple[str, ...] = tuple(map(same, inputs, inputs))
        self.outputs: tuple[str, ...] = tuple(map(same, outputs, outputs))

    @property
    def proto(self) -> NodeProto:
        return self._field[self._index]

    @property
    def label(self) -> str:
        """The name that the node carries, if any."""
        return str(self.proto.name)

    @property
    def name(self) -> str:
        """The node's name, or the first of its outputs where it has none."""
        return self.label or next((output for output in self.outputs if output), f"#{self.position}")

    def move(self, position: int) -> None:
        """Says that the list of nodes has changed, and the node stands at another position of it."""
        self.position = self._index = position

    def moved(self, position: int) -> Node:
        """The node with another position than it has in the list of nodes."""
        node = Node.__new__(Node)
        node._field, node._index = self._field, self._index
        node.position = position
        node.key, node.qualified, node.nests = self.key, self.qualified, self.nests
        node.domain, node.op_type = self.key
        node.inputs, node.outputs = self.inputs, self.outputs
        return node

    def attribute(self, name: str) -> Any:
        """The attribute as a Python value (bytes become str), a `Reference`, or None where the node does not carry it."""
        for attribute in self.proto.attribute:
            if attribute.name == name:
                return attribute_value(attribute)
        return None

    def __repr__(self) -> str:
        return f"<{self.op_type} {self.name}>"


class MadeNode(Node):
    """A node that exists only in a canonical view. Its NodeProto, which takes kilobytes, is made when somebody asks for it.

    Attributes:
        covers: positions of the original nodes that it stands for.
    """

    __slots__ = ("_attributes", "_label", "covers")

    def __init__(
        self,
        op_type: str,
        inputs: Iterable[str],
        output: str,
        attributes: Mapping[str, Any],
        label: str,
        domain: str,
        position: int,
        covers: tuple[int, ...] = (),
    ) -> None:
        self.position = position
        self.covers = covers or (position,)
        self.key, self.qualified, self.nests = _operator(domain, op_type)
        self.domain, self.op_type = self.key
        self.inputs = tuple(inputs)
        self.outputs = (output,)
        self._attributes = {name: _as_stored(value) for name, value in attributes.items()}
        self._label = label

    @property
    def label(self) -> str:
        return self._label

    @property
    def proto(self) -> NodeProto:
        """The node as protobuf; a new one each time."""
        return onnx.helper.make_node(
            self.op_type, self.inputs, self.outputs, name=self._label, domain=self.domain, **self._attributes
        )

    def attribute(self, name: str) -> Any:
        found = self._attributes.get(name)
        return list(found) if isinstance(found, list) else found


def _as_stored(value: Any) -> Any:
    """An attribute's value as it reads once it is in a NodeProto: floats have 32 bits."""
    if isinstance(value, float):
        return float(np.float32(value))
    return [_as_stored(item) for item in value] if isinstance(value, (list, tuple)) else value


@lru_cache(maxsize=4096)
def _operator(domain: str, op_type: str) -> tuple[tuple[str, str], str, bool]:
    """Key and qualified name of an operator, the same objects for all of its nodes, and whether it may hold subgraphs."""
    domain = "" if domain == "ai.onnx" else domain
    return (domain, op_type), f"{domain}.{op_type}" if domain else op_type, _may_hold_subgraphs(op_type, domain)


def attribute_value(attribute: AttributeProto) -> Any:
    """The Python value of an attribute: bytes become str, tensors stay TensorProto, a reference becomes a `Reference`."""
    if attribute.ref_attr_name:
        return Reference(attribute.ref_attr_name)
    kind = attribute.type
    if kind == AttributeProto.INT:
        return attribute.i
    if kind == AttributeProto.INTS:
        return list(attribute.ints)
    if kind == AttributeProto.FLOAT:
        return attribute.f
    if kind == AttributeProto.STRING:
        return attribute.s.decode("utf-8", "replace")
    if kind == AttributeProto.STRINGS:
        return [item.decode("utf-8", "replace") for item in attribute.strings]
    return onnx.helper.get_attribute_value(attribute)


@lru_cache(maxsize=4096)
def attribute_default(op_type: str, domain: str, opset: int, name: str) -> Any:
    """The default that the operator's schema gives for an attribute; None where there is none or the operator is unknown."""
    try:
        schema = onnx.defs.get_schema(op_type, opset, domain)
    except onnx.defs.SchemaError:
        return None
    attribute = schema.attributes.get(name)
    if attribute is None or not attribute.default_value.name:
        return None
    return attribute_value(attribute.default_value)


def subgraphs(node: NodeProto) -> Iterator[tuple[str, GraphProto]]:
    """The graphs that a node (If, Loop, Scan, ...) carries, with the names of their attributes."""
    for attribute in node.attribute:
        kind = attribute.type
        if kind == AttributeProto.GRAPH:
            yield attribute.name, attribute.g
        elif kind == AttributeProto.GRAPHS:
            for index, graph in enumerate(attribute.graphs):
                yield f"{attribute.name}[{index}]", graph


@lru_cache(maxsize=1024)
def _may_hold_subgraphs(op_type: str, domain: str) -> bool:
    if domain not in ONNX_DOMAINS:
        return True
    return op_type in {"If", "Loop", "Scan", "SequenceMap"}


def captures(graph: GraphProto) -> set[str]:
    """Names that a subgraph (with the subgraphs inside it) reads but does not define: values captured from outside."""
    defined = {value.name for value in graph.input} | {tensor.name for tensor in graph.initializer}
    defined |= {sparse.values.name for sparse in graph.sparse_initializer}
    read: set[str] = set()
    for node in graph.node:
        read.update(node.input)
        for _, inner in subgraphs(node):
            read |= captures(inner)
        defined.update(node.output)
    read.update(output.name for output in graph.output)
    return read - defined - {""}


def values_read(node: Node) -> Sequence[str]:
    """What a node needs: its inputs, then the values that its subgraphs capture."""
    if not node.nests:
        return node.inputs
    inner = set().union(*(captures(graph) for _, graph in subgraphs(node.proto)))
    return [*node.inputs, *sorted(inner)]


class Graph:
    """An index over the main graph, a subgraph or a model-local function.

    Args:
        proto: the GraphProto or FunctionProto to index; edits go straight into it.
        model: the model it belongs to.
        path: "" for the main graph, else where it is, for example "loop_1/body" or "function my.domain::Block".
        outer: the graph whose values a subgraph may capture.
        nodes: the index of its nodes, where that is at hand.
    """

    def __init__(
        self,
        proto: GraphProto | FunctionProto,
        model: ModelProto,
        path: str = "",
        outer: Graph | None = None,
        nodes: Iterable[Node] | None = None,
    ) -> None:
        self.proto = proto
        self.model = model
        self.path = path
        self.outer = outer
        self.plain_view: Any = None
        if nodes is None:
            names: dict[str, str] = {}
            field = proto.node
            nodes = (Node(node_proto, position, field, names) for position, node_proto in enumerate(field))
        self.nodes: list[Node] = list(nodes)
        self.producers: dict[str, Node] = {}
        for node in self.nodes:
            for output in node.outputs:
                if output:
                    self.producers[output] = node

    @property
    def is_function(self) -> bool:
        """Whether this is a model-local function: no initializers, attributes may be references."""
        return isinstance(self.proto, FunctionProto)

    @property
    def outermost(self) -> Graph:
        """The main graph or function that this graph lies in: itself unless it is a subgraph."""
        return self if self.outer is None else self.outer.outermost

    @cached_property
    def opsets(self) -> dict[str, int]:
        """Domain -> opset version that holds in this graph."""
        proto = self.outermost.proto
        imports = proto.opset_import if isinstance(proto, FunctionProto) else self.model.opset_import
        return {"" if entry.domain == "ai.onnx" else entry.domain: entry.version for entry in imports}

    @cached_property
    def initializers(self) -> dict[str, TensorProto]:
        """Name -> initializer of this graph."""
        if isinstance(self.proto, FunctionProto):
            return {}
        return {tensor.name: tensor for tensor in self.proto.initializer}

    @cached_property
    def inputs(self) -> tuple[str, ...]:
        """Names of the graph's inputs (those that are initializers with a default too)."""
        if isinstance(self.proto, FunctionProto):
            return tuple(self.proto.input)
        return tuple(value.name for value in self.proto.input)

    @cached_property
    def outputs(self) -> frozenset[str]:
        """Names of the graph's outputs."""
        if isinstance(self.proto, FunctionProto):
            return frozenset(self.proto.output)
        return frozenset(value.name for value in self.proto.output)

    @cached_property
    def value_types(self) -> dict[str, onnx.TypeProto]:
        """Name -> declared type, from inputs, outputs and value_info."""
        types: dict[str, onnx.TypeProto] = {}
        declared: Iterable[onnx.ValueInfoProto] = self.proto.value_info
        if not isinstance(self.proto, FunctionProto):
            declared = [*self.proto.value_info, *self.proto.output, *self.proto.input]
        for value in declared:
            types[value.name] = value.type
        return types

    @cached_property
    def readers(self) -> Mapping[str, list[Node]]:
        """Value -> nodes that read it, in graph order; a node whose subgraph captures the value reads it too."""
        readers: dict[str, list[Node]] = {}
        for node in self.nodes:
            for name in values_read(node) if node.nests else node.inputs:
                if not name:
                    continue
                found = readers.get(name)
                if found is None:
                    readers[name] = [node]
                elif found[-1] is not node:
                    found.append(node)
        return readers

    @cached_property
    def names(self) -> set[str]:
        """Every value name in use here or in a subgraph below, so that new names can be chosen."""
        names: set[str] = set(self.inputs) | set(self.initializers) | set(self.producers) | set(self.readers)
        names |= set(self.outputs) | set(self.value_types)
        if not isinstance(self.proto, FunctionProto):
            names |= {sparse.values.name for sparse in self.proto.sparse_initializer}
        for node in self.nodes:
            if node.nests:
                for _, graph in subgraphs(node.proto):
                    names |= Graph(graph, self.model).names
        if self.outer is not None:
            names |= self.outer.names
        return names

    def fresh_name(self, wanted: str) -> str:
        """A value name that is not in use, made from `wanted`; it is reserved from now on."""
        name, number = wanted, 1
        while name in self.names:
            name = f"{wanted}_{number}"
            number += 1
        self.names.add(name)
        return name

    def tensor(self, value: str) -> TensorProto | None:
        """The TensorProto behind a constant value: an initializer without a graph input, or a Constant node of numbers."""
        tensor = self.initializers.get(value)
        if tensor is not None:
            return None if value in self._overridable else tensor
        node = self.producers.get(value)
        if node is not None:
            return _constant_tensor(node) if node.key == ("", "Constant") else None
        if value in self.inputs or self.outer is None:
            return None
        return self.outer.tensor(value)

    @cached_property
    def _overridable(self) -> frozenset[str]:
        # From IR version 4 an initializer that is also a graph input is a default that the caller may replace.
        if self.model.ir_version < 4:
            return frozenset()
        return frozenset(self.inputs) & frozenset(self.initializers)

    def opset(self, domain: str = "") -> int:
        """Opset version of a domain in this graph; 0 where it is not imported."""
        return self.opsets.get(domain, 0)

    def unsound(self) -> str | None:
        """What breaks the graph: a value read before it is made, or made twice; None for a sound graph."""
        made = set(self.inputs) | set(self.initializers)
        if not isinstance(self.proto, FunctionProto):
            made |= {sparse.values.name for sparse in self.proto.sparse_initializer}
        visible: frozenset[str] | set[str] = self.outer.names if self.outer is not None else frozenset()
        for node in self.nodes:
            for name in values_read(node) if node.nests else node.inputs:
                if name not in made and name and name not in visible:
                    return f"{node.name} reads {name}, which nothing makes before it"
            for name in node.outputs:
                if name in made:
                    return f"{node.name} makes {name}, which was made before"
                if name:
                    made.add(name)
        missing = self.outputs - made - set(visible)
        return f"nothing makes the output {min(missing)}" if missing else None

    def edit(
        self,
        *,
        add: Iterable[tuple[int, NodeProto]] = (),
        remove: frozenset[int] | set[int] = frozenset(),
        initializers: Sequence[TensorProto] = (),
    ) -> None:
        """Changes the node list in one go, and this index with it; nodes that are removed are not to be used any more.

        Args:
            add: (position, node): each is put just before the node that stands at that position, in the order given.
            remove: positions of the nodes to remove.
            initializers: to be appended (in a function they become Constant nodes at its head), once all of `add` is taken.
        """
        field = self.proto.node
        # Odd places for what is there, even ones for what comes before it; what goes is sorted to the end.
        end = 2 * len(self.nodes) + 2
        order = array("q", [end if node.position in remove else 2 * node.position + 1 for node in self.nodes])
        fresh: list[Node] = []

        def append(position: int, proto: NodeProto) -> None:
            added = field.add()
            added.CopyFrom(proto)
            fresh.append(Node(added, len(order), field))
            order.append(position)

        for position, proto in add:
            append(2 * position, proto)
        if isinstance(self.proto, FunctionProto):
            for item in initializers:
                append(-1, onnx.helper.make_node("Constant", [], [item.name], value=item))
        else:
            self.proto.initializer.extend(initializers)
        _tell_apart(fresh, lambda: (node.label for node in self.nodes if node.position not in remove))
        # Sorting in place moves pointers; rebuilding the list would copy every node.
        places = iter(order)
        field.sort(key=lambda _: next(places))
        if remove:
            del field[len(field) - len(remove) :]
        for node in (self.nodes[position] for position in remove):
            node._field = ()
            for output in node.outputs:
                if self.producers.get(output) is node:
                    del self.producers[output]
        for node in fresh:
            self.producers.update((output, node) for output in node.outputs if output)
        kept = sorted([number for number, place in enumerate(order) if place != end], key=order.__getitem__)
        nodes = [*self.nodes, *fresh]
        self.nodes = [nodes[number] for number in kept]
        for position, node in enumerate(self.nodes):
            node.move(position)
        self.plain_view = None
        self.forget("initializers", "names", "readers", "_overridable")

    def forget(self, *facts: str) -> None:
        """Lets go of facts that are found out again when they are asked for, so that they are up to date or take no memory."""
        for name in facts:
            self.__dict__.pop(name, None)

    def drop_unread_initializers(self, candidates: set[str]) -> None:
        """Removes those of `candidates` that nothing reads any more (and that are no graph input or output)."""
        if isinstance(self.proto, FunctionProto) or not candidates:
            return
        dead = {tensor.name for tensor in self.proto.initializer if tensor.name in candidates}
        dead.difference_update(self.outputs, self.inputs)
        for node in self.nodes:
            dead.difference_update(values_read(node))
        if dead:
            field = self.proto.initializer
            field.sort(key=lambda tensor: tensor.name in dead)
            del field[len(field) - len(dead) :]
            self.forget("initializers", "names", "_overridable")

    def drop_value_info(self, names: set[str]) -> None:
        """Removes the declared types of values that no longer exist."""
        field = self.proto.value_info
        dead = sum(value.name in names for value in field)
        if dead:
            field.sort(key=lambda value: value.name in names)
            del field[len(field) - dead :]
            self.forget("value_types", "names")


def _tell_apart(added: Sequence[Node], others: Callable[[], Iterable[str]]) -> None:
    """Gives added nodes names that neither the others have nor one added before."""
    names = [label for node in added if (label := node.label)]
    wanted = set(names)
    if len(wanted) == len(names) and not any(name in wanted for name in others()):
        return
    taken = set(others())
    for node in added:
        if node.label:
            while node.label in taken:
                node.proto.name += "_"
            taken.add(node.label)


def graphs(model: ModelProto) -> Iterator[Graph]:
    """An index for every graph of the model: the main graph, its subgraphs (outer ones first), then model-local functions.

    An outer graph is edited before its subgraphs are indexed, so edits of one never make the index of another stale.
    """
    yield from _with_subgraphs(model.graph, model, "", None)
    for function in model.functions:
        label = f"function {function.domain}::{function.name}" + (f":{function.overload}" if function.overload else "")
        yield from _with_subgraphs(function, model, label, None)


def _with_subgraphs(
    proto: GraphProto | FunctionProto, model: ModelProto, path: str, outer: Graph | None
) -> Iterator[Graph]:
    graph = Graph(proto, model, path, outer)
    yield graph
    for node in graph.nodes:
        for name, inner in subgraphs(node.proto) if node.nests else ():
            label = node.label or next((output for output in node.outputs if output), node.op_type)
            yield from _with_subgraphs(inner, model, f"{path}/{label}/{name}".lstrip("/"), graph)


def count_nodes(model: ModelProto, without: frozenset[str] = frozenset()) -> int:
    """Number of nodes in the main graph, the subgraphs and the model-local functions of domains other than `without`."""

    def count(nodes: Sequence[NodeProto]) -> int:
        nesting = (node for node in nodes if _may_hold_subgraphs(node.op_type, node.domain))
        return len(nodes) + sum(count(inner.node) for node in nesting for _, inner in subgraphs(node))

    functions = [function for function in model.functions if function.domain not in without]
    return count(model.graph.node) + sum(count(function.node) for function in functions)


def _constant_tensor(node: Node) -> TensorProto | None:
    tensor = node.attribute("value")
    if isinstance(tensor, TensorProto):
        return tensor
    for name, kind in _CONSTANT_FORMS.items():
        found = node.attribute(name)
        if found is not None and not isinstance(found, Reference):
            numbers = found if isinstance(found, list) else [found]
            return helper.make_tensor(node.outputs[0], kind, [len(numbers)] if isinstance(found, list) else [], numbers)
    return None


def decode(tensor: TensorProto, limit: int = CONSTANT_LIMIT) -> np.ndarray | None:
    """The tensor as an array; None where it is larger than `limit` elements, lies in external data, or is malformed."""
    if tensor.data_location == TensorProto.EXTERNAL:
        return None
    size = 1
    for dim in tensor.dims:
        size *= dim
    if size > limit or tensor.data_type == TensorProto.STRING:
        return None
    try:
        return numpy_helper.to_array(tensor)
    except (KeyError, TypeError, ValueError):  # data and dimensions contradict each other
        return None
