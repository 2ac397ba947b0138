"""Plans all matches of one graph, settles overlaps, and commits what is left in one edit of the original.

A fused node takes over the names of the values it makes. Whatever nothing reads any more then goes; everything else stays as it
was, byte for byte. "No outside reader" is asked of the original graph, not of the view.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
from onnx import FunctionProto, NodeProto, TensorProto, helper, numpy_helper

from onnx_fuse.errors import ModelError, RewriteError
from onnx_fuse.passes.graph import function_bodies
from onnx_fuse.passes.graph.index import Graph
from onnx_fuse.passes.graph.node import Node, values_read
from onnx_fuse.passes.view.layout_transform import MOVES
from onnx_fuse.passes.view.matcher import Match
from onnx_fuse.passes.view.view import View
from onnx_fuse.patterns.language.operator import Fused, Fusion

CHEAP = frozenset(
    {"Reshape", "Transpose", "Squeeze", "Unsqueeze", "Flatten", "Expand", "Slice", "Concat", "Split", "Gather"}
    | {"Identity", "Dropout", "Cast", "CastLike", "Not", "Constant", "ConstantOfShape", "Shape", "Size", "Range"}
)
"""Operators that may stay for an outside reader although a fusion covers them: they move or describe data."""

_CARRIERS = MOVES | {"Concat"}

_MISPLACED = "it and another fused node would each have to stand before the other"


@dataclass(frozen=True, slots=True)
class Candidate:
    """A match that its fusion accepted.

    Attributes:
        covers: positions of the original nodes that the matched ones stand for; who covers most wins an overlap.
    """

    fusion: Fusion
    match: Match
    fused: Fused

    covers: frozenset[int]


@dataclass(frozen=True, slots=True)
class Planned:
    """A candidate that will be committed.

    Attributes:
        outputs: operator's output name -> value, the optional ones that are needed included.
        carriers: view-only nodes to write after the fused node, which make original values of its outputs: moves, and Concat.
        made: original values that come from the fused node and its carriers from now on, sorted.
        dead: positions of the nodes that go because of it alone, sorted.
        position: place of the fused node.
        leaves: original values that the fused node reads, sorted.
        dtype: TensorProto.DataType of its first output; 0 where unknown.
    """

    candidate: Candidate
    outputs: Mapping[str, str]
    carriers: tuple[Node, ...]
    made: tuple[str, ...]
    dead: tuple[int, ...]
    position: int
    leaves: tuple[str, ...]
    dtype: int


class Replacement(NamedTuple):
    """One fused node to write, and what it replaces.

    Attributes:
        fusion: where it comes from.
        root: the node it is named after.
        inputs: operator's input name -> value; None where absent.
        outputs: operator's output name -> value.
        attributes, parts: as in `Fused`.
        carriers, made, dead, position, leaves, dtype: as in `Planned`.
    """

    fusion: Fusion
    root: Node
    inputs: Mapping[str, str | None]
    outputs: Mapping[str, str]
    attributes: Mapping[str, Any]
    parts: tuple[str, ...]
    carriers: tuple[Node, ...]
    made: tuple[str, ...]
    dead: tuple[int, ...]
    position: int
    leaves: tuple[str, ...]
    dtype: int


@dataclass(frozen=True, slots=True)
class Refusal:
    """A candidate that cannot be committed, and why."""

    candidate: Candidate
    failed_at: str
    reason: str


class Rewriter:
    """Plans and commits the rewrites of one graph.

    Args:
        view: the canonical view the matches were found in.
        bodies: collects the function bodies of the fused operators.
    """

    def __init__(self, view: View, bodies: function_bodies.Bodies) -> None:
        self.view = view
        self.graph: Graph = view.graph
        self.bodies = bodies
        self._together: tuple[list[Candidate], set[int]] | None = None

    # -- planning ------------------------------------------------------------------------------------------------------

    def plan(self, candidates: Sequence[Candidate]) -> tuple[list[Planned], list[Refusal]]:
        """Checks each candidate against the original graph and settles overlaps: largest first, ties by graph order."""
        refusals: list[Refusal] = []
        possible: list[Planned] = []
        for candidate in candidates:
            result = self._check(candidate)
            if isinstance(result, Refusal):
                refusals.append(result)
            else:
                possible.append(result)
        # Of two that end in the same moves the longer one may cover fewer nodes, but it always replaces more, or leaves less.
        possible.sort(key=lambda item: (-len(item.dead), len(item.carriers), item.candidate.match.root.position))
        owner: dict[int, Planned] = {}
        accepted: list[Planned] = []
        for item in possible:
            winner = next((owner[position] for position in item.dead if position in owner), None)
            if winner is not None:
                refusals.append(self._lost(item, winner))
                continue
            accepted.append(item)
            owner.update(dict.fromkeys(item.dead, item))
        while (misplaced := self._arrange(accepted)) is not None:
            refusals.append(Refusal(misplaced.candidate, misplaced.candidate.match.root.name, _MISPLACED))
            accepted.remove(misplaced)
        return accepted, refusals

    def _arrange(self, accepted: list[Planned]) -> Planned | None:
        """Sorts by place in the graph, where what one makes comes before all who read it; returns one for which there is
        no such place."""
        makers = {value: number for number, item in enumerate(accepted) for value in item.made}
        dead = self.dead_together(accepted)
        places: list[int] = []
        for item in accepted:
            # What one of them would have made dead may stay for another: its place is before that.
            place = self._position(set(item.made), dead, set(item.leaves))
            if isinstance(place, str):
                return item
            places.append(place)
        ranks = [0] * len(accepted)
        pending = list(range(len(accepted)))
        while pending:
            reader = pending.pop()
            for value in accepted[reader].leaves:
                maker = makers.get(value, reader)
                if maker == reader or (places[maker], ranks[maker]) < (places[reader], ranks[reader]):
                    continue
                places[maker] = min(places[maker], places[reader])
                ranks[maker] = ranks[reader] - 1
                leaves = [
                    leaf for leaf in accepted[maker].leaves if leaf not in makers and leaf in self.graph.producers
                ]
                last = max((self.graph.producers[leaf].position for leaf in leaves), default=-1)
                if last >= places[maker] or ranks[maker] < -len(accepted):
                    return accepted[max(maker, reader)]
                pending.append(maker)
        order = sorted(range(len(accepted)), key=lambda number: (places[number], ranks[number]))
        accepted[:] = [replace(accepted[number], position=places[number]) for number in order]
        return None

    @staticmethod
    def _lost(item: Planned, winner: Planned) -> Refusal:
        root = winner.candidate.match.root.name
        return Refusal(
            item.candidate,
            item.candidate.match.root.name,
            f"{winner.candidate.fusion.name} at {root} covers more of it",
        )

    def _check(self, candidate: Candidate) -> Planned | Refusal:
        fused = candidate.fused
        where = candidate.match.root.name
        if candidate.match.root.position in self._idle:
            return Refusal(candidate, where, "no output of the graph depends on it")
        carriers: list[Node] = []
        made: set[str] = set()
        for value in fused.outputs.values():
            after, values = self._carried(value)
            if not values:
                return Refusal(candidate, where, f"its output {value} is no value of the graph")
            carriers += after
            made |= values
        leaves = self._leaves([value for value in fused.inputs.values() if value])
        if leaves is None:
            return Refusal(candidate, where, "one of its inputs cannot be written into the graph")
        outputs = dict(fused.outputs)
        dead = self._dead(made, leaves)
        for name, value in fused.optional_outputs.items():
            after, values = self._carried(value)
            if any(self._read_outside(item, dead) is not None for item in values):
                outputs[name] = value
                carriers += after
                made |= values
                dead = self._dead(made, leaves)
        beside = self._leaves(self._beside(carriers, outputs.values()) if carriers else ())
        if beside is None:
            return Refusal(candidate, where, "a value beside its output cannot be written into the graph")
        if not beside <= leaves:
            leaves |= beside
            dead = self._dead(made, leaves)
        makers = sorted({self.graph.producers[value].position for value in made} - dead)
        if makers:
            # A node of several outputs, of which the fused node makes one: it cannot stay without making it too.
            node = self.graph.nodes[makers[0]]
            others = [output for output in node.outputs if output and output not in made]
            told = ((output, self._read_outside(output, dead)) for output in others)
            reason = next((f"its output {output} {phrase}" for output, phrase in told if phrase), None)
            return Refusal(candidate, node.name, reason or "the fused node reads what it makes as well")
        may_stay = self._may_stay(candidate)
        for position in sorted(candidate.covers - dead):
            node = self.graph.nodes[position]
            if position in may_stay or node.op_type in CHEAP or made.intersection(node.outputs):
                continue
            stays, reason = self._why_it_stays(node, dead, candidate.covers)
            return Refusal(candidate, stays.name, reason)
        place = self._position(made, dead, leaves)
        if isinstance(place, str):
            return Refusal(candidate, where, place)
        return Planned(
            candidate,
            outputs,
            tuple(carriers),
            made=tuple(sorted(made)),
            dead=tuple(sorted(dead)),
            position=place,
            leaves=tuple(sorted(leaves)),
            dtype=self.view.dtype(
                next(outputs[name] for name in candidate.fusion.operator.outputs if outputs.get(name))
            ),
        )

    def _may_stay(self, candidate: Candidate) -> frozenset[int]:
        """Positions of covered nodes that an outside reader may keep in the graph."""
        values = set(candidate.fused.may_stay)
        nodes = [node for node in candidate.match.nodes if values.intersection(node.outputs)] if values else []
        return frozenset().union(*(self.view.covers(node) for node in nodes))

    def _beside(self, carriers: Sequence[Node], outputs: Iterable[str]) -> list[str]:
        """What carriers read besides the fused node's outputs and each other."""
        own = {*outputs, *(node.outputs[0] for node in carriers)}
        read = [name for node in carriers if node.op_type == "Concat" for name in self.view.inputs(node)]
        return [name for name in read if name not in own]

    def _carried(self, value: str) -> tuple[list[Node], set[str]]:
        """The view-only nodes through which a value reaches the original graph, and the original values they make.

        An original value reaches it by itself; without any, the graph has no use for the value.
        """
        if value in self.graph.producers:
            return [], {value}
        nodes: list[Node] = []
        values: set[str] = set()
        pending = [value]
        while pending:
            for node in self.view.readers(pending.pop()):
                output = node.outputs[0]
                if self.view.exists_in_original(output) and self.graph.producers[output] is node:
                    continue
                if node.domain == "" and node.op_type in _CARRIERS and node not in nodes:
                    nodes.append(node)
                    if output in self.graph.producers:
                        values.add(output)
                    else:
                        pending.append(output)
        return nodes, values

    def _leaves(self, values: Iterable[str]) -> set[str] | None:
        """Original values from which the view-only part of `values` is made."""
        leaves: set[str] = set()
        pending = [self.view.resolve(value) for value in values]
        seen: set[str] = set()
        while pending:
            value = pending.pop()
            if value in seen or not value:
                continue
            seen.add(value)
            if self.view.is_array(value):
                continue
            if self.view.exists_in_original(value):
                leaves.add(value)
                continue
            node = self.view.producer(value)
            if node is not None and not self.view.is_valid(node):
                node = self._turned(value)
            if node is None:
                return None
            pending.extend(self.view.inputs(node))
        return leaves

    def _turned(self, value: str) -> Node | None:
        """What makes a value that cannot be written, such as a norm that the opset lacks, of one that is there: a Transpose."""
        for node in self.view.readers(value):
            if node.key == ("", "Transpose") and self.view.exists_in_original(node.outputs[0]):
                perm = np.argsort(self.view.attribute(node, "perm")).tolist()
                proto = helper.make_node("Transpose", [node.outputs[0]], [value], perm=perm)
                return Node(proto, node.position)
        return None

    def _dead(self, made: Iterable[str], kept: set[str]) -> set[int]:
        """Positions of the nodes that nothing needs once the values in `made` come from elsewhere."""
        cut = set(made)
        dead: set[int] = set()
        producers = self.graph.producers
        pending = [producers[value] for value in cut]
        while pending:
            node = pending.pop()
            if node.position in dead or self._needed(node, cut, dead, kept):
                continue
            dead.add(node.position)
            pending.extend([producers[value] for value in node.inputs if value in producers])
        return dead | self._stranded(dead, cut) if self._idle else dead

    def dead_together(self, planned: Sequence[Planned]) -> set[int]:
        """Positions of the nodes that go because of all of these; the last answer is kept: what is planned is committed."""
        asked = [item.candidate for item in planned]
        if self._together is None or self._together[0] != asked:
            made = [value for item in planned for value in item.made]
            leaves = {value for item in planned for value in item.leaves}
            self._together = asked, self._dead(made, leaves)
        return self._together[1]

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

    @cached_property
    def _idle(self) -> frozenset[int]:
        """Positions of nodes that no graph output depends on: dead already, so nobody outside."""
        producers = self.graph.producers
        live: set[int] = set()
        pending = [producers[name] for name in self.graph.outputs if name in producers]
        while pending:
            node = pending.pop()
            if node.position not in live:
                live.add(node.position)
                read = values_read(node) if node.nests else node.inputs
                pending.extend([producers[name] for name in read if name in producers])
        return frozenset([node.position for node in self.graph.nodes if node.position not in live])

    def _needed(self, node: Node, cut: set[str], dead: set[int], kept: set[str]) -> bool:
        graph, idle = self.graph, self._idle
        for output in node.outputs:
            if output in cut or not output:
                continue
            if output in kept or output in graph.outputs:
                return True
            for reader in graph.readers.get(output, ()):
                position = reader.position
                if position not in dead and position not in idle:
                    return True
        return False

    def _read_outside(self, value: str, dead: set[int]) -> str | None:
        """Who needs a value besides the nodes in `dead`, as a phrase; None for nobody."""
        if value in self.graph.outputs:
            return "is a graph output"
        for reader in self.graph.readers.get(value, ()):
            if reader.position not in dead and reader.position not in self._idle:
                return f"is also read by {reader.name} outside the match"
        return None

    def _why_it_stays(self, node: Node, dead: set[int], covers: frozenset[int]) -> tuple[Node, str]:
        """The node, or the covered one that stays for its sake, that is needed outside a match, and by whom."""
        pending, seen = [node], {node.position}
        while pending:
            item = pending.pop(0)
            for output in filter(None, item.outputs):
                phrase = self._read_outside(output, dead | covers)
                if phrase is not None:
                    return item, f"its output {output} {phrase}"
                readers = [
                    reader for reader in self.graph.readers.get(output, ()) if reader.position not in dead | seen
                ]
                pending += readers
                seen.update(reader.position for reader in readers)
        return node, "what it makes would be read by the fused node as well"

    def _position(self, made: set[str], dead: set[int], leaves: set[str]) -> int | str:
        """Where the fused node can stand: after all it reads, before all who read it."""
        position = max(self.graph.producers[value].position for value in made)
        readers = [
            reader.position
            for value in made
            for reader in self.graph.readers.get(value, ())
            if reader.position not in dead
        ]
        first_reader = min(readers, default=position + 1)
        last_leaf = max(
            (self.graph.producers[leaf].position for leaf in leaves if leaf in self.graph.producers), default=-1
        )
        if first_reader <= position:
            position = first_reader
        if last_leaf >= position:
            return "one of its inputs is made from one of its outputs, or stands after a reader of it"
        return position

    # -- commit --------------------------------------------------------------------------------------------------------

    def replacement(self, item: Planned) -> Replacement:
        """What a plan writes, with the canonical names of its inputs."""
        fusion, fused, match = item.candidate.fusion, item.candidate.fused, item.candidate.match
        return Replacement(
            fusion,
            match.root,
            {name: self.view.resolve(value) if value else None for name, value in fused.inputs.items()},
            item.outputs,
            fused.attributes,
            fused.parts,
            item.carriers,
            item.made,
            item.dead,
            item.position,
            item.leaves,
            item.dtype,
        )

    def commit(self, replacements: Iterable[Replacement], graph: Graph, dead: set[int]) -> list[str]:
        """Writes the fused nodes into a graph and removes what has just become dead; returns the names of the fused nodes.

        Args:
            replacements: what to write, taken one by one, in the order of the graph.
            graph: the original graph: the view's own, or the one that it is an excerpt of.
            dead: positions of the nodes that go because of all of it.
        """
        problem = graph.unsound()
        if problem is not None:  # onnx's checker does not look into functions, nor at the outputs of subgraphs
            raise ModelError(f"The model is not valid ONNX: {problem}.", "Export it again, or repair what is named.")
        initializers: list[TensorProto] = []
        names: list[str] = []
        domains: set[str] = set()
        graph.forget("initializers", "readers")  # they would be out of date, and take memory until then
        read = {name for position in dead for name in graph.nodes[position].inputs if name not in graph.producers}
        gone: set[str] = set()
        if graph.proto.value_info:
            gone = {name for position in dead for name in graph.nodes[position].outputs}

        def watched() -> Iterator[Replacement]:
            for item in replacements:
                domains.add(item.fusion.operator.domain)
                gone.difference_update(item.made)
                yield item

        graph.edit(add=self._additions(watched(), graph, names, initializers), remove=dead, initializers=initializers)
        for domain in sorted(domains):
            function_bodies.import_domain(graph.model.opset_import, domain)
            if isinstance(graph.outermost.proto, FunctionProto):
                function_bodies.import_domain(graph.outermost.proto.opset_import, domain)
        problem = graph.unsound()
        if problem is not None:
            raise RewriteError(f"After fusing, {problem}.", "This is a fault of a fusion: please report it.")
        graph.drop_unread_initializers(read)
        if gone:
            graph.drop_value_info(gone)
        return names

    def _additions(
        self, replacements: Iterable[Replacement], graph: Graph, names: list[str], initializers: list[TensorProto]
    ) -> Iterator[tuple[int, NodeProto]]:
        """The nodes to add, made one by one as they are taken, and their places; the fused ones' names go to `names`."""
        written: set[str] = set()
        taken: dict[str, set[str]] = {}
        for item in replacements:
            additions: list[tuple[int, NodeProto]] = []
            for value in item.inputs.values():
                if value and value not in graph.producers:
                    self._write(value, item.position, written, additions, initializers)
            operator = item.fusion.operator.name
            if operator not in taken:
                taken[operator] = {name for proto in graph.proto.node if operator in (name := proto.name)}
            node = self._fused_node(item, taken[operator])
            replaced = [graph.nodes[position].proto for position in item.dead]
            function_bodies.merge_metadata(node, replaced, record=graph.model.ir_version >= 10)
            additions.append((item.position, node))
            written.update(item.outputs.values())
            for carrier in item.carriers:
                if carrier.outputs[0] not in written:  # else a carrier before it has brought it along
                    written.add(carrier.outputs[0])
                    self._write_node(carrier, item.position, written, additions, initializers)
            names.append(node.name)
            yield from additions

    def _fused_node(self, item: Replacement, names: set[str]) -> NodeProto:
        operator = item.fusion.operator
        wanted = f"{item.root.name}/{operator.name}"
        name, number = wanted, 1
        while name in names:
            name, number = f"{wanted}_{number}", number + 1
        names.add(name)
        opsets = self.graph.opsets
        return self.bodies.node(operator, item.inputs, item.outputs, item.attributes, opsets, item.dtype, name)

    def _write(
        self,
        value: str,
        position: int,
        written: set[str],
        additions: list[tuple[int, NodeProto]],
        initializers: list[TensorProto],
    ) -> None:
        """Brings a view-only value and the nodes behind it into the original, once."""
        value = self.view.resolve(value)
        if not value or value in written:
            return
        array = self.view.array_of(value)
        if array is not None:
            written.add(value)
            initializers.append(numpy_helper.from_array(array, value))
            return
        if self.view.exists_in_original(value):
            return
        written.add(value)
        node = self.view.producer(value)
        if node is not None and not self.view.is_valid(node):
            node = self._turned(value)
        if node is not None:
            self._write_node(node, position, written, additions, initializers)

    def _write_node(
        self,
        node: Node,
        position: int,
        written: set[str],
        additions: list[tuple[int, NodeProto]],
        initializers: list[TensorProto],
    ) -> None:
        inputs = self.view.inputs(node)
        for name in inputs:
            self._write(name, position, written, additions, initializers)
        proto = NodeProto()
        proto.CopyFrom(node.proto)
        proto.name = node.outputs[0]
        proto.input[:] = inputs
        additions.append((position, proto))
