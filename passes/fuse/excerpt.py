"""A graph without the middle ones of its repeated blocks, so that what is alike is looked at once."""

from __future__ import annotations

from functools import cached_property
from itertools import chain

from onnx import TensorProto

from onnx_fuse.passes.fuse.repeats import HEAD, TAIL, Run, longest_run
from onnx_fuse.passes.graph.index import Graph
from onnx_fuse.passes.graph.node import Node, values_read

MODEL = HEAD - 2
"""Number of the kept block that stands for those left out."""


class Excerpt(Graph):
    """A graph without the middle ones of its repeated blocks, only to be looked at: what reads the last block left out reads
    the last block before the gap instead.

    Args:
        whole: the graph.
        run: its repeated blocks.
    """

    def __init__(self, whole: Graph, run: Run) -> None:
        self.whole = whole
        self.run = run
        self.gap = run.start + HEAD * run.period
        following = whole.nodes[self.gap + run.left_out :]
        nodes = [*whole.nodes[: self.gap], *(self._after_gap(node) for node in following)]
        self._places: dict[str, tuple[int, bool, int]] = {}
        super().__init__(whole.proto, whole.model, whole.path, whole.outer, nodes)

    @property
    def initializers(self) -> dict[str, TensorProto]:
        """Those of the whole graph."""
        return self.whole.initializers

    @cached_property
    def names(self) -> set[str]:
        """Those of the whole graph: a new name must be new there, and stays free should the plan not be carried over."""
        return set(self.whole.names)

    def _after_gap(self, node: Node) -> Node:
        moved = node.moved(node.position - self.run.left_out)
        moved.inputs = tuple([self._before_gap(name) for name in node.inputs])
        return moved

    def _before_gap(self, name: str) -> str:
        maker = self.whole.producers.get(name)
        if maker is None or not self.gap <= maker.position < self.gap + self.run.left_out:
            return name
        twin = self.whole.nodes[maker.position - self.run.left_out]
        return twin.outputs[maker.outputs.index(name)]

    def block(self, position: int) -> int:
        """Number of the kept block that a position lies in: -1 before the first, HEAD + TAIL after the last."""
        return max(-1, min((position - self.run.start) // self.run.period, HEAD + TAIL))

    @cached_property
    def first_reads(self) -> dict[str, tuple[int, int]]:
        """Value that no node from the first block on makes -> (node, input) where it is first read by the block before the one
        that stands for all or after it, or else before."""
        found: dict[str, tuple[int, int]] = {}
        start = self.run.start + (MODEL - 1) * self.run.period
        for node in (*self.nodes[start:], *self.nodes[self.run.start : start]):
            for index, name in enumerate(node.inputs):
                maker = self.producers.get(name)
                if maker is None or maker.position < self.run.start:
                    found.setdefault(name, (node.position, index))
        return found

    def place(self, name: str) -> tuple[int, bool, int]:
        """Where a value is found from the first block on: (node, whether it makes it or reads it, which output or input); the node
        is -1 if it is not."""
        found = self._places.get(name)
        if found is None:
            maker = self.producers.get(name)
            if maker is not None and maker.position >= self.run.start:
                found = maker.position, True, maker.outputs.index(name)
            else:
                position, index = self.first_reads.get(name, (-1, 0))
                found = position, False, index
            self._places[name] = found
        return found


def excerpt(graph: Graph) -> Excerpt | None:
    """The graph without most of its repeated blocks; None where it has too few of them, or they are read from elsewhere, or
    where names do not tell nodes apart, as what is told of near misses takes for granted."""
    found = longest_run(graph)
    if found is None:
        return None
    run, own = found
    blocks = graph.nodes[run.start : run.start + run.count * run.period]
    after = graph.nodes[run.start + run.count * run.period :]
    behind = range(run.start, run.start + (run.count - TAIL) * run.period)
    makers = [graph.producers.get(name) for name in chain(graph.outputs, *(values_read(node) for node in after))]
    if any(maker is not None and maker.position in behind for maker in makers):
        return None
    own &= set(chain(graph.outputs, *(values_read(node) for node in (*graph.nodes[: run.start], *after))))
    if any(not own.isdisjoint(node.inputs) for node in blocks):
        return None
    part = Excerpt(graph, run)
    return part if len({node.name for node in part.nodes}) == len(part.nodes) else None
