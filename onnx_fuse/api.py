"""The front door: `fuse`, `explain` and `fusions`, as the command line and export scripts call them."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from onnx import ModelProto

from onnx_fuse.errors import ModelError, RequirementError, UsageError, VerificationError
from onnx_fuse.learning import LearnedFusion, load
from onnx_fuse.passes.files import io
from onnx_fuse.passes.files.checker import check
from onnx_fuse.passes.files.encoding import blames_text
from onnx_fuse.passes.files.graphsurgeon import from_surgeon, is_surgeon_graph, to_surgeon
from onnx_fuse.passes.fuse.fuse_pass import FusePass
from onnx_fuse.passes.fuse.native_attention import SINCE, to_native
from onnx_fuse.passes.fuse.simplify import Simplify
from onnx_fuse.passes.graph import blocks
from onnx_fuse.passes.graph.function_bodies import Functions
from onnx_fuse.passes.graph.inlining import drop_bodies, inline_bodies
from onnx_fuse.passes.normalize.sweep import rule_names
from onnx_fuse.passes.opset_conversion import OLDEST, Convert
from onnx_fuse.passes.pipeline import BodiesPass, Pass, Pipeline, as_pass
from onnx_fuse.passes.report import LayerRecord, NearMissRecord, Report
from onnx_fuse.passes.select.predicted import METHODS, Selection
from onnx_fuse.patterns import fusions as builtin_fusions
from onnx_fuse.patterns.language.operator import Fusion
from onnx_fuse.runtime.measure.selection import selected
from onnx_fuse.runtime.plugins import plugin_library
from onnx_fuse.runtime.verify.verification import Suspects
from onnx_fuse.runtime.verify.verification import verify as compare
from onnx_fuse.versions import installed_versions

Model = "ModelProto | str | os.PathLike[str] | Any"
Progress = Callable[[str], None]
Chosen = str | os.PathLike[str] | Fusion
"""A fusion by its name, by the path of a learned one, or itself."""

ATTENTION = ("fused", "native")
"""What softmax attention of a large hidden size becomes."""

_MOST_MISSES = 5
_PACKAGES = ("onnx-fuse", "onnx", "onnxruntime", "numpy")  # whose versions a report has


def fusions() -> tuple[Fusion, ...]:
    """The fusions that come with onnx-fuse, default and opt-in."""
    return builtin_fusions()


@dataclass
class FuseResult:
    """A fused model and the report on how it came about.

    Attributes:
        model: the model, as it came: a ModelProto (weights in external data not loaded), or an onnx_graphsurgeon.Graph.
        report: what was fused and why the rest was not.
        source: the file the model came from, if any.
        changed: False where nothing was rewritten; `save` then writes the source's own bytes.
    """

    model: Any
    report: Report
    source: Path | None = None
    changed: bool = True
    _proto: ModelProto = field(default_factory=ModelProto, repr=False)

    def save(self, path: str | os.PathLike[str], *, external_data: Literal["auto", "keep", "copy"] = "auto") -> None:
        """Writes the model; see `onnx_fuse.passes.files.io.save`.

        Raises:
            OutputError: it cannot be written; nothing is then.
            UsageError: `external_data="keep"` with another folder than the source's.
        """
        io.save(self._proto, path, source=self.source, external_data=external_data, unchanged=not self.changed)


@blames_text
def fuse(
    model: Any,
    *,
    fusions: Iterable[Chosen] | None = None,
    enable: Iterable[Chosen] = (),
    disable: Iterable[str] = (),
    require: Mapping[str, int] | None = None,
    select: str = "all",
    sizes: Mapping[str, int | Sequence[int]] | None = None,
    device: str | None = None,
    attention: str = "fused",
    functions: Functions = "keep",
    simplify: bool = False,
    verify: bool = True,
    inputs: Mapping[str, Any] | str | os.PathLike[str] | None = None,
    passes: Sequence[Pass | Callable[..., Any]] = (),
    progress: Progress | None = None,
) -> FuseResult:
    """Fuses a model and proves that it still computes the same.

    Args:
        model: path, ModelProto (left as it is) or onnx_graphsurgeon.Graph (left as it is; the result holds one too).
        fusions: names of fusions, `Fusion` objects of your own, or paths of learned ones (.onnx); None for the default ones.
        enable: fusions to add to these, by name, object or path.
        disable: names of fusions to leave out.
        require: operator or fusion name -> least number of fused nodes; whatever `select`, these are fused.
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
        passes: passes of your own to run before fusing: `Pass` objects, or functions on `Graph` or onnx_graphsurgeon.Graph.
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
            'Say select="auto" (--select auto), or leave them out.',
        )
    if attention not in ATTENTION:
        raise UsageError(f"attention={attention!r} is not known.", f"Use one of {', '.join(ATTENTION)}.")
    if functions not in ("keep", "inline", "none"):
        raise UsageError(f"functions={functions!r} is not known.", 'Use "keep", "inline" or "none".')
    chosen = _chosen(fusions, enable, disable)
    _check_required(require, chosen)
    started = time.perf_counter()
    say = progress or (lambda _: None)
    say("loading")
    original, source = _opened(model)
    check(original, source or "")
    # What was read from a file is ours to change; the file stays, should the original be needed again.
    pristine: ModelProto | Path = original if source is None else source
    operators = tuple(dict.fromkeys((fusion.operator.domain, fusion.operator.name) for fusion in chosen))
    report = Report(model=str(source or ""), versions=installed_versions(_PACKAGES))

    domains = {domain for domain, _ in operators}
    own = [as_pass(item) for item in passes]
    folder = None if source is None else source.parent

    def pipeline(suspects: Sequence[str] | None = None) -> Pipeline:
        """All steps, or just what is among the suspects: passes, fused nodes by their roots, rules of normalisation."""
        steps = [item for item in own if suspects is None or item.name in suspects]
        steps += [Convert(SINCE if attention == "native" else OLDEST), FusePass(chosen, only=suspects, folder=folder)]
        if simplify:
            steps.append(Simplify(domains, suspects))
        if functions == "keep":
            steps.append(BodiesPass(operators))
        return Pipeline(steps, progress=say if suspects is None else None, bodies=domains)

    def made(model: ModelProto, names: Sequence[str] | None, onto: Report) -> tuple[ModelProto, Report]:
        model, onto = pipeline(names).run(model, onto)
        return (to_native(model, onto) if attention == "native" else model), onto

    def again(names: Sequence[str], onto: Report | None = None) -> tuple[ModelProto, Report]:
        return made(io.load(pristine) if isinstance(pristine, Path) else _copy(pristine), names, onto or Report())

    before = blocks.outline(original)
    fused, report = made(original if source is not None else _copy(original), None, report)
    if select != "all" and report.matches:
        others = [item.name for item in own] + (rule_names() if simplify else [])
        say("selecting")
        roots_of = {match.node: match.root for match in report.matches}

        def of_operators(predicted: Selection, kept: Collection[str]) -> ModelProto:
            roots = [roots_of[item.node] for item in predicted.decisions if item.operator in kept]
            return again([*others, *roots])[0]

        # Fused nodes that the model came with are not ours to leave out.
        selection = selected(
            select, fused, of_operators, among=roots_of.keys(), sizes=sizes, device=device, alternative="original",
            folder=folder, progress=say,
        ).keeping({match.node for match in report.matches if {match.fusion, match.operator} & {*(require or {})}})  # fmt: skip
        report.selection = selection.to_dict()
        roots = [match.root for match in report.matches if match.node not in selection.left_out]
        if len(roots) < len(report.matches):
            fused, kept = again([*others, *roots], Report(model=report.model, versions=report.versions))
            kept.near_misses, kept.selection = report.near_misses, report.selection
            report = kept
    report.layers = _layers(before, blocks.outline(fused))
    changed = any(item.rewrites for item in report.passes) or bool(own)
    if not changed and list(fused.opset_import) != list(original.opset_import):
        # Converted to no end: the model stays as it came.
        fused = _copy(original) if source is None else io.load(source)
    problem: VerificationError | None = None
    if verify and not changed:
        report.verification = {"passed": False, "skipped": "nothing was rewritten"}
    elif verify:
        say("verifying")
        _check_fused(pristine, fused, report)

        names = [item.name for item in own] + [match.root for match in report.matches]
        problem = _verify(
            pristine,
            fused,
            report,
            inputs,
            Suspects(names + (rule_names() if simplify else []), lambda names: again(names)[0]),
        )
    report.warnings += _without_kernel(chosen, report)
    count = len(fused.functions)
    if functions == "inline":
        fused = inline_bodies(fused, operators)
    elif functions == "none":
        drop_bodies(fused, operators)
    report.seconds = time.perf_counter() - started
    if problem is not None:
        problem.report = report  # type: ignore[attr-defined]
        raise problem
    _check_met(require, report, chosen)
    result = to_surgeon(fused) if is_surgeon_graph(model) else fused
    return FuseResult(result, report, source, changed or len(fused.functions) != count, fused)


