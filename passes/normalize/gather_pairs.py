"""Rules on what picks entries: of a batch of square products one `Select` with constant indices, however it was written.

Z[:, i, j] of Z [B, F, F] comes as Gather on the flattened Z, as GatherND or GatherElements between Transposes, as rows that are
sliced and concatenated, as Compress. Each entry of such a value is one entry of Z of the same batch element, at a place that
can be followed from node to node. `Select(Z, places)` is [B, *places.shape], where a place counts in Z[b] flattened.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np

from onnx_fuse.passes.graph.dims import Dim, Shape
from onnx_fuse.passes.graph.node import Node
from onnx_fuse.passes.graph.shapes.inference import Info
from onnx_fuse.passes.view.layout_transform import MOVES, Move, find_move, identity, write_move
from onnx_fuse.passes.view.rule import reads
from onnx_fuse.passes.view.view import View
from onnx_fuse.patterns.language.dsl import VIEW_DOMAIN
from onnx_fuse.patterns.parts.features import is_first_row

_SELECT = (VIEW_DOMAIN, "Select")
_TO_THE_END = 1 << 31


@dataclass(frozen=True)
class Selection:
    """A value that holds entries of a product.

    Attributes:
        source: the product, [B, F, F].
        size: B.
        places: for each element of the value, without its batch axis, the place in the flattened [F, F].
        batch: where the batch axis stands in the value.
    """

    source: str
    size: Dim
    places: np.ndarray
    batch: int

    @property
    def shape(self) -> Shape:
        """The value's shape."""
        dims: list[Dim] = [int(dim) for dim in self.places.shape]
        return (*dims[: self.batch], self.size, *dims[self.batch :])

    def inner(self, axis: int) -> int | None:
        """The axis of `places` that is this axis of the value; None for the batch axis."""
        axis %= self.places.ndim + 1
        return None if axis == self.batch else axis - (axis > self.batch)


def selection(view: View, node: Node) -> bool:
    """A node that picks entries of a square product is Select; so is a Concat of several such."""
    if node.op_type == "Concat":
        return _join(view, node)
    found = selected(view, node.inputs[0])
    if found is None:
        return False
    if node.op_type == "Split":
        return _split(view, node, found)
    picked = PICKS[node.op_type](view, node, found)
    if picked is not None and node.op_type == "Compress":  # how many it keeps is not in its inferred shape
        view.declare(node.outputs[0], Info(view.dtype(found.source), picked.shape))
    return picked is not None and _declare(view, node, node.outputs[0], picked)


def gather_columns(view: View, node: Node) -> bool:
    """GatherND with constant indices [P, 1] is Gather along the first axis."""
    indices = view.constant(node.inputs[1])
    if view.attribute(node, "batch_dims") or indices is None or indices.ndim != 2 or indices.shape[1] != 1:
        return False
    column = view.array(indices[:, 0], node.outputs[0])
    view.replace(node.outputs[0], "Gather", [node.inputs[0], column], {"axis": 0}, like=node, covers=[node])
    return True


def gather_before_transpose(view: View, node: Node) -> bool:
    """Gather with a list of indices, after a Transpose, is the Transpose of a Gather along the axis as it was before."""
    turn, axis = view.producer(node.inputs[0]), view.attribute(node, "axis")
    if turn is None or turn.key != ("", "Transpose") or view.rank(node.inputs[1]) != 1 or not isinstance(axis, int):
        return False
    perm = view.attribute(turn, "perm")
    if not isinstance(perm, list):
        return False
    picked = view.add("Gather", [turn.inputs[0], node.inputs[1]], {"axis": perm[axis]}, like=node, covers=[node])
    view.replace(node.outputs[0], "Transpose", [picked], {"perm": perm}, like=node, covers=[turn])
    return True


@reads("Concat")
def products_of_rows(view: View, node: Node) -> bool:
    """Concat(e0, e0, e1) * Concat(e1, e2, e2) of rows [B, 1, D] picks from Concat(e0, e1, e2) twice: PNN, as DeepCTR has it."""
    joins = [view.producer(value) for value in node.inputs]
    if any(join is None or join.key != ("", "Concat") or view.attribute(join, "axis") not in (1, -2) for join in joins):
        return False
    rows = [view.inputs(join) for join in joins if join is not None]
    if len(rows[0]) != len(rows[1]):
        return False
    unique = next(filter(partial(_is_monotone, rows), _orders(rows)), next(_orders(rows)))
    if not 2 <= len(unique) < len(rows[0]) + len(rows[1]):
        return False
    shapes = {view.shape(value) for value in unique}
    shape = shapes.pop()
    if shapes or shape is None or len(shape) != 3 or shape[1] != 1:
        return False
    covers = [join for join in joins if join is not None]
    whole = view.add("Concat", unique, {"axis": 1}, like=node)
    picked = [
        view.add(
            "Gather",
            [whole, view.array(np.array([unique.index(value) for value in row], dtype=np.int64), whole)],
            {"axis": 1},
            like=join,
            covers=[join],
        )
        for join, row in zip(covers, rows, strict=True)
    ]
    view.replace(node.outputs[0], "Mul", picked, like=node, covers=[node])
    return True


