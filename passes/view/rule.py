"""What a rule of normalisation is, and how it says where it is worth trying."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol, TypeVar

from onnx_fuse.passes.graph.node import Node
from onnx_fuse.passes.view.view import View
from onnx_fuse.patterns.language.dsl import Pattern


class Rule(Protocol):
    """A function (view, node) -> whether it changed the view."""

    __name__: str

    def __call__(self, view: View, node: Node, /) -> bool: ...


Rules = Mapping[str, Sequence[Rule]]

Key = tuple[str, str]
_Condition = Callable[[Key, "Sequence[Key | None]"], bool]
_Marked = TypeVar("_Marked", bound=Callable[..., Any])


def reads(*op_types: str) -> Callable[[_Marked], _Marked]:
    """Decorator: the rule never fires unless one of these operators makes one of the node's inputs."""
    keys = frozenset(("", op_type) for op_type in op_types)
    return _only_where(lambda _, makers: not keys.isdisjoint(makers))


def begins(*patterns: Pattern) -> Callable[[_Marked], _Marked]:
    """Decorator: the rule never fires unless one of these patterns may have the node as its root."""
    return _only_where(lambda key, makers: any(pattern.may_start_at(key, makers) for pattern in patterns))


def _only_where(condition: _Condition) -> Callable[[_Marked], _Marked]:
    def mark(rule: _Marked) -> _Marked:
        setattr(rule, "only_where", condition)  # noqa: B010  (a function's own attribute, which no type declares)
        return rule

    return mark


def may_fire(rule: Rule, key: Key, makers: Sequence[Key | None]) -> bool:
    """Whether a rule can fire at a node of this key whose inputs are made by nodes of those keys (None: by no node)."""
    condition: _Condition | None = getattr(rule, "only_where", None)
    return condition is None or condition(key, makers)
