"""Rules on linear layers: Gemm is MatMul and Add, and both work on the value as it was before it was moved or flattened.

nn.Linear on [B, S, K] comes as MatMul + Add, as Reshape + Gemm + Reshape, or in [S, B, K] order between Transposes. A product
with a two-dimensional weight acts on the last axis alone, so every move of the other axes can follow it instead.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from onnx_fuse.passes.graph import dims as d
from onnx_fuse.passes.graph.attributes import Reference
from onnx_fuse.passes.graph.node import Node
from onnx_fuse.passes.normalize.norms import NORMS, spans_last_axis
from onnx_fuse.passes.view.layout_transform import (
    MOVES,
    Groups,
    Move,
    find_move,
    is_moved,
    is_writable,
    permutation,
    write_move,
)
from onnx_fuse.passes.view.rule import reads
from onnx_fuse.passes.view.view import View


def split_gemm(view: View, node: Node) -> bool:
    """Gemm(a, b, c) with alpha = beta = 1 is MatMul(a, b) + c; beta is of no account where there is no c."""
    weight = node.inputs[1]
    bias = node.inputs[2] if len(node.inputs) > 2 else ""
    factors = ("alpha", "beta") if bias else ("alpha",)
    if view.attribute(node, "transA") or any(view.attribute(node, name) != 1.0 for name in factors):
        return False
    if bias and view.rank(bias) not in (0, 1):
        return False
    turned = view.attribute(node, "transB")
    if isinstance(turned, Reference):
        return False
    if turned:
        weight = view.add("Transpose", [weight], {"perm": [1, 0]}, like=node, covers=[node])
    if not bias:
        view.replace(node.outputs[0], "MatMul", [node.inputs[0], weight], like=node, covers=[node])
        return True
    product = view.add("MatMul", [node.inputs[0], weight], like=node, covers=[node])
    view.replace(node.outputs[0], "Add", [product, bias], like=node, covers=[node])
    return True


@reads(*MOVES)
def matmul_before_move(view: View, node: Node) -> bool:
    """MatMul(move(x), W) is move(MatMul(x, W)) for a two-dimensional W and a move that keeps the last axis together."""
    if not is_moved(view, node.inputs[0]) or view.rank(node.inputs[1]) != 2:
        return False
    return _before_move(view, node, node.inputs[0], [node.inputs[1]])


@reads(*MOVES)
def bias_before_move(view: View, node: Node) -> bool:
    """Add(move(x), b) is move(Add(x, b)) for a b that spans the last axis alone."""
    for value, bias in (node.inputs, reversed(node.inputs)):
        if is_moved(view, value) and view.rank(bias) in (0, 1) and _before_move(view, node, value, [bias]):
            return True
    return False


@reads(*MOVES)
def scale_before_move(view: View, node: Node) -> bool:
    """Mul(Transpose(norm(x)), gamma) is Transpose(Mul(norm(x), gamma)) for a norm without a scale, gamma over the last axis.

    Not after a Reshape: an opset that lacks the norm can have it turned, but not in other shapes.
    """
    for value, gamma in (node.inputs, reversed(node.inputs)):
        if not is_moved(view, value) or not spans_last_axis(view, gamma, value):
            continue
        move = find_move(view, value)
        if move is None or permutation(move) is None:
            continue
        norm = view.producer(move.base)
        bare = norm is not None and norm.key in NORMS and len(norm.inputs) == 1
        if bare and _before_move(view, node, value, [gamma]):
            return True
    return False


@reads(*MOVES)
def norm_before_move(view: View, node: Node) -> bool:
    """LayerNorm or RMSNorm(move(x)) over the last axis is move(norm(x)) for a move that keeps the last axis together."""
    if not is_moved(view, node.inputs[0]):
        return False
    rank = view.rank(node.inputs[0])
    axis = view.attribute(node, "axis")
    if rank is None or axis not in (-1, rank - 1) or any(map(view.is_read, node.outputs[1:])):
        return False
    attributes = {"axis": -1, "epsilon": view.attribute(node, "epsilon")}
    return _before_move(view, node, node.inputs[0], list(node.inputs[1:]), attributes)


@reads(*MOVES)
def residual_before_move(view: View, node: Node) -> bool:
    """move(a) + r is move(a + r moved back) for the a that attention makes: r may have tokens first, or on two axes."""
    for value, residual in (node.inputs, tuple(reversed(node.inputs))):
        if not is_moved(view, value):
            continue
        move = find_move(view, value)
        if move is None or move.base not in view.settled or view.shape(residual) != move.shape:
            continue
        back = Move(view.resolve(residual), move.sizes, move.after, move.before)
        if not is_writable(back, move, given=view.input_sizes.keys()):
            continue
        result = view.add("Add", [move.base, write_move(view, back, node)], like=node, covers=[node])
        view.settled.add(result)
        write_move(view, replace(move, base=result), node, node.outputs[0], [node])
        return True
    return False


def _before_move(
    view: View, node: Node, value: str, others: list[str], attributes: dict[str, Any] | None = None
) -> bool:
    if not is_moved(view, value):
        return False
    width = view.shape(node.outputs[0])
    move = find_move(view, value)
    if width is None or move is None or move.base == view.resolve(value) or len(move.after) < 2 or not move.after[-1]:
        return False
    settled = move.base in view.settled
    parts = _factor(move, apart=settled)
    if parts is None:
        return False
    merge, rows = parts
    last = rows.before[-1][0]
    move_after = replace(rows, sizes={**rows.sizes, last: width[-1]})
    if not is_writable(merge, move_after, given=view.input_sizes.keys() if settled else frozenset()):
        return False
    moved = write_move(view, merge, node)
    result = view.add(node.op_type, [moved, *others], attributes, like=node, covers=[node])
    if settled:
        view.settled.add(result)
    write_move(view, replace(move_after, base=result), node, node.outputs[0], [node])
    return True


def _factor(move: Move, *, apart: bool) -> tuple[Move, Move] | None:
    """The move as two: one that only merges what becomes the last axis, one that only moves the other axes.

    None where the first does all of it already.

    Args:
        apart: whether a move that only moves axes of size 1 is worth it.
    """
    last = move.after[-1]
    kept: list[tuple[int, ...]] = []
    for group in move.before:
        rest = tuple(atom for atom in group if atom not in last)
        if rest or not group:
            kept.append(rest)
    groups: Groups = (*kept, last)
    if groups == move.after or (not apart and _ones_apart(groups, move)):
        return None
    merge = Move(move.base, move.sizes, move.before, groups)
    whole = max(move.sizes) + 1
    sizes = {atom: size for atom, size in move.sizes.items() if atom not in last}
    sizes[whole] = d.product(move.sizes[atom] for atom in last)
    rows = Move("", sizes, (*kept, (whole,)), (*move.after[:-1], (whole,)))
    return merge, rows


def _ones_apart(groups: Groups, move: Move) -> bool:
    """Whether the two differ in nothing but atoms and axes of size 1, which is not worth a change."""

    def significant(of: Groups) -> list[tuple[int, ...]]:
        stripped = [tuple(atom for atom in group if move.sizes[atom] != 1) for group in of]
        return [group for group in stripped if group]

    return len(groups) == len(move.after) and significant(groups) == significant(move.after)
