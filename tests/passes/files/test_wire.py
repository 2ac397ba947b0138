"""Large tensors that stay in the file: what is read and written is what the protobuf library would have read and written."""

from __future__ import annotations

import copy
import errno
import os
import pickle
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from google.protobuf.message import DecodeError
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from onnx import AttributeProto, GraphProto, ModelProto, TensorProto, helper, numpy_helper

import onnx_fuse
from onnx_fuse.errors import ModelError, OnnxFuseError
from onnx_fuse.fusing import Given
from onnx_fuse.inspect import inspect
from onnx_fuse.passes.files import io, wire
from onnx_fuse.passes.files.external_data import external_files, tensors
from onnx_fuse.passes.graph import spans
from onnx_fuse.passes.graph.spans import Span, span_of
from onnx_fuse.runtime.onnxruntime import sessions
from tests import drawn, helpers

ROOT = Path(__file__).parents[3]
PROFILE = settings(
    derandomize=True, deadline=None, database=None, suppress_health_check=list(HealthCheck), max_examples=60
)
LARGE = 100
"""Bytes from which a tensor is large in these tests: 25 floats."""


@pytest.fixture(autouse=True)
def small_is_large(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(wire, "LARGE", LARGE)
    monkeypatch.setattr(io, "WORTHWHILE", 1)


def floats(name: str = "w", count: int = 30) -> TensorProto:
    return numpy_helper.from_array(np.arange(count, dtype=np.float32) * 0.1, name)


def holding(*initializers: TensorProto, value: TensorProto | None = None) -> ModelProto:
    """y = x + w + constant, in an If of which both branches have a weight of their own."""

    def branch(name: str) -> GraphProto:
        out = helper.make_tensor_value_info(f"{name}_out", TensorProto.FLOAT, [30])
        node = helper.make_node("Add", ["sum", name], [f"{name}_out"])
        return helper.make_graph([node], name, [], [out], [floats(name)])

    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("local", 1)]
    body = [
        helper.make_node("Constant", [], ["inner"], value=floats("inner")),
        helper.make_node("Add", ["a", "inner"], ["b"]),
    ]
    graph = helper.make_graph(
        [
            helper.make_node("Constant", [], ["c"], value=value or floats("c")),
            helper.make_node("Constant", [], ["yes"], value=numpy_helper.from_array(np.array(True))),
            helper.make_node("F", ["c"], ["f"], domain="local"),
            helper.make_node("Sum", ["x", "w", "f"], ["sum"]),
            helper.make_node("If", ["yes"], ["y"], then_branch=branch("then"), else_branch=branch("else")),
        ],
        "main",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [30])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [30])],
        initializers or [floats()],
    )
    function = helper.make_function("local", "F", ["a"], ["b"], body, opsets[:1])
    return helper.make_model(graph, opset_imports=opsets, functions=[function], ir_version=10)


def written(data: bytes | ModelProto, folder: Path) -> Path:
    path = folder / "model.onnx"
    path.write_bytes(data if isinstance(data, bytes) else data.SerializeToString())
    return path


def left_out(model: ModelProto) -> list[str]:
    """Names of the tensors that are still in the file."""
    return [tensor.name for tensor, _ in tensors(model) if span_of(tensor) is not None]


def joined(pieces: list[bytes | Span] | None) -> bytes:
    assert pieces is not None
    return b"".join(p.source.read(p.offset, p.length) if isinstance(p, Span) else p for p in pieces)


def reread(data: bytes, path: Path) -> bool:
    """Asserts that what is skimmed, and put together again, is what the library makes of these bytes; whether it was skimmed."""
    path.write_bytes(data)
    source = spans.Source(path)
    light = wire.skim(source)
    if light is None:
        return False
    try:
        expected = ModelProto.FromString(data)
    except DecodeError:
        with pytest.raises(DecodeError):
            ModelProto.FromString(light)
        return True
    model = ModelProto.FromString(light)
    assert joined(wire.spliced(model.SerializeToString())) == expected.SerializeToString()
    assert io.materialise(model).SerializeToString() == expected.SerializeToString()
    return True


