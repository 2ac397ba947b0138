"""Shapes and contents of what is computed element by element."""

from __future__ import annotations

import pytest

from tests.helpers import model, view_of
from tests.passes.graph.shapes.texts import ints, shape_of, text


@pytest.mark.parametrize(
    ("body", "want"),
    [
        ("y = Softmax(x)", "B S 64"),
        ("y = Cast<to=7>(x)", "B S 64"),
        ("z = Constant<value_float=0.0>() c = Greater(x, z) y = Where(c, x, z)", "B S 64"),
        ("y, m = Dropout(x)", "B S 64"),
    ],
)
def test_operators(body: str, want: str) -> None:
    assert text(shape_of(body)) == want


def test_division_rounds_towards_zero_as_onnx_does() -> None:
    view = view_of(
        model(
            f"""(float[n] x) => (int64[k] out) {{
                a = {ints(-7, 7, -8)} b = {ints(2, -2, 3)} q = Div(a, b) out = Add(q, q)
            }}"""
        )
    )
    assert view.info("q").content == (-3, -3, -2)
