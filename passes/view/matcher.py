"""Tries a pattern at a node of the canonical view: a `Match`, or a `NearMiss` that says how far it got and what stopped it.

Matching only reads. The search is a depth-first one with continuations: every choice (operand order, alternatives) is undone
when what follows fails, and a budget bounds the steps spent at one node.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence, Set
from dataclasses import dataclass
from functools import partial
from operator import attrgetter
from typing import Any, NamedTuple

from onnx_fuse.errors import PatternError
from onnx_fuse.passes.graph.dims import Shape
from onnx_fuse.passes.graph.node import Node
from onnx_fuse.passes.view.attribute_terms import attribute_problem
from onnx_fuse.passes.view.facts import ATTRIBUTE_INPUTS
from onnx_fuse.passes.view.furthest_failure import (
    FurthestFailure,
    describe_node,
    describe_value,
    in_file,
    value_in_file,
)
from onnx_fuse.passes.view.view import View
from onnx_fuse.patterns.language.dsl import Pattern, Requirement
from onnx_fuse.patterns.language.term_facts import choices, root_keys
from onnx_fuse.patterns.language.terms import AnyOf, Named, Number, Op, Output, Shaped, Term, Tree, Variable

STEP_BUDGET = 20_000
"""Most terms tried at one node; a pattern that needs more is refused there, and says so."""

MOST_READERS = 64
"""Further results of a pattern are not looked for among the readers of a value that has more."""


@dataclass(frozen=True, slots=True)
class Match:
    """A pattern found in the view.

    Attributes:
        pattern: the pattern.
        root: the node the match is anchored at.
        value: the value the pattern's result stands for.
        values: for several results, the value of each.
        bindings: variable, name or dimension -> value name, attribute value or `Dim`.
        nodes: matched canonical nodes, in graph order.
    """

    pattern: Pattern
    root: Node
    value: str
    values: tuple[str, ...]
    bindings: Mapping[str, Any]
    nodes: tuple[Node, ...]

    def __contains__(self, name: str) -> bool:
        return self.bindings.get(name) is not None

    def __getitem__(self, name: str) -> Any:
        return self.bindings[name]

    def get(self, name: str, default: Any = None) -> Any:
        """The binding, or `default` where the variable was not bound."""
        found = self.bindings.get(name)
        return default if found is None else found


class NearMiss(NamedTuple):
    """The attempt that got furthest.

    Attributes:
        pattern: the pattern.
        root: the node the attempt started at.
        failed_at: name of the node (or value) that did not fit.
        matched: nodes matched before.
        reason: what was found there and what was wanted.
        reached: (operator type, position) of the nodes that were looked at.
    """

    pattern: Pattern
    root: Node
    failed_at: str
    matched: int
    reason: str
    reached: frozenset[tuple[str, int]]


def match_at(pattern: Pattern, node: Node, view: View) -> Match | NearMiss:
    """Tries the pattern with `node` as its root."""
    result = _Search(pattern, node, view).run(lambda *_: True)
    assert result is not None  # whatever stopped it is worth a sentence
    return result


Worth = Callable[[Pattern, Node, int, "Node | str", Set[tuple[str, int]]], bool]
"""Whether an attempt is worth a sentence: pattern, root, number of nodes matched, where it failed, what it reached."""


def match_or_tell(pattern: Pattern, node: Node, view: View, worth: Worth) -> Match | NearMiss | None:
    """As `match_at`; None for an attempt that is not worth a sentence, as where no operand is made by what the pattern wants."""
    if not pattern.may_start_at(node.key, view.maker_keys(node)):
        return None
    return _Search(pattern, node, view).run(worth)


_position = attrgetter("position")


class _BudgetSpent(Exception):
    pass


Continuation = Callable[[], bool]


class _Search:
    """The search for one pattern from one root: what is bound and matched so far, and the choices that are left.

    A method that matches a term calls `then` for what follows it and returns whether all of it fits; else it undoes what it did.
    """

    def __init__(self, pattern: Pattern, root: Node, view: View) -> None:
        self.pattern = pattern
        self.root = root
        self.view = view
        self.bindings: dict[str, Any] = {}
        self.nodes: dict[tuple[int, str], Node] = {}
        self.suffix = ""
        self.steps = 0
        self.failure = FurthestFailure(self.nodes, root)
        self.reached: set[tuple[str, int]] = set()
        self.values: list[str] = []
        self.found: Match | None = None

    def run(self, worth: Worth) -> Match | NearMiss | None:
        value = self._root_value()
        self.values = [value]
        then = partial(self._others, 0) if self.pattern.others else self._requirements
        try:
            matched = self._term(self.pattern.root, value, then)
        except (_BudgetSpent, RecursionError) as error:
            matched = False
            spent = isinstance(error, _BudgetSpent)
            sentence = (
                f"more than {STEP_BUDGET} steps were needed" if spent else "it has more inputs than can be followed"
            )
            self.failure.settle(self.root, sentence)
        where, count, reason = self.failure.take()
        if matched:
            return self.found
        if not worth(self.pattern, self.root, count, where, self.reached):
            return None
        failed_at = value_in_file(self.view, where) if isinstance(where, str) else in_file(self.view, where).name
        return NearMiss(self.pattern, self.root, failed_at, count, reason(), frozenset(self.reached))

    def _match(self) -> Match:
        nodes = sorted({id(node): node for node in self.nodes.values()}.values(), key=_position)
        return Match(self.pattern, self.root, self.values[0], tuple(self.values), dict(self.bindings), tuple(nodes))

    def _root_value(self) -> str:
        index = _output_index(self.pattern.root)
        outputs = self.root.outputs
        return outputs[index] if index < len(outputs) else outputs[0]

    def _others(self, index: int) -> bool:
        if index == len(self.pattern.others):
            return self._requirements()
        term = self.pattern.others[index]
        for value in self._candidates(term):
            self.values.append(value)
            if self._term(term, value, lambda: self._others(index + 1)):
                return True
            self.values.pop()
        return self.failure.note(self.root, f"no node beside it fits result {index + 2} of the pattern")

    def _candidates(self, term: Term) -> Iterator[str]:
        """Values that could be another result of the pattern: made by a node near what is bound already."""
        keys = set(root_keys(term))
        index = _output_index(term)
        seen: set[str] = set()
        frontier = [item for item in self.bindings.values() if isinstance(item, str)]
        frontier += [output for node in self.nodes.values() for output in node.outputs]
        for _ in range(self.pattern.size):
            following: list[str] = []
            for name in frontier:
                readers = self.view.readers(name)
                for node in readers if len(readers) <= MOST_READERS else ():
                    if index >= len(node.outputs) or node.outputs[index] in seen:
                        continue
                    value = node.outputs[index]
                    seen.add(value)
                    following.append(value)
                    if node.key in keys:
                        yield value
            frontier = following

    def _requirements(self) -> bool:
        match = self._match()
        for requirement in self.pattern.requirements:
            sentence = _asked(requirement, match, self.view)
            if sentence is not None:
                return self.failure.note(self.root, sentence, 3)
        self.found = match
        return True

    # -- bookkeeping -----------------------------------------------------------------------------------------------

    def _bind(self, name: str, item: Any, then: Continuation) -> bool:
        outer = self.bindings.get(name)
        self.bindings[name] = item
        if then():
            return True
        if outer is None:
            del self.bindings[name]
        else:
            self.bindings[name] = outer
        return False

    # -- terms -----------------------------------------------------------------------------------------------------

    def _term(self, term: Term, value: str, then: Continuation) -> bool:
        self.steps += 1
        if self.steps > STEP_BUDGET:
            raise _BudgetSpent
        handler = _HANDLERS.get(type(term))
        if handler is None:
            raise TypeError(
                f"{term!r} stands where a pattern wants a term, such as a variable, a number or an operator."
            )
        return handler(self, term, value, then)

    def _undo(self, bound: Sequence[str]) -> bool:
        """Names that were bound for nothing are free again."""
        for name in bound:
            if name:
                del self.bindings[name]
        return False

    def _any_of(self, term: AnyOf, value: str, then: Continuation) -> bool:
        node = self.view.producer(value) if value else None
        for choice in choices(term, None if node is None else node.key):
            if isinstance(choice, tuple):
                self._other_operator(node, value, choice)
            elif self._term(choice, value, then):
                return True
        return False

    def _bound_leaf(self, term: Variable | Number, value: str, then: Continuation) -> bool:
        bound = self._leaf(term, value)
        return bound is not None and (then() or self._undo([bound]))

    def _output(self, term: Output, value: str, then: Continuation) -> bool:
        return self._op(term.op, value, then, term.index)

    def _named(self, term: Named, value: str, then: Continuation) -> bool:
        resolved = self.view.resolve(value)
        return self._term(term.inner, value, lambda: self._bind(term.name + self.suffix, resolved, then))

    def _leaf(self, term: Term, value: str) -> str | None:
        """Matches a term that has one way to match: the name it newly bound, "" for none, None where it does not match."""
        if isinstance(term, Variable):
            return self._variable(term, value)
        return "" if isinstance(term, Number) and self._number(term, value) else None

    def _variable(self, term: Variable, value: str) -> str | None:
        name = term.name + self.suffix
        if not value:
            if term.kind == "optional":
                return ""
            self.failure.note(self.root, f"an input is absent where the pattern wants {name}")
            return None
        value = self.view.resolve(value)
        if name in self.bindings:
            bound = self.bindings[name]
            if bound == value or self._equal_constants(bound, value):
                return ""
            self.failure.note(value, partial(_expected_again, self.view, value, bound, name))
        elif term.kind == "constant" and not self.view.is_constant(value):
            self.failure.note(value, partial(_said_of, self.view, value, f"is not a constant ({name})"))
        elif term.kind == "scalar" and self.view.scalar(value) is None:
            said = partial(_said_of, self.view, value, f"is not a constant with one element ({name})")
            self.failure.note(value, said, 2)
        else:
            self.bindings[name] = value
            return name
        return None

    def _equal_constants(self, a: str, b: str) -> bool:
        left, right = self.view.scalar(a), self.view.scalar(b)
        return left is not None and left == right

    def _number(self, term: Number, value: str) -> bool:
        found = self.view.scalar(value) if value else None
        if found is None:
            return self.failure.note(value, partial(_no_number, self.view, value, term.value), 0)
        if not math.isclose(found, term.value, rel_tol=term.tolerance):
            return self.failure.note(value, f"the constant is {found:g}, pattern wants {term.value:g}")
        return True

    def _shaped(self, term: Shaped, value: str, then: Continuation) -> bool:
        inner = term.inner
        if isinstance(inner, Variable) and inner.kind == "constant" and value and not self.view.is_constant(value):
            name = inner.name + self.suffix
            return self.failure.note(value, partial(_said_of, self.view, value, f"is not a constant ({name})"), 0)
        shape = self.view.shape(value) if value else None
        if shape is None or len(shape) != len(term.dims):
            return self.failure.note(value, partial(_another_rank, self.view, value, shape, term))
        added: list[str] = []
        try:
            for axis, (have, want) in enumerate(zip(shape, term.dims, strict=True)):
                if want == "_" or have == want:
                    continue
                if isinstance(want, str):
                    bound = self.bindings.get(want)
                    if bound is None:
                        self.bindings[want] = have
                        added.append(want)
                        continue
                    if bound == have:
                        continue
                    said = partial(_another_size, self.view, value, want, have, bound)
                else:
                    said = partial(_another_axis, self.view, value, axis, have, want)
                return self.failure.note(value, said)
            if self._term(term.inner, value, then):
                added.clear()
                return True
            return False
        finally:
            for name in added:
                self.bindings.pop(name, None)

    def _tree(self, term: Tree, value: str, then: Continuation) -> bool:
        leaves: list[str] = []
        inner: list[Node] = []
        pending = [value]
        while pending:
            item = pending.pop()
            node = self.view.producer(item)
            if node is not None and node.key == ("", term.op_type) and len(inner) < term.most:
                inner.append(node)
                pending.extend(reversed(self.view.inputs(node)))
            else:
                leaves.append(item)
        if not term.least <= len(leaves) <= term.most:
            found = len(leaves)
            return self.failure.note(
                self.root, f"{found} operands of {term.op_type}, pattern wants {term.least} to {term.most}"
            )
        for node in inner:
            self.nodes[(id(node), "tree")] = node
        if self._bind(term.count, len(leaves), partial(self._numbered, term.leaf, leaves, 0, then)):
            return True
        for node in inner:
            self.nodes.pop((id(node), "tree"), None)
        return False

    def _numbered(self, term: Term, values: Sequence[str], index: int, then: Continuation) -> bool:
        """Matches `term` against each value, its variables numbered from 1."""
        outer = self.suffix
        if index == len(values):
            self.suffix = ""
            if then():
                return True
            self.suffix = outer
            return False
        self.suffix = f"_{index + 1}"
        if self._term(term, values[index], partial(self._numbered, term, values, index + 1, then)):
            return True
        self.suffix = outer
        return False

    # -- nodes -----------------------------------------------------------------------------------------------------

    def _op(self, op: Op, value: str, then: Continuation, index: int = 0) -> bool:
        view = self.view
        node = view.producer(value) if value else None
        if node is None or node.key not in op.keys:
            return self._other_operator(node, value, (op,))
        self.reached.add((node.op_type, node.position))
        outputs = node.outputs
        if (index or len(outputs) != 1) and (
            index >= len(outputs) or view.resolve(outputs[index]) != view.resolve(value)
        ):
            return self.failure.note(node, f"{value} is not output {index} of {node.name}")
        key = id(op), self.suffix
        bound = self.nodes.get(key)
        if bound is not None:
            return then() if bound is node else self.failure.note(node, f"pattern wants {bound.name} here again")
        if not op.of_any_opset:
            opset = view.graph.opset(node.domain)
            if not op.since <= opset <= op.until:
                return self.failure.note(node, f"opset {opset} is outside {op.since} to {op.until}")
        captured: dict[str, Any] = {}
        for name, wanted in op.attributes.items():
            problem = attribute_problem(view, node, name, wanted, self.bindings, captured, self.suffix)
            if problem is not None:
                return self.failure.note(node, problem)
        self.nodes[key] = node
        if captured:
            self.bindings.update(captured)
        if self._inputs(op, node, then):
            return True
        for name in captured:
            self.bindings.pop(name, None)
        del self.nodes[key]
        return False

    def _other_operator(self, node: Node | None, value: str, ops: Sequence[Op]) -> bool:
        if node is None:
            return self.failure.note_operator(value, partial(describe_value, self.view, value), ops)
        self.reached.add((node.op_type, node.position))
        return self.failure.note_operator(node, partial(describe_node, self.view, node), ops)

    def _inputs(self, op: Op, node: Node, then: Continuation) -> bool:
        inputs: Sequence[str] = _data_inputs(node, self.view)
        terms = op.inputs
        if op.variadic is not None:
            term, count = op.variadic
            rest = inputs[len(terms) :]
            others = partial(self._bind, count, len(rest), partial(self._numbered, term, rest, 0, then))
            return self._sequence(terms, inputs[: len(terms)], 0, others)
        if len(inputs) > len(terms):
            return self.failure.note(node, f"{node.op_type} has {len(inputs)} inputs, pattern wants {len(terms)}")
        if len(inputs) < len(terms):
            inputs = [*inputs, *[""] * (len(terms) - len(inputs))]
        if self._sequence(terms, inputs, 0, then):
            return True
        return op.commutative and self._sequence(terms, inputs[::-1], 0, then)

    def _sequence(self, terms: Sequence[Term], values: Sequence[str], index: int, then: Continuation) -> bool:
        bound: list[str] = []
        for place in range(index, len(terms)):
            term, value = terms[place], values[place]
            kind = type(term)
            if kind is not Variable and kind is not Number:
                following = place + 1
                rest = partial(self._sequence, terms, values, following, then) if following < len(terms) else then
                return self._term(term, value, rest) or self._undo(bound)
            self.steps += 1
            name = self._leaf(term, value)
            if name is None:
                return self._undo(bound)
            bound.append(name)
        return then() or self._undo(bound)


_HANDLERS: dict[type[Term], Callable[..., bool]] = {
    Variable: _Search._bound_leaf,
    Number: _Search._bound_leaf,
    Op: _Search._op,
    AnyOf: _Search._any_of,
    Output: _Search._output,
    Shaped: _Search._shaped,
    Named: _Search._named,
    Tree: _Search._tree,
}
"""How each kind of term matches."""


def _said_of(view: View, value: str, what: str) -> str:
    return f"{value_in_file(view, value)} {what}"


def _expected_again(view: View, value: str, bound: str, name: str) -> str:
    return f"{value_in_file(view, value)} stands where {value_in_file(view, bound)} was expected again ({name})"


def _another_size(view: View, value: str, name: str, found: Any, bound: Any) -> str:
    return f"dimension {name} of {value_in_file(view, value)} is {found}, elsewhere in the match it is {bound}"


def _another_axis(view: View, value: str, axis: int, found: Any, wanted: int) -> str:
    return f"axis {axis} of {value_in_file(view, value)} is {found}, pattern wants {wanted}"


def _no_number(view: View, value: str, wanted: float) -> str:
    return f"{describe_value(view, value)}, pattern wants the constant {wanted:g}"


def _another_rank(view: View, value: str, shape: Shape | None, term: Shaped) -> str:
    found = "unknown" if shape is None else f"[{', '.join(map(str, shape))}]"
    return f"{value_in_file(view, value)} has shape {found}, pattern wants [{' '.join(map(str, term.dims))}]"


def _data_inputs(node: Node, view: View) -> tuple[str, ...]:
    """Canonical inputs without those that patterns see as attributes, and without absent ones at the end."""
    inputs = view.inputs(node)
    if len(inputs) > 1 and node.domain == "":
        if node.op_type in ATTRIBUTE_INPUTS:
            inputs = inputs[: min(ATTRIBUTE_INPUTS[node.op_type].values())]
        elif node.op_type in ("Reshape", "Expand"):
            # Where a Reshape or Expand leads is a shape, not an operand: patterns use op.shape.
            inputs = inputs[:1]
    while inputs and not inputs[-1]:
        inputs = inputs[:-1]
    return inputs


def _output_index(term: Term) -> int:
    while isinstance(term, (Shaped, Named)):
        term = term.inner
    return term.index if isinstance(term, Output) else 0


def _asked(requirement: Requirement, match: Match, view: View) -> str | None:
    """What a requirement says.

    Raises:
        PatternError: it returns something else than None or a sentence.
    """
    sentence: Any = requirement(match, view)
    if sentence is None or (isinstance(sentence, str) and sentence.strip()):
        return sentence
    raise PatternError(
        f"the requirement {requirement.__name__} of pattern {match.pattern.name} returned {sentence!r} at {match.root.name}",
        "It returns None where the match may fuse, or the sentence that says why not.",
    )
