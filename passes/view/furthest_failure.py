"""Of all the ways in which a pattern did not fit at a node, the one that tells most, in words."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence, Sized
from functools import partial

from onnx_fuse.passes.graph.node import Node
from onnx_fuse.passes.view.view import View
from onnx_fuse.patterns.language.dsl import VIEW_DOMAIN
from onnx_fuse.patterns.language.terms import Op


class FurthestFailure:
    """Keeps the failure that tells most: the one with most nodes matched.

    Among equals: a requirement (weight 3), then a number that is none (2), then a property of the right operator (1), then
    another operator (0). A sentence is put together only if it is asked for.

    Args:
        matched: what is matched at any time; its length counts.
        root: the node the attempt starts at.
    """

    __slots__ = ("_best", "_matched", "_sentence", "_wanted", "_where")

    def __init__(self, matched: Sized, root: Node | str) -> None:
        self._matched = matched
        self._best = (-1, 0)
        self._where: Node | str = root
        self._sentence: Callable[[], str] | str = "nothing matched"
        self._wanted: list[Op] = []

    def note(self, where: Node | str, sentence: Callable[[], str] | str, weight: int = 1) -> bool:
        """A failure at a node or value; False, which is what the attempt comes to."""
        if (len(self._matched), weight) > self._best:
            self._best = (len(self._matched), weight)
            self._where, self._sentence, self._wanted = where, sentence, []
        return False

    def note_operator(self, where: Node | str, found: Callable[[], str], ops: Sequence[Op]) -> bool:
        """A failure of weight 0: another operator than one of `ops`; where several would have done, all are named."""
        key = (len(self._matched), 0)
        if key < self._best:
            return False
        again = self._best == key and bool(self._wanted)
        again = again and (self._where is where or name_of(self._where) == name_of(where))
        if again or key > self._best:
            self._wanted = [*(self._wanted if again else []), *ops]
            self._best = key
            self._where = where
            self._sentence = found
        return False

    def settle(self, where: Node | str, sentence: str) -> None:
        """What ended the attempt, whatever failed before."""
        self._best = (len(self._matched), 0)
        self._where, self._sentence, self._wanted = where, sentence, []

    def take(self) -> tuple[Node | str, int, Callable[[], str]]:
        """Where it failed, how many nodes were matched, and the sentence; nothing is left here.

        The sentence holds the attempt, which holds this: else the garbage collector would have to find them.
        """
        taken = self._where, max(self._best[0], 0), partial(_worded, self._sentence, self._wanted)
        self._where, self._sentence = "", ""
        return taken


def _worded(sentence: Callable[[], str] | str, wanted: Sequence[Op]) -> str:
    told = sentence if isinstance(sentence, str) else sentence()
    return f"{told}, pattern wants {_wanted(wanted)}" if wanted else told


def name_of(where: Node | str) -> str:
    """A value, or the name of a node."""
    return where if isinstance(where, str) else where.name


def operator_label(node: Node) -> str:
    """A node's operator, with its domain unless it is ONNX's."""
    return f"{node.domain}::{node.op_type}" if node.domain else node.op_type


def describe_node(view: View, node: Node) -> str:
    """The node that was found where a pattern wants something else, by its name in the file."""
    original = in_file(view, node)
    place = "" if original.key == node.key else f"in {operator_label(original)} "
    return f"found {operator_label(node)} {place}{original.name}"


def in_file(view: View, node: Node) -> Node:
    """The node of the file that a node stands for, which the view may have made."""
    return view.graph.nodes[node.position]


def value_in_file(view: View, value: str) -> str:
    """A value by a name that the file has: what the view made is told by the first output of the node that it stands for."""
    node = view.producer(value)
    if value in view.graph.producers or node is None:
        return value
    return next(filter(None, in_file(view, node).outputs), value)


def describe_value(view: View, value: str) -> str:
    """What was found where a pattern wants something else."""
    if not value:
        return "an input is absent"
    value = view.resolve(value)
    node = view.producer(value)
    if node is not None:
        return describe_node(view, node)
    kind = "the constant" if view.is_constant(value) else "the graph input"
    return f"found {kind} {value}"


def _wanted(ops: Sequence[Op]) -> str:
    return one_of(label for op in ops for label in labels_of(op))


def labels_of(op: Op) -> tuple[str, ...]:
    """The operators that a term can be, as the file would call them; an operator of the view alone by what it stands for."""
    if op.domain == VIEW_DOMAIN:
        return tuple(f"a {op_type.lower()} mask" if op_type == "Causal" else op_type for op_type in op.op_types)
    return tuple(f"{op.domain}::{op_type}" if op.domain else op_type for op_type in op.op_types)


def one_of(labels: Iterable[str]) -> str:
    """ "Add, Mul or Cast"."""
    distinct = list(dict.fromkeys(labels))
    return " or ".join(filter(None, (", ".join(distinct[:-1]), distinct[-1])))
