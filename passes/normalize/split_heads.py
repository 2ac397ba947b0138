"""Heads split and merged by Split and Concat, and kept in the first axis, as AutoInt has them."""

from __future__ import annotations

from dataclasses import replace

from onnx_fuse.passes.graph.node import Node
from onnx_fuse.passes.view.layout_transform import (
    MOVES,
    Move,
    find_move,
    identity,
    is_moved,
    is_writable,
    permutation,
    write_move,
)
from onnx_fuse.passes.view.rule import reads
from onnx_fuse.passes.view.view import View


def concat_of_split(view: View, node: Node) -> bool:
    """The Concat of all equal parts of a Split, in order and each moved alike, is a move of what was split."""
    moves = [find_move(view, value) for value in node.inputs]
    first = moves[0]
    split = None if first is None else view.producer(first.base)
    if first is None or split is None or split.key != ("", "Split"):
        return False
    parts = [view.resolve(output) for output in split.outputs]
    if [move and move.base for move in moves] != parts or len(parts) < 2:
        return False
    if any(
        move is None or (move.sizes, move.before, move.after) != (first.sizes, first.before, first.after)
        for move in moves
    ):
        return False
    source, place = split.inputs[0], max(first.sizes, default=0) + 1
    along = int(view.attribute(split, "axis") or 0) % len(first.before)
    axis = int(view.attribute(node, "axis") or 0) % len(first.after)
    before, after = list(first.before), list(first.after)
    before[along], after[axis] = (place, *before[along]), (place, *after[axis])
    moved = Move(view.resolve(source), {**first.sizes, place: len(parts)}, tuple(before), tuple(after))
    if not is_writable(moved):
        return False
    write_move(view, moved, node, node.outputs[0], [node])
    return True


@reads(*MOVES)
def batch_axes_in_order(view: View, node: Node) -> bool:
    """MatMul of [h, B, n, k] and [h, B, k, m] that came from [B, .., h, ..] is that of [B, h, n, k] and [B, h, k, m], moved."""
    left, right = (find_move(view, value) if is_moved(view, value) else None for value in node.inputs)
    order = None if left is None or right is None else _batch_order(left)
    if left is None or right is None or order is None or _batch_order(right) != order:
        return False
    if left.shape[:-2] != right.shape[:-2]:
        return False
    operands = []
    for move in (left, right):
        after = (*(move.after[axis] for axis in order), *move.after[-2:])
        operands.append(replace(move, after=after))
    last = len(order)
    shape = (*(left.shape[axis] for axis in order), left.shape[-2], right.shape[-1])
    after = (*((order.index(axis),) for axis in range(last)), (last,), (last + 1,))
    back = replace(identity("", shape), after=after)
    if not is_writable(*operands, back):
        return False
    product = view.add("MatMul", [write_move(view, move, node) for move in operands], like=node, covers=[node])
    write_move(view, replace(back, base=product), node, node.outputs[0], [node])
    return True


def _batch_order(move: Move) -> list[int] | None:
    """The batch axes in the order their atoms have in the base; None where they are in it, or are not one atom each."""
    batch = move.after[:-2]
    if any(len(group) != 1 for group in batch):
        return None
    atoms = [atom for group in move.before for atom in group]
    order = sorted(range(len(batch)), key=lambda axis: atoms.index(batch[axis][0]))
    return None if order == list(range(len(batch))) else order


@reads(*MOVES)
def guard_before_permutation(view: View, node: Node) -> bool:
    """Where(IsNaN(permuted p), number, permuted p) is the same of p, permuted."""
    test, value = view.producer(node.inputs[0]), node.inputs[2]
    move = find_move(view, value) if is_moved(view, value) else None
    if (
        move is None
        or permutation(move) is None
        or test is None
        or test.key != ("", "IsNaN")
        or view.scalar(node.inputs[1]) is None
    ):
        return False
    if view.resolve(test.inputs[0]) != view.resolve(value) or not is_writable(move):
        return False
    undefined = view.add("IsNaN", [move.base], like=node, covers=[test])
    result = view.add("Where", [undefined, node.inputs[1], move.base], like=node, covers=[node])
    write_move(view, replace(move, base=result), node, node.outputs[0], [node])
    return True
