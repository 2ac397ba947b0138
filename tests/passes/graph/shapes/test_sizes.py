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


TOKENS = "f = Shape(x) i = Constant<value_int=1>() s = Gather(f, i)"
FLOATS = "z = Constant<value_float=0.0>() o = Constant<value_float=1.0>() w = Constant<value_float=2.0>()"


@pytest.mark.parametrize(
    ("body", "want"),
    [
        ("z = Constant<value_int=0>() o = Constant<value_int=1>() {} y = Range(z, s, o)", "S"),
        # Positions that are counted in floats, as rotary embeddings have them.
        (f"{FLOATS} {{}} t = Cast<to=1>(s) y = Range(z, t, o)", "S"),
        (f"{FLOATS} {{}} t = Cast<to=1>(s) u = Mul(t, w) y = Range(z, u, o)", "2*S"),
        (f"{FLOATS} {{}} t = Cast<to=1>(s) u = Mul(t, w) v = Div(u, w) y = Range(z, v, o)", "S"),
        (f"{FLOATS} {{}} t = Cast<to=1>(s) u = Floor(t) v = Cast<to=7>(u) t1 = Cast<to=11>(v) t2 = Cast<to=1>(t1) y = Range(z, t2, o)", "S"),
        # What may be rounded, or is counted in other steps, is some size.
        (f"{FLOATS} {{}} t = Cast<to=1>(s) u = Div(t, w) y = Range(z, u, o)", "?"),
        (f"{FLOATS} {{}} t = Cast<to=1>(s) y = Range(z, t, w)", "?"),
        (f"{FLOATS} {{}} h = Cast<to=10>(s) t = Cast<to=1>(h) y = Range(z, t, o)", "?"),
        (f"{FLOATS} {{}} q = Constant<value_float=0.5>() t = Cast<to=1>(s) y = Range(q, t, o)", "?"),
        (f"{FLOATS} {{}} q = Constant<value_float=33554432.0>() t = Cast<to=1>(s) u = Add(t, q) y = Range(q, u, o)", "?"),
    ],
)  # fmt: skip
def test_operators(body: str, want: str) -> None:
    assert text(shape_of(body.format(TOKENS))) == want


@pytest.mark.parametrize(
    ("body", "want"),
    [
        # A table of 64 positions of which as many are taken as there are tokens.
        ("l = Constant<value_int=64>() z = Constant<value_int=0>() {} d = Sub(l, s) m = Max(z, d) e = Sub(l, m)", "min(64,S)"),
        ("l = Constant<value_int=64>() z = Constant<value_int=0>() {} d = Sub(l, s) m = Max(d, z) e = Sub(l, m)", "min(64,S)"),
        ("l = Constant<value_int=64>() z = Constant<value_int=0>() {} e = Max(z, s)", "S"),
        # It need not be: another bound, another number, what may be less than 0.
        ("l = Constant<value_int=64>() z = Constant<value_int=1>() {} d = Sub(l, s) m = Max(z, d) e = Sub(l, m)", "?"),
        ("l = Constant<value_int=64>() z = Constant<value_int=0>() {} d = Sub(l, s) m = Max(z, d) k = Constant<value_int=60>() e = Sub(k, m)", "(60-max(0,(64-S)))"),
        ("l = Constant<value_int=64>() z = Constant<value_int=0>() {} d = Sub(l, s) e = Max(z, d)", "max(0,(64-S))"),
    ],
)  # fmt: skip
def test_what_is_left_of_a_table(body: str, want: str) -> None:
    axis = ints(0)
    cut = f"{body.format(TOKENS)} zero = {axis} u = Unsqueeze(e, zero) v = ConstantOfShape(u)"
    assert text(shape_of(cut, "v")) == want
