"""Blocks that a graph repeats: the layers of a model, exported one after the other. What is planned for one holds for all.

A repeated block is one whose nodes, each compared with the node one block before it, differ in nothing but names: the same
operators and attributes, inputs from the same places, weights of the same types and shapes. Of such blocks a few are kept at
each end, the others are left out of an `Excerpt` of the graph, and a plan made on the excerpt is carried over to the blocks
left out. That is done only where the plan itself shows that it may be: neighbouring blocks have the same plan, what flows from
one block into the next has the same type and shape, no block is a near miss, and the constants whose contents were looked at are
equal in all blocks.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import chain
from operator import itemgetter

import numpy as np
from onnx import AttributeProto, TensorProto, TypeProto

from onnx_fuse.passes.fuse.plan import Replacement
from onnx_fuse.passes.graph.index import Graph, Node, values_read
from onnx_fuse.passes.view.view import View

HEAD = 4
"""Blocks kept at the beginning: two that see what comes before, the one that stands for all, and one to compare it with."""

TAIL = 2
"""Blocks kept at the end: one to compare with those at the beginning, and the last, which what comes after reads."""

_MODEL = HEAD - 2

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
        start = self.run.start + (_MODEL - 1) * self.run.period
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
    if len(graph.nodes) < LEAST:
        return None
    run, own = _longest_run(graph)
    if run.left_out < LEAST:
        return None
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


# -- finding them --------------------------------------------------------------------------------------------------------


def _longest_run(graph: Graph) -> tuple[Run, set[str]]:
    """The blocks of which an excerpt would leave out most, and the constants that each of them has for itself."""
    wires = _Wires(graph)
    best: tuple[Run, set[str]] = Run(0, 0, 0), set()
    for period in _periods(wires.codes):
        stretch = _longest_stretch(wires.codes[period:] == wires.codes[:-period])
        if len(stretch) > max(LEAST, best[0].left_out):
            found, own = _longest_alike(graph, wires, period, range(stretch.start + period, stretch.stop + period))
            run = Run(found.start - period, period, len(found) // period + 1)
            best = max(best, (run, own), key=lambda item: item[0].left_out)
    return best


class _Wires:
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
        self.codes = np.array(_codes(graph))
        self.first = np.concatenate(([0], np.cumsum(numbers)))
        self.readers = np.repeat(np.arange(len(numbers)), numbers)
        self.makers = np.array([-1 if maker is None else maker.position for maker in makers])
        self.outputs = np.zeros(len(makers), dtype=np.int64)
        for place, maker in enumerate(makers):
            if maker is not None and len(maker.outputs) > 1:
                self.outputs[place] = maker.outputs.index(self.names[place])


def _codes(graph: Graph) -> list[int]:
    known: dict[object, int] = {}
    codes = []
    for node, proto in zip(graph.nodes, graph.proto.node, strict=True):
        attributes = proto.attribute
        written = tuple([_written(item) for item in attributes]) if attributes else ()
        # One that leaves out an output is like no other.
        outputs = node.outputs if "" in node.outputs else len(node.outputs)
        codes.append(known.setdefault((node.key, written, len(node.inputs), outputs), len(known)))
    return codes


def _longest_alike(graph: Graph, wires: _Wires, period: int, positions: range) -> tuple[range, set[str]]:
    """The longest part of `positions` whose nodes differ from those a period before them in names alone and read what stands where
    those read, and the constants among that which the others do not read.

    Args:
        positions: nodes of the same codes as those a period before them.
    """
    inputs = slice(wires.first[positions.start], wires.first[positions.stop])
    back = wires.first[positions.start] - wires.first[positions.start - period]
    twins = slice(inputs.start - back, inputs.stop - back)
    readers, makers, others = wires.readers[inputs], wires.makers[inputs], wires.makers[twins]
    # What is read comes from this block or the one before it, where the twin's comes from too; or it is the same for all.
    follows = (makers - others == period) & (readers - makers <= period)
    shared = makers == others
    good = (follows | shared) & (wires.outputs[inputs] == wires.outputs[twins])
    kinds: dict[str, object] = {}
    for place in np.flatnonzero(good & (makers < 0)).tolist():
        name, other = wires.names[inputs.start + place], wires.names[twins.start + place]
        if name != other:
            kinds[name] = kind = _kind(graph.tensor(name))
            good[place] = kind is not None and kind == (kinds.get(other) or _kind(graph.tensor(other)))
    alike = np.ones(len(positions), dtype=bool)
    alike[readers[~good] - positions.start] = False
    alike[[place - positions.start for place in _special(graph, positions, period)]] = False
    found = _longest_stretch(alike)
    alike[readers[shared & (makers >= positions.start + found.start - period)] - positions.start] = False
    found = _longest_stretch(alike)
    found = range(positions.start + found.start, positions.start + found.stop)
    constants = np.flatnonzero((makers < 0) & (readers >= found.start) & (readers < found.stop)).tolist()
    pairs = [(wires.names[inputs.start + place], wires.names[twins.start + place]) for place in constants]
    following, before = {other: name for name, other in pairs}, dict(pairs)
    if any((following[other], before[name]) != (name, other) for name, other in pairs):
        return range(0), set()  # one of them has two twins
    return found, {name for pair in pairs if pair[0] != pair[1] for name in pair}


def _special(graph: Graph, positions: range, period: int) -> Iterator[int]:
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


def _kind(tensor: TensorProto | None) -> tuple[int, tuple[int, ...]] | None:
    """Type and shape of a constant."""
    return None if tensor is None else (tensor.data_type, tuple(tensor.dims))


def _written(attribute: AttributeProto) -> bytes:
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


# -- carrying a plan over ------------------------------------------------------------------------------------------------


class Carried:
    """A plan for a whole graph, made from one for its excerpt; what is planned is made one by one as it is taken.

    Attributes:
        origins: for each item the number of the one on the excerpt that it comes from.
        dead: positions of the nodes that go because of all of them.
    """

    def __init__(self, part: Excerpt, replacements: Sequence[Replacement], dead: Collection[int]) -> None:
        self._part, self._replacements = part, replacements
        run, block = part.run, part.block
        shifts = range(0, run.left_out + (HEAD - _MODEL) * run.period, run.period)

        def moves(position: int) -> Sequence[int]:
            """How far on what belongs to this position stands in the whole graph: as often as the model block is repeated."""
            if block(position) == _MODEL:
                return shifts
            return () if _MODEL < block(position) < HEAD else (0 if block(position) < _MODEL else run.left_out,)

        found = [
            (_moved(item.position, run, by), number, by)
            for number, item in enumerate(replacements)
            for by in moves(item.root.position)
        ]
        self._order = sorted(found, key=itemgetter(0, 2, 1))
        self.origins = [number for _, number, _ in self._order]
        self.dead = {position + by for position in dead for by in moves(position)}

    def __iter__(self) -> Iterator[Replacement]:
        nodes = self._part.whole.nodes
        for _, number, by in self._order:
            yield _shifted(self._replacements[number], self._part, nodes, by)


def carried_over(
    view: View, part: Excerpt, replacements: Sequence[Replacement], dead: Collection[int]
) -> Carried | None:
    """What an excerpt is to be written as, for the whole graph; None where the blocks left out might not be like the others.

    Args:
        view: the view of the excerpt.
        part: the excerpt.
        replacements: what was planned on it.
        dead: positions of the nodes that go because of all of these.
    """
    blocks: dict[int, list[Replacement]] = {}
    for item in replacements:
        if not _stays_near(item, part):
            return None
        blocks.setdefault(part.block(item.root.position), []).append(item)
    going = {block: {place for place in dead if part.block(place) == block} for block in range(_MODEL, HEAD + 1)}
    for block in range(_MODEL + 1, HEAD + 1):
        by = (block - _MODEL) * part.run.period
        moved = [_shifted(item, part, part.nodes, by) for item in blocks.get(_MODEL, [])]
        if moved != [_shifted(item, part, part.nodes, 0) for item in blocks.get(block, [])]:
            return None
        if {place + by for place in going[_MODEL]} != going[block]:
            return None
    if not _steady(view, part) or not _equal_contents(view, part) or not _equal_types(view, part):
        return None
    return Carried(part, replacements, dead)


def _stays_near(item: Replacement, part: Excerpt) -> bool:
    """Whether what ends in a block has its nodes there and in the block before, reads nothing made more than two blocks before,
    and is named after a node of the graph."""
    block = part.block(item.root.position)
    dead = [part.block(position) for position in item.dead]
    made = {name: part.block(part.place(name)[0]) for name in item.leaves if part.place(name)[1]}
    first = min(block, HEAD + TAIL - 1)
    if max(dead) > block or (block > 0 and (min(dead) < first - 1 or min(made.values(), default=block) < first - 2)):
        return False
    # Of what lies behind the gap, an input that only the view has is made there of values behind the gap.
    if block >= HEAD and any(place < HEAD and name not in item.inputs.values() for name, place in made.items()):
        return False
    return block < 0 or not (item.carriers or item.root.name != part.nodes[item.root.position].name)


def _steady(view: View, part: Excerpt) -> bool:
    """Whether what the block that stands for all reads of the block before it is what the next one reads, in type and shape."""
    start, period = part.run.start + HEAD * part.run.period - part.run.period, part.run.period
    for node in part.nodes[start : start + period]:
        for name in node.inputs:
            maker = part.producers.get(name)
            if maker is None or not start - period <= maker.position < start:
                continue
            twin = part.nodes[maker.position - period]
            if view.info(name) != view.info(twin.outputs[maker.outputs.index(name)]):
                return False
    return True


def _equal_contents(view: View, part: Excerpt) -> bool:
    """Whether the constants of repeated blocks whose contents mattered have the same in all blocks."""
    run, nodes = part.run, part.whole.nodes
    for name in sorted(view.looked_at):
        position, index = part.first_reads.get(name, (-1, 0))
        if not 0 <= part.block(position) < HEAD + TAIL:
            continue
        first = run.start + (position - run.start) % run.period
        names = {node.inputs[index] for node in nodes[first : first + run.count * run.period : run.period]}
        wanted = view.content(name)
        if any(view.content(other) != wanted for other in names if other != name):
            return False
    return True


def _equal_types(view: View, part: Excerpt) -> bool:
    """Whether what ONNX's shape inference, which looks into constants too, was asked for has the same type in all blocks."""
    run, nodes = part.run, part.whole.nodes
    for name in view.inferred:
        maker = part.producers.get(name)
        if maker is None or not 0 <= part.block(maker.position) < HEAD + TAIL:
            continue
        first, output = run.start + (maker.position - run.start) % run.period, maker.outputs.index(name)
        names = [node.outputs[output] for node in nodes[first : first + run.count * run.period : run.period]]
        if len({_known(view.inferred_type(other)) for other in names}) > 1:
            return False
    return True


