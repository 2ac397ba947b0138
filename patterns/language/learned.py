"""Fusions learned from an example: the example's canonical form as data, and the pattern and the body that follow from it.

`passes/fuse/read_form.py` reads a `Form` off an exported example. The pattern asks for the form's nodes, the body writes the
same nodes, so whatever the pattern matches is what the body computes: attributes, constants, targets of Reshape included.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from onnx_fuse.errors import PatternError
from onnx_fuse.patterns.language.body import Body
from onnx_fuse.patterns.language.dsl import (
    AnyOf,
    Named,
    Number,
    Op,
    Output,
    Pattern,
    Requirement,
    Shaped,
    Term,
    Variable,
)
from onnx_fuse.patterns.language.interface import Match, View
from onnx_fuse.patterns.language.operator import DOMAIN, FLOATS, Fused, FusedOp

Dim = int | str
Dims = tuple[Dim, ...]

SHAPED = frozenset({"Reshape", "Expand"})
"""Operators whose second input is where they lead: patterns and bodies know it by the shape of the result."""

_TENSORRT = frozenset(
    {"DistCollective", "GroupQueryAttention", "ImageScaler", "MatMulNBits", "MultiHeadAttention", "ParametricSoftplus"}
    | {"QMoE", "RotaryEmbedding", "ScaledTanh", "SimplifiedLayerNormalization", "SkipSimplifiedLayerNormalization"}
    | {"Swish"}
)
"""Names that TensorRT's parser knows beside those of ONNX (and those of TRT_...), or that only later releases of onnx have."""

_ABSENT = "no input"
_MOST_PARTS = 8
_TOLERANCE = 1e-5
_REDUCE_AXES_INPUT = 18
_EVALUATED_AT = 18


@dataclass(frozen=True)
class Tensor:
    """TensorProto.DataType and shape of a value; a dimension is its size, or the name of one that may vary."""

    dtype: int
    dims: Dims

    def __str__(self) -> str:
        return f"{TensorProto.DataType.Name(self.dtype).lower()}[{', '.join(map(str, self.dims))}]"

    @property
    def is_float(self) -> bool:
        """Whether it is of the operator's type T, which each model chooses."""
        return self.dtype == TensorProto.FLOAT


@dataclass(frozen=True)
class Reference:
    """The value of an attribute of a step that is an attribute of the operator."""

    attribute: str


@dataclass(frozen=True)
class Step:
    """A node of a form. Axes count from the front; a fixed run of elements, from Slice or Split, is a `Part`.

    Attributes:
        inputs: names of operator inputs, constants, sizes, and outputs of earlier steps; "" where absent.
        attributes: every attribute the operator has, defaults included.
    """

    op_type: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    attributes: Mapping[str, Any]


@dataclass(frozen=True)
class Form:
    """One way of writing the example in the canonical view.

    Attributes:
        steps: its nodes, makers first.
        results: the value of each output of the operator.
        tensors: the outputs of the steps.
        constants: name -> array of what the form fixes (or makes an attribute).
        references: name of a constant -> attribute of the operator that holds its number.
        sizes: name -> elements of a small integer tensor that is known from the shapes of the inputs; a tuple is a vector.
    """

    steps: tuple[Step, ...]
    results: tuple[str, ...]
    tensors: Mapping[str, Tensor]
    constants: Mapping[str, np.ndarray] = field(default_factory=dict)
    references: Mapping[str, str] = field(default_factory=dict)
    sizes: Mapping[str, Dim | Dims] = field(default_factory=dict)

    @property
    def masked_row(self) -> str:
        """What a Softmax over nothing gives: "zero" where the form replaces NaN, as ONNX's Attention does."""
        return "zero" if any(step.op_type == "IsNaN" for step in self.steps) else "nan"

    def size_only(self) -> set[str]:
        """Values that follow from the shapes of the inputs alone, such as Range(0, S)."""
        found: set[str] = set(self.sizes)
        for step in self.steps:
            names = [name for name in step.inputs if name]
            if found.intersection(names) and all(name in found or name in self.constants for name in names):
                found.update(step.outputs)
        return found - set(self.sizes)


