"""The operator of a learned fusion, with the body that computes a form of its example."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import onnx
from onnx import helper

from onnx_fuse.errors import PatternError
from onnx_fuse.patterns.language.body import Body
from onnx_fuse.patterns.language.learned import Definition, Dim, Dims, Form, Reference, Step
from onnx_fuse.patterns.language.operator import FLOATS, FusedOp

_ALLOWZERO = 14  # the opset from which a Reshape can be told that a size is 0
_REDUCE_AXES_INPUT = 18  # the opset from which the axes of a reduction are an input


def operator_of(definition: Definition, *, widen: bool = True) -> FusedOp:
    """The fused operator. Its body computes in float32 and casts at the end; without `widen` it is for float32 alone."""

    def body(op: Body, **values: Any) -> tuple[str, ...]:
        wanted = values.pop("masked_row", definition.forms[0].masked_row)
        form = next(form for form in definition.forms if form.masked_row == wanted)
        return FormWriter(definition, form, op, values, widen).outputs()

    return FusedOp(
        name=definition.name,
        inputs=tuple(definition.inputs),
        outputs=tuple(definition.outputs),
        attributes=tuple(definition.example_attributes),
        body=body,
        domain=definition.domain,
        plugin_version=definition.plugin_version,
        plugin_namespace=definition.plugin_namespace,
        types=FLOATS if next(iter(definition.outputs.values())).is_float else None,
    )


class FormWriter:
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
        """To numbers where 0 (as before) or one -1 says it, else to sizes put together; not to both: beside a 0, a -1 is open."""
        source, dims = step.inputs[0], self.form.tensors[step.outputs[0]].dims
        before = self.form.tensors.get(source) or self.definition.inputs.get(source)
        have = before.dims if before else ()
        plain = [
            dim if isinstance(dim, int) else 0 if axis < len(have) and have[axis] == dim else -1
            for axis, dim in enumerate(dims)
        ]
        if not {0, -1} <= set(plain) and plain.count(-1) <= 1:
            return self.op.Reshape(x, self.op.ints(*plain))
        known = set(self.definition.symbols)
        parts = [
            self._dimension(dim, vector=True) if isinstance(dim, int) or dim in known else self.op.ints(-1)
            for dim in dims
        ]
        is_whole = all(isinstance(dim, int) or dim in known for dim in dims)
        whole = {"allowzero": 1} if is_whole and self.op.opset >= _ALLOWZERO else {}
        return self.op.Reshape(x, self.op.Concat(*parts, axis=0), **whole)
