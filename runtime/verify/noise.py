"""A second hearing for a value in doubt: what does rounding do to it, and does it read what is masked out?

The noise is measured, not estimated. A twin of the original has the terms of its sums multiplied by random numbers next to 1, so
that each run rounds in another way, and its outputs are apart by what rounding does to them: where large terms cancel, by much.
(Monte Carlo arithmetic: D. S. Parker, "Monte Carlo Arithmetic: exploiting randomness in floating-point arithmetic", 1997.)
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper

from onnx_fuse.errors import OnnxFuseError
from onnx_fuse.runtime.onnxruntime import sessions
from onnx_fuse.runtime.onnxruntime.sessions import Deadline
from onnx_fuse.runtime.verify.precision import reads
from onnx_fuse.runtime.verify.random_inputs import REACH, Array, InputSpec
from onnx_fuse.runtime.verify.reference import Evidence, as_arrays

_SAMPLES = 8
# From here on down a number stands for what is masked out.
_MASKS = -1e3
_STEP = {"tensor(float)": 2.0**-23, "tensor(float16)": 2.0**-11}
_SHAKEN = "__shaken"
# Sums, and what holds sums: each of the values they read is a term.
# fmt: off
_SUMS = frozenset({
    "MatMul", "Gemm", "Conv", "ConvTranspose", "Einsum", "ReduceSum", "ReduceMean", "ReduceL1", "ReduceL2",
    "ReduceSumSquare", "ReduceLogSumExp", "CumSum", "Sum", "Mean", "Softmax", "LogSoftmax", "LayerNormalization",
    "RMSNormalization", "SimplifiedLayerNormalization", "SkipLayerNormalization", "GroupNormalization",
    "InstanceNormalization", "BatchNormalization", "AveragePool", "GlobalAveragePool", "LSTM", "GRU", "RNN",
    "Attention", "MultiHeadAttention",
})
# fmt: on
# What squares what it is given, out of sight.
_SQUARES = frozenset(
    {
        "LayerNormalization",
        "RMSNormalization",
        "SimplifiedLayerNormalization",
        "SkipLayerNormalization",
        "SkipSimplifiedLayerNormalization",
        "GroupNormalization",
        "InstanceNormalization",
        "LpNormalization",
        "ReduceL2",
        "ReduceSumSquare",
    }
)
# What these read is a term where it was computed: what is given, or only moved, is exact.
_SUMS_OF_TWO = frozenset({"Add", "Sub"})
# These move or pick values, which rounds nothing.
# fmt: off
_MOVES = frozenset({
    "Cast", "CastLike", "Identity", "Constant", "ConstantOfShape", "Gather", "GatherElements", "GatherND", "Slice",
    "Split", "Concat", "Reshape", "Transpose", "Squeeze", "Unsqueeze", "Flatten", "Expand", "Tile", "Pad", "Where",
    "Clip", "Max", "Min", "Relu", "Neg", "Abs", "Floor", "Ceil", "Round", "Sign", "Trilu", "ScatterND",
    "ScatterElements",
})
# fmt: on


@dataclass
class Hearing:
    """The original once more, asked about single values of one case.

    Attributes:
        model, base_dir, specs, inner: the original, the folder of its data, its inputs, and the values inside it to give.
        deadline: when to stop.
    """

    model: ModelProto
    base_dir: str | Path | None
    specs: Sequence[InputSpec]
    inner: Sequence[str]
    deadline: Deadline | None = None
    _sessions: dict[str, Any] = field(default_factory=dict)
    _heard: tuple[Any, dict[str, dict[str, Array] | None]] = (None, {})

    def noise(self, evidence: Evidence, name: str) -> Array | None:
        """How far rounding moves each element of a value, as the largest of a few samples; None where that cannot be told."""
        moved = self._once(evidence, "noise", self._noise)
        return None if moved is None else moved.get(name)

    def unread(self, evidence: Evidence, name: str, expected: Array, got: Array) -> Array | None:
        """Places of a value that the original spoils with NaN or infinity, and that depend on nothing that is not masked out.

        Such a place is finite in the fused model, and the original gives the same number there whatever finite numbers stand in the
        inputs in place of NaN, infinities and numbers whose squares overflow: it only multiplies them by a mask of 0.

        Returns:
            True for such places, if they are all the places in which the two differ in kind; else None.
        """
        if expected.dtype.kind != "f" or expected.shape != got.shape:
            return None
        spoiled = ~np.isfinite(expected) & np.isfinite(got)
        first = self._once(evidence, "filled with 0", lambda one: self._filled(one, 0.0))
        second = self._once(evidence, "filled with numbers", lambda one: self._filled(one, 1.0))
        if not spoiled.any() or first is None or second is None or name not in first or name not in second:
            return None
        filled, other = first[name], second[name]
        if not filled.shape == other.shape == got.shape:
            return None
        scale = float(np.abs(filled[np.isfinite(filled)]).max(initial=0.0)) or 1.0
        step = 1e-4 * scale
        with np.errstate(invalid="ignore"):
            same = np.abs(filled[spoiled] - other[spoiled]) <= step
            same &= np.abs(filled[spoiled] - got[spoiled]) <= step
        return spoiled if bool(same.all()) else None

    def within_reach(self, evidence: Evidence) -> tuple[Evidence, int] | None:
        """The case with those magnitudes alone that the original can take inside, and how many of them those are.

        A model that is infinite inside may come out finite: what it divides by infinity is 0. That is no result to hold a fused
        model to, which may compute in a wider type. Nor is what a model makes of scores that are below the number that it masks
        with: there the masked ones win. None where no magnitude is left, or where the model can take all of them.

        Raises:
            OnnxFuseError: the original does not run; the deadline passed.
        """
        redraw = evidence.redraw
        if redraw is None:
            return None
        always = self._overflowing(redraw([0.0]))
        left = [part for part in REACH if self._overflowing(redraw([part])) <= always]
        if not 0 < len(left) < len(REACH):
            return None
        inputs = redraw(left)
        outputs = sessions.run(self._plain(), inputs, self.deadline)
        inner = as_arrays({name: outputs.pop(name) for name in self.inner})
        return replace(evidence, inputs=inputs, expected=as_arrays(outputs), inner=inner, redraw=None), len(left)

    def _overflowing(self, inputs: dict[str, Array]) -> set[str]:
        """Values of the main graph that are not finite, whose squares are summed and are not, or that are below their mask's."""
        nodes = self.model.graph.node
        session = self._sessions.get("whole")
        if session is None:
            given = {value.name for value in self.model.graph.output}
            names = [name for node in nodes for name in node.output if name and name not in given]
            session = sessions.session(self.model, base_dir=self.base_dir, extra_outputs=names)
            self._sessions["whole"] = session
        made = {**inputs, **as_arrays(sessions.run(session, inputs, self.deadline))}
        found = {name for name, array in made.items() if array.dtype.kind == "f" and not np.isfinite(array).all()}
        for node in nodes:
            array = made.get(node.input[0]) if node.op_type in _SQUARES else None
            if array is not None and array.dtype.kind == "f" and array.size:
                with np.errstate(over="ignore"):
                    total = float(np.abs(array).max().astype(np.float64)) ** 2 * (array.size / array.shape[0])
                if total > float(np.finfo(array.dtype).max):
                    found.add(node.output[0])
            if node.op_type == "Where" and self._below_mask(node, made):
                found.add(node.output[0])
        return found

    def _below_mask(self, node: NodeProto, made: dict[str, Array]) -> bool:
        """Whether a number that stands for what is masked out is not the lowest of the values beside it."""
        for low, beside in (node.input[1:], node.input[:0:-1]):
            number = made[low] if low in made else self._numbers.get(low)
            if number is None or number.size != 1 or beside not in made or number.dtype.kind != "f":
                continue
            if number.item() <= _MASKS and made[beside].size and made[beside].min() < number.item():
                return True
        return False

    @cached_property
    def _numbers(self) -> dict[str, Array]:
        """The constants of one number."""
        inside = [item for item in self.model.graph.initializer if item.data_location != TensorProto.EXTERNAL]
        return {item.name: numpy_helper.to_array(item) for item in inside if math.prod(item.dims) == 1}

    def _plain(self) -> Any:
        if "plain" not in self._sessions:
            session = sessions.session(self.model, base_dir=self.base_dir, extra_outputs=self.inner)
            self._sessions["plain"] = session
        return self._sessions["plain"]

    def _once(self, evidence: Evidence, what: str, work: Any) -> dict[str, Array] | None:
        """What `work` gives for a case, worked out once; None if it fails or the time is up."""
        if self._heard[0] is not evidence:
            self._heard = (evidence, {})
        answers = self._heard[1]
        if what not in answers:
            try:
                answers[what] = work(evidence)
            except OnnxFuseError:  # the original ran: what a twin of it cannot do is no fault of the fused model
                answers[what] = None
        return answers[what]

    def _noise(self, evidence: Evidence) -> dict[str, Array]:
        session = self._sessions.get("shaken")
        if session is None:
            names = self.inner
            session = sessions.session(
                _shaken(self.model, self.base_dir, self.specs), base_dir=self.base_dir, extra_outputs=names
            )
            self._sessions["shaken"] = session
        moved: dict[str, Array] = {}
        arrays = {**evidence.inner, **evidence.expected}
        for _ in range(_SAMPLES):
            for name, sample in as_arrays(sessions.run(session, evidence.inputs, self.deadline)).items():
                expected = arrays.get(name)
                if expected is None or expected.dtype.kind != "f" or sample.shape != expected.shape:
                    continue
                with np.errstate(invalid="ignore"):
                    distance = np.abs(sample.astype(np.float64) - expected.astype(np.float64))
                moved[name] = distance if name not in moved else np.fmax(moved[name], distance)
        return moved

    def _filled(self, evidence: Evidence, scale: float) -> dict[str, Array]:
        session = self._plain()
        random = np.random.default_rng(0)
        inputs = {}
        for name, array in evidence.inputs.items():
            if array.dtype.kind == "f":
                with np.errstate(invalid="ignore"):
                    usable = np.abs(array) < np.sqrt(float(np.finfo(array.dtype).max))
                array = np.where(usable, array, scale * random.standard_normal(array.shape)).astype(array.dtype)
            inputs[name] = array
        return as_arrays(sessions.run(session, inputs, self.deadline))