@dataclass(frozen=True)
class Definition:
    """A learned operator.

    Attributes:
        inputs: operator input -> type and shape, in order.
        scalars: the inputs that are one number.
        outputs: operator output -> type and shape, in order.
        attributes: attribute -> its value in the example.
        forms: the forms to look for; the first one is the body. Where they disagree on masked rows the operator has the
            attribute `masked_row` ("nan", "zero"), and the first form of each kind is its body.
    """

    name: str
    inputs: Mapping[str, Tensor]
    outputs: Mapping[str, Tensor]
    forms: tuple[Form, ...]
    attributes: Mapping[str, float] = field(default_factory=dict)
    scalars: frozenset[str] = frozenset()
    domain: str = DOMAIN
    plugin_version: str = "1"
    plugin_namespace: str | None = None

    def operator(self, *, widen: bool = True) -> FusedOp:
        """The fused operator. Its body computes in float32 and casts at the end; without `widen` it is for float32 alone."""

        def body(op: Body, **values: Any) -> tuple[str, ...]:
            wanted = values.pop("masked_row", self.forms[0].masked_row)
            form = next(form for form in self.forms if form.masked_row == wanted)
            return _Writer(self, form, op, values, widen).outputs()

        return FusedOp(
            name=self.name,
            inputs=tuple(self.inputs),
            outputs=tuple(self.outputs),
            attributes=tuple(self.example_attributes),
            body=body,
            domain=self.domain,
            plugin_version=self.plugin_version,
            plugin_namespace=self.plugin_namespace,
            types=FLOATS if next(iter(self.outputs.values())).is_float else None,
        )

    @property
    def example_attributes(self) -> dict[str, float | str]:
        """All attributes of the operator, as in the example."""
        kinds = [form.masked_row for form in self.forms]
        return {**self.attributes, **({"masked_row": kinds[0]} if len(set(kinds)) > 1 else {})}

    def patterns(self) -> tuple[Pattern, ...]:
        """One pattern for each form."""
        return tuple(_PatternOf(self, form).pattern() for form in self.forms)

    def build(self, match: Match, view: View) -> Fused | str:
        """What a match becomes."""
        attributes: dict[str, float | str] = {}
        if "masked_row" in self.example_attributes:
            attributes["masked_row"] = "zero" if any(node.op_type == "IsNaN" for node in match.nodes) else "nan"
        for name in self.attributes:
            bound = match.get(name)
            value = view.scalar(bound) if isinstance(bound, str) else bound
            if value is None:
                return f"{name} is not bound to a number"
            attributes[name] = float(value)
        values = getattr(match, "values", (match.root.outputs[0],))
        inputs = {name: match.get(name) for name in self.inputs}
        return Fused(inputs, dict(zip(self.outputs, values, strict=True)), attributes)


def name_problem(name: str, domain: str) -> str | None:
    """Why an operator cannot be called so; None where it can.

    TensorRT takes a node of a name it knows for its own, whatever the node's domain and body.
    """
    if not name.isidentifier() or not name.isascii():
        return "it is no identifier"
    if onnx.defs.has(name) or name in _TENSORRT or name.startswith("TRT_"):
        return "TensorRT would take it for an operator of its own"
    if domain in ("", "ai.onnx") or domain.startswith("ai.onnx."):
        return f"the domain {domain!r} is ONNX's own"
    return None


# --- the pattern ------------------------------------------------------------------------------------------------------


class _PatternOf:
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
        number = _number(self.form, step.inputs[0]) if step.op_type == "Expand" else None
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
            kind = TensorProto.DataType.Name(found) if found else "of unknown type"
            wanted = "a float type" if tensor.is_float else TensorProto.DataType.Name(tensor.dtype)
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
            if bound is not None and not _equal(view.constant(bound), self._folded(name, match)):
                return f"the constant {bound} is not what the example computes from the sizes ({name})"
        return None

    def _folded(self, name: str, match: Match) -> np.ndarray | None:
        """What a value comes to with the sizes of a match, where these are known."""
        sizes = {dim: match.get(dim) for dim in _symbols(self.definition)}
        op = Body(_EVALUATED_AT, TensorProto.FLOAT, list(self.definition.inputs))
        result = _Writer(self.definition, self.form, op, {}, False, sizes).value(name)
        graph = helper.make_graph(op.nodes, "sizes", [], [onnx.ValueInfoProto(name=result)])
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", _EVALUATED_AT)])
        from onnx.reference import ReferenceEvaluator

        try:
            (array,) = ReferenceEvaluator(model).run(None, {})
            return np.asarray(array)
        except Exception:  # whatever the evaluator cannot do is not known to be equal
            return None


