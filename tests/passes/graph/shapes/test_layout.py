"""Shapes of what is reshaped, transposed, joined, split, repeated."""

from __future__ import annotations

import pytest

from tests.helpers import model, view_of
from tests.passes.graph.shapes.texts import ints, shape_of, text


class TestReshape:
    def test_the_number_of_heads_follows_from_the_head_size(self) -> None:
        target = "b = Shape<start=0, end=1>(x) s = Shape<start=1, end=2>(x)"
        rest = f"r = {ints(-1, 16)} t = Concat<axis=0>(b, s, r) y = Reshape(x, t)"
        assert text(shape_of(f"{target} {rest}")) == "B S 4 16"

    def test_the_batch_of_a_flattened_value_follows_from_the_rest(self) -> None:
        assert text(shape_of(f"f = {ints(-1, 64)} a = Reshape(x, f) s = Shape(x) y = Reshape(a, s)")) == "B S 64"

    def test_zeros_copy(self) -> None:
        assert text(shape_of(f"t = {ints(0, 0, 4, -1)} y = Reshape(x, t)")) == "B S 4 16"

    def test_with_allowzero_they_do_not(self) -> None:
        found = shape_of(f"t = {ints(0, -1)} y = Reshape<allowzero=1>(x, t)", inputs="float[0,3] x")
        assert found is not None and found[0] == 0

    def test_what_does_not_divide_is_a_dimension_of_its_own(self) -> None:
        assert text(shape_of(f"t = {ints(-1, 5)} y = Reshape(x, t)")) == "? 5"

    def test_a_target_known_at_run_time_alone_still_has_a_rank(self) -> None:
        assert text(shape_of("y = Reshape(x, t)", inputs="float[B,S,64] x, int64[3] t")) == "? ? ?"

    def test_a_hard_coded_target_tells_the_size_of_a_name(self) -> None:
        made = model(
            f"""(float[B,7,64] x) => (float[m,n,k] y) {{
                t = {ints(2, 7, 4, 16)} a = Reshape(x, t) u = {ints(2, 7, 64)} y = Reshape(a, u)
            }}"""
        )
        view = view_of(made)
        assert view.shape("y") == (2, 7, 64)
        assert view.equalities == {"B": 2}
        assert view.shape("x") == (2, 7, 64)

    def test_two_unknown_sizes_cannot_be_told_apart(self) -> None:
        made = model(f"(float[B,S,64] x) => (float[2,7,64] y) {{ t = {ints(2, 7, 64)} y = Reshape(x, t) }}")
        assert view_of(made).equalities == {}


def test_the_expand_idiom() -> None:
    found = shape_of(
        f"""b = Shape<start=0, end=1>(x) s = Shape<start=1, end=2>(x) minus = {ints(-1)}
        want = Concat<axis=0>(b, minus, s) rank = Shape(want) ones = ConstantOfShape<value=int64[1] {{1}}>(rank)
        keep = Equal(want, minus) t = Where(keep, ones, want) m = Constant<value=float[1,1,1] {{0}}>()
        y = Expand(m, t)"""
    )
    assert text(found) == "B 1 S"


@pytest.mark.parametrize(
    ("body", "want"),
    [
        ("y = Transpose(x)", "64 S B"),
        ("y = Transpose<perm=[1,0,2]>(x)", "S B 64"),
        (f"a = {ints(1, -1)} y = Unsqueeze(x, a)", "B 1 S 64 1"),
        (f"a = {ints(1)} u = Unsqueeze(x, a) y = Squeeze(u, a)", "B S 64"),
        (f"r = {ints(1, 1, 64)} k = ConstantOfShape(r) y = Squeeze(k)", "64"),
        ("y = Flatten(x)", "B 64*S"),
        ("y = Flatten<axis=-1>(x)", "B*S 64"),
        ("y = Concat<axis=1>(x, x)", "B 2*S 64"),
        ("y, z = Split<axis=-1>(x)", "B S 32"),
        (f"p = {ints(16, 48)} z, y = Split<axis=2>(x, p)", "B S 48"),
        ("y, z = Split<axis=1>(x)", "B ? 64"),
        (f"r = {ints(1, 2, 3)} y = Tile(x, r)", "B 2*S 192"),
    ],
)
def test_operators(body: str, want: str) -> None:
    assert text(shape_of(body)) == want
