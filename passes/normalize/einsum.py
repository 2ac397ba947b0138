"""Rules on forms that Keras, TensorFlow and einops write: Einsum, biases per head, and residuals on flattened tokens."""

from __future__ import annotations

import string
from dataclasses import replace

from onnx_fuse.passes.graph.dims import Dim
from onnx_fuse.passes.graph.node import Node
from onnx_fuse.passes.view.layout_transform import MOVES, Groups, Move, find_move, is_writable, permutation, write_move
from onnx_fuse.passes.view.rule import reads
from onnx_fuse.passes.view.view import View

_ELLIPSIS = "..."


def einsum_as_matmul(view: View, node: Node) -> bool:
    """Einsum of two operands is Transpose and Reshape of each, MatMul, Reshape and Transpose.

    Letters in both operands and the result are batch axes, letters in both operands alone are summed over. Where there are no
    batch axes, the second operand becomes a matrix and the first keeps its axes: "abc,cde->abde" is a linear layer.
    """
    terms = _letters(view, node)
    if terms is None:
        return False
    (left, right, out), operands = terms, list(node.inputs)
    rows = [letter for letter in out if letter not in right]
    columns = [letter for letter in out if letter not in left]
    batch = [letter for letter in out if letter in left and letter in right]
    # MatMul gives its first operand's axes first; without batch axes the second one is the weight.
    first, second = (out.index(part[0]) if part else len(out) for part in (rows, columns))
    turned = view.is_constant(operands[0]) if not batch else second < first
    if turned:
        left, right, rows, columns = right, left, columns, rows
        operands.reverse()
    sizes = _sizes(view, operands, (left, right))
    if sizes is None:
        return False
    summed = "".join(letter for letter in left if letter in right and letter not in out)
    if any(letter not in out and letter not in summed for letter in left + right):
        return False
    # A key-value head that all heads share has no axis for them: it is broadcast, and the heads stay an axis.
    shared = [()] if len(batch) == 1 and len(rows) == 2 and len(columns) == 1 else []
    kept = [(letter,) for letter in batch] + ([tuple(rows)] if batch and not shared else [(letter,) for letter in rows])
    others = [*((letter,) for letter in batch), *shared, tuple(summed), tuple(columns)]
    moves = [
        _move(operands[0], left, sizes, [*kept, tuple(summed)]),
        _move(operands[1], right, sizes, others),
    ]
    number = {letter: atom for atom, letter in enumerate(sizes)}
    before = tuple(tuple(number[letter] for letter in group) for group in [*kept, tuple(columns)])
    after = tuple((number[letter],) for letter in out)
    sized = {number[letter]: sizes[letter] for letter in out}
    back = Move("", sized, before, after)
    if not is_writable(*moves, back):
        return False
    product = view.add("MatMul", [write_move(view, move, node) for move in moves], like=node, covers=[node])
    write_move(view, replace(back, base=product), node, node.outputs[0], [node])
    return True


def _letters(view: View, node: Node) -> tuple[str, str, str] | None:
    equation = str(view.attribute(node, "equation") or "").replace(" ", "")
    inputs, arrow, out = equation.partition("->")
    terms = (*inputs.split(","), out)
    if not arrow or len(node.inputs) != 2 or len(terms) != 3:
        return None
    if all(term.count(_ELLIPSIS) == 1 for term in terms):
        ranks = [view.rank(value) for value in node.inputs]
        axes = {0 if rank is None else rank + 3 - len(term) for rank, term in zip(ranks, terms, strict=False)}
        spare = [letter for letter in string.ascii_letters if letter not in equation]
        if len(axes) > 1 or not 0 < (count := axes.pop()) <= len(spare):
            return None
        terms = tuple(term.replace(_ELLIPSIS, "".join(spare[:count])) for term in terms)
    # A diagonal or a broadcast stays what it is.
    if any(len(set(term)) != len(term) or not term.isalpha() for term in terms):
        return None
    return (terms[0], terms[1], terms[2])


