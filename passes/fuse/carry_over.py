"""Carries a plan made on an excerpt over to the whole graph, where the plan itself shows that it may be.

Neighbouring blocks must have the same plan, what flows from one block into the next must have the same type and shape, and the
constants whose contents were looked at must be equal in all blocks. That no block is a near miss is for the caller to see.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Sequence
from operator import itemgetter

from onnx import TypeProto

from onnx_fuse.passes.fuse.excerpt import MODEL, Excerpt
from onnx_fuse.passes.fuse.plan import Replacement
from onnx_fuse.passes.fuse.repeats import HEAD, TAIL, Run
from onnx_fuse.passes.graph.node import Node
from onnx_fuse.passes.view.view import View


class CarriedPlan:
    """A plan for a whole graph, made from one for its excerpt; what is planned is made one by one as it is taken.

    Attributes:
        origins: for each item the number of the one on the excerpt that it comes from.
        dead: positions of the nodes that go because of all of them.
    """

    def __init__(self, part: Excerpt, replacements: Sequence[Replacement], dead: Collection[int]) -> None:
        self._part, self._replacements = part, replacements
        run, block = part.run, part.block
        shifts = range(0, run.left_out + (HEAD - MODEL) * run.period, run.period)

        def shifts_of(position: int) -> Sequence[int]:
            """How far on what belongs to this position stands in the whole graph: as often as the model block is repeated."""
            if block(position) == MODEL:
                return shifts
            return () if MODEL < block(position) < HEAD else (0 if block(position) < MODEL else run.left_out,)

        found = [
            (_shifted_position(item.position, run, by), number, by)
            for number, item in enumerate(replacements)
            for by in shifts_of(item.root.position)
        ]
        self._order = sorted(found, key=itemgetter(0, 2, 1))
        self.origins = [number for _, number, _ in self._order]
        self.dead = {position + by for position in dead for by in shifts_of(position)}

    def __iter__(self) -> Iterator[Replacement]:
        nodes = self._part.whole.nodes
        for _, number, by in self._order:
            yield _shifted(self._replacements[number], self._part, nodes, by)


def carried_over(
    view: View, part: Excerpt, replacements: Sequence[Replacement], dead: Collection[int]
) -> CarriedPlan | None:
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
    going = {block: {place for place in dead if part.block(place) == block} for block in range(MODEL, HEAD + 1)}
    for block in range(MODEL + 1, HEAD + 1):
        by = (block - MODEL) * part.run.period
        moved = [_shifted(item, part, part.nodes, by) for item in blocks.get(MODEL, [])]
        if moved != [_shifted(item, part, part.nodes, 0) for item in blocks.get(block, [])]:
            return None
        if {place + by for place in going[MODEL]} != going[block]:
            return None
    if not _flows_alike(view, part) or not _equal_contents(view, part) or not _equal_types(view, part):
        return None
    return CarriedPlan(part, replacements, dead)


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


def _flows_alike(view: View, part: Excerpt) -> bool:
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
        if len({_comparable(view.inferred_type(other)) for other in names}) > 1:
            return False
    return True


def _comparable(type_: TypeProto | None) -> tuple[object, ...] | None:
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
        nodes[_shifted_position(item.root.position, part.run, by)],
        {key: name and moved(name) for key, name in item.inputs.items()},
        {key: moved(name) for key, name in item.outputs.items()},
        item.attributes,
        item.parts,
        item.carriers,
        tuple(sorted([moved(name) for name in item.made])),
        tuple([place + by if place >= start else place for place in item.dead]),
        _shifted_position(item.position, part.run, by),
        (),
        item.dtype,
    )


def _shifted_position(position: int, run: Run, by: int) -> int:
    """A position so many nodes further on, unless it lies before all blocks."""
    return position + by if position >= run.start else position
