"""What requirements and build functions may ask of a match and of the graph it was found in.

Patterns do not import passes; these protocols are the whole of what they rely on.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np
from onnx import ModelProto

Shape = tuple[Any, ...]
"""One entry per axis: an int, or a symbolic dimension (compare with ==)."""


class Node(Protocol):
    """A node of the canonical view."""

    op_type: str
    domain: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    position: int

    @property
    def name(self) -> str: ...

    def attribute(self, name: str) -> Any: ...


class View(Protocol):
    """The canonical view of a graph."""

    def resolve(self, value: str) -> str: ...

    def producer(self, value: str) -> Any: ...

    def inputs(self, node: Any) -> tuple[str, ...]: ...

    def attribute(self, node: Any, name: str) -> Any: ...

    def shape(self, value: str) -> Shape | None: ...

    def rank(self, value: str) -> int | None: ...

    def dimension(self, value: str) -> Any: ...

    def broadcasts_to(self, value: str, target: Sequence[Any]) -> bool: ...

    def dtype(self, value: str) -> int: ...

    def info(self, value: str) -> Any: ...

    def constant(self, value: str) -> np.ndarray | None: ...

    def scalar(self, value: str) -> float | None: ...

    def is_constant(self, value: str) -> bool: ...

    def computed(self, model: ModelProto, value: str) -> np.ndarray | None: ...

    def add(
        self,
        op_type: str,
        inputs: Sequence[str],
        attributes: dict[str, Any] | None = None,
        *,
        like: Any,
        covers: Sequence[Any] = (),
        domain: str = "",
    ) -> str: ...

    def array(self, array: np.ndarray, like: str = "constant") -> str: ...


class Match(Protocol):
    """A pattern found in a view: its variables by name."""

    @property
    def root(self) -> Any: ...

    @property
    def nodes(self) -> Sequence[Any]: ...

    @property
    def values(self) -> Sequence[str]:
        """The value of each result of the pattern."""
        ...

    def __contains__(self, name: str) -> bool: ...

    def __getitem__(self, name: str) -> Any:
        """The value name (or attribute value) bound to a variable; a dimension bound to a name."""
        ...

    def get(self, name: str, default: Any = None) -> Any: ...
