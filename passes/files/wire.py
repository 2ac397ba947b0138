"""Protobuf's wire format, for the one thing that its library cannot do: leave large tensors of a model where they are in the file.

`skim` gives the bytes of a model in which a reference stands for the numbers of each large tensor; `spliced` goes the other way.
Whatever is not as every exporter writes it, `skim` leaves to the library: nothing is then left in the file. Reference:
https://protobuf.dev/programming-guides/encoding.
"""

from __future__ import annotations

import os
from bisect import bisect_left
from collections.abc import Collection, Iterable, Iterator, Mapping
from typing import Protocol, TypeAlias

from onnx import AttributeProto, FunctionProto, GraphProto, ModelProto, NodeProto, TensorProto

from onnx_fuse.passes.files.external_data import byte_size
from onnx_fuse.passes.graph import spans
from onnx_fuse.passes.graph.spans import Source, Span

LARGE = 1 << 16
"""Bytes from which a tensor's numbers stay in the file. ONNX Runtime maps each, and a process may have 65,530 mappings."""

Piece: TypeAlias = "bytes | Span"
"""A part of a file that is to be written: bytes, or a span of another file."""

_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5
_FIXED = {_FIXED64: 8, _FIXED32: 4}
_BLOCK = 1 << 16
_HEADER = 16  # bytes that a field's number, and its length or its varint, take at most
_DEPTH = 100  # of messages inside one another, protobuf's own limit

# Where tensors are that can be large: kind of message -> field -> kind of the message in it.
_CHILDREN: Mapping[type, Mapping[int, type]] = {
    ModelProto: {ModelProto.GRAPH_FIELD_NUMBER: GraphProto, ModelProto.FUNCTIONS_FIELD_NUMBER: FunctionProto},
    GraphProto: {GraphProto.NODE_FIELD_NUMBER: NodeProto, GraphProto.INITIALIZER_FIELD_NUMBER: TensorProto},
    FunctionProto: {FunctionProto.NODE_FIELD_NUMBER: NodeProto},
    NodeProto: {NodeProto.ATTRIBUTE_FIELD_NUMBER: AttributeProto},
    AttributeProto: {
        AttributeProto.T_FIELD_NUMBER: TensorProto,
        AttributeProto.G_FIELD_NUMBER: GraphProto,
        AttributeProto.GRAPHS_FIELD_NUMBER: GraphProto,
    },
}
# Of a field that a message has once at most, protobuf takes the last, or merges all, where there are more.
_SINGULAR: Mapping[type, Collection[int]] = {
    ModelProto: {ModelProto.GRAPH_FIELD_NUMBER},
    NodeProto: {NodeProto.OP_TYPE_FIELD_NUMBER, NodeProto.DOMAIN_FIELD_NUMBER},
    AttributeProto: {
        AttributeProto.NAME_FIELD_NUMBER,
        AttributeProto.TYPE_FIELD_NUMBER,
        AttributeProto.T_FIELD_NUMBER,
        AttributeProto.G_FIELD_NUMBER,
    },
}
# Type of an attribute -> the field that counts.
_HELD: Mapping[int, int] = {
    AttributeProto.TENSOR: AttributeProto.T_FIELD_NUMBER,
    AttributeProto.GRAPH: AttributeProto.G_FIELD_NUMBER,
    AttributeProto.GRAPHS: AttributeProto.GRAPHS_FIELD_NUMBER,
}
# Fields whose numbers are in the file as they are in external data, and the type of tensor that each is for (None: all types).
_PLAIN = {
    spans.RAW_DATA: None,
    TensorProto.FLOAT_DATA_FIELD_NUMBER: TensorProto.FLOAT,
    TensorProto.DOUBLE_DATA_FIELD_NUMBER: TensorProto.DOUBLE,
}
_NUMBERS = {
    *_PLAIN,
    TensorProto.SEGMENT_FIELD_NUMBER,
    TensorProto.INT32_DATA_FIELD_NUMBER,
    TensorProto.STRING_DATA_FIELD_NUMBER,
    TensorProto.INT64_DATA_FIELD_NUMBER,
    TensorProto.UINT64_DATA_FIELD_NUMBER,
    TensorProto.EXTERNAL_DATA_FIELD_NUMBER,
}


class _UnusualError(Exception):
    """The bytes are not as every exporter writes them, or are no message at all."""


class _Data(Protocol):
    """Bytes that are looked at here and there."""

    def around(self, position: int) -> tuple[bytes, int]:
        """Bytes with those of a field's header from this position on, and the position of the first of them."""

    def part(self, start: int, end: int) -> bytes: ...


