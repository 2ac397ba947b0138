"""Plans what to fuse in one graph: which matches may go, who wins where two overlap, and where fused nodes stand.

A fused node takes over the names of the values it makes. Whatever nothing reads any more then goes; everything else stays. Nothing
is written here.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from onnx_fuse.passes.fuse.body_check import disagreement
from onnx_fuse.passes.fuse.liveness import Liveness
from onnx_fuse.passes.fuse.view_only import carriers, read_beside, sources
from onnx_fuse.passes.graph.index import Graph
from onnx_fuse.passes.graph.node import Node
from onnx_fuse.passes.view.matcher import Match
from onnx_fuse.passes.view.view import View
from onnx_fuse.patterns.language.operator import Fused, Fusion

CHEAP = frozenset(
    {"Reshape", "Transpose", "Squeeze", "Unsqueeze", "Flatten", "Expand", "Slice", "Concat", "Split", "Gather"}
    | {"Identity", "Dropout", "Cast", "CastLike", "Not", "Constant", "ConstantOfShape", "Shape", "Size", "Range"}
)
"""Operators that may stay for an outside reader although a fusion covers them: they move or describe data."""

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

    @property
    def root(self) -> Node:
        """The node that the fused one is named after."""
        return self.match.root


class Replacement(NamedTuple):
    """One fused node to write, and what it replaces: all that a commit needs to know.

    Attributes:
        fusion: where it comes from.
        root: the node it is named after.
        inputs: operator's input name -> value; None where absent.
        outputs: operator's output name -> value, the optional ones that are needed included.
        attributes, parts: as in `Fused`.
        carriers: view-only nodes to write after the fused node, which make original values of its outputs: moves, and Concat.
        made: original values that come from the fused node and its carriers from now on, sorted.
        dead: positions of the nodes that go because of it alone, sorted.
        position: place of the fused node.
        leaves: original values that the fused node and its carriers read, sorted.
        dtype: TensorProto.DataType of its first output; 0 where unknown.
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


class Planned(NamedTuple):
    """A candidate that may be committed, and what that comes to."""

    candidate: Candidate
    replacement: Replacement


@dataclass(frozen=True, slots=True)
class Refusal:
    """A candidate that cannot be committed, and why."""

    candidate: Candidate
    failed_at: str
    reason: str


class Plan(NamedTuple):
    """What became of the candidates of one graph.

    Attributes:
        planned: those to commit, in the order in which they stand in the graph.
        refusals: the others.
        dead: positions of the nodes that go because of all that is planned.
    """

    planned: list[Planned]
    refusals: list[Refusal]
    dead: set[int]


