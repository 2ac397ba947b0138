"""Passes in a row over one model, each timed, counted and isolated: `Pipeline([...]).run(model)`."""

from __future__ import annotations

import inspect
import time
from collections.abc import Callable, Iterable
from typing import Any, Protocol, runtime_checkable

from onnx import ModelProto

from onnx_fuse.errors import OnnxFuseError, PatternError
from onnx_fuse.passes.files.encoding import require_text
from onnx_fuse.passes.graph import function_bodies
from onnx_fuse.passes.graph.index import Graph, count_nodes, graphs
from onnx_fuse.passes.report import Log, PassRecord, Report
from onnx_fuse.patterns.language.operator import DOMAIN


@runtime_checkable
class Pass(Protocol):
    """One step: it takes a model and returns it (changed in place) or another one.

    What it raises is recorded in the report and its changes are dropped; the passes after it still run.
    """

    name: str

    def run(self, model: ModelProto, log: Log) -> ModelProto: ...


class BodiesPass:
    """The pass that warns of fused operators with several bodies of one name.

    Args:
        operators: (domain, name) of the fused operators.
    """

    name = "bodies"
    atomic = True

    def __init__(self, operators: Iterable[tuple[str, str]]) -> None:
        self.operators = tuple(operators)

    def run(self, model: ModelProto, log: Log) -> ModelProto:
        log.warnings.extend(function_bodies.several_bodies(model, {domain for domain, _ in self.operators}))
        return model


class GraphPass:
    """A user's function on `Graph`, called for every graph of the model."""

    atomic = False

    def __init__(self, function: Callable[[Graph], Any]) -> None:
        self.function = function
        self.name = getattr(function, "__name__", "graph pass")

    def run(self, model: ModelProto, log: Log) -> ModelProto:
        for graph in graphs(model):
            self.function(graph)
        return model


class SurgeonPass:
    """A user's function on `onnx_graphsurgeon.Graph` that returns one (or changes it in place and returns None)."""

    atomic = False

    def __init__(self, function: Callable[[Any], Any]) -> None:
        self.function = function
        self.name = getattr(function, "__name__", "graphsurgeon pass")

    def run(self, model: ModelProto, log: Log) -> ModelProto:
        from onnx_fuse.passes.files.graphsurgeon import from_surgeon, to_surgeon

        surgeon = to_surgeon(model)
        result = self.function(surgeon)
        return from_surgeon(surgeon if result is None else result, model)


def as_pass(item: Pass | Callable[..., Any]) -> Pass:
    """A `Pass` as it is; a function as a pass on `Graph`, or on `onnx_graphsurgeon.Graph` where its annotation says so.

    Raises:
        PatternError: the object is neither.
    """
    if isinstance(item, Pass):
        return item
    if not callable(item):
        raise PatternError(f"{item!r} is no pass", "Give an object with `name` and `run`, or a function on a graph.")
    annotations = [str(parameter.annotation) for parameter in inspect.signature(item).parameters.values()]
    if annotations and ("graphsurgeon" in annotations[0] or annotations[0].startswith(("gs.", "'gs."))):
        return SurgeonPass(item)
    return GraphPass(item)


class Pipeline:
    """Passes that run one after the other.

    Args:
        passes: `Pass` objects, or functions on `Graph` or `onnx_graphsurgeon.Graph`.
        progress: called with the name of each pass before it runs.
        bodies: domains of fused operators, whose bodies do not count as nodes of the model.
    """

    def __init__(
        self,
        passes: Iterable[Pass | Callable[..., Any]],
        *,
        progress: Callable[[str], None] | None = None,
        bodies: Iterable[str] = (DOMAIN,),
    ) -> None:
        self._bodies = frozenset(bodies)
        self.passes = [as_pass(item) for item in passes]
        self._progress = progress

    def run(self, model: ModelProto, report: Report | None = None) -> tuple[ModelProto, Report]:
        """Runs the passes; returns the model (changed in place where a pass does so) and the report."""
        report = Report() if report is None else report
        started = time.perf_counter()
        report.nodes_before = count_nodes(model, self._bodies)
        report.nodes_after = report.nodes_before
        for item in self.passes:
            if self._progress is not None:
                self._progress(item.name)
            model = self._run_one(item, model, report)
        report.seconds += time.perf_counter() - started
        return model, report

    def _run_one(self, item: Pass, model: ModelProto, report: Report) -> ModelProto:
        log = Log()
        before = report.nodes_after
        backup = None
        if not getattr(item, "atomic", False):
            # A pass that is not ours may raise half-way; its changes are then dropped.
            backup = ModelProto()
            backup.CopyFrom(model)
        started = time.perf_counter()
        error: str | None = None
        try:
            model = item.run(model, log)
        except OnnxFuseError:
            raise
        except Exception as problem:
            error = f"{type(problem).__name__}: {problem}"
            if backup is None:
                raise
            model = backup
        if backup is not None or log.rewrites:
            report.nodes_after = count_nodes(model, self._bodies)
        if log.errors:
            # A fusion or rule that raised may have come across a name that is no text.
            require_text(model)
            error = "; ".join([*log.errors, *([error] if error else [])])
        report.passes.append(
            PassRecord(
                name=item.name,
                seconds=time.perf_counter() - started,
                nodes_before=before,
                nodes_after=report.nodes_after,
                rewrites=log.rewrites,
                near_misses=len(log.near_misses),
                error=error,
            )
        )
        report.matches.extend(log.matches)
        report.near_misses.extend(log.near_misses)
        report.warnings.extend(log.warnings)
        if error is not None:
            report.warnings.append(f"pass {item.name}: {error}")
        report.equalities.update(log.equalities)
        return model
