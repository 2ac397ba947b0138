"""Symbolic dimensions: an int, or a product of a factor and named symbols, so that B*S*64 / (S*64) is B."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache

_LARGEST = 1 << 63
_MOST_SYMBOLS = 64
_LONGEST_NAME = 1 << 10


@dataclass(frozen=True)
class Product:
    """`factor` times the product of `symbols` (sorted, at least one). Symbols stand for numbers that are not negative."""

    factor: int
    symbols: tuple[str, ...]

    def __str__(self) -> str:
        parts = ([str(self.factor)] if self.factor != 1 else []) + list(self.symbols)
        return "*".join(parts)


Dim = int | Product
Shape = tuple[Dim, ...]


def symbol(name: str) -> Product:
    """The dimension called `name`."""
    return Product(1, (name,))


def _named(text: str) -> Product:
    """The dimension that a text says how to work out. A long text has a digest in its place: sums of sums double it each time."""
    if len(text) > _LONGEST_NAME:
        text = f"#{hashlib.sha256(text.encode()).hexdigest()}"
    return symbol(text)


def multiply(a: Dim, b: Dim) -> Dim:
    """a * b."""
    if type(a) is int:  # as most are, and this is asked more often than anything else
        if a == 1 and type(b) is not int:
            return b
        if type(b) is int and -_LARGEST <= (plain := a * b) <= _LARGEST:
            return plain
    left, left_symbols = _parts(a)
    right, right_symbols = _parts(b)
    factor = left * right
    if abs(factor) > _LARGEST or len(left_symbols) + len(right_symbols) > _MOST_SYMBOLS:
        return _named("({}*{})".format(*sorted((str(a), str(b)))))
    symbols = tuple(sorted(left_symbols + right_symbols))
    return Product(factor, symbols) if symbols and factor != 0 else factor


def product(dims: Iterable[Dim]) -> Dim:
    """The product of all dims; 1 for none."""
    total: Dim = 1
    for dim in dims:
        total = multiply(total, dim)
    return total


def divide(a: Dim, b: Dim) -> Dim | None:
    """a / b where it is known to be exact; None otherwise. Symbols that cancel are taken to be non-zero."""
    top, top_symbols = _parts(a)
    bottom, bottom_symbols = _parts(b)
    if bottom == 0 or top % bottom:
        return None
    rest = list(top_symbols)
    for name in bottom_symbols:
        if name not in rest:
            return None
        rest.remove(name)
    return Product(top // bottom, tuple(rest)) if rest else top // bottom


def cancel(a: Dim, b: Dim) -> tuple[Dim, Dim]:
    """a and b without their common factors."""
    left, left_symbols = _parts(a)
    right, right_symbols = _parts(b)
    common = math.gcd(left, right) or 1
    rest_left, rest_right = list(left_symbols), list(right_symbols)
    for name in left_symbols:
        if name in rest_right:
            rest_right.remove(name)
            rest_left.remove(name)
    a_out: Dim = Product(left // common, tuple(rest_left)) if rest_left else left // common
    b_out: Dim = Product(right // common, tuple(rest_right)) if rest_right else right // common
    return a_out, b_out


def add(a: Dim, b: Dim) -> Dim:
    """a + b; a sum of unlike symbols becomes one new symbol with a canonical name."""
    if isinstance(a, int) and isinstance(b, int):
        return a + b if abs(a + b) <= _LARGEST else _named(f"({min(a, b)}+{max(a, b)})")
    if a == 0:
        return b
    if b == 0:
        return a
    left, left_symbols = _parts(a)
    right, right_symbols = _parts(b)
    if left_symbols == right_symbols:
        total = left + right
        return Product(total, left_symbols) if total else 0
    for head, tail in ((a, b), (b, a)):
        # All but the first, and the first: a sequence shifted by one.
        whole = str(head).removeprefix("(").removesuffix("-1)")
        if str(head) == f"({whole}-1)" and tail == minimum(symbol(whole), 1) and whole.isidentifier():
            return symbol(whole)
    return _named("({}+{})".format(*sorted((str(a), str(b)))))


def subtract(a: Dim, b: Dim) -> Dim:
    """a - b; symbolic where the two are unlike."""
    if isinstance(a, int) and isinstance(b, int):
        return a - b
    if a == b:
        return 0
    if b == 0:
        return a
    # a - max(0, a - n) is the smaller of the two.
    less = str(b).removeprefix(f"max(0,({a}-").removesuffix("))")
    if str(b) == f"max(0,({a}-{less}))" and less.isidentifier():
        return minimum(a, symbol(less))
    return _named(f"({a}-{b})")


def maximum(a: Dim, b: Dim) -> Dim | None:
    """max(a, b), where one is 0 or they are equal; None where it is not known."""
    if isinstance(a, int) and isinstance(b, int):
        return max(a, b)
    if a == b:
        return a
    for number, size in ((a, b), (b, a)):
        # A difference may be less than 0, and a digest stand for one; a size is not.
        if number == 0:
            return _named(f"max(0,{size})") if {"-", "#"} & set(str(size)) else size
    return None


def minimum(a: Dim, b: Dim) -> Dim:
    """min(a, b)."""
    if isinstance(a, int) and isinstance(b, int):
        return min(a, b)
    return a if a == b else _named("min({},{})".format(*sorted((str(a), str(b)))))


def broadcast(a: Dim, b: Dim) -> Dim | None:
    """The dimension that a and b broadcast to in every run that does not fail; None where that is not known."""
    if a == b or b == 1:
        return a
    if a == 1:
        return b
    if isinstance(a, int):
        return a
    if isinstance(b, int):
        return b
    # x and min(x, y): either they are equal or the smaller is 1; the result is x in both cases.
    for bound, other in ((a, b), (b, a)):
        text = str(bound)
        if text.startswith("min(") and str(other) in text[4:-1].split(","):
            return other
    return None


def broadcast_shapes(shapes: Sequence[Shape | None]) -> tuple[Dim | None, ...] | None:
    """numpy's broadcasting on symbolic shapes; None per axis where the outcome is unknown."""
    if not shapes or None in shapes:
        return None if shapes else ()
    first = shapes[0]
    return first if shapes.count(first) == len(shapes) else _broadcast(*shapes)


@lru_cache(maxsize=4096)
def _broadcast(*shapes: Shape) -> tuple[Dim | None, ...]:
    rank = max(map(len, shapes), default=0)
    out: list[Dim | None] = []
    for axis in range(rank):
        result: Dim | None = 1
        for shape in shapes:
            position = axis - (rank - len(shape))
            if position >= 0 and result is not None:
                result = broadcast(result, shape[position])
        out.append(result)
    return tuple(out)


def _parts(dim: Dim) -> tuple[int, tuple[str, ...]]:
    return (dim, ()) if isinstance(dim, int) else (dim.factor, dim.symbols)