class Planner:
    """Plans for one graph.

    Args:
        view: the canonical view the matches were found in.

    Attributes:
        errors: sentences on bodies that raised.
    """

    def __init__(self, view: View) -> None:
        self.view = view
        self.graph: Graph = view.graph
        self.errors: list[str] = []
        self._liveness = Liveness(view.graph)

    def plan(self, candidates: Sequence[Candidate]) -> Plan:
        """Checks each candidate against the original graph and settles overlaps: largest first, ties by graph order.

        It plans again without those whose body does not fit, so that what had lost to them has its chance.
        """
        refused: list[Refusal] = []
        while True:
            plan = self._settle(candidates)
            unfit = self._unfit(plan.planned)
            if not unfit:
                return plan._replace(refusals=[*plan.refusals, *refused])
            refused.extend(unfit)
            out = {id(refusal.candidate) for refusal in unfit}
            candidates = [candidate for candidate in candidates if id(candidate) not in out]

    def dead(self, planned: Sequence[Planned]) -> set[int]:
        """Positions of the nodes that go because of all of these."""
        made = [value for item in planned for value in item.replacement.made]
        leaves = {value for item in planned for value in item.replacement.leaves}
        return self._liveness.dead(made, leaves)

    # -- may it go -----------------------------------------------------------------------------------------------------

    def _check(self, candidate: Candidate) -> Planned | Refusal:
        fused, root = candidate.fused, candidate.root
        if root.position in self._liveness.idle:
            return Refusal(candidate, root.name, "no output of the graph depends on it")
        after: list[Node] = []
        made: set[str] = set()
        for value in fused.outputs.values():
            nodes, values = carriers(value, self.view)
            if not values:
                return Refusal(candidate, root.name, f"its output {value} is no value of the graph")
            after += nodes
            made |= values
        leaves = sources([value for value in fused.inputs.values() if value], self.view)
        if leaves is None:
            return Refusal(candidate, root.name, "one of its inputs cannot be written into the graph")
        outputs = dict(fused.outputs)
        dead = self._liveness.dead(made, leaves)
        for name, value in fused.optional_outputs.items():
            nodes, values = carriers(value, self.view)
            if any(self._liveness.read_outside(item, dead) is not None for item in values):
                outputs[name] = value
                after += nodes
                made |= values
                dead = self._liveness.dead(made, leaves)
        beside = sources(read_beside(after, outputs.values(), self.view) if after else (), self.view)
        if beside is None:
            return Refusal(candidate, root.name, "a value beside its output cannot be written into the graph")
        if not beside <= leaves:
            leaves |= beside
            dead = self._liveness.dead(made, leaves)
        refusal = self._makes_more(candidate, made, dead) or self._leaves_work(candidate, made, dead)
        if refusal is not None:
            return refusal
        place = self._place(made, dead, leaves)
        if isinstance(place, str):
            return Refusal(candidate, root.name, place)
        first = next(outputs[name] for name in candidate.fusion.operator.outputs if outputs.get(name))
        replacement = Replacement(
            fusion=candidate.fusion,
            root=root,
            inputs={name: self.view.resolve(value) if value else None for name, value in fused.inputs.items()},
            outputs=outputs,
            attributes=fused.attributes,
            parts=fused.parts,
            carriers=tuple(after),
            made=tuple(sorted(made)),
            dead=tuple(sorted(dead)),
            position=place,
            leaves=tuple(sorted(leaves)),
            dtype=self.view.dtype(first),
        )
        return Planned(candidate, replacement)

    def _makes_more(self, candidate: Candidate, made: set[str], dead: set[int]) -> Refusal | None:
        """Refuses where a node of several outputs, of which the fused node makes one, stays: it would make that one too."""
        producers = self.graph.producers
        makers = [position for value in made if (position := producers[value].position) not in dead]
        if not makers:
            return None
        node = self.graph.nodes[min(makers)]
        others = [output for output in node.outputs if output and output not in made]
        told = ((output, self._liveness.read_outside(output, dead)) for output in others)
        reason = next((f"its output {output} {phrase}" for output, phrase in told if phrase), None)
        return Refusal(candidate, node.name, reason or "the fused node reads what it makes as well")

    def _leaves_work(self, candidate: Candidate, made: set[str], dead: set[int]) -> Refusal | None:
        """Refuses where a covered node that is not cheap would stay for somebody else: its work would be done twice."""
        may_stay = self._may_stay(candidate)
        for position in sorted(candidate.covers - dead):
            node = self.graph.nodes[position]
            if position in may_stay or node.op_type in CHEAP or made.intersection(node.outputs):
                continue
            stays, reason = self._liveness.why_it_stays(node, dead, candidate.covers)
            return Refusal(candidate, stays.name, reason)
        return None

    def _may_stay(self, candidate: Candidate) -> frozenset[int]:
        """Positions of covered nodes that an outside reader may keep in the graph."""
        values = set(candidate.fused.may_stay)
        nodes = [node for node in candidate.match.nodes if values.intersection(node.outputs)] if values else []
        return self.view.covers_of(nodes)

    def _place(self, made: set[str], dead: set[int], leaves: set[str]) -> int | str:
        """Where the fused node can stand: after all it reads, before all who read it."""
        producers, readers = self.graph.producers, self.graph.readers
        position = max([producers[value].position for value in made])
        reading = [
            reader.position for value in made for reader in readers.get(value, ()) if reader.position not in dead
        ]
        first_reader = min(reading, default=position + 1)
        last_leaf = max([producers[leaf].position for leaf in leaves if leaf in producers], default=-1)
        if first_reader <= position:
            position = first_reader
        if last_leaf >= position:
            return "one of its inputs is made from one of its outputs, or stands after a reader of it"
        return position

    def _unfit(self, planned: Sequence[Planned]) -> list[Refusal]:
        """Those whose body raises, or does not give the types and shapes that the graph has for their outputs."""
        unfit = []
        for candidate, replacement in planned:
            operator = candidate.fusion.operator
            try:
                sentence = disagreement(operator, candidate.fused, replacement.outputs, self.view)
            except Exception as error:
                sentence = f"the body of {operator.name} raised {type(error).__name__}: {error}"
                if sentence not in self.errors:
                    self.errors.append(sentence)
            if sentence is not None:
                unfit.append(Refusal(candidate, candidate.root.name, sentence))
        return unfit

    # -- all of them together ------------------------------------------------------------------------------------------

    def _settle(self, candidates: Sequence[Candidate]) -> Plan:
        """Of those that may go, the ones that win where two overlap, as far as there is a place for all of them."""
        refusals: list[Refusal] = []
        possible: list[Planned] = []
        for candidate in candidates:
            result = self._check(candidate)
            if isinstance(result, Refusal):
                refusals.append(result)
            else:
                possible.append(result)
        accepted = _winners(possible, refusals)
        while True:
            dead = self.dead(accepted)
            misplaced = self._arrange(accepted, dead)
            if misplaced is None:
                return Plan(accepted, refusals, dead)
            refusals.append(Refusal(misplaced.candidate, misplaced.candidate.root.name, _MISPLACED))
            accepted.remove(misplaced)

    def _arrange(self, accepted: list[Planned], dead: set[int]) -> Planned | None:
        """Sorts by place in the graph, where what one makes comes before all who read it; returns one for which there is
        no such place."""
        items = [item.replacement for item in accepted]
        makers = {value: number for number, item in enumerate(items) for value in item.made}
        places: list[int] = []
        for number, item in enumerate(items):
            # What one of them would have made dead may stay for another: its place is before that.
            place = self._place(set(item.made), dead, set(item.leaves))
            if isinstance(place, str):
                return accepted[number]
            places.append(place)
        ranks = [0] * len(items)
        pending = list(range(len(items)))
        while pending:
            reader = pending.pop()
            for value in items[reader].leaves:
                maker = makers.get(value, reader)
                if maker == reader or (places[maker], ranks[maker]) < (places[reader], ranks[reader]):
                    continue
                places[maker] = min(places[maker], places[reader])
                ranks[maker] = ranks[reader] - 1
                leaves = [leaf for leaf in items[maker].leaves if leaf not in makers and leaf in self.graph.producers]
                last = max((self.graph.producers[leaf].position for leaf in leaves), default=-1)
                if last >= places[maker] or ranks[maker] < -len(items):
                    return accepted[max(maker, reader)]
                pending.append(maker)
        order = sorted(range(len(items)), key=lambda number: (places[number], ranks[number]))
        accepted[:] = [
            Planned(accepted[number].candidate, items[number]._replace(position=places[number])) for number in order
        ]
        return None


def _winners(possible: list[Planned], refusals: list[Refusal]) -> list[Planned]:
    """Those that no larger one overlaps, largest first; the others are added to the refusals."""
    # Of two that end in the same moves the longer one may cover fewer nodes, but it always replaces more, or leaves less.
    possible.sort(
        key=lambda item: (-len(item.replacement.dead), len(item.replacement.carriers), item.candidate.root.position)
    )
    owner: dict[int, Candidate] = {}
    accepted: list[Planned] = []
    for item in possible:
        candidate, dead = item.candidate, item.replacement.dead
        winner = next((owner[position] for position in dead if position in owner), None)
        if winner is not None:
            reason = f"{winner.fusion.name} at {winner.root.name} covers more of it"
            refusals.append(Refusal(candidate, candidate.root.name, reason))
            continue
        accepted.append(item)
        owner.update(dict.fromkeys(dead, candidate))
    return accepted
