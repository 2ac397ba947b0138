"""Where a fused model begins to differ: every value that it shares with the original is compared, in the order of the graph.

A name that both models have means the same value (fusing keeps to that), so the first one that differs while all before it
agree shows the place; walking back from it to values that agree shows the fused nodes that can have done it.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from onnx import ModelProto, NodeProto, TensorProto, numpy_helper

from onnx_fuse.errors import ModelError, UsageError, VerificationError
from onnx_fuse.passes.graph import inlining
from onnx_fuse.passes.graph.spans import filled, is_external
from onnx_fuse.runtime.device.memory import needed_bytes
from onnx_fuse.runtime.onnxruntime import room, sessions
from onnx_fuse.runtime.onnxruntime.kernel_library import Choice, choose
from onnx_fuse.runtime.verify import verification
from onnx_fuse.runtime.verify.compare import TOLERANCES, Comparison, compare
from onnx_fuse.runtime.verify.empty_inputs import may_be_empty
from onnx_fuse.runtime.verify.float32_twin import holds_bfloat16, widen
from onnx_fuse.runtime.verify.noise import Hearing
from onnx_fuse.runtime.verify.precision import tolerances
from onnx_fuse.runtime.verify.random_inputs import DRAWS, Array, InputSpec, draw_shapes, input_specs
from onnx_fuse.runtime.verify.reference import Evidence, Original, as_arrays, drawn_evidence, given_evidence
from onnx_fuse.runtime.verify.user_inputs import given_inputs

Model = ModelProto | str | Path
_MOST_VALUES = 512
# What `as_arrays` adds to the name of a sequence or a map for its parts.
_PART = re.compile(r"(\[\d+\])*( length| keys| values)?$")


@dataclass(frozen=True)
class Statistics:
    """What is in an array: its extremes, mean and standard deviation over finite elements (None where there are none), and how
    many elements are not finite."""

    min: float | None
    max: float | None
    mean: float | None
    std: float | None
    not_finite: int


@dataclass(frozen=True)
class Value:
    """One value that both models compute.

    Attributes:
        name: its name.
        node, op_type: what makes it in the original.
        fused_node, fused_op_type: what makes it in the fused model.
        shape: in the case that is shown.
        comparison: how far the two are apart; `problem` is None where they agree.
        original, fused: statistics of both.
    """

    name: str
    node: str
    op_type: str
    fused_node: str
    fused_op_type: str
    shape: tuple[int, ...]
    comparison: Comparison
    original: Statistics
    fused: Statistics


@dataclass(frozen=True)
class BodyValue:
    """A value inside the body of the fused node to blame: `same_as` is a value that the replaced nodes read or make with the
    same numbers (moved, at most); "" where there is none."""

    name: str
    op_type: str
    shape: tuple[int, ...]
    same_as: str


@dataclass(frozen=True)
class Place:
    """Where the models part.

    Attributes:
        value: the first value that differs.
        fused_nodes: the fused nodes between it and values that agree, nearest first, as (name, operator).
        replaced: names of the nodes that the nearest of them replaced.
        nodes, original_nodes: all that makes the value out of values that agree, in the fused model and in the original.
        changes: how nodes or weights of one name differ between the models, where no fused node explains it.
        inside: the values in the body of the nearest fused node, in its order, where its body ran.
        kernel: the kernel library that ran the nearest fused node; "" where its body did.
    """

    value: str
    fused_nodes: tuple[tuple[str, str], ...]
    replaced: tuple[str, ...]
    nodes: tuple[str, ...]
    original_nodes: tuple[str, ...]
    changes: tuple[str, ...]
    inside: tuple[BodyValue, ...] = ()
    kernel: str = ""

    def sentence(self) -> str:
        """What is to blame."""
        if not self.fused_nodes:
            why = "; ".join(self.changes) or f"it is made by {', '.join(self.nodes) or 'no node'}"
            return f"The first value that differs is {self.value!r}. No fused node lies before it: {why}."
        name, operator = self.fused_nodes[0]
        by = f" by the kernel of {self.kernel}" if self.kernel else ""
        others = "".join(f", or {other}" for other, _ in self.fused_nodes[1:])
        return f"The first value that differs is {self.value!r}, which {operator} {name} makes{by}{others}.{self._within()}"

    def remedy(self) -> str:
        """What to do about it."""
        if self.kernel:
            return (
                "Debug again without --library: where the bodies agree, the kernel is wrong. Run the model with --no-library "
                "then, and please report it."
            )
        if self.fused_nodes:
            return "Fuse with --disable for that operator, and please report it with the model."
        return "Is it fused from this original? If so, please report it with the model; if not, fuse that one again."

    def _within(self) -> str:
        """Where the body leaves the nodes it replaced. These may compute a part in another way, so it is a hint."""
        unlike = next((index for index, value in enumerate(self.inside) if not value.same_as), None)
        if unlike is None:
            return ""
        value = self.inside[unlike]
        known = f" after {self.inside[unlike - 1].same_as!r}" if unlike else ""
        return f" In its body, {value.op_type} {value.name}{known} is the first that the replaced nodes do not have."


@dataclass(frozen=True)
class Diagnosis:
    """What a comparison value by value found.

    Attributes:
        equal: nothing differs in any case.
        case: name of the case that `values` are from: the first in which something differs, else the last that is not empty.
        cases: number of cases that were run.
        rtol: difference allowed, relative to a value's largest magnitude.
        values: the values both models have, in the order of the original.
        place: where they part; None if they are equal.
        notes: what a reader should know.
    """

    equal: bool
    case: str
    cases: int
    rtol: float
    values: tuple[Value, ...]
    place: Place | None
    notes: tuple[str, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready data."""
        data = asdict(self)
        for item, value in zip(data["values"], self.values, strict=True):
            item["comparison"] = value.comparison.to_dict()
        return data

    def raise_if_different(self) -> None:
        """Raises:
        VerificationError: something differs.
        """
        if self.place is not None:
            raise VerificationError(self.place.sentence(), self.place.remedy())


