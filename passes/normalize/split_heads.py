"""Heads split and merged by Split and Concat, and kept in the first axis, as AutoInt has them."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from onnx_fuse.passes.graph import dims as d
from onnx_fuse.passes.graph.dims import Dim, Shape
from onnx_fuse.passes.graph.node import Node
from onnx_fuse.passes.view.layout_transform import (
    MOVES,
    Move,
    find_move,
    identity,
    is_moved,
    is_writable,
    permutation,
    regroup,
    write_move,
    written_as,
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


@reads("Concat")
def merge_before_concat(view: View, node: Node) -> bool:
    """Attention's heads joined with others, [B, S, h1 + h2, d], and merged, are both merged, then joined: ConvBERT."""
    joined = view.producer(node.inputs[0])
    if joined is None or joined.key != ("", "Concat") or len(joined.inputs) < 2:
        return False
    moves = [find_move(view, value) for value in joined.inputs]
    before, after = view.shape(joined.outputs[0]), view.shape(node.outputs[0])
    if before is None or after is None or len(before) != 4 or view.attribute(joined, "axis") not in (2, -2):
        return False
    if after != (*before[:2], d.multiply(before[2], before[3])):
        return False
    merges = [None if move is None else regroup(move, _last_two_merged(move.shape)) for move in moves]
    made = [merge for merge in merges if merge is not None]
    if len(made) < len(moves) or not is_writable(*made) or not any(weighs_values(view, merge.base) for merge in made):
        return False
    parts = [write_move(view, merge, node) for merge in made]
    view.replace(node.outputs[0], "Concat", parts, {"axis": 2}, like=node, covers=[joined, node])
    return True


def _last_two_merged(shape: Shape) -> Shape:
    return (*shape[:-2], d.multiply(shape[-2], shape[-1]))


@reads(*MOVES)
def pick_before_merge(view: View, node: Node) -> bool:
    """Query, key or value picked from [3, B*h, S, d], or [3, B, W, h, S, d], is picked from what was not moved yet, and moved then.

    By Gather with one index, by a Slice of one entry, or as a part of a Split into single ones.
    """
    move = find_move(view, node.inputs[0]) if is_moved(view, node.inputs[0]) else None
    axis = view.attribute(node, "axis")
    if node.op_type == "Slice":
        axes = view.attribute(node, "axes")
        axis = axes[0] if isinstance(axes, list) and len(axes) == 1 else None
    if move is None or not isinstance(axis, int):
        return False
    axis %= len(move.after)
    merged = [sum(move.sizes[atom] != 1 for atom in group) > 1 for group in move.after[:-1]]
    places = _picked(view, node, move.shape[axis], axis)
    apart = any(merged) or len(move.after) > 5
    if len(move.after[axis]) != 1 or not apart or not places:
        return False
    (picked,) = move.after[axis]
    atoms = [atom for group in move.before for atom in group]
    split = replace(move, after=tuple((atom,) for atom in atoms))
    sizes = {atom: size for atom, size in move.sizes.items() if atom != picked}
    before = tuple((atom,) for atom in atoms if atom != picked)
    kept = () if node.op_type == "Gather" else ((),)
    back = Move("", sizes, before, (*move.after[:axis], *kept, *move.after[axis + 1 :]))
    if not is_writable(split, back):
        return False
    whole = write_move(view, split, node)
    for output, place in places.items():
        index = view.array(np.array(place, dtype=np.int64), output)
        part = view.add("Gather", [whole, index], {"axis": atoms.index(picked)}, like=node, covers=[node])
        write_move(view, replace(back, base=part), node, output, [node])
    return True


def _picked(view: View, node: Node, size: Dim, axis: int) -> dict[str, int]:
    """For each output the place of the one entry it holds; nothing where it holds several."""
    if node.op_type == "Gather":
        index = view.constant(node.inputs[1])
        return {} if index is None or index.ndim else {node.outputs[0]: int(index)}
    if node.op_type == "Slice":
        starts, shape = view.attribute(node, "starts"), view.shape(node.outputs[0])
        one = isinstance(starts, list) and len(starts) == 1 and shape is not None and shape[axis] == 1
        if not one or not isinstance(starts[0], int) or not isinstance(size, int):
            return {}
        return {node.outputs[0]: starts[0]} if -size <= starts[0] < size else {}
    lengths = [shape and shape[axis] for shape in map(view.shape, node.outputs)]
    if len(node.outputs) != size or any(length != 1 for length in lengths):
        return {}
    return {output: place for place, output in enumerate(node.outputs)}


