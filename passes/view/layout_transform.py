"""Chains of Reshape, Transpose, Squeeze, Unsqueeze and Flatten as one move: split, permute, merge.

Whatever chain an exporter writes, it comes down to: split the axes of a base value into atoms, permute the atoms, merge
neighbours. [B, S, h*d] -> Reshape -> Transpose -> Reshape -> Transpose -> Reshape and a single Transpose that does the same
are then equal, and a pattern needs one form of head split and one of head merge.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np

from onnx_fuse.passes.graph import dims as d
from onnx_fuse.passes.graph.dims import Dim, Shape
from onnx_fuse.passes.graph.node import Node
from onnx_fuse.passes.view.view import View
from onnx_fuse.patterns.language.dsl import VIEW_DOMAIN

_ALLOWZERO = 14
"""The opset that brought Reshape's attribute."""
MOVES = frozenset({"Reshape", "Transpose", "Squeeze", "Unsqueeze", "Flatten"})

Groups = tuple[tuple[int, ...], ...]


@dataclass(frozen=True)
class Move:
    """How a value is made from `base` by moving data alone.

    Attributes:
        base: the value moved.
        sizes: size of each atom, by its number.
        before: for each axis of the base, the atoms it is split into.
        after: for each axis of the result, the atoms merged into it (none: an axis of size 1).
    """

    base: str
    sizes: dict[int, Dim]
    before: Groups
    after: Groups

    @property
    def shape(self) -> Shape:
        """Shape of the result."""
        return self._shape(self.after)

    @property
    def base_shape(self) -> Shape:
        """Shape of the base."""
        return self._shape(self.before)

    @property
    def order(self) -> list[int]:
        """Atoms in the order of the result."""
        return [atom for group in self.after for atom in group]

    @property
    def keeps_order(self) -> bool:
        """Whether a Reshape alone does it."""
        return self.order == [atom for group in self.before for atom in group]

    def _shape(self, groups: Groups) -> Shape:
        return tuple(d.product(self.sizes[atom] for atom in group) for group in groups)


def identity(base: str, shape: Shape) -> Move:
    """The move that does nothing."""
    groups = tuple((axis,) for axis in range(len(shape)))
    return Move(base, dict(enumerate(shape)), groups, groups)


def permutation(move: Move) -> list[int] | None:
    """The permutation of axes that a move is, the last axis left where it is; None for any other move."""
    if move.keeps_order or move.after[-1] != move.before[-1] or sorted(move.before) != sorted(move.after):
        return None
    return [move.before.index(group) for group in move.after]


def is_moved(view: View, value: str) -> bool:
    """Whether a movement makes the value: a look that costs no shapes."""
    node = view.producer(value)
    return node is not None and node.domain == "" and node.op_type in MOVES


def find_move(view: View, value: str) -> Move | None:
    """The longest chain of data movement that ends in `value`; None where its shape is unknown.

    A value that no movement makes is its own base, and so is one that is settled.
    """
    value = view.resolve(value)
    chain: list[Node] = []
    base = value
    node = view.producer(base)
    while node is not None and node.domain == "" and node.op_type in MOVES and base not in view.settled:
        chain.append(node)
        base = view.resolve(node.inputs[0])
        node = view.producer(base)
    shape = view.shape(base)
    move = None if shape is None or 0 in shape else identity(base, shape)
    for node in reversed(chain):
        shape = view.shape(node.outputs[0])
        if shape is None or 0 in shape:
            move = None
            continue
        moved = None if move is None else _apply(move, node, shape, view)
        move = moved if moved is not None else identity(view.resolve(node.outputs[0]), shape)
    return move


def written_as(view: View, value: str, base: str) -> list[Node]:
    """The chain that leads from `base` to `value`, as the view has it now."""
    chain: list[Node] = []
    while value != base:
        node = view.producer(value)
        if node is None:
            break
        chain.append(node)
        value = view.resolve(node.inputs[0])
    return chain[::-1]


def _apply(move: Move, node: Node, shape: Shape, view: View) -> Move | None:
    if node.op_type == "Transpose":
        perm = view.attribute(node, "perm") or list(reversed(range(len(move.after))))
        if not isinstance(perm, list) or sorted(perm) != list(range(len(move.after))):
            return None
        return replace(move, after=tuple(move.after[axis] for axis in perm))
    return regroup(move, shape)


