"""Shapes of products and convolutions."""

from __future__ import annotations

import pytest

from tests.passes.graph.shapes.texts import ints, shape_of, text


class TestConv:
    @pytest.mark.parametrize(
        ("attributes", "want"),
        [
            ("strides=[1]", "B 8 29"),
            ("strides=[2], pads=[1,2]", "B 8 16"),
            ("dilations=[3]", "B 8 23"),
            ('auto_pad="SAME_UPPER"', "B 8 32"),
        ],
    )
    def test_its_windows_are_counted(self, attributes: str, want: str) -> None:
        body = f"""t = {ints(0, 4, 32)} a = Reshape(x, t) k = {ints(8, 4, 4)} w = ConstantOfShape(k)
            y = Conv<{attributes}>(a, w)"""
        assert text(shape_of(body, inputs="float[B,128] x")) == want

    def test_other_sizes_are_of_their_own(self) -> None:
        found = shape_of(f"k = {ints(8, 64, 3)} w = ConstantOfShape(k) t = Transpose<perm=[0,2,1]>(x) y = Conv(t, w)")
        assert text(found) == "B 8 ?"


@pytest.mark.parametrize(
    ("body", "want"),
    [
        ("t = Transpose<perm=[0,2,1]>(x) y = MatMul(x, t)", "B S S"),
    ],
)
def test_operators(body: str, want: str) -> None:
    assert text(shape_of(body)) == want
