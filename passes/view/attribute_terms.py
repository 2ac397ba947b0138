"""Whether a node's attribute is what a pattern wants: a number, a list, a test, or a variable that attributes share."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from onnx_fuse.passes.graph.attributes import Reference
from onnx_fuse.passes.graph.node import Node
from onnx_fuse.passes.view.view import View
from onnx_fuse.patterns.language.terms import Variable


def attribute_problem(
    view: View, node: Node, name: str, wanted: Any, bound: Mapping[str, Any], captured: dict[str, Any], suffix: str
) -> str | None:
    """What is wrong with an attribute, as a sentence; None where it fits.

    Args:
        wanted: what the pattern wants.
        bound: variables bound so far.
        captured: where a variable that this node binds goes.
        suffix: what follows the names of variables here.
    """
    found = view.attribute(node, name)
    if isinstance(found, Reference):
        return f"attribute {name} is not known before run time ({found!r})"
    if name in ("axis", "axes") and found is not None and found != wanted:
        found = _counted_like(found, wanted, view.rank(node.inputs[0]))
    if isinstance(wanted, Variable):
        variable = wanted.name + suffix
        if variable not in bound and variable not in captured:
            captured[variable] = found
            return None
        previous = captured.get(variable, bound.get(variable))
        if found == previous:
            return None
        return f"attribute {name} is {_show(found)}, elsewhere it is {_show(previous)}"
    if callable(wanted):
        verdict = wanted(found)
        if verdict is True:
            return None
        return f"attribute {name} is {_show(found)}" + (
            f", pattern wants {verdict}" if isinstance(verdict, str) else ""
        )
    if _same(found, wanted):
        return None
    return f"attribute {name} is {_show(found)}, pattern wants {_show(wanted)}"


def _counted_like(axes: Any, wanted: Any, rank: int | None) -> Any:
    """Axes counted from the end where the pattern does so, else from the front; unchanged where the rank is unknown."""
    if not rank:
        return axes
    from_end = any(
        isinstance(item, int) and item < 0 for item in (wanted if isinstance(wanted, (list, tuple)) else [wanted])
    )

    def counted(axis: Any) -> Any:
        if not isinstance(axis, int):
            return axis
        return axis % rank - rank if from_end else axis % rank

    return [counted(axis) for axis in axes] if isinstance(axes, list) else counted(axes)


def _show(value: Any) -> str:
    return "absent" if value is None else f"{value:g}" if isinstance(value, float) else str(value)


def _same(found: Any, wanted: Any) -> bool:
    if isinstance(wanted, float) or isinstance(found, float):
        return isinstance(found, (int, float)) and math.isclose(float(found), float(wanted), rel_tol=1e-6)
    if isinstance(wanted, tuple):
        wanted = list(wanted)
    return bool(found == wanted)
