"""A fusion learned from an example, as data: the operator, and the example's canonical form in one or more ways of writing it.

`passes/fuse/read_form.py` reads a `Form` off an exported example. `learned_pattern.py` asks for the form's nodes and
`learned_body.py` writes the same nodes, so whatever the pattern matches is what the body computes: attributes, constants, targets
of Reshape included.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, numpy_helper

from onnx_fuse.patterns.language.interface import View
from onnx_fuse.patterns.language.operator import DOMAIN, type_name

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


@dataclass(frozen=True)
class Tensor:
    """TensorProto.DataType and shape of a value; a dimension is its size, or the name of one that may vary."""

    dtype: int
    dims: Dims

    def __str__(self) -> str:
        return f"{type_name(self.dtype).lower()}[{', '.join(map(str, self.dims))}]"

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

    def number(self, name: str) -> float | None:
        """The number that a constant with one element fixes; None for anything else."""
        array = self.constants.get(name)
        fixed = array is not None and array.size == 1 and name not in self.references
        return float(array.reshape(-1)[0]) if fixed and array is not None else None


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

    @property
    def example_attributes(self) -> dict[str, float | str]:
        """All attributes of the operator, as in the example."""
        kinds = [form.masked_row for form in self.forms]
        return {**self.attributes, **({"masked_row": kinds[0]} if len(set(kinds)) > 1 else {})}

    @property
    def symbols(self) -> tuple[str, ...]:
        """The named dimensions of the inputs."""
        dims = (dim for tensor in self.inputs.values() for dim in tensor.dims)
        return tuple(dict.fromkeys(dim for dim in dims if isinstance(dim, str)))


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


def filling(tensor: Any) -> list[float | int]:
    """What a ConstantOfShape fills with: [number, TensorProto.DataType]."""
    if tensor is None:
        return [0.0, int(TensorProto.FLOAT)]
    return [numpy_helper.to_array(tensor).item(), int(tensor.data_type)]
