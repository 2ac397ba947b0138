"""Sizes as expressions of named sizes, `ceil_div(B * S, ROWS)`: read with Python's grammar, worked out here, written as C++.

Integers, names, + - * // %, ceil_div, min and max; in a condition also comparisons, `and` and `or`. Nothing else, so that
the same text means the same to Python, to TensorRT's dimension expressions and to the launch in C++.
"""

from __future__ import annotations

import ast
import itertools
import operator
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

_ARITHMETIC: dict[type[ast.operator], tuple[Callable[[int, int], int], str]] = {
    ast.Add: (operator.add, "({} + {})"),
    ast.Sub: (operator.sub, "({} - {})"),
    ast.Mult: (operator.mul, "({} * {})"),
    ast.FloorDiv: (operator.floordiv, "floorDivide({}, {})"),
    ast.Mod: (operator.mod, "modulo({}, {})"),
}
_FUNCTIONS: dict[str, tuple[Callable[[int, int], int], str]] = {
    "ceil_div": (lambda a, b: -(-a // b), "roundedDivide({}, {})"),
    "min": (min, "smaller({}, {})"),
    "max": (max, "larger({}, {})"),
}
_COMPARISONS: dict[type[ast.cmpop], tuple[Callable[[int, int], bool], str]] = {
    ast.Lt: (operator.lt, "<"),
    ast.LtE: (operator.le, "<="),
    ast.Gt: (operator.gt, ">"),
    ast.GtE: (operator.ge, ">="),
    ast.Eq: (operator.eq, "=="),
    ast.NotEq: (operator.ne, "!="),
}
_LOGIC: dict[type[ast.boolop], tuple[Callable[[Iterable[int]], bool], str]] = {
    ast.And: (all, " && "),
    ast.Or: (any, " || "),
}
_LARGEST = 2**62


@dataclass(frozen=True)
class Expression:
    """An expression that was found to hold nothing but what is allowed. `parse` makes one."""

    text: str
    tree: ast.expr

    @property
    def names(self) -> set[str]:
        """The names whose sizes it needs."""
        return _names(self.tree)

    def value(self, sizes: Mapping[str, int]) -> int:
        """Its value; 0 or 1 for a condition.

        Raises:
            ZeroDivisionError: it divides by a size that is 0.
        """
        return int(_value(self.tree, sizes))

    def known(self, constants: Mapping[str, int]) -> Expression:
        """The same with names replaced by numbers, and a condition without the parts that these decide."""
        tree = _known(self.tree, constants)
        return Expression(ast.unparse(tree), tree)

    def cpp(self, names: Mapping[str, str], number: str) -> str:
        """C++ that works it out: `names` says what C++ calls a name, `number` the type of a literal."""
        return _cpp(self.tree, names, number)


def parse(text: str, names: Collection[str], *, condition: bool = False) -> Expression:
    """Reads an expression (or a condition) of names.

    Raises:
        ValueError: it is none; the sentence quotes what is wrong.
    """
    try:
        tree = ast.parse(text.strip(), mode="eval").body
    except (SyntaxError, ValueError) as error:
        raise ValueError(f"{text!r} is no expression") from error
    _check(tree, names, condition)
    return Expression(text, tree)


def _check(tree: ast.expr, names: Collection[str], condition: bool) -> None:
    """Raises ValueError where a tree holds what is not allowed."""
    part = ast.unparse(tree)
    if condition:
        if isinstance(tree, ast.BoolOp):
            parts, condition = tree.values, True
        elif isinstance(tree, ast.Compare):
            if any(type(item) not in _COMPARISONS for item in tree.ops):
                raise ValueError(f"{part!r}: sizes are compared with < <= > >= == !=")
            parts, condition = [tree.left, *tree.comparators], False
        else:
            raise ValueError(f"{part!r} is no condition; write one such as {part} <= 64")
    elif isinstance(tree, ast.BinOp):
        if isinstance(tree.op, ast.Div):
            raise ValueError(f"{part!r}: a size is an integer; write // or ceil_div")
        if type(tree.op) not in _ARITHMETIC:
            raise ValueError(f"{part!r}: sizes are computed with + - * // %, ceil_div, min and max")
        parts = [tree.left, tree.right]
    elif isinstance(tree, ast.Call):
        if not isinstance(tree.func, ast.Name) or tree.func.id not in _FUNCTIONS:
            raise ValueError(f"{part!r}: the functions are {', '.join(_FUNCTIONS)}")
        if len(tree.args) != 2 or tree.keywords:
            raise ValueError(f"{part!r}: {tree.func.id} takes two sizes")
        parts = tree.args
    elif isinstance(tree, ast.Name):
        if tree.id not in names:
            raise ValueError(f"{part!r} is none of {', '.join(names) or 'the sizes, of which there are none'}")
        return
    elif isinstance(tree, ast.Constant) and type(tree.value) is int:
        if tree.value > _LARGEST:
            raise ValueError(f"{part!r} does not fit into 64 bits")
        return
    else:
        raise ValueError(f"{part!r}: sizes are computed with integers, + - * // %, ceil_div, min and max")
    for item in parts:
        _check(item, names, condition)


def _names(tree: ast.expr) -> set[str]:
    functions = {node.func for node in ast.walk(tree) if isinstance(node, ast.Call)}
    return {node.id for node in ast.walk(tree) if isinstance(node, ast.Name) and node not in functions}


def _value(tree: ast.expr, sizes: Mapping[str, int]) -> int:
    if isinstance(tree, ast.BoolOp):
        return int(_LOGIC[type(tree.op)][0](_value(item, sizes) for item in tree.values))
    if isinstance(tree, ast.Compare):
        values = [_value(item, sizes) for item in (tree.left, *tree.comparators)]
        holds = (_COMPARISONS[type(op)][0](*pair) for op, pair in zip(tree.ops, _pairs(values), strict=True))
        return int(all(holds))
    if isinstance(tree, ast.BinOp):
        return int(_ARITHMETIC[type(tree.op)][0](_value(tree.left, sizes), _value(tree.right, sizes)))
    if isinstance(tree, ast.Call):
        return int(_FUNCTIONS[_called(tree)][0](*(_value(item, sizes) for item in tree.args)))
    if isinstance(tree, ast.Name):
        return sizes[tree.id]
    assert isinstance(tree, ast.Constant) and isinstance(tree.value, int)
    return tree.value


def _cpp(tree: ast.expr, names: Mapping[str, str], number: str) -> str:
    if isinstance(tree, ast.BoolOp):
        return f"({_LOGIC[type(tree.op)][1].join(_cpp(item, names, number) for item in tree.values)})"
    if isinstance(tree, ast.Compare):
        parts = [_cpp(item, names, number) for item in (tree.left, *tree.comparators)]
        pairs = zip(tree.ops, _pairs(parts), strict=True)
        told = [f"{left} {_COMPARISONS[type(op)][1]} {right}" for op, (left, right) in pairs]
        return told[0] if len(told) == 1 else f"({' && '.join(told)})"
    if isinstance(tree, ast.BinOp):
        return _ARITHMETIC[type(tree.op)][1].format(_cpp(tree.left, names, number), _cpp(tree.right, names, number))
    if isinstance(tree, ast.Call):
        return _FUNCTIONS[_called(tree)][1].format(*(_cpp(item, names, number) for item in tree.args))
    if isinstance(tree, ast.Name):
        return names[tree.id]
    assert isinstance(tree, ast.Constant) and isinstance(tree.value, int)
    return f"{number}{{{tree.value}}}"


def _called(tree: ast.Call) -> str:
    assert isinstance(tree.func, ast.Name)
    return tree.func.id


def _pairs(items: list[Any]) -> list[tuple[Any, Any]]:
    return list(itertools.pairwise(items))


def _known(tree: ast.expr, constants: Mapping[str, int]) -> ast.expr:
    if isinstance(tree, ast.BoolOp):
        decides = isinstance(tree.op, ast.Or)  # one true part decides an `or`, one false part an `and`
        parts = [_known(item, constants) for item in tree.values]
        if any(isinstance(item, ast.Constant) and bool(item.value) is decides for item in parts):
            return ast.Constant(decides)
        rest = [item for item in parts if not isinstance(item, ast.Constant)]
        return ast.BoolOp(tree.op, rest) if len(rest) > 1 else rest[0] if rest else ast.Constant(not decides)
    if isinstance(tree, ast.Compare):
        made = ast.Compare(
            _known(tree.left, constants), tree.ops, [_known(item, constants) for item in tree.comparators]
        )
        return made if _names(made) else ast.Constant(bool(_value(made, {})))
    if isinstance(tree, ast.BinOp):
        return ast.BinOp(_known(tree.left, constants), tree.op, _known(tree.right, constants))
    if isinstance(tree, ast.Call):
        return ast.Call(tree.func, [_known(item, constants) for item in tree.args], [])
    if isinstance(tree, ast.Name) and tree.id in constants:
        return ast.Constant(constants[tree.id])
    return tree