def debug(
    original: Model,
    fused: Model,
    *,
    inputs: Mapping[str, Any] | str | Path | None = None,
    rtol: float | None = None,
    seed: int = 0,
    library: Choice = False,
) -> Diagnosis:
    """Compares two models value by value in ONNX Runtime, on inputs of the user's or on random ones until one tells them apart.

    Args:
        original, fused: paths, or models in memory with their weights (never changed).
        inputs: name -> array, or the path of an .npz file; random ones if None.
        rtol: difference allowed, relative to a value's largest magnitude; by the type that the model computes in if None.
        seed: of the random inputs.
        library: the kernel library that runs fused nodes of the fused model (see `OrtSession`); by default their bodies run.

    Raises:
        ModelError: a model cannot be read or run.
        UsageError: the inputs do not fit, the models do not take and give the same, or the library cannot run the fused model.
        VerificationError: the fused model cannot be loaded or run where the original can.
    """
    first, base_dir, _original_file = verification.loaded(original, None)
    second, fused_dir, _fused_file = verification.loaded(fused, None)
    if problem := verification.other_interface(first, second):
        raise UsageError(problem, "Compare a model with what was made from it.")
    specs = input_specs(first)
    given = None if inputs is None else given_inputs(inputs, specs)
    notes = []
    if holds_bfloat16(first) or holds_bfloat16(second):
        first, second = widen(first), widen(second)
        specs = input_specs(first)
        notes.append("compared in float32: ONNX Runtime's CPU provider does not compute in bfloat16.")
    shapes = draw_shapes(specs, max(DRAWS, key=lambda draw: draw.batch * draw.length))
    shapes.update({name: array.shape for name, array in (given or {}).items()})
    folders = base_dir, fused_dir or base_dir
    return room.with_room(
        lambda: _diagnosed((first, second), folders, specs, given, rtol, seed, notes, library),
        needed_bytes(first, second, shapes),
        remedy="Give smaller inputs (--inputs FILE.npz), or use a larger machine.",
    )


