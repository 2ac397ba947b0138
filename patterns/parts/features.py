"""How the features of a recommender model, E [B, F, D], were put together from separate ones: Concat, Stack, Reshape."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from onnx_fuse.patterns.language.interface import View


@dataclass(frozen=True)
class Block:
    """Some rows of E in a row.

    Attributes:
        value: [B, D] for a single one, else [B, rows, D].
    """

    value: str
    rows: int
    single: bool = False


def blocks_of(view: View, features: str) -> list[Block]:
    """What E [B, F, D] is the concatenation of, in order: itself alone where nothing is known."""
    whole = view.shape(features)
    if whole is None or len(whole) != 3 or not isinstance(whole[1], int):
        return []
    blocks: list[Block] = []
    pending = [view.resolve(features)]
    while pending:
        value = pending.pop()
        parts = _parts(view, value, whole)
        if parts is None:
            blocks.append(_block(view, value, whole))
        else:
            pending.extend(reversed(parts))
    return blocks


def is_first_row(view: View, value: str, features: str) -> bool:
    """Whether a value [B, D] is row 0 of E [B, F, D]."""
    value, blocks = view.resolve(value), blocks_of(view, features)
    if _is_joined_first(view, value, features):
        return True
    if not blocks:
        return False
    if blocks[0].single and blocks[0].value == value:
        return True
    holders = {view.resolve(features), blocks[0].value}
    node = view.producer(value)
    if node is None or node.domain != "":
        return False
    source = view.resolve(node.inputs[0])
    if node.op_type == "Gather":
        index = view.constant(node.inputs[1])
        return (
            source in holders
            and view.rank(source) == 3
            and view.attribute(node, "axis") in (1, -2)
            and index is not None
            and index.ndim == 0
            and int(index) == 0
        )
    if node.op_type != "Reshape" or view.shape(value) != _without_rows(view, source):
        return False
    return source in holders or _is_first_slice(view, source, holders)


def _is_joined_first(view: View, value: str, features: str) -> bool:
    """Whether a value [B, D] comes first in what is concatenated to E [B, F, D], whatever is known of what follows it.

    As many elements as E has, B rows of them, of which the first D are the value's: row 0 of E is the value.
    """
    whole, shape = view.shape(features), view.shape(value)
    if whole is None or len(whole) != 3 or shape not in ((whole[0], whole[2]), (whole[0], 1, whole[2])):
        return False
    item = view.resolve(features)
    while (node := view.producer(item)) is not None and node.domain == "":
        if item == value:
            return True
        first = view.shape(node.inputs[0])
        if node.op_type == "Concat":
            axes = (1, -1) if first is not None and len(first) == 2 else (1, -2)
            if (
                first is None
                or len(first) not in (2, 3)
                or first[0] != whole[0]
                or view.attribute(node, "axis") not in axes
            ):
                return False
            if len(first) == 3 and first[2] != whole[2]:
                return False
        elif node.op_type != "Reshape":
            return False
        item = view.resolve(node.inputs[0])
    return item == value


def _parts(view: View, value: str, whole: Any) -> list[str] | None:
    """The inputs of the Concat over features that makes a value, or the one feature that it is; None where there is neither."""
    single = None
    while (node := view.producer(value)) is not None and node.domain == "":
        if node.op_type == "Concat" and view.attribute(node, "axis") in _feature_axes(view, value, whole):
            parts = [view.resolve(item) for item in node.inputs]
            if all(_rows(view, part, whole) for part in parts):
                return parts
        if node.op_type != "Reshape" or _rows(view, node.inputs[0], whole) != _rows(view, value, whole):
            break
        value = view.resolve(node.inputs[0])
        if view.shape(value) == (whole[0], whole[2]):
            single = value
    return None if single is None else [single]


def _feature_axes(view: View, value: str, whole: Any) -> tuple[int, ...]:
    return (1, -2) if view.rank(value) == 3 else (1, -1)


def _rows(view: View, value: str, whole: Any) -> int:
    """Of how many rows of E the value [B, rows, D] or [B, rows * D] consists; 0 where it does not."""
    shape = view.shape(value)
    if shape is None or len(shape) not in (2, 3) or not isinstance(shape[1], int):
        return 0
    if shape[0] != whole[0] and isinstance(shape[0], int) and isinstance(whole[0], int):
        return 0  # a batch without a size is that of E: Concat joins nothing else, Reshape keeps the number of elements
    if len(shape) == 3:
        return shape[1] if shape[2] == whole[2] else 0
    size = whole[2]
    return shape[1] // size if isinstance(size, int) and size and shape[1] % size == 0 else 0


def _block(view: View, value: str, whole: Any) -> Block:
    return Block(value, _rows(view, value, whole), view.shape(value) == (whole[0], whole[2]))


def _without_rows(view: View, value: str) -> Any:
    """[B, D] for a value [B, 1, D]."""
    shape = view.shape(value)
    return (shape[0], shape[2]) if shape is not None and len(shape) == 3 and shape[1] == 1 else None


def _is_first_slice(view: View, value: str, holders: set[str]) -> bool:
    """Whether a value is the first row of one of the holders, the axis of the rows kept."""
    node = view.producer(value)
    if node is None or node.domain != "" or view.resolve(node.inputs[0]) not in holders:
        return False
    if node.op_type == "Gather":
        index = view.constant(node.inputs[1])
        return view.attribute(node, "axis") in (1, -2) and index is not None and index.tolist() == [0]
    return (
        node.op_type == "Slice"
        and view.attribute(node, "axes") in ([1], [-2])
        and view.attribute(node, "starts") == [0]
        and view.attribute(node, "ends") == [1]
        and view.attribute(node, "steps") in (None, [1])
    )
