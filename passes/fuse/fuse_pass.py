"""The pass that fuses: for every graph of the model, normalise a view, match every pattern, plan, commit."""

from __future__ import annotations

import gc
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from onnx import FunctionProto, ModelProto, NodeProto

from onnx_fuse.passes.fuse.body_check import disagreement
from onnx_fuse.passes.fuse.repeats import carried_over, excerpt
from onnx_fuse.passes.fuse.rewrite import Candidate, Planned, Refusal, Replacement, Rewriter
from onnx_fuse.passes.graph import blocks, function_bodies
from onnx_fuse.passes.graph.function_inputs import CallTypes
from onnx_fuse.passes.graph.index import Graph, Node, graphs
from onnx_fuse.passes.graph.onnx_inference import inferred_types
from onnx_fuse.passes.normalize.sweep import normalize
from onnx_fuse.passes.opset_conversion import OLDEST, opset_of
from onnx_fuse.passes.report import Log, MatchRecord, NearMissRecord
from onnx_fuse.passes.view.matcher import Match, NearMiss, match_at
from onnx_fuse.passes.view.view import View
from onnx_fuse.patterns.language.dsl import Pattern
from onnx_fuse.patterns.language.operator import Fusion

_BEHIND = 24


class FusePass:
    """Replaces what the fusions' patterns match by their fused operators.

    Args:
        fusions: the fusions to try; ties between overlapping matches are settled by graph order, then by this order.
        dry_run: find and plan, but leave the model alone.
        only: names of fused nodes to commit, for bisecting; None for all.
        folder: where the model's external data lies; None where it is not known.
    """

    name = "fuse"
    atomic = True

    def __init__(
        self,
        fusions: Sequence[Fusion],
        *,
        dry_run: bool = False,
        only: Iterable[str] | None = None,
        folder: Path | None = None,
    ) -> None:
        self.fusions = tuple(fusions)
        self.dry_run = dry_run
        self.only = None if only is None else frozenset(only)
        self.folder = folder

    def run(self, model: ModelProto, log: Log) -> ModelProto:
        """Fuses every graph of the model in place."""
        if 0 < opset_of(model) < OLDEST:
            return model
        with _collector_paused():
            self._fuse(model, log)
        return model

    def _fuse(self, model: ModelProto, log: Log) -> None:
        own = {(fusion.operator.domain, fusion.operator.name) for fusion in self.fusions}
        bodies = function_bodies.Bodies(model)
        calls = CallTypes(model, lambda: (inferred_types(Graph(model.graph, model)) or dict)())
        for graph in graphs(model):
            if isinstance(graph.proto, FunctionProto) and (graph.proto.domain, graph.proto.name) in own:
                continue
            self._fuse_graph(graph, bodies, calls, log)
        if not self.dry_run:
            function_bodies.add_bodies(model, bodies.new.values())
        log.rewrites += len(log.matches)

    def _fuse_graph(self, graph: Graph, bodies: function_bodies.Bodies, calls: CallTypes, log: Log) -> None:
        decision = self._decide_once(graph, bodies, calls) or self._decide(graph, graph, bodies, calls)
        log.errors.extend(decision.log.errors)
        log.near_misses.extend(decision.log.near_misses)
        log.equalities.update(decision.log.equalities)
        decision.rewriter.view.release()
        # What stood in the way is looked up in the graph as it came.
        advice = [_advice(sentences, graph) for sentences in decision.left_out]
        places: list[_Place] = []
        makes: dict[int, _Make] = {}
        shared: dict[_Make, _Make] = {}

        def noted() -> Iterator[Replacement]:
            """What to write; what a record tells of it is kept before its nodes go."""
            for item, kind in zip(decision.replacements, decision.kinds, strict=True):
                if kind not in makes:
                    make = _make(item, graph)
                    makes[kind] = shared.setdefault(make, make)
                # As long as protobuf's objects for the nodes are at hand the rewriter does not have them made again.
                protos = [graph.nodes[position].proto for position in item.dead]
                places.append(_place(item, protos, graph))
                yield item

        if self.dry_run:
            names = [item.root.name for item in noted()]
        else:
            names = decision.rewriter.commit(noted(), graph, decision.dead) if decision.kinds else []
        for kind, name, place in zip(decision.kinds, names, places, strict=True):
            told = decision.left_out[kind], advice[kind]
            log.matches.append(_match_record(name, graph.path, place, makes[kind], *told))

    def _decide_once(self, graph: Graph, bodies: function_bodies.Bodies, calls: CallTypes) -> _Decision | None:
        """What to commit where the graph repeats blocks, found by looking at a few of them; None where all must be looked at."""
        part = excerpt(graph) if self.only is None else None
        if part is None:
            return None
        decision = self._decide(part, graph, bodies, calls)
        replacements = list(decision.replacements)
        named = {node.name for node in part.nodes[part.run.start :]}
        told = decision.log.errors or any(miss.node in named for miss in decision.log.near_misses)
        if decision.log.near_misses and len({node.name for node in graph.nodes}) < len(graph.nodes):
            return None  # near misses in what is fused are known by their names
        roots = [item.root.position for item in replacements]
        if told or any(left and part.block(root) >= 0 for left, root in zip(decision.left_out, roots, strict=True)):
            return None
        carried = carried_over(decision.rewriter.view, part, replacements, decision.dead)
        if carried is None:
            return None
        return decision._replace(replacements=carried, kinds=carried.origins, dead=carried.dead)

    def _decide(self, graph: Graph, whole: Graph, bodies: function_bodies.Bodies, calls: CallTypes) -> _Decision:
        """What to commit; `whole` is the graph of which `graph` is an excerpt, or itself."""
        log = Log()
        view = View(graph, inferred_types(whole) or calls.of(whole), self.folder)
        normalize(view)
        log.errors.extend(view.errors)
        rewriter = Rewriter(view, bodies)
        candidates: list[Candidate] = []
        misses = [
            _record(miss, miss.pattern.name, graph) for miss in view.near_misses if not view.recognised(miss.root)
        ]
        attempts: list[tuple[Fusion, NearMiss]] = []
        for fusion in self.fusions:
            found, missed = self._search(fusion, view, log)
            candidates.extend(found)
            attempts.extend((fusion, miss) for miss in missed)
        planned, refusals = _plan(candidates, rewriter, log)
        if self.only is not None:
            planned = [item for item in planned if item.candidate.match.root.name in self.only]
        misses.extend(
            _record(miss, fusion.name, graph)
            for fusion, miss in _furthest(attempts)
            if not _ran_into_another(miss, fusion, planned)
        )
        for fusion in self.fusions:
            told = [miss for owner, miss in attempts if owner is fusion]
            misses.extend(_unexplained(fusion, view, planned, refusals, told))
        replaced_by = {(item.candidate.fusion.name, position) for item in planned for position in item.dead}
        for refusal in refusals:
            # A core whose root the same fusion replaces anyway was fused with its rim: it is no loser.
            if (refusal.candidate.fusion.name, refusal.candidate.match.root.position) not in replaced_by:
                misses.append(_refused(refusal, graph))
        log.near_misses.extend(_worth_telling(misses, planned))
        left_out = [tuple(_left_out(item, view, refusals)) for item in planned]
        log.equalities.update(view.equalities)
        replacements = map(rewriter.replacement, planned)
        return _Decision(rewriter, replacements, range(len(planned)), left_out, rewriter.dead_together(planned), log)

    def _search(self, fusion: Fusion, view: View, log: Log) -> tuple[list[Candidate], list[NearMiss]]:
        found: list[Candidate] = []
        missed: list[NearMiss] = []
        present = frozenset(view.operators())
        try:
            for pattern in fusion.patterns:
                if pattern.others and not pattern.needs <= present:
                    continue  # the patterns of fewer results tell more
                for node in view.nodes(pattern.root_keys):
                    result = match_at(pattern, node, view)
                    if isinstance(result, Match):
                        fused = fusion.fused(result, view)
                        if isinstance(fused, str):
                            missed.append(NearMiss(pattern, node, node.name, len(result.nodes), fused, frozenset()))
                        else:
                            covers = frozenset().union(*(view.covers(item) for item in result.nodes))
                            found.append(Candidate(fusion, result, fused, covers))
                    elif _interesting(result, fusion, view):
                        missed.append(result)
                missed.extend(_other_domains(pattern, fusion, view, missed))
        except Exception as error:
            # A rule is somebody's code: when it raises, its fusion is left out and the others go on.
            log.errors.append(f"{fusion.name} raised {type(error).__name__}: {error}")
            return [], []
        return found, missed


