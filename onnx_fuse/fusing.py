"""A model on its way through `fuse`, step by step: rewritten, selected, verified, its bodies settled."""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from onnx import ModelProto

from onnx_fuse.errors import ModelError, UsageError, VerificationError
from onnx_fuse.passes.files import io
from onnx_fuse.passes.files.checker import check
from onnx_fuse.passes.files.graphsurgeon import SurgeonGraph, from_surgeon, is_surgeon_graph
from onnx_fuse.passes.fuse.fuse_pass import FusePass
from onnx_fuse.passes.fuse.native_attention import SINCE, to_native
from onnx_fuse.passes.fuse.simplify import Simplify
from onnx_fuse.passes.graph import blocks
from onnx_fuse.passes.graph.function_bodies import Functions
from onnx_fuse.passes.graph.index import count_nodes
from onnx_fuse.passes.graph.inlining import drop_bodies, inline_bodies
from onnx_fuse.passes.graph.spans import Source
from onnx_fuse.passes.normalize.sweep import rule_names
from onnx_fuse.passes.opset_conversion import OLDEST, Convert, opset_of
from onnx_fuse.passes.pipeline import BodiesPass, Pass, Pipeline
from onnx_fuse.passes.report import LayerRecord, Report
from onnx_fuse.passes.select.decisions import Selection
from onnx_fuse.patterns.language.operator import Fusion
from onnx_fuse.runtime.measure.selection import selected
from onnx_fuse.runtime.verify.verification import Suspects
from onnx_fuse.runtime.verify.verification import verify as compare
from onnx_fuse.versions import installed_versions

Progress = Callable[[str], None]

Model = str | os.PathLike[str] | bytes | ModelProto | SurgeonGraph
"""A model as `fuse` and `explain` take it: its path, its bytes, or itself."""

_PACKAGES = ("onnx-fuse", "onnx", "onnxruntime", "numpy")  # whose versions a report has


@dataclass
class Given:
    """A model as it was given: it is never changed, and there again whenever it is needed.

    Attributes:
        model: the model in memory, or the path of its file.
        lazily: leave large weights in the file, if it is one.
        base_dir: where the external data of a model in memory lies.
        opened: the file, once a model was read from it whose large weights are still there.
    """

    model: ModelProto | Path
    lazily: bool = True
    base_dir: Path | None = None
    opened: Source | None = None

    @classmethod
    def of(cls, model: Model, *, lazily: bool = True, base_dir: str | os.PathLike[str] | None = None) -> Given:
        """A path, bytes, a ModelProto or an onnx_graphsurgeon.Graph.

        Args:
            model: what was given.
            lazily: leave large weights in the file, if it is one.
            base_dir: folder of the external data of a model that is no path.

        Raises:
            UsageError: it is something else, or a path with a `base_dir`.
            ModelError: the bytes are no model.
        """
        folder = None if base_dir is None else Path(base_dir)
        if isinstance(model, (str, os.PathLike)):
            if folder is not None:
                raise UsageError("base_dir is for a model in memory.", "Leave it out: data lies beside the file.")
            return cls(Path(model), lazily)
        if isinstance(model, bytes):
            model = io.parse(model)
        elif is_surgeon_graph(model):
            model = from_surgeon(model)
        if isinstance(model, ModelProto):
            return cls(model, lazily, folder)
        raise UsageError(
            f"A model cannot be a {type(model).__name__}.",
            "Give a path, the bytes of a file, an onnx.ModelProto or an onnx_graphsurgeon.Graph.",
        )

    @property
    def path(self) -> Path | None:
        """The model's file, if it came as one."""
        return self.model if isinstance(self.model, Path) else None

    @property
    def folder(self) -> Path | None:
        """Where the model's external data lies."""
        return self.model.parent if isinstance(self.model, Path) else self.base_dir

    def read(self) -> ModelProto:
        """The model, for a caller who leaves it as it is.

        Raises:
            ModelError: the file cannot be read.
        """
        return self._load(self.model) if isinstance(self.model, Path) else self.model

    def fresh(self) -> ModelProto:
        """The model, for the caller to change.

        Raises:
            ModelError: the file cannot be read.
        """
        if isinstance(self.model, Path):
            return self._load(self.model)
        copy = ModelProto()
        copy.CopyFrom(self.model)
        return copy

    def _load(self, path: Path) -> ModelProto:
        if not self.lazily:
            return io.load(path)
        model, opened = io.load_lazily(path)
        if self.opened not in (None, opened):
            raise ModelError(f"{path} was changed while it was worked on.", "Leave the file alone, and start again.")
        self.opened = opened
        return model

    def new_report(self) -> Report:
        """A report in which nothing has happened yet."""
        return Report(model=str(self.path or ""), versions=installed_versions(_PACKAGES))