@reads(*MOVES)
def batch_axes_in_order(view: View, node: Node) -> bool:
    """MatMul of [h, B, n, k] and [h, B, k, m] that came from [B, .., h, ..] is that of [B, h, n, k] and [B, h, k, m], moved."""
    left, right = (find_move(view, value) if is_moved(view, value) else None for value in node.inputs)
    order = None if left is None or right is None else _batch_order(left)
    if left is None or right is None or order is None or _batch_order(right) != order:
        return False
    if ("windows", node.outputs[0]) in view.shared:
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
    """The batch axes in the order their atoms have in the base; None where they are in it, or are not one atom each.

    A batch of 1 has no place of its own there: it comes before the heads.
    """
    large = [tuple(atom for atom in group if move.sizes[atom] != 1) for group in move.after[:-2]]
    if [len(group) for group in large] == [1, 0]:
        return [1, 0] if are_heads(move, large[0][0]) else None
    batch = move.after[:-2]
    if any(len(group) != 1 for group in batch):
        return None
    atoms = [atom for group in move.before for atom in group]
    order = sorted(range(len(batch)), key=lambda axis: atoms.index(batch[axis][0]))
    return None if order == list(range(len(batch))) else order


def are_heads(move: Move, atom: int) -> bool:
    """Whether the axis of a batch of 1 that is no axis of size 1 holds heads, by where it comes from.

    They are split off one axis with what each of them has, or they are an inner axis of four or five.
    """
    split = any(
        atom in group and any(move.sizes[other] != 1 for other in group if other != atom) for group in move.before
    )
    return split or (len(move.before) in (4, 5) and (atom,) in move.before[1:-1])


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


@reads("MatMul", *MOVES)
def merge_before_move(view: View, node: Node) -> bool:
    """A move of attention's product [B, h, S, d] that has its heads side by side is one of them merged, [B, S, h*d].

    Tokens before the batch, a batch of 1 that is left out, channels first: whatever the exporter makes of it comes after.
    """
    value = base = view.resolve(node.outputs[0])
    mover = view.producer(base)
    while mover is not None and is_moved(view, base) and base not in view.settled:  # a look that costs no shapes
        base = view.resolve(mover.inputs[0])
        mover = view.producer(base)
    if not weighs_values(view, base):
        return False
    move = find_move(view, value)
    if move is None or move.base != base or len(move.before) != 4:
        return False
    batch, heads, rows, size = move.before
    width = d.product(move.sizes[atom] for atom in (*heads, *size))
    if not isinstance(width, int) or not _side_by_side(move):
        return False
    chain = written_as(view, value, move.base)
    shape = view.shape(move.base) or ()
    if [item.op_type for item in chain] == ["Transpose", "Reshape"] and move.shape == (shape[0], shape[2], width):
        return False
    rest = Move("", move.sizes, (batch, rows, (*heads, *size)), move.after)
    if not is_writable(rest, given=view.input_sizes.keys()):
        return False
    merged = view.shared.get(("merged", move.base))
    if merged is None:
        turned = view.add("Transpose", [move.base], {"perm": [0, 2, 1, 3]}, like=node, covers=chain)
        target = view.array(np.array([0, 0, width], dtype=np.int64), node.outputs[0])
        merged = view.add("Reshape", [turned, target], like=node, covers=chain)
        view.shared["merged", move.base] = merged
        # Of a single head the Transpose has its heads side by side, too: written of what is merged, it would read itself.
        view.settled.update((turned, merged))
    write_move(view, replace(rest, base=view.resolve(merged)), node, value, chain)
    return True


def weighs_values(view: View, value: str) -> bool:
    """Whether a value is a product of a Softmax, widened, narrowed or guarded, and something computed."""
    product = view.producer(value)
    if product is None or product.key != ("", "MatMul"):
        return False
    return are_weights(view, product.inputs[0]) and view.rank(product.inputs[1]) == 4


def are_weights(view: View, value: str) -> bool:
    """Whether a Softmax makes a value, widened, narrowed or guarded."""
    weights = view.producer(value)
    while weights is not None and weights.key in (("", "Cast"), ("", "Where")):
        weights = view.producer(weights.inputs[0 if weights.op_type == "Cast" else 2])
    return weights is not None and weights.key == ("", "Softmax")


def _side_by_side(move: Move) -> bool:
    """Whether the heads and what each has of [B, h, S, d] are in one axis of the result, in their order."""

    def large(group: tuple[int, ...]) -> tuple[int, ...]:
        return tuple(atom for atom in group if move.sizes[atom] != 1)

    wanted = large((*move.before[1], *move.before[3]))
    groups = [large(group) for group in move.after]
    return any(wanted == group[place : place + len(wanted)] for group in groups for place in range(len(group)))
