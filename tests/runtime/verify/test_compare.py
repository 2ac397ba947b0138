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


# --- values in doubt ---------------------------------------------------------------------------------------------------


def heard(expected: np.ndarray, got: np.ndarray, noise: float | None, rtol: float = 1e-4, **more: Any) -> Comparison:
    measured = None if noise is None else np.full(expected.shape, noise)
    return compare("y", expected, got, rtol, noise=lambda: measured, **more)


def masked_column(error: float) -> tuple[np.ndarray, np.ndarray]:
    """Values around 1 beside a column of -1e9; one of them is off by `error`."""
    before = np.random.default_rng(0).uniform(0.5, 1.5, (12, 10)).astype(np.float32)
    before[:, 0] = -1e9
    after = before.copy()
    after[3, 4] += error
    return before, after


def test_what_is_usual_around_a_value_decides_not_a_column_of_huge_numbers() -> None:
    before, after = masked_column(0.01)
    assert compared(before, after).problem is None  # the outer bound alone
    found = heard(before, after, 0.0)
    assert found.problem is not None and found.index == (3, 4)
    assert "rounding and the values around explain" in found.problem
    assert heard(*masked_column(1e-4), 0.0).problem is None


def test_noise_excuses_what_is_rounding_and_no_more() -> None:
    before, after = masked_column(0.01)
    assert heard(before, after, 0.01 / 8).problem is None
    assert heard(before, after, 0.01 / 20).problem is not None
    assert heard(before, after, None).problem is None  # where it cannot be told, the outer bound counts


def test_noise_is_asked_for_only_in_doubt() -> None:
    before = np.ones((12, 10), np.float32)

    def never() -> np.ndarray:
        raise AssertionError("nothing is in doubt")

    assert compare("y", before, before * np.float32(1.00001), 1e-4, noise=never).problem is None


def test_noise_never_allows_more_than_the_outer_bound_unless_it_is_told_to() -> None:
    before, after = np.ones((12, 10), np.float32), np.full((12, 10), 1.1, np.float32)
    assert heard(before, after, 1.0).problem is not None
    free = heard(before, after, 1.0, bounded=False)
    assert free.problem is None and free.relative <= 1e-4


def test_an_absolute_tolerance_is_added() -> None:
    before, after = floats(1, 2), floats(1, 2.5)
    assert compare("y", before, after, 1e-4, atol=0.5).problem is None
    assert compare("y", before, after, 1e-4, atol=0.4).problem is not None


def test_places_that_are_not_read_do_not_count() -> None:
    before, after = floats(1, NAN, 2), floats(1, 0, 2)
    assert compare("y", before, after, 1e-4, unread=np.array([False, True, False])).problem is None
    assert compare("y", before, after, 1e-4).problem is not None
