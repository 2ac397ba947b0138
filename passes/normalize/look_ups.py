"""Rules on look-ups in a table: one form, Gather along the first axis, which a factor does not hide."""

from __future__ import annotations

import numpy as np

from onnx_fuse.passes.graph.node import Node
from onnx_fuse.passes.normalize.scales import scalar_like, scaled
from onnx_fuse.passes.view.rule import reads
from onnx_fuse.passes.view.view import View


@reads("Gather")
def scale_before_look_up(view: View, node: Node) -> bool:
    """table[ids] * c is (table * c)[ids] for a constant c, as in "Attention Is All You Need": embeddings times sqrt(d).

    Each element is multiplied once either way, so that the result is the same to the last bit.
    """
    found = scaled(view, node)
    look_up = None if found is None else view.producer(found[0])
    if (
        found is None
        or look_up is None
        or look_up.key != ("", "Gather")
        or view.attribute(look_up, "axis") not in (0, -2)
    ):
        return False
    table, ids = view.inputs(look_up)
    if view.rank(table) != 2 or not view.is_constant(table):
        return False
    key = ("scaled table", table, found[1], view.dtype(node.outputs[0]))
    if key not in view.shared:
        factor = scalar_like(view, found[1], view.dtype(node.outputs[0]), node)
        if factor is None:
            return False
        view.shared[key] = view.add("Mul", [table, factor], like=look_up)
    view.replace(node.outputs[0], "Gather", [view.shared[key], ids], {"axis": 0}, like=node, covers=[look_up, node])
    return True


def look_up_of_rows(view: View, node: Node) -> bool:
    """GatherND(table, ids [..., 1]) is Gather(table, ids [...])."""
    table, places = view.inputs(node)
    shape = view.shape(places)
    if view.rank(table) != 2 or not shape or len(shape) < 2 or shape[-1] != 1 or view.attribute(node, "batch_dims"):
        return False
    if view.is_constant(places):
        return False
    move = view.producer(places)
    if move is not None and move.key == ("", "Unsqueeze") and view.attribute(move, "axes") in ([-1], [len(shape) - 1]):
        ids = view.resolve(move.inputs[0])
    else:
        ids = view.add("Squeeze", [places, view.array(np.array([-1], dtype=np.int64), places)], like=node)
    view.replace(node.outputs[0], "Gather", [table, ids], {"axis": 0}, like=node, covers=[node])
    return True
