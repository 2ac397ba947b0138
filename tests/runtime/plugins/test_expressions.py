"""Sizes as expressions: what they come to, what is refused, and what a condition leaves once constants are known."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from onnx_fuse.runtime.plugins.expressions import parse

SIZES = {"B": 3, "S": 7, "H": 64}


@pytest.mark.parametrize(
    "text, value",
    [
        ("B * S + 2", 23),
        ("ceil_div(B * S, 4)", 6),
        ("(H - 60) // 3", 1),
        ("min(B, S) * max(B, H)", 192),
        ("(S - H) % 16", 7),
    ],
)
def test_value(text: str, value: int) -> None:
    assert parse(text, SIZES).value(SIZES) == value


@pytest.mark.parametrize(
    "text, holds",
    [("H <= 64", 1), ("B < S < 7", 0), ("H % 16 == 0 and S != 7", 0), ("S == 8 or H >= 64 and B > 2", 1)],
)
def test_condition(text: str, holds: int) -> None:
    assert parse(text, SIZES, condition=True).value(SIZES) == holds


@pytest.mark.parametrize(
    "text, reason",
    [
        ("B / S", "a size is an integer; write // or ceil_div"),
        ("B ** 2", r"'B \*\* 2': sizes are computed with"),
        ("len(B)", "the functions are ceil_div, min, max"),
        ("min(B)", "min takes two sizes"),
        ("min(B, S, H)", "min takes two sizes"),
        ("C", "'C' is none of B, S, H"),
        ("min", "'min' is none of B, S, H"),
        ("B.real", "'B.real': sizes are computed with"),
        ("1.5 * B", "'1.5': sizes are computed with"),
        ("True", "'True': sizes are computed with"),
        ("-B", "'-B': sizes are computed with"),
        ("B < S", "'B < S': sizes are computed with"),
        ("B if S else H", "sizes are computed with"),
        ("__import__('os')", "the functions are"),
        ("(lambda: B)()", "the functions are"),
        ("B +", "is no expression"),
        ("B\0", "is no expression"),
        ("9" * 30, "does not fit into 64 bits"),
    ],
)
def test_refused(text: str, reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        parse(text, SIZES)


@pytest.mark.parametrize(
    "text, reason",
    [
        ("B * S", r"'B \* S' is no condition"),
        ("B <= 2 and S", "'S' is no condition"),
        ("B is S", "sizes are compared with"),
        ("not B <= 2", "is no condition"),
    ],
)
def test_refused_as_a_condition(text: str, reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        parse(text, SIZES, condition=True)


@pytest.mark.parametrize(
    "constants, left",
    [
        ({"BLOCK": 64, "LOOP": 0}, "H <= 64"),
        ({"BLOCK": 64, "LOOP": 1}, "True"),
        ({"BLOCK": 0, "LOOP": 0}, "H <= 0"),
    ],
)
def test_what_constants_leave_of_a_condition(constants: dict[str, int], left: str) -> None:
    condition = parse("H <= BLOCK and BLOCK >= 0 or LOOP == 1", [*SIZES, *constants], condition=True)
    assert condition.known(constants).text == left


ATOMS = st.sampled_from([*SIZES, "0", "1", "5", "16"])
TERMS = st.recursive(
    ATOMS,
    lambda inner: st.one_of(
        st.tuples(inner, st.sampled_from(["+", "-", "*"]), inner).map(lambda parts: f"({' '.join(parts)})"),
        st.tuples(st.sampled_from(["min", "max"]), inner, inner).map(
            lambda parts: f"{parts[0]}({parts[1]}, {parts[2]})"
        ),
    ),
    max_leaves=8,
)


@settings(max_examples=60, deadline=None)
@given(TERMS, st.sampled_from(["<", "<=", "==", "!="]), TERMS)
def test_expressions_are_those_of_python(left: str, compared: str, right: str) -> None:
    """And replacing names by their values changes nothing."""
    assert parse(left, SIZES).value(SIZES) == eval(left, {"min": min, "max": max}, SIZES)
    condition = parse(f"{left} {compared} {right}", SIZES, condition=True)
    assert condition.value(SIZES) == eval(condition.text, {"min": min, "max": max}, SIZES)
    assert condition.known(SIZES).value({}) == condition.value(SIZES)
