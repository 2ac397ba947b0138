"""Rules on attention weights that are SiLU of scores: four axes where an exporter merged batch and heads into one."""

from __future__ import annotations

from dataclasses import replace

from onnx_fuse.passes.graph.node import Node
from onnx_fuse.passes.normalize.scales import scaled
from onnx_fuse.passes.normalize.scores import is_scores, merged_scores, split_like
from onnx_fuse.passes.view.layout_transform import MOVES, Move, is_writable, write_move
from onnx_fuse.passes.view.rule import reads
from onnx_fuse.passes.view.view import View

_STEPS = frozenset({"Mul", "Div", "Where"})


@reads("Mul", *MOVES)
def swish_before_merge(view: View, node: Node) -> bool:
    """Swish(merge(scores)) is merge(Swish(scores))."""
    found = merged_scores(view, node.inputs[0])
    if found is None or not is_writable(found[0]):
        return False
    move, factor = found
    scores = move.base if factor is None else view.add("Mul", [move.base, factor], like=node)
    result = view.add("Swish", [scores], {"alpha": view.attribute(node, "alpha")}, like=node, covers=[node])
    return _merge(view, node, result, move)


@reads("Mul", *MOVES)
def weights_before_merge(view: View, node: Node) -> bool:
    """merge(weights) * mask, merge(weights) / n or Where(mask, merge(weights), 0) is merge(weights * split(mask)), and so on.

    A constant factor stays after the move, where every scale is.
    """
    if scaled(view, node) is not None:
        return False
    for place, value in enumerate(node.inputs):
        found = merged_scores(view, value, _is_weights)
        if found is None or (node.op_type == "Div" and place == 1):
            continue
        move, factor = found
        splits = [split_like(view, item, move) for index, item in enumerate(node.inputs) if index != place]
        others = [split for split in splits if split is not None]
        if len(others) < len(splits) or not is_writable(*others, move):
            return False
        inputs = [write_move(view, split, node) for split in others]
        weights = move.base if factor is None else view.add("Mul", [move.base, factor], like=node)
        inputs.insert(place, weights)
        return _merge(view, node, view.add(node.op_type, inputs, like=node, covers=[node]), move)
    return False


def _merge(view: View, node: Node, result: str, move: Move) -> bool:
    write_move(view, replace(move, base=result), node, node.outputs[0], [node])
    return True


def _is_weights(view: View, value: str) -> bool:
    """Whether a value is SiLU of scores, masked and divided or not."""
    pending, steps = [value], 0
    while pending and steps < 8:
        steps += 1
        node = view.producer(pending.pop(0))
        if node is None or node.domain != "":
            continue
        if node.op_type == "Swish":
            return is_scores(view, node.inputs[0])
        if node.op_type in _STEPS:
            pending.extend(view.inputs(node))
    return False
