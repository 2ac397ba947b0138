"""Tensors that lie in files beside the model: where they are, whether they can be trusted. Only small ones are ever read."""

from __future__ import annotations

import math
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import NamedTuple

import numpy as np
from onnx import AttributeProto, FunctionProto, GraphProto, ModelProto, NodeProto, TensorProto, numpy_helper

from onnx_fuse.errors import ModelError
from onnx_fuse.passes.graph import spans

READ_LIMIT = 1 << 20
"""Tensors in external data with more bytes than this are weights, and not read."""

_KNOWN_TYPES = frozenset(TensorProto.DataType.keys())

# Bits of one element by the name of its type; a name that the installed onnx does not know is left out.
_BITS = {
    TensorProto.DataType.Value(name): bits
    for bits, names in {
        2: "INT2 UINT2",
        4: "INT4 UINT4 FLOAT4E2M1",
        8: "INT8 UINT8 BOOL FLOAT8E4M3FN FLOAT8E4M3FNUZ FLOAT8E5M2 FLOAT8E5M2FNUZ FLOAT8E8M0",
        16: "INT16 UINT16 FLOAT16 BFLOAT16",
        32: "INT32 UINT32 FLOAT",
        64: "INT64 UINT64 DOUBLE COMPLEX64",
        128: "COMPLEX128",
    }.items()
    for name in names.split()
    if name in _KNOWN_TYPES
}


@dataclass(frozen=True)
class ExternalFile:
    """One data file of a model.

    Attributes:
        location: its path relative to the model's folder, as the model has it.
        tensors: number of tensors in it.
        bytes: bytes of these tensors by their shapes and types.
    """

    location: str
    tensors: int
    bytes: int


class Extent(NamedTuple):
    """A part of a data file: its location relative to the model's folder, and where in it, in bytes."""

    location: str
    offset: int
    length: int


def byte_size(tensor: TensorProto) -> int:
    """Bytes that the tensor's shape and type ask for; 0 for strings and for types that the installed onnx does not know."""
    return size_in_bytes(tensor.data_type, tensor.dims)


def size_in_bytes(dtype: int, dims: Iterable[int]) -> int:
    """Bytes of a tensor of this type and shape; 0 as above."""
    return (math.prod(dims) * _BITS.get(dtype, 0) + 7) // 8


def tensors(model: ModelProto) -> Iterator[tuple[TensorProto, NodeProto | None]]:
    """Every tensor of the model: initializers and attributes of the main graph, of subgraphs and of functions.

    Yields:
        The tensor, with the node that carries it as an attribute, or None for an initializer.
    """
    # A stack of our own: subgraphs may be nested more deeply than Python recurses.
    pending: list[GraphProto | FunctionProto] = [model.graph, *model.functions]
    for training in model.training_info:
        pending += [training.initialization, training.algorithm]
    while pending:
        graph = pending.pop()
        if isinstance(graph, GraphProto):
            for initializer in graph.initializer:
                yield initializer, None
            for sparse in graph.sparse_initializer:
                yield sparse.values, None
                yield sparse.indices, None
        for node in graph.node:
            for attribute in node.attribute:
                kind = attribute.type
                if kind == AttributeProto.TENSOR:
                    yield attribute.t, node
                elif kind == AttributeProto.TENSORS:
                    for tensor in attribute.tensors:
                        yield tensor, node
                elif kind == AttributeProto.GRAPH:
                    pending.append(attribute.g)
                elif kind == AttributeProto.GRAPHS:
                    pending.extend(attribute.graphs)
                elif kind == AttributeProto.SPARSE_TENSOR:
                    yield attribute.sparse_tensor.values, node
                    yield attribute.sparse_tensor.indices, node
                elif kind == AttributeProto.SPARSE_TENSORS:
                    for sparse in attribute.sparse_tensors:
                        yield sparse.values, node
                        yield sparse.indices, node


def external_tensors(model: ModelProto) -> Iterator[tuple[TensorProto, NodeProto | None]]:
    """Those of `tensors` that lie in external data, other files than the model's own."""
    for tensor, node in tensors(model):
        if spans.is_external(tensor):
            yield tensor, node


def materialise(model: ModelProto) -> ModelProto:
    """Reads the weights that `io.load_lazily` has left in the model's file into the model, and returns it.

    Raises:
        ModelError: the file was changed.
    """
    for tensor, _ in tensors(model):
        spans.fill(tensor)
    return model


def source_of(model: ModelProto) -> spans.Source | None:
    """The file that weights of the model are still in; None where it has them all."""
    found = (spans.span_of(tensor) for tensor, _ in tensors(model))
    return next((span.source for span in found if span is not None), None)


def whole(model: ModelProto) -> ModelProto:
    """A copy of the model with the weights that are still in its file; itself where it has them all.

    Raises:
        ModelError: the file was changed.
    """
    if source_of(model) is None:
        return model
    copy = ModelProto()
    copy.CopyFrom(model)
    return materialise(copy)


def external_files(model: ModelProto) -> list[ExternalFile]:
    """The data files that the model refers to, in the order of their first use."""
    found: dict[str, tuple[int, int]] = {}
    for tensor, _ in external_tensors(model):
        location = _entry(tensor, "location")
        count, size = found.get(location, (0, 0))
        found[location] = (count + 1, size + byte_size(tensor))
    return [ExternalFile(location, count, size) for location, (count, size) in found.items()]


