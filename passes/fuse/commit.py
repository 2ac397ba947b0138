"""Commits what is planned for one graph, in one edit: writes the fused nodes, and removes what nothing needs any more.

Everything else stays as it was, byte for byte.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from onnx import FunctionProto, NodeProto, TensorProto, numpy_helper

from onnx_fuse.errors import ModelError, RewriteError
from onnx_fuse.passes.fuse.plan import Replacement
from onnx_fuse.passes.fuse.view_only import writable_maker
from onnx_fuse.passes.graph import function_bodies
from onnx_fuse.passes.graph.index import Graph
from onnx_fuse.passes.graph.node import Node
from onnx_fuse.passes.view.view import View


def commit(
    replacements: Iterable[Replacement], dead: set[int], graph: Graph, view: View, bodies: function_bodies.Bodies
) -> list[str]:
    """Writes the fused nodes into a graph and removes what has just become dead; returns the names of the fused nodes.

    Args:
        replacements: what to write, taken one by one, in the order of the graph.
        dead: positions of the nodes that go because of all of it.
        graph: the original graph: the view's own, or the one that it is an excerpt of.
        view: the canonical view that it was planned in.
        bodies: collects the function bodies of the fused operators.

    Raises:
        ModelError: the graph breaks ONNX's rules as it came.
        RewriteError: it breaks them now.
    """
    problem = graph.unsound()
    if problem is not None:  # onnx's checker does not look into functions, nor at the outputs of subgraphs
        raise ModelError(f"The model is not valid ONNX: {problem}.", "Export it again, or repair what is named.")
    graph.forget("initializers", "readers")  # they would be out of date, and take memory until then
    read = {name for position in dead for name in graph.nodes[position].inputs if name not in graph.producers}
    gone: set[str] = set()
    if graph.proto.value_info:
        gone = {name for position in dead for name in graph.nodes[position].outputs}
    domains: set[str] = set()

    def watched() -> Iterator[Replacement]:
        for item in replacements:
            domains.add(item.fusion.operator.domain)
            gone.difference_update(item.made)
            yield item

    writer = _Writer(graph, view, bodies)
    graph.edit(add=writer.additions(watched()), remove=dead, initializers=writer.initializers)
    for domain in sorted(domains):
        function_bodies.import_domain(graph.model.opset_import, domain)
        if isinstance(graph.outermost.proto, FunctionProto):
            function_bodies.import_domain(graph.outermost.proto.opset_import, domain)
    problem = graph.unsound()
    if problem is not None:
        raise RewriteError(f"After fusing, {problem}.", "This is a fault of a fusion: please report it.")
    graph.drop_unread_initializers(read)
    if gone:
        graph.drop_value_info(gone)
    return writer.names


class _Writer:
    """Makes the nodes to add to a graph.

    Attributes:
        names: of the fused nodes made so far.
        initializers: constants that only the view has and that the nodes made so far read.
    """

    def __init__(self, graph: Graph, view: View, bodies: function_bodies.Bodies) -> None:
        self.names: list[str] = []
        self.initializers: list[TensorProto] = []
        self._graph, self._view, self._bodies = graph, view, bodies
        self._opsets = graph.opsets
        self._written: set[str] = set()
        self._taken: dict[str, set[str]] = {}

    def additions(self, replacements: Iterable[Replacement]) -> Iterator[tuple[int, NodeProto]]:
        """The nodes to add, made one by one as they are taken, and their places."""
        graph, written = self._graph, self._written
        for item in replacements:
            nodes: list[NodeProto] = []
            for value in item.inputs.values():
                if value and value not in graph.producers:
                    nodes += self._made(value)
            fused = self._fused_node(item)
            replaced = [graph.nodes[position].proto for position in item.dead]
            function_bodies.merge_metadata(fused, replaced, record=graph.model.ir_version >= 10)
            nodes.append(fused)
            written.update(item.outputs.values())
            for carrier in item.carriers:
                if carrier.outputs[0] not in written:  # else a carrier before it has brought it along
                    written.add(carrier.outputs[0])
                    nodes += self._copied(carrier)
            for node in nodes:
                yield item.position, node

    def _fused_node(self, item: Replacement) -> NodeProto:
        operator = item.fusion.operator
        name = self._new_name(f"{item.root.name}/{operator.name}", operator.name)
        self.names.append(name)
        return self._bodies.node(operator, item.inputs, item.outputs, item.attributes, self._opsets, item.dtype, name)

    def _new_name(self, wanted: str, operator: str) -> str:
        """The name, or with a number where a node of the graph, or one made before, has it; it ends in the operator's."""
        if operator not in self._taken:
            self._taken[operator] = {name for proto in self._graph.proto.node if operator in (name := proto.name)}
        names = self._taken[operator]
        name, number = wanted, 1
        while name in names:
            name, number = f"{wanted}_{number}", number + 1
        names.add(name)
        return name

    def _made(self, value: str) -> list[NodeProto]:
        """The nodes that make a value that only the view has; none where it is there or has been written."""
        view = self._view
        value = view.resolve(value)
        if not value or value in self._written:
            return []
        array = view.array_of(value)
        if array is not None:
            self._written.add(value)
            self.initializers.append(numpy_helper.from_array(array, value))
            return []
        if view.exists_in_original(value):
            return []
        self._written.add(value)
        node = writable_maker(value, view)
        return [] if node is None else self._copied(node)

    def _copied(self, node: Node) -> list[NodeProto]:
        """A copy of a node of the view, behind the nodes that make what it reads."""
        node = node.to_write()
        inputs = self._view.inputs(node)
        nodes = [made for name in inputs for made in self._made(name)]
        proto = NodeProto()
        proto.CopyFrom(node.proto)
        proto.name = node.outputs[0]
        proto.input[:] = inputs
        return [*nodes, proto]
