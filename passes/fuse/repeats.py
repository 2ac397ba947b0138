"""Blocks that a graph repeats: the layers of a model, exported one after the other.

A repeated block is one whose nodes, each compared with the node one block before it, differ in nothing but names: the same
operators and attributes, inputs from the same places, weights of the same types and shapes.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from onnx import AttributeProto, TensorProto

from onnx_fuse.passes.graph.index import Graph

HEAD = 4
"""Blocks kept at the beginning: two that see what comes before, the one that stands for all, and one to compare it with."""

TAIL = 2
"""Blocks kept at the end: one to compare with those at the beginning, and the last, which what comes after reads."""

LEAST = 512
"""Fewer nodes than this are not worth leaving out."""

_WINDOW = 16
_TRIES = 4


@dataclass(frozen=True)
class Run:
    """Equal blocks in a row: `count` times `period` nodes from the position `start`."""

    start: int
    period: int
    count: int

    @property
    def left_out(self) -> int:
        """Number of nodes that an excerpt leaves out."""
        return (self.count - HEAD - TAIL) * self.period


def longest_run(graph: Graph) -> tuple[Run, set[str]] | None:
    """The blocks of which an excerpt would leave out most, and the constants that each of them has for itself; None where that
    would be fewer than `LEAST` nodes."""
    if len(graph.nodes) < LEAST:
        return None
    wiring = _Wiring(graph)
    best: tuple[Run, set[str]] = Run(0, 0, 0), set()
    for period in _periods(wiring.codes):
        stretch = _longest_stretch(wiring.codes[period:] == wiring.codes[:-period])
        if len(stretch) > max(LEAST, best[0].left_out):
            found, own = _longest_alike(graph, wiring, period, range(stretch.start + period, stretch.stop + period))
            run = Run(found.start - period, period, len(found) // period + 1)
            best = max(best, (run, own), key=lambda item: item[0].left_out)
    return best if best[0].left_out >= LEAST else None


class _Wiring:
    """What the nodes of a graph are and read, as arrays.

    Attributes:
        codes: a number for each node, equal for those of one operator, with the same attributes and numbers of inputs and outputs.
        names: the inputs of all nodes, one after the other.
        readers, makers, outputs: for each of these the position of the node that reads it and of the one that makes it (-1 for
            none), and which of that one's outputs it is.
        first: where the inputs of each node begin.
    """

    def __init__(self, graph: Graph) -> None:
        numbers = [len(node.inputs) for node in graph.nodes]
        self.names = [name for node in graph.nodes for name in node.inputs]
        makers = [graph.producers.get(name) for name in self.names]
        self.codes = np.array(_node_codes(graph))
        self.first = np.concatenate(([0], np.cumsum(numbers)))
        self.readers = np.repeat(np.arange(len(numbers)), numbers)
        self.makers = np.array([-1 if maker is None else maker.position for maker in makers])
        self.outputs = np.zeros(len(makers), dtype=np.int64)
        for place, maker in enumerate(makers):
            if maker is not None and len(maker.outputs) > 1:
                self.outputs[place] = maker.outputs.index(self.names[place])


def _node_codes(graph: Graph) -> list[int]:
    known: dict[object, int] = {}
    codes = []
    for node, proto in zip(graph.nodes, graph.proto.node, strict=True):
        attributes = proto.attribute
        written = tuple([_attribute_bytes(item) for item in attributes]) if attributes else ()
        # One that leaves out an output is like no other.
        outputs = node.outputs if "" in node.outputs else len(node.outputs)
        codes.append(known.setdefault((node.key, written, len(node.inputs), outputs), len(known)))
    return codes


def _longest_alike(graph: Graph, wiring: _Wiring, period: int, positions: range) -> tuple[range, set[str]]:
    """The longest part of `positions` whose nodes differ from those a period before them in names alone and read what stands where
    those read, and the constants among that which the others do not read.

    Args:
        positions: nodes of the same codes as those a period before them.
    """
    inputs = slice(wiring.first[positions.start], wiring.first[positions.stop])
    back = wiring.first[positions.start] - wiring.first[positions.start - period]
    twins = slice(inputs.start - back, inputs.stop - back)
    readers, makers, others = wiring.readers[inputs], wiring.makers[inputs], wiring.makers[twins]
    # What is read comes from this block or the one before it, where the twin's comes from too; or it is the same for all.
    follows = (makers - others == period) & (readers - makers <= period)
    shared = makers == others
    good = (follows | shared) & (wiring.outputs[inputs] == wiring.outputs[twins])
    kinds: dict[str, object] = {}
    for place in np.flatnonzero(good & (makers < 0)).tolist():
        name, other = wiring.names[inputs.start + place], wiring.names[twins.start + place]
        if name != other:
            kinds[name] = kind = _type_and_shape(graph.tensor(name))
            good[place] = kind is not None and kind == (kinds.get(other) or _type_and_shape(graph.tensor(other)))
    alike = np.ones(len(positions), dtype=bool)
    alike[readers[~good] - positions.start] = False
    alike[[place - positions.start for place in _incomparable(graph, positions, period)]] = False
    found = _longest_stretch(alike)
    alike[readers[shared & (makers >= positions.start + found.start - period)] - positions.start] = False
    found = _longest_stretch(alike)
    found = range(positions.start + found.start, positions.start + found.stop)
    constants = np.flatnonzero((makers < 0) & (readers >= found.start) & (readers < found.stop)).tolist()
    pairs = [(wiring.names[inputs.start + place], wiring.names[twins.start + place]) for place in constants]
    following, before = {other: name for name, other in pairs}, dict(pairs)
    if any((following[other], before[name]) != (name, other) for name, other in pairs):
        return range(0), set()  # one of them has two twins
    return found, {name for pair in pairs if pair[0] != pair[1] for name in pair}


def _incomparable(graph: Graph, positions: range, period: int) -> Iterator[int]:
    """Positions of the nodes that hold subgraphs, or whose outputs have other declared types than those a period before them."""
    types = graph.value_types if graph.proto.value_info else {}
    for place in positions:
        node = graph.nodes[place]
        if node.nests:
            yield place
        elif types:
            twin = graph.nodes[place - period]
            if [types.get(name) for name in node.outputs] != [types.get(name) for name in twin.outputs]:
                yield place


def _type_and_shape(tensor: TensorProto | None) -> tuple[int, tuple[int, ...]] | None:
    """Type and shape of a constant."""
    return None if tensor is None else (tensor.data_type, tuple(tensor.dims))


def _attribute_bytes(attribute: AttributeProto) -> bytes:
    """An attribute as bytes; the name that a tensor in it carries says nothing."""
    if attribute.HasField("t") and attribute.t.name:
        nameless = AttributeProto()
        nameless.CopyFrom(attribute)
        nameless.t.ClearField("name")
        attribute = nameless
    return attribute.SerializeToString(deterministic=True)


def _periods(codes: np.ndarray) -> list[int]:
    """The most frequent distances between one window of nodes and the next that is equal to it."""
    if codes.size <= _WINDOW:
        return []
    windows = np.zeros(codes.size - _WINDOW + 1, dtype=np.uint64)
    for offset in range(_WINDOW):
        windows = windows * np.uint64(0x9E3779B97F4A7C15) + codes[offset : offset + windows.size].astype(np.uint64)
    order = np.argsort(windows, kind="stable")
    following = windows[order][1:] == windows[order][:-1]
    distances, counts = np.unique((order[1:] - order[:-1])[following], return_counts=True)
    return [int(distances[place]) for place in np.argsort(-counts, kind="stable")[:_TRIES]]


def _longest_stretch(equal: np.ndarray) -> range:
    """The longest stretch of True."""
    edges = np.flatnonzero(np.diff(np.concatenate(([0], equal.astype(np.int8), [0]))))
    stretches = [range(*pair) for pair in edges.reshape(-1, 2).tolist()]
    return max(stretches, key=len, default=range(0))
