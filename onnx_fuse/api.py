"""The front door: `fuse`, `explain` and `fusions`, as the command line and export scripts call them."""

from __future__ import annotations

import os
import time
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, get_args

from onnx import ModelProto

from onnx_fuse.choice import Chosen, by_name, check_met, check_required, chosen_fusions, without_kernel
from onnx_fuse.errors import FusionWarning, UsageError
from onnx_fuse.fusing import Fusing, Given, Model, Progress, layer_records
from onnx_fuse.passes.files import io
from onnx_fuse.passes.files.checker import check
from onnx_fuse.passes.files.encoding import blames_text
from onnx_fuse.passes.files.graphsurgeon import SurgeonGraph, is_surgeon_graph, to_surgeon
from onnx_fuse.passes.files.staging import require_apart
from onnx_fuse.passes.fuse.fuse_pass import FusePass
from onnx_fuse.passes.graph import blocks
from onnx_fuse.passes.graph.function_bodies import Functions
from onnx_fuse.passes.graph.index import graphs
from onnx_fuse.passes.graph.spans import Source
from onnx_fuse.passes.opset_conversion import Convert
from onnx_fuse.passes.pipeline import Pass, Pipeline, as_pass
from onnx_fuse.passes.report import Report
from onnx_fuse.passes.select.decisions import METHODS, Method
from onnx_fuse.patterns import fusions as builtin_fusions
from onnx_fuse.patterns.language.operator import Fusion
from onnx_fuse.runtime.verify.verification import TIMEOUT

Attention = Literal["fused", "native"]
"""What softmax attention of a large hidden size becomes."""


def fusions() -> tuple[Fusion, ...]:
    """The fusions that come with onnx-fuse, default and opt-in."""
    return builtin_fusions()


@dataclass(repr=False)
class FuseResult:
    """A fused model and the report on how it came about.

    Attributes:
        report: what was fused and why the rest was not.
        source: the file the model came from, if any.
        base_dir: where the external data of a model from memory lies, if that was said.
        changed: False where nothing was rewritten; `save` then writes the source's own bytes.
    """

    _model: ModelProto | SurgeonGraph
    report: Report
    source: Path | None = None
    base_dir: Path | None = None
    changed: bool = True
    _proto: ModelProto = field(default_factory=ModelProto)
    _opened: Source | None = None  # the file, in which large weights may still be

    @property
    def model(self) -> Any:
        """The model: a ModelProto (weights in external data not loaded), or an onnx_graphsurgeon.Graph where one was given.

        Raises:
            ModelError: it came from a file, which was written to before its weights were read.
        """
        if self._opened is not None:
            io.materialise(self._proto)
            self._opened = None
        return self._model

    def __getstate__(self) -> dict[str, Any]:
        _ = self.model  # a copy reads no weights from the file
        return self.__dict__

    def save(self, path: str | os.PathLike[str], *, external_data: Literal["auto", "keep", "copy"] = "auto") -> None:
        """Writes the model; see `onnx_fuse.passes.files.io.save`.

        Raises:
            OutputError: it cannot be written; nothing is then.
            UsageError: `external_data="keep"` with another folder than the source's; or the model or its data would be overwritten.
        """
        require_apart([("The fused model", path)], [self.source] if self.source else [])
        io.save(
            self._proto,
            path,
            source=self.source,
            base_dir=self.base_dir,
            external_data=external_data,
            unchanged=not self.changed,
        )

    def to_bytes(self) -> bytes:
        """The model as the bytes of a file, for `onnxruntime.InferenceSession` or a parser; external data stays where it is.

        Raises:
            ModelError: as for `model`.
            OutputError: it has more than the 2 GB that protobuf can write.
        """
        _ = self.model
        return io.serialise(self._proto)

    def __repr__(self) -> str:
        return f"<FuseResult: {self.report.headline()}>"