def regroup(move: Move, shape: Shape) -> Move | None:
    """The move followed by a Reshape to `shape`; None where the two shapes cannot be told to fit."""
    sizes = dict(move.sizes)
    before = [list(group) for group in move.before]
    queue = move.order
    after: list[tuple[int, ...]] = []
    for target in shape:
        group: list[int] = []
        if target == 1:
            if queue and sizes[queue[0]] == 1:
                group.append(queue.pop(0))
            after.append(tuple(group))
            continue
        have: Dim = 1
        while have != target:
            if not queue:
                return None
            atom = queue.pop(0)
            total = d.multiply(have, sizes[atom])
            if d.divide(target, total) is not None:
                group.append(atom)
                have = total
                continue
            part = d.divide(target, have)
            rest = None if part is None else d.divide(sizes[atom], part)
            if part is None or rest is None:
                return None
            first, second = max(sizes) + 1, max(sizes) + 2
            sizes[first], sizes[second] = part, rest
            del sizes[atom]
            before = [_split(item, atom, first, second) for item in before]
            queue.insert(0, second)
            group.append(first)
            have = target
        after.append(tuple(group))
    if any(sizes[atom] != 1 for atom in queue):
        return None
    if queue:
        if not after:
            return None if queue else move
        after[-1] = (*after[-1], *queue)
    return Move(move.base, sizes, tuple(map(tuple, before)), tuple(after))


def _split(group: list[int], atom: int, first: int, second: int) -> list[int]:
    return [item for old in group for item in ((first, second) if old == atom else (old,))]


def coalesce(move: Move) -> Move:
    """The same move with as few atoms as it needs: neighbours that stay together become one."""
    follows = {}
    for group in move.before:
        for left, right in itertools.pairwise(group):
            follows[left] = right
    sizes = dict(move.sizes)
    merged: dict[int, int] = {}
    after: list[tuple[int, ...]] = []
    for group in move.after:
        out: list[int] = []
        last = -1
        for atom in group:
            if out and follows.get(last) == atom:
                merged[atom] = out[-1]
                sizes[out[-1]] = d.multiply(sizes[out[-1]], sizes.pop(atom))
            else:
                out.append(atom)
            last = atom
        after.append(tuple(out))
    before = tuple(tuple(atom for atom in group if atom not in merged) for group in move.before)
    return Move(move.base, sizes, before, tuple(after))


@dataclass(frozen=True)
class Step:
    """One node of a canonical move: a Transpose with `perm`, or a Reshape from `have` to `want`."""

    op_type: str
    perm: tuple[int, ...] = ()
    have: Shape = ()
    want: Shape = ()

    @property
    def constant(self) -> list[int] | None:
        """A constant target of a Reshape (0 copies, one -1), or None where there is none."""
        target = [
            dim if isinstance(dim, int) else 0 if axis < len(self.have) and self.have[axis] == dim else -1
            for axis, dim in enumerate(self.want)
        ]
        return target if target.count(-1) <= 1 else None

    @property
    def fails_on_nothing(self) -> bool:
        """Whether a value without elements may not fit the target: of a size of 0 and -1, either may be anything."""
        return self.constant is None or {0, -1} <= set(self.constant)

    @property
    def axes(self) -> tuple[str, list[int]] | None:
        """The operator that does what a Reshape does where it only adds or only drops axes of size 1, and those axes."""
        for op_type, longer, shorter in (("Unsqueeze", self.want, self.have), ("Squeeze", self.have, self.want)):
            ones = [axis for axis, dim in enumerate(longer) if dim == 1]
            if 1 not in shorter and tuple(dim for dim in longer if dim != 1) == shorter:
                return op_type, ones
        return None


def steps_of(move: Move, given: Set[Dim] = frozenset()) -> list[Step] | None:
    """The canonical nodes of a coalesced move; None where a Reshape target cannot be told from the shape before it.

    Args:
        given: sizes that can be had from elsewhere.
    """
    steps: list[Step] = []
    shape = move.base_shape
    turn = None if move.keeps_order else _turn(move)
    if turn is not None:
        split, perm = turn
        if split != shape:
            steps.append(Step("Reshape", have=shape, want=split))
        steps.append(Step("Transpose", perm=perm))
        shape = tuple(split[axis] for axis in perm)
    if shape != move.shape:
        steps.append(Step("Reshape", have=shape, want=move.shape))
    for step in steps:
        unknown = [dim for dim in step.want if not isinstance(dim, int) and dim not in step.have and dim not in given]
        if len(unknown) > 1 or 0 in step.want:
            return None
    return steps