class Fusing:
    """One run of `fuse`: each method is a step, in the order in which docs/architecture.md tells them.

    Args:
        given: the model.
        chosen: the fusions to apply.
        own: passes of the user's own, which run first.
        attention, functions, simplify: as for `onnx_fuse.fuse`.
        say: called with a word on what is being done.

    Attributes:
        fused: the model as it stands after the steps so far.
        report: what they did.
        changed: whether anything was rewritten.
    """

    def __init__(
        self,
        given: Given,
        chosen: Sequence[Fusion],
        *,
        own: Sequence[Pass],
        attention: str,
        functions: Functions,
        simplify: bool,
        say: Progress,
    ) -> None:
        self.given = given
        self.chosen = chosen
        self.own = own
        self.attention = attention
        self.functions = functions
        self.simplify = simplify
        self.say = say
        self.operators = tuple(dict.fromkeys((item.operator.domain, item.operator.name) for item in chosen))
        self.domains = {domain for domain, _ in self.operators}
        say("loading")
        self.fused = given.fresh()
        check(self.fused, given.path or "")
        self.report = given.new_report()
        self.changed = False
        self._opsets = _opsets(self.fused)
        self._opset = opset_of(self.fused)
        self._spoils: str | None = None
        self._outline = blocks.outline(self.fused)

    # -- steps ---------------------------------------------------------------------------------------------------------

    def rewrite(self, *, verify: bool, timeout: float | None) -> None:
        """The user's own passes, then the fusions, then the bodies of their operators.

        Where a model of an older opset was converted first and the converter has changed what it computes, it stays as it is.

        Args:
            verify: compare what was converted with the original.
            timeout: seconds which that may take; None: no limit.
        """
        self.fused = self._rewritten(self.fused, self.report)
        if verify and self.report.matches and opset_of(self.fused) != self._opset:
            self._spoils = self._changed_by_converter(timeout)
        if self._spoils is not None:
            self.report = self.given.new_report()
            self.fused = self._rewritten(self.given.fresh(), self.report)

    def select(
        self,
        method: str,
        *,
        sizes: Mapping[str, int | Sequence[int]] | None,
        device: str | None,
        required: Collection[str],
    ) -> None:
        """Keeps the fused nodes that are predicted or measured to pay, and those of the required fusions."""
        if not self.report.matches:
            return
        self.say("selecting")
        others = [item.name for item in self.own] + self._simplifying()
        root_of = {match.node: match.root for match in self.report.matches}

        def of_operators(predicted: Selection, kept: Collection[str]) -> ModelProto:
            roots = [root_of[item.node] for item in predicted.decisions if item.operator in kept]
            return self._again([*others, *roots])

        from onnx_fuse.runtime.builder import build

        selection = selected(
            method,
            self.fused,
            of_operators,
            among=root_of.keys(),  # fused nodes that the model came with are not ours to leave out
            build_engine=build,
            sizes=sizes,
            device=device,
            alternative="original",
            folder=self.given.folder,
            progress=self.say,
        )
        selection = selection.keeping(
            {match.node for match in self.report.matches if {match.fusion, match.operator} & {*required}}
        )
        self.report.selection = selection.to_dict()
        roots = [match.root for match in self.report.matches if match.node not in selection.left_out]
        if len(roots) < len(self.report.matches):
            kept = Report(model=self.report.model, versions=self.report.versions)
            self.fused = self._again([*others, *roots], kept)
            kept.near_misses, kept.selection = self.report.near_misses, self.report.selection
            self.report = kept

    def settle(self) -> None:
        """Notes what became of the layers; where nothing was rewritten, the model stays as it came."""
        self.report.layers = layer_records(self._outline, blocks.outline(self.fused))
        self.changed = any(item.rewrites for item in self.report.passes) or bool(self.own)
        if not self.changed and _opsets(self.fused) != self._opsets:
            self.fused = self.given.fresh()  # converted to no end

    def verify(
        self, inputs: Mapping[str, Any] | str | os.PathLike[str] | None, timeout: float | None
    ) -> VerificationError | None:
        """Compares the fused model with the original; what to raise if they differ."""
        if not self.changed:
            self.report.verification = {"passed": False, "skipped": "nothing was rewritten"}
            return None
        self.say("verifying")
        self._check_shapes()
        names = [item.name for item in self.own] + [match.root for match in self.report.matches] + self._simplifying()
        result = compare(
            self.given.model,
            self.fused,
            original_dir=self.given.folder,
            inputs=os.fspath(inputs) if isinstance(inputs, os.PathLike) else inputs,
            suspects=Suspects(names, self._again) if names else None,
            timeout=timeout,
        )
        self.report.verification = result.to_dict()
        if result.skipped is not None:
            self.report.warnings.append(f"not verified: {result.skipped}")
            return None
        try:
            result.raise_if_failed()
        except VerificationError as error:
            return error
        return None

    def settle_bodies(self) -> None:
        """Inlines the bodies of the fused operators or drops them, where that is asked for."""
        count = len(self.fused.functions)
        if self.functions == "inline":
            self.fused = inline_bodies(self.fused, self.operators)
            self.report.nodes_after = count_nodes(self.fused, frozenset(self.domains))
            self.report.layers = layer_records(self._outline, blocks.outline(self.fused))
        elif self.functions == "none":
            drop_bodies(self.fused, self.operators)
        self.changed = self.changed or len(self.fused.functions) != count

    # -- what the steps share ------------------------------------------------------------------------------------------

    def _rewritten(self, model: ModelProto, report: Report, only: Sequence[str] | None = None) -> ModelProto:
        """The model after all rewrites, or just those of these names: passes, roots of fused nodes, rules of the view."""
        steps = [item for item in self.own if only is None or item.name in only]
        steps.append(Convert(self._least(), self._spoils))
        steps.append(FusePass(self.chosen, only=only, folder=self.given.folder))
        if self.simplify:
            steps.append(Simplify(self.domains, only))
        if self.functions == "keep":
            steps.append(BodiesPass(self.operators))
        pipeline = Pipeline(steps, progress=self.say if only is None else None, bodies=self.domains)
        model, _ = pipeline.run(model, report)
        return to_native(model, report) if self.attention == "native" else model

    def _least(self) -> int:
        """The opset to which older models are converted."""
        return SINCE if self.attention == "native" else OLDEST

    def _changed_by_converter(self, timeout: float | None) -> str | None:
        """How the converted model differs from the given one, a clause; None where it does not, or nobody can tell."""
        self.say("verifying the conversion")
        converted, _ = Pipeline([Convert(self._least())]).run(self.given.fresh())
        result = compare(self.given.model, converted, original_dir=self.given.folder, timeout=timeout)
        if result.problem is None or result.inconclusive:
            return None
        return f"the model that it made computes something else: {result.problem}"

    def _again(self, only: Sequence[str], report: Report | None = None) -> ModelProto:
        """The original with just the rewrites of these names."""
        return self._rewritten(self.given.fresh(), Report() if report is None else report, only)

    def _simplifying(self) -> list[str]:
        """The rules that rewrite the model itself."""
        return rule_names() if self.simplify else []

    def _check_shapes(self) -> None:
        """onnx's full check, which infers and compares shapes; what an exporter declared wrongly is not held against us."""
        try:
            check(self.fused, self.report.model, full=True)
        except ModelError:
            try:
                check(self.given.read(), self.report.model, full=True)
            except ModelError as error:
                self.report.warnings.append(f"the model's declared shapes are inconsistent: {error.cause}")
                return
            raise


def layer_records(before: Mapping[str, int], after: Mapping[str, int]) -> list[LayerRecord]:
    """The nodes of each layer before and after, from `blocks.outline` of both models."""
    names = dict.fromkeys([*before, *after])
    return [LayerRecord(name, before.get(name, 0), after.get(name, 0)) for name in names]


def _opsets(model: ModelProto) -> list[tuple[str, int]]:
    return [(item.domain, item.version) for item in model.opset_import]
