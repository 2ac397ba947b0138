"""Numeric proof that a fused model computes what the original computes: both run in ONNX Runtime, outputs are compared.

The original decides what counts: inputs it cannot run on are dropped (and reported), NaN where it has NaN is right. Nothing
passes silently: without one comparison on data that tells right from wrong, the verification is inconclusive, and that fails.
What outputs cannot show is compared as it is: weights byte for byte, and the attributes of fused nodes with their bodies.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from onnx import ModelProto, NodeProto, TensorProto

from onnx_fuse.errors import ModelError
from onnx_fuse.passes.files.encoding import blames_text
from onnx_fuse.passes.files.io import load_lazily
from onnx_fuse.passes.graph.confined import Exceeded
from onnx_fuse.passes.graph.spans import Source
from onnx_fuse.runtime.device.memory import available_bytes, needed_bytes, shortage
from onnx_fuse.runtime.onnxruntime import sessions
from onnx_fuse.runtime.onnxruntime.kernel_library import Choice, Kernels, choose
from onnx_fuse.runtime.onnxruntime.room import limited
from onnx_fuse.runtime.onnxruntime.sessions import Deadline, OutOfTime
from onnx_fuse.runtime.verify.bodies import Bodies, by_attributes
from onnx_fuse.runtime.verify.compare import TOLERANCES, Comparison, compare
from onnx_fuse.runtime.verify.empty_inputs import may_be_empty
from onnx_fuse.runtime.verify.float32_twin import holds_bfloat16, widen
from onnx_fuse.runtime.verify.noise import Hearing
from onnx_fuse.runtime.verify.precision import tolerances
from onnx_fuse.runtime.verify.random_inputs import (
    DRAWS,
    REACH,
    Array,
    Draw,
    InputSpec,
    draw_shapes,
    has_mask,
    input_specs,
)
from onnx_fuse.runtime.verify.record import Case, Rejected, Verification
from onnx_fuse.runtime.verify.reference import (
    ENOUGH_CASES,
    Evidence,
    Original,
    as_arrays,
    drawn_evidence,
    given_evidence,
)
from onnx_fuse.runtime.verify.user_inputs import given_inputs
from onnx_fuse.runtime.verify.weights import changed_weights

__all__ = ["TIMEOUT", "Evidence", "Judge", "Suspects", "Verification", "bisect", "verify"]

TIMEOUT = 300.0
"""Seconds after which a verification stops, unless it is told otherwise."""

_SKIP = "`fuse --no-verify` writes the fused model without this check."
_LONGER = "Give it longer with --verify-timeout SECONDS."
_MASKED_ROW = (
    "not compared with a row masked out: there ONNX defines the mean of the values where the mask adds the lowest number, "
    "and ONNX Runtime's Attention gives 0."
)
Model = ModelProto | str | Path
_GRACE = 5.0
"""Seconds for a process to say that its time is up."""
_MOST_INNER = 256
_MOST_NAMED = 3
# With so many times the memory of the first draws there is enough for all of them.
_AMPLE = 64
# Operators that other tools put in: those may give an old name to another value.
STANDARD_DOMAINS = ("", "ai.onnx", "ai.onnx.ml", "com.microsoft")


@dataclass(frozen=True)
class Suspects:
    """The rewrites that made the fused model, so that a failure can be laid on one of them.

    Attributes:
        names: the rewrites, in the order they were applied.
        build: gives the model with just these rewrites applied (always a prefix of `names`; none: the original).
    """

    names: Sequence[str]
    build: Callable[[Sequence[str]], ModelProto]


@dataclass(frozen=True)
class Judge:
    """What says whether two values are equal.

    Attributes:
        rtol: value -> relative difference to allow; `default` for those it does not know.
        atol: difference that is allowed whatever the magnitudes.
        hearing: who is asked about values in doubt; None: differences are held against the largest magnitude alone.
        deadline: when to stop running.
    """

    rtol: Mapping[str, float]
    default: float = TOLERANCES["float32"]
    atol: float = 0.0
    hearing: Hearing | None = None
    deadline: Deadline | None = None

    def compared(self, name: str, expected: Array, got: Array, evidence: Evidence) -> Comparison:
        """One value of one case."""
        hearing = self.hearing
        rtol = self.rtol.get(name, self.default)
        # A quantized value takes the next step or does not: a few samples of the noise may miss that.
        noise = None if hearing is None or rtol > TOLERANCES["float16"] else lambda: hearing.noise(evidence, name)
        left_out: Array | None = None
        if evidence.undefined and expected.dtype.kind == got.dtype.kind == "f" and expected.shape == got.shape:
            left_out = ~np.isfinite(expected)
            if evidence.redraw is None:
                left_out &= ~np.isfinite(got)
        bounded = not evidence.spread
        found = compare(name, expected, got, rtol, atol=self.atol, noise=noise, bounded=bounded, unread=left_out)
        if left_out is not None and left_out.any():
            found = replace(found, undefined=int(left_out.sum()))
        if found.problem is None or found.index is None or hearing is None or expected.dtype.kind != "f":
            return found
        if evidence.redraw is not None:
            return found
        unread = hearing.unread(evidence, name, expected, got)
        if unread is None:
            return found
        both = unread if left_out is None else unread | left_out
        again = compare(name, expected, got, rtol, atol=self.atol, noise=noise, bounded=bounded, unread=both)
        return replace(again, unread=int(unread.sum()))

    def judged(self, session: Any, evidence: Evidence) -> Case:
        """The case with the comparison of each of its values.

        Raises:
            OutOfTime: the deadline passed.
        """
        case = self._once(session, evidence)
        if case.passed or evidence.redraw is None or self.hearing is None:
            return case
        try:
            narrowed = self.hearing.within_reach(evidence)
        except ModelError:  # the original ran: what it does not give of its values is no fault of the fused model
            return case
        if narrowed is None:
            return case
        within, count = narrowed
        case = self._once(session, within)
        return replace(case, name=f"{case.name}, {count} of {len(REACH)} that the original can take inside")

    def _once(self, session: Any, evidence: Evidence) -> Case:
        try:
            outputs = as_arrays(sessions.run(session, evidence.inputs, self.deadline))
        except ModelError as error:
            return replace(evidence.case, error=error.cause)
        comparisons = [
            self.compared(name, expected, outputs[name], evidence)
            if name in outputs
            else Comparison(name, problem="is missing")
            for name, expected in evidence.expected.items()
            if _tells(expected, evidence)
        ]
        for name, expected in evidence.inner.items():
            if name in outputs and _tells(expected, evidence):
                comparisons.append(replace(self.compared(name, expected, outputs[name], evidence), inner=True))
        return replace(evidence.case, comparisons=tuple(comparisons))


def _tells(expected: Array, evidence: Evidence) -> bool:
    """Whether a value has to be equal: what is counted or sorted among very different magnitudes may hang on one rounding."""
    return not evidence.spread or expected.dtype.kind in "fc"


@blames_text
def verify(
    original: Model,
    fused: Model,
    *,
    original_dir: str | Path | None = None,
    fused_dir: str | Path | None = None,
    inputs: Mapping[str, Any] | str | Path | None = None,
    seed: int = 0,
    rtol: float | None = None,
    atol: float = 0.0,
    samples: int = 0,
    timeout: float | None = TIMEOUT,
    suspects: Suspects | None = None,
    memory_limit: int | None = None,
    library: Choice = False,
) -> Verification:
    """Runs both models on the same inputs and compares their outputs, and compares their weights.

    Args:
        original, fused: paths, or models in memory (never changed).
        original_dir, fused_dir: folders of the external data of models in memory; the fused model's is the original's
            unless given.
        inputs: inputs of the user's, compared before the random ones: name -> array, or the path of an .npz file.
        seed: of the random inputs; the same seed gives the same inputs.
        rtol: relative difference allowed (see `compare`); None: by the types that each output is computed in.
        atol: difference that is allowed whatever the magnitudes.
        samples: sets of random inputs to compare at least; 0: those that every verification begins with.
        timeout: seconds after which it stops and says what was compared; None: never.
        suspects: the rewrites to look through for a culprit when the models differ.
        memory_limit: bytes the run may take; None: what the machine and its control group have left.
        library: the kernel library that runs fused nodes of the fused model (see `OrtSession`). By default their bodies run,
            which say what the operators mean; the original runs by its bodies whatever this says.

    Raises:
        ModelError: a model cannot be read.
        UsageError: `inputs` do not fit the model, or the library cannot run it.
    """
    start = time.perf_counter()
    before, before_dir, _original_file = loaded(original, original_dir)
    after, after_dir, _fused_file = loaded(fused, fused_dir or before_dir)
    result = Verification(timeout=timeout)
    try:
        specs = input_specs(before)
    except ModelError as error:
        result.problem, result.remedy = f"inconclusive: {error.cause}", _SKIP
        return result
    given = None if inputs is None else given_inputs(inputs, specs)
    changed, result.weights = changed_weights(before, before_dir, after, after_dir)
    with Deadline(timeout) as deadline:
        run = _Run(
            result, before, before_dir, after, after_dir, tuple(specs), deadline, rtol, atol, samples, seed, library
        )
        run.compare(given, suspects, memory_limit)
    if changed:
        _blame_weights(result, changed)
    result.seconds = time.perf_counter() - start
    return result


def bisect(
    evidence: Evidence,
    suspects: Suspects,
    *,
    base_dir: str | Path | None = None,
    judge: Judge | None = None,
) -> str | None:
    """The first rewrite without which the model was still right, and with which it is wrong, on the inputs of one case.

    Builds about log2(n) models: a prefix of the rewrites that passes and a longer one that fails close in on each other,
    which ends at one rewrite even where several are wrong or where one is wrong only after another.

    Returns:
        Its name; None when the model is wrong without any rewrite, or right with all of them.

    Raises:
        OutOfTime: the judge's deadline passed.
    """
    judge = judge or Judge({})

    def breaks(count: int) -> bool:
        try:
            session = _open(suspects.build(suspects.names[:count]), base_dir, evidence.inner)
        except ModelError:
            return True
        return not judge.judged(session, evidence).passed

    right, wrong = 0, len(suspects.names)
    if not wrong or breaks(right) or not breaks(wrong):
        return None
    while wrong - right > 1:
        middle = (right + wrong) // 2
        if breaks(middle):
            wrong = middle
        else:
            right = middle
    return suspects.names[wrong - 1]


@dataclass
class _Run:
    """One verification under way; what comes of it goes into `result`."""

    result: Verification
    original: ModelProto
    original_dir: str | Path | None
    fused: ModelProto
    fused_dir: str | Path | None
    specs: tuple[InputSpec, ...]
    deadline: Deadline
    rtol: float | None
    atol: float
    samples: int
    seed: int
    library: Choice

    def compare(self, given: dict[str, Array] | None, suspects: Suspects | None, memory_limit: int | None) -> None:
        """Runs both models, unless that takes more memory than there is or they do not take the same."""
        result = self.result
        shapes = draw_shapes(self.specs, max(DRAWS, key=lambda draw: draw.batch * draw.length))
        shapes.update({name: array.shape for name, array in (given or {}).items()})
        needed = needed_bytes(self.original, self.fused, shapes)
        result.bytes_needed = needed or 0
        result.bytes_available = available_bytes() if memory_limit is None else memory_limit
        result.skipped = shortage(needed, result.bytes_available)
        if result.skipped is not None:
            return
        if needed is not None or result.bytes_available is None:
            self._compare(given, suspects)
            return
        left = self.deadline.left

        def compared() -> Verification:
            self._compare(given, suspects)
            return result

        try:
            made = limited(compared, result.bytes_available, None if left is None else left + _GRACE)
        except Exceeded as error:
            result.skipped = str(error)
        else:
            vars(result).update(vars(made))

    def _compare(self, given: dict[str, Array] | None, suspects: Suspects | None) -> None:
        result = self.result
        result.problem = other_interface(self.original, self.fused)
        if result.problem is not None:
            result.remedy = (
                "Fusing keeps the inputs and outputs of a model: compare a model with what was made from it."
            )
            return
        given_bodies = by_attributes(self.original)
        if given_bodies.missing and given_bodies.model is not None:  # it was fused itself
            self.original = given_bodies.model
        bodies = by_attributes(self.fused)
        if bodies.missing and bodies.model is not None:
            self.fused = bodies.model
            result.notes.append(
                f"{_listed(bodies.missing)} has no body in the fused model: the one that its attributes call for was run."
            )
        if bodies.contradicted:
            first, *more = bodies.contradicted
            also = f"; so it is with {len(more)} more nodes" if more else ""
            result.problem = f"{first.sentence}{also}."
            result.remedy = "Fuse the original again: the fused model was changed."
            return
        suspects = self._widen(suspects)
        kernels = choose(self.fused, self.library)
        if self.library is not False:
            result.notes.append(_kernels_note(kernels))
        allowed = tolerances(self.original)
        if self.rtol is not None:
            allowed = dict.fromkeys(allowed, self.rtol)
        result.rtol = max((allowed[value.name] for value in self.original.graph.output), default=TOLERANCES["float32"])
        inner = _inner_values(self.original, self.fused)
        evidence = self._gather(given, inner)
        if not evidence:
            return
        hearing: Hearing | None = Hearing(self.original, self.original_dir, self.specs, inner, self.deadline)
        if result.bytes_available is not None and 2 * result.bytes_needed > result.bytes_available:
            hearing = None
            # Without it nobody can tell where the original itself overflows.
            evidence = [one for one in evidence if one.redraw is None]
            result.notes.append(
                "there was no memory to measure what rounding does: the largest magnitudes alone count."
            )
        judge = Judge(allowed, result.rtol, self.atol, hearing, self.deadline)
        self._compare_all(evidence, judge, suspects, kernels)
        if result.passed and bodies.other and not bodies.missing and bodies.model is not None:
            self._compare_attributes(bodies, evidence, judge)

    def _widen(self, suspects: Suspects | None) -> Suspects | None:
        """Puts float32 in the place of bfloat16."""
        if not holds_bfloat16(self.original) and not holds_bfloat16(self.fused):
            return suspects
        self.original, self.fused = widen(self.original), widen(self.fused)
        self.specs = input_specs(self.original)
        self.result.notes.append("compared in float32: ONNX Runtime's CPU provider does not compute in bfloat16.")
        if suspects is None:
            return None
        build = suspects.build
        return replace(suspects, build=lambda names: widen(build(names)))

    def _gather(self, given: dict[str, Array] | None, inner: Sequence[str]) -> list[Evidence]:
        """Runs the original on everything it accepts; where that is nothing, says so in the result."""
        result = self.result
        rejected: list[Rejected] = []
        evidence: list[Evidence] = []
        draws: tuple[Draw, ...] = DRAWS
        if has_mask(self.specs) and _adds_masks(self.original):
            draws = tuple(draw for draw in DRAWS if draw.padding != "row")
            result.notes.append(_MASKED_ROW)
        left = self.deadline.left
        # Half of the time, so that the fused model has as much.
        deadline = Deadline(None if left is None else left / 2)
        original = Original(self.original, self.original_dir, inner, deadline)
        try:
            original.open()
            if given is not None:
                evidence.append(given_evidence(original, given))
            nothing = may_be_empty(self.original) and may_be_empty(self.fused)
            drawn = drawn_evidence(
                original, self.specs, self.seed, rejected, draws,
                further=True, nothing=nothing, samples=self.samples, fits=self._fits,
            )  # fmt: skip
            with deadline:
                for one in drawn:
                    evidence.append(one)
        except OutOfTime:
            result.unfinished = "the original was not run on all inputs"
            if not evidence:
                result.problem = (
                    f"inconclusive, the original was not done with one set of inputs in {result.timeout:g} s."
                )
                result.remedy = f"{_LONGER} {_SKIP}"
        except ModelError as error:
            if not evidence:
                result.problem = f"inconclusive, the original cannot be run: {error.cause}"
                result.remedy = f"{error.remedy} {_SKIP}".strip()
            else:
                result.notes.append(f"only the given inputs were compared: {error.cause}")
        result.rejected = tuple(rejected)
        if not evidence and result.problem is None:
            result.problem = (
                f"inconclusive, the original runs on none of {len(rejected)} random inputs: {rejected[-1].reason}"
            )
            result.remedy = "Give inputs that it runs on: --inputs FILE.npz, one array for each input."
        return evidence

    def _fits(self, shapes: Mapping[str, tuple[int, ...]]) -> bool:
        available = self.result.bytes_available
        if available is None or self.result.bytes_needed * _AMPLE < available:
            return True
        needed = needed_bytes(self.original, self.fused, shapes)
        return needed is None or needed <= available  # the process has a limit where this is not known

    def _compare_all(
        self, evidence: Sequence[Evidence], judge: Judge, suspects: Suspects | None, kernels: Kernels
    ) -> None:
        result = self.result
        failing: Evidence | None = None
        try:
            session = _open(self.fused, self.fused_dir, evidence[0].inner, kernels.library)
        except ModelError as error:
            bare = _without_body(self.fused)
            if bare:
                result.problem = (
                    f"inconclusive: ONNX Runtime has no {_listed(bare)}, and the fused model holds no body for it."
                )
                result.remedy = "Fuse with --functions keep and verify that; the bodies can be left out afterwards."
                return
            failing, result.problem = evidence[0], f"the fused model cannot be loaded: {error.cause}"
        else:
            judged: list[tuple[Evidence, Case]] = []
            try:
                for one in evidence:
                    judged.append((one, judge.judged(session, one)))
            except OutOfTime:
                result.unfinished = f"{len(judged)} of {len(evidence)} sets of inputs were compared"
            result.cases = tuple(case for _, case in judged)
            failing, wrong = next(((one, case) for one, case in judged if not case.passed), (None, None))
            if wrong is not None:
                result.problem = _sentence(wrong, _fused_makers(self.original, self.fused))
        if failing is None:
            _judge_information(result, evidence)
            return
        result.remedy = (
            "`onnx-fuse debug ORIGINAL FUSED` shows where they part. If the fused model was made from this original, fuse it "
            "again without that fusion (--disable), and please report it."
        )
        if kernels.library is not None:
            result.remedy = (
                "Verify without --library: if the bodies are equal, a kernel is wrong. Run the model with --no-library then, and "
                "please report it."
            )
        if suspects is not None:
            self._look_for_culprit(failing, judge, suspects)

    def _look_for_culprit(self, failing: Evidence, judge: Judge, suspects: Suspects) -> None:
        result = self.result
        try:
            result.culprit = bisect(failing, suspects, base_dir=self.fused_dir, judge=judge)
        except OutOfTime:
            result.notes.append(f"there was no time left to look for the rewrite that breaks the model. {_LONGER}")
            return
        if result.culprit is None:
            result.notes.append("no single rewrite explains it: the model is wrong before the first of them.")
            return
        node = _replacing(self.fused, result.culprit)
        if node is None:
            result.problem = f"{result.culprit}: {result.problem}"
            result.remedy = "Leave that rewrite out, and please report it with the model."
            return
        result.problem = f"{_called(node)}, in place of {result.culprit}: {result.problem}"
        result.remedy = f"Leave that fusion out with --disable {node.op_type}, and please report it with the model."

    def _compare_attributes(self, bodies: Bodies, evidence: Sequence[Evidence], judge: Judge) -> None:
        """Runs the bodies that attributes call for, where the model has others: a plugin would go by the attributes."""
        result, model = self.result, bodies.model
        if model is None:
            return
        model = widen(model) if holds_bfloat16(model) else model
        nodes = _listed(bodies.other)
        try:
            session = _open(model, self.fused_dir, evidence[0].inner)
            cases = [judge.judged(session, one) for one in evidence]
        except OutOfTime:
            result.unfinished = f"the attributes of {nodes} were not compared with the body"
            return
        except ModelError as error:
            sentence: str | None = f"it cannot be loaded: {error.cause}"
        else:
            makers = _fused_makers(self.original, model)
            sentence = next((_sentence(case, makers) for case in cases if not case.passed), None)
        if sentence is None:
            result.notes.append(f"the body of {nodes} is another than this version writes; both were compared.")
            return
        result.passed = False
        result.problem = (
            f"the attributes of {nodes} say something else than the body: with the body they call for, {sentence}"
        )
        result.remedy = "TensorRT goes by the attributes. Fuse the original again."


def _blame_weights(result: Verification, changed: Sequence[str]) -> None:
    """A weight that changed fails a verification, whatever its outputs say."""
    more = f"; and {len(changed) - _MOST_NAMED} more" if len(changed) > _MOST_NAMED else ""
    sentence = "; ".join(changed[:_MOST_NAMED]) + more
    known = not result.passed and result.problem is not None
    result.passed, result.skipped = False, None
    result.problem = f"{sentence}. Besides, {result.problem}" if known else f"{sentence}."
    result.remedy = (
        "Fuse this original again. A pass of your own that changes a weight has to give it a name of its own."
    )


def _judge_information(result: Verification, evidence: Sequence[Evidence]) -> None:
    """Passes `result` if the (equal) outputs could have told a wrong model from a right one."""
    if result.unfinished is not None and len(result.cases) < ENOUGH_CASES:
        count = f"{len(result.cases)} of {len(evidence)} sets of inputs"
        result.problem = f"inconclusive, {count} could be compared in {result.timeout:g} s."
        result.remedy = f"{_LONGER} {_SKIP}"
        return
    compared = [one for case in result.cases for one in case.comparisons]
    informative = {one.output for one in compared if one.informative and not one.inner}
    outputs = {name: value for one in evidence for name, value in one.expected.items()}
    floating = {name for name, value in outputs.items() if value.dtype.kind in "fc"}
    telling = informative & floating if floating else informative
    result.passed = bool(telling)
    if not result.passed:
        result.problem = "inconclusive, the original's outputs are constant, empty or not finite on all inputs."
        result.remedy = "Give inputs on which it computes something: --inputs FILE.npz, one array for each input."
    elif silent := [name for name in outputs if name not in informative]:
        result.notes.append(f"constant, empty or not finite in all cases: {', '.join(silent)}.")
    unread: dict[str, int] = {}
    for one in compared:
        if one.unread and not one.inner:
            unread[one.output] = unread.get(one.output, 0) + one.unread
    result.documented += [
        f"output {name!r}: {count} places are masked out. The original multiplies what stands there by 0 and gives NaN or "
        "infinity; the fused model does not read it."
        for name, count in unread.items()
    ]


def _sentence(case: Case, makers: Mapping[str, NodeProto]) -> str:
    if case.error is not None:
        return f"the fused model does not run ({case.name}): {case.error}"
    bad = {comparison.output: comparison for comparison in case.comparisons if comparison.problem is not None}
    outputs = [comparison for comparison in bad.values() if not comparison.inner]
    # In the order of the graph: what comes later is wrong because of it.
    first = next((name for name in makers if name in bad), None)
    named = "" if first is None else f"; the first fused node that differs is {_called(makers[first])}"
    if not outputs:
        name = first or next(iter(bad))
        return f"inner value {name!r} {bad[name].problem} ({case.name}){named}"
    worst = max(outputs, key=lambda comparison: comparison.relative)
    where = f", whose value {first!r} {bad[first].problem}" if first not in (None, worst.output) else ""
    return f"output {worst.output!r} {worst.problem} ({case.name}){named}{where}"


def _called(node: NodeProto) -> str:
    return f"{node.domain}::{node.op_type} {node.name or node.output[0]}"


def _listed(names: Sequence[str]) -> str:
    more = f" and {len(names) - _MOST_NAMED} more" if len(names) > _MOST_NAMED else ""
    return ", ".join(names[:_MOST_NAMED]) + more


def _fused_makers(original: ModelProto, fused: ModelProto) -> dict[str, NodeProto]:
    """Value -> the custom operator that makes it in the fused model and not in the original, in the order of the fused graph."""
    before = {name: (node.domain, node.op_type) for node in original.graph.node for name in node.output}
    return {
        name: node
        for node in fused.graph.node
        if node.domain not in STANDARD_DOMAINS
        for name in node.output
        if before.get(name) != (node.domain, node.op_type)
    }


def _replacing(fused: ModelProto, root: str) -> NodeProto | None:
    """The fused node that stands in the place of a node of the original."""
    for node in fused.graph.node:
        replaced = [entry.value for entry in node.metadata_props if entry.key == "onnx_fuse.replaced"]
        # Before IR version 10 nodes have no metadata, and the name tells.
        if node.name == f"{root}/{node.op_type}" or any(root in json.loads(names) for names in replaced):
            return node
    return None


def _without_body(model: ModelProto) -> list[str]:
    """Custom operators that the model holds no body for."""
    bodies = {(item.domain, item.name) for item in model.functions}
    names = (
        f"{node.domain}::{node.op_type}"
        for node in model.graph.node
        if node.domain not in STANDARD_DOMAINS and (node.domain, node.op_type) not in bodies
    )
    return list(dict.fromkeys(names))


def loaded(model: Model, base_dir: str | Path | None) -> tuple[ModelProto, str | Path | None, Source | None]:
    """The model without its large weights, which only ONNX Runtime reads, the folder of its external data, and its own file, to
    be kept as long as the model.
    """
    if isinstance(model, ModelProto):
        return model, base_dir, None
    proto, source = load_lazily(model)
    return proto, Path(model).parent, source


def _open(model: ModelProto, base_dir: str | Path | None, inner: Iterable[str], library: Path | None = None) -> Any:
    """A session that also gives those of the `inner` values that the model has."""
    produced = {name for node in model.graph.node for name in node.output}
    extra = [name for name in inner if name in produced]
    return sessions.session(model, base_dir=base_dir, extra_outputs=extra, library=library)


def _kernels_note(kernels: Kernels) -> str:
    if not kernels.nodes and not kernels.bodies:
        return "the fused model has no fused node."
    return f"the fused model ran its {kernels}."


def _inner_values(original: ModelProto, fused: ModelProto) -> list[str]:
    """Values inside both models that a custom operator computes in the fused one and another operator in the original.

    An error planted in one of forty layers may hardly be seen in the outputs; where the layer ends, it is.
    """
    producers = {name: (node.domain, node.op_type) for node in original.graph.node for name in node.output}
    outputs = {value.name for value in (*original.graph.output, *fused.graph.output)}
    names = [
        name
        for node in fused.graph.node
        if node.domain not in STANDARD_DOMAINS
        for name in node.output
        if name not in outputs and producers.get(name, (node.domain, node.op_type)) != (node.domain, node.op_type)
    ]
    return names[:: -(-len(names) // _MOST_INNER) or 1]


def _adds_masks(model: ModelProto) -> bool:
    """Whether an `Attention` of ONNX has a mask that is worked out and, as far as the model says, not boolean."""
    graph = model.graph
    masks = {node.input[3] for node in graph.node if node.op_type == "Attention" and not node.domain and node.input[3:]}
    boolean = {value.name for value in graph.value_info if value.type.tensor_type.elem_type == TensorProto.BOOL}
    given = [*(value.name for value in graph.input), *(tensor.name for tensor in graph.initializer)]
    return not masks <= {"", *boolean, *given}


def other_interface(original: ModelProto, fused: ModelProto) -> str | None:
    """The sentence that says that the two models do not take and give the same; None when they do."""
    for what in ("input", "output"):
        names = []
        for model in (original, fused):
            held = {tensor.name for tensor in model.graph.initializer} if what == "input" else ()
            names.append([value.name for value in getattr(model.graph, what) if value.name not in held])
        if names[0] != names[1]:
            return f"the fused model has the {what}s {names[1]}, the original has {names[0]}."
    return None