@contextmanager
def _collector_paused() -> Iterator[None]:
    """What is made meanwhile is not searched for cycles: hundreds of thousands of objects that stay to the end."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def _interesting(miss: NearMiss, fusion: Fusion, view: View) -> bool:
    if fusion.anchor is None:
        return miss.matched >= min(2, miss.pattern.size)
    # An attempt that stopped at its root tells nothing, though the root be the anchor.
    if any(
        op_type == fusion.anchor and (miss.matched or position != miss.root.position)
        for op_type, position in miss.reached
    ):
        return True
    # The outermost node may be the right operator with another attribute: then nothing before it was looked at.
    return miss.matched == 0 and miss.failed_at == miss.root.name and _is_before(fusion.anchor, miss.root, view)


def _is_before(op_type: str, node: Node, view: View, steps: int = 4) -> bool:
    """Whether one of the last few steps on the way to a node is such an operator."""
    frontier = [node]
    for _ in range(steps):
        makers = {id(maker): maker for item in frontier for value in item.inputs if (maker := view.producer(value))}
        frontier = list(makers.values())
        if any(maker.key == ("", op_type) for maker in frontier):
            return True
    return False


def _other_domains(pattern: Pattern, fusion: Fusion, view: View, told: Sequence[NearMiss]) -> list[NearMiss]:
    """Nodes that carry a root's or the anchor's operator name in another domain: they are another operator."""
    names = {op_type for domain, op_type in pattern.root_keys if domain == ""} | {fusion.anchor}
    reached = {position for miss in told for _, position in miss.reached}
    misses: list[NearMiss] = []
    for domain, op_type in view.operators():
        if domain and op_type in names:
            reason = f"{op_type} of domain {domain} is not ONNX's {op_type}"
            unsaid = [node for node in view.nodes([(domain, op_type)]) if node.position not in reached]
            misses.extend(NearMiss(pattern, node, node.name, 0, reason, frozenset()) for node in unsaid)
    return misses


def _plan(candidates: Sequence[Candidate], rewriter: Rewriter, log: Log) -> tuple[list[Planned], list[Refusal]]:
    """Plans without those whose body does not fit, so that what had lost to them has its chance."""
    refused: list[Refusal] = []
    while True:
        planned, lost = rewriter.plan(candidates)
        unfit = _unfit(planned, rewriter.view, log)
        if not unfit:
            return planned, [*lost, *refused]
        refused.extend(unfit)
        out = {id(refusal.candidate) for refusal in unfit}
        candidates = [candidate for candidate in candidates if id(candidate) not in out]


def _unfit(planned: Sequence[Planned], view: View, log: Log) -> list[Refusal]:
    """Those whose body raises, or does not give the types and shapes that the graph has for their outputs."""
    unfit = []
    for item in planned:
        fusion = item.candidate.fusion
        try:
            sentence = disagreement(fusion.operator, item.candidate.fused, item.outputs, view)
        except Exception as error:
            sentence = f"the body of {fusion.operator.name} raised {type(error).__name__}: {error}"
            if sentence not in log.errors:
                log.errors.append(sentence)
        if sentence is not None:
            unfit.append(Refusal(item.candidate, item.candidate.match.root.name, sentence))
    return unfit


def _furthest(attempts: Iterable[tuple[Fusion, NearMiss]]) -> list[tuple[Fusion, NearMiss]]:
    """Of the attempts of a fusion that came upon the same anchors and failed for the same reason, the furthest one."""
    best: dict[Any, tuple[Fusion, NearMiss]] = {}
    for fusion, miss in attempts:
        anchors = frozenset(position for op_type, position in miss.reached if op_type == fusion.anchor)
        key = (fusion.name, miss.reason, anchors or miss.root.position)
        if key not in best or best[key][1].matched < miss.matched:
            best[key] = fusion, miss
    return list(best.values())


def _ran_into_another(miss: NearMiss, fusion: Fusion, planned: Sequence[Planned]) -> bool:
    """Whether all that made an attempt look like the fusion has been fused by it elsewhere."""
    anchors = {position for op_type, position in miss.reached if op_type == fusion.anchor}
    if fusion.anchor is None:
        anchors = {miss.root.position}
    fused = {position for item in planned if item.candidate.fusion is fusion for position in item.candidate.covers}
    return bool(anchors) and anchors <= fused


def _unexplained(
    fusion: Fusion,
    view: View,
    planned: Sequence[Planned],
    refusals: Sequence[Refusal],
    attempts: Sequence[NearMiss],
) -> list[NearMissRecord]:
    """A near miss for each anchor that was neither fused nor reached by any attempt: nothing goes without a sentence."""
    if fusion.anchor is None or not fusion.explain_every_anchor:
        return []
    explained = {position for miss in attempts for op_type, position in miss.reached if op_type == fusion.anchor}
    candidates = [item.candidate for item in planned] + [item.candidate for item in refusals]
    explained |= {position for candidate in candidates for position in candidate.covers}
    records = [
        _record(NearMiss(fusion.patterns[0], node, node.name, 0, reason, frozenset()), fusion.name, view.graph)
        for node, reason in view.refusals
    ]
    for node in view.nodes([("", fusion.anchor)]):
        if node.position in explained:
            continue
        readers = ", ".join(f"{reader.op_type} {reader.name}" for reader in view.readers(node.outputs[0])[:3])
        reason = f"what reads it is no part of the pattern: {readers or 'nothing'}"
        miss = NearMiss(fusion.patterns[0], node, node.name, 1, reason, frozenset())
        records.append(_record(_stopped_behind(node, fusion, view) or miss, fusion.name, view.graph))
    return records


def _stopped_behind(anchor: Node, fusion: Fusion, view: View) -> NearMiss | None:
    """The attempt from further on that came closest to the anchor, if it failed between the two."""
    behind, frontier = {anchor.name: anchor}, [anchor]
    while frontier and len(behind) < _BEHIND:
        following = [reader for node in frontier for value in node.outputs for reader in view.readers(value)]
        frontier = [node for node in following if node.name not in behind]
        behind.update((node.name, node) for node in frontier)
    attempts = [miss for node in behind.values() for miss in _misses_at(node, fusion, view) if miss.reached]
    attempts = [miss for miss in attempts if miss.failed_at in behind]
    return max(attempts, key=lambda miss: miss.matched, default=None)


def _misses_at(node: Node, fusion: Fusion, view: View) -> list[NearMiss]:
    """Why the fusion's patterns do not match with the node as their root."""
    results = [match_at(pattern, node, view) for pattern in fusion.patterns if node.key in pattern.root_keys]
    return [result for result in results if isinstance(result, NearMiss)]