def _part_at(node: Any, value: str, view: View, axis: int) -> tuple[int, int, int] | None:
    shape = view.shape(node.inputs[0])
    if shape is None or not isinstance(shape[axis], int):
        return None
    return part_bounds(node, value, view, shape)


def part_bounds(node: Any, value: str, view: View, shape: Sequence[Any]) -> tuple[int, int, int] | None:
    """(axis, start, end) of what a Slice or Split node cuts out of an axis of known size; None for anything else."""
    if node.op_type == "Split":
        axis = int(view.attribute(node, "axis")) % len(shape)
        offset = 0
        for output in node.outputs:
            piece = view.shape(output)
            size = piece[axis] if piece is not None else None
            if not isinstance(size, int):
                return None
            if view.resolve(output) == view.resolve(value):
                return axis, offset, offset + size
            offset += size
        return None
    bounds = [view.attribute(node, name) for name in ("starts", "ends", "axes", "steps")]
    starts, ends, axes, steps = bounds
    if not all(isinstance(item, list) and len(item) == 1 and isinstance(item[0], int) for item in (starts, ends)):
        return None
    if steps not in (None, [1]) or (axes is not None and len(axes) != 1):
        return None
    axis = (axes[0] if axes else 0) % len(shape)
    if not isinstance(shape[axis], int):
        return None
    start, end, _ = slice(starts[0], ends[0]).indices(shape[axis])
    return axis, start, end


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


def filling(tensor: Any) -> list[float | int]:
    """What a ConstantOfShape fills with: [number, TensorProto.DataType]."""
    if tensor is None:
        return [0.0, int(TensorProto.FLOAT)]
    return [numpy_helper.to_array(tensor).item(), int(tensor.data_type)]


def _synonyms(step: Step, inputs: Sequence[Term], form: Form) -> list[Term]:
    """Other ways of writing a step that compute the same."""
    swapped = {"Less": "Greater", "Greater": "Less", "LessOrEqual": "GreaterOrEqual", "GreaterOrEqual": "LessOrEqual"}
    if step.op_type in swapped:
        return [Op((swapped[step.op_type],), tuple(inputs[::-1]))]
    if step.op_type == "Mul" and step.inputs[0] == step.inputs[1]:
        return [Op(("Pow",), (inputs[0], Number(2.0)))]
    if step.op_type == "Pow" and _number(form, step.inputs[1]) == 2.0:
        return [Op(("Mul",), (inputs[0], inputs[0]))]
    if step.op_type == "Reciprocal":
        return [Op(("Div",), (Number(1.0), inputs[0]))]
    if step.op_type == "Div" and _number(form, step.inputs[0]) == 1.0:
        return [Op(("Reciprocal",), (inputs[1],))]
    return []


def _number(form: Form, name: str) -> float | None:
    array = form.constants.get(name)
    fixed = array is not None and array.size == 1 and name not in form.references
    return float(array.reshape(-1)[0]) if fixed and array is not None else None


def _equal(found: np.ndarray | None, wanted: np.ndarray | None) -> bool:
    if found is None or wanted is None or found.shape != wanted.shape:
        return False
    if found.dtype.kind != "f" or wanted.dtype.kind != "f":
        return found.dtype == wanted.dtype and np.array_equal(found, wanted)
    return bool(np.allclose(found, wanted, rtol=_TOLERANCE, atol=0.0, equal_nan=True))


def _vector(size: Dim | Dims) -> Dims:
    return size if isinstance(size, tuple) else (size,)


def _symbols(definition: Definition) -> list[str]:
    dims: Iterable[Dim] = (dim for tensor in definition.inputs.values() for dim in tensor.dims)
    return list(dict.fromkeys(dim for dim in dims if isinstance(dim, str)))


# --- the body ---------------------------------------------------------------------------------------------------------


