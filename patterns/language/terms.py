"""What patterns are made of: terms, each of which can stand where a value is expected."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Literal

Kind = Literal["value", "constant", "scalar", "optional", "attribute"]

COMMUTATIVE = frozenset({"Add", "Mul", "And", "Or", "Xor", "Equal", "Max", "Min", "Sum", "BitwiseAnd", "BitwiseOr"})


class Term:
    """Anything that can stand where a value is expected in a pattern."""


@dataclass(frozen=True, eq=False)
class Variable(Term):
    """Binds a value (or an attribute's value) to a name."""

    name: str
    kind: Kind = "value"


@dataclass(frozen=True, eq=False)
class Number(Term):
    """A constant with one element equal to `value` within the relative `tolerance`; zero is zero."""

    value: float
    tolerance: float = 1e-6


@dataclass(frozen=True, eq=False)
class AnyOf(Term):
    """The first alternative that lets the whole pattern match."""

    alternatives: tuple[Term, ...]


@dataclass(frozen=True, eq=False)
class Shaped(Term):
    """A value whose shape fits `dims`: an int is that size, a name is bound across the pattern, "_" is anything."""

    inner: Term
    dims: tuple[int | str, ...]


@dataclass(frozen=True, eq=False)
class Named(Term):
    """Gives a matched value a name, so that requirements and the operator's outputs can refer to it."""

    inner: Term
    name: str


@dataclass(frozen=True, eq=False)
class Tree(Term):
    """A tree of one binary operator, flattened: each leaf matches `leaf`, whose variables become `name_1`, `name_2`, ..."""

    op_type: str
    leaf: Term
    least: int
    most: int
    count: str


@dataclass(frozen=True, eq=False)
class Op(Term):
    """A node: one of `op_types` of `domain`, with these inputs and attributes.

    Attributes:
        inputs: one term for each leading input; inputs the pattern does not name must be absent, unless the operator takes
            them as what used to be attributes (axes, split, ...), which patterns always write as attributes.
        attributes: name -> literal, `Variable` of kind "attribute", or predicate (True, False, or a sentence on what was
            wanted).
        variadic: the term that every input from `len(inputs)` on must match, its variables numbered from 1; None for none.
        since, until: opset versions of the domain between which the node may stand (inclusive).
    """

    op_types: tuple[str, ...]
    inputs: tuple[Term, ...]
    attributes: Mapping[str, Any] = field(default_factory=dict)
    domain: str = ""
    variadic: tuple[Term, str] | None = None
    since: int = 1
    until: int = 1 << 30

    @cached_property
    def keys(self) -> frozenset[tuple[str, str]]:
        """(domain, operator type) of the nodes it can be."""
        return frozenset((self.domain, op_type) for op_type in self.op_types)

    @cached_property
    def of_any_opset(self) -> bool:
        """Whether the node may stand whatever the opset."""
        return self.since <= 1 and self.until >= 1 << 30

    @cached_property
    def commutative(self) -> bool:
        """Whether the operands may be swapped."""
        return len(self.inputs) == 2 and self.domain == "" and all(name in COMMUTATIVE for name in self.op_types)


@dataclass(frozen=True, eq=False)
class Output(Term):
    """One output of a node that has several."""

    op: Op
    index: int