def _worth_telling(misses: Sequence[NearMissRecord], planned: Sequence[Planned]) -> list[NearMissRecord]:
    """Near misses outside what was fused, the furthest one of each (fusion, place of failure, reason)."""
    fused = {(item.candidate.fusion.name, node.name) for item in planned for node in item.candidate.match.nodes}
    best: dict[tuple[str, str, str], NearMissRecord] = {}
    for miss in misses:
        if (miss.fusion, miss.failed_at) in fused and (miss.fusion, miss.node) in fused:
            continue
        key = (miss.fusion, miss.failed_at, miss.reason)
        if key not in best or best[key].matched < miss.matched:
            best[key] = miss
    return list(best.values())


def _record(miss: NearMiss, fusion: str, graph: Graph) -> NearMissRecord:
    return NearMissRecord(
        fusion=fusion,
        node=miss.root.name,
        op_type=miss.root.op_type,
        graph=graph.path,
        failed_at=miss.failed_at,
        matched=miss.matched,
        total=miss.pattern.size,
        reason=miss.reason,
        block=blocks.block_of(graph.nodes[miss.root.position].proto),
        advice=blocks.advise(miss.reason, graph),
    )


def _refused(refusal: Refusal, graph: Graph) -> NearMissRecord:
    match = refusal.candidate.match
    return NearMissRecord(
        fusion=refusal.candidate.fusion.name,
        node=match.root.name,
        op_type=match.root.op_type,
        graph=graph.path,
        failed_at=refusal.failed_at,
        matched=len(match.nodes),
        total=match.pattern.size,
        reason=refusal.reason,
        block=blocks.block_of(graph.nodes[match.root.position].proto),
        advice=blocks.advise(refusal.reason, graph),
    )


