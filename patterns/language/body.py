"""Writes the body of a fused operator: standard ONNX nodes, in the form that the model's opset wants.

A body is the operator's definition: what ONNX Runtime executes, what kernels are compared with, and what TensorRT gets where no
plugin is loaded. Values are names; Python numbers become float32 constants.

ONNX Runtime inlines bodies before it optimises a graph. One body serves nodes of all sizes and attributes and is still as fast as
one written for each, since it is in the forms that ONNX Runtime folds and fuses: `normalise` becomes one node, and what depends on
known sizes alone (`open_shape`) a constant.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import onnx
from onnx import AttributeProto, NodeProto, TensorProto, helper, numpy_helper

_KIND = {"f": AttributeProto.FLOAT, "i": AttributeProto.INT, "fs": AttributeProto.FLOATS, "is": AttributeProto.INTS}

Operand = str | float | int

CAST_LIKE_SINCE = 15
"""The opset that brought CastLike; before it, a body must be told the type it is for."""
_SHAPE_RANGE_SINCE = 15
_LAYER_NORM_SINCE, _RMS_NORM_SINCE = 17, 23


class Body:
    """Collects the nodes of a function body.

    Args:
        opset: version of the ONNX operators to write.
        dtype: TensorProto.DataType of the operator's type T; it is written into the body only where CastLike (opset 15) is missing.
        reserved: names that are inputs or outputs of the function.
    """

    def __init__(self, opset: int, dtype: int, reserved: Sequence[str]) -> None:
        self.opset = opset
        self.dtype = dtype
        self.nodes: list[NodeProto] = []
        self._names = set(reserved)
        self._constants: dict[Any, str] = {}

    def __getattr__(self, op_type: str) -> Callable[..., Any]:
        if op_type.startswith("_"):
            raise AttributeError(op_type)

        def build(*inputs: Operand, outputs: int = 1, **attributes: Any) -> Any:
            return self.node(op_type, *inputs, outputs=outputs, **attributes)

        return build

    def node(self, op_type: str, *inputs: Operand, outputs: int = 1, **attributes: Any) -> Any:
        """Adds a node; returns the name of its output, or a tuple of names."""
        names = [item if isinstance(item, str) else self.number(item) for item in inputs]
        made = [self._fresh(op_type) for _ in range(outputs)]
        node = helper.make_node(op_type, names, made)
        for key, value in attributes.items():
            node.attribute.append(value if isinstance(value, AttributeProto) else helper.make_attribute(key, value))
        self.nodes.append(node)
        return made[0] if outputs == 1 else tuple(made)

    def number(self, value: float) -> str:
        """A float32 constant without axes."""
        return self.array(np.array(value, dtype=np.float32))

    def ints(self, *values: int) -> str:
        """An int64 constant with one axis."""
        return self.array(np.array(values, dtype=np.int64))

    def attribute(self, name: str, value: float | int | Sequence[float] | Sequence[int]) -> str:
        """The operator's attribute as a constant, by reference: one body serves every value of it."""
        kind = attribute_kind(value)
        key = ("attribute", name, _KIND[kind])
        if key not in self._constants:
            output = self._fresh(name)
            node = helper.make_node("Constant", [], [output])
            field = {"f": "value_float", "i": "value_int", "fs": "value_floats", "is": "value_ints"}[kind]
            node.attribute.append(AttributeProto(name=field, type=_KIND[kind], ref_attr_name=name))
            self.nodes.append(node)
            self._constants[key] = output
        return self._constants[key]

    def float32(self, value: str) -> str:
        """The value as float32."""
        return str(self.node("Cast", value, to=TensorProto.FLOAT))

    def like(self, value: str, other: str) -> str:
        """The value in the type of `other`, which is the operator's T."""
        if self.opset >= CAST_LIKE_SINCE:
            return str(self.node("CastLike", value, other))
        return str(self.node("Cast", value, to=self.dtype or TensorProto.FLOAT))

    def dims(self, value: str, start: int, end: int) -> str:
        """Some dimensions of a value, from `start` up to `end`."""
        if self.opset >= _SHAPE_RANGE_SINCE:
            return str(self.node("Shape", value, start=start, end=end))
        return str(self.node("Slice", self.node("Shape", value), self.ints(start), self.ints(end), self.ints(0)))

    def open_shape(self, value: str, *axes: int) -> str:
        """The shape of a value, with 0 at these axes: a target of Reshape, which takes such sizes over.

        It is a constant in ONNX Runtime where the other sizes are known, however little is known of the batch: the shape of a
        value is folded only where all of it is known, and that of a selection of nothing is.
        """
        return str(self.node("Shape", self._nothing_of(value, axes)))

    def size(self, value: str, axis: int, *others: int) -> str:
        """The size of an axis, [1]; a constant in ONNX Runtime where all sizes but those of the other axes are known."""
        return self.dims(self._nothing_of(value, others), axis, axis + 1)

    def _nothing_of(self, value: str, axes: Sequence[int]) -> str:
        """The value with no elements along these axes."""
        for axis in axes:
            value = self.node("Gather", value, self.ints(), axis=axis)
        return value

    def last_size(self, value: str) -> str:
        """The size of the last axis, [1]; a constant in ONNX Runtime where it is known."""
        return self.size(self.node("Flatten", value, axis=-1), 1, 0)

    def reduce_mean(self, value: str, axis: int = -1) -> str:
        """Mean over one axis, which is kept."""
        return self._reduce("ReduceMean", value, axis)

    def reduce_max(self, value: str, axis: int = -1) -> str:
        """Maximum over one axis, which is kept."""
        return self._reduce("ReduceMax", value, axis)

    def _reduce(self, op_type: str, value: str, axis: int) -> str:
        if self.opset >= 18:
            return str(self.node(op_type, value, self.ints(axis), keepdims=1))
        return str(self.node(op_type, value, axes=[axis], keepdims=1))

    def normalise(self, value: str, norm: str, gamma: str | None, beta: str | None, epsilon: Operand) -> str:
        """LayerNorm ("layer"), RMSNorm ("rms", without a shift) or nothing ("none") over the last axis, in float32."""
        if norm == "none":
            return value
        # Both operators want a scale, and so does ONNX Runtime, which fuses the parts where it sees a scale and a shift.
        scale = self._vector(value, 1.0) if gamma is None else self.float32(gamma)
        since = _LAYER_NORM_SINCE if norm == "layer" else _RMS_NORM_SINCE
        known = self.reference("epsilon", epsilon)
        if self.opset >= since and known is not None:
            if norm == "rms":
                return str(self.node("RMSNormalization", value, scale, axis=-1, epsilon=known))
            shift = [] if beta is None else [self.float32(beta)]
            return str(self.node("LayerNormalization", value, scale, *shift, axis=-1, epsilon=known))
        centred = self.node("Sub", value, self.reduce_mean(value)) if norm == "layer" else value
        variance = self.reduce_mean(str(self.node("Pow", centred, 2.0)))
        result = self.node("Div", centred, self.node("Sqrt", self.node("Add", variance, epsilon)))
        result = self.node("Mul", result, scale)
        if norm == "layer":
            result = self.node("Add", result, self._vector(value, 0.0) if beta is None else self.float32(beta))
        return str(result)

    def _vector(self, value: str, number: float) -> str:
        """As many times the number as the last axis is long."""
        return str(self.node("Expand", number, self.last_size(value)))

    def reference(self, name: str, value: Operand) -> AttributeProto | None:
        """A number, or an attribute of the operator, as the attribute of a node; None for a value that is computed."""
        if not isinstance(value, str):
            return helper.make_attribute(name, value)
        for key, constant in self._constants.items():
            if constant == value and key[0] == "attribute":
                return AttributeProto(name=name, type=key[2], ref_attr_name=key[1])
            if constant == value:
                return helper.make_attribute(name, np.frombuffer(key[2], key[0])[0].item())
        return None

    def array(self, array: np.ndarray) -> str:
        """A constant of any type and shape."""
        key = (array.dtype.str, array.shape, array.tobytes())
        if key not in self._constants:
            output = self._fresh("constant")
            self.nodes.append(helper.make_node("Constant", [], [output], value=numpy_helper.from_array(array)))
            self._constants[key] = output
        return self._constants[key]

    def _fresh(self, wanted: str) -> str:
        number = len(self.nodes)
        name = f"{wanted.lower()}_{number}"
        while name in self._names:
            number += 1
            name = f"{wanted.lower()}_{number}"
        self._names.add(name)
        return name


def attribute_kind(value: Any) -> str:
    """Which of onnx's kinds a numeric attribute is of: "i", "f", "is" or "fs"."""
    if isinstance(value, (list, tuple)):
        return "is" if all(isinstance(item, int) for item in value) else "fs"
    return "i" if isinstance(value, int) else "f"


def rename_outputs(nodes: Sequence[NodeProto], renames: dict[str, str]) -> list[NodeProto]:
    """The nodes with some of their values renamed (a function's outputs have fixed names)."""
    renamed = []
    for node in nodes:
        copy = onnx.NodeProto()
        copy.CopyFrom(node)
        copy.input[:] = [renames.get(name, name) for name in node.input]
        copy.output[:] = [renames.get(name, name) for name in node.output]
        renamed.append(copy)
    return renamed
