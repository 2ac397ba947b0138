"""Which nodes of the original graph nothing needs any more once some values come from elsewhere, and who needs the others.

"No outside reader" is asked of the original graph, not of the view.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import cached_property

from onnx_fuse.passes.graph.index import Graph
from onnx_fuse.passes.graph.node import Node, values_read


class Liveness:
    """Answers for one graph, which stays as it is meanwhile.

    Args:
        graph: the original graph.
    """

    def __init__(self, graph: Graph) -> None:
        self.graph = graph

    @cached_property
    def idle(self) -> frozenset[int]:
        """Positions of nodes that no graph output depends on: dead already, so nobody outside."""
        producers = self.graph.producers
        live: set[int] = set()
        pending = [producers[name] for name in self.graph.outputs if name in producers]
        while pending:
            node = pending.pop()
            if node.position not in live:
                live.add(node.position)
                read = values_read(node) if node.nests else node.inputs
                for name in read:
                    maker = producers.get(name)
                    if maker is not None:
                        pending.append(maker)
        return frozenset([node.position for node in self.graph.nodes if node.position not in live])

    def dead(self, made: Iterable[str], kept: set[str]) -> set[int]:
        """Positions of the nodes that nothing needs once the values in `made` come from elsewhere.

        Args:
            made: values that the graph's own nodes need not make any more.
            kept: values that are read from then on, whoever else reads them.
        """
        cut = set(made)
        dead: set[int] = set()
        producers = self.graph.producers
        pending = [producers[value] for value in cut]
        while pending:
            node = pending.pop()
            if node.position in dead or self._is_needed(node, cut, dead, kept):
                continue
            dead.add(node.position)
            for value in node.inputs:
                maker = producers.get(value)
                if maker is not None:
                    pending.append(maker)
        return dead | self._stranded(dead, cut) if self.idle else dead

    def _is_needed(self, node: Node, cut: set[str], dead: set[int], kept: set[str]) -> bool:
        readers, outputs = self.graph.readers, self.graph.outputs
        for output in node.outputs:
            if output in cut or not output:
                continue
            if output in kept or output in outputs:
                return True
            for reader in readers.get(output, ()):
                position = reader.position
                if position not in dead and position not in self.idle:
                    return True
        return False

    def _stranded(self, dead: set[int], cut: set[str]) -> set[int]:
        """Nodes that were dead all along and read what is about to go."""
        stranded: set[int] = set()
        pending = sorted(dead)
        while pending:
            for value in self.graph.nodes[pending.pop()].outputs:
                if value in cut:
                    continue
                for reader in self.graph.readers.get(value, ()):
                    if reader.position not in dead and reader.position not in stranded:
                        stranded.add(reader.position)
                        pending.append(reader.position)
        return stranded

    def read_outside(self, value: str, dead: set[int]) -> str | None:
        """Who needs a value besides the nodes in `dead`, as a phrase; None for nobody."""
        if value in self.graph.outputs:
            return "is a graph output"
        for reader in self.graph.readers.get(value, ()):
            if reader.position not in dead and reader.position not in self.idle:
                return f"is also read by {reader.name} outside the match"
        return None

    def why_it_stays(self, node: Node, dead: set[int], covers: frozenset[int]) -> tuple[Node, str]:
        """The node, or the covered one that stays for its sake, that is needed outside a match, and by whom.

        Args:
            node: a covered node that stays.
            dead: positions of the nodes that go.
            covers: positions of the nodes that the match covers.
        """
        covers = self._closed(covers)
        pending, seen = [node], {node.position}
        while pending:
            item = pending.pop(0)
            for output in filter(None, item.outputs):
                phrase = self.read_outside(output, dead | covers)
                if phrase is not None:
                    return item, f"its output {output} {phrase}"
                readers = [
                    reader for reader in self.graph.readers.get(output, ()) if reader.position not in dead | seen
                ]
                pending += readers
                seen.update(reader.position for reader in readers)
        return node, f"{node.name} is inside the match, and the fused node would read what it makes"

    def _closed(self, covers: frozenset[int]) -> frozenset[int]:
        """The covered nodes and what lies between them: a node that only leads from one to another is not outside."""
        nodes, producers = self.graph.nodes, self.graph.producers
        reached: set[int] = set()
        for position in range(min(covers), max(covers) + 1):
            makers = (producers.get(value) for value in nodes[position].inputs)
            if position in covers or any(maker is not None and maker.position in reached for maker in makers):
                reached.add(position)
        between = set(covers)
        for position in sorted(reached, reverse=True):
            if position in between:
                makers = (producers.get(value) for value in nodes[position].inputs)
                between.update(maker.position for maker in makers if maker is not None and maker.position in reached)
        return frozenset(between)
