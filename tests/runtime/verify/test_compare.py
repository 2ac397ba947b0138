"""How far two outputs are apart, and that no kind of difference slips through."""

from __future__ import annotations

import json
import math
from typing import Any

import numpy as np
import pytest
from onnx_fuse.runtime.verify.compare import Comparison, compare

NAN, INF = math.nan, math.inf


def floats(*values: float, kind: Any = np.float32) -> np.ndarray:
    return np.array(values, kind)


def compared(expected: np.ndarray, got: np.ndarray, rtol: float = 1e-4) -> Comparison:
    return compare("y", expected, got, rtol)


def test_differences_are_relative_to_the_largest_magnitude() -> None:
    found = compared(floats(0.001, -100.0), floats(0.006, -100.0))
    assert found.problem is None
    assert found.max_abs == pytest.approx(0.005)
    assert (found.scale, found.index) == (100.0, (0,))
    assert found.relative == pytest.approx(5e-5)
    assert compared(floats(0.001, -10.0), floats(0.006, -10.0)).problem is not None


def test_the_problem_says_how_far_and_where() -> None:
    found = compared(np.ones((2, 3), np.float32), np.array([[1, 1, 1], [1, 1.5, 1]], np.float32))
    assert found.problem == (
        "differs by 0.5, 50 % of its largest magnitude 1 (allowed 0.01 %), at [1, 1]: 1.5 where the original has 1"
    )


@pytest.mark.parametrize(
    ("expected", "got"),
    [
        ((1.0, NAN), (1.0, 2.0)),
        ((1.0, 2.0), (1.0, NAN)),
        ((1.0, NAN), (NAN, 1.0)),
        ((1.0, INF), (1.0, -INF)),
        ((1.0, INF), (1.0, NAN)),
        ((1.0, INF), (1.0, 3e38)),
        ((NAN, NAN), (0.0, 0.0)),
    ],
)
def test_nan_and_infinity_must_be_in_the_same_places(expected: tuple[float, ...], got: tuple[float, ...]) -> None:
    found = compared(floats(*expected), floats(*got))
    assert found.problem is not None
    assert "NaN or infinite" in found.problem
    json.dumps(found.to_dict(), allow_nan=False)


def test_equal_nan_and_infinity_pass() -> None:
    found = compared(floats(NAN, INF, -INF, 1.0), floats(NAN, INF, -INF, 1.0))
    assert found.problem is None
    assert found.scale == 1.0


def test_zeros_have_an_absolute_tolerance() -> None:
    zeros = np.zeros(4, np.float32)
    assert compared(zeros, zeros).problem is None
    assert compared(zeros, floats(0, 0, 5e-7, 0)).problem is None
    assert compared(zeros, floats(0, 0, 5e-5, 0)).problem is not None
    assert compared(floats(1e-20, 2e-20), zeros[:2]).problem is not None


def test_the_smallest_steps_of_a_type_are_allowed() -> None:
    step = float(np.finfo(np.float16).smallest_subnormal)
    assert compared(floats(step, 0, kind=np.float16), floats(2 * step, 0, kind=np.float16)).problem is None
    assert compared(floats(step, 0, kind=np.float16), floats(9 * step, 0, kind=np.float16)).problem is not None


@pytest.mark.parametrize(
    ("expected", "got", "word"),
    [
        (np.array([1, 2]), np.array([1, 3]), "int64 must be equal"),
        (np.array([0, 2**62]), np.array([0, 2**62 + 1]), "int64 must be equal"),
        (np.array([True]), np.array([False]), "bool must be equal"),
        (np.array([250], np.uint8), np.array([1], np.uint8), "uint8 must be equal"),
        (np.array(["a", "b"]), np.array(["a", "c"]), "first at [1]"),
        (np.zeros(2, np.float32), np.zeros(2, np.float64), "is float64[2], was float32[2]"),
        (np.zeros((2, 1)), np.zeros((1, 2)), "is float64[1, 2], was float64[2, 1]"),
    ],
)
def test_everything_else_must_be_equal(expected: np.ndarray, got: np.ndarray, word: str) -> None:
    assert compared(expected, expected.copy()).problem is None
    problem = compared(expected, got).problem
    assert problem is not None
    assert word in problem


@pytest.mark.parametrize(
    ("values", "informative"),
    [
        (floats(1, 2), True),
        (floats(1, 1), False),
        (floats(0), False),
        (floats(3), True),
        (floats(NAN, NAN), False),
        (floats(NAN, 1, 2), True),
        (floats(), False),
        (np.array([1, 1]), False),
        (np.array([1, 2]), True),
    ],
)
def test_constant_values_tell_nothing(values: np.ndarray, informative: bool) -> None:
    assert compared(values, values).informative is informative
