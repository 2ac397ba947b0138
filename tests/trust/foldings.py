"""Single nodes on constants, drawn at random: what the view folds them to, and what ONNX Runtime makes of them."""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import Any

import ml_dtypes
import numpy as np
import onnx
from onnx import ModelProto, TensorProto, helper, numpy_helper

from onnx_fuse.passes.graph.index import Graph
from onnx_fuse.passes.view.folding import FOLDED
from onnx_fuse.passes.view.view import View
from tests import helpers
from tests.helpers import Array

OPERATORS = sorted(FOLDED)
_FLOATS = (np.float32, np.float64, np.float16, ml_dtypes.bfloat16)
_INTEGERS = (np.int64, np.int32, np.int8, np.uint8, np.int16, np.uint16, np.uint32, np.uint64)
_COMPARISONS = frozenset(["Equal", "Less", "LessOrEqual", "Greater", "GreaterOrEqual"])
_BINARY = _COMPARISONS | frozenset(["Add", "Sub", "Mul", "Div", "Mod", "Min", "Max", "Pow", "Sum", "Mean"])
_LOGIC = frozenset(["And", "Or", "Xor"])
_FLOAT_UNARY = "Sqrt Reciprocal Exp Log Sin Cos Erf Tanh Sigmoid Softplus Softmax Floor Ceil Round IsNaN IsInf"
_FLOAT_ONLY = frozenset(_FLOAT_UNARY.split())
_CASTS = (*_FLOATS[:3], *_INTEGERS, np.bool_)


@dataclass(frozen=True)
class Fold:
    """One node on constants.

    Attributes:
        op_type: the operator.
        number: which of its draws.
    """

    op_type: str
    number: int

    def model(self) -> ModelProto:
        """The node alone, its inputs stored in the model."""
        chance = random.Random(f"{self.op_type} {self.number}")
        opset = chance.choice((13, 17, 18, 21))
        inputs, attributes, outputs = _Draw(chance, opset).node(self.op_type)
        weights = [numpy_helper.from_array(array, f"c{place}") for place, array in enumerate(inputs)]
        names = [f"y{place}" for place in range(outputs)]
        node = helper.make_node(self.op_type, [tensor.name for tensor in weights], names, **attributes)
        graph = helper.make_graph([node], "fold", [], [onnx.ValueInfoProto(name=name) for name in names], weights)
        return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)


def folded(model: ModelProto) -> dict[str, Array]:
    """What the view folds the outputs to; nothing for what it leaves."""
    view = View(Graph(model.graph, model))
    found = {output.name: view.constant(output.name) for output in model.graph.output}
    return {name: array for name, array in found.items() if array is not None}


def problem(model: ModelProto) -> str | None:
    """How a folded output differs from ONNX Runtime's, to the bit; None where none does, or ONNX Runtime has no such node."""
    found = folded(model)
    if not found:
        return None
    try:
        wanted = dict(zip(found, _run(model, list(found)), strict=True))
    except Exception:
        return None
    for name, have in found.items():
        want = wanted[name]
        if have.dtype != want.dtype or have.shape != want.shape:
            return f"{name} is {have.dtype}{list(have.shape)}, ONNX Runtime's is {want.dtype}{list(want.shape)}"
        same = have == want
        if have.dtype.kind in "fV":
            same |= np.isnan(have) & np.isnan(want)
        if not np.all(same):
            return f"{name} is {have.reshape(-1)[:4]}, ONNX Runtime's is {want.reshape(-1)[:4]}"
    return None


def _run(model: ModelProto, names: list[str]) -> list[Array]:
    """The outputs in ONNX Runtime; bfloat16 comes out as float32, and goes back."""
    wide = helpers.copied(model)
    view = View(Graph(model.graph, model))
    narrow = [view.dtype(name) == TensorProto.BFLOAT16 for name in names]
    del wide.graph.output[:]
    for name, is_narrow in zip(names, narrow, strict=True):
        if is_narrow:
            wide.graph.node.append(helper.make_node("Cast", [name], [f"{name}_wide"], to=TensorProto.FLOAT))
        wide.graph.output.append(onnx.ValueInfoProto(name=f"{name}_wide" if is_narrow else name))
    arrays = helpers.session(wide).run(None, {})
    return [
        array.astype(ml_dtypes.bfloat16) if is_narrow else array
        for array, is_narrow in zip(arrays, narrow, strict=True)
    ]


