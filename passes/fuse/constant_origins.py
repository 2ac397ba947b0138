"""Which parameters the constants of an example were computed from, and what they are."""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import Any

import numpy as np

from onnx_fuse.passes.fuse.learnable import is_random
from onnx_fuse.passes.view.view import View

_LARGEST = 1 << 26


class ConstantOrigins:
    """Follows constants back to parameters.

    Args:
        view: the canonical view of the example.
        parameters: names of initializers.
    """

    def __init__(self, view: View, parameters: Collection[str]) -> None:
        self._view, self._graph = view, view.graph
        self._parameters = frozenset(parameters)
        self._found: dict[str, frozenset[str] | None] = {}
        self._arrays: dict[str, np.ndarray | None] = {}

    def of(self, value: str) -> frozenset[str] | None:
        """The parameters that a constant was computed from; None for what is no constant."""
        value = self._view.resolve(value)
        _each_after_its_inputs(value, self._found, self._makers, self._follow)
        return self._found[value]

    def array(self, value: str) -> np.ndarray | None:
        """The value of a constant, also of one that only the view computes from others."""
        value = self._view.resolve(value)
        _each_after_its_inputs(value, self._arrays, self._unread, self._array)
        return self._arrays[value]

    def _makers(self, value: str) -> list[str]:
        """What a value is computed from; nothing where that need not be known."""
        node = self._view.producer(value)
        if node is None or node.domain or is_random(node) or self._is_stored(value) or self._is_known(value):
            return []
        return [self._view.resolve(name) for name in node.inputs if name]

    def _is_stored(self, value: str) -> bool:
        return value in self._graph.initializers or self._view.is_array(value) or self._graph.tensor(value) is not None

    def _is_known(self, value: str) -> bool:
        return self._view.info(value).content is not None and self._view.constant(value) is not None

    def _follow(self, value: str) -> frozenset[str] | None:
        if self._is_stored(value):
            return frozenset({value} & self._parameters)
        node = self._view.producer(value)
        if node is None or node.domain or is_random(node):
            return None
        if self._is_known(value):
            return frozenset()
        origins = [self._found.get(name) for name in self._makers(value)]
        if not origins or any(origin is None for origin in origins):
            return None
        return frozenset().union(*(origin for origin in origins if origin is not None))

    def _unread(self, value: str) -> list[str]:
        """What a value is computed from, unless it can be read as it is."""
        node = self._view.producer(value)
        if node is None or self._view.constant(value, _LARGEST) is not None:
            return []
        return [self._view.resolve(name) for name in node.inputs if name]

    def _array(self, value: str) -> np.ndarray | None:
        array = self._view.constant(value, _LARGEST)
        node = self._view.producer(value)
        if array is not None or node is None:
            return array
        feeds = {name: self._arrays.get(self._view.resolve(name)) for name in node.inputs if name}
        known = {name: item for name, item in feeds.items() if item is not None}
        return self._view.evaluate(node, known, _LARGEST).get(value) if len(known) == len(feeds) else None


def _each_after_its_inputs(
    value: str, found: dict[str, Any], makers: Callable[[str], list[str]], work_out: Callable[[str], Any]
) -> None:
    """Works out a value, and before it whatever it is made of, each once."""
    pending, entered = [value], set()
    while pending:
        name = pending[-1]
        if name in found:
            pending.pop()
            continue
        missing = [] if name in entered else [maker for maker in makers(name) if maker not in found]
        entered.add(name)
        if missing:
            pending.extend(missing)
            continue
        found[name] = work_out(name)