def _orders(rows: Sequence[Sequence[str]]) -> Iterator[list[str]]:
    """The features in the order in which the pairs name them, by the first of each pair and by the second."""
    for order in (rows, rows[::-1]):
        yield list(dict.fromkeys(value for row in order for value in row))


def _is_monotone(rows: Sequence[Sequence[str]], unique: list[str]) -> bool:
    """Whether the first of each pair comes before the second, or after it in each."""
    found = {unique.index(one) < unique.index(other) for one, other in zip(*rows, strict=True)}
    return len(found) == 1


def masked_selection(view: View, node: Node) -> bool:
    """Z[mask expanded over the batch], one axis, laid out as [B, -1] again is Select: what masked_select and view export."""
    gather = view.producer(node.inputs[0])
    if gather is None or gather.key != ("", "GatherND") or view.attribute(gather, "batch_dims"):
        return False
    found = selected(view, gather.inputs[0])
    turned = view.producer(gather.inputs[1])
    pairs = None if turned is None or turned.key != ("", "Transpose") else view.producer(turned.inputs[0])
    if found is None or found.batch != 0 or pairs is None or pairs.key != ("", "NonZero"):
        return False
    mask = _same_for_all(view, pairs.inputs[0], found)
    target = view.constant(node.inputs[1])
    if mask is None or mask.shape != found.places.shape or target is None:
        return False
    picked = replace(found, places=found.places[mask.astype(bool)])
    if target.tolist() != [-1, len(picked.places)]:
        return False
    view.declare(node.outputs[0], Info(view.dtype(found.source), picked.shape))
    return _declare(view, node, node.outputs[0], picked, [gather])


def selected(view: View, value: str) -> Selection | None:
    """The value as entries of a square product, moved by whatever chain; None where it is something else."""
    if not _comes_from_a_product(view, value):
        return None
    move = find_move(view, value)
    maker = None if move is None else view.producer(move.base)
    if move is None or maker is None:
        return None
    if maker.key == _SELECT:
        places = view.constant(maker.inputs[1])
        source = view.resolve(maker.inputs[0])
        return None if places is None else _moved(Selection(source, move.base_shape[0], places, 0), move)
    shape, operands = view.shape(move.base), [view.rank(item) for item in maker.inputs]
    if maker.key != ("", "MatMul") or shape is None or len(shape) != 3 or operands != [3, 3]:
        return None
    size = shape[1]
    if not isinstance(size, int) or size != shape[2]:
        return None
    return _moved(Selection(move.base, shape[0], np.arange(size * size).reshape(size, size), 0), move)


def _comes_from_a_product(view: View, value: str) -> bool:
    """A first look that costs no shapes: a MatMul or Select with nothing but moves after it."""
    node = view.producer(value)
    while node is not None and node.domain == "" and node.op_type in MOVES:
        node = view.producer(node.inputs[0])
    return node is not None and node.key in (("", "MatMul"), _SELECT)


def _moved(found: Selection, move: Move) -> Selection | None:
    """The selection after a move, if the batch axis comes out of it whole."""
    batch = set(move.before[0])
    axis = next((axis for axis, group in enumerate(move.after) if batch & set(group)), None)
    if axis is None or not all(atom in batch or move.sizes[atom] == 1 for atom in move.after[axis]):
        return None
    if not batch <= set(move.after[axis]):
        return None
    atoms = [atom for group in move.before[1:] for atom in group]
    order = [atom for place, group in enumerate(move.after) if place != axis for atom in group]
    lost = [atom for atom in atoms if atom not in order]  # of size 1, merged into the batch axis
    groups = [[move.sizes[atom] for atom in group] for place, group in enumerate(move.after) if place != axis]
    sizes = [move.sizes[atom] for atom in atoms]
    if not all(isinstance(size, int) for size in (*sizes, *itertools.chain(*groups))):
        return None
    places = found.places.reshape([int(str(size)) for size in sizes])
    places = places.transpose([atoms.index(atom) for atom in (*order, *lost)])
    shape = [int(np.prod([int(str(size)) for size in group], dtype=np.int64)) for group in groups]
    return replace(found, places=places.reshape(shape), batch=axis)


