"""Whether two models hold the same bytes under the same names: what both call one name has to be one value.

No comparison of outputs can tell this: a row of a table that no drawn id picks, a bit in one of a million weights.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from pathlib import Path

from onnx import AttributeProto, ModelProto, TensorProto, numpy_helper

from onnx_fuse.errors import reason
from onnx_fuse.passes.files.external_data import byte_size, extent
from onnx_fuse.patterns.language.operator import type_name

_CHUNK = 1 << 22


def changed_weights(
    original: ModelProto, original_dir: str | Path | None, fused: ModelProto, fused_dir: str | Path | None
) -> tuple[list[str], int]:
    """Sentences on the weights that both models hold under one name and that differ, and how many were compared.

    Initializers and constants of the main graph and of its subgraphs; a name that a model uses twice is passed over. External
    data is read in pieces, and not at all where both models mean the same place of the same file.
    """
    before, after = _held(original), _held(fused)
    sentences, count = [], 0
    for name, tensor in before.items():
        other = after.get(name)
        if tensor is None or other is None:
            continue
        count += 1
        try:
            difference = _difference(tensor, original_dir, other, fused_dir)
        except OSError as error:
            difference = f"cannot be compared: {reason(error)}"
        if difference is not None:
            sentences.append(f"the weight {name!r} {difference}")
    return sentences, count


def _held(model: ModelProto) -> dict[str, TensorProto | None]:
    """Name -> tensor; None where the name occurs more than once."""
    found: dict[str, TensorProto | None] = {}
    pending = [model.graph]
    while pending:
        graph = pending.pop()
        held = [(tensor.name, tensor) for tensor in graph.initializer]
        for node in graph.node:
            for attribute in node.attribute:
                if attribute.type == AttributeProto.GRAPH:
                    pending.append(attribute.g)
                elif attribute.type == AttributeProto.GRAPHS:
                    pending.extend(attribute.graphs)
                elif node.op_type == "Constant" and attribute.type == AttributeProto.TENSOR and node.output:
                    held.append((node.output[0], attribute.t))
        for name, tensor in held:
            found[name] = None if name in found else tensor
    return found


def _difference(
    one: TensorProto, one_dir: str | Path | None, other: TensorProto, other_dir: str | Path | None
) -> str | None:
    if (one.data_type, list(one.dims)) != (other.data_type, list(other.dims)):
        kinds = [f"{type_name(item.data_type).lower()}{list(item.dims)}" for item in (one, other)]
        return f"is {kinds[1]}, was {kinds[0]}"
    if _same_place(one, one_dir, other, other_dir):
        return None
    if one.data_type == TensorProto.STRING:
        same = list(one.string_data) == list(other.string_data)
        return None if same else "holds other strings than in the original"
    if not (_has_bytes(one) and _has_bytes(other)):  # one of them lists its numbers: small, or written by hand
        arrays = [
            numpy_helper.to_array(tensor, str(folder or "")) for tensor, folder in ((one, one_dir), (other, other_dir))
        ]
        pieces = [iter([array.tobytes()]) for array in arrays]
    else:
        pieces = [_bytes(one, one_dir), _bytes(other, other_dir)]
    done = 0
    for first, second in itertools.zip_longest(*pieces, fillvalue=b""):
        if first != second:
            inside = next(
                (i for i, (a, b) in enumerate(zip(first, second, strict=False)) if a != b), min(len(first), len(second))
            )
            return f"has other bytes than in the original, from byte {done + inside:,} on"
        done += len(first)
    return None


def _has_bytes(tensor: TensorProto) -> bool:
    return tensor.data_location == TensorProto.EXTERNAL or tensor.HasField("raw_data")


def _same_place(one: TensorProto, one_dir: str | Path | None, other: TensorProto, other_dir: str | Path | None) -> bool:
    if one is other:
        return True
    if not one.data_location == other.data_location == TensorProto.EXTERNAL:
        return False
    first, second = extent(one), extent(other)
    if (first.offset, byte_size(one)) != (second.offset, byte_size(other)):
        return False
    files = Path(one_dir or "") / first.location, Path(other_dir or "") / second.location
    try:
        return files[0] == files[1] or files[0].samefile(files[1])
    except OSError:
        return False


def _bytes(tensor: TensorProto, folder: str | Path | None) -> Iterator[bytes]:
    if tensor.data_location != TensorProto.EXTERNAL:
        data = tensor.raw_data
        yield from (data[start : start + _CHUNK] for start in range(0, len(data), _CHUNK))
        return
    place, left = extent(tensor), byte_size(tensor)
    with (Path(folder or "") / place.location).open("rb") as file:
        file.seek(place.offset)
        while left > 0:
            piece = file.read(min(left, _CHUNK))
            if not piece:
                return
            yield piece
            left -= len(piece)