def _diagnosed(
    models: tuple[ModelProto, ModelProto],
    folders: tuple[str | Path | None, str | Path | None],
    specs: Sequence[InputSpec],
    given: dict[str, Array] | None,
    rtol: float | None,
    seed: int,
    notes: list[str],
    library: Choice,
) -> Diagnosis:
    (first, second), (base_dir, fused_dir) = models, folders
    by_value = tolerances(first)
    allowed = max((by_value[value.name] for value in first.graph.output), default=TOLERANCES["float32"])
    if rtol is not None:
        allowed, by_value = rtol, dict.fromkeys(by_value, rtol)
    shared = _shared(first, second)
    names = shared[:: -(-len(shared) // _MOST_VALUES) or 1]
    if len(names) < len(shared):
        notes.append(f"{len(names)} of {len(shared)} values were compared, evenly spread.")
    before = Original(first, base_dir, names)
    before.open()
    kernels = choose(second, library)
    if library is not False and (kernels.nodes or kernels.bodies):
        notes.append(f"The fused model ran its {kernels}.")
    after = _opened(second, fused_dir, names, kernels.library)
    evidence = (
        iter([given_evidence(before, given)])
        if given is not None
        else drawn_evidence(before, specs, seed, [], further=True, nothing=may_be_empty(first) and may_be_empty(second))
    )
    judge = verification.Judge(by_value, allowed, hearing=Hearing(first, base_dir, specs, names))
    count = 0
    last: tuple[str, tuple[Value, ...]] | None = None
    for item in evidence:
        before.kept = 0  # each case is looked at and dropped
        if not item.inner and names:
            notes.append(f"only the outputs were compared in {item.case.name}: the values inside take too much memory.")
        full = all(array.size for array in item.inputs.values())
        try:
            got = _run(after, item)
        except VerificationError as error:
            if full:
                raise
            notes.append(f"The fused model does not run on empty inputs ({item.case.name}): {error.cause}")
            continue
        count += 1
        values = tuple(_values(first, second, item, got, judge))
        if full or last is None:
            last = item.case.name, values
        differing = next((value for value in values if value.comparison.problem is not None), None)
        if differing is not None:
            agreeing = {value.name for value in values if value.comparison.problem is None}
            start = differing.name if differing.name in _producers(second) else _PART.sub("", differing.name)
            place = _place(first, second, start, agreeing)
            if place.fused_nodes and place.fused_nodes[0][1] in kernels.nodes:
                place = replace(place, kernel=str(kernels.library))
            else:
                inside = _inside(place, first, base_dir, second, fused_dir, item, allowed)
                place = replace(place, inside=inside)
            return Diagnosis(False, item.case.name, count, allowed, values, place, tuple(notes))
    if last is None:
        raise ModelError(
            "The original runs on none of the random inputs.", "Give inputs that it runs on: --inputs FILE.npz."
        )
    return Diagnosis(True, last[0], count, allowed, last[1], None, tuple(notes))


def _shared(original: ModelProto, fused: ModelProto) -> list[str]:
    """Tensors inside both models, in the order of the original."""
    outputs = {value.name for value in original.graph.output}
    there = {name for node in fused.graph.node for name in node.output}
    names = (name for node in original.graph.node if node.op_type != "Constant" for name in node.output)
    return [name for name in names if name and name in there and name not in outputs]


def _opened(model: ModelProto, base_dir: str | Path | None, extra: Sequence[str], library: Path | None) -> Any:
    try:
        return sessions.session(model, base_dir=base_dir, extra_outputs=extra, library=library)
    except ModelError as error:
        raise VerificationError(f"The fused model cannot be loaded: {error.cause}", error.remedy) from error


def _run(session: Any, evidence: Evidence) -> dict[str, Array]:
    try:
        return as_arrays(sessions.run(session, evidence.inputs))
    except ModelError as error:
        raise VerificationError(f"The fused model does not run where the original does: {error.cause}") from error


def _values(
    original: ModelProto, fused: ModelProto, evidence: Evidence, got: Mapping[str, Array], judge: verification.Judge
) -> Iterator[Value]:
    before, after = _producers(original), _producers(fused)
    arrays = {**evidence.inner, **evidence.expected}
    parts: dict[str, list[str]] = {}  # a sequence has several arrays, and so has a map
    for key in arrays:
        parts.setdefault(key if key in before else _PART.sub("", key), []).append(key)
    for node in original.graph.node:
        for name, part in [(output, part) for output in node.output for part in parts.get(output, ())]:
            made = after.get(name, NodeProto())
            found = got.get(part)
            comparison = Comparison(part, problem="is missing")
            if found is not None:
                comparison = judge.compared(part, arrays[part], found, evidence)
            yield Value(
                part,
                *_called(before[name]),
                *_called(made),
                arrays[part].shape,
                replace(comparison, inner=part not in evidence.expected),
                statistics(arrays[part]),
                statistics(arrays[part] if found is None else found),
            )


def statistics(array: Array) -> Statistics:
    """What is in an array."""
    if array.dtype.kind not in "fiub" or array.dtype.hasobject:
        return Statistics(None, None, None, None, 0)
    numbers = array.astype(np.float64)
    finite = numbers[np.isfinite(numbers)]
    if finite.size == 0:
        return Statistics(None, None, None, None, int(array.size))
    low, high, mean, std = (float(item) for item in (finite.min(), finite.max(), finite.mean(), finite.std()))
    return Statistics(low, high, mean, std, int(array.size - finite.size))


def _producers(model: ModelProto) -> dict[str, NodeProto]:
    return {name: node for node in model.graph.node for name in node.output if name}


def _called(node: NodeProto) -> tuple[str, str]:
    return node.name or next(iter(node.output), ""), node.op_type


def _is_fused(node: NodeProto) -> bool:
    return node.domain not in verification.STANDARD_DOMAINS


def _names(text: str) -> list[str]:
    """The names in a note of a fused node; none where somebody else has written it."""
    try:
        found = json.loads(text)
    except (ValueError, RecursionError):
        return []
    return [name for name in found if isinstance(name, str)] if isinstance(found, list) else []


def _place(original: ModelProto, fused: ModelProto, value: str, agreeing: set[str]) -> Place:
    nodes, before = _region(fused, value, agreeing), _region(original, value, agreeing)
    to_blame = [node for node in nodes if _is_fused(node)]
    replaced = [
        name
        for entry in (to_blame[0].metadata_props if to_blame else ())
        if entry.key == "onnx_fuse.replaced"
        for name in _names(entry.value)
    ]
    return Place(
        value,
        tuple(_called(node) for node in to_blame),
        tuple(replaced),
        tuple(_called(node)[0] for node in nodes),
        tuple(_called(node)[0] for node in before),
        tuple(_changes(original, fused, nodes, before)),
    )


def _region(model: ModelProto, value: str, agreeing: set[str]) -> list[NodeProto]:
    """The nodes that make a value out of values that agree, from the value backwards."""
    producers = _producers(model)
    found: dict[int, NodeProto] = {}
    frontier = [value]
    while frontier:
        name = frontier.pop(0)
        node = producers.get(name)
        if node is None or id(node) in found or (name in agreeing and name != value):
            continue
        found[id(node)] = node
        frontier.extend(_reads(node))
    return [node for node in found.values() if node.op_type != "Constant"]


def _reads(node: NodeProto) -> Iterator[str]:
    yield from node.input
    for attribute in node.attribute:  # what a branch captures counts as read
        for graph in (attribute.g, *attribute.graphs):
            for inner in graph.node:
                yield from _reads(inner)


def _changes(
    original: ModelProto, fused: ModelProto, nodes: Sequence[NodeProto], before: Sequence[NodeProto]
) -> Iterator[str]:
    """How what the two regions have in common differs."""
    twins = {_called(node)[0]: node for node in before}
    weights = [{tensor.name: tensor for tensor in model.graph.initializer} for model in (original, fused)]
    for node in nodes:
        name = _called(node)[0]
        twin = twins.get(name)
        if twin is not None and (twin.op_type, list(twin.input)) != (node.op_type, list(node.input)):
            was, now = (f"{item.op_type}({', '.join(item.input)})" for item in (twin, node))
            yield f"{name} is {now}, was {was}"
        elif twin is not None and {a.name: a for a in twin.attribute} != {a.name: a for a in node.attribute}:
            yield f"the attributes of {name} ({node.op_type}) are others"
        for read in node.input:
            tensors = [held.get(read) for held in weights]
            if None not in tensors and not _same(*tensors):  # type: ignore[arg-type]
                yield f"the weight {read} of {name} has another value"


def _same(one: TensorProto, other: TensorProto) -> bool:
    one, other = filled(one), filled(other)
    return one == other or one.SerializeToString() == other.SerializeToString()


def _inside(
    place: Place,
    original: ModelProto,
    base_dir: str | Path | None,
    fused: ModelProto,
    fused_dir: str | Path | None,
    evidence: Evidence,
    rtol: float,
) -> tuple[BodyValue, ...]:
    """The values in the body of the fused node to blame, each with a value of the nodes it replaced that has its numbers."""
    if not place.fused_nodes:
        return ()
    wanted = place.fused_nodes[0][0]
    open_model = inlining.inline_nodes(fused, lambda node: _called(node)[0] == wanted)
    body = [node for node in open_model.graph.node if node.name.startswith(f"{wanted}/") and node.op_type != "Constant"]
    region = {*place.original_nodes, *place.replaced}
    replaced = [node for node in original.graph.node if _called(node)[0] in region and node.op_type != "Constant"]
    there = {
        **_weights(original, {name for node in replaced for name in node.input}),
        **evidence.inputs,
        **evidence.inner,
        **_opened_values(original, base_dir, replaced, evidence),
    }
    here = _opened_values(open_model, fused_dir, body, evidence)
    return tuple(
        BodyValue(name, node.op_type, here[name].shape, _counterpart(here[name], there, rtol))
        for node in body
        for name in node.output
        if name in here and here[name].dtype.kind == "f" and here[name].size > 1
    )


def _opened_values(
    model: ModelProto, folder: str | Path | None, nodes: Sequence[NodeProto], evidence: Evidence
) -> dict[str, Array]:
    """What these nodes make."""
    outputs = {value.name for value in model.graph.output}
    names = [name for node in nodes for name in node.output if name]
    session = sessions.session(model, base_dir=folder, extra_outputs=[name for name in names if name not in outputs])
    made = as_arrays(sessions.run(session, evidence.inputs))
    return {name: made[name] for name in names if name in made}


def _weights(model: ModelProto, names: set[str]) -> dict[str, Array]:
    """Weights that are in the model itself."""
    return {
        tensor.name: numpy_helper.to_array(filled(tensor))
        for tensor in model.graph.initializer
        if tensor.name in names and not is_external(tensor)
    }


def _counterpart(array: Array, candidates: Mapping[str, Array], rtol: float) -> str:
    """A candidate with the same numbers in any order, which a Reshape or Transpose may change."""
    numbers = np.sort(array, axis=None)
    for name, other in candidates.items():
        if other.size != array.size or other.dtype != array.dtype:
            continue
        if compare(name, np.sort(other, axis=None), numbers, rtol).problem is None:
            return name
    return ""