def _declare(
    view: View, node: Node, value: str, picked: Selection, covers: Sequence[Node] = (), *, reshaped: bool = False
) -> bool:
    """Lets a Select, moved as needed, make a value that the node makes."""
    # What the graph says of the shape must agree: indices that are broadcast are something else.
    if picked.places.size == 0 or view.shape(value) != picked.shape:
        return False
    made = _add(view, node, picked, covers)
    whole = identity(made, replace(picked, batch=0).shape)
    after = list(whole.after[1:])
    after.insert(picked.batch, whole.after[0])
    write_move(view, replace(whole, after=tuple(after)), node, value, [node])
    _supersede(view, node)
    return True


def _supersede(view: View, node: Node) -> None:
    """Selections that grew into a larger one, and that nothing else reads, are not told of."""
    for maker in (view.producer(value) for value in node.inputs):
        if maker is not None and maker.key == _SELECT:
            view.supersede(maker, node)


def _add(view: View, node: Node, picked: Selection, covers: Sequence[Node]) -> str:
    places = view.array(picked.places, node.outputs[0])
    made = view.add("Select", [picked.source, places], like=node, covers=[node, *covers], domain=VIEW_DOMAIN)
    view.declare(made, Info(view.dtype(picked.source), replace(picked, batch=0).shape))
    return made


# -- what picks --------------------------------------------------------------------------------------------------------


def _gather(view: View, node: Node, found: Selection) -> Selection | None:
    given, indices = view.attribute(node, "axis"), view.constant(node.inputs[1])
    axis = found.inner(given) if isinstance(given, int) else None
    if axis is None or indices is None or not _within(indices, found.places.shape[axis]):
        return None
    batch = found.batch + (indices.ndim - 1 if axis < found.batch else 0)
    return replace(found, places=np.take(found.places, indices, axis=axis), batch=batch)


def _gather_nd(view: View, node: Node, found: Selection) -> Selection | None:
    if view.attribute(node, "batch_dims") == 1 and found.batch == 0:
        indices = _same_for_all(view, node.inputs[1], found)
        batch = 0
    elif view.attribute(node, "batch_dims") == 0:
        indices = view.constant(node.inputs[1])
        batch = found.batch if indices is None else found.batch - indices.shape[-1] + indices.ndim - 1
        if indices is not None and found.batch < indices.shape[-1]:
            return None
    else:
        return None
    if indices is None or indices.ndim == 0 or indices.shape[-1] > found.places.ndim:
        return None
    columns = np.moveaxis(indices, -1, 0)
    if not all(_within(column, size) for column, size in zip(columns, found.places.shape, strict=False)):
        return None
    return replace(found, places=found.places[tuple(columns)], batch=batch)


def _gather_elements(view: View, node: Node, found: Selection) -> Selection | None:
    given = view.attribute(node, "axis")
    axis = found.inner(given) if isinstance(given, int) else None
    indices = _same_for_all(view, node.inputs[1], found)
    if axis is None or indices is None or indices.ndim != found.places.ndim:
        return None
    others = [(have, want) for place, (have, want) in enumerate(zip(indices.shape, found.places.shape, strict=True))]
    if any(have != want for place, (have, want) in enumerate(others) if place != axis):
        return None
    size = found.places.shape[axis]
    if not _within(indices, size):
        return None
    return replace(found, places=np.take_along_axis(found.places, indices % size, axis=axis))


def _slice(view: View, node: Node, found: Selection) -> Selection | None:
    bounds = [view.attribute(node, name) for name in ("starts", "ends", "axes", "steps")]
    starts, ends, axes, steps = bounds
    if not _integers(starts) or not _integers(ends):
        return None
    axes = list(range(len(starts))) if axes is None else axes
    steps = [1] * len(starts) if steps is None else steps
    if not _integers(axes) or not _integers(steps):
        return None
    window: list[slice] = [slice(None)] * found.places.ndim
    for start, end, given, step in zip(starts, ends, axes, steps, strict=True):
        axis = found.inner(given)
        if axis is None:
            if (start, step) != (0, 1) or end < _TO_THE_END - 1:
                return None
            continue
        size = found.places.shape[axis]
        if step < 0:  # an end before the first element is None to Python
            window[axis] = slice(start, None if end < -size else end, step)
        else:
            window[axis] = slice(start, end, step)
    return replace(found, places=found.places[tuple(window)])


def _compress(view: View, node: Node, found: Selection) -> Selection | None:
    given, keep = view.attribute(node, "axis"), view.constant(node.inputs[1])
    axis = found.inner(given) if isinstance(given, int) else None
    if axis is None or keep is None or keep.ndim != 1 or len(keep) > found.places.shape[axis]:
        return None
    return replace(found, places=np.compress(keep.astype(bool), found.places, axis=axis))


