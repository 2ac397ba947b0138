"""The pass that fuses: for every graph of the model, lay the canonical view over it, match every pattern, plan, commit."""

from __future__ import annotations

import gc
import traceback
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import NamedTuple

from onnx import FunctionProto, ModelProto

from onnx_fuse.errors import PatternError
from onnx_fuse.passes.fuse import near_misses
from onnx_fuse.passes.fuse.carry_over import carried_over
from onnx_fuse.passes.fuse.commit import commit
from onnx_fuse.passes.fuse.excerpt import excerpt
from onnx_fuse.passes.fuse.match_notes import MatchNotes
from onnx_fuse.passes.fuse.near_misses import Attempt
from onnx_fuse.passes.fuse.plan import Candidate, Planner, Replacement
from onnx_fuse.passes.graph import function_bodies
from onnx_fuse.passes.graph.function_inputs import CallTypes
from onnx_fuse.passes.graph.index import Graph, graphs
from onnx_fuse.passes.graph.onnx_inference import inferred_types
from onnx_fuse.passes.normalize.sweep import normalize
from onnx_fuse.passes.opset_conversion import OLDEST, opset_of
from onnx_fuse.passes.report import Log
from onnx_fuse.passes.view.matcher import Match, NearMiss, match_or_tell
from onnx_fuse.passes.view.view import View
from onnx_fuse.patterns.language.operator import Fusion


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
            if isinstance(graph.outermost.proto, FunctionProto):
                function = graph.outermost.proto
                if (function.domain, function.name) in own:
                    continue
                if opset_of(function) not in (0, opset_of(model)):
                    # What is written for one opset may not run where the function is inlined into a model of another.
                    log.warnings.append(
                        f"nothing was fused in the function {function.domain}::{function.name}: its opset is "
                        f"{opset_of(function)}, the model's {opset_of(model)}."
                    )
                    continue
            self._fuse_graph(graph, bodies, calls, log)
        if not self.dry_run:
            function_bodies.add_bodies(model, bodies.new.values())
        log.rewrites += len(log.matches)

    def _fuse_graph(self, graph: Graph, bodies: function_bodies.Bodies, calls: CallTypes, log: Log) -> None:
        decision = self._decide_on_excerpt(graph, calls) or self._decide(graph, graph, calls)
        log.errors.extend(decision.log.errors)
        log.near_misses.extend(decision.log.near_misses)
        log.equalities.update(decision.log.equalities)
        decision.view.release()
        notes = MatchNotes(graph, decision.left_out)
        replacements = notes.noting(decision.replacements, decision.kinds)
        if self.dry_run:
            names = [item.root.name for item in replacements]
        elif decision.kinds:
            names = commit(replacements, decision.dead, graph, decision.view, bodies)
        else:
            names = []
        log.matches.extend(notes.records(names))

    def _decide_on_excerpt(self, graph: Graph, calls: CallTypes) -> _Decision | None:
        """What to commit where the graph repeats blocks, found by looking at a few of them; None where all must be looked at."""
        part = excerpt(graph) if self.only is None else None
        if part is None:
            return None
        decision = self._decide(part, graph, calls)
        replacements = list(decision.replacements)
        named = {node.name for node in part.nodes[part.run.start :]}
        told = decision.log.errors or any(miss.node in named for miss in decision.log.near_misses)
        if decision.log.near_misses and len({node.name for node in graph.nodes}) < len(graph.nodes):
            return None  # near misses in what is fused are known by their names
        roots = [item.root.position for item in replacements]
        if told or any(left and part.block(root) >= 0 for left, root in zip(decision.left_out, roots, strict=True)):
            return None
        carried = carried_over(decision.view, part, replacements, decision.dead)
        if carried is None:
            return None
        return decision._replace(replacements=carried, kinds=carried.origins, dead=carried.dead)

    def _decide(self, graph: Graph, whole: Graph, calls: CallTypes) -> _Decision:
        """What to commit; `whole` is the graph of which `graph` is an excerpt, or itself."""
        log = Log()
        view = View(graph, inferred_types(whole) or calls.of(whole), self.folder)
        normalize(view)
        log.errors.extend(view.errors)
        candidates, attempts = self._match(view, log)
        planner = Planner(view)
        plan = planner.plan(candidates)
        log.errors.extend(planner.errors)
        if self.only is not None:
            planned = [item for item in plan.planned if item.candidate.root.name in self.only]
            plan = plan._replace(planned=planned, dead=planner.dead(planned))
        log.near_misses.extend(near_misses.worth_telling(self.fusions, attempts, plan, view))
        left_out = [tuple(near_misses.left_out(item, plan.refusals, view)) for item in plan.planned]
        log.equalities.update(view.equalities)
        replacements = [item.replacement for item in plan.planned]
        return _Decision(view, replacements, range(len(replacements)), left_out, plan.dead, log)

    def _match(self, view: View, log: Log) -> tuple[list[Candidate], list[Attempt]]:
        """The matches that the fusions accept, and the attempts that failed and may be worth telling."""
        candidates: list[Candidate] = []
        attempts: list[Attempt] = []
        for fusion in self.fusions:
            try:
                found, missed = _match_fusion(fusion, view)
            except PatternError:
                raise  # it is defined wrongly, whatever the model
            except Exception as error:
                # A rule is somebody's code: when it raises, its fusion is left out and the others go on.
                frame = traceback.extract_tb(error.__traceback__)[-1]
                place = f"{Path(frame.filename).name}:{frame.lineno} in {frame.name}"
                log.errors.append(f"{fusion.name} raised {type(error).__name__}: {error} ({place})")
                continue
            candidates.extend(found)
            attempts.extend(Attempt(fusion, miss) for miss in missed)
        return candidates, attempts


def _match_fusion(fusion: Fusion, view: View) -> tuple[list[Candidate], list[NearMiss]]:
    found: list[Candidate] = []
    missed: list[NearMiss] = []
    present = frozenset(view.operators())
    worth = partial(near_misses.is_interesting, fusion, view)
    anchored = fusion.anchor is None or any(op_type == fusion.anchor for _, op_type in present)
    for pattern in fusion.patterns:
        if pattern.others and not pattern.needs <= present:
            continue  # the patterns of fewer results tell more
        hopeless = not anchored and ("", fusion.anchor) in pattern.needs  # neither a match nor worth telling
        # In one order also where one exported node became several.
        for node in () if hopeless else view.nodes(sorted(pattern.root_keys)):
            result = match_or_tell(pattern, node, view, worth)
            if isinstance(result, Match):
                fused = fusion.fused(result, view)
                if isinstance(fused, str):
                    missed.append(NearMiss(pattern, node, node.name, len(result.nodes), fused, frozenset()))
                else:
                    found.append(Candidate(fusion, result, fused, view.covers_of(result.nodes)))
            elif result is not None:
                missed.append(result)
        missed.extend(near_misses.in_other_domains(pattern, fusion, view, missed))
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


class _Decision(NamedTuple):
    """What to commit to a graph, and what there is to tell.

    Attributes:
        view: the view that it was planned in.
        replacements: what to write.
        kinds: a number for each of these: those of one number are alike.
        left_out: for each kind, why the nodes that follow were not swallowed.
        dead: positions of the nodes that go.
        log: what there is to tell of the rest.
    """

    view: View
    replacements: Iterable[Replacement]
    kinds: Sequence[int]
    left_out: list[tuple[str, ...]]
    dead: set[int]
    log: Log
