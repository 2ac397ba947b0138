"""Which numbers are masks for certain, and which masks are the same."""

from __future__ import annotations

import numpy as np
import pytest

from onnx_fuse.passes.normalize.zero_or_one import are_opposite, are_same, is_zero_or_one
from tests.helpers import model, view_of

TEXT = """(bool[B,S] b, int64[B,S] i, float[B,S] x, int64[2] sizes) => (float[k] y) {
    f = Cast<to=1>(b)
    n = Not(b)
    g = Cast<to=1>(n)
    one = Constant<value_float=1.0>()
    two = Constant<value_float=2.0>()
    zero = Constant<value=int64 {0}>()
    turned = Sub(one, f)
    below = Sub(f, one)
    away = Sub(two, f)
    less = Sub(x, one)
    of_x = Cast<to=9>(x)
    axes = Constant<value=int64[1] {1}>()
    wide = Unsqueeze(f, axes)
    both = Mul(f, turned)
    sum = Add(f, turned)
    is_zero = Equal(i, zero)
    again = Equal(i, zero)
    kept = Cast<to=9>(i)
    numbers = Cast<to=1>(i)
    of_zero = Cast<to=1>(is_zero)
    chosen = Where(is_zero, one, two)
    ones = ConstantOfShape<value=float[1] {1.0}>(sizes)
    twos = ConstantOfShape<value=float[1] {2.0}>(sizes)
    triangle = Trilu(ones)
    y = Identity(x)
}"""
VIEW = view_of(model(TEXT))


@pytest.mark.parametrize(
    "value", ["b", "f", "n", "turned", "wide", "both", "is_zero", "of_zero", "one", "ones", "triangle"]
)
def test_zero_and_one_for_certain(value: str) -> None:
    assert is_zero_or_one(VIEW, value)


@pytest.mark.parametrize("value", ["i", "x", "below", "away", "sum", "numbers", "chosen", "two", "twos"])
def test_what_may_be_another_number(value: str) -> None:
    assert not is_zero_or_one(VIEW, value)


@pytest.mark.parametrize(
    ("one", "other"), [("b", "f"), ("n", "g"), ("g", "turned"), ("is_zero", "again"), ("of_zero", "again")]
)
def test_the_same_mask(one: str, other: str) -> None:
    assert are_same(VIEW, one, other) and are_same(VIEW, other, one)
    assert not are_same(VIEW, one, other, turned=True)


@pytest.mark.parametrize(("one", "other"), [("b", "n"), ("f", "g"), ("kept", "is_zero"), ("kept", "of_zero")])
def test_the_other_mask(one: str, other: str) -> None:
    assert are_same(VIEW, one, other, turned=True) and are_same(VIEW, other, one, turned=True)
    assert not are_same(VIEW, one, other)


@pytest.mark.parametrize(("one", "other"), [("b", "i"), ("b", "is_zero"), ("f", "away"), ("x", "numbers")])
def test_masks_that_have_nothing_in_common(one: str, other: str) -> None:
    assert not are_same(VIEW, one, other)
    assert not are_same(VIEW, one, other, turned=True)


@pytest.mark.parametrize(
    ("other", "sign"), [("turned", 1.0), ("g", 1.0), ("below", -1.0), ("f", None), ("away", None), ("i", None)]
)
def test_one_minus_a_mask(other: str, sign: float | None) -> None:
    assert are_opposite(VIEW, "f", other) == sign


def test_one_minus_the_numbers_that_a_mask_was_made_of() -> None:
    assert are_same(VIEW, "of_x", "x")
    assert are_opposite(VIEW, "of_x", "less") is None


def test_masks_of_equal_constants_are_the_same() -> None:
    text = "(float[2] x) => (float[2] y) { y = Identity(x) }"
    mask = np.array([True, False])
    view = view_of(model(text, weights={"a": mask, "c": mask.copy(), "d": ~mask}))
    assert are_same(view, "a", "c") and not are_same(view, "a", "d")