@blames_text
def explain(
    model: Any,
    *,
    pattern: str | None = None,
    at: str | None = None,
    fusions: Iterable[Chosen] | None = None,
    enable: Iterable[Chosen] = (),
) -> Report:
    """What would fuse, and what stopped the rest; nothing is rewritten.

    Args:
        model: path, ModelProto or onnx_graphsurgeon.Graph.
        pattern: only this fusion (an opt-in one is tried because it is named).
        at: only attempts that start or fail at the node of this name (or that makes the value of this name).
        fusions, enable: as in `fuse`.

    Raises:
        ModelError: the model cannot be read or is invalid.
        UsageError: an unknown fusion, or a node that the model does not have.
    """
    started = time.perf_counter()
    chosen = _chosen(fusions, enable, ())
    if pattern is not None:
        known = {fusion.name: fusion for fusion in (*builtin_fusions(), *chosen)}
        chosen = (_by_name(pattern, known),)
    original, source = _opened(model)
    check(original, source or "")
    report = Report(model=str(source or ""), versions=installed_versions(_PACKAGES))
    _, report = Pipeline(
        [Convert(), FusePass(chosen, dry_run=True, folder=None if source is None else source.parent)],
        bodies={item.operator.domain for item in chosen},
    ).run(original, report)
    whole = blocks.outline(original)
    report.layers = _layers(whole, whole)
    if at is not None:
        names = _names_at(original, at)
        report.matches = [item for item in report.matches if names & {item.node, *item.replaced}]
        report.near_misses = [item for item in report.near_misses if names & {item.node, item.failed_at}]
    report.seconds = time.perf_counter() - started
    return report


