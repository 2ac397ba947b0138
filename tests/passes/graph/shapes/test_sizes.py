"""Tensors that are made of shapes."""

from __future__ import annotations

import pytest

from tests.helpers import model, view_of
from tests.passes.graph.shapes.texts import B, ints, shape_of, text


def test_sizes_that_cancel() -> None:
    made = model(
        f"""(float[B,S,64] x) => (int64[1] out) {{
            s = Shape(x) n = Size(x) w = {ints(64)} t = Div(n, w) one = {ints(1)} two = {ints(2)}
            q = Slice(s, one, two) out = Div(t, q)
        }}"""
    )
    assert view_of(made).info("out").content == (B,)


def test_what_a_scalar_s_shape_says() -> None:
    made = model(
        f"""(float x) => (int64[k] out) {{
            s = Shape(x) c = Constant<value=bool[1] {{1}}>() one = {ints(1)} out = Where(c, s, one)
        }}"""
    )
    assert view_of(made).shape("s") == (0,)


@pytest.mark.parametrize(
    ("body", "want"),
    [
        (
            "z = Constant<value_int=0>() o = Constant<value_int=1>() f = Shape(x) i = Constant<value_int=1>()"
            " s = Gather(f, i) y = Range(z, s, o)",
            "S",
        ),
    ],
)
def test_operators(body: str, want: str) -> None:
    assert text(shape_of(body)) == want
