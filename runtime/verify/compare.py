"""How far one output is from another: largest difference, in the scale of the output, and where."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from onnx import AttributeProto, ModelProto, TensorProto

from onnx_fuse.passes.files.external_data import tensors

Array = np.ndarray[Any, Any]

# Largest difference allowed, relative to the output's largest magnitude. Other orders of the same sums (ONNX Runtime's
# optimised graph against the plain one) were 6e-7 apart at most on the export matrix and 1e-6 on 48 random layers; the
# same in float16 2e-3, and 4e-3 from float32. A quantized model may take the next of 255 steps.
TOLERANCES = {"float32": 5e-5, "float16": 1e-2, "quantized": 2e-2}
# The scale of an output that is zero everywhere: zeros come from sums of values around 1 that cancel.
_SCALE_OF_ZERO = 1e-2


@dataclass(frozen=True)
class Comparison:
    """One output of one case.

    Attributes:
        output: its name.
        max_abs: largest absolute difference where both are finite.
        scale: largest finite magnitude of the original's output.
        relative: `max_abs / scale`.
        index: where the difference is largest, or where the outputs differ in kind (NaN, infinity); None if they agree.
        expected, got: the original's and the fused model's value there.
        inner: it is no output of the models but a value inside both, where a fused node ends.
        informative: the original's output has finite values that are not all the same, or one that is not 0.
        problem: the sentence that says why they are not equal; None when they are.
    """

    output: str
    max_abs: float = 0.0
    scale: float = 0.0
    relative: float = 0.0
    index: tuple[int, ...] | None = None
    expected: float | None = None
    got: float | None = None
    inner: bool = False
    informative: bool = False
    problem: str | None = None

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready: NaN and infinities are strings."""
        data = asdict(self)
        data["index"] = None if self.index is None else list(self.index)
        return {key: _json_number(value) for key, value in data.items()}


def tolerance(model: ModelProto) -> float:
    """The relative difference to allow for `model`: that of the coarsest type it computes in."""
    if any("QuantizeLinear" in node.op_type or "Integer" in node.op_type for node in model.graph.node):
        return TOLERANCES["quantized"]
    types = {tensor.data_type for tensor, _ in tensors(model)}
    types |= {v.type.tensor_type.elem_type for v in (*model.graph.input, *model.graph.output, *model.graph.value_info)}
    for nodes in (model.graph.node, *(function.node for function in model.functions)):
        types |= {a.i for node in nodes for a in node.attribute if a.name == "to" and a.type == AttributeProto.INT}
    return TOLERANCES["float16" if TensorProto.FLOAT16 in types else "float32"]


def compare(output: str, expected: Array, got: Array, rtol: float) -> Comparison:
    """Compares the fused model's output with the original's.

    Floating-point values may differ by `rtol` times the largest finite magnitude of `expected`; NaN and infinities must
    be in the same places. Everything else (integers, bool, strings) must be equal.
    """
    if expected.dtype != got.dtype or expected.shape != got.shape:
        kinds = [f"{array.dtype}{list(array.shape)}" for array in (expected, got)]
        return Comparison(output, informative=True, problem=f"is {kinds[1]}, was {kinds[0]}")
    if expected.size == 0:
        return Comparison(output)
    if expected.dtype.kind not in "fc":
        return _compare_exactly(output, expected, got)
    wide = np.result_type(expected.dtype, np.float64)
    before, after = expected.astype(wide), got.astype(wide)
    finite = np.isfinite(before)
    scale = float(np.abs(before[finite]).max(initial=0.0))
    informative = _informative(before[finite])
    kinds_differ = (finite != np.isfinite(after)) | (~finite & ~np.isclose(before, after, equal_nan=True))
    if kinds_differ.any():
        place = _first(kinds_differ)
        found = Comparison(
            output, 0.0, scale, 0.0, place, before[place].item(), after[place].item(), informative=informative
        )
        count = int(kinds_differ.sum())
        return _with_problem(
            found, f"has other NaN or infinite values than the original in {count} of {before.size} places"
        )
    difference = np.abs(np.subtract(after, before, out=np.zeros_like(before), where=finite))
    max_abs = float(difference.max())
    relative = max_abs / (scale or _SCALE_OF_ZERO)
    where = _first(difference == max_abs) if max_abs else None
    expected_there, got_there = (None, None) if where is None else (before[where].item(), after[where].item())
    found = Comparison(output, max_abs, scale, relative, where, expected_there, got_there, informative=informative)
    # Two steps of the type are always allowed: near the end of its range nothing smaller exists.
    allowed = rtol * (scale or _SCALE_OF_ZERO) + 2 * float(np.finfo(expected.dtype).smallest_subnormal)
    if max_abs <= allowed:
        return found
    share, limit = (f"{100 * part:.3g} %" for part in (relative, rtol))
    return _with_problem(
        found, f"differs by {max_abs:.3g}, {share} of its largest magnitude {scale:.3g} (allowed {limit})"
    )


def _compare_exactly(output: str, expected: Array, got: Array) -> Comparison:
    differs = np.asarray(expected != got)
    informative = bool((expected != expected.flat[0]).any()) or (expected.size == 1 and bool(expected.flat[0]))
    if expected.dtype.kind not in "biu":
        where = _first(differs) if differs.any() else None
        problem = (
            f"differs from the original in {int(differs.sum())} places, first at {list(where)}"
            if where is not None
            else None
        )
        return Comparison(output, index=where, informative=informative, problem=problem)
    before, after = expected.astype(np.float64), got.astype(np.float64)
    scale = float(np.abs(before).max())
    if not differs.any():
        return Comparison(output, scale=scale, informative=informative)
    distance = np.abs(after - before)
    max_abs = float(distance.max())
    where = _first(distance == max_abs) if max_abs else _first(differs)
    found = Comparison(
        output,
        max_abs,
        scale,
        max_abs / (scale or 1.0),
        where,
        before[where].item(),
        after[where].item(),
        informative=informative,
    )
    return _with_problem(
        found, f"differs in {int(differs.sum())} of {expected.size} values; {expected.dtype} must be equal"
    )


def _with_problem(found: Comparison, problem: str) -> Comparison:
    place = list(found.index or ())
    problem = f"{problem}, at {place}: {found.got:.6g} where the original has {found.expected:.6g}"
    return Comparison(**{**asdict(found), "problem": problem})


def _informative(finite: Array) -> bool:
    if finite.size == 1:
        return bool(finite.flat[0])
    return bool(finite.size) and bool((finite != finite.flat[0]).any())


def _first(flags: Array) -> tuple[int, ...]:
    return tuple(int(i) for i in np.unravel_index(int(np.argmax(flags)), flags.shape))


def _json_number(value: Any) -> Any:
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value