def _turn(move: Move) -> tuple[Shape, tuple[int, ...]] | None:
    """(shape, permutation) of the Transpose of a move that does not keep the order; None where a Reshape does it.

    Axes of size 1 lie wherever a Reshape puts them. They stay at their places in the base or in the result, if one of the two is
    turned as it is, so that heads [S, 1, h*d] -> [1, h, S, d] are split as those of a batch are: [1, S, h, d], then 0, 2, 1, 3.
    """
    atoms = [atom for group in move.before for atom in group]
    large = [atom for atom in atoms if move.sizes[atom] != 1]
    split = tuple(move.sizes[atom] for atom in atoms)
    perm = tuple(atoms.index(atom) for atom in move.order)
    if len(large) == len(atoms) == len(move.after):
        return split, perm
    if split == move.base_shape and tuple(split[axis] for axis in perm) == move.shape:
        return split, perm
    moved = [atom for atom in move.order if move.sizes[atom] != 1]
    if large == moved:
        return None
    groups = next((groups for groups in (move.before, move.after) if _is_plain(move, groups)), ())
    places: list[int | None] = list(large)
    turned: list[int | None] = list(moved)
    for axis, group in enumerate(groups):
        # One that was put in is put in last, but for a batch.
        if all(move.sizes[atom] == 1 for atom in group) and (group or axis == 0):
            places.insert(axis, None)
            turned.insert(axis, None)
    sizes = tuple(1 if atom is None else move.sizes[atom] for atom in places)
    return sizes, tuple(axis if atom is None else places.index(atom) for axis, atom in enumerate(turned))


def _is_plain(move: Move, groups: Groups) -> bool:
    """Whether no axis holds more than one atom, those of size 1 left aside."""
    return all(sum(move.sizes[atom] != 1 for atom in group) <= 1 for group in groups)


def is_writable(*moves: Move, given: Set[Dim] = frozenset()) -> bool:
    """Whether canonical nodes can make all of these, to be asked before anything is made; of what a base is nothing depends.

    Args:
        given: sizes that can be had from elsewhere, as `View.input_sizes` says.
    """
    return all(steps_of(coalesce(move), given) is not None for move in moves)


def write_move(view: View, move: Move, like: Node, output: str | None = None, covers: Sequence[Node] = ()) -> str:
    """Adds the canonical nodes of a move to the view: Reshape, Transpose, Reshape, each only where needed.

    Args:
        move: a move that `is_writable`.
        like: the node whose place and name the new nodes take.
        output: the value the move makes; None for a new one.
        covers: nodes the new ones stand for.

    Returns:
        The name of the result.

    Raises:
        ValueError: if a Reshape target cannot be told from the shape before it.
    """
    move = coalesce(move)
    steps = steps_of(move) or steps_of(move, view.input_sizes.keys())
    if steps is None:
        raise ValueError(f"no Reshape leads from {move.base_shape} to {move.shape}")
    if not steps:
        return _take_over(view, move.base, output)
    value = move.base
    for number, step in enumerate(steps):
        inputs, attributes = [value], {}
        if step.op_type == "Reshape":
            inputs.append(_target(view, value, step, like))
        else:
            attributes["perm"] = list(step.perm)
        if output is not None and number == len(steps) - 1:
            view.replace(output, step.op_type, inputs, attributes, like=like, covers=covers)
            value = output
        else:
            value = view.add(step.op_type, inputs, attributes, like=like, covers=covers)
        if step.op_type == "Reshape" and step.fails_on_nothing:
            _write_for_nothing(view, value, inputs[0], step, like)
    return value


def _write_for_nothing(view: View, value: str, base: str, step: Step, like: Node) -> None:
    """Has a Reshape written so that values without elements can take it; in the view it stays what patterns look for."""
    if step.axes is not None:
        op_type, axes = step.axes
        view.write_as(value, op_type, [base, view.array(np.array(axes, dtype=np.int64), like.outputs[0])])
        return
    multiples: dict[Dim, _Size | None] = {
        dim: _multiple(step.have, dim) or _of_input(view, dim) for dim in step.want if not isinstance(dim, int)
    }
    if None in multiples.values():
        return
    # With "allowzero" a 0 is a size; without, it copies, which is the same where it stands in its old place.
    whole = {"allowzero": 1} if (view.graph.opset() or 0) >= _ALLOWZERO else {}
    view.write_as(value, "Reshape", [base, _put_together(view, base, step.want, multiples, like)], whole)