class TestWhatStays:
    def test_everywhere(self, tmp_path: Path) -> None:
        model, source = io.load_lazily(written(holding(), tmp_path))
        assert source is not None
        assert sorted(left_out(model)) == ["c", "else", "inner", "then", "w"]
        assert not external_files(model)
        assert io.materialise(model) == holding()

    def test_small_files_and_small_tensors_are_read(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        model, source = io.load_lazily(written(holding(floats(count=24)), tmp_path))
        assert "w" not in left_out(model) and source is not None
        monkeypatch.setattr(io, "WORTHWHILE", 1 << 20)
        assert io.load_lazily(tmp_path / "model.onnx")[1] is None

    @pytest.mark.parametrize(
        ("tensor", "stays"),
        [
            (floats(), True),
            (helper.make_tensor("w", TensorProto.FLOAT, [30], np.arange(30.0)), True),
            (helper.make_tensor("w", TensorProto.DOUBLE, [2, 15], np.arange(30.0)), True),
            (helper.make_tensor("w", TensorProto.FLOAT16, [30, 2], bytes(120), raw=True), True),
            (helper.make_tensor("w", TensorProto.INT4, [300], bytes(150), raw=True), True),
            (TensorProto(name="w", data_type=1, dims=[30], raw_data=bytes(120), data_location=0), True),
            (TensorProto(name="w", data_type=1, dims=[30], raw_data=bytes(120), doc_string="why"), True),
            # Numbers that protobuf writes in another way than external data has them.
            (helper.make_tensor("w", TensorProto.INT64, [30], np.full(30, 1 << 40)), False),
            (helper.make_tensor("w", TensorProto.INT32, [30], np.full(30, 1 << 30)), False),
            (helper.make_tensor("w", TensorProto.UINT64, [30], np.full(30, 1 << 40)), False),
            (helper.make_tensor("w", TensorProto.STRING, [30], [b"0123456789"] * 30), False),
            # What is not as it should be is left for others to complain of.
            (TensorProto(name="w", data_type=1, dims=[31], raw_data=bytes(120)), False),
            (TensorProto(name="w", data_type=99, dims=[30], raw_data=bytes(120)), False),
            (TensorProto(name="w", data_type=1, dims=[-1, -30], raw_data=bytes(120)), False),
            (TensorProto(name="w", data_type=1, dims=[30], raw_data=bytes(120), float_data=[1.0]), False),
            (TensorProto(name="w", data_type=10, dims=[60], float_data=[1.0] * 30), False),
            (TensorProto(name="w", data_type=1, dims=[30], raw_data=bytes(120), segment=TensorProto.Segment()), False),
        ],
    )
    def test_kinds_of_numbers(self, tmp_path: Path, tensor: TensorProto, stays: bool) -> None:
        data = holding(tensor).SerializeToString()
        model, _source = io.load_lazily(written(data, tmp_path))
        assert ("w" in left_out(model)) == stays
        io.save(model, tmp_path / "out.onnx")
        assert (tmp_path / "out.onnx").read_bytes() == data
        assert io.materialise(model).SerializeToString() == data

    def test_attributes_of_other_operators_are_read(self, tmp_path: Path) -> None:
        model = holding()
        model.graph.node.append(helper.make_node("Own", ["y"], ["z"], domain="local", value=floats("table")))
        model.graph.node.append(helper.make_node("Constant", [], ["q"], domain="local", value=floats("other")))
        model.graph.node[0].attribute.append(AttributeProto(name="value2", type=AttributeProto.TENSOR, t=floats("odd")))
        found, _source = io.load_lazily(written(model, tmp_path))
        assert not {"table", "other", "odd"} & set(left_out(found))
        assert io.materialise(found) == model

    def test_a_mark_from_elsewhere_is_no_mark(self, tmp_path: Path) -> None:
        path = written(holding(), tmp_path)
        model, source = io.load_lazily(path)
        (tmp_path / "light.onnx").write_bytes(model.SerializeToString())
        assert source is not None and left_out(model)
        del source
        # Nobody holds the file any more: this is external data like any other, which another process can read.
        assert not left_out(model)
        assert [file.location for file in external_files(io.load(tmp_path / "light.onnx"))] == ["model.onnx"]
        assert onnx.load(tmp_path / "light.onnx").graph.initializer[0].raw_data == floats().raw_data


# -- against the library ---------------------------------------------------------------------------------------------------

Chunk = tuple[int, int, Any]
"""A field: number, wire type, and what is in it (a number, bytes, or the fields of a message)."""

_MESSAGES = {
    (7,),
    (7, 1),
    (7, 5),
    (7, 1, 5),
    (7, 1, 5, 5),
    (7, 1, 5, 6),
    (7, 1, 5, 6, 1),
    (7, 1, 5, 6, 5),
    (25,),
    (25, 7),
}
_MESSAGES |= {(25, 7, 5), (25, 7, 5, 5)}


def taken_apart(data: bytes, path: tuple[int, ...] = ()) -> list[Chunk]:
    chunks: list[Chunk] = []
    position = 0
    while position < len(data):
        tag, position = _number(data, position)
        number, kind = tag >> 3, tag & 7
        if kind == 0:
            value, position = _number(data, position)
            chunks.append((number, kind, value))
            continue
        length, position = _number(data, position) if kind == 2 else ({1: 8, 5: 4}[kind], position)
        content: Any = data[position : position + length]
        if kind == 2 and (*path, number) in _MESSAGES:
            content = taken_apart(content, (*path, number))
        chunks.append((number, kind, content))
        position += length
    return chunks


def _number(data: bytes, position: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        value |= (data[position] & 0x7F) << shift
        position, shift = position + 1, shift + 7
        if data[position - 1] < 0x80:
            return value, position


def _varint(value: int, longer: int = 0) -> bytes:
    made = bytearray()
    while value >= 0x80:
        made.append(value & 0x7F | 0x80)
        value >>= 7
    made.append(value)
    for _ in range(longer):
        made[-1] |= 0x80
        made.append(0)
    return bytes(made)


def put_together(chunks: list[Chunk], odd: Iterator[int]) -> bytes:
    """The fields as bytes; `odd` says by how many bytes each number is longer than it need be."""
    made = b""
    for number, kind, content in chunks:
        made += _varint(number << 3 | kind, next(odd))
        if kind == 0:
            made += _varint(content, next(odd))
            continue
        data = put_together(content, odd) if isinstance(content, list) else content
        made += (_varint(len(data), next(odd)) if kind == 2 else b"") + data
    return made


def messages(chunks: list[Chunk]) -> list[list[Chunk]]:
    found = [chunks]
    for _, _, content in chunks:
        if isinstance(content, list):
            found += messages(content)
    return found


STRANGE: list[Chunk] = [
    (15, 0, 7), (19, 2, b"x" * 120), (200, 5, b"1234"), (5000, 1, b"12345678"), (9, 0, 3), (5, 0, 1), (13, 5, b"1234"),
    (14, 0, 0), (14, 0, 1), (14, 0, 7), (2, 0, 1), (2, 0, 1 << 40), (1, 0, 1), (1, 2, b"\x1e"), (20, 0, 4), (20, 0, 99),
    (8, 2, b"again"), (16, 2, b"\n\x01k\x12\x01v"), (9, 2, bytes(120)), (4, 2, bytes(120)), (3, 2, b"\x08\x01"), (4, 2, b"\xff\xfe"),
]  # fmt: skip


@pytest.mark.parametrize("place", range(4))
@given(data=st.data())
@PROFILE
def test_odd_bytes(tmp_path_factory: pytest.TempPathFactory, place: int, data: st.DataObject) -> None:
    """Fields out of order, twice, unknown ones, numbers longer than they need be, pieces missing."""
    tensor = data.draw(st.sampled_from([floats(), helper.make_tensor("w", 1, [30], np.arange(30.0))]))
    chunks = taken_apart(holding(tensor).SerializeToString())
    for _ in range(data.draw(st.integers(0, 3))):
        message = data.draw(st.sampled_from([item for item in messages(chunks) if item]))
        at = data.draw(st.integers(0, len(message) - 1))
        change = data.draw(st.sampled_from(["shuffle", "double", "strange", "drop", "empty"]))
        if change == "shuffle":
            message[:] = data.draw(st.permutations(message))
        elif change == "double":
            message.insert(data.draw(st.integers(0, len(message))), copy.deepcopy(message[at]))
        elif change == "strange":
            message.insert(at, data.draw(st.sampled_from(STRANGE)))
        elif change == "drop":
            del message[at]
        else:
            number, kind, content = message[at]
            message[at] = number, kind, type(content)()
    lengths = iter(lambda: 0, 1)
    if place == 1:  # one number is longer
        skip = data.draw(st.integers(0, 150))
        lengths = iter([*[0] * skip, data.draw(st.integers(1, 9)), *[0] * 5000])
    made = put_together(chunks, lengths)
    if place == 2:
        made = made[: data.draw(st.integers(0, len(made)))]
    if place == 3:
        at, bit = data.draw(st.integers(0, max(len(made) - 1, 0))), data.draw(st.integers(0, 7))
        made = made[:at] + bytes(item ^ 1 << bit for item in made[at : at + 1]) + made[at + 1 :]
    folder = tmp_path_factory.getbasetemp()
    reread(made, folder / "odd.onnx")


def test_taking_apart_and_putting_together_changes_nothing() -> None:
    data = holding().SerializeToString()
    assert put_together(taken_apart(data), iter(lambda: 0, 1)) == data
    assert len(messages(taken_apart(data))) == 25


def test_what_is_read_lazily_nevertheless(tmp_path: Path) -> None:
    """Not all that is odd is left to the library: these are what exporters write."""
    chunks = taken_apart(holding().SerializeToString())
    graph = next(content for number, _, content in chunks if number == 7)
    for message in (chunks, graph, next(content for number, _, content in graph if number == 5)):
        message.reverse()
        message.append((200, 5, b"1234"))
    made = put_together(chunks, iter(lambda: 0, 1))
    assert made != holding().SerializeToString() and reread(made, tmp_path / "m.onnx")


@pytest.mark.parametrize("message", ["model", "attribute"])
def test_messages_that_protobuf_merges_are_left_to_it(tmp_path: Path, message: str) -> None:
    data = holding().SerializeToString()
    if message == "model":
        data += ModelProto(graph=GraphProto(doc_string="more")).SerializeToString()
    else:
        chunks = taken_apart(data)
        graph = next(content for number, _, content in chunks if number == 7)
        attribute = next(content for number, _, content in graph[0][2] if number == 5)
        attribute.append((5, 2, [(8, 2, b"renamed")]))
        data = put_together(chunks, iter(lambda: 0, 1))
    assert not reread(data, tmp_path / "m.onnx")
    path = written(data, tmp_path)
    assert io.load_lazily(path) == (io.load(path), None)


@given(data=st.data())
@PROFILE
def test_garbage(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    path = tmp_path_factory.getbasetemp() / "garbage.onnx"
    path.write_bytes(data.draw(st.binary(min_size=1, max_size=400)))
    said = []
    for load in (io.load, lambda path: io.load_lazily(path)[0]):
        try:
            said.append(load(path))
        except ModelError as error:
            said.append(str(error))
    assert said[0] == said[1]


def test_nested_beyond_measure(tmp_path: Path) -> None:
    chunks: Any = b"x" * LARGE
    for _ in range(2000):
        chunks = _varint(5 << 3 | 2) + _varint(len(chunks)) + chunks
        chunks = _varint(1 << 3 | 2) + _varint(len(chunks)) + chunks
        chunks = _varint(6 << 3 | 2) + _varint(len(chunks)) + b"\xa0\x01\x05" + chunks
    path = written(_varint(7 << 3 | 2) + _varint(len(chunks)) + chunks, tmp_path)
    with pytest.raises(ModelError):
        io.load_lazily(path)


@given(data=st.data())
@settings(PROFILE, max_examples=6)
def test_fused_to_the_same_bytes(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    folder = tmp_path_factory.getbasetemp()
    model = drawn.transformer(data)
    options = data.draw(st.sampled_from([{}, {"simplify": True}, {"functions": "inline"}, {"functions": "none"}]))
    path = written(model, folder)
    lazily = onnx_fuse.fuse(path, verify=False, **options)
    lazily.save(folder / "lazily.onnx")
    expected = onnx_fuse.fuse(io.load(path), verify=False, **options)
    assert lazily.report.nodes_after == expected.report.nodes_after
    if lazily.changed:
        assert (folder / "lazily.onnx").read_bytes() == expected.model.SerializeToString()
    else:
        assert (folder / "lazily.onnx").read_bytes() == path.read_bytes()
    assert lazily.model.SerializeToString() == expected.model.SerializeToString()


# -- saving ----------------------------------------------------------------------------------------------------------------


class TestSave:
    @pytest.mark.parametrize("kernel", ["copies", "cannot", "has no call"])
    def test_copies_spans(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kernel: str) -> None:
        def refused(*_: object) -> int:
            raise OSError(errno.EXDEV, "not here")

        if kernel == "cannot":
            monkeypatch.setattr(os, "copy_file_range", refused)
        if kernel == "has no call":
            monkeypatch.delattr(os, "copy_file_range")
        model, _source = io.load_lazily(written(holding(), tmp_path))
        model.doc_string = "changed"
        io.save(model, tmp_path / "out.onnx")
        expected = holding()
        expected.doc_string = "changed"
        assert (tmp_path / "out.onnx").read_bytes() == expected.SerializeToString()

    def test_as_text(self, tmp_path: Path) -> None:
        model, _source = io.load_lazily(written(holding(), tmp_path))
        io.save(model, tmp_path / "out.textproto")
        assert io.load(tmp_path / "out.textproto") == holding()
        assert left_out(model)

    def test_over_its_own_source(self, tmp_path: Path) -> None:
        path = written(holding(), tmp_path)
        model, _source = io.load_lazily(path)
        model.doc_string = "changed"
        io.save(model, path, source=path)
        io.save(model, tmp_path / "again.onnx", source=path)
        assert path.read_bytes() == (tmp_path / "again.onnx").read_bytes()
        assert io.load(path).graph == holding().graph

    def test_real_external_data_beside_spans(self, tmp_path: Path) -> None:
        outside = TensorProto(name="w", data_type=1, dims=[30], data_location=TensorProto.EXTERNAL)
        outside.external_data.add(key="location", value="w.bin")
        (tmp_path / "w.bin").write_bytes(bytes(120))
        model, _source = io.load_lazily(written(holding(outside), tmp_path))
        assert [file.location for file in external_files(model)] == ["w.bin"]
        (tmp_path / "out").mkdir()
        io.save(model, tmp_path / "out" / "m.onnx", source=tmp_path / "model.onnx")
        assert sorted(os.listdir(tmp_path / "out")) == ["m.onnx", "w.bin"]
        assert (tmp_path / "out" / "m.onnx").read_bytes() == holding(outside).SerializeToString()

    @pytest.mark.parametrize("change", ["longer", "shorter", "overwritten"])
    def test_a_source_that_was_written_to(self, tmp_path: Path, change: str) -> None:
        path = written(holding(), tmp_path)
        model, _source = io.load_lazily(path)
        os.utime(path, ns=(0, 1))  # a file system's clock may stand still for some milliseconds
        with path.open("r+b") as file:
            if change == "longer":
                file.seek(0, os.SEEK_END)
                file.write(b"more")
            elif change == "shorter":
                file.truncate(200)
            else:
                file.seek(-300, os.SEEK_END)
                file.write(bytes(100))
        with pytest.raises(ModelError, match="was changed"):
            io.save(model, tmp_path / "out.onnx")
        with pytest.raises(ModelError, match="was changed"):
            io.materialise(model)
        assert os.listdir(tmp_path) == ["model.onnx"]

    @pytest.mark.parametrize("replaced", [True, False], ids=["replaced", "deleted"])
    def test_a_source_that_went(self, tmp_path: Path, replaced: bool) -> None:
        path = written(holding(), tmp_path)
        result = onnx_fuse.fuse(path, verify=False)
        path.unlink()
        if replaced:
            path.write_bytes(b"something else")
        result.save(tmp_path / "out.onnx")
        assert (tmp_path / "out.onnx").read_bytes() == holding().SerializeToString()
        assert result.model == holding()

    def test_unchanged_is_the_same_file(self, tmp_path: Path) -> None:
        chunks = taken_apart(holding().SerializeToString())
        chunks.reverse()
        path = written(put_together(chunks, iter(lambda: 0, 1)), tmp_path)
        result = onnx_fuse.fuse(path, verify=False)
        assert not result.changed
        result.save(tmp_path / "out.onnx")
        assert (tmp_path / "out.onnx").read_bytes() == path.read_bytes() != holding().SerializeToString()


# -- whoever works on the model --------------------------------------------------------------------------------------------


def test_the_result_has_its_weights(tmp_path: Path) -> None:
    path = written(holding(), tmp_path)
    onnx.save(onnx_fuse.fuse(path, verify=False).model, tmp_path / "out.onnx")
    assert (tmp_path / "out.onnx").read_bytes() == path.read_bytes()
    result = onnx_fuse.fuse(path, verify=False)
    for other in (pickle.loads(pickle.dumps(result)), copy.deepcopy(result)):
        assert other.model == holding() and other.source == path


def test_a_model_that_is_another_when_it_is_needed_again(tmp_path: Path) -> None:
    path = written(holding(), tmp_path)
    given = Given.of(path)
    assert given.fresh() == given.read()
    path.unlink()
    written(holding(), tmp_path)
    with pytest.raises(ModelError, match="was changed while it was worked on"):
        given.fresh()


def test_passes_of_users_see_numbers(tmp_path: Path) -> None:
    seen: list[Any] = []

    def look(graph: Any) -> None:
        seen.extend(tensor.raw_data for tensor in graph.initializers.values())

    onnx_fuse.fuse(written(holding(), tmp_path), verify=False, passes=[look])
    assert floats().raw_data in seen and b"" not in seen


def test_old_opsets_are_converted_with_their_numbers(tmp_path: Path) -> None:
    model = helpers.model(
        "(float[30] x) => (float[30] y) { y = Add(x, w) }", opset=11, weights={"w": np.ones(30, np.float32)}
    )
    model.graph.node.append(helper.make_node("Softmax", ["y"], ["z"], axis=0))
    model.graph.output[0].name = "z"
    path = written(model, tmp_path)
    found = onnx_fuse.fuse(path, verify=False, enable=["FusedSwish"])
    assert found.model == onnx_fuse.fuse(model, verify=False, enable=["FusedSwish"]).model


def test_constants_are_read_when_asked_for(tmp_path: Path) -> None:
    model, _source = io.load_lazily(written(holding(), tmp_path))
    for name in ("w", "c"):
        found = helpers.view_of(model).constant(name)
        assert found is not None and np.array_equal(found, np.arange(30, dtype=np.float32) * 0.1)


def test_check_and_inspect(tmp_path: Path) -> None:
    path = written(holding(), tmp_path)
    model, _source = io.load_lazily(path)
    io.check(model, path, full=True)
    found = inspect(path)
    assert found.external_bytes == 0 and found.embedded_bytes == 5 * 120 + 1 and not found.external_data
    two = holding(floats(), floats())
    with pytest.raises(OnnxFuseError, match="two initializers called 'w'"):
        onnx_fuse.fuse(written(two, tmp_path))


class TestSessions:
    X = np.linspace(-1, 1, 30, dtype=np.float32)

    def expected(self) -> np.ndarray:
        return self.X + 4 * (np.arange(30, dtype=np.float32) * 0.1)

    def run(self, model: ModelProto, folder: Path | None) -> np.ndarray:
        session = sessions.session(model, base_dir=folder)
        return np.asarray(sessions.run(session, {"x": self.X})["y"])

    @pytest.mark.parametrize("told", [True, False])
    def test_onnx_runtime_reads_the_file(self, tmp_path: Path, told: bool) -> None:
        model, _source = io.load_lazily(written(holding(), tmp_path))
        assert np.allclose(self.run(model, tmp_path if told else None), self.expected())
        assert len(left_out(model)) == 5

    @pytest.mark.parametrize(
        ("name", "lazily"),
        [
            *((name, True) for name in ("we\\ird.onnx", "C:x.onnx", " a\nb%20.onnx", "m", "ü" * 120)),
            *((name, False) for name in ("...onnx", "\udce9.onnx")),
        ],
    )
    def test_names_of_files(self, tmp_path: Path, name: str, lazily: bool) -> None:
        written(holding(), tmp_path).rename(tmp_path / name)
        model, source = io.load_lazily(tmp_path / name)
        assert (source is not None) == lazily
        assert np.allclose(self.run(model, tmp_path), self.expected())

    def test_from_another_folder(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        (tmp_path / "models").mkdir()
        written(holding(), tmp_path / "models")
        monkeypatch.chdir(tmp_path)
        model, _source = io.load_lazily("models/model.onnx")
        assert np.allclose(self.run(model, Path("models")), self.expected())
        assert np.allclose(self.run(model, tmp_path), self.expected())

    def test_through_a_link(self, tmp_path: Path) -> None:
        (tmp_path / "blobs").mkdir()
        (tmp_path / "snapshot").mkdir()
        written(holding(), tmp_path / "blobs").rename(tmp_path / "blobs" / "0a")
        (tmp_path / "snapshot" / "model.onnx").symlink_to("../blobs/0a")
        model, source = io.load_lazily(tmp_path / "snapshot" / "model.onnx")
        assert source is not None
        assert np.allclose(self.run(model, tmp_path / "snapshot"), self.expected())

    def test_when_the_file_is_another(self, tmp_path: Path) -> None:
        path = written(holding(), tmp_path)
        model, _source = io.load_lazily(path)
        path.unlink()
        path.write_bytes(bytes(10000))
        assert np.allclose(self.run(model, tmp_path), self.expected())

    def test_verified(self, tmp_path: Path) -> None:
        model = helpers.model("(float[n,30] x) => (float[n,30] y) { s = Sigmoid(x) m = Mul(x, s) y = Add(m, w) }",
                              weights={"w": np.ones(30, np.float32)})  # fmt: skip
        result = onnx_fuse.fuse(written(model, tmp_path), fusions=["FusedSwish"])
        assert result.changed and result.report.verification is not None and result.report.verification["passed"]


def test_memory_is_bounded(tmp_path: Path) -> None:
    """200 MB of weights, which take no space on the disk, fused and saved with a few MB in memory."""
    size, count = 25_000_000, 8
    model = helpers.model("(float[n,30] x) => (float[n,30] y) { s = Sigmoid(x) y = Mul(x, s) }")
    path = tmp_path / "model.onnx"
    weights = [TensorProto(name=f"w{number}", data_type=TensorProto.INT8, dims=[size]) for number in range(count)]
    heads = [tensor.SerializeToString() + spans.header(spans.RAW_DATA, size) for tensor in weights]
    graph = model.graph.SerializeToString()
    total = len(graph) + sum(len(spans.header(5, len(head) + size) + head) + size for head in heads)
    model.ClearField("graph")
    with path.open("wb") as file:
        file.write(model.SerializeToString() + spans.header(7, total) + graph)
        for head in heads:
            file.write(spans.header(5, len(head) + size) + head)
            file.seek(size, os.SEEK_CUR)
        file.truncate()
    script = (
        "import os, sys\nfrom benchmarks import common\nimport onnx_fuse.api\n"
        "os.fsync = lambda _: None  # as slow as the disk\n"
        "run = lambda: onnx_fuse.api.fuse(sys.argv[1], fusions=['FusedSwish'], verify=False).save(sys.argv[2])\n"
        "print(common.measured(run)[0]['above_mb'])"
    )
    target = tmp_path / "out.onnx"
    done = subprocess.run(
        [sys.executable, "-c", script, str(path), str(target)], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert float(done.stdout) < 40
    assert target.stat().st_size > size * count
    assert [node.op_type for node in io.load_lazily(target)[0].graph.node] == ["FusedSwish"]
