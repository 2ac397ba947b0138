"""Shapes of what is picked out of a tensor."""

from __future__ import annotations

import pytest
from onnx import TensorProto

from tests.helpers import model, view_of
from tests.passes.graph.shapes.texts import ints, shape_of, text


def test_slices_of_tables() -> None:
    table = "p = ConstantOfShape(k)"
    end = f"z = {ints(0)} s = Shape<start=1, end=2>(x) one = {ints(1)} y = Slice(p, z, s, one)"
    assert text(shape_of(f"k = {ints(1, 512)} {table} {end}")) == "1 min(512,S)"


def test_a_sum_with_what_was_sliced_for_it_has_the_plain_size() -> None:
    found = shape_of(
        f"""k = {ints(1, 512, 64)} p = ConstantOfShape(k) z = {ints(0)} one = {ints(1)}
        s = Shape<start=1, end=2>(x) q = Slice(p, z, s, one) y = Add(x, q)"""
    )
    assert text(found) == "B S 64"


@pytest.mark.parametrize(
    ("start", "end", "step", "want"),
    [
        (0, 1 << 62, 1, "S"),
        (1, 1 << 62, 1, "(S-1)"),
        (-1, 1 << 62, 1, "min(1,S)"),
        (0, -1, 1, "(S-1)"),
        (0, 5, 1, "min(5,S)"),
    ],
)
def test_slices_of_a_named_size(start: int, end: int, step: int, want: str) -> None:
    body = f"a = {ints(start)} b = {ints(end)} c = {ints(1)} e = {ints(step)} y = Slice(x, a, b, c, e)"
    assert text(shape_of(body)) == f"B {want} 64"


def test_slices_that_only_the_run_knows_keep_the_rank_and_type() -> None:
    made = model(
        "(float16[B,S,64] x, int64[1] a, int64[1] b) => (float16[p,q,r] out) { y = Slice(x, a, b) out = Abs(y) }"
    )
    view = view_of(made)
    assert view.rank("y") == 3 and view.dtype("y") == TensorProto.FLOAT16


@pytest.mark.parametrize(
    ("body", "want"),
    [
        (f"i = {ints(0, 1)} y = Gather<axis=1>(x, i)", "B 2 64"),
        ("i = Constant<value_int=0>() y = Gather<axis=1>(x, i)", "B 64"),
    ],
)
def test_operators(body: str, want: str) -> None:
    assert text(shape_of(body)) == want