def _check_fused(original: ModelProto | Path, fused: ModelProto, report: Report) -> None:
    """onnx's full check, which infers and compares shapes; what an exporter declared wrongly is not held against us."""
    try:
        check(fused, report.model, full=True)
    except ModelError:
        before = io.load(original) if isinstance(original, Path) else original
        try:
            check(before, report.model, full=True)
        except ModelError as error:
            report.warnings.append(f"the model's declared shapes are inconsistent: {error.cause}")
            return
        raise


def _verify(
    original: ModelProto | Path,
    fused: ModelProto,
    report: Report,
    inputs: Mapping[str, Any] | str | os.PathLike[str] | None,
    suspects: Suspects,
) -> VerificationError | None:
    folder = original.parent if isinstance(original, Path) else None
    result = compare(
        original,
        fused,
        original_dir=folder,
        inputs=os.fspath(inputs) if isinstance(inputs, os.PathLike) else inputs,
        suspects=suspects if suspects.names else None,
    )
    report.verification = result.to_dict()
    if result.skipped is not None:
        report.warnings.append(f"not verified: {result.skipped}")
        return None
    try:
        result.raise_if_failed()
    except VerificationError as error:
        return error
    return None


def _opened(model: Any) -> tuple[ModelProto, Path | None]:
    if isinstance(model, ModelProto):
        return model, None
    if is_surgeon_graph(model):
        return from_surgeon(model), None
    if isinstance(model, (str, os.PathLike)):
        return io.load(model), Path(model)
    raise UsageError(
        f"A model cannot be a {type(model).__name__}.", "Give a path, an onnx.ModelProto or an onnx_graphsurgeon.Graph."
    )


def _copy(model: ModelProto) -> ModelProto:
    copy = ModelProto()
    copy.CopyFrom(model)
    return copy


def _chosen(
    names: Iterable[Chosen] | None,
    enable: Iterable[Chosen],
    disable: Iterable[str],
) -> tuple[Fusion, ...]:
    known = {fusion.name: fusion for fusion in builtin_fusions()}
    wanted: list[str | Fusion] = [item for item in known.values() if item.default] if names is None else _loaded(names)
    wanted += _loaded(enable)
    left_out = {
        _by_name(name, known | {item.name: item for item in wanted if isinstance(item, Fusion)}).name
        for name in _listed(disable)
    }
    chosen: dict[str, Fusion] = {}
    for item in wanted:
        fusion = item if isinstance(item, Fusion) else _by_name(item, known)
        if isinstance(fusion, LearnedFusion) and chosen.get(fusion.name, fusion) is not fusion:
            raise UsageError(
                f"There are two fusions called {fusion.name}.", "Leave one out, or learn it under another name (--op)."
            )
        if fusion.name not in left_out:
            chosen[fusion.name] = fusion
    return tuple(chosen.values())


