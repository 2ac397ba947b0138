"""Which nodes of an example can be learned, and what their attributes are."""

from __future__ import annotations

import re
from typing import Any

import onnx
from onnx import AttributeProto, helper

from onnx_fuse.errors import LearnError
from onnx_fuse.passes.graph.attributes import Reference as Unknown
from onnx_fuse.passes.graph.dims import Product
from onnx_fuse.passes.graph.node import Node
from onnx_fuse.passes.view.facts import ATTRIBUTE_INPUTS
from onnx_fuse.passes.view.view import View
from onnx_fuse.patterns.language.learned import filling

NORMS = ("LayerNormalization", "RMSNormalization")
"""Operators whose epsilon becomes an attribute of what is learned."""

_RANDOM = re.compile(r"Random|Multinomial|Bernoulli|Dropout")
_NOT_LEARNED = {
    "Pad": "what newer opsets can say of its axes",
    "CastLike": "the type it casts to",
}


def is_random(node: Node) -> bool:
    """Whether a node may give something else each time."""
    return _RANDOM.match(node.op_type) is not None


def require_learnable(node: Node) -> None:
    """Checks that a node may be part of a form.

    Raises:
        LearnError: it may not.
    """
    what = f"{node.op_type} {node.name}"
    if node.domain:
        raise LearnError(f"{what} is an operator of domain {node.domain}.", "Learn from an example of ONNX operators.")
    if is_random(node):
        raise LearnError(f"{what} is random.", "Call module.eval(), or leave it out of the example.")
    if any(item.type in (AttributeProto.GRAPH, AttributeProto.GRAPHS) for item in node.proto.attribute):
        raise LearnError(f"{what} holds subgraphs.", "Control flow cannot be learned: take an example without it.")
    if node.op_type in ("Shape", "Size"):
        raise LearnError(
            f"{what} computes a size that is none of the inputs' dimensions.",
            "Name the dimensions of the inputs that vary, and compute with those.",
        )
    if node.op_type in _NOT_LEARNED or "Sequence" in node.op_type:
        reason = _NOT_LEARNED.get(node.op_type, "sequences of tensors")
        raise LearnError(f"{what} cannot be learned: patterns do not see {reason}.", "Write the pattern by hand.")


def attributes_of(node: Node, view: View) -> dict[str, Any]:
    """The attributes of a node, their defaults included, with axes counted from the front.

    What newer opsets take as an input in place of an attribute counts as one.

    Raises:
        LearnError: one is not known before the model runs, or no number and no string, or a norm is not of the last axis.
    """
    opset = view.graph.opset() or 1
    names = {item.name for item in node.proto.attribute} | set(ATTRIBUTE_INPUTS.get(node.op_type, ()))
    defaults: dict[str, Any] = {}
    for version in (opset, onnx.defs.onnx_opset_version()):
        if onnx.defs.has(node.op_type, version, ""):
            for name, attribute in onnx.defs.get_schema(node.op_type, version, "").attributes.items():
                names.add(name)
                if attribute.default_value.name:
                    default = helper.get_attribute_value(attribute.default_value)
                    defaults[name] = default.decode() if isinstance(default, bytes) else default
    found: dict[str, Any] = {}
    for name in sorted(names):
        value = view.attribute(node, name)
        found[name] = _checked(node, name, defaults.get(name) if value is None else value)
    rank = view.rank(node.inputs[0]) if node.inputs else None
    for name in ("axis", "axes"):
        if rank and found.get(name) is not None:
            axes = found[name]
            found[name] = [axis % rank for axis in axes] if isinstance(axes, list) else axes % rank
    if node.op_type == "Slice":
        found["axes"] = found["axes"] or list(range(len(found["starts"])))
        found["steps"] = found["steps"] or [1] * len(found["starts"])
    if node.op_type in NORMS and found["axis"] != (rank or 0) - 1:
        raise LearnError(f"{node.name} normalises axis {found['axis']}.", "Only a last axis can be learned.")
    return found


def _checked(node: Node, name: str, value: Any) -> Any:
    if node.op_type == "ConstantOfShape":
        return filling(value)
    items = value if isinstance(value, list) else [value]
    if isinstance(value, Unknown) or any(isinstance(item, Product) for item in items):
        raise LearnError(
            f"{name} of {node.op_type} {node.name} is computed while the model runs.",
            "Take an example that fixes it.",
        )
    if any(item is not None and not isinstance(item, (int, float, str)) for item in items):
        raise LearnError(f"{name} of {node.op_type} {node.name} is no number.", "Write the pattern by hand.")
    return value
