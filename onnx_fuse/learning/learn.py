"""Fusing by example: a PyTorch module, or an ONNX file that holds just a subgraph, becomes a fusion.

    fusion = onnx_fuse.learning.from_torch(GatedCross(64), (x0, x), dynamic_shapes={"x0": {0: "B"}, "x": {0: "B"}})
    onnx_fuse.fuse("model.onnx", enable=[fusion])
    fusion.save("gated_cross.onnx")

Every fusion learned is tried on its own example before it is handed out: it has to find it, and to compute the same.
"""

from __future__ import annotations

import os
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import ModelProto, NodeProto, helper, numpy_helper

from onnx_fuse import torch_export
from onnx_fuse.errors import LearnError, ModelError, OnnxFuseError, UsageError, reason
from onnx_fuse.learning import learned_file
from onnx_fuse.passes.files import io
from onnx_fuse.passes.files.checker import check, one_sentence
from onnx_fuse.passes.files.staging import require_apart
from onnx_fuse.passes.fuse.fuse_pass import FusePass
from onnx_fuse.passes.fuse.read_form import Example, Leaf, identifier, read
from onnx_fuse.passes.graph.onnx_inference import infer_shapes
from onnx_fuse.passes.opset_conversion import Convert
from onnx_fuse.passes.pipeline import BodiesPass, Pass, Pipeline
from onnx_fuse.passes.report import Report
from onnx_fuse.patterns import fusions
from onnx_fuse.patterns.language.learned import Definition, Form, name_problem
from onnx_fuse.patterns.language.learned_body import operator_of
from onnx_fuse.patterns.language.learned_pattern import build_of, patterns_of
from onnx_fuse.patterns.language.operator import DOMAIN, Fusion
from onnx_fuse.runtime.verify.verification import verify
from onnx_fuse.torch_export import Export

_SAME = 1e-5
_FUNCTION_IR = 10


@dataclass(frozen=True)
class Note:
    """What became of one thing in the example.

    Attributes:
        kind: "input", "weight" (an input that stands for parameters), "attribute", "fixed", "dimension", "unused" or "form".
        name: its name in the operator.
        text: what it is, in words.
    """

    kind: str
    name: str
    text: str