class _Decision(NamedTuple):
    """What to commit to a graph, and what there is to tell.

    Attributes:
        replacements: what to write.
        kinds: a number for each of these: those of one number are alike.
        left_out: for each kind, why the nodes that follow were not swallowed.
        dead: positions of the nodes that go.
        log: what there is to tell of the rest.
    """

    rewriter: Rewriter
    replacements: Iterable[Replacement]
    kinds: Sequence[int]
    left_out: list[tuple[str, ...]]
    dead: set[int]
    log: Log


class _Place(NamedTuple):
    """Where a match is in the graph, as its record tells it."""

    root: str
    replaced: tuple[str, ...]
    block: str


class _Make(NamedTuple):
    """What a match consists of, as its record tells it."""

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


def _make(item: Replacement, graph: Graph) -> _Make:
    operator = item.fusion.operator
    nodes = [graph.nodes[position] for position in item.dead]
    number = {output: index for index, node in enumerate(nodes) for output in node.outputs if output}
    edges = [
        (maker, reader)
        for reader, node in enumerate(nodes)
        for maker in dict.fromkeys([number[name] for name in node.inputs if name in number])
    ]
    return _Make(
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


def _match_record(
    name: str, path: str, place: _Place, make: _Make, left_out: tuple[str, ...], advice: tuple[str, ...]
) -> MatchRecord:
    return MatchRecord(
        make.fusion,
        make.operator,
        name,
        place.root,
        path,
        place.replaced,
        make.inputs,
        make.outputs,
        make.parts,
        left_out,
        place.block,
        advice,
        make.replaced_types,
        make.replaced_edges,
    )


def _left_out(item: Planned, view: View, refusals: Sequence[Refusal]) -> Iterator[str]:
    """Why the nodes that follow a match were not swallowed with it: one sentence for each."""
    fusion, match = item.candidate.fusion, item.candidate.match
    if set(fusion.rim) <= set(item.candidate.fused.parts):
        return
    followers = [reader for value in item.outputs.values() for reader in view.readers(value)]
    for reader in followers:
        if reader in match.nodes:
            continue
        candidates = [refusal for refusal in refusals if refusal.candidate.match.root is reader]
        reasons = [refusal.reason for refusal in candidates if refusal.candidate.fusion is fusion]
        reasons += [miss.reason for miss in _misses_at(reader, fusion, view)]
        yield f"{reader.name}: " + next(iter(reasons), f"{reader.op_type} is no part of the pattern here")
