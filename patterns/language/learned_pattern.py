"""The patterns that find a learned operator, and what their matches become."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper

from onnx_fuse.patterns.language.body import Body
from onnx_fuse.patterns.language.dsl import Pattern, Requirement
from onnx_fuse.patterns.language.interface import Match, View
from onnx_fuse.patterns.language.learned import (
    SHAPED,
    Definition,
    Dim,
    Dims,
    Form,
    Reference,
    Step,
    filling,
    part_bounds,
)
from onnx_fuse.patterns.language.learned_body import FormWriter
from onnx_fuse.patterns.language.operator import FLOATS, Fused, type_name
from onnx_fuse.patterns.language.terms import AnyOf, Named, Number, Op, Output, Shaped, Term, Variable

_ABSENT = "no input"
_MOST_PARTS = 8
_TOLERANCE = 1e-5
_EVALUATED_AT = 18


def patterns_of(definition: Definition) -> tuple[Pattern, ...]:
    """One pattern for each form."""
    return tuple(_FormPattern(definition, form).pattern() for form in definition.forms)


def build_of(definition: Definition) -> Callable[[Match, View], Fused | str]:
    """What a match of these patterns becomes."""

    def build(match: Match, view: View) -> Fused | str:
        attributes: dict[str, float | str] = {}
        if "masked_row" in definition.example_attributes:
            attributes["masked_row"] = "zero" if any(node.op_type == "IsNaN" for node in match.nodes) else "nan"
        for name in definition.attributes:
            bound = match.get(name)
            value = view.scalar(bound) if isinstance(bound, str) else bound
            if value is None:
                return f"{name} is not bound to a number"
            attributes[name] = float(value)
        values = getattr(match, "values", (match.root.outputs[0],))
        inputs = {name: match.get(name) for name in definition.inputs}
        return Fused(inputs, dict(zip(definition.outputs, values, strict=True)), attributes)

    return build


class _FormPattern:
    """Builds the pattern of one form."""

    def __init__(self, definition: Definition, form: Form) -> None:
        self.definition = definition
        self.form = form
        self.variables: dict[str, Variable] = {}
        self.requirements: list[Requirement] = [self._types_fit]
        self.terms: dict[str, Term] = {"": self._variable(_ABSENT, "optional")}

    def pattern(self) -> Pattern:
        definition, form = self.definition, self.form
        for name, tensor in definition.inputs.items():
            scalar = name in definition.scalars
            variable = self._variable(name, "scalar" if scalar else "value")
            self.terms[name] = variable if scalar else Shaped(variable, tensor.dims)
        for name, array in form.constants.items():
            self.terms[name] = self._constant(name, array)
        for name in form.sizes:
            self.terms[name] = self._variable(name, "value")
        computed = form.size_only()
        read = {name for step in form.steps if not computed.issuperset(step.outputs) for name in step.inputs}
        for step in form.steps:
            self._step(step, read & computed)
        self.requirements += [self._sizes_fit, self._constants_fit]
        results = [Shaped(self.terms[value], self._dims(value)) for value in form.results]
        pattern = Pattern.of(definition.name, list(self.variables.values()), results)
        pattern.requirements = self.requirements
        return pattern

    def _variable(self, name: str, kind: Any) -> Variable:
        return self.variables.setdefault(name, Variable(name, kind))

    def _constant(self, name: str, array: np.ndarray) -> Term:
        attribute = self.form.references.get(name)
        if attribute is not None:
            return self._variable(attribute, "scalar")
        if array.size == 1:
            return Number(float(array.reshape(-1)[0]), _TOLERANCE if array.dtype.kind == "f" else 0.0)
        return self._variable(name, "constant")

    def _dims(self, value: str) -> Dims:
        """The shape to ask of a value: what is no plain size or dimension of an input may be anything."""
        known = {dim for tensor in self.definition.inputs.values() for dim in tensor.dims}
        dims = self.form.tensors[value].dims if value in self.form.tensors else self.definition.inputs[value].dims
        return tuple(dim if isinstance(dim, int) or dim in known else "_" for dim in dims)

    def _step(self, step: Step, computed: set[str]) -> None:
        inputs = tuple(self.terms[name] for name in step.inputs)
        if step.op_type == "Part":
            term: Term = Named(self._part(step, inputs[0]), step.outputs[0])
            self.terms[step.outputs[0]] = term
            return
        if step.op_type == "Pow" and isinstance(inputs[1], Number):
            inputs = (inputs[0], Number(inputs[1].value, 0.0))
        attributes = {} if step.op_type in SHAPED else self._attributes(step)
        op = Op((step.op_type,), inputs, attributes)
        forms: list[Term] = [op, *_synonyms(step, inputs, self.form), *self._filled(step)]
        for index, value in enumerate(step.outputs):
            if not value:
                continue
            term = Output(op, index) if len(step.outputs) > 1 else forms[0] if len(forms) == 1 else AnyOf(tuple(forms))
            if value in self.form.tensors:
                dims = self._dims(value)
                term = Shaped(term, dims if step.op_type in (*SHAPED, "ConstantOfShape") else ("_",) * len(dims))
            if value in computed:
                # In a model with fixed sizes it is a constant.
                term = AnyOf((term, self._variable(f"{value}_folded", "constant")))
            self.terms[value] = term

    def _filled(self, step: Step) -> list[Term]:
        """One number all over is a ConstantOfShape or an Expand; which shape it has is asked of the result."""
        if step.op_type == "ConstantOfShape":
            return [Op(("Expand",), (Number(float(step.attributes["value"][0])),))]
        number = self.form.number(step.inputs[0]) if step.op_type == "Expand" else None
        if number is None:
            return []
        wanted = [number, self.form.tensors[step.outputs[0]].dtype]
        shape = self._variable(f"{step.outputs[0]}_shape", "value")
        return [Op(("ConstantOfShape",), (shape,), {"value": _expecting("ConstantOfShape", "value", wanted)})]

    def _attributes(self, step: Step) -> dict[str, Any]:
        wanted: dict[str, Any] = {}
        for name, value in step.attributes.items():
            if isinstance(value, Reference):
                wanted[name] = self._variable(value.attribute, "attribute")
            else:
                wanted[name] = _expecting(step.op_type, name, value)
        return wanted

    def _part(self, step: Step, whole: Term) -> Term:
        axis, start, end = (step.attributes[name] for name in ("axis", "start", "end"))
        size = self._dims(step.outputs[0])

        def fits(match: Match, view: View) -> str | None:
            node = view.producer(match[step.outputs[0]])
            found = _part_at(node, match[step.outputs[0]], view, axis)
            if found == (axis, start, end):
                return None
            return (
                f"{node.name} takes {found or 'another part'}, pattern wants elements {start} to {end} of axis {axis}"
            )

        self.requirements.append(fits)
        split = Op(("Split",), (whole,))
        parts = (Op(("Slice",), (whole,)), *(Output(split, index) for index in range(_MOST_PARTS)))
        return Shaped(AnyOf(parts), size)

    # -- requirements --------------------------------------------------------------------------------------------------

    def _types_fit(self, match: Match, view: View) -> str | None:
        if _ABSENT in match:
            return f"{match[_ABSENT]} stands where the example has no input"
        for name, tensor in self.definition.inputs.items():
            found = view.dtype(match[name])
            if found in FLOATS if tensor.is_float else found == tensor.dtype:
                continue
            kind = type_name(found) if found else "of unknown type"
            wanted = "a float type" if tensor.is_float else type_name(tensor.dtype)
            return f"{match[name]} is {kind}, pattern wants {wanted} ({name})"
        return None

    def _sizes_fit(self, match: Match, view: View) -> str | None:
        for name, size in self.form.sizes.items():
            if name not in match:
                continue  # it is part of what was folded
            found = view.info(match[name]).content
            wanted = tuple(item if isinstance(item, int) else match.get(item) for item in _vector(size))
            if found != wanted:
                return f"{match[name]} is not the size of {size} ({name})"
        return None

    def _constants_fit(self, match: Match, view: View) -> str | None:
        for name, array in self.form.constants.items():
            if name in self.form.references or name not in match:
                continue
            if not _equal(view.constant(match[name]), array):
                return f"the constant {match[name]} holds other values than the example's {name}"
        for name in self.form.size_only():
            bound = match.get(f"{name}_folded")
            if bound is not None and not _equal(view.constant(bound), self._folded(name, match, view)):
                return f"the constant {bound} is not what the example computes from the sizes ({name})"
        return None

    def _folded(self, name: str, match: Match, view: View) -> np.ndarray | None:
        """What a value comes to with the sizes of a match, where these are known."""
        sizes = {dim: match.get(dim) for dim in self.definition.symbols}
        op = Body(_EVALUATED_AT, TensorProto.FLOAT, list(self.definition.inputs))
        result = FormWriter(self.definition, self.form, op, {}, False, sizes).value(name)
        graph = helper.make_graph(op.nodes, "sizes", [], [onnx.ValueInfoProto(name=result)])
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", _EVALUATED_AT)])
        return view.computed(model, result)  # what cannot be worked out is not known to be equal


def _part_at(node: Any, value: str, view: View, axis: int) -> tuple[int, int, int] | None:
    shape = view.shape(node.inputs[0])
    if shape is None or not isinstance(shape[axis], int):
        return None
    return part_bounds(node, value, view, shape)


def _expecting(op_type: str, name: str, wanted: Any) -> Callable[[Any], bool | str]:
    """Whether an attribute has the value; a model whose opset does not know it has the default."""
    newest = onnx.defs.get_schema(op_type).attributes.get(name) if onnx.defs.has(op_type) else None
    default = helper.get_attribute_value(newest.default_value) if newest and newest.default_value.name else None
    default = default.decode() if isinstance(default, bytes) else default
    shown = f"{wanted:g}" if isinstance(wanted, float) else str(wanted)

    def check(found: Any) -> bool | str:
        if op_type == "ConstantOfShape":
            return filling(found) == wanted or shown
        if found is None:
            return wanted is None or wanted == default or shown
        if isinstance(wanted, float):
            return (isinstance(found, (int, float)) and math.isclose(found, wanted, rel_tol=_TOLERANCE)) or shown
        if name == "axes" and op_type != "Slice" and isinstance(found, list) and isinstance(wanted, list):
            return sorted(found) == sorted(wanted) or shown
        return bool(found == wanted) or shown

    return check


def _synonyms(step: Step, inputs: Sequence[Term], form: Form) -> list[Term]:
    """Other ways of writing a step that compute the same."""
    swapped = {"Less": "Greater", "Greater": "Less", "LessOrEqual": "GreaterOrEqual", "GreaterOrEqual": "LessOrEqual"}
    if step.op_type in swapped:
        return [Op((swapped[step.op_type],), tuple(inputs[::-1]))]
    if step.op_type == "Mul" and step.inputs[0] == step.inputs[1]:
        return [Op(("Pow",), (inputs[0], Number(2.0, 0.0)))]
    if step.op_type == "Pow" and form.number(step.inputs[1]) == 2.0:
        return [Op(("Mul",), (inputs[0], inputs[0]))]
    if step.op_type == "Reciprocal":
        return [Op(("Div",), (Number(1.0), inputs[0]))]
    if step.op_type == "Div" and form.number(step.inputs[0]) == 1.0:
        return [Op(("Reciprocal",), (inputs[1],))]
    return []


def _equal(found: np.ndarray | None, wanted: np.ndarray | None) -> bool:
    if found is None or wanted is None or found.shape != wanted.shape:
        return False
    if found.dtype.kind != "f" or wanted.dtype.kind != "f":
        return found.dtype == wanted.dtype and np.array_equal(found, wanted)
    return bool(np.allclose(found, wanted, rtol=_TOLERANCE, atol=0.0, equal_nan=True))


def _vector(size: Dim | Dims) -> Dims:
    return size if isinstance(size, tuple) else (size,)