class _File:
    """A file, read in blocks: mapped into memory it would kill the process if somebody made it shorter."""

    def __init__(self, source: Source) -> None:
        self._source = source
        self._block, self._base = b"", 0

    def around(self, position: int) -> tuple[bytes, int]:
        start = position - self._base
        if not 0 <= start <= len(self._block) - _HEADER:
            self._block, self._base = os.pread(self._source.descriptor, _BLOCK, position), position
        return self._block, self._base

    def part(self, start: int, end: int) -> bytes:
        return self._source.read(start, end - start)


class _Memory:
    def __init__(self, data: bytes) -> None:
        self._data = data

    def around(self, position: int) -> tuple[bytes, int]:
        return self._data, 0

    def part(self, start: int, end: int) -> bytes:
        return self._data[start:end]


def _fields(data: _Data, start: int, end: int) -> Iterator[tuple[int, int, int, int, int]]:
    """The fields of the message between two positions, as number, wire type, start, start of the content, end.

    Raises:
        _UnusualError: these are no fields, or not written in the shortest way, or groups.
    """
    position = start
    while position < end:
        block, base = data.around(position)
        try:
            tag, at = _varint(block, position - base)
            wire = tag & 7
            if wire == _BYTES:
                length, at = _varint(block, at)
                stop = base + at + length
            elif wire == _VARINT:
                stop = base + _varint(block, at)[1]
            else:
                stop = base + at + _FIXED[wire]
        except LookupError:  # the end of the file, or another wire type
            raise _UnusualError from None
        if stop > end or not 8 <= tag < 1 << 32:
            raise _UnusualError
        yield tag >> 3, wire, position, base + at, stop
        position = stop