@dataclass(frozen=True)
class LearnedFusion(Fusion):
    """A fusion that was learned from an example. It has a body and no kernel.

    Attributes:
        definition: the operator and the forms that are looked for.
        notes: what was generalised and what was fixed.
        source: the file that it was learned or read from, if any.
    """

    definition: Definition = field(kw_only=True)
    notes: tuple[Note, ...] = field(default=(), kw_only=True)
    source: Path | None = field(default=None, kw_only=True, compare=False)

    @classmethod
    def of(cls, definition: Definition, notes: Iterable[Note], summary: str) -> LearnedFusion:
        """The fusion that a definition describes."""
        return cls(
            name=definition.name,
            pattern=patterns_of(definition),
            operator=operator_of(definition),
            build=build_of(definition),
            summary=summary,
            definition=definition,
            notes=tuple(notes),
        )

    def to_model(self) -> ModelProto:
        """The fusion as an ONNX model: the operator with its body, and in the metadata what is looked for."""
        notes = [(note.kind, note.name, note.text) for note in self.notes]
        return learned_file.to_model(self.definition, self.summary, notes)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Writes the fusion as a file for `load` and `onnx-fuse fuse --with`.

        Raises:
            OutputError: it cannot be written.
            UsageError: it would overwrite `source`.
        """
        require_apart([("The fusion", path)], [] if self.source is None else [self.source])
        io.save(self.to_model(), path)


def load(path: str | os.PathLike[str]) -> LearnedFusion:
    """Reads a fusion that `LearnedFusion.save` wrote.

    Raises:
        ModelError: the file cannot be read, or holds no learned fusion.
    """
    model = io.load(path)
    check(model, str(path))
    definition, summary, notes = learned_file.from_model(model, str(path))
    require_name(definition.name, definition.domain)
    return replace(LearnedFusion.of(definition, (Note(*note) for note in notes), summary), source=Path(path))


def from_torch(
    module: Any,
    example_inputs: Sequence[Any],
    op: str | None = None,
    *,
    dynamic_shapes: Any = None,
    input_names: Sequence[str] | None = None,
    attributes: Mapping[str, float | str] | None = None,
    inputs: Mapping[str, Any] | None = None,
    fixed: Collection[str] = (),
    exporters: Sequence[str] = ("dynamo", "script"),
    domain: str = DOMAIN,
    plugin_version: str = "1",
    plugin_namespace: str | None = None,
) -> LearnedFusion:
    """Learns a fusion from a PyTorch module.

    Float parameters and buffers become inputs of the operator, whatever their values; what else is constant is fixed.

    Args:
        module: in eval mode, or it is put there for the export; float32.
        example_inputs: what its forward takes.
        op: name of the operator; None for the module's class name.
        dynamic_shapes: name (or position) of an input -> {axis: name of the dimension}. Dimensions not listed are fixed.
        input_names: names of the inputs; None for those of forward's parameters.
        attributes: attribute -> number (or name) of the constant that becomes this attribute.
        inputs: input -> value (or name) of the constant that becomes this input.
        fixed: parameters that are part of the maths and keep their values.
        exporters: whose forms to learn, of "dynamo" and "script"; the first one that succeeds makes the body.
        domain, plugin_version, plugin_namespace: of the operator's nodes.

    Raises:
        LearnError: the module cannot be exported or learned; the sentence says what stands in the way.
        UsageError: a bad name or argument, or torch is missing.
    """
    name = op or type(module).__name__
    require_name(name, domain)
    exports, problems = torch_export.examples(module, example_inputs, dynamic_shapes, input_names, exporters, fixed)
    choice = _Choice(dict(attributes or {}), dict(inputs or {}))
    notes = [Note("form", label, f"not learned: {reason}") for label, reason in problems]
    base = Definition(name, {}, {}, (), domain=domain, plugin_version=plugin_version, plugin_namespace=plugin_namespace)
    return _learn(base, exports, choice, notes, f"learned from the PyTorch module {type(module).__name__}")


def from_onnx(
    model: ModelProto | str | os.PathLike[str],
    op: str | None = None,
    *,
    attributes: Mapping[str, float | str] | None = None,
    inputs: Mapping[str, Any] | None = None,
    fixed: Collection[str] = (),
    domain: str | None = None,
    plugin_version: str = "1",
    plugin_namespace: str | None = None,
) -> LearnedFusion:
    """Learns a fusion from an ONNX model that holds just the subgraph, or from a function in ONNX's textual syntax.

    Float initializers with more than one element become inputs; what else is constant is fixed. A function's inputs carry
    their types in its text (`f (float[B, 64] x) => (y) { ... }`), its attributes have defaults.

    Args:
        model: a model, the path of one (binary or text), or text that starts with a model or a function.
        op: name of the operator; None for the name of the graph or function.
        attributes, inputs, fixed: as for `from_torch`.
        domain: of the operator's nodes; None for that of the function, or gr.ml.infra.

    Raises:
        LearnError, UsageError: as for `from_torch`.
        ModelError: the model cannot be read.
    """
    source = _file(model)
    model, given_domain, defaults = _opened(model)
    name = op or identifier(model.graph.name)
    domain = domain or given_domain or DOMAIN
    require_name(name, domain)
    check(model, "the example")
    weights = [
        tensor.name
        for tensor in model.graph.initializer
        if tensor.data_type == onnx.TensorProto.FLOAT and np.prod(tensor.dims) > 1 and tensor.name not in fixed
    ]
    choice = _Choice(dict(attributes or {}), dict(inputs or {}), defaults)
    base = Definition(name, {}, {}, (), domain=domain, plugin_version=plugin_version, plugin_namespace=plugin_namespace)
    exports = [Export("the example", model, (*weights, *defaults))]
    learned = _learn(base, exports, choice, [], f"learned from the ONNX graph {model.graph.name}")
    return replace(learned, source=source)


def from_example(
    example: str, op: str | None = None, *, types: str | None = None, domain: str | None = None, **options: Any
) -> LearnedFusion:
    """Learns from what a command line can name: `module.py:Class`, or an ONNX file.

    Args:
        example: a Python file and a module class, factory or instance in it; or a file for `from_onnx`.
        types: inputs of the module in ONNX's text form; None for `example_inputs` (and `dynamic_shapes`) of the class or file.
        op, domain, options: as for `from_torch` and `from_onnx`.

    Raises:
        OnnxFuseError: as these.
    """
    path, colon, name = example.rpartition(":")
    if not colon or not path.endswith(".py"):
        if types is not None:
            raise UsageError("An ONNX example has its types in the file.", "Leave --inputs out.")
        return from_onnx(example if "{" not in example else Path(example), op, domain=domain, **options)
    domain = domain or DOMAIN
    if op is not None:
        require_name(op, domain)
    module, inputs, shapes, names = torch_export.module_at(Path(path), name, types)
    learned = from_torch(module, inputs, op, dynamic_shapes=shapes, input_names=names, domain=domain, **options)
    return replace(learned, source=Path(path))


# --- what becomes of constants ----------------------------------------------------------------------------------------


@dataclass
class _Choice:
    """What the user wants of constants: attribute or input -> value or name; parameters that are attributes -> value."""

    attributes: dict[str, Any]
    inputs: dict[str, Any]
    direct: Mapping[str, float] = field(default_factory=dict)

    def apply(self, example: Example) -> Example:
        """The example with the chosen constants as attributes and inputs."""
        references = dict(example.form.references)
        values = dict(example.attributes)
        tensors, weights, fixed = dict(example.inputs), dict(example.weights), dict(example.fixed)
        for attribute, wanted in self.attributes.items():
            name = _find(fixed, wanted)
            leaf = fixed.pop(name)
            if leaf.array.size != 1 or leaf.array.dtype.kind != "f":
                raise UsageError(f"{name} cannot be the attribute {attribute}: it is no float.", _listed(example.fixed))
            references[name], values[attribute] = attribute, float(leaf.array.reshape(-1)[0])
            # Later forms have other names for it, and the same value.
            self.attributes[attribute] = values[attribute] if not isinstance(wanted, str) else leaf.array
        renames = {}
        for wanted_name, wanted in self.inputs.items():
            name = _find(fixed, wanted)
            leaf = fixed.pop(name)
            renames[name], tensors[wanted_name], weights[wanted_name] = wanted_name, leaf.tensor, leaf
            self.inputs[wanted_name] = leaf.array
        for name in [name for name, leaf in weights.items() if leaf.direct and leaf.parameters[0] in self.direct]:
            del weights[name], tensors[name]
            references[name], values[name] = name, self.direct[name]
        taken = [name for name in (*self.attributes, *self.inputs) if not name.isidentifier() or name in example.inputs]
        if taken:
            raise UsageError(f"{taken[0]!r} cannot name an attribute or input.", "Choose another name.")
        form = example.form
        constants = {name: array for name, array in form.constants.items() if name not in renames}
        constants |= {name: np.float32(values[name]) for name in references if name not in constants}
        steps = tuple(
            replace(step, inputs=tuple(renames.get(name, name) for name in step.inputs)) for step in form.steps
        )
        return replace(
            example,
            form=replace(form, steps=steps, constants=constants, references=references),
            inputs=tensors,
            weights=weights,
            fixed=fixed,
            scalars=frozenset(name for name, leaf in weights.items() if leaf.array.size == 1),
            attributes=values,
        )


def _find(fixed: Mapping[str, Leaf], wanted: Any) -> str:
    """The one constant of this name or value."""
    if isinstance(wanted, str):
        if wanted not in fixed:
            raise UsageError(f"The example has no constant {wanted}.", _listed(fixed))
        return wanted
    array = np.asarray(wanted)
    found = [
        name
        for name, leaf in fixed.items()
        if leaf.array.dtype.kind in "fiu"
        and (leaf.array.size == array.size == 1 or leaf.array.shape == array.shape)
        and np.allclose(leaf.array.reshape(-1), array.reshape(-1), rtol=_SAME, atol=0.0)
    ]
    shown = f"{array.reshape(-1)[0]:g}" if array.size == 1 else f"these {array.size} numbers"
    if not found:
        raise UsageError(f"No constant of the example is {shown}.", _listed(fixed))
    if len(found) > 1:
        raise UsageError(
            f"{len(found)} constants of the example are {shown}: {', '.join(found)}.",
            f"Name the one you mean. {_listed(fixed)}",
        )
    return found[0]


def _listed(fixed: Mapping[str, Leaf]) -> str:
    return (
        f"The constants are: {'; '.join(f'{name}: {constant_text(leaf)}' for name, leaf in fixed.items()) or 'none'}."
    )


def constant_text(leaf: Leaf) -> str:
    """A constant in words."""
    array = leaf.array
    value = f"{array.reshape(-1)[0]:g}" if array.size == 1 else f"{array.dtype}{list(array.shape)}"
    return f"{value}, read by {leaf.reader}"


# --- learning ---------------------------------------------------------------------------------------------------------


def _learn(
    base: Definition, exports: Sequence[Export], choice: _Choice, notes: list[Note], summary: str
) -> LearnedFusion:
    first, *others = exports
    example = choice.apply(read(first.model, first.weights))
    definition = replace(
        base,
        inputs=example.inputs,
        outputs=example.outputs,
        forms=(example.form,),
        attributes=example.attributes,
        scalars=example.scalars,
    )
    notes = [*_notes(example), *notes]
    fusion = LearnedFusion.of(definition, notes, summary)
    _require_found(fusion, first)
    for other in others:
        try:
            _require_found(fusion, other)
            continue
        except LearnError:
            pass  # it is written in a form of its own
        try:
            form = _unified(example, choice.apply(read(other.model, other.weights)))
            verify(first.model, other.model, inputs=other.inputs).raise_if_failed()
            wider = LearnedFusion.of(replace(definition, forms=(*fusion.definition.forms, form)), notes, summary)
            _require_found(wider, other)
            fusion = wider
        except OnnxFuseError as error:
            notes.append(Note("form", other.label, f"not learned: {error.cause}"))
    return replace(fusion, notes=(*notes, *_masked_row(fusion.definition)))


def _masked_row(definition: Definition) -> list[Note]:
    if "masked_row" not in definition.example_attributes:
        return []
    return [
        Note(
            "attribute",
            "masked_row",
            "what a row gives in which everything is masked: nan or zero, as the model has it",
        )
    ]


def _notes(example: Example) -> list[Note]:
    notes = [Note("input", name, str(tensor)) for name, tensor in example.inputs.items() if name not in example.weights]
    for name, leaf in example.weights.items():
        parameters = " and ".join(leaf.parameters)
        whence = f"the parameter {parameters}" if leaf.direct else f"computed from {parameters}"
        notes.append(
            Note("weight", name, f"{leaf.tensor}, {whence if leaf.parameters else 'a constant of the example'}")
        )
    notes += [Note("attribute", name, f"{value:g} in the example") for name, value in example.attributes.items()]
    notes += [Note("fixed", name, constant_text(leaf)) for name, leaf in example.fixed.items()]
    for step in example.form.steps:
        for name, value in step.attributes.items():
            if isinstance(value, float):
                notes.append(Note("fixed", name, f"{value:g}, of {step.op_type}"))
    dims = [dim for tensor in example.inputs.values() for dim in tensor.dims]
    notes += [Note("dimension", str(dim), "any size") for dim in dict.fromkeys(d for d in dims if isinstance(d, str))]
    sizes = sorted({dim for dim in dims if isinstance(dim, int) and dim != 1})
    if sizes:
        notes.append(Note("dimension", ", ".join(map(str, sizes)), "fixed sizes, as in the shapes above"))
    notes += [Note("unused", name, "the result does not depend on it") for name in example.unused]
    return notes


def _unified(first: Example, other: Example) -> Form:
    """The other's form in the names of the first one's inputs and attributes."""
    renames: dict[str, str] = {}
    for name, leaf in other.weights.items():
        same = [known for known, item in first.weights.items() if item.equals(leaf, _SAME)]
        if len(same) != 1:
            raise LearnError(f"its input {name} is none of the operator's inputs.", "")
        renames[name] = same[0]
    names = [renames.get(name, name) for name in other.inputs]
    if sorted(names) != sorted(first.inputs) or other.attributes != first.attributes:
        raise LearnError("it has other inputs or attributes.", "")
    steps = tuple(
        replace(step, inputs=tuple(renames.get(name, name) for name in step.inputs)) for step in other.form.steps
    )
    return replace(other.form, steps=steps)


def _require_found(fusion: LearnedFusion, export: Export) -> None:
    """The example itself must fuse, and compute the same."""
    operator = (fusion.operator.domain, fusion.operator.name)
    model = ModelProto()
    model.CopyFrom(export.model)
    steps: list[Pass] = [Convert(), FusePass((fusion,)), BodiesPass((operator,))]
    try:
        fused, report = Pipeline(steps, bodies={fusion.operator.domain}).run(model, Report())
        proven = verify(export.model, fused, inputs=export.inputs) if report.fused else None
        if proven is not None and proven.skipped is None:
            proven.raise_if_failed()
    except OnnxFuseError as error:
        raise LearnError(f"{fusion.name} could not be proven on its example: {error.cause}", error.remedy) from error
    if proven is None:
        miss = max(report.near_misses, key=lambda item: item.matched, default=None)
        told = f"{miss.node}: {miss.reason}" if miss else "; ".join(report.warnings) or "nothing in it looks like it"
        raise LearnError(
            f"{fusion.name} does not find its own example ({export.label}): {told}.",
            "Take a smaller part of the model.",
        )
    if not proven.passed:
        raise LearnError(f"{fusion.name} could not be held against its example: {proven.skipped}.", "")


def require_name(name: str, domain: str) -> None:
    """Raises UsageError where an operator cannot be called so: TensorRT or onnx-fuse has one of that name, or it is no name."""
    problem = name_problem(name, domain)
    if problem is None and (domain, name) in {(item.operator.domain, item.operator.name) for item in fusions()}:
        problem = "onnx-fuse has an operator of that name"
    if problem is not None:
        raise UsageError(f"An operator cannot be called {domain}::{name}: {problem}.", "Choose another name (--op).")


# --- ONNX examples ----------------------------------------------------------------------------------------------------


def _file(model: ModelProto | str | os.PathLike[str]) -> Path | None:
    """The file that an example is in; None for a model or a text."""
    return None if isinstance(model, ModelProto) or "{" in os.fspath(model) else Path(model)


def _opened(model: ModelProto | str | os.PathLike[str]) -> tuple[ModelProto, str | None, dict[str, float]]:
    """The example as a model, the domain of the function it was (if any), and the function's attributes."""
    if isinstance(model, ModelProto):
        return model, None, {}
    text, path = os.fspath(model), _file(model)
    if path is not None:
        if not os.path.isfile(path) or path.suffix not in (".onnxtxt", ".txt"):
            return io.load(path), None, {}
        try:
            text = path.read_text(encoding="utf-8")
        except (OSError, ValueError) as error:
            raise ModelError(f"{path} cannot be read: {reason(error)}.", "Give a file in onnx's text form.") from error
    try:
        # A function has the header of a model, but for this.
        if "ir_version" in text:
            return onnx.parser.parse_model(text), None, {}
        return _as_model(onnx.parser.parse_function(text))
    except onnx.parser.ParseError as error:
        said = " ".join(str(error).split())
        raise ModelError(
            f"The text is neither a model nor a function: {said}", "See the syntax page of onnx (docs/Syntax.md)."
        ) from error


