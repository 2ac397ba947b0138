"""Shapes of what is reduced."""

from __future__ import annotations

import pytest

from tests.passes.graph.shapes.texts import ints, shape_of, text


@pytest.mark.parametrize(
    ("body", "want"),
    [
        ("y = ReduceMean<axes=[-1]>(x)", "B S 1"),
        ("y = ReduceMean<axes=[0], keepdims=0>(x)", "S 64"),
        ("y = ReduceMean<keepdims=0>(x)", ""),
        ("y = ArgMax<axis=1, keepdims=0>(x)", "B 64"),
    ],
)
def test_operators(body: str, want: str) -> None:
    assert text(shape_of(body)) == want


@pytest.mark.parametrize(
    ("body", "want"),
    [
        (f"a = {ints(-1)} y = ReduceMean(x, a)", "B S 1"),
        (f"a = {ints(0, 1)} y = ReduceSum<keepdims=0>(x, a)", "64"),
        (f"e = {ints()} y = ReduceMean<noop_with_empty_axes=1>(x, e)", "B S 64"),
        (f"e = {ints()} y = ReduceMean<keepdims=0>(x, e)", ""),
        ("y = ReduceMean<keepdims=0>(x)", ""),
    ],
)
def test_reductions_whose_axes_are_an_input(body: str, want: str) -> None:
    assert text(shape_of(body, opset=18)) == want
