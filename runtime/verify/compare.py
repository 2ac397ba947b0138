"""How far one output is from another, what of it is rounding, and where it is worst.

Two bounds say how far a floating-point value may be off. The outer one is a small part of the largest magnitude of its output:
a sum of large terms may come out small, and its rounding is still that of the terms. A single column of -1e9 makes that bound
worthless for the other columns, so where it can be told what rounding does to each value (`noise`), the inner bound counts: a
small part of what is usual in the value's row and column, or a few times its noise. That is how the tests of CUTLASS and
FlashAttention judge: against the error of a computation in the same type, not against a number.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

Array = np.ndarray[Any, Any]
Noise = Callable[[], "Array | None"]
"""Gives what rounding does to each value of an output, absolute; None where that cannot be told. Asked only in doubt."""

# Largest difference allowed, relative to the output's largest magnitude. Other orders of the same sums (ONNX Runtime's
# optimised graph against the plain one) were 6e-7 apart at most on the export matrix and 1e-6 on 48 random layers; the
# same in float16 2e-3, and 4e-3 from float32. A quantized model may take the next of 255 steps.
TOLERANCES = {"float32": 5e-5, "float16": 1e-2, "quantized": 2e-2}
# The scale of an output that is zero everywhere: zeros come from sums of values around 1 that cancel.
_SCALE_OF_ZERO = 1e-2
# How often the noise of the original a difference may be. FlashAttention allows 2 where both errors are measured against a
# wider type; here the two sides differ by both, and the noise is the largest of a few samples.
_TIMES_NOISE = 8.0
# So many times the median of a row counts as usual: the largest of a row is some 5 times that, in sums of gated values more.
_TIMES_USUAL = 10.0
# A row or column of fewer values does not tell what is usual in it; of longer ones so many are looked at.
_FEWEST, _MOST = 8, 32


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
        unread: places that were not compared because they are masked out, which the original spoils with NaN.
        undefined: places that were not compared because the original is not finite there, and need not be: it overflows, or
            divides by a length of 0.
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
    unread: int = 0
    undefined: int = 0
    problem: str | None = None

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready: NaN and infinities are strings."""
        data = asdict(self)
        data["index"] = None if self.index is None else list(self.index)
        return {key: _json_number(value) for key, value in data.items()}


def compare(
    output: str,
    expected: Array,
    got: Array,
    rtol: float,
    *,
    atol: float = 0.0,
    noise: Noise | None = None,
    bounded: bool = True,
    unread: Array | None = None,
) -> Comparison:
    """Compares the fused model's output with the original's.

    NaN and infinities must be in the same places. Everything that is not floating-point (integers, bool, strings) must be equal.

    Args:
        output: its name.
        expected, got: the original's and the fused model's.
        rtol: difference allowed, relative to the largest finite magnitude of `expected`.
        atol: difference that is allowed whatever the magnitudes.
        noise: what rounding does to each value; then `rtol` is relative to what is usual in the value's row and column, and more is
            allowed only as far as it is rounding.
        bounded: with `noise`, never allow more than without.
        unread: places that are not compared, because they are masked out: True for those.
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
    if unread is not None:
        before, after = np.where(unread, 0, before), np.where(unread, 0, after)
    finite = np.isfinite(before)
    all_finite = bool(finite.all())
    known = before if all_finite else before[finite]
    scale = float(np.abs(known).max(initial=0.0))
    informative = _informative(known)
    kinds_differ = finite != np.isfinite(after)
    if not all_finite:
        kinds_differ |= ~finite & ~np.isclose(before, after, equal_nan=True)
    if kinds_differ.any():
        place = _first(kinds_differ)
        found = Comparison(
            output, 0.0, scale, 0.0, place, before[place].item(), after[place].item(), informative=informative
        )
        count = int(kinds_differ.sum())
        return _with_problem(
            found, f"has other NaN or infinite values than the original in {count} of {before.size} places"
        )
    if not all_finite:
        before, after = np.where(finite, before, 0), np.where(finite, after, 0)
    difference = np.abs(after - before)
    max_abs = float(difference.max())
    # Two steps of the type are always allowed: near the end of its range nothing smaller exists.
    steps = atol + 2 * float(np.finfo(expected.dtype).smallest_subnormal)
    outer = rtol * (scale or _SCALE_OF_ZERO)
    allowed = np.asarray(outer + steps)
    if noise is not None and (max_abs <= outer or not bounded):
        allowed = _inner_bound(before, difference, rtol, noise, outer, bounded) + steps
    over = difference > allowed
    where = _first(np.where(over, difference, 0.0) if over.any() else difference == max_abs) if max_abs else None
    expected_there, got_there = (None, None) if where is None else (before[where].item(), after[where].item())
    relative = max_abs / (scale or _SCALE_OF_ZERO)
    if not bounded and not over.any():
        relative = min(relative, rtol)  # the rest is rounding
    found = Comparison(output, max_abs, scale, relative, where, expected_there, got_there, informative=informative)
    if where is None or not over.any():
        return found
    there = float(difference[where])
    share, limit = (f"{100 * part:.3g} %" for part in (there / (scale or _SCALE_OF_ZERO), rtol))
    if there > outer + steps:
        return _with_problem(
            found, f"differs by {there:.3g}, {share} of its largest magnitude {scale:.3g} (allowed {limit})"
        )
    limit = f"{np.broadcast_to(allowed, before.shape)[where]:.3g}"
    return _with_problem(found, f"differs by {there:.3g}, where rounding and the values around explain {limit}")


def _inner_bound(before: Array, difference: Array, rtol: float, noise: Noise, outer: float, bounded: bool) -> Array:
    """What is allowed for each value: `rtol` of what is usual around it, or some times its noise, where that is more."""
    magnitude = np.abs(before)
    allowed = rtol * magnitude
    if (difference <= allowed).all():
        return allowed
    allowed = rtol * np.maximum(magnitude, _TIMES_USUAL * _usual(magnitude))
    if (difference <= allowed).all():
        return allowed
    measured = noise()
    if measured is None:
        return np.asarray(np.maximum(allowed, outer))
    found = np.where(np.isfinite(measured), measured, np.inf)  # what rounding can make infinite tells nothing
    allowed = np.maximum(allowed, _TIMES_NOISE * np.maximum(found, _usual(found)))
    return np.minimum(allowed, outer) if bounded else allowed


def _usual(magnitude: Array) -> Array:
    """What is usual around each value: the median of its row (last axis) or column, the less of the two; zeros do not count.

    Half of a row must be masked with huge numbers before they become what is usual in it.
    """
    table = magnitude.reshape(-1, magnitude.shape[-1]) if magnitude.ndim else magnitude.reshape(1, 1)
    rows, columns = table.shape
    whole = _median(table.reshape(1, -1)[:, :: max(table.size // _MOST**2, 1)])
    by_row = _median(table[:, :: max(columns // _MOST, 1)]) if columns >= _FEWEST else whole
    by_column = _median(table[:: max(rows // _MOST, 1)].T).T if rows >= _FEWEST else whole
    return np.asarray(np.broadcast_to(np.minimum(by_row, by_column), table.shape).reshape(magnitude.shape))


def _median(table: Array) -> Array:
    """The median of what is not 0 in each row, as a column; 0 for a row of zeros."""
    ordered = np.sort(np.where(table == 0, np.inf, table), axis=1)
    count = (table != 0).sum(axis=1, keepdims=True)
    middle = np.take_along_axis(ordered, np.maximum(count - 1, 0) // 2, axis=1)
    return np.where(count == 0, 0.0, middle)


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
