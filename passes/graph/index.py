"""The index over one graph of a ModelProto: who makes a value, who reads it, what is constant. The only code that edits protobuf.

A model holds several graphs: the main graph, the bodies of If/Loop/Scan, and model-local functions. `graphs(model)` yields an
index for each. Weights that lie in external data are never read here: a constant is decoded only when it is asked for.
"""

from __future__ import annotations

from array import array
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import cached_property, partial
from typing import Any

import onnx
from onnx import FunctionProto, GraphProto, ModelProto, NodeProto, TensorProto

from onnx_fuse.passes.graph.constants import constant_tensor
from onnx_fuse.passes.graph.node import Node, may_hold_subgraphs, values_read
from onnx_fuse.passes.graph.subgraphs import subgraphs


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
            return constant_tensor(node) if node.key == ("", "Constant") else None
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
        field.sort(key=partial(next, places))  # what is given in is what next() would return at the end
        if remove:
            del field[len(field) - len(remove) :]
        for position in remove:
            node = self.nodes[position]
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
        nesting = (node for node in nodes if may_hold_subgraphs(node.op_type, node.domain))
        return len(nodes) + sum(count(inner.node) for node in nesting for _, inner in subgraphs(node))

    functions = [function for function in model.functions if function.domain not in without]
    return count(model.graph.node) + sum(count(function.node) for function in functions)
