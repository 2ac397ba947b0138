"""Near misses: which of the attempts that failed are worth telling, and the sentences that tell them.

Nothing that looks like a fusion goes without a sentence, and nothing is told twice: of attempts that failed for the same reason
the furthest is kept, and none that ran into what was fused anyway.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence, Set
from typing import Any, NamedTuple

from onnx_fuse.passes.fuse.plan import Plan, Planned, Refusal
from onnx_fuse.passes.graph import blocks
from onnx_fuse.passes.graph.index import Graph
from onnx_fuse.passes.graph.node import Node
from onnx_fuse.passes.refusals import kind_of
from onnx_fuse.passes.report import NearMissRecord
from onnx_fuse.passes.view.furthest_failure import (
    describe_node,
    in_file,
    labels_of,
    name_of,
    one_of,
    value_in_file,
)
from onnx_fuse.passes.view.matcher import NearMiss, match_at
from onnx_fuse.passes.view.view import View
from onnx_fuse.patterns.language import term_facts
from onnx_fuse.patterns.language.dsl import Pattern
from onnx_fuse.patterns.language.operator import Fusion
from onnx_fuse.patterns.language.terms import Op

_STEPS_BEFORE = 4
"""How far before a root its anchor is looked for."""

_NODES_BEHIND = 24
"""How many nodes behind an anchor are looked at for an attempt that stopped on the way to it."""


class Attempt(NamedTuple):
    """A fusion tried at a node, in vain."""

    fusion: Fusion
    miss: NearMiss


# -- while matching ------------------------------------------------------------------------------------------------------


def is_interesting(
    fusion: Fusion,
    view: View,
    pattern: Pattern,
    root: Node,
    matched: int,
    failed_at: Node | str,
    reached: Set[tuple[str, int]],
) -> bool:
    """Whether an attempt came upon what makes a place look like the fusion."""
    if fusion.anchor is None:
        return matched >= min(2, pattern.size)
    # An attempt that stopped at its root tells nothing, though the root be the anchor.
    for op_type, position in reached:
        if op_type == fusion.anchor and (matched or position != root.position):
            return True
    # The outermost node may be the right operator with another attribute: then nothing before it was looked at.
    return matched == 0 and name_of(failed_at) == root.name and _is_before(fusion.anchor, root, view)


def _is_before(op_type: str, node: Node, view: View) -> bool:
    """Whether one of the last few steps on the way to a node is such an operator."""
    frontier = [node]
    for _ in range(_STEPS_BEFORE):
        makers = {id(maker): maker for item in frontier for value in item.inputs if (maker := view.producer(value))}
        frontier = list(makers.values())
        if any(maker.key == ("", op_type) for maker in frontier):
            return True
    return False


def in_other_domains(pattern: Pattern, fusion: Fusion, view: View, told: Sequence[NearMiss]) -> list[NearMiss]:
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


# -- once it is planned --------------------------------------------------------------------------------------------------


def worth_telling(
    fusions: Iterable[Fusion], attempts: Sequence[Attempt], plan: Plan, view: View
) -> list[NearMissRecord]:
    """The near misses of a graph, the furthest one of each (fusion, place of failure, reason).

    Args:
        fusions: those that were tried.
        attempts: the interesting ones among their attempts.
        plan: what is fused, and which matches were refused.
        view: the view in which all that was found.
    """
    graph, planned = view.graph, plan.planned
    records = [_record(miss, miss.pattern.name, graph) for miss in view.near_misses if not view.recognised(miss.root)]
    records += [
        _record(miss, fusion.name, graph)
        for fusion, miss in _furthest(attempts)
        if not _ran_into_another(miss, fusion, planned) and not _is_told(miss, fusion, view)
    ]
    for fusion in fusions:
        own = [attempt.miss for attempt in attempts if attempt.fusion is fusion]
        records += [_record(miss, fusion.name, graph) for miss in _unexplained(fusion, view, plan, own)]
    records += [_record(_refused(item), item.candidate.fusion.name, graph) for item in _losers(plan)]
    fused = {(item.candidate.fusion.name, node.name) for item in planned for node in item.candidate.match.nodes}
    best: dict[tuple[str, str, str], NearMissRecord] = {}
    for record in records:
        if (record.fusion, record.failed_at) in fused and (record.fusion, record.node) in fused:
            continue
        key = (record.fusion, record.failed_at, record.reason)
        if key not in best or best[key].matched < record.matched:
            best[key] = record
    return list(best.values())


def _furthest(attempts: Iterable[Attempt]) -> list[Attempt]:
    """Of the attempts of a fusion that came upon the same anchors the one that a person means.

    One in which all fits but for a requirement comes first, then the one that matched most.
    """
    best: dict[Any, Attempt] = {}
    for attempt in attempts:
        fusion, miss = attempt
        anchors = frozenset(position for op_type, position in miss.reached if op_type == fusion.anchor)
        key = (fusion.name, anchors or (miss.root.position, miss.reason))
        if key not in best or _nearness(best[key].miss) < _nearness(miss):
            best[key] = attempt
    return list(best.values())


def _nearness(miss: NearMiss) -> tuple[bool, int]:
    return miss.matched > 1 and miss.failed_at == miss.root.name, miss.matched


def _ran_into_another(miss: NearMiss, fusion: Fusion, planned: Sequence[Planned]) -> bool:
    """Whether all that made an attempt look like the fusion has been fused by it elsewhere."""
    anchors = {position for op_type, position in miss.reached if op_type == fusion.anchor}
    if fusion.anchor is None:
        anchors = {miss.root.position}
    fused = {position for item in planned if item.candidate.fusion is fusion for position in item.candidate.covers}
    return bool(anchors) and anchors <= fused


def _is_told(miss: NearMiss, fusion: Fusion, view: View) -> bool:
    """Whether a rule has said of all that made an attempt look like the fusion why it is left as it is."""
    anchors = {position for op_type, position in miss.reached if op_type == fusion.anchor}
    return bool(anchors) and anchors <= {node.position for node, _ in view.refusals}


def _unexplained(fusion: Fusion, view: View, plan: Plan, attempts: Sequence[NearMiss]) -> list[NearMiss]:
    """A near miss for each anchor that was neither fused nor reached by any attempt: nothing goes without a sentence."""
    if fusion.anchor is None or not fusion.explain_every_anchor:
        return []
    explained = {position for miss in attempts for op_type, position in miss.reached if op_type == fusion.anchor}
    candidates = [item.candidate for item in plan.planned] + [item.candidate for item in plan.refusals]
    explained |= {position for candidate in candidates for position in candidate.covers}
    explained |= {node.position for node, _ in view.refusals}
    pattern = fusion.patterns[0]
    fused = {position for item in plan.planned for position in item.candidate.covers}
    told = ((node, reason) for node, reason in view.refusals if node.position not in fused)
    misses = [NearMiss(pattern, node, node.name, 0, reason, frozenset()) for node, reason in told]
    for node in view.nodes([("", fusion.anchor)]):
        if node.position in explained:
            continue
        misses.append(_stopped_behind(node, fusion, view) or _led_astray(node, fusion, view))
    return misses


def _led_astray(anchor: Node, fusion: Fusion, view: View) -> NearMiss:
    """What reads an anchor, farthest on along a way that the patterns have, and is not what they have there."""
    terms = [op for pattern in fusion.patterns for op in term_facts.operators(pattern.root, *pattern.others)]
    value, readers = anchor.outputs[0], view.readers(anchor.outputs[0])
    told = (
        f"{describe_node(view, readers[0])}, which reads {value_in_file(view, value)} in another way" if readers else ""
    )
    best = NearMiss(fusion.patterns[0], anchor, anchor.name, 1, told or f"no node reads {value}", frozenset())
    frontier = [(anchor, [op for op in terms if anchor.key in op.keys])]
    seen = {anchor.position}
    for depth in range(1, _NODES_BEHIND):
        following: list[tuple[Node, list[Op]]] = []
        for node, ops in frontier:
            wanted = [op for op in terms if any(term_facts.reads(op, item) for item in ops)]
            for reader in view.readers(node.outputs[0]) if wanted else ():
                makers = view.maker_keys(reader)
                fitting = [op for op in wanted if reader.key in op.keys and term_facts.all_operands_fit(op, makers)]
                if fitting:
                    following.append((reader, fitting))
                elif best.matched < depth or best.failed_at == anchor.name:
                    labels = one_of(label for op in wanted for label in labels_of(op))
                    told = f"{describe_node(view, reader)}, which reads {in_file(view, node).name}"
                    best = best._replace(failed_at=reader.name, matched=depth, reason=f"{told}, pattern wants {labels}")
        frontier = [item for item in following if item[0].position not in seen]
        seen.update(node.position for node, _ in frontier)
    return best


def _stopped_behind(anchor: Node, fusion: Fusion, view: View) -> NearMiss | None:
    """The attempt from further on that came closest to the anchor, if it failed between the two."""
    behind, frontier = {anchor.name: anchor}, [anchor]
    while frontier and len(behind) < _NODES_BEHIND:
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


def _losers(plan: Plan) -> Iterator[Refusal]:
    """The matches that were refused and whose root no match of the same fusion replaces: of each root the longest ones."""
    replaced_by = {
        (item.candidate.fusion.name, position) for item in plan.planned for position in item.replacement.dead
    }
    longest: dict[tuple[str, int], int] = {}
    for refusal in plan.refusals:
        key = (refusal.candidate.fusion.name, refusal.candidate.root.position)
        longest[key] = max(longest.get(key, 0), len(refusal.candidate.match.nodes))
    for refusal in plan.refusals:
        # A core whose root the same fusion replaces anyway was fused with its rim: it is no loser.
        key = (refusal.candidate.fusion.name, refusal.candidate.root.position)
        if key not in replaced_by and len(refusal.candidate.match.nodes) == longest[key]:
            yield refusal


def _refused(refusal: Refusal) -> NearMiss:
    match = refusal.candidate.match
    return NearMiss(match.pattern, match.root, refusal.failed_at, len(match.nodes), refusal.reason, frozenset())


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
        code=kind_of(miss.reason).code,
    )


# -- beside what is fused ------------------------------------------------------------------------------------------------


def left_out(item: Planned, refusals: Sequence[Refusal], view: View) -> Iterator[str]:
    """Why the nodes that follow a match were not swallowed with it: one sentence for each."""
    fusion, match = item.candidate.fusion, item.candidate.match
    if set(fusion.rim) <= set(item.replacement.parts):
        return
    followers = [reader for value in item.replacement.outputs.values() for reader in view.readers(value)]
    for reader in followers:
        if reader in match.nodes:
            continue
        candidates = [refusal for refusal in refusals if refusal.candidate.root is reader]
        reasons = [refusal.reason for refusal in candidates if refusal.candidate.fusion is fusion]
        reasons += [miss.reason for miss in _misses_at(reader, fusion, view)]
        yield f"{in_file(view, reader).name}: " + next(
            iter(reasons), f"{reader.op_type} is no part of the pattern here"
        )
