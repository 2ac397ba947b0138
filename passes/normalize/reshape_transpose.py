"""Rules on data movement: what moves nothing is an alias, chains of moves become one."""

from __future__ import annotations

from onnx import TensorProto

from onnx_fuse.passes.graph.attributes import Reference
from onnx_fuse.passes.graph.node import Node
from onnx_fuse.passes.view.layout_transform import coalesce, find_move, steps_of, write_move, written_as
from onnx_fuse.passes.view.view import View

NARROW = frozenset({TensorProto.FLOAT16, TensorProto.BFLOAT16})


def drop_identity(view: View, node: Node) -> bool:
    """Identity(x) is x."""
    view.alias(node.outputs[0], node.inputs[0])
    return True


def drop_dropout(view: View, node: Node) -> bool:
    """Dropout outside training mode is its input; its mask must be unused."""
    training = view.attribute(node, "training_mode")
    if isinstance(training, Reference) or training:
        return False
    if any(map(view.is_read, node.outputs[1:])):
        return False
    view.alias(node.outputs[0], node.inputs[0])
    return True


def drop_cast(view: View, node: Node) -> bool:
    """Cast to the type the value has, or had before it was widened, is the value."""
    to = view.attribute(node, "to")
    value = node.inputs[0]
    inner = view.producer(value)
    if inner is not None and inner.key == ("", "Cast") and view.dtype(value) == TensorProto.FLOAT:
        # Widening float16 or bfloat16 loses nothing, so narrowing again gives back the value.
        value = inner.inputs[0] if view.dtype(inner.inputs[0]) in NARROW else value
    if not to or view.dtype(value) != to:
        return False
    view.alias(node.outputs[0], value)
    return True


def drop_expand(view: View, node: Node) -> bool:
    """Expand to the shape the value has is the value."""
    before, after = view.shape(node.inputs[0]), view.shape(node.outputs[0])
    if before is None or before != after:
        return False
    view.alias(node.outputs[0], node.inputs[0])
    return True


def drop_single_concat(view: View, node: Node) -> bool:
    """Concat of one value is the value."""
    if len(node.inputs) != 1:
        return False
    view.alias(node.outputs[0], node.inputs[0])
    return True


def merge_moves(view: View, node: Node) -> bool:
    """A chain of moves is written as Reshape, Transpose, Reshape, each only where needed."""
    value = view.resolve(node.outputs[0])
    move = find_move(view, value)
    if move is None or move.base == value:
        return False
    steps = steps_of(coalesce(move))
    chain = written_as(view, value, move.base)
    if steps is None:
        return False
    if [step.op_type for step in steps] == [item.op_type for item in chain] and not any(
        item.op_type == "Reshape" and step.constant is not None and not view.is_constant(item.inputs[1])
        for step, item in zip(steps, chain, strict=True)
    ):
        return False
    producer = view.producer(node.inputs[0])
    covers = [node] if producer is None or move.base == view.resolve(node.inputs[0]) else [producer, node]
    write_move(view, move, node, value, covers)
    return True
