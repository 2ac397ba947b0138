"""What the report tells of each fused node, noted before the nodes that it replaces go."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

from onnx import NodeProto

from onnx_fuse.passes.fuse.plan import Replacement
from onnx_fuse.passes.graph import blocks
from onnx_fuse.passes.graph.index import Graph
from onnx_fuse.passes.refusals import kind_of
from onnx_fuse.passes.report import MatchRecord


class MatchNotes:
    """Notes for the matches of one graph. Those of one kind, as in repeated blocks, share what they have in common.

    Args:
        graph: the graph as it came.
        left_out: for each kind of match, why the nodes that follow were not swallowed.
    """

    def __init__(self, graph: Graph, left_out: Iterable[tuple[str, ...]]) -> None:
        self._graph = graph
        self._left_out = [(sentences, _advice(sentences, graph)) for sentences in left_out]
        self._places: list[_Place] = []
        self._kinds: list[int] = []
        self._contents: dict[int, _Content] = {}

    def noting(self, replacements: Iterable[Replacement], kinds: Iterable[int]) -> Iterator[Replacement]:
        """The replacements, each noted as it is taken; `kinds` gives the number of its kind for each."""
        graph = self._graph
        shared: dict[_Content, _Content] = {}
        for item, kind in zip(replacements, kinds, strict=True):
            if kind not in self._contents:
                content = _content(item, graph)
                self._contents[kind] = shared.setdefault(content, content)
            # As long as protobuf's objects for the nodes are at hand the commit does not have them made again.
            protos = [graph.nodes[position].proto for position in item.dead]
            self._places.append(_place(item, protos, graph))
            self._kinds.append(kind)
            yield item

    def records(self, names: Sequence[str]) -> Iterator[MatchRecord]:
        """The records of all that was noted, given the names of the fused nodes."""
        for name, kind, place in zip(names, self._kinds, self._places, strict=True):
            content, (left_out, advice) = self._contents[kind], self._left_out[kind]
            yield MatchRecord(
                content.fusion,
                content.operator,
                name,
                place.root,
                self._graph.path,
                place.replaced,
                content.inputs,
                content.outputs,
                content.parts,
                left_out,
                place.block,
                advice,
                tuple(kind_of(sentence).code for sentence in left_out),
                content.replaced_types,
                content.replaced_edges,
            )


class _Place(NamedTuple):
    """Where a match is in the graph, in the fields of its record."""

    root: str
    replaced: tuple[str, ...]
    block: str


class _Content(NamedTuple):
    """What a match consists of, in the fields of its record."""

    fusion: str
    operator: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    parts: tuple[str, ...]
    replaced_types: tuple[str, ...]
    replaced_edges: tuple[tuple[int, int], ...]


def _place(item: Replacement, protos: Sequence[NodeProto], graph: Graph) -> _Place:
    names = tuple([proto.name or graph.nodes[place].name for proto, place in zip(protos, item.dead, strict=True)])
    return _Place(item.root.name, names, blocks.block_of_all(protos, graph.nodes[item.root.position].proto))


def _content(item: Replacement, graph: Graph) -> _Content:
    operator = item.fusion.operator
    nodes = [graph.nodes[position] for position in item.dead]
    number = {output: index for index, node in enumerate(nodes) for output in node.outputs if output}
    edges = [
        (maker, reader)
        for reader, node in enumerate(nodes)
        for maker in dict.fromkeys([number[name] for name in node.inputs if name in number])
    ]
    return _Content(
        fusion=item.fusion.name,
        operator=operator.name,
        inputs=tuple(operator.present(item.inputs)),
        outputs=tuple(output for output in operator.outputs if output in item.outputs),
        parts=item.parts,
        replaced_types=tuple([node.op_type for node in nodes]),
        replaced_edges=tuple(edges),
    )


def _advice(sentences: Iterable[str], graph: Graph) -> tuple[str, ...]:
    """What to change in the export, each once."""
    return tuple(dict.fromkeys(text for sentence in sentences if (text := blocks.advise(sentence, graph))))