def read_small(tensor: TensorProto, folder: Path, limit: int) -> np.ndarray | None:
    """A tensor of a validated model as an array; None where it has more than `limit` elements or `READ_LIMIT` bytes.

    Exporters put index lists and masks of a few kilobytes into external data, too.
    """
    count = math.prod(tensor.dims)
    if count > limit or not 0 < byte_size(tensor) <= READ_LIMIT:
        return None
    copy = TensorProto(name=tensor.name, data_type=tensor.data_type, dims=tensor.dims)
    try:
        if not spans.is_external(tensor):
            return numpy_helper.to_array(spans.filled(tensor))
        # Not by onnx's own reader, which refuses files with several hard links: `validate` says what is trusted.
        place = extent(tensor)
        with open(folder / place.location, "rb") as file:
            file.seek(place.offset)
            copy.raw_data = file.read(byte_size(tensor))
        return numpy_helper.to_array(copy)
    except (OSError, KeyError, TypeError, ValueError, _Refusal):  # what cannot be read is a weight like any other
        return None


def validate(model: ModelProto, path: str | os.PathLike[str]) -> None:
    """Checks that every external tensor lies whole in a file inside the model's folder.

    A link is followed, and what it points to must again be inside: in the folder of `path`, or in the folder of the file that
    `path` links to (the Hugging Face cache links the model and its data to the same place).

    Args:
        model: the model.
        path: the file that it came from.

    Raises:
        ModelError: names the first tensor that cannot be trusted.
    """
    path = Path(path)
    sizes: dict[str, int] = {}
    for tensor, node in external_tensors(model):
        location = _entry(tensor, "location")
        try:
            if location not in sizes:
                sizes[location] = _locate(location, path)
            _check_extent(tensor, location, sizes[location])
        except _Refusal as refusal:
            raise ModelError(f"{_describe(tensor, node)} of {path} {refusal}.", refusal.remedy) from None


class _Refusal(ValueError):
    """What is wrong with a tensor's location, as the rest of a sentence, and its remedy."""

    def __init__(self, sentence: str, remedy: str) -> None:
        super().__init__(sentence)
        self.remedy = remedy


def _locate(location: str, model_path: Path) -> int:
    """The size in bytes of the data file, once it is known to be a regular file inside the model's folder."""
    inside = "Save the model again with its data in the model's own folder (onnx.save with save_as_external_data=True)."
    if not location or "\0" in location:
        raise _Refusal("lies in external data but names no file", inside)
    flavours = PurePosixPath(location), PureWindowsPath(location)
    if location.startswith(("/", "\\")) or any(flavour.is_absolute() or flavour.drive for flavour in flavours):
        raise _Refusal(f"has its data at the absolute path {location!r}, which is not followed", inside)
    if any(".." in flavour.parts for flavour in flavours):
        raise _Refusal(
            f"has its data at {location!r}, which leads out of the model's folder and is not followed", inside
        )
    file = model_path.parent / location
    real = Path(os.path.realpath(file))
    homes = {Path(os.path.realpath(model_path.parent)), Path(os.path.realpath(model_path)).parent}
    if not any(real.is_relative_to(home) for home in homes):
        raise _Refusal(f"has its data at {location!r}, a link to {real} outside the model's folder", inside)
    if not os.path.exists(file):
        raise _Refusal(
            f"has its data in {location!r}, which is missing", f"Put {Path(location).name} into {file.parent} again."
        )
    if not os.path.isfile(file):
        raise _Refusal(f"has its data in {location!r}, which is not a regular file", inside)
    return file.stat().st_size


def _check_extent(tensor: TensorProto, location: str, file_size: int) -> None:
    place, needed = extent(tensor), byte_size(tensor)
    offset, length = place.offset, place.length
    again = f"Copy or download {Path(location).name} again; if it is a Git LFS pointer, run `git lfs pull`."
    if offset + length > file_size:
        raise _Refusal(
            f"has its data at bytes {offset} to {offset + length} of {location!r}, which has only {file_size} bytes",
            again,
        )
    if length < needed:
        raise _Refusal(
            f"has {length} bytes of data in {location!r}, but its shape and type need {needed}",
            "Export the model again.",
        )


def extent(tensor: TensorProto) -> Extent:
    """Where a tensor says that its data is; one that gives no length has what its shape and type ask for.

    Raises:
        ValueError: a number is none; the message is the rest of a sentence.
    """
    return Extent(
        _entry(tensor, "location"), _number(tensor, "offset", 0), _number(tensor, "length", byte_size(tensor))
    )


def _number(tensor: TensorProto, key: str, default: int) -> int:
    text = _entry(tensor, key)
    if not text:
        return default
    # int() would also take "1_000", " 7" and digits of other scripts.
    if not (text.isascii() and text.isdigit() and len(text) < 20):
        raise _Refusal(f"has {text[:40]!r} as the {key} of its external data", "Export the model again.")
    return int(text)


def _entry(tensor: TensorProto, key: str) -> str:
    value = ""
    for entry in tensor.external_data:
        if entry.key == key:
            value = entry.value  # the last one counts, as in onnx
    return value


def _describe(tensor: TensorProto, node: NodeProto | None) -> str:
    if node is None:
        return f"Initializer {tensor.name!r}"
    return f"A tensor of node {node.name or (node.output[0] if node.output else node.op_type)!r}"