class _Draw:
    """Operands and attributes of one node."""

    def __init__(self, chance: random.Random, opset: int) -> None:
        self.chance, self.opset = chance, opset

    def shape(self, most: int = 3) -> tuple[int, ...]:
        return tuple(self.chance.choice((1, 1, 2, 3, 0)) for _ in range(self.chance.randint(0, most)))

    def array(self, dtype: Any, shape: tuple[int, ...] | None = None) -> Array:
        shape = self.shape() if shape is None else shape
        kind = np.dtype(dtype)
        numbers: list[Any] = [0, 1, 2, 3, 5, 7]
        if kind.kind in "iu":
            limits = np.iinfo(kind)
            numbers += [limits.min, limits.max, limits.max // 2, limits.max // 3 + 1]
            numbers += [number for number in (-1, -7, 100, 2**31, 2**32 + 5) if limits.min <= number <= limits.max]
        elif kind.kind == "b":
            numbers = [False, True]
        else:
            numbers += [-1, -0.0, 0.1, -0.5, 1.5, 2.5, 1e-8, 3e4, -3e4, 1e30, np.inf, -np.inf, np.nan]
        count = int(np.prod(shape))
        with np.errstate(over="ignore", invalid="ignore"):
            return np.array([self.chance.choice(numbers) for _ in range(count)]).astype(kind).reshape(shape)

    def any_type(self) -> Any:
        return self.chance.choice((*_FLOATS, np.int64, np.int32, np.bool_, *_INTEGERS[2:4]))

    def number(self) -> Any:
        return self.chance.choice((np.float32, *_FLOATS) if self.chance.random() < 0.5 else (np.int64, *_INTEGERS))

    def like(self, array: Array) -> Array:
        """One that broadcasts with an array."""
        shape = [size if self.chance.random() < 0.6 else 1 for size in array.shape]
        return self.array(array.dtype, tuple(shape[self.chance.randint(0, len(shape)) :]))

    def axis(self, array: Array) -> int:
        return self.chance.randrange(-array.ndim, array.ndim) if array.ndim else 0

    def ints(self, *numbers: int) -> Array:
        return np.array(numbers, np.int64)

    def node(self, op: str) -> tuple[list[Array], dict[str, Any], int]:
        """(inputs, attributes, number of outputs)."""
        if op in _LOGIC:
            first = self.array(np.bool_)
            return [first, self.like(first)], {}, 1
        if op in _BINARY:
            first = self.array(self.number())
            return [first, self.like(first)], {"fmod": self.chance.randint(0, 1)} if op == "Mod" else {}, 1
        if op in _FLOAT_ONLY:
            return [self.array(self.chance.choice(_FLOATS))], {}, 1
        made = getattr(self, f"_{op.lower()}", None)
        if made is not None:
            inputs, attributes = made()
            return inputs, attributes, len(attributes.pop("parts", [0]))
        if op.startswith(("Reduce", "Arg")):
            return (*self._reduce(op), 1)
        return [self.array(self.any_type() if op in ("Identity", "Shape", "Size", "Not") else self.number())], {}, 1

    def _reduce(self, op: str) -> tuple[list[Array], dict[str, Any]]:
        array = self.array(self.number())
        attributes: dict[str, Any] = {"keepdims": self.chance.randint(0, 1)}
        if op.startswith("Arg"):
            return [array], {**attributes, "axis": self.axis(array)}
        axes = [self.axis(array)] if array.ndim and self.chance.random() < 0.7 else []
        if op == "ReduceSum" or self.opset >= 18:
            attributes["noop_with_empty_axes"] = self.chance.randint(0, 1)
            return [array, *([self.ints(*axes)] if axes else [])], attributes
        return [array], {**attributes, **({"axes": axes} if axes else {})}

    def _not(self) -> Any:
        return [self.array(np.bool_)], {}

    def _cast(self) -> Any:
        array = self.array(self.any_type())
        return [array], {
            "to": int(helper.np_dtype_to_tensor_dtype(np.dtype(self.chance.choice((*_CASTS, ml_dtypes.bfloat16)))))
        }

    def _castlike(self) -> Any:
        return [self.array(self.any_type()), self.array(self.chance.choice(_CASTS), (1,))], {}

    def _clip(self) -> Any:
        array = self.array(self.number())
        return [array, self.array(array.dtype, ()), self.array(array.dtype, ())], {}

    def _where(self) -> Any:
        array = self.array(self.any_type())
        return [self.like(array).astype(np.bool_), array, self.like(array)], {}

    def _cumsum(self) -> Any:
        array = self.array(self.chance.choice((np.float32, np.float64, np.int32, np.int64)), (2, 3))
        return [array, np.array(self.axis(array))], {
            "exclusive": self.chance.randint(0, 1),
            "reverse": self.chance.randint(0, 1),
        }

    def _reshape(self) -> Any:
        array = self.array(self.any_type())
        return [
            array,
            self.chance.choice((self.ints(-1), self.ints(1, -1), self.ints(*array.shape), self.ints(0, -1))),
        ], {}

    def _transpose(self) -> Any:
        array = self.array(self.any_type())
        return [array], {"perm": self.chance.sample(range(array.ndim), array.ndim)} if array.ndim else {}

    def _squeeze(self) -> Any:
        array = self.array(self.any_type(), (1, 2, 1))
        return [array, *([self.ints(self.chance.choice((0, 2, -1)))] if self.chance.random() < 0.7 else [])], {}

    def _unsqueeze(self) -> Any:
        array = self.array(self.any_type(), self.shape(2))
        return [array, self.ints(self.chance.choice((0, -1)))], {}

    def _flatten(self) -> Any:
        array = self.array(self.any_type())
        return [array], {"axis": self.axis(array)}

    def _concat(self) -> Any:
        array = self.array(self.any_type(), self.chance.choice(((2,), (2, 3), (1, 2, 2))))
        return [array, self.array(array.dtype, array.shape)], {"axis": self.axis(array)}

    def _split(self) -> Any:
        return [self.array(self.any_type(), (4, 2)), self.ints(1, 3)], {"axis": 0, "parts": [0, 1]}

    def _slice(self) -> Any:
        array = self.array(self.any_type(), (self.chance.choice((1, 4)), 3))
        bounds = (0, 1, -1, -5, 9, 2**31, -(2**63), 2**63 - 1)
        start, end = (self.chance.choice(bounds) for _ in range(2))
        step = self.chance.choice((1, 1, 2, -1, -2))
        if self.chance.random() < 0.5:
            array = array.reshape(-1)
        return [array, self.ints(start), self.ints(end), self.ints(0), self.ints(step)], {}

    def _expand(self) -> Any:
        array = self.array(self.any_type())
        return [array, self.ints(*self.chance.choice(((2,), (2, 1, 3), (1, 1), (0, 1))))], {}

    def _tile(self) -> Any:
        array = self.array(self.any_type())
        return [array, self.ints(*(self.chance.choice((0, 1, 2)) for _ in array.shape))], {}

    def _pad(self) -> Any:
        array = self.array(self.any_type(), (3, 2))
        pads = [self.chance.choice((0, 1, 2, -1)) for _ in range(4)]
        return [array, self.ints(*pads)], {"mode": self.chance.choice(("constant", "edge", "reflect"))}

    def _trilu(self) -> Any:
        array = self.array(self.any_type(), (3, 4))
        return [array, np.array(self.chance.choice((0, 1, -1, 9, -9)))], {"upper": self.chance.randint(0, 1)}

    def _gather(self) -> Any:
        array = self.array(self.any_type(), self.chance.choice(((3,), (3, 2))))
        return [
            array,
            self.chance.choice((np.array(1), self.ints(0, -1), self.ints(2, 7), self.ints(0, 2)[:, None])),
        ], {"axis": 0}

    def _gatherelements(self) -> Any:
        return [self.array(self.any_type(), (3, 2)), np.array([[0, 1], [-1, 2]])], {"axis": self.chance.choice((0, -2))}

    def _gathernd(self) -> Any:
        return [self.array(self.any_type(), (3, 2)), np.array([[0, 1], [self.chance.choice((-1, 2, 9)), 0]])], {}

    def _scatterelements(self) -> Any:
        array = self.array(self.any_type(), (3, 2))
        return [array, np.array([[0, 1]]), self.array(array.dtype, (1, 2))], {"axis": 0}

    def _scatternd(self) -> Any:
        array = self.array(self.any_type(), (3, 2))
        return [array, np.array([[0], [self.chance.choice((2, 9))]]), self.array(array.dtype, (2, 2))], {}

    def _constantofshape(self) -> Any:
        value = numpy_helper.from_array(self.array(self.any_type(), (1,)))
        return [self.ints(*self.chance.choice(((), (0,), (3,), (2, 3))))], {"value": value}

    def _range(self) -> Any:
        dtype = self.chance.choice((np.int64, np.int32, np.float32))
        numbers = (self.chance.choice((0, 3)), self.chance.choice((5, 9, 0, 10**11)), self.chance.choice((1, 1, 2, -1)))
        return [np.array(number).astype(dtype) for number in numbers], {}

    def _matmul(self) -> Any:
        dtype = self.chance.choice((*_FLOATS, np.int64, np.int32))
        return [self.array(dtype, (2, 3)), self.array(dtype, self.chance.choice(((3, 2), (1, 3, 2), (3,))))], {}

    def _gemm(self) -> Any:
        dtype = self.chance.choice(_FLOATS)
        return [self.array(dtype, (2, 3)), self.array(dtype, (2, 3)), self.array(dtype, (2,))], {"transB": 1}