class _Writer:
    """Writes the values of a form with a `Body`, each when it is first asked for.

    Args:
        given: operator input or attribute -> its name in the body.
        widen: compute in float32 whatever the inputs are, and cast at the end.
        sizes: dimension -> size, where these are known and the inputs are not there.
    """

    def __init__(
        self,
        definition: Definition,
        form: Form,
        op: Body,
        given: Mapping[str, Any],
        widen: bool,
        sizes: Mapping[str, Any] | None = None,
    ) -> None:
        self.definition = definition
        self.form = form
        self.op = op
        self.given = given
        self.widen = widen
        self.sizes = sizes
        self.made: dict[str, str] = {"": ""}

    def outputs(self) -> tuple[str, ...]:
        """The operator's outputs."""
        like = next((name for name, tensor in self.definition.inputs.items() if tensor.is_float), None)
        results = []
        for value, tensor in zip(self.form.results, self.definition.outputs.values(), strict=True):
            result = self.value(value)
            results.append(self.op.like(result, like) if self.widen and like and tensor.is_float else result)
        return tuple(results)

    def value(self, name: str) -> str:
        """The name that a value of the form has in the body."""
        if name and not self.made.get(name):
            self.made[name] = self._leaf(name)
            for step in () if self.made[name] else self._needed(name):
                self._write(step)
        return self.made[name]

    def _needed(self, name: str) -> Iterator[Step]:
        """The steps that make a value and are not written yet, makers first."""
        wanted, steps = {name}, []
        for step in reversed(self.form.steps):
            if wanted.intersection(step.outputs) and not any(self.made.get(output) for output in step.outputs):
                steps.append(step)
                wanted.update(step.inputs)
        return reversed(steps)

    def _leaf(self, name: str) -> str:
        """An operator input, a constant or a size; "" for what a step makes."""
        if name in self.definition.inputs:
            return self.op.float32(name) if self.widen and self.definition.inputs[name].is_float else name
        if name in self.form.references:
            return str(self.given[self.form.references[name]])
        if name in self.form.constants:
            return self.op.array(self.form.constants[name])
        if name in self.form.sizes:
            return self._size(self.form.sizes[name])
        return ""

    def _size(self, size: Dim | Dims) -> str:
        if isinstance(size, tuple):
            parts = [self._dimension(dim, vector=True) for dim in size]
            return str(self.op.Concat(*parts, axis=0)) if len(parts) > 1 else parts[0]
        return self._dimension(size, vector=False)

    def _dimension(self, dim: Dim, *, vector: bool) -> str:
        """A size as an int64 tensor: with one element or without axes."""
        known = dim if isinstance(dim, int) else (self.sizes or {}).get(dim)
        if isinstance(known, int):
            return self.op.array(np.array([known] if vector else known, dtype=np.int64))
        for name, tensor in self.definition.inputs.items():
            if dim in tensor.dims and name not in self.definition.scalars and self.sizes is None:
                axis = np.array(tensor.dims.index(dim), dtype=np.int64)
                return str(self.op.Gather(self.op.Shape(name), self.op.array(axis.reshape(1) if vector else axis)))
        raise PatternError(f"the size {dim} is not known", "It must be a dimension of one of the inputs.")

    def _write(self, step: Step) -> None:
        inputs = [self.value(name) for name in step.inputs]
        special = getattr(self, f"_{step.op_type.lower()}", None)
        if special is None and step.op_type.startswith("Reduce"):
            special = self._reduce
        made = special(step, *inputs) if special else self._node(step, *inputs)
        for name, result in zip(step.outputs, made if isinstance(made, tuple) else (made,), strict=True):
            self.made[name] = result

    def _node(self, step: Step, *inputs: str) -> Any:
        """The node as it is."""
        if not onnx.defs.has(step.op_type, self.op.opset, ""):
            raise PatternError(
                f"{self.definition.name} needs {step.op_type}, which opset {self.op.opset} does not have",
                "Export the model with a later opset.",
            )
        known = onnx.defs.get_schema(step.op_type, self.op.opset, "").attributes
        attributes = {name: value for name, value in step.attributes.items() if name in known and value is not None}
        return self.op.node(step.op_type, *inputs, outputs=len(step.outputs), **attributes)

    def _layernormalization(self, step: Step, x: str, gamma: str | None = None, beta: str | None = None) -> str:
        return self.op.normalise(x, "layer", gamma, beta, self._attribute(step, "epsilon"))

    def _rmsnormalization(self, step: Step, x: str, gamma: str | None = None) -> str:
        return self.op.normalise(x, "rms", gamma, None, self._attribute(step, "epsilon"))

    def _attribute(self, step: Step, name: str) -> str:
        value = step.attributes[name]
        return str(self.given[value.attribute]) if isinstance(value, Reference) else self.op.number(value)

    def _gelu(self, step: Step, x: str) -> Any:
        op = self.op
        if step.attributes["approximate"] == "tanh":
            cube = op.Mul(op.Mul(op.Mul(x, x), x), 0.044715)
            gate = op.Tanh(op.Mul(op.Add(x, cube), math.sqrt(2 / math.pi)))
        else:
            gate = op.Erf(op.Mul(x, math.sqrt(0.5)))
        return op.Mul(op.Mul(x, 0.5), op.Add(gate, 1.0))

    def _swish(self, step: Step, x: str) -> Any:
        alpha = float(step.attributes["alpha"])
        return self.op.Mul(x, self.op.Sigmoid(x if alpha == 1.0 else self.op.Mul(x, alpha)))

    def _part(self, step: Step, x: str) -> Any:
        return self.op.Slice(x, *(self.op.ints(step.attributes[name]) for name in ("start", "end", "axis")))

    def _slice(self, step: Step, x: str) -> Any:
        names = ("starts", "ends", "axes", "steps")
        return self.op.Slice(x, *(self.op.ints(*step.attributes[name]) for name in names))

    def _squeeze(self, step: Step, x: str) -> Any:
        return self.op.node(step.op_type, x, self.op.ints(*step.attributes["axes"]))

    _unsqueeze = _squeeze

    def _constantofshape(self, step: Step, shape: str) -> Any:
        number, dtype = step.attributes["value"]
        return self.op.ConstantOfShape(shape, value=helper.make_tensor("value", dtype, [1], [number]))

    def _clip(self, step: Step, x: str) -> Any:
        dtype = helper.tensor_dtype_to_np_dtype(self.form.tensors[step.outputs[0]].dtype)
        bounds = [step.attributes.get(name) for name in ("min", "max")]
        return self.op.Clip(x, *("" if item is None else self.op.array(np.array(item, dtype=dtype)) for item in bounds))

    def _topk(self, step: Step, x: str) -> Any:
        k = self.op.ints(int(np.reshape(step.attributes["k"], -1)[0]))
        flags = {name: step.attributes[name] for name in ("axis", "largest", "sorted")}
        return self.op.TopK(x, k, outputs=2, **flags)

    def _reduce(self, step: Step, x: str) -> Any:
        axes, keepdims = step.attributes.get("axes"), int(step.attributes["keepdims"])
        if not axes:
            return self.op.node(step.op_type, x, keepdims=keepdims)
        if step.op_type == "ReduceSum" or self.op.opset >= _REDUCE_AXES_INPUT:
            return self.op.node(step.op_type, x, self.op.ints(*axes), keepdims=keepdims)
        return self.op.node(step.op_type, x, axes=list(axes), keepdims=keepdims)

    def _expand(self, step: Step, x: str) -> Any:
        return self.op.Expand(x, self._size(self.form.tensors[step.outputs[0]].dims))

    def _reshape(self, step: Step, x: str) -> Any:
        return self.op.Reshape(x, self._target(step))

    def _target(self, step: Step) -> str:
        """Where a Reshape leads: numbers where 0 (as before) and one -1 say it, else put together from sizes."""
        source, dims = step.inputs[0], self.form.tensors[step.outputs[0]].dims
        before = self.form.tensors.get(source) or self.definition.inputs.get(source)
        have = before.dims if before else ()
        plain = [
            dim if isinstance(dim, int) else 0 if axis < len(have) and have[axis] == dim else -1
            for axis, dim in enumerate(dims)
        ]
        if plain.count(-1) <= 1:
            return self.op.ints(*plain)
        known = set(_symbols(self.definition))
        parts = [
            self._dimension(dim, vector=True) if isinstance(dim, int) or dim in known else self.op.ints(-1)
            for dim in dims
        ]
        return str(self.op.Concat(*parts, axis=0))