def _varint(block: bytes, at: int) -> tuple[int, int]:
    """A number, and where it ends."""
    value = block[at]
    at += 1
    if value < 0x80:
        return value, at
    value &= 0x7F
    for shift in range(7, 70, 7):
        byte = block[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            if not byte or value >> 64:
                break
            return value, at
    raise _UnusualError


def size(pieces: Iterable[Piece]) -> int:
    """Bytes of all the pieces."""
    return sum(piece.length if isinstance(piece, Span) else len(piece) for piece in pieces)


class _Walk:
    """A walk over a model that puts something else in the place of some tensors.

    Args:
        data: the model.
    """

    def __init__(self, data: _Data) -> None:
        self.data = data

    def within(self, start: int, end: int) -> bool:
        """Whether there can be such a tensor between two positions."""
        raise NotImplementedError

    def children(self, kind: type, start: int, end: int) -> Mapping[int, type]:
        """Fields of a message that may hold such tensors."""
        return _CHILDREN[kind]

    def tensor(self, start: int, end: int) -> list[Piece] | None:
        """What comes in the place of a tensor; None where it stays."""
        raise NotImplementedError

    def message(self, kind: type, start: int, end: int, depth: int = 0) -> list[Piece] | None:
        """What comes in the place of a message; None where it stays.

        Raises:
            _UnusualError: only the library shall read it.
        """
        if kind is TensorProto:
            return self.tensor(start, end)
        if depth > _DEPTH:
            raise _UnusualError
        children = self.children(kind, start, end)
        parts: list[Piece] = []
        done = start
        for number, _, at, content, stop in _fields(self.data, start, end):
            if number not in children or not self.within(content, stop):
                continue
            inner = self.message(children[number], content, stop, depth + 1)
            if inner is not None:
                parts += [self.data.part(done, at) + spans.header(number, size(inner)), *inner]
                done = stop
        return [*parts, self.data.part(done, end)] if parts else None


class _Skim(_Walk):
    """Puts references in the place of large tensors."""

    def __init__(self, source: Source) -> None:
        super().__init__(_File(source))
        self._source = source
        self._constant = 0  # the end of the last Constant node

    def within(self, start: int, end: int) -> bool:
        return end - start >= LARGE

    def children(self, kind: type, start: int, end: int) -> Mapping[int, type]:
        children = super().children(kind, start, end)
        singular = _SINGULAR.get(kind)
        if singular is None:
            return children
        found: dict[int, tuple[int, int, int]] = {}
        for number, wire, _, content, stop in _fields(self.data, start, end):
            if number in singular:
                if number in found:
                    raise _UnusualError
                found[number] = wire, content, stop
        if kind is NodeProto:
            operator = self._text(found.get(NodeProto.OP_TYPE_FIELD_NUMBER))
            domain = self._text(found.get(NodeProto.DOMAIN_FIELD_NUMBER))
            if operator == b"Constant" and domain in (b"", b"ai.onnx"):
                self._constant = end
        if kind is AttributeProto:
            name = self._text(found.get(AttributeProto.NAME_FIELD_NUMBER))
            wire, content, stop = found.get(AttributeProto.TYPE_FIELD_NUMBER, (_BYTES, 0, 0))
            held = _HELD.get(_varint(self.data.part(content, stop), 0)[0]) if wire == _VARINT else None
            # Other operators than Constant want numbers, and no reference, of their attributes.
            of_constant = start < self._constant and name == b"value"
            if (held == AttributeProto.T_FIELD_NUMBER) != of_constant:
                held = None
            return {number: child for number, child in children.items() if number == held}
        return children

    def _text(self, field: tuple[int, int, int] | None) -> bytes:
        wire, content, stop = field or (_BYTES, 0, 0)
        return self.data.part(content, stop) if wire == _BYTES and stop - content < LARGE else b"?"

    def tensor(self, start: int, end: int) -> list[Piece] | None:
        dims: list[int] = []
        numbers: dict[int, int] = {TensorProto.DATA_TYPE_FIELD_NUMBER: 0, TensorProto.DATA_LOCATION_FIELD_NUMBER: 0}
        seen: set[int] = set()
        payload: tuple[int, int, int, int] | None = None
        for number, wire, at, content, stop in _fields(self.data, start, end):
            if number == TensorProto.DIMS_FIELD_NUMBER and wire == _VARINT:
                dims.append(_varint(self.data.part(content, stop), 0)[0])
            elif number in numbers and wire == _VARINT and number not in seen:
                numbers[number] = _varint(self.data.part(content, stop), 0)[0]
            elif number in _PLAIN and wire == _BYTES and payload is None:
                payload = number, at, content, stop
            elif number in _NUMBERS or number in numbers or number == TensorProto.DIMS_FIELD_NUMBER:
                return None  # numbers in several places or in real external data, or something is there twice
            seen.add(number)
        if payload is None or numbers[TensorProto.DATA_LOCATION_FIELD_NUMBER] != TensorProto.DEFAULT:
            return None
        field, at, content, stop = payload
        data_type = numbers[TensorProto.DATA_TYPE_FIELD_NUMBER]
        if _PLAIN[field] not in (None, data_type) or max(dims, default=0) >= 1 << 31 or data_type >= 1 << 31:
            return None
        if stop - content < LARGE or byte_size(TensorProto(dims=dims, data_type=data_type)) != stop - content:
            return None
        stated = TensorProto.DATA_LOCATION_FIELD_NUMBER in seen
        reference = self._source.reference(content, stop - content, field, stated)
        return [self.data.part(start, at) + self.data.part(stop, end) + reference]


class _Splice(_Walk):
    """Puts spans in the place of references."""

    def __init__(self, data: bytes) -> None:
        super().__init__(_Memory(data))
        self._marks = spans.marks(data)
        self.left = len(self._marks)

    def within(self, start: int, end: int) -> bool:
        place = bisect_left(self._marks, start)
        return place < len(self._marks) and self._marks[place] < end

    def tensor(self, start: int, end: int) -> list[Piece] | None:
        tensor = TensorProto.FromString(self.data.part(start, end))
        span = spans.span_of(tensor)
        if span is None:
            return None
        self.left -= 1
        spans.without_reference(tensor, span)
        # The library knows the order of fields: it is given another number, in whose place the span comes.
        if span.field == spans.RAW_DATA:
            tensor.raw_data = b"?"
        else:
            getattr(tensor, TensorProto.DESCRIPTOR.fields_by_number[span.field].name).append(0.0)
        data: bytes = tensor.SerializeToString()
        for number, wire, at, _, stop in _fields(_Memory(data), 0, len(data)):
            if number == span.field and wire == _BYTES:
                return [data[:at] + spans.header(number, span.length), span, data[stop:]]
        raise _UnusualError


def skim(source: Source) -> bytes | None:
    """The bytes of a model in which references stand for large tensors; None where the library shall read it as a whole.

    Parsed by the library they give the same model as the file itself, but for these tensors.

    Raises:
        ModelError: the file was changed meanwhile.
    """
    walk = _Skim(source)
    try:
        parts = walk.message(ModelProto, 0, source.size)
    except _UnusualError:
        return None
    return None if parts is None else b"".join(part for part in parts if isinstance(part, bytes))  # all are


def spliced(data: bytes) -> list[Piece] | None:
    """The bytes of a model with the spans in the places of their references: what the library would have written.

    Args:
        data: what the library wrote.

    Returns:
        The pieces; None if a reference is at a place where `skim` puts none.
    """
    walk = _Splice(data)
    try:
        parts = walk.message(ModelProto, 0, len(data))
    except _UnusualError:
        return None
    return None if walk.left else parts or [data]
