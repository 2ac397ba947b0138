"""What a pattern is: pure data, traced from a Python function over ONNX operators.

    @pattern
    def skip_layer_norm(op, x, skip, gamma: Optional, beta: Optional, epsilon: Attribute):
        return op.LayerNormalization(op.Add(x, skip), gamma, beta, axis=-1, epsilon=epsilon)

The first parameter builds operators; every other parameter is a variable, and its annotation says what it may bind:
nothing or `Value` any value, `Constant` a constant, `Scalar` a constant with one element, `Optional` a value or an absent
input, `Attribute` an attribute's value. A variable that occurs twice must be the same value (or an equal constant) both times.
A Python number where a value is expected is a constant with one element; operands of commutative operators match in either
order. The matcher itself is in `onnx_fuse.passes.view.matcher`.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from onnx import defs

from onnx_fuse.errors import PatternError, did_you_mean
from onnx_fuse.patterns.language.term_facts import (
    Key,
    needed_keys,
    operands_fit,
    root_keys,
    root_operands,
    size_of,
)
from onnx_fuse.patterns.language.terms import AnyOf, Kind, Named, Number, Op, Output, Shaped, Term, Tree, Variable

if TYPE_CHECKING:
    from onnx_fuse.patterns.language.interface import Match, View


class Value:
    """Annotation: the variable binds any value."""


class Constant:
    """Annotation: the variable binds a constant."""


class Scalar:
    """Annotation: the variable binds a constant with exactly one element."""


class Optional:
    """Annotation: the variable binds a value, or nothing where the input is absent."""


class Attribute:
    """Annotation: the variable binds the value of an attribute."""


_KINDS: dict[Any, Kind] = {
    Value: "value",
    Constant: "constant",
    Scalar: "scalar",
    Optional: "optional",
    Attribute: "attribute",
}

VIEW_DOMAIN = "onnx_fuse.view"
"""Domain of operators that exist in canonical views alone: they are matched, and never written."""


_NEWER = frozenset({"Swish"})
"""Operators that the view has whatever the opset, and the oldest onnx that is supported does not."""

NEVER_SHOWN = {
    "Identity": "its input: leave it out",
    "Dropout": "its input: leave it out",
    "Flatten": "Reshape: write op.Reshape(x)",
    "Squeeze": "Reshape: write op.Reshape(x)",
    "Unsqueeze": "Reshape: write op.Reshape(x)",
    "Gemm": "MatMul, then Add: write op.Add(op.MatMul(x, weight), bias)",
    "Constant": "a constant: write a number, or a variable of kind Constant or Scalar",
}
"""Operators that no pattern can rely on, and what the canonical view has instead. It keeps them where their axes are not known, or
they do more than usual (a Gemm that transposes its input, a Dropout in training mode)."""


class _Operators:
    """What a pattern function receives as `op`: `op.Softmax(x, axis=-1)` is a node of the pattern."""

    def __init__(self, domain: str = "") -> None:
        self._domain = domain

    def __getattr__(self, op_type: str) -> Callable[..., Any]:
        if op_type.startswith("_"):
            raise AttributeError(op_type)

        def build(*inputs: Any, outputs: int = 1, since: int = 1, until: int = 1 << 30, **attributes: Any) -> Any:
            return self.node(op_type, *inputs, outputs=outputs, since=since, until=until, **attributes)

        return build

    def node(
        self,
        op_types: str | Sequence[str],
        *inputs: Any,
        outputs: int = 1,
        since: int = 1,
        until: int = 1 << 30,
        **attributes: Any,
    ) -> Any:
        """A node of any of several operator types; `outputs` > 1 gives a tuple of its outputs.

        Division by a number is written as the multiplication it is in the canonical view; an exponent has no tolerance.
        """
        types = (op_types,) if isinstance(op_types, str) else tuple(op_types)
        for op_type in types if self._domain == "" else ():
            _require_known(op_type, attributes)
        if op_types == "Div" and len(inputs) == 2:
            divisor = _term(inputs[1])
            if isinstance(divisor, Number):
                op_types, inputs = "Mul", (inputs[0], Number(1.0 / divisor.value, divisor.tolerance))
            elif isinstance(divisor, Variable) and divisor.kind == "scalar":
                raise PatternError(
                    f"a pattern divides by the scalar {divisor.name}",
                    f"Write op.Mul(x, {divisor.name}): the canonical view has x / c as x * (1/c) for a constant c.",
                )
        if op_types == "Pow" and len(inputs) == 2 and isinstance(exponent := _term(inputs[1]), Number):
            inputs = (inputs[0], Number(exponent.value, 0.0))  # the least change of an exponent is another function
        variadic = None
        if inputs and isinstance(inputs[-1], _Variadic):
            variadic = (inputs[-1].term, inputs[-1].count)
            inputs = inputs[:-1]
        op = Op(
            op_types=(op_types,) if isinstance(op_types, str) else tuple(op_types),
            inputs=tuple(_term(item) for item in inputs),
            attributes=attributes,
            domain=self._domain,
            variadic=variadic,
            since=since,
            until=until,
        )
        return tuple(Output(op, index) for index in range(outputs)) if outputs > 1 else op

    def domain(self, name: str) -> _Operators:
        """Operators of another domain: `op.domain("com.microsoft").FastGelu(x)`."""
        return _Operators(name)

    @staticmethod
    def any_of(*alternatives: Any) -> AnyOf:
        """Any of the alternatives, tried in the order given."""
        return AnyOf(tuple(_term(item) for item in alternatives))

    @staticmethod
    def optional(with_it: Any, without: Any) -> AnyOf:
        """An optional node: `op.optional(op.Add(x, bias), x)`; the form that has it is tried first."""
        return AnyOf((_term(with_it), _term(without)))

    @staticmethod
    def shape(value: Any, dims: str | Sequence[int | str]) -> Shaped:
        """`op.shape(q, "B h S d")`: a value of this rank; equal names are equal dimensions, across the whole pattern."""
        names: Sequence[int | str] = dims.split() if isinstance(dims, str) else dims
        return Shaped(_term(value), tuple(int(item) if str(item).lstrip("-").isdigit() else item for item in names))

    @staticmethod
    def named(name: str, value: Any) -> Named:
        """The value under a name that requirements and fused outputs can use."""
        return Named(_term(value), name)

    @staticmethod
    def number(value: float, tolerance: float = 1e-6) -> Number:
        """A constant with one element, within a relative tolerance."""
        return Number(float(value), tolerance)

    @staticmethod
    def tree(op_type: str, leaf: Any, *, least: int = 2, most: int = 16, count: str = "count") -> Tree:
        """Leaves of a tree of `op_type` nodes; variables in `leaf` are bound as `name_1`, `name_2`, ... in operand order."""
        return Tree(op_type, _term(leaf), least, most, count)

    @staticmethod
    def variadic(term: Any, count: str = "count") -> _Variadic:
        """All remaining inputs of a node; variables in `term` are bound as `name_1`, `name_2`, ..."""
        return _Variadic(_term(term), count)


@dataclass(frozen=True)
class _Variadic:
    term: Term
    count: str


def _term(item: Any) -> Term:
    if isinstance(item, Term):
        return item
    if isinstance(item, (int, float)) and not isinstance(item, bool):
        return Number(float(item))
    raise PatternError(
        f"a pattern operand is {item!r}", "Use a variable, an operator, a number, or op.any_of/op.optional/op.shape."
    )


def _require_known(op_type: str, attributes: Mapping[str, Any]) -> None:
    """Raises PatternError for an operator that ONNX does not have, or that the canonical view does not show."""
    shown = NEVER_SHOWN.get(op_type)
    if shown is not None and not (op_type == "Gemm" and "transA" in attributes):
        raise PatternError(f"a pattern has {op_type}, which the canonical view does not show", f"The view has {shown}.")
    if not defs.has(op_type) and op_type not in _NEWER:
        known = {schema.name for schema in defs.get_all_schemas() if schema.domain == ""}
        raise PatternError(
            f"a pattern has {op_type}, and ONNX has no operator of that name",
            f"{did_you_mean(op_type, known)}An operator of another domain is op.domain('com.example').{op_type}(...).",
        )


Requirement = Callable[["Match", "View"], "str | None"]


class Pattern:
    """A traced pattern with its requirements.

    Attributes:
        name: the function's name.
        root: the term that a match is anchored at.
        others: further outputs the function returned; each is matched from a reader of a value already bound.
        variables: name -> variable.
        needs: (domain, operator type) of nodes that every match holds.
        requirements: functions (match, view) -> None, or the sentence that says why the match is refused.
    """

    def __init__(self, function: Callable[..., Any]) -> None:
        name = function.__name__
        parameters = list(inspect.signature(function, eval_str=True).parameters.values())
        if not parameters:
            raise PatternError(
                f"pattern {name} has no parameter",
                "Its first parameter is the operator builder: def f(op, x, ...).",
            )
        variables = {p.name: Variable(p.name, _kind(name, p)) for p in parameters[1:]}
        result = function(_Operators(), **variables)
        terms = result if isinstance(result, tuple) else (result,)
        self._set(name, inspect.getdoc(function) or "", variables, [_term(term) for term in terms])

    @classmethod
    def of(cls, name: str, variables: Sequence[Variable], results: Sequence[Term], doc: str = "") -> Pattern:
        """A pattern of terms that were put together without tracing a function.

        Raises:
            PatternError: the first result is a bare variable.
        """
        made = cls.__new__(cls)
        made._set(name, doc, {variable.name: variable for variable in variables}, results)
        return made

    def _set(self, name: str, doc: str, variables: dict[str, Variable], results: Sequence[Term]) -> None:
        self.name = name
        self.doc = doc
        self.variables = variables
        self.root: Term = results[0]
        self.others: tuple[Term, ...] = tuple(results[1:])
        self.requirements: list[Requirement] = []
        self.root_keys: frozenset[tuple[str, str]] = frozenset(root_keys(self.root))
        if not self.root_keys:
            raise PatternError(f"pattern {name} is a bare variable", "A pattern's result must be an operator.")
        self._operands = root_operands(self.root)
        self.size = size_of(self.root, *self.others)
        self.needs: frozenset[tuple[str, str]] = needed_keys(self.root, *self.others)

    def may_start_at(self, key: tuple[str, str], operands: Sequence[tuple[str, str] | None]) -> bool:
        """Whether a node of this key whose operands are made by nodes of those keys can be the root: a quick first look."""
        return _may_start_at(self, key, tuple(operands))

    def require(self, requirement: Requirement) -> Requirement:
        """Decorator: a condition checked once everything is bound; it returns None, or a sentence that refuses the match."""
        self.requirements.append(requirement)
        return requirement

    def __repr__(self) -> str:
        return f"<pattern {self.name}, up to {self.size} nodes>"


@lru_cache(maxsize=1 << 14)
def _may_start_at(pattern: Pattern, key: Key, operands: tuple[Key | None, ...]) -> bool:
    return any(
        operands_fit(wanted, operands) or (commutative and operands_fit(wanted, operands[::-1]))
        for wanted, commutative in pattern._operands.get(key, ())
    )


def pattern(function: Callable[..., Any]) -> Pattern:
    """Turns a function over ONNX operators into a `Pattern` (see the module's docstring).

    Raises:
        PatternError: a parameter's annotation is unknown, or the function returns no operator.
    """
    return Pattern(function)


def _kind(name: str, parameter: inspect.Parameter) -> Kind:
    if parameter.annotation is inspect.Parameter.empty:
        return "value"
    kind = _KINDS.get(parameter.annotation)
    if kind is None:
        raise PatternError(
            f"pattern {name}: parameter {parameter.name} has the annotation {parameter.annotation!r}",
            "Use Value, Constant, Scalar, Optional or Attribute of onnx_fuse.patterns.",
        )
    return kind