def _listed(items: Any) -> list[Any]:
    return [items] if isinstance(items, (str, os.PathLike, Fusion)) else list(items)


def _loaded(items: Any) -> list[str | Fusion]:
    """Names and objects as they are, the fusion itself for the path of a learned one."""
    return [load(item) if _is_path(item) else item for item in _listed(items)]


def _is_path(item: Any) -> bool:
    return isinstance(item, os.PathLike) or (isinstance(item, str) and item.endswith(".onnx"))


def _by_name(name: str, known: Mapping[str, Fusion]) -> Fusion:
    if not isinstance(name, str):
        raise UsageError(f"{name!r} is no fusion.", "Give the name of one, or a Fusion with a pattern and an operator.")
    if name not in known:
        raise UsageError(f"There is no fusion {name!r}.", f"The fusions are: {', '.join(known)}.")
    return known[name]


def _without_kernel(chosen: Sequence[Fusion], report: Report) -> list[str]:
    built = plugin_library.recorded()
    learned = {
        fusion.operator.name
        for fusion in chosen
        if isinstance(fusion, LearnedFusion) and fusion.operator.plugin not in built
    }
    names = [name for name in dict.fromkeys(match.operator for match in report.matches) if name in learned]
    return [
        f"{name} is learned: it has a body and no kernel yet. Until TensorRT is given a plugin of that name it runs the "
        "body, which is as fast as before fusing"
        for name in names
    ]


def _check_required(require: Mapping[str, int] | None, chosen: Sequence[Fusion]) -> None:
    names = {name for fusion in chosen for name in (fusion.name, fusion.operator.name)}
    for name in require or {}:
        if name not in names:
            raise UsageError(
                f"{name} is required but not among the fusions that run.", f"They are: {', '.join(sorted(names))}."
            )


def _check_met(require: Mapping[str, int] | None, report: Report, chosen: Sequence[Fusion]) -> None:
    for name, count in (require or {}).items():
        found = sum(name in (match.fusion, match.operator) for match in report.matches)
        if found >= count:
            continue
        fusions = {fusion.name for fusion in chosen if name in (fusion.name, fusion.operator.name)}
        error = RequirementError(
            f"{count} {name} required, {found} fused.{_missing(fusions, count - found, report)}",
            "`onnx-fuse explain MODEL` tells what stopped the rest.",
        )
        error.report = report  # type: ignore[attr-defined]
        raise error


def _missing(fusions: Collection[str], missing: int, report: Report) -> str:
    """The near misses that would have made up the difference, the most complete first, with what would make them fuse."""
    misses = [item for item in report.near_misses if item.fusion in fusions]
    if not misses:
        return " There are no near misses: nothing else in the model looks like it."
    misses.sort(key=lambda item: -item.matched / max(item.total, 1))
    shown = misses[: min(missing, _MOST_MISSES)]
    numbers = [f"({number}) " for number in range(1, len(shown) + 1)] if len(shown) > 1 else [""]
    told = "; ".join(number + _miss(item) for number, item in zip(numbers, shown, strict=True))
    rest = f"; and {len(misses) - len(shown)} more" if len(misses) > len(shown) else ""
    lead = "The nearest miss" if len(misses) == 1 else "The nearest misses"
    advice = "".join(f" {text}" for text in dict.fromkeys(item.advice for item in shown if item.advice))
    return f" {lead}: {told}{rest}.{advice}"


def _miss(item: NearMissRecord) -> str:
    where = f"{item.node} in {item.graph}" if item.graph else item.node
    where += f" of {item.block}" if item.block else ""
    return f"{where}: {item.reason.rstrip('.')}"


def _layers(before: Mapping[str, int], after: Mapping[str, int]) -> list[LayerRecord]:
    names = dict.fromkeys([*before, *after])
    return [LayerRecord(name, before.get(name, 0), after.get(name, 0)) for name in names]


def _names_at(model: ModelProto, at: str) -> set[str]:
    from onnx_fuse.passes.graph.index import graphs

    for graph in graphs(model):
        for node in graph.nodes:
            if at in (node.name, *node.outputs):
                return {node.name, *node.outputs}
    raise UsageError(
        f"The model has no node or value {at!r}.", "`onnx-fuse explain MODEL` lists the places it looked at."
    )
