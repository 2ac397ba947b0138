"""Numeric proof that a fused model computes what the original computes: both run in ONNX Runtime, outputs are compared.

The original decides what counts: inputs it cannot run on are dropped (and reported), NaN where it has NaN is right. Nothing
passes silently: without one comparison on data that tells right from wrong, the verification is inconclusive, and that fails.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from onnx import ModelProto, TensorProto

from onnx_fuse.errors import ModelError
from onnx_fuse.passes.files.encoding import blames_text
from onnx_fuse.passes.files.io import load_lazily
from onnx_fuse.passes.graph.spans import Source
from onnx_fuse.runtime.device.memory import available_bytes, needed_bytes
from onnx_fuse.runtime.onnxruntime import sessions
from onnx_fuse.runtime.verify.compare import TOLERANCES, Comparison, compare, tolerance
from onnx_fuse.runtime.verify.float32_twin import holds_bfloat16, widen
from onnx_fuse.runtime.verify.random_inputs import DRAWS, Array, Draw, InputSpec, draw_shapes, has_mask, input_specs
from onnx_fuse.runtime.verify.record import Case, Rejected, Verification
from onnx_fuse.runtime.verify.reference import Evidence, Original, as_arrays, drawn_evidence, given_evidence
from onnx_fuse.runtime.verify.user_inputs import given_inputs

__all__ = ["Evidence", "Suspects", "Verification", "bisect", "verify"]

_SKIP = "--no-verify writes the fused model without this check."
_MASKED_ROW = (
    "not compared with a row masked out: there ONNX defines the mean of the values where the mask adds the lowest number, "
    "and ONNX Runtime's Attention gives 0."
)
Model = ModelProto | str | Path
_MOST_INNER = 256
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
    suspects: Suspects | None = None,
    memory_limit: int | None = None,
) -> Verification:
    """Runs both models on the same inputs and compares their outputs.

    Args:
        original, fused: paths, or models in memory (never changed).
        original_dir, fused_dir: folders of the external data of models in memory; the fused model's is the original's
            unless given.
        inputs: inputs of the user's, compared before the random ones: name -> array, or the path of an .npz file.
        seed: of the random inputs; the same seed gives the same inputs.
        rtol: difference allowed, relative to an output's largest magnitude; None: by the type the model computes in.
        suspects: the rewrites to look through for a culprit when the models differ.
        memory_limit: bytes the run may take; None: what the machine and its control group have left.

    Raises:
        ModelError: a model cannot be read.
        UsageError: `inputs` do not fit the model.
    """
    start = time.perf_counter()
    result = _verify(original, fused, original_dir, fused_dir, inputs, seed, rtol, suspects, memory_limit)
    result.seconds = time.perf_counter() - start
    return result


def bisect(
    evidence: Evidence,
    suspects: Suspects,
    *,
    base_dir: str | Path | None = None,
    rtol: float = TOLERANCES["float32"],
) -> str | None:
    """The first rewrite without which the model was still right, and with which it is wrong, on the inputs of one case.

    Builds about log2(n) models: a prefix of the rewrites that passes and a longer one that fails close in on each other,
    which ends at one rewrite even where several are wrong or where one is wrong only after another.

    Returns:
        Its name; None when the model is wrong without any rewrite, or right with all of them.
    """

    def breaks(count: int) -> bool:
        try:
            session = _open(suspects.build(suspects.names[:count]), base_dir, evidence.inner)
        except ModelError:
            return True
        return not _judge(session, evidence, rtol).passed

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


def _verify(
    original: Model,
    fused: Model,
    original_dir: str | Path | None,
    fused_dir: str | Path | None,
    inputs: Mapping[str, Any] | str | Path | None,
    seed: int,
    rtol: float | None,
    suspects: Suspects | None,
    memory_limit: int | None,
) -> Verification:
    original, original_dir, _original_file = loaded(original, original_dir)
    fused, fused_dir, _fused_file = loaded(fused, fused_dir or original_dir)
    try:
        specs = input_specs(original)
    except ModelError as error:
        return Verification(problem=f"inconclusive: {error.cause}", remedy=_SKIP)
    given = None if inputs is None else given_inputs(inputs, specs)
    result = Verification()

    shapes = draw_shapes(specs, max(DRAWS, key=lambda draw: draw.batch * draw.length))
    shapes.update({name: array.shape for name, array in (given or {}).items()})
    result.bytes_needed = needed_bytes(original, fused, shapes)
    result.bytes_available = available_bytes() if memory_limit is None else memory_limit
    if result.bytes_available is not None and result.bytes_needed > result.bytes_available:
        need, have = (f"{size / 1e9:.1f} GB" for size in (result.bytes_needed, result.bytes_available))
        result.skipped = f"running the models takes about {need} of memory, {have} is available."
        return result
    result.problem = other_interface(original, fused)
    if result.problem is not None:
        result.remedy = "Fusing keeps the inputs and outputs of a model: compare a model with what was made from it."
        return result

    if holds_bfloat16(original) or holds_bfloat16(fused):
        original, fused = widen(original), widen(fused)
        specs = input_specs(original)
        if suspects is not None:
            build = suspects.build
            suspects = replace(suspects, build=lambda names: widen(build(names)))
        result.notes.append("compared in float32: ONNX Runtime's CPU provider does not compute in bfloat16.")
    result.rtol = tolerance(original) if rtol is None else rtol

    inner = _inner_values(original, fused)
    evidence = _gather(result, Original(original, original_dir, inner), specs, given, seed)
    if evidence:
        _compare_all(result, fused, fused_dir, evidence, suspects)
    return result


def _gather(
    result: Verification,
    original: Original,
    specs: Sequence[InputSpec],
    given: dict[str, Array] | None,
    seed: int,
) -> list[Evidence]:
    """Runs the original on everything it accepts; where that is nothing, says so in `result`."""
    rejected: list[Rejected] = []
    evidence: list[Evidence] = []
    draws: tuple[Draw, ...] = DRAWS
    if has_mask(specs) and _adds_masks(original.model):
        draws = tuple(draw for draw in DRAWS if draw.padding != "row")
        result.notes.append(_MASKED_ROW)
    try:
        original.open()
        if given is not None:
            evidence.append(given_evidence(original, given))
        evidence.extend(drawn_evidence(original, specs, seed, rejected, draws))
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


def _compare_all(
    result: Verification,
    fused: ModelProto,
    base_dir: str | Path | None,
    evidence: Sequence[Evidence],
    suspects: Suspects | None,
) -> None:
    failing: Evidence | None = None
    try:
        session = _open(fused, base_dir, evidence[0].inner)
    except ModelError as error:
        failing, result.problem = evidence[0], f"the fused model cannot be loaded: {error.cause}"
    else:
        result.cases = tuple(_judge(session, one, result.rtol) for one in evidence)
        failing = next((one for one, case in zip(evidence, result.cases, strict=True) if not case.passed), None)
        if failing is not None:
            result.problem = _sentence(next(case for case in result.cases if not case.passed))
    if failing is None:
        _judge_information(result, evidence)
        return
    result.remedy = "Fuse again with `onnx-fuse fuse`, which looks for the fusion that breaks the model, and report it."
    if suspects is not None:
        result.culprit = bisect(failing, suspects, base_dir=base_dir, rtol=result.rtol)
        if result.culprit is None:
            result.notes.append("no single rewrite explains it: the model is wrong before the first of them.")
        else:
            result.problem = f"{result.culprit}: {result.problem}"
            result.remedy = "Leave that fusion out with --disable, and please report it with the model."


def _judge_information(result: Verification, evidence: Sequence[Evidence]) -> None:
    """Passes `result` if the (equal) outputs could have told a wrong model from a right one."""
    informative = {one.output for case in result.cases for one in case.comparisons if one.informative and not one.inner}
    outputs = {name: value for one in evidence for name, value in one.expected.items()}
    floating = {name for name, value in outputs.items() if value.dtype.kind in "fc"}
    telling = informative & floating if floating else informative
    result.passed = bool(telling)
    if not result.passed:
        result.problem = "inconclusive, the original's outputs are constant, empty or not finite on all inputs."
        result.remedy = "Give inputs on which it computes something: --inputs FILE.npz, one array for each input."
    elif silent := [name for name in outputs if name not in informative]:
        result.notes.append(f"constant, empty or not finite in all cases: {', '.join(silent)}.")


def _judge(session: Any, evidence: Evidence, rtol: float) -> Case:
    try:
        outputs = as_arrays(sessions.run(session, evidence.inputs))
    except ModelError as error:
        return replace(evidence.case, error=error.cause)
    comparisons = [
        compare(name, expected, outputs[name], rtol) if name in outputs else Comparison(name, problem="is missing")
        for name, expected in evidence.expected.items()
    ]
    for name, expected in evidence.inner.items():
        if name in outputs:
            comparisons.append(replace(compare(name, expected, outputs[name], rtol), inner=True))
    return replace(evidence.case, comparisons=tuple(comparisons))


def _sentence(case: Case) -> str:
    if case.error is not None:
        return f"the fused model does not run ({case.name}): {case.error}"
    bad = [comparison for comparison in case.comparisons if comparison.problem is not None]
    inner = [comparison for comparison in bad if comparison.inner]
    outputs = [comparison for comparison in bad if not comparison.inner]
    if not outputs:
        return f"inner value {inner[0].output!r} {inner[0].problem} ({case.name})"
    worst = max(outputs, key=lambda comparison: comparison.relative)
    first = f"; the first wrong value inside is {inner[0].output!r}" if inner else ""
    return f"output {worst.output!r} {worst.problem} ({case.name}){first}"


def loaded(model: Model, base_dir: str | Path | None) -> tuple[ModelProto, str | Path | None, Source | None]:
    """The model without its large weights, which only ONNX Runtime reads, the folder of its external data, and its own file, to
    be kept as long as the model.
    """
    if isinstance(model, ModelProto):
        return model, base_dir, None
    proto, source = load_lazily(model)
    return proto, Path(model).parent, source


def _open(model: ModelProto, base_dir: str | Path | None, inner: Iterable[str]) -> Any:
    """A session that also gives those of the `inner` values that the model has."""
    produced = {name for node in model.graph.node for name in node.output}
    return sessions.session(model, base_dir=base_dir, extra_outputs=[name for name in inner if name in produced])


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