def _shaken(model: ModelProto, base_dir: str | Path | None, specs: Sequence[InputSpec]) -> ModelProto:
    """The twin: terms of sums that are computed from floating-point data are multiplied by numbers next to 1.

    What is computed from ids, lengths and masks alone is left as it is: it is exact, and a step in it would be another index.
    """
    terms = _terms(model, specs)
    types = _types(model, base_dir, terms)
    twin = ModelProto()
    twin.CopyFrom(model)
    nodes: list[NodeProto] = []
    made: set[str] = set()
    for number, node in enumerate(twin.graph.node):
        for place, name in enumerate(node.input):
            step = _STEP.get(types.get(name, ""))
            if (number, name) not in terms or step is None:
                continue
            if name not in made:
                made.add(name)
                nodes += _shake(name, types[name], step, len(made))
            node.input[place] = name + _SHAKEN
        nodes.append(node)
    kept = [NodeProto.FromString(node.SerializeToString()) for node in nodes]
    del twin.graph.node[:]
    twin.graph.node.extend(kept)
    return twin


def _shake(name: str, kind: str, step: float, seed: int) -> list[NodeProto]:
    drawn, factor = f"{name}__drawn", f"{name}__factor"
    to = TensorProto.FLOAT16 if kind == "tensor(float16)" else TensorProto.FLOAT
    return [
        helper.make_node(
            "RandomUniformLike", [name], [drawn], dtype=TensorProto.FLOAT, low=1 - step, high=1 + step, seed=float(seed)
        ),
        helper.make_node("Cast", [drawn], [factor], to=to),
        helper.make_node("Mul", [name, factor], [name + _SHAKEN]),
    ]


