"""Rules on casts: float16 models that compute a Softmax or a norm in float32 between two casts.

The fused operators compute in float32 inside whatever their type is, so a norm or Softmax on the widened value, narrowed again,
is what they do with the value itself.
"""

from __future__ import annotations

from onnx import TensorProto, helper

from onnx_fuse.passes.graph.node import Node
from onnx_fuse.passes.normalize.reshape_transpose import NARROW
from onnx_fuse.passes.view.rule import reads
from onnx_fuse.passes.view.view import View

WIDE = frozenset({TensorProto.FLOAT, TensorProto.DOUBLE})

_FLOATS = NARROW | {TensorProto.FLOAT}
_ISLANDS = frozenset({"LayerNormalization", "RMSNormalization", "Softmax"})


@reads("Cast")
def cast_after_move(view: View, node: Node) -> bool:
    """move(cast(x)) is cast(move(x)), from one float type to another."""
    cast = view.producer(node.inputs[0])
    if cast is None or cast.key != ("", "Cast") or view.dtype(cast.inputs[0]) not in _FLOATS:
        return False
    to = view.attribute(cast, "to")
    if to not in _FLOATS:
        return False
    attributes = {item.name: helper.get_attribute_value(item) for item in node.proto.attribute}
    inputs = [view.resolve(cast.inputs[0]), *node.inputs[1:]]
    moved = view.add(node.op_type, inputs, attributes, like=node, covers=[node])
    view.replace(node.outputs[0], "Cast", [moved], {"to": to}, like=node, covers=[cast])
    return True


def share_cast(view: View, node: Node) -> bool:
    """A second Cast of the same value to the same type is the first."""
    to = view.attribute(node, "to")
    for other in view.readers_before(node):
        if other.key == ("", "Cast") and view.attribute(other, "to") == to and view.is_canonical(other):
            view.alias(node.outputs[0], other.outputs[0])
            return True
    return False


@reads(*_ISLANDS)
def norm_in_float32(view: View, node: Node) -> bool:
    """narrow(norm(widen(x))) is norm(x); the same for Softmax."""
    to = view.attribute(node, "to")
    inner = view.producer(node.inputs[0])
    if to not in NARROW or inner is None or inner.domain != "" or inner.op_type not in _ISLANDS:
        return False
    widening = view.producer(inner.inputs[0])
    if widening is None or widening.key != ("", "Cast") or view.attribute(widening, "to") not in WIDE:
        return False
    if view.dtype(widening.inputs[0]) != to:
        return False
    attributes = {name: view.attribute(inner, name) for name in ("axis", "epsilon")}
    view.replace(
        node.outputs[0],
        inner.op_type,
        [view.resolve(widening.inputs[0]), *inner.inputs[1:]],
        {name: value for name, value in attributes.items() if value is not None},
        like=node,
        covers=[inner, node],
    )
    return True
