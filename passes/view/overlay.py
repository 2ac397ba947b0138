"""What a view lays over the graph: aliases, nodes and constants that stand in place of the exporter's, and the index of them all.

Nothing here knows a type, a shape or the content of a constant.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from operator import attrgetter

import numpy as np

from onnx_fuse.passes.graph.index import Graph
from onnx_fuse.passes.graph.node import MadeNode, Node

_position = attrgetter("position")


class Overlay:
    """The canonical structure of one graph.

    Args:
        graph: the index of the original graph.
    """

    def __init__(self, graph: Graph) -> None:
        self.graph = graph
        self._aliases: dict[str, str] = {}
        self._canonical: dict[str, MadeNode] = {}
        self._arrays: dict[str, np.ndarray] = {}
        self._by_key: dict[tuple[str, str], list[Node]] = {}
        for node in graph.nodes:
            self._by_key.setdefault((node.domain, node.op_type), []).append(node)
        self._readers: dict[str, list[Node]] | None = None
        self._nodes: dict[tuple[tuple[str, str], ...], list[Node]] = {}
        self._new_nodes: list[Node] = []
        self._superseded: set[int] = set()

    # -- structure -----------------------------------------------------------------------------------------------------

    def resolve(self, value: str) -> str:
        """The canonical name of a value: itself unless it is an alias."""
        aliases = self._aliases
        if value not in aliases:
            return value
        target = value
        while target in aliases:
            target = aliases[target]
        while aliases.get(value, target) != target:
            aliases[value], value = target, aliases[value]
        return target

    def producer(self, value: str) -> Node | None:
        """The canonical node that makes a value; None for graph inputs, initializers and values from outside."""
        if value in self._aliases:
            value = self.resolve(value)
        return self._canonical.get(value) or self.graph.producers.get(value)

    def maker_keys(self, node: Node) -> list[tuple[str, str] | None]:
        """For each input of a node the key of what makes it; None where no node does."""
        aliases, canonical, producers = self._aliases, self._canonical, self.graph.producers
        keys: list[tuple[str, str] | None] = []
        for name in node.inputs:
            if name in aliases:
                name = self.resolve(name)
            maker = canonical.get(name) or producers.get(name)
            keys.append(None if maker is None else maker.key)
        return keys

    def inputs(self, node: Node) -> tuple[str, ...]:
        """Canonical names of a node's inputs."""
        aliases = self._aliases
        if aliases.keys().isdisjoint(node.inputs):
            return node.inputs
        return tuple([self.resolve(name) if name in aliases else name for name in node.inputs])

    def nodes(self, keys: Iterable[tuple[str, str]]) -> Sequence[Node]:
        """Canonical nodes of these (domain, operator type) keys, in graph order."""
        wanted = tuple(keys)
        found = self._nodes.get(wanted)
        if found is None:
            found = [node for key in wanted for node in self._by_key.get(key, ()) if self.is_canonical(node)]
            found.sort(key=_position)
            self._nodes[wanted] = found
        return found

    def all_nodes(self) -> Sequence[Node]:
        """All canonical nodes, in graph order."""
        return self.nodes(list(self._by_key))

    def operators(self) -> list[tuple[str, str]]:
        """(domain, operator type) of what was ever in the view, in order of first appearance."""
        return list(self._by_key)

    def made_nodes(self) -> Sequence[MadeNode]:
        """The nodes that only the view has, in the order in which they were made."""
        return list(self._canonical.values())

    def is_canonical(self, node: Node) -> bool:
        """Whether the node makes at least one of its outputs in the view, for a reader that is still there."""
        if id(node) in self._superseded:
            return False
        aliases, canonical = self._aliases, self._canonical
        for output in node.outputs:  # noqa: SIM110  (asked of every node, several times)
            if output and output not in aliases and canonical.get(output, node) is node:
                return True
        return False

    def readers(self, value: str) -> list[Node]:
        """Canonical nodes that read a value, in graph order."""
        if self._readers is None:
            self._readers = {}
            for node in self.all_nodes():
                for name in dict.fromkeys(self.inputs(node)):
                    if name:
                        self._readers.setdefault(name, []).append(node)
        return self._readers.get(self.resolve(value), [])

    def readers_before(self, node: Node) -> list[Node]:
        """Original nodes before `node` that read its first input, under whatever name."""
        value = node.inputs[0]
        names = {value, self.resolve(value)}
        return [
            reader
            for name in sorted(names)
            for reader in self.graph.readers.get(name, ())
            if reader.position < node.position
        ]

    def is_read(self, value: str) -> bool:
        """Whether anybody needs an original value: a node, a subgraph, or who calls the graph."""
        return bool(value) and (value in self.graph.readers or value in self.graph.outputs)

    def covers(self, node: Node) -> frozenset[int]:
        """Positions of the original nodes that a canonical node stands for."""
        return self.covers_of((node,))

    def covers_of(self, nodes: Iterable[Node]) -> frozenset[int]:
        """Positions of the original nodes that these stand for."""
        found: set[int] = set()
        for node in nodes:
            if isinstance(node, MadeNode):
                found.update(node.covers)
            else:
                found.add(node.position)
        return frozenset(found)

    def recognised(self, node: Node) -> bool:
        """Whether a canonical node that stands for several stands for this one too."""
        groups = (self.covers(made) for made in self._canonical.values() if self.is_canonical(made))
        return any(node.position in group for group in groups if len(group) > 2)

    def is_array(self, value: str) -> bool:
        """Whether a value is a constant that only the view has."""
        return value in self._arrays

    def array_of(self, value: str) -> np.ndarray | None:
        """The array of a constant that only the view has."""
        return self._arrays.get(value)

    def exists_in_original(self, value: str) -> bool:
        """Whether a value is one of the original graph (or visible in it)."""
        return value not in self._arrays and (value not in self._canonical or value in self.graph.producers)

    def definition(self, value: str) -> Node | None:
        """The node with inputs that defines a value; None for inputs and constants.

        An original node defines an original value, whatever a rule lets make it: facts do not depend on which rules have run.
        """
        node = self.graph.producers.get(value)
        if node is None:
            alias = self._aliases.get(value)
            node = self._canonical.get(value)
            if node is None and alias is not None:
                return self.definition(self.resolve(value))
        if node is not None and node.key == ("", "Constant"):
            return None
        return node

    # -- changes -------------------------------------------------------------------------------------------------------

    def alias(self, value: str, to: str) -> None:
        """Declares that `value` is the same as `to`."""
        to = self.resolve(to)
        if to != value:
            self._aliases[value] = to
            self._forget()

    def array(self, array: np.ndarray, like: str = "constant") -> str:
        """A view-only constant; returns its name."""
        name = self.graph.fresh_name(f"{like}/constant")
        self._arrays[name] = array
        return name

    def place(self, node: MadeNode) -> None:
        """Lets a view-only node make its output from now on."""
        self._canonical[node.outputs[0]] = node
        self._forget()
        self._by_key.setdefault(node.key, []).append(node)
        self._new_nodes.append(node)

    def supersede(self, node: Node, by: Node) -> None:
        """Takes a recognised node off the lists where the one that grew out of it is all that reads it."""
        value = node.outputs[0]
        if value not in self.graph.outputs and [reader.position for reader in self.graph.readers.get(value, ())] == [
            by.position
        ]:
            self._superseded.add(id(node))
            self._forget()

    def _forget(self) -> None:
        """What was found out about the structure before it changed."""
        self._readers = None
        self._nodes = {}

    def take_new_nodes(self) -> list[Node]:
        """Nodes made since the last call, for rules that look at what other rules made."""
        new, self._new_nodes = self._new_nodes, []
        return new
