"""Symbolic dimensions: whatever the algebra says of symbols holds for every number they may stand for."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from onnx_fuse.passes.graph import dims as d
from onnx_fuse.passes.graph.dims import Dim, Product, symbol

B, S, H = symbol("B"), symbol("S"), symbol("H")

PRODUCTS: list[Dim] = [
    d.product([factor, *symbols])
    for factor in (1, 2, 6, 64)
    for count in range(3)
    for symbols in itertools.combinations_with_replacement((B, S, H), count)
]
SIZES = ({"B": 2, "S": 3, "H": 64}, {"B": 1, "S": 7, "H": 4}, {"B": 5, "S": 1, "H": 1})


def number(dim: Dim, sizes: dict[str, int]) -> int:
    """What a dimension is when its symbols have these sizes; names of sums and minima are read as what they say."""
    if isinstance(dim, int):
        return dim
    found: Any = dim.factor
    for name in dim.symbols:
        found *= sizes[name] if name in sizes else eval(name, {"min": min, "max": max}, sizes)
    return int(found)


def pairs() -> Iterator[tuple[Dim, Dim]]:
    return itertools.product(PRODUCTS, repeat=2)


def test_arithmetic_on_symbols_is_arithmetic_on_numbers() -> None:
    for a, b in pairs():
        results = d.multiply(a, b), d.add(a, b), d.subtract(a, b), d.minimum(a, b)
        for sizes in SIZES:
            left, right = number(a, sizes), number(b, sizes)
            found = [number(result, sizes) for result in results]
            assert found == [left * right, left + right, left - right, min(left, right)]


def test_the_larger_of_0_and_a_difference() -> None:
    for a, b in pairs():
        difference = d.subtract(a, b)
        larger = d.maximum(0, difference)
        left = None if larger is None else d.subtract(a, larger)
        for sizes in SIZES if larger is not None and left is not None else ():
            one, other = number(a, sizes), number(b, sizes)
            assert number(larger, sizes) == max(0, one - other)
            assert number(left, sizes) == min(one, other)
        assert d.maximum(difference, 0) == larger
    assert d.subtract(64, d.maximum(0, d.subtract(64, S)) or 0) == d.minimum(64, S)
    assert d.maximum(0, S) == S and d.maximum(1, S) is None and d.maximum(3, 5) == 5


def test_a_quotient_is_given_only_where_it_is_exact() -> None:
    for a, b in pairs():
        found = d.divide(a, b)
        assert d.divide(d.multiply(a, b), b) == a
        for sizes in SIZES if found is not None else ():
            assert number(found, sizes) * number(b, sizes) == number(a, sizes)


def test_cancelling_keeps_the_ratio_and_leaves_nothing_in_common() -> None:
    for a, b in pairs():
        left, right = d.cancel(a, b)
        assert d.cancel(left, right) == (left, right)
        assert d.multiply(left, b) == d.multiply(right, a)


def test_equal_expressions_are_equal_objects() -> None:
    for a, b in pairs():
        for operation in (d.multiply, d.add, d.minimum):
            assert operation(a, b) == operation(b, a)
        assert hash(d.multiply(a, b)) == hash(d.multiply(b, a))


def test_broadcasting_agrees_with_numpy_wherever_numpy_can() -> None:
    dims = [1, 4, 7, B, S, d.minimum(S, 4), d.minimum(B, S), d.minimum(B, 7), d.multiply(2, S), d.multiply(B, S)]
    told = 0
    for a, b in itertools.product(dims, repeat=2):
        found = d.broadcast(a, b)
        for one, other in itertools.product((1, 2, 4, 7), repeat=2) if found is not None else ():
            sizes = {"B": one, "S": other}
            try:
                (want,) = np.broadcast_shapes((number(a, sizes),), (number(b, sizes),))
            except ValueError:
                continue
            told += 1
            assert number(found, sizes) == want, (a, b, sizes)
    assert told > 500


@pytest.mark.parametrize(
    ("a", "b", "want"),
    [
        (B, 1, B),
        (1, B, B),
        (B, B, B),
        (64, S, 64),
        (S, 64, 64),
        (B, S, None),
        (S, d.minimum(S, 64), S),
        (d.minimum(64, S), S, S),
        (d.minimum(S, B), B, B),
    ],
)
def test_what_broadcasting_can_tell(a: Dim, b: Dim, want: Dim | None) -> None:
    assert d.broadcast(a, b) == want


def test_symbols_that_cancel_leave_a_number() -> None:
    tokens = d.product([B, S, 64])
    assert d.divide(tokens, d.multiply(S, 64)) == B
    assert d.divide(tokens, d.product([B, S, 16])) == 4
    assert isinstance(d.divide(tokens, d.multiply(S, B)), int)


@pytest.mark.parametrize(("a", "b"), [(B, S), (64, B), (d.multiply(3, B), 2), (B, 0), (0, 0)])
def test_quotients_that_are_not_known(a: Dim, b: Dim) -> None:
    assert d.divide(a, b) is None


def test_zero_swallows_symbols() -> None:
    assert d.multiply(B, 0) == 0
    assert d.product([B, 0, S]) == 0
    assert d.product([]) == 1


def test_sums_and_differences_of_unlike_symbols_are_symbols_of_their_own() -> None:
    total = d.add(S, B)
    assert isinstance(total, Product) and str(total) == "(B+S)"
    assert d.subtract(total, total) == 0
    assert d.add(S, S) == d.multiply(2, S)
    assert d.add(S, d.multiply(-1, S)) == 0
    assert str(d.subtract(S, 1)) == "(S-1)"
    assert d.subtract(S, 0) == S and d.add(0, S) == S


@pytest.mark.parametrize(
    ("dim", "text"),
    [(B, "B"), (d.multiply(4, B), "4*B"), (d.product([S, 2, B]), "2*B*S"), (d.minimum(S, 64), "min(64,S)")],
)
def test_they_read_as_a_person_writes_them(dim: Dim, text: str) -> None:
    assert str(dim) == text


def test_all_but_the_first_and_the_first_are_all() -> None:
    whole = symbol("N")
    rest, first = d.subtract(whole, 1), d.minimum(whole, 1)
    assert d.add(rest, first) == d.add(first, rest) == whole
    assert d.add(rest, d.minimum(symbol("M"), 1)) != whole
    assert d.add(d.subtract(whole, 2), first) != whole


def test_shapes_broadcast_by_the_names_of_their_sizes() -> None:
    a, b = d.broadcast_shapes([(B, 1), (1, S)]) or ()
    assert (a, b) == (B, S)
    assert d.broadcast_shapes([(B,), None]) is None
    assert d.broadcast_shapes([(B,), (S,)]) == (None,)
