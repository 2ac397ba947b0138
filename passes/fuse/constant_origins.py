"""Which parameters the constants of an example were computed from, and what they are."""

from __future__ import annotations

from collections.abc import Collection

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
        if value not in self._found:
            self._found[value] = None  # a value is no constant while it is being looked at
            self._found[value] = self._follow(value)
        return self._found[value]

    def _follow(self, value: str) -> frozenset[str] | None:
        if value in self._graph.initializers or self._view.is_array(value) or self._graph.tensor(value) is not None:
            return frozenset({value} & self._parameters)
        node = self._view.producer(value)
        if node is None or node.domain or is_random(node):
            return None
        if self._view.info(value).content is not None and self._view.constant(value) is not None:
            return frozenset()
        origins = [self.of(name) for name in node.inputs if name]
        if not origins or any(origin is None for origin in origins):
            return None
        return frozenset().union(*(origin for origin in origins if origin is not None))

    def array(self, value: str) -> np.ndarray | None:
        """The value of a constant, also of one that only the view computes from others."""
        value = self._view.resolve(value)
        if value not in self._arrays:
            self._arrays[value] = self._array(value)
        return self._arrays[value]

    def _array(self, value: str) -> np.ndarray | None:
        array = self._view.constant(value, _LARGEST)
        node = self._view.producer(value)
        if array is not None or node is None:
            return array
        feeds = {name: self.array(name) for name in node.inputs if name}
        known = {name: item for name, item in feeds.items() if item is not None}
        return self._view.evaluate(node, known, _LARGEST).get(value) if len(known) == len(feeds) else None
