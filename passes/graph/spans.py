"""Tensors whose numbers are still in the file of their model: a span of it stands for them until somebody needs them.

Such a tensor reads as ONNX's external data that lies in the model's own file, which ONNX Runtime can map. A mark in it, which no
file can have by chance or on purpose, tells it from real external data, and how to make of it again what the file had.
"""

from __future__ import annotations

import os
import re
import secrets
from dataclasses import dataclass
from pathlib import Path
from weakref import WeakValueDictionary

from onnx import TensorProto

from onnx_fuse.errors import ModelError

_MARK = re.compile(rb"onnx-fuse:([0-9a-f]{32}):\d+:[01]")

RAW_DATA = TensorProto.RAW_DATA_FIELD_NUMBER


class Source:
    """A model file that is held open, so that its spans can be read even if another file takes its place.

    Attributes:
        path: where it was opened, as an absolute path.
        size: its size in bytes.
        descriptor: of the open file.
        token: what marks tensors that lie in it.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        """Raises:
        OSError: it cannot be opened.
        """
        self.path = Path(os.path.abspath(path))
        self.descriptor = os.open(self.path, os.O_RDONLY)
        status = os.fstat(self.descriptor)
        self.size = status.st_size
        self._changed, self._identity = status.st_mtime_ns, (status.st_dev, status.st_ino)
        self.token = secrets.token_hex(16)
        _SOURCES[self.token] = self

    def __del__(self) -> None:
        if hasattr(self, "descriptor"):
            os.close(self.descriptor)

    def __reduce__(self) -> str:
        raise TypeError("An open file cannot be copied.")  # a copy would close it, too

    def read(self, offset: int, length: int) -> bytes:
        """Bytes of the file.

        Raises:
            ModelError: it was changed since it was opened.
        """
        parts = []
        while length and (part := os.pread(self.descriptor, length, offset)):
            parts.append(part)
            offset, length = offset + len(part), length - len(part)
        self.require_unchanged()
        if length:
            raise self._other()
        return parts[0] if len(parts) == 1 else b"".join(parts)

    def require_unchanged(self) -> None:
        """Raises:
        ModelError: the file was written to since it was opened.
        """
        status = os.fstat(self.descriptor)
        if (status.st_size, status.st_mtime_ns) != (self.size, self._changed):
            raise self._other()

    def _other(self) -> ModelError:
        return ModelError(
            f"{self.path} was changed after it was opened, before its weights were read.",
            "Leave the file alone, and start again.",
        )

    @property
    def whole(self) -> Span:
        """All of the file."""
        return Span(self, 0, self.size)

    @property
    def is_in_place(self) -> bool:
        """Whether the path still leads to this file, unchanged."""
        try:
            status = os.stat(self.path)
        except OSError:
            return False
        found = (status.st_dev, status.st_ino), status.st_size, status.st_mtime_ns
        return found == (self._identity, self.size, self._changed)

    def reference(self, offset: int, length: int, field: int, stated: bool) -> bytes:
        """The fields of a TensorProto, as bytes, that stand for its numbers.

        Args:
            offset, length: where the numbers are.
            field: number of the field of TensorProto that has them.
            stated: the tensor says that its data is not external, which it need not say.
        """
        tensor = TensorProto(data_location=TensorProto.EXTERNAL)
        mark = f"onnx-fuse:{self.token}:{field}:{stated:d}"
        for entry in zip(_KEYS, (self.path.name, str(offset), str(length), mark), strict=True):
            tensor.external_data.add(key=entry[0], value=entry[1])
        return bytes(tensor.SerializeToString())


_SOURCES: WeakValueDictionary[str, Source] = WeakValueDictionary()
_KEYS = ("location", "offset", "length", "checksum")  # ONNX Runtime takes no other ones


@dataclass(frozen=True)
class Span:
    """A part of a model file.

    Attributes:
        source: the file.
        offset, length: in bytes.
        field: number of the field of TensorProto that it fills.
        stated: the tensor says that its data is not external.
    """

    source: Source
    offset: int
    length: int
    field: int = RAW_DATA
    stated: bool = False


def opened(path: str | os.PathLike[str]) -> Source:
    """The file, opened, or as it was opened before where it still is the same.

    Raises:
        OSError: it cannot be opened.
    """
    absolute = Path(os.path.abspath(path))
    found = (item for item in list(_SOURCES.values()) if item.path == absolute and item.is_in_place)
    return next(found, None) or Source(absolute)


def span_of(tensor: TensorProto) -> Span | None:
    """The span that stands for the tensor's numbers; None where it has them itself, or has them in real external data."""
    if tensor.data_location != TensorProto.EXTERNAL or len(tensor.external_data) != len(_KEYS):
        return None
    mark = tensor.external_data[3].value.split(":")
    source = _SOURCES.get(mark[1]) if mark[0] == "onnx-fuse" and len(mark) == len(_KEYS) else None
    if source is None:
        return None
    offset, length = (int(entry.value) for entry in tensor.external_data[1:3])
    return Span(source, offset, length, int(mark[2]), mark[3] == "1")


def is_external(tensor: TensorProto) -> bool:
    """Whether the tensor lies in real external data."""
    return tensor.data_location == TensorProto.EXTERNAL and span_of(tensor) is None


def fill(tensor: TensorProto) -> None:
    """Gives a tensor the numbers that a span stands for, so that it is as the file has it; leaves others alone.

    Raises:
        ModelError: the file was changed.
    """
    span = span_of(tensor)
    if span is None:
        return
    numbers = span.source.read(span.offset, span.length)
    without_reference(tensor, span)
    if span.field == RAW_DATA:
        tensor.raw_data = numbers
    else:
        tensor.MergeFromString(header(span.field, span.length) + numbers)


def filled(tensor: TensorProto) -> TensorProto:
    """The tensor with its numbers; itself where it has them."""
    if span_of(tensor) is None:
        return tensor
    copy = TensorProto()
    copy.CopyFrom(tensor)
    fill(copy)
    return copy


def without_reference(tensor: TensorProto, span: Span) -> None:
    """Removes what stands for the numbers."""
    tensor.ClearField("external_data")
    tensor.ClearField("data_location")
    if span.stated:
        tensor.data_location = TensorProto.DEFAULT


def marks(data: bytes) -> list[int]:
    """Where in the bytes of a message there are marks of spans."""
    if not _SOURCES:
        return []
    return [found.start() for found in _MARK.finditer(data) if found[1].decode() in _SOURCES]


def header(field: int, length: int) -> bytes:
    """What comes before the bytes of a field in protobuf's wire format: its number and their length."""
    made = bytearray()
    for number in (field << 3 | 2, length):
        while number >= 0x80:
            made.append(number & 0x7F | 0x80)
            number >>= 7
        made.append(number)
    return bytes(made)
