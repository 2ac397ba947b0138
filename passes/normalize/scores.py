"""Rules on attention scores: one bias, and four axes where an exporter merged batch and heads into one."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from onnx import TensorProto

from onnx_fuse.passes.graph import dims as d
from onnx_fuse.passes.graph.dims import Dim
from onnx_fuse.passes.graph.node import Node
from onnx_fuse.passes.normalize.scales import scaled
from onnx_fuse.passes.normalize.split_heads import are_heads, are_weights
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
    write_shape,
)
from onnx_fuse.passes.view.rule import reads
from onnx_fuse.passes.view.view import View

ABSORBS = 1e38
"""A number as low as the opposite of this is so near the end of float32 that to add it to a score is to put it in its place."""
_STEPS = frozenset({"Add", "Sub", "Mul", "Div", "Where"})


@reads("Add")
def merge_biases(view: View, node: Node) -> bool:
    """(scores + a) + b is scores + (a + b): a relative bias and a mask become one bias."""
    for outer, bias in (node.inputs, tuple(reversed(node.inputs))):
        inner = view.producer(outer)
        if inner is None or inner.key != ("", "Add") or is_scores(view, bias):
            continue
        for scores, first in (inner.inputs, tuple(reversed(inner.inputs))):
            if is_product(view, scores) and not is_scores(view, first):
                both = view.add("Add", [view.resolve(first), view.resolve(bias)], like=node, covers=[inner])
                view.replace(node.outputs[0], "Add", [view.resolve(scores), both], like=node, covers=[inner, node])
                return True
    return False


@reads("Add")
def floor_before_sum(view: View, node: Node) -> bool:
    """Max(scores + bias, lowest) is scores + Max(bias, lowest), for a number so low that a score added to it is lost: XGLM."""
    for value, floor in (node.inputs, tuple(reversed(node.inputs))) if len(node.inputs) == 2 else ():
        total, lowest = view.producer(value), view.scalar(floor)
        if total is None or total.key != ("", "Add") or lowest is None or view.rank(floor) != 0:
            continue
        if lowest > -ABSORBS or view.dtype(value) not in (TensorProto.FLOAT, TensorProto.BFLOAT16):
            continue
        scored = [is_scores(view, item) for item in total.inputs]
        if sum(scored) != 1:
            continue
        scores, bias = total.inputs if scored[0] else total.inputs[::-1]
        raised = view.add("Max", [bias, floor], like=node)
        view.replace(node.outputs[0], "Add", [scores, raised], like=node, covers=[total, node])
        return True
    return False


@reads(*MOVES)
def batched_matmul_before_move(view: View, node: Node) -> bool:
    """MatMul of [B*h, n, k] and [B*h, k, m] that were [B, h, n, k] and [B, h, k, m] before is the MatMul of those, merged.

    A batch of 1 leaves no trace in [h, n, k]: that its first axis are heads is told by where it comes from.
    """
    if not all(is_moved(view, value) for value in node.inputs):
        return False
    moves = [find_move(view, value) for value in node.inputs]
    left, right = moves[0], moves[1]
    if left is None or right is None or len(left.after) != 3 or len(right.after) != 3:
        return False
    batch, other = (_batch_and_heads(move) for move in (left, right))
    if batch != other or not batch:
        return False
    if len(batch) == 1 and any(are_heads(move, _batch_atoms(move)[0]) for move in (left, right)):
        batch = [1, *batch]
    if len(batch) != 2:
        return False
    split = [regroup(move, (*batch, *move.shape[-2:])) for move in (left, right)]
    operands = [move for move in split if move is not None]
    merged = regroup(identity("", (*batch, left.shape[-2], right.shape[-1])), (*left.shape[:-1], right.shape[-1]))
    if len(operands) < 2 or merged is None or not is_writable(*operands, merged, given=view.input_sizes.keys()):
        return False
    product = view.add("MatMul", [write_move(view, move, node) for move in operands], like=node, covers=[node])
    write_move(view, replace(merged, base=product), node, node.outputs[0], [node])
    return True


def batch_of_one(view: View, node: Node) -> bool:
    """MatMul of [1, h, n, k] and [h, k, m], one of which lost the batch that the other has, is that of [1, h, k, m]."""
    shapes = [view.shape(value) for value in node.inputs]
    if sorted(0 if shape is None else len(shape) for shape in shapes) != [3, 4]:
        return False
    place = 0 if len(shapes[0] or ()) == 3 else 1
    whole, part = shapes[1 - place] or (), shapes[place] or ()
    if whole[0] != 1 or whole[1] != part[0] or any(map(view.is_constant, node.inputs)):
        return False
    move = find_move(view, node.inputs[place])
    if move is None or not is_writable(given := replace(move, after=((), *move.after))):
        return False
    inputs = list(node.inputs)
    inputs[place] = write_move(view, given, node)
    view.replace(node.outputs[0], "MatMul", inputs, like=node, covers=[node])
    return True


def fold_windows(view: View, node: Node) -> bool:
    """MatMul of [B, W, h, n, k] and [B, W, h, k, m] is that of [B*W, h, n, k] and [B*W, h, k, m], split: windows of a batch.

    The heads may stand before the windows, as Hiera has them.
    """
    left, right = (view.shape(value) for value in node.inputs)
    if left is None or right is None or len(left) < 5 or left[:-2] != right[:-2]:
        return False
    moves = [move for move in (find_move(view, value) for value in node.inputs) if move is not None]
    if len(moves) < 2:
        return False
    heads = _heads_axis(view, moves[0], moves[1])
    operands = [_windows_folded(move, heads) for move in moves]
    product = (*left[:-1], right[-1])
    windows = [axis for axis in range(len(left) - 2) if axis != heads]
    back = Move(
        "",
        dict(enumerate(product)),
        (tuple(windows), (heads,), (len(left) - 2,), (len(left) - 1,)),
        identity("", product).after,
    )
    if not is_writable(*operands, back, given=view.input_sizes.keys()):
        return False
    made = view.add("MatMul", [write_move(view, move, node) for move in operands], like=node, covers=[node])
    view.shared["windows", made] = made
    write_move(view, replace(back, base=made), node, node.outputs[0], [node])
    return True


def _heads_axis(view: View, left: Move, right: Move) -> int:
    """Which batch axis of a product of five or more axes holds the heads, as far as the moves before it tell.

    Heads stand before what each of them has where both were split off one axis, and mostly where they were not.
    """
    last = len(left.after) - 3
    split = _split_heads(left) if are_weights(view, left.base) else None
    if split is not None:
        return split
    ones = [axis for axis in range(1, last + 1) if left.shape[axis] == 1]
    for move, size in ((left, -1), (right, -2)):
        if move.before == move.after:
            continue
        for axis in range(1, last + 1):
            if _stand_before(move, move.after[axis], move.after[size], of_one_axis=len(ones) == 1):
                return axis
    return ones[0] if len(ones) == 1 else last


def _stand_before(move: Move, heads: tuple[int, ...], size: tuple[int, ...], *, of_one_axis: bool) -> bool:
    """Whether some atoms stand right before others in the base of a move, in one of its axes if need be."""
    groups = move.before if of_one_axis else (tuple(atom for group in move.before for atom in group),)
    wanted, follows = (tuple(atom for atom in group if move.sizes[atom] != 1) for group in (heads, size))
    wanted += follows
    for group in groups:
        large = tuple(atom for atom in group if move.sizes[atom] != 1)
        places = range(len(large) - len(wanted) + 1)
        if len(wanted) > len(follows) > 0 and any(large[place : place + len(wanted)] == wanted for place in places):
            return True
    return False


def _windows_folded(move: Move, heads: int) -> Move:
    """[.., h, .., n, k] with all axes but the last two and the heads in the first one."""
    windows = (atom for axis, group in enumerate(move.after[:-2]) if axis != heads for atom in group)
    return replace(move, after=(tuple(windows), move.after[heads], *move.after[-2:]))


def _batch_and_heads(move: Move) -> list[Dim]:
    """The sizes that were merged to one batch axis: the heads come last, what is before them are windows on one axis or two."""
    sizes = [move.sizes[atom] for atom in _batch_atoms(move)]
    return sizes if len(sizes) < 3 else [d.product(sizes[:-1]), sizes[-1]]


def _batch_atoms(move: Move) -> list[int]:
    return [atom for group in move.after[:-2] for atom in group if move.sizes[atom] != 1]


@reads("Mul", *MOVES)
def mask_before_merge(view: View, node: Node) -> bool:
    """merge(scores) + bias, or Where(mask, merge(scores), value), is merge(scores + split(bias)), and so on.

    The same goes for scores of which the windows were folded into the batch, and are split off it.
    """
    found = next(
        (
            (index, merged)
            for index, value in enumerate(node.inputs)
            if (merged := _moved_scores(view, value, _merges_or_splits, is_scores)) is not None
        ),
        None,
    )
    if found is None:
        return False
    index, (move, factor) = found
    like = fold_like if _splits(move) else split_like
    splits = [like(view, value, move) for place, value in enumerate(node.inputs) if place != index]
    others = [split for split in splits if split is not None]
    if len(others) < len(splits) or not is_writable(*others, move, given=view.input_sizes.keys()):
        return False
    inputs = [write_move(view, split, node) for split in others]
    scores = move.base if factor is None else view.add("Mul", [move.base, factor], like=node)
    inputs.insert(index, scores)
    result = view.add(node.op_type, inputs, like=node, covers=[node])
    write_move(view, replace(move, base=result), node, node.outputs[0], [node])
    return True


@reads("Mul", *MOVES)
def softmax_before_move(view: View, node: Node) -> bool:
    """Softmax(merge(scores)) over the keys is merge(Softmax(scores)); so for scores whose batch axes are permuted."""
    rank = view.rank(node.inputs[0])
    kinds = (_merges_or_splits, _permutes)
    tried = (_moved_scores(view, node.inputs[0], kind, is_scores) for kind in kinds)
    found = next(filter(None, tried), None)
    if found is None or rank is None or view.attribute(node, "axis") not in (-1, rank - 1):
        return False
    move, factor = found
    if len(move.after[-1]) != 1 or move.after[-1] != move.before[-1]:
        return False
    if not is_writable(move, given=view.input_sizes.keys()):
        return False
    scores = move.base if factor is None else view.add("Mul", [move.base, factor], like=node)
    result = view.add("Softmax", [scores], {"axis": -1}, like=node, covers=[node])
    write_move(view, replace(move, base=result), node, node.outputs[0], [node])
    return True


def merged_scores(
    view: View, value: str, is_kind: Callable[[View, str], bool] | None = None
) -> tuple[Move, str | None] | None:
    """The merge that makes `value` from scores (or what `is_kind` tells) with more axes, and the factor after it, if any."""
    return _moved_scores(view, value, _merges, is_kind or is_scores)


def _moved_scores(
    view: View, value: str, kind: Callable[[Move], bool], is_kind: Callable[[View, str], bool]
) -> tuple[Move, str | None] | None:
    """The move of a kind that makes `value` from what `is_kind` tells, and the factor that comes after it, if any."""
    producer = view.producer(value)
    found = scaled(view, producer)
    factor = None
    if found is not None and producer is not None:
        value = found[0]
        factor = next(name for name in view.inputs(producer) if name != value)
    if not is_moved(view, value):
        return None
    move = find_move(view, value)
    if move is None or not kind(move) or not is_kind(view, move.base):
        return None
    return move, factor


def _merges(move: Move) -> bool:
    """Whether a move does nothing but merge axes."""
    if not move.keeps_order or len(move.after) >= len(move.before):
        return False
    return all(any(set(group) <= set(whole) for whole in move.after) for group in move.before if group)


def _splits(move: Move) -> bool:
    """Whether a move does nothing but split the first of four axes, and put the second one among its parts."""
    return _split_heads(move) is not None


def _split_heads(move: Move) -> int | None:
    """Where the second of four axes is, among the parts of the first one, after a move that does nothing else; or None."""

    def large(*groups: tuple[int, ...]) -> list[int]:
        return [atom for group in groups for atom in group if move.sizes[atom] != 1]

    before, after = move.before, move.after
    if len(before) != 4 or len(after) < 5 or any(large(before[axis]) != large(after[axis]) for axis in (-2, -1)):
        return None
    places = [axis for axis, group in enumerate(after[:-2]) if large(group) == large(before[1])]
    if not places or large(*after[: places[-1]], *after[places[-1] + 1 : -2]) != large(before[0]):
        return None
    return places[-1]


def _merges_or_splits(move: Move) -> bool:
    return _merges(move) or _splits(move)


def _permutes(move: Move) -> bool:
    return permutation(move) is not None


def fold_like(view: View, value: str, split: Move) -> Move | None:
    """The move that gives `value`, which broadcasts with scores split by windows, the axes that the scores had before.

    What is the same for some of the windows alone, as Swin's mask is for all images of a batch, is repeated for them.
    """
    shape, heads = view.shape(value), _split_heads(split)
    if shape is None or heads is None or len(shape) > len(split.after):
        return None
    whole = (1,) * (len(split.after) - len(shape)) + shape
    windows = [axis for axis in range(len(whole) - 2) if axis != heads]
    if len(shape) <= 2:
        return identity(view.resolve(value), shape)
    move = find_move(view, value)
    move = None if move is None else regroup(move, whole)
    if move is None:
        return None
    if any(whole[axis] != 1 for axis in windows) and any(whole[axis] != split.shape[axis] for axis in windows):
        target = tuple(dim if axis in windows else 1 for axis, dim in enumerate(split.shape))
        if any(whole[axis] not in (1, target[axis]) for axis in windows) or not is_writable(move):
            return None
        like = view.producer(split.base)
        sizes = None if like is None else write_shape(view, target, like)
        if like is None or sizes is None:
            return None
        repeated = view.add("Expand", [write_move(view, move, like), sizes], like=like)
        move = identity(repeated, view.shape(repeated) or ())
    return _windows_folded(move, heads)


def split_like(view: View, value: str, merge: Move) -> Move | None:
    """The move that gives `value`, which broadcasts with the merged scores, the axes the scores had before."""
    shape = view.shape(value)
    if shape is None or len(shape) > len(merge.after):
        return None
    if not shape:
        return identity(view.resolve(value), shape)
    if all(dim == 1 for dim in shape):
        return None
    shape = (1,) * (len(merge.after) - len(shape)) + shape
    wanted: list[Dim] = []
    for have, group in zip(shape, merge.after, strict=True):
        axes = [axis for axis in merge.before if axis and set(axis) <= set(group)]
        sizes = [d.product(merge.sizes[atom] for atom in axis) for axis in axes]
        if have == 1:
            wanted += [1] * len(sizes)
        elif have == d.product(sizes):
            wanted += sizes
        else:
            return None
    move = find_move(view, value)
    return None if move is None else regroup(move, tuple(wanted))


def is_scores(view: View, value: str) -> bool:
    """Whether a value is a product of two activations, scaled and masked or not: what a Softmax over keys is taken of."""
    pending, steps = [value], 0
    while pending and steps < 8:
        steps += 1
        item = pending.pop(0)
        if is_product(view, item):
            return True
        node = view.producer(item)
        if node is not None and node.domain == "" and node.op_type in _STEPS:
            pending.extend(view.inputs(node))
    return False


def is_product(view: View, value: str) -> bool:
    """Whether a value is a MatMul of two activations, scaled or not."""
    node = view.producer(value)
    found = scaled(view, node)
    if found is not None:
        node = view.producer(found[0])
    if node is None or node.key != ("", "MatMul"):
        return False
    # A weight need not look like a constant: Gemm's is transposed, and too large or too far away to be folded.
    return not any(view.is_constant(item) or view.rank(item) == 2 for item in node.inputs)
