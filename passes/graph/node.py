"""Nodes as the passes read them: `Node` looks at a NodeProto, `MadeNode` exists only in a canonical view."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from functools import lru_cache
from typing import Any

import numpy as np
import onnx
from onnx import NodeProto

from onnx_fuse.passes.graph.attributes import attribute_value
from onnx_fuse.passes.graph.subgraphs import captures, subgraphs

ONNX_DOMAINS = ("", "ai.onnx")


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

    def to_write(self) -> Node:
        """The node that stands for this one in a model: itself, unless a `MadeNode` says otherwise."""
        return self

    def __repr__(self) -> str:
        return f"<{self.op_type} {self.name}>"


class MadeNode(Node):
    """A node that exists only in a canonical view. Its NodeProto, which takes kilobytes, is made when somebody asks for it.

    Attributes:
        covers: positions of the original nodes that it stands for.
        written: the node to write into a model in its place; None for itself.
    """

    __slots__ = ("_attributes", "_label", "covers", "written")

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
        self.written: MadeNode | None = None
        self.key, self.qualified, self.nests = _operator(domain, op_type)
        self.domain, self.op_type = self.key
        self.inputs = tuple(inputs)
        self.outputs = (output,)
        self._attributes = {name: _as_stored(value) for name, value in attributes.items()} if attributes else {}
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

    def to_write(self) -> Node:
        return self.written or self


def _as_stored(value: Any) -> Any:
    """An attribute's value as it reads once it is in a NodeProto: floats have 32 bits."""
    if isinstance(value, float):
        return float(np.float32(value))
    return [_as_stored(item) for item in value] if isinstance(value, (list, tuple)) else value


@lru_cache(maxsize=4096)
def _operator(domain: str, op_type: str) -> tuple[tuple[str, str], str, bool]:
    """Key and qualified name of an operator, the same objects for all of its nodes, and whether it may hold subgraphs."""
    domain = "" if domain == "ai.onnx" else domain
    return (domain, op_type), f"{domain}.{op_type}" if domain else op_type, may_hold_subgraphs(op_type, domain)


@lru_cache(maxsize=1024)
def may_hold_subgraphs(op_type: str, domain: str) -> bool:
    """Whether nodes of an operator may carry graphs: of ONNX's own only those for control flow do."""
    if domain not in ONNX_DOMAINS:
        return True
    return op_type in {"If", "Loop", "Scan", "SequenceMap"}


def values_read(node: Node) -> Sequence[str]:
    """What a node needs: its inputs, then the values that its subgraphs capture."""
    if not node.nests:
        return node.inputs
    inner = set().union(*(captures(graph) for _, graph in subgraphs(node.proto)))
    return [*node.inputs, *sorted(inner)]