class _Size(NamedTuple):
    """How a size is made: of the sizes of these axes, multiplied, then of a factor.

    Attributes:
        axes: one or two.
        op_type: Mul, or Div by the factor.
        factor: 1 for the sizes as they are.
        owner: the value whose axes these are; None for what is reshaped.
    """

    axes: tuple[int, ...]
    op_type: str = "Mul"
    factor: int = 1
    owner: str | None = None


def _multiple(have: Shape, dim: Dim) -> _Size | None:
    """Of which axis a size is that of, a multiple or a part, or of which two it is a multiple of the product."""
    axes = [axis for axis, old in enumerate(have) if not isinstance(old, int)]
    for axis in axes:
        for op_type, factor in (("Mul", d.divide(dim, have[axis])), ("Div", d.divide(have[axis], dim))):
            if isinstance(factor, int):
                return _Size((axis,), op_type, factor)
    for pair in itertools.combinations(axes, 2):
        factor = d.divide(dim, d.product(have[axis] for axis in pair))
        if isinstance(factor, int):
            return _Size(pair, "Mul", factor)
    return None


def _of_input(view: View, dim: Dim) -> _Size | None:
    found = view.input_sizes.get(dim)
    return None if found is None else _Size((found[1],), owner=found[0])


def _take_over(view: View, base: str, output: str | None) -> str:
    if output is None:
        return base
    made = view.producer(base)
    # What stands for several nodes goes by the last of their names: those before it are then nobody's.
    renamed = made is not None and (made.domain == VIEW_DOMAIN or not view.exists_in_original(base))
    if made is not None and renamed and len(made.outputs) == 1:
        view.adopt(output, made)
    else:
        view.alias(output, base)
    return output


def _target(view: View, value: str, step: Step, like: Node) -> str:
    """The target of a Reshape: a constant (0 copies, one -1) where there is one, else put together from the shape before."""
    if step.constant is not None:
        return view.array(np.array(step.constant, dtype=np.int64), like.outputs[0])
    sizes: dict[Dim, _Size | None] = {dim: _Size((step.have.index(dim),)) for dim in step.want if dim in step.have}
    unknown = [dim for dim in step.want if not isinstance(dim, int) and dim not in sizes]
    if len(unknown) > 1:
        sizes |= {dim: _of_input(view, dim) for dim in unknown}
    return _put_together(view, value, step.want, sizes, like)


def write_shape(view: View, want: Shape, like: Node) -> str | None:
    """A shape as a value: a constant, or put together from the sizes of the graph's inputs; None where these do not tell."""
    sizes: dict[Dim, _Size | None] = {dim: _of_input(view, dim) for dim in want if not isinstance(dim, int)}
    if None in sizes.values():
        return None
    if not sizes:
        return view.array(np.array(want, dtype=np.int64), like.outputs[0])
    return _put_together(view, "", want, sizes, like)


def _put_together(view: View, value: str, want: Shape, sizes: Mapping[Dim, _Size | None], like: Node) -> str:
    """A target made of sizes of a value; -1 for a size of which is not said how it is made."""

    def ints(*numbers: int) -> str:
        return view.array(np.array(numbers, dtype=np.int64), like.outputs[0])

    shapes: dict[str, str] = {}
    parts = []
    for dim in want:
        found = sizes.get(dim)
        if isinstance(dim, int) or found is None:
            parts.append(ints(dim if isinstance(dim, int) else -1))
            continue
        owner = found.owner or value
        if owner not in shapes:
            shapes[owner] = view.add("Shape", [owner], like=like)
        each = [
            view.add("Slice", [shapes[owner], ints(axis), ints(axis + 1), ints(0)], like=like) for axis in found.axes
        ]
        size = each[0] if len(each) == 1 else view.add("Mul", each, like=like)
        parts.append(size if found.factor == 1 else view.add(found.op_type, [size, ints(found.factor)], like=like))
    return view.add("Concat", parts, {"axis": 0}, like=like)