def _known(type_: TypeProto | None) -> tuple[object, ...] | None:
    """Element type and sizes; the names that shape inference gives to sizes it does not know say nothing."""
    if type_ is None or not type_.tensor_type.HasField("shape"):
        return None
    dims = type_.tensor_type.shape.dim
    return type_.tensor_type.elem_type, *(dim.dim_value or re.sub(r"unk__\d+", "", dim.dim_param) for dim in dims)


def _shifted(item: Replacement, part: Excerpt, nodes: Sequence[Node], by: int) -> Replacement:
    """The same so many nodes further on, among the nodes of the excerpt or of the whole graph."""
    start, place_of = part.run.start, part.place

    def moved(name: str) -> str:
        position, made, index = place_of(name)
        if not by or position < 0:
            return name
        node = nodes[position + by]
        return node.outputs[index] if made else node.inputs[index]

    return Replacement(
        item.fusion,
        nodes[_moved(item.root.position, part.run, by)],
        {key: name and moved(name) for key, name in item.inputs.items()},
        {key: moved(name) for key, name in item.outputs.items()},
        item.attributes,
        item.parts,
        item.carriers,
        tuple(sorted([moved(name) for name in item.made])),
        tuple([place + by if place >= start else place for place in item.dead]),
        _moved(item.position, part.run, by),
        (),
        item.dtype,
    )


def _moved(position: int, run: Run, by: int) -> int:
    """A position so many nodes further on, unless it lies before all blocks."""
    return position + by if position >= run.start else position