def _sizes(view: View, operands: list[str], terms: tuple[str, str]) -> dict[str, Dim] | None:
    sizes: dict[str, Dim] = {}
    for operand, term in zip(operands, terms, strict=True):
        shape = view.shape(operand)
        if shape is None or len(shape) != len(term) or 0 in shape:
            return None
        for letter, size in zip(term, shape, strict=True):
            if sizes.setdefault(letter, size) != size:
                return None
    return sizes


def _move(base: str, term: str, sizes: dict[str, Dim], groups: list[tuple[str, ...]]) -> Move:
    after: Groups = tuple(tuple(term.index(letter) for letter in group) for group in groups)
    own = {axis: sizes[letter] for axis, letter in enumerate(term)}
    return Move(base, own, tuple((axis,) for axis in own), after)


@reads(*MOVES)
def head_bias_before_move(view: View, node: Node) -> bool:
    """split(x) + b with b [h, d], for the last axis of x split into h and d, is split(x + b [h*d])."""
    for value, bias in (node.inputs, tuple(reversed(node.inputs))):
        shape = view.shape(bias)
        if shape is None or len(shape) < 2 or not view.is_constant(bias):
            continue
        move = find_move(view, value)
        if move is None or move.base == view.resolve(value) or len(move.after) <= len(shape):
            continue
        inner = tuple(atom for group in move.after[-len(shape) :] for atom in group)
        if inner != move.before[-1] or move.shape[-len(shape) :] != shape or len(move.before) < 2:
            continue
        axes = tuple((axis,) for axis in range(len(shape)))
        flat = Move(bias, dict(enumerate(shape)), axes, (tuple(range(len(shape))),))
        if not is_writable(flat):
            continue
        if not is_writable(move):
            return False
        result = view.add("Add", [move.base, write_move(view, flat, node)], like=node, covers=[node])
        write_move(view, replace(move, base=result), node, node.outputs[0], [node])
        return True
    return False


def drop_zero(view: View, node: Node) -> bool:
    """x + 0 is x: the second half of Paddle's `scale`."""
    for value, zero in (node.inputs, tuple(reversed(node.inputs))):
        if view.scalar(zero) != 0.0:
            continue
        rank, other = view.rank(value), view.rank(zero)
        if rank is not None and other is not None and other <= rank:
            view.alias(node.outputs[0], value)
            return True
    return False


@reads("MatMul")
def flat_bias(view: View, node: Node) -> bool:
    """A linear layer's bias written as [1, 1, H] is [H]."""
    for value, bias in (node.inputs, tuple(reversed(node.inputs))):
        shape, whole = view.shape(bias), view.shape(value)
        if shape is None or whole is None or not 1 < len(shape) <= len(whole) or not view.is_constant(bias):
            continue
        if any(dim != 1 for dim in shape[:-1]) or shape[-1] != whole[-1]:
            continue
        producer = view.producer(value)
        if producer is None or producer.key != ("", "MatMul") or view.rank(producer.inputs[1]) != 2:
            continue
        last = len(shape) - 1
        flat = Move(bias, {last: shape[-1]}, (*((),) * last, (last,)), ((last,),))
        if not is_writable(flat):
            continue
        view.replace(node.outputs[0], "Add", [value, write_move(view, flat, node)], like=node, covers=[node])
        return True
    return False


@reads(*MOVES)
def sum_before_move(view: View, node: Node) -> bool:
    """move(a) + move(b), moved alike, is move(a + b): a residual on tokens that were flattened to [B*S, H], or are [S, B, H]."""
    moves = [find_move(view, value) for value in node.inputs]
    left, right = moves[0], moves[1]
    if (
        left is None
        or right is None
        or any(move.base == view.resolve(value) for move, value in ((left, node.inputs[0]), (right, node.inputs[1])))
    ):
        return False
    if left.base_shape != right.base_shape or left.shape != right.shape:
        return False
    flattened = left.keeps_order and right.keeps_order and len(left.shape) < len(left.base_shape)
    if not flattened and (permutation(left) is None or permutation(left) != permutation(right)):
        return False
    if not is_writable(left):
        return False
    result = view.add("Add", [left.base, right.base], like=node, covers=[node])
    write_move(view, replace(left, base=result), node, node.outputs[0], [node])
    return True
