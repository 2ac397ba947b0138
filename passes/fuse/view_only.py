"""Values that only the view has: what makes them of values of the original graph, and how they lead back to such values.

A fused node reads and makes canonical values. Where the original graph has no such value, the few nodes that lie between are
written along with it.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
from onnx import helper

from onnx_fuse.passes.graph.node import Node
from onnx_fuse.passes.view.layout_transform import MOVES
from onnx_fuse.passes.view.view import View

_CARRIERS = MOVES | {"Concat"}


def sources(values: Iterable[str], view: View) -> set[str] | None:
    """Original values of which these are made, or that they are; None where one cannot be written into the graph."""
    found: set[str] = set()
    pending = [view.resolve(value) for value in values]
    seen: set[str] = set()
    while pending:
        value = pending.pop()
        if value in seen or not value:
            continue
        seen.add(value)
        if view.is_array(value):
            continue
        if view.exists_in_original(value):
            found.add(value)
            continue
        node = writable_maker(value, view)
        if node is None:
            return None
        pending.extend(view.inputs(node.to_write()))
    return found


def writable_maker(value: str, view: View) -> Node | None:
    """The node to write so that a value that only the view has is made; None where there is none.

    What makes it in the view may not stand in the graph, such as a norm that the opset lacks. It is then had from a value that
    the graph has and the view makes of it: by the Transpose back.
    """
    node = view.producer(value)
    if node is None or view.is_valid(node):
        return node
    for reader in view.readers(value):
        if reader.key == ("", "Transpose") and view.exists_in_original(reader.outputs[0]):
            perm = np.argsort(view.attribute(reader, "perm")).tolist()
            proto = helper.make_node("Transpose", [reader.outputs[0]], [value], perm=perm)
            return Node(proto, reader.position)
    # Only what it reads may be missing, and that may be had in the same way.
    return node if view.may_stand(node) else None


def carriers(value: str, view: View) -> tuple[list[Node], set[str]]:
    """The view-only nodes, moves and Concat, through which a value reaches the original graph, and the original values they make.

    An original value reaches it by itself; without any, the graph has no use for the value.
    """
    producers = view.graph.producers
    if value in producers:
        return [], {value}
    nodes: list[Node] = []
    made: set[str] = set()
    pending = [value]
    while pending:
        for node in view.readers(pending.pop()):
            output = node.outputs[0]
            if view.exists_in_original(output) and producers[output] is node:
                continue
            if node.domain == "" and node.op_type in _CARRIERS and node not in nodes:
                nodes.append(node)
                if output in producers:
                    made.add(output)
                else:
                    pending.append(output)
    return nodes, made


def read_beside(nodes: Sequence[Node], outputs: Iterable[str], view: View) -> list[str]:
    """What carriers read besides the fused node's outputs and each other: what is joined, and what has the sizes of a target."""
    own = {*outputs, *(node.outputs[0] for node in nodes)}
    read = [name for node in nodes if node.op_type == "Concat" for name in view.inputs(node) if name not in own]
    written = [node.to_write() for node in nodes]
    pending = [view.resolve(node.inputs[1]) for node in written if node.op_type == "Reshape"]
    while pending:
        value = pending.pop()
        if value in own or view.is_array(value):
            continue
        maker = None if view.exists_in_original(value) else view.producer(value)
        if maker is None:
            read.append(value)
        else:
            pending.extend(view.inputs(maker))  # Shape, Slice, Concat and arithmetic: written as they are
    return read