def _split(view: View, node: Node, found: Selection) -> bool:
    """Each output of a Split by itself."""
    given = view.attribute(node, "axis")
    axis = found.inner(given) if isinstance(given, int) else None
    shapes = [view.shape(output) for output in node.outputs]
    sizes = [0 if shape is None or axis is None else shape[given] for shape in shapes]
    if axis is None or not all(isinstance(size, int) for size in sizes) or sum(sizes) != found.places.shape[axis]:
        return False
    parts = np.split(found.places, np.cumsum(sizes)[:-1], axis=axis)
    made = [
        _declare(view, node, output, replace(found, places=places))
        for output, places in zip(node.outputs, parts, strict=True)
    ]
    return any(made)


PICKS: dict[str, Callable[[View, Node, Selection], Selection | None]] = {
    "Gather": _gather,
    "GatherND": _gather_nd,
    "GatherElements": _gather_elements,
    "Slice": _slice,
    "Compress": _compress,
}
"""Operators whose first input they pick from."""


def _within(indices: np.ndarray, size: int) -> bool:
    return bool(np.all((-size <= indices) & (indices < size)))


def _integers(values: Any) -> bool:
    return isinstance(values, list) and all(isinstance(item, int) for item in values)


def _same_for_all(view: View, value: str, found: Selection) -> np.ndarray | None:
    """Constant indices (or a mask) with a batch axis along which they are all the same, without that axis."""
    node = view.producer(value)
    whole = view.shape(value)
    expanded = node is not None and node.key == ("", "Expand")
    array = view.constant(node.inputs[0] if expanded and node is not None else value)
    if array is None or whole is None or len(whole) <= found.batch or whole[found.batch] != found.size:
        return None
    array = array.reshape((1,) * (len(whole) - array.ndim) + array.shape)
    first = np.take(array, 0, axis=found.batch)
    if not np.array_equal(array, np.broadcast_to(np.expand_dims(first, found.batch), array.shape)):
        return None
    rest = [*whole[: found.batch], *whole[found.batch + 1 :]]
    sizes = [dim for dim in rest if isinstance(dim, int)]
    return np.broadcast_to(first, sizes) if len(sizes) == len(rest) else None


# -- Concat ------------------------------------------------------------------------------------------------------------


def _join(view: View, node: Node) -> bool:
    """Neighbours in a Concat that are entries of one product become one Select."""
    if not any(_comes_from_a_product(view, value) for value in node.inputs):
        return False
    axis = view.attribute(node, "axis")
    if not isinstance(axis, int):
        return False
    parts = [(value, selected(view, value)) for value in node.inputs]
    runs = [list(run) for _, run in itertools.groupby(parts, key=lambda part: _kind(part[0], part[1], axis))]
    joined: list[str] = []
    for run in runs:
        found = [part for _, part in run if part is not None]
        if len(found) < 2:
            joined += [value for value, _ in run]
            continue
        whole = replace(found[0], places=np.concatenate([part.places for part in found], axis=found[0].inner(axis)))
        makers = [maker for value, _ in run if (maker := view.producer(value)) is not None]
        if len(runs) == 1:
            return _declare(view, node, node.outputs[0], whole, makers)
        if whole.batch == 0:
            joined.append(_add(view, node, whole, makers))
        else:
            joined += [value for value, _ in run]
    pairs = joined if len(joined) < 3 else _with_dense(view, node, joined, axis)
    if len(pairs) == len(parts):
        return False
    if len(joined) < len(parts):
        _supersede(view, node)
    view.replace(node.outputs[0], "Concat", pairs, {"axis": axis}, like=node, covers=[node])
    return True


def _with_dense(view: View, node: Node, values: list[str], axis: int) -> list[str]:
    """The inputs of a Concat, with a selection and the first feature beside it in a Concat of their own."""
    for place, value in enumerate(values):
        maker = view.producer(value)
        if maker is None or maker.key != _SELECT:
            continue
        product = view.producer(maker.inputs[0])
        for first, dense in ((place - 1, place - 1), (place, place + 1)):
            if product is None or not 0 <= dense < len(values):
                continue
            if is_first_row(view, values[dense], product.inputs[0]):
                pair = view.add("Concat", values[first : first + 2], {"axis": axis}, like=node, covers=[node])
                return [*values[:first], pair, *values[first + 2 :]]
    return values


def _kind(value: str, part: Selection | None, axis: int) -> Any:
    """What neighbours that can be joined share."""
    inner = None if part is None else part.inner(axis)
    if part is None or inner is None:
        return value
    return part.source, part.batch, inner, (*part.places.shape[:inner], *part.places.shape[inner + 1 :])
