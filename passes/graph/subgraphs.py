"""The graphs that nodes such as If, Loop and Scan carry, and what these capture from outside."""

from __future__ import annotations

from collections.abc import Iterator

from onnx import AttributeProto, GraphProto, NodeProto


def subgraphs(node: NodeProto) -> Iterator[tuple[str, GraphProto]]:
    """The graphs that a node (If, Loop, Scan, ...) carries, with the names of their attributes."""
    for attribute in node.attribute:
        kind = attribute.type
        if kind == AttributeProto.GRAPH:
            yield attribute.name, attribute.g
        elif kind == AttributeProto.GRAPHS:
            for index, graph in enumerate(attribute.graphs):
                yield f"{attribute.name}[{index}]", graph


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