def _as_model(function: onnx.FunctionProto) -> tuple[ModelProto, str | None, dict[str, float]]:
    """A function as a model: attributes that are read as constants become initializers of their names."""
    types = {value.name: value for value in function.value_info}
    missing = [name for name in function.input if name not in types]
    if missing or function.attribute:
        what = f"input {missing[0]} has no type" if missing else f"attribute {function.attribute[0]} has no default"
        raise LearnError(
            f"The function {function.name} cannot be learned: its {what}.",
            "Write types and defaults: f <alpha: float = 0.5> (float[B, 64] x) => (y) { ... }",
        )
    defaults = {item.name: float(item.f) for item in function.attribute_proto}
    nodes = []
    for node in function.node:
        references = [item for item in node.attribute if item.ref_attr_name]
        if not references:
            nodes.append(node)
        elif node.op_type != "Constant" or references[0].name != "value_float":
            raise LearnError(
                f"{node.op_type} of {function.name} refers to the attribute {references[0].ref_attr_name}.",
                "Only Constant<value_float: float = @name> () can be learned; fix the others.",
            )
        else:
            nodes.append(NodeProto(op_type="Identity", input=[references[0].ref_attr_name], output=node.output))
    initializers = [numpy_helper.from_array(np.float32(value), name) for name, value in defaults.items()]
    outputs = [onnx.ValueInfoProto(name=name) for name in function.output]
    graph = helper.make_graph(nodes, function.name, [types[name] for name in function.input], outputs, initializers)
    model = helper.make_model(graph, opset_imports=list(function.opset_import), ir_version=_FUNCTION_IR)
    try:
        inferred = infer_shapes(model)
    except (onnx.shape_inference.InferenceError, ValueError) as error:
        raise LearnError(
            f"The shapes in the function {function.name} cannot be worked out: {one_sentence(error)}",
            "Check the function with onnx.checker.",
        ) from error
    return inferred, function.domain or None, defaults