@blames_text
def fuse(
    model: Model,
    *,
    fusions: Iterable[Chosen] | None = None,
    enable: Iterable[Chosen] = (),
    disable: Iterable[str] = (),
    require: Mapping[str, int] | None = None,
    select: Method = "all",
    sizes: Mapping[str, int | Sequence[int]] | None = None,
    device: str | None = None,
    attention: Attention = "fused",
    functions: Functions = "keep",
    simplify: bool = False,
    verify: bool = True,
    inputs: Mapping[str, Any] | str | os.PathLike[str] | None = None,
    verify_timeout: float | None = TIMEOUT,
    passes: Sequence[Pass | Callable[..., Any]] = (),
    base_dir: str | os.PathLike[str] | None = None,
    progress: Progress | None = None,
) -> FuseResult:
    """Fuses a model and proves that it still computes the same.

    Args:
        model: path, bytes of a file, ModelProto or onnx_graphsurgeon.Graph (the result then holds one, too). It is left as it is.
        fusions: names of fusions, `Fusion` objects of your own, or paths of learned ones (.onnx); None for the default ones.
        enable: fusions to add to these, by name, object or path.
        disable: names of fusions to leave out.
        require: operator or fusion name -> least number of fused nodes; whatever `select`, these are fused. "any" stands for all.
        select: which matches to commit: "all" of them, those that the cost model predicts to pay ("auto"), or those with which the
            model is faster when it is timed ("measured").
        sizes: for "auto" and "measured": dimension -> size, or input -> shape; what is missing is assumed.
        device: for "auto" the GPU to predict for (`DEVICES` of onnx_fuse.passes.select.cost_model); for "measured" the GPU of
            this machine if None, "cpu" to time ONNX Runtime.
        attention: "native" makes softmax attention of a hidden size above 512 ONNX's `Attention` (opset 23, to which the model is
            converted), for TensorRT's own fused layer.
        functions: "keep" the bodies of the fused operators in the model, "inline" them, or write "none".
        simplify: write the canonical form of the rest of the model too.
        verify: compare the fused model with the original in ONNX Runtime.
        inputs: inputs to verify with, besides random ones: name -> array, or the path of an .npz file.
        verify_timeout: seconds after which the comparison stops; it passes if enough was equal until then. None: no limit.
        passes: passes of your own to run before fusing: `Pass` objects, or functions on `Graph` or onnx_graphsurgeon.Graph.
        base_dir: folder of the external data of a model that is given in memory.
        progress: called with a word on what is being done.

    Raises:
        ModelError: the model cannot be read or is invalid.
        UsageError: an unknown fusion name, or inputs that do not fit.
        RequirementError: a count of `require` was not reached; the exception's `report` says why.
        VerificationError: the fused model differs; the exception's `report` holds the comparison.
    """
    if select not in METHODS:
        raise UsageError(f"select={select!r} is not known.", f"Use one of {', '.join(METHODS)}.")
    if select == "all" and (sizes or device):
        raise UsageError(
            'sizes and device are for select="auto" and "measured".',
            "Say --select auto, or leave them out.",
        )
    if attention not in get_args(Attention):
        raise UsageError(f"attention={attention!r} is not known.", f"Use one of {', '.join(get_args(Attention))}.")
    if functions not in get_args(Functions):
        raise UsageError(f"functions={functions!r} is not known.", f"Use one of {', '.join(get_args(Functions))}.")
    chosen, required = chosen_fusions(fusions, enable, disable), dict(require or {})
    check_required(required, chosen)
    started = time.perf_counter()
    run = Fusing(
        # Passes of the user's want the numbers, and a model that is timed runs as it will run.
        Given.of(model, lazily=not passes and select != "measured", base_dir=base_dir),
        chosen,
        own=[as_pass(item) for item in passes],
        attention=attention,
        functions=functions,
        simplify=simplify,
        say=progress or (lambda _: None),
    )
    run.rewrite(verify=verify, timeout=verify_timeout)
    if select != "all":
        run.select(select, sizes=sizes, device=device, required=required)
    run.settle()
    problem = run.verify(inputs, verify_timeout) if verify else None
    run.settle_bodies()
    report = run.report
    report.warnings += without_kernel(chosen, report)
    report.seconds = time.perf_counter() - started
    _warn(report)
    if problem is not None:
        problem.report = report
        raise problem
    check_met(required, report, chosen)
    result = to_surgeon(run.fused) if is_surgeon_graph(model) else run.fused
    return FuseResult(result, report, run.given.path, run.given.base_dir, run.changed, run.fused, run.given.opened)


@blames_text
def explain(
    model: Model,
    *,
    pattern: str | None = None,
    at: str | None = None,
    fusions: Iterable[Chosen] | None = None,
    enable: Iterable[Chosen] = (),
    base_dir: str | os.PathLike[str] | None = None,
) -> Report:
    """What would fuse, and what stopped the rest; nothing is rewritten.

    Args:
        model: path, bytes of a file, ModelProto or onnx_graphsurgeon.Graph.
        pattern: only this fusion (an opt-in one is tried because it is named).
        at: only attempts that start or fail at the node of this name (or that makes the value of this name).
        fusions, enable, base_dir: as in `fuse`.

    Raises:
        ModelError: the model cannot be read or is invalid.
        UsageError: an unknown fusion, or a node that the model does not have.
    """
    started = time.perf_counter()
    chosen = chosen_fusions(fusions, enable, ())
    if pattern is not None:
        known = {fusion.name: fusion for fusion in (*builtin_fusions(), *chosen)}
        chosen = (by_name(pattern, known),)
    given = Given.of(model, base_dir=base_dir)
    original, report = given.read(), given.new_report()
    check(original, given.path or "")
    steps: list[Pass] = [Convert(), FusePass(chosen, dry_run=True, folder=given.folder)]
    Pipeline(steps, bodies={item.operator.domain for item in chosen}).run(original, report)
    whole = blocks.outline(original)
    report.layers = layer_records(whole, whole)
    if at is not None:
        names = _names_at(original, at)
        report.matches = [item for item in report.matches if names & {item.node, *item.replaced}]
        report.near_misses = [item for item in report.near_misses if names & {item.node, item.failed_at}]
    report.seconds = time.perf_counter() - started
    _warn(report)
    return report


def _warn(report: Report) -> None:
    """Lets nobody overlook that a pass or fusion was left out because it raised."""
    for item in report.passes:
        if item.error is not None:
            warnings.warn(
                f"{item.name}: {item.error}", FusionWarning, stacklevel=4
            )  # decorated functions, called from outside


def _names_at(model: ModelProto, at: str) -> set[str]:
    for graph in graphs(model):
        for node in graph.nodes:
            if at in (node.name, *node.outputs):
                return {node.name, *node.outputs}
    raise UsageError(
        f"The model has no node or value {at!r}.", "`onnx-fuse explain MODEL` lists the places it looked at."
    )