def _terms(model: ModelProto, specs: Sequence[InputSpec]) -> set[tuple[int, str]]:
    """(number of a node, value that it reads) for the terms of sums."""
    floats = (TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.BFLOAT16, TensorProto.DOUBLE)
    weights = {tensor.name for tensor in model.graph.initializer}
    data = {spec.name for spec in specs if spec.role == "data" and spec.elem_type in floats}
    data |= {
        tensor.name for tensor in model.graph.initializer if tensor.data_type in floats and math.prod(tensor.dims) > 1
    }
    computed: set[str] = set()
    functions = {(item.domain, item.name) for item in model.functions}
    terms: set[tuple[int, str]] = set()
    for number, node in enumerate(model.graph.node):
        held = [name for name in reads(node) if name in data]
        if not held:
            continue
        data.update(name for name in node.output if name)
        if node.op_type not in _MOVES or any(name in computed for name in held):
            computed.update(name for name in node.output if name)
        if node.op_type in _SUMS or (node.domain, node.op_type) in functions:
            chosen = [name for name in node.input if name in held and name not in weights]
        elif node.op_type in _SUMS_OF_TWO:
            chosen = [name for name in node.input if name in held and name in computed]
        else:
            continue
        terms.update((number, name) for name in chosen)
    return terms


def _types(model: ModelProto, base_dir: str | Path | None, terms: set[tuple[int, str]]) -> dict[str, str]:
    """Types of the terms, as ONNX Runtime infers them."""
    outputs = {value.name for value in model.graph.output}
    inputs = {value.name for value in model.graph.input}
    names = sorted({name for _, name in terms} - outputs - inputs)
    session = sessions.session(model, base_dir=base_dir, extra_outputs=names)
    return {value.name: value.type for value in (*session.get_inputs(), *session.get_outputs())}
