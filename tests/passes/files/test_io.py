"""Reading and writing models: every way a file can be wrong, and nothing half-written whatever fails."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import ModelProto, TensorProto, helper, numpy_helper

from onnx_fuse.errors import ModelError, OnnxFuseError, OutputError, UsageError
from onnx_fuse.passes.files import external_data, io, staging
from onnx_fuse.passes.files.external_data import external_files

ROWS, COLUMNS = 8, 16
WEIGHT_BYTES = ROWS * COLUMNS * 4


def linear(weight: TensorProto | None = None, opset: int = 17, ir_version: int = 8) -> ModelProto:
    """y = x w, with the weight inside unless another tensor is given."""
    values = np.arange(ROWS * COLUMNS, dtype=np.float32).reshape(ROWS, COLUMNS)
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["x", "w"], ["y"], name="multiply")],
        "linear",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", ROWS])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", COLUMNS])],
        [weight if weight is not None else numpy_helper.from_array(values, "w")],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=ir_version)


def external(
    location: str | None, dims: tuple[int, ...] = (ROWS, COLUMNS), name: str = "w", **entries: object
) -> TensorProto:
    """A tensor in external data; the file is not written."""
    tensor = TensorProto(name=name, data_type=TensorProto.FLOAT, dims=dims, data_location=TensorProto.EXTERNAL)
    for key, value in {"location": location, **entries}.items():
        if value is not None:
            tensor.external_data.add(key=key, value=str(value))
    return tensor


def write(model: ModelProto, path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(model.SerializeToString())
    return path


@pytest.fixture
def split(tmp_path: Path) -> Path:
    """A model with its weight in weights/w.bin beside it."""
    path = write(linear(external("weights/w.bin")), tmp_path / "model" / "model.onnx")
    (path.parent / "weights").mkdir()
    (path.parent / "weights" / "w.bin").write_bytes(os.urandom(WEIGHT_BYTES))
    return path


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def refused(action: Callable[[], object], kind: type[OnnxFuseError]) -> OnnxFuseError:
    """The error; each has a cause in one line and a remedy in one line."""
    with pytest.raises(kind) as caught:
        action()
    for line in (caught.value.cause, caught.value.remedy):
        assert line and "\n" not in line and line[-1] in ".?)", line
    return caught.value


class TestLoad:
    def test_reads_a_model(self, tmp_path: Path) -> None:
        model = linear()
        assert io.load(write(model, tmp_path / "m.onnx")) == model
        assert io.load(str(tmp_path / "m.onnx")) == model

    def test_leaves_external_weights_outside(self, split: Path) -> None:
        model = io.load(split)
        assert model.graph.initializer[0].data_location == TensorProto.EXTERNAL
        assert not model.graph.initializer[0].raw_data

    @pytest.mark.parametrize("suffix", [".onnxtxt", ".textproto", ".json"])
    def test_text_forms(self, tmp_path: Path, suffix: str) -> None:
        onnx.save(linear(), tmp_path / f"m{suffix}")
        assert io.load(tmp_path / f"m{suffix}").graph.node[0].op_type == "MatMul"
        (tmp_path / f"m{suffix}").write_text("no model at all")
        refused(lambda: io.load(tmp_path / f"m{suffix}"), ModelError)

    @pytest.mark.parametrize(
        ("data", "cause"),
        [
            (b"", "is empty"),
            (b"no model at all, just some text", "is not an ONNX model"),
            (b"\x00" * 300, "is not an ONNX model"),
            (bytes(range(256)) * 4, "is not an ONNX model"),
            (b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 1\n", "Git LFS pointer"),
            (b"PK\x03\x04" + b"\x00" * 40, "zip archive"),
            (b"<!DOCTYPE html><html>Not found</html>", "web page"),
            (b'{"architectures": ["BertModel"]}', "JSON"),
            (b"\x18\x00\x00\x00ORTM" + b"\x00" * 40, "ONNX Runtime's own format"),
            (ModelProto(ir_version=8).SerializeToString(), "holds no graph"),
            (ModelProto(ir_version=8, graph=linear().graph).SerializeToString(), "imports no opset"),
            (helper.make_tensor("t", 1, [1], [1.0]).SerializeToString(), "is not an ONNX model"),
        ],
    )
    def test_names_what_the_file_is_instead(self, tmp_path: Path, data: bytes, cause: str) -> None:
        path = tmp_path / "m.onnx"
        path.write_bytes(data)
        error = refused(lambda: io.load(path), ModelError)
        assert cause in error.cause and str(path) in error.cause

    def test_cut_anywhere_is_a_model_error(self, tmp_path: Path) -> None:
        path = tmp_path / "m.onnx"
        data = linear().SerializeToString()
        said = set()
        for length in range(1, len(data)):
            path.write_bytes(data[:length])
            try:
                io.load(path)
            except ModelError as error:
                said.add("cut short" in error.cause)
            else:
                # Only between two fields of the model: what is left is a model, without its last opset import.
                pytest.fail(f"{length} of {len(data)} bytes were read as a model")
        assert said == {True}

    def test_says_how_much_is_missing(self, tmp_path: Path) -> None:
        data = linear().SerializeToString()
        (tmp_path / "m.onnx").write_bytes(data[: len(data) // 2])
        error = refused(lambda: io.load(tmp_path / "m.onnx"), ModelError)
        assert "bytes are missing" in error.cause

    def test_damaged_inside(self, tmp_path: Path) -> None:
        data = bytearray(linear().SerializeToString())
        at = data.index(b"multiply")
        data[at - 1] = 0x7F  # the node's name is now longer than the node
        (tmp_path / "m.onnx").write_bytes(bytes(data))
        refused(lambda: io.load(tmp_path / "m.onnx"), ModelError)

    def test_missing_file_with_a_near_name(self, tmp_path: Path) -> None:
        write(linear(), tmp_path / "bert.onnx")
        assert "bert.onnx" in refused(lambda: io.load(tmp_path / "brt.onnx"), ModelError).remedy
        assert "does not exist" in refused(lambda: io.load(tmp_path / "no" / "m.onnx"), ModelError).cause
        refused(lambda: io.load(tmp_path / "bert.onnx" / "m.onnx"), ModelError)
        refused(lambda: io.load("nul\0byte.onnx"), ModelError)
        refused(lambda: io.load("x" * 300 + ".onnx"), ModelError)

    def test_folder(self, tmp_path: Path) -> None:
        assert "Name the model" in refused(lambda: io.load(tmp_path), ModelError).remedy
        write(linear(), tmp_path / "m.onnx")
        assert str(tmp_path / "m.onnx") in refused(lambda: io.load(tmp_path), ModelError).remedy

    def test_device_is_not_read_for_ever(self) -> None:
        assert "regular file" in refused(lambda: io.load("/dev/zero"), ModelError).cause

    def test_unreadable(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        path = write(linear(), tmp_path / "m.onnx")

        def denied(self: Path) -> bytes:
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))

        monkeypatch.setattr(Path, "read_bytes", denied)
        assert "Permission denied" in refused(lambda: io.load(path), ModelError).cause

    def test_newer_than_the_installed_onnx(self, tmp_path: Path) -> None:
        newest = onnx.defs.onnx_opset_version()
        io.load(write(linear(opset=newest), tmp_path / "now.onnx"))
        path = write(linear(opset=newest + 1), tmp_path / "m.onnx")
        assert f"opset {newest + 1}" in refused(lambda: io.load(path), ModelError).cause
        path = write(linear(ir_version=onnx.IR_VERSION + 1), tmp_path / "m.onnx")
        assert f"IR version {onnx.IR_VERSION + 1}" in refused(lambda: io.load(path), ModelError).cause

    def test_versions_of_other_domains_are_free(self, tmp_path: Path) -> None:
        model = linear()
        model.opset_import.append(helper.make_opsetid("com.example", 1000))
        io.load(write(model, tmp_path / "m.onnx"))


class TestExternalData:
    @pytest.mark.parametrize(
        ("location", "cause"),
        [
            ("w.bin", "missing"),
            ("/etc/passwd", "absolute"),
            ("C:\\weights\\w.bin", "absolute"),
            ("\\\\server\\w.bin", "absolute"),
            ("../w.bin", "leads out of"),
            ("a/../../w.bin", "leads out of"),
            ("..\\w.bin", "leads out of"),
            ("weights", "not a regular file"),
            (None, "names no file"),
            ("", "names no file"),
            ("w\0.bin", "names no file"),
        ],
    )
    def test_refused_locations(self, split: Path, location: str | None, cause: str) -> None:
        write(linear(external(location)), split)
        (split.parent.parent / "w.bin").write_bytes(bytes(WEIGHT_BYTES))
        error = refused(lambda: io.load(split), ModelError)
        assert cause in error.cause and "Initializer 'w'" in error.cause and str(split) in error.cause

    def test_too_short(self, split: Path) -> None:
        (split.parent / "weights" / "w.bin").write_bytes(bytes(WEIGHT_BYTES - 1))
        assert f"only {WEIGHT_BYTES - 1} bytes" in refused(lambda: io.load(split), ModelError).cause

    @pytest.mark.parametrize(
        ("entries", "cause"),
        [
            ({"offset": 1}, "has only"),
            ({"offset": 10**15}, "has only"),
            ({"length": WEIGHT_BYTES + 1}, "has only"),
            ({"length": WEIGHT_BYTES - 1}, "shape and type need"),
            ({"offset": -1}, "as the offset"),
            ({"offset": "zero"}, "as the offset"),
            ({"length": "1_000"}, "as the length"),
            ({"length": "9" * 5000}, "as the length"),
        ],
    )
    def test_refused_extents(self, split: Path, entries: dict[str, object], cause: str) -> None:
        write(linear(external("weights/w.bin", **entries)), split)
        assert cause in refused(lambda: io.load(split), ModelError).cause

    def test_exact_extent(self, split: Path) -> None:
        (split.parent / "weights" / "w.bin").write_bytes(bytes(WEIGHT_BYTES + 64))
        io.load(write(linear(external("weights/w.bin", offset=64, length=WEIGHT_BYTES)), split))

    def test_link_inside_the_folder_is_followed(self, split: Path) -> None:
        (split.parent / "link.bin").symlink_to(split.parent / "weights" / "w.bin")
        io.load(write(linear(external("link.bin")), split))

    def test_link_out_of_the_folder_is_refused(self, split: Path, tmp_path: Path) -> None:
        (tmp_path / "secret").write_bytes(bytes(WEIGHT_BYTES))
        (split.parent / "link.bin").symlink_to(tmp_path / "secret")
        write(linear(external("link.bin")), split)
        assert "outside the model's folder" in refused(lambda: io.load(split), ModelError).cause
        (split.parent / "linked").symlink_to(tmp_path)
        write(linear(external("linked/secret")), split)
        assert "outside the model's folder" in refused(lambda: io.load(split), ModelError).cause

    def test_model_and_data_linked_to_one_place(self, split: Path, tmp_path: Path) -> None:
        # Like the cache of Hugging Face: snapshots/model.onnx -> ../blobs/..., snapshots/w.bin -> ../blobs/...
        write(linear(external("w.bin")), tmp_path / "blobs" / "0a")
        (tmp_path / "blobs" / "0b").write_bytes(bytes(WEIGHT_BYTES))
        (tmp_path / "snapshot").mkdir()
        (tmp_path / "snapshot" / "model.onnx").symlink_to("../blobs/0a")
        (tmp_path / "snapshot" / "w.bin").symlink_to("../blobs/0b")
        io.load(tmp_path / "snapshot" / "model.onnx")

    def test_tensors_of_subgraphs_functions_and_attributes(self, tmp_path: Path) -> None:
        def body(name: str) -> onnx.GraphProto:
            out = helper.make_tensor_value_info(f"{name}_out", TensorProto.FLOAT, None)
            node = helper.make_node("Identity", [name], [f"{name}_out"])
            return helper.make_graph([node], name, [], [out], [external("in_subgraph.bin", name=name)])

        constant = helper.make_node("Constant", [], ["c"], value=external("in_function.bin", name="c"))
        model = linear(external("in_graph.bin"))
        model.graph.node.append(helper.make_node("If", ["x"], ["z"], then_branch=body("a"), else_branch=body("b")))
        model.functions.append(helper.make_function("f", "F", [], ["c"], [constant], [helper.make_opsetid("", 17)]))
        found = {file.location: file for file in external_files(model)}
        assert {name: file.tensors for name, file in found.items()} == {
            "in_graph.bin": 1,
            "in_subgraph.bin": 2,
            "in_function.bin": 1,
        }
        assert found["in_subgraph.bin"].bytes == 2 * WEIGHT_BYTES
        for name in found:
            (tmp_path / name).write_bytes(bytes(WEIGHT_BYTES))
        path = write(model, tmp_path / "m.onnx")
        io.load(path)
        (tmp_path / "in_function.bin").unlink()
        assert "node 'c'" in refused(lambda: io.load(path), ModelError).cause

    def test_sizes_of_small_types(self) -> None:
        four_bits = TensorProto(data_type=TensorProto.INT4, dims=[3])
        assert external_data.byte_size(four_bits) == 2
        assert external_data.byte_size(TensorProto(data_type=TensorProto.BFLOAT16, dims=[2, 3])) == 12
        assert external_data.byte_size(TensorProto(data_type=TensorProto.DOUBLE)) == 8
        assert external_data.byte_size(TensorProto(data_type=TensorProto.STRING, dims=[3])) == 0


class TestCheck:
    def test_good_models(self, split: Path) -> None:
        io.check(linear(), full=True)
        # Not found from here, and must not be looked for.
        io.check(io.load(split), split, full=True)
        assert io.load(split).graph.initializer[0].data_location == TensorProto.EXTERNAL

    def test_names_the_node(self) -> None:
        model = linear()
        model.graph.node[0].input.pop()
        error = refused(lambda: io.check(model, "m.onnx"), ModelError)
        assert "m.onnx" in error.cause and "multiply" in error.cause

    def test_shapes_only_in_the_full_check(self, split: Path) -> None:
        model = linear(external("weights/w.bin", dims=(ROWS + 1, COLUMNS)))
        io.check(model)
        refused(lambda: io.check(model, full=True), ModelError)

    def test_other_domains(self) -> None:
        model = linear()
        model.graph.node[0].domain = "com.example"
        refused(lambda: io.check(model), ModelError)
        model.opset_import.append(helper.make_opsetid("com.example", 1))
        io.check(model, full=True)

    def test_large_embedded_weights(self) -> None:
        values = np.zeros((1024, 1024), np.float32)
        graph = helper.make_graph(
            [helper.make_node("MatMul", ["x", "w"], ["y"])],
            "g",
            [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 1024])],
            [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, 1024])],
            [numpy_helper.from_array(values, "w")],
        )
        model = helper.make_model(graph)
        io.check(model, full=True)
        assert len(model.graph.initializer) == 1 and len(model.graph.input) == 1
        model.graph.initializer[0].raw_data = bytes((4 << 20) - 4)
        assert "'w'" in refused(lambda: io.check(model), ModelError).cause

    def test_external_constant_of_a_subgraph(self) -> None:
        model = linear(external("w.bin"))
        model.graph.node.append(helper.make_node("Constant", [], ["c"], value=external("c.bin", name="c")))
        io.check(model, full=True)
        io.check(linear(external("w.bin", name="w")), full=True)


class TestSave:
    def test_round_trip(self, tmp_path: Path) -> None:
        path = tmp_path / "out.onnx"
        io.save(linear(), path)
        assert io.load(path) == linear()
        assert list(contents(tmp_path)) == ["out.onnx"]
        io.save(linear(opset=18), str(path))
        assert io.load(path).opset_import[0].version == 18

    def test_gets_ordinary_permissions_and_keeps_existing_ones(self, tmp_path: Path) -> None:
        (tmp_path / "plain").write_bytes(b"")
        io.save(linear(), tmp_path / "new.onnx")
        assert (tmp_path / "new.onnx").stat().st_mode == (tmp_path / "plain").stat().st_mode
        (tmp_path / "new.onnx").chmod(0o640)
        io.save(linear(), tmp_path / "new.onnx")
        assert stat.S_IMODE((tmp_path / "new.onnx").stat().st_mode) == 0o640

    def test_unchanged_is_byte_identical(self, tmp_path: Path) -> None:
        # A field that onnx does not know, first: protobuf would move it to the end.
        odd = b"\x98\x06\x07" + linear().SerializeToString()
        (tmp_path / "in.onnx").write_bytes(odd)
        model = io.load(tmp_path / "in.onnx")
        io.save(model, tmp_path / "out.onnx", source=tmp_path / "in.onnx", unchanged=True)
        assert (tmp_path / "out.onnx").read_bytes() == odd
        io.save(model, tmp_path / "in.onnx", source=tmp_path / "in.onnx", unchanged=True)
        assert (tmp_path / "in.onnx").read_bytes() == odd
        io.save(model, tmp_path / "out.onnx", source=tmp_path / "in.onnx")
        assert (tmp_path / "out.onnx").read_bytes() != odd

    @pytest.mark.parametrize("suffix", [".onnxtxt", ".textproto", ".json"])
    def test_text_forms(self, tmp_path: Path, suffix: str) -> None:
        source = write(linear(), tmp_path / "in.onnx")
        out = tmp_path / f"out{suffix}"
        io.save(linear(), out, source=source, unchanged=True)
        assert b"MatMul" in out.read_bytes()
        assert [node.op_type for node in io.load(out).graph.node] == ["MatMul"]

    def test_onto_the_source(self, split: Path) -> None:
        model = io.load(split)
        model.producer_name = "test"
        before = (split.parent / "weights" / "w.bin").read_bytes()
        io.save(model, split, source=split)
        assert io.load(split).producer_name == "test"
        assert (split.parent / "weights" / "w.bin").read_bytes() == before

    def test_link_is_followed(self, tmp_path: Path) -> None:
        (tmp_path / "real").mkdir()
        (tmp_path / "link.onnx").symlink_to(tmp_path / "real" / "m.onnx")
        for _ in range(2):  # once to a file that is not there yet
            io.save(linear(), tmp_path / "link.onnx")
            assert (tmp_path / "link.onnx").is_symlink()
            assert io.load(tmp_path / "real" / "m.onnx") == linear()
        assert set(contents(tmp_path)) == {"link.onnx", "real/m.onnx"}

    def test_over_two_gib(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(io, "_PROTOBUF_LIMIT", 100)
        path = tmp_path / "m.onnx"
        assert "save_as_external_data" in refused(lambda: io.save(linear(), path), OutputError).remedy
        assert not path.exists()
        write(linear(), path)
        assert "save_as_external_data" in refused(lambda: io.load(path), ModelError).remedy


class TestSaveFailures:
    """Whatever fails, the folder is as it was."""

    @pytest.mark.parametrize(
        ("target", "remedy"),
        [
            ("missing/m.onnx", "Create the folder"),
            ("file/m.onnx", "is a file"),
            (".", "name of a file"),
            ("x" * 300, "shorter"),
        ],
    )
    def test_impossible_targets(self, tmp_path: Path, target: str, remedy: str) -> None:
        (tmp_path / "file").write_bytes(b"here before")
        path = tmp_path / target
        for action in (lambda: io.save(linear(), path), lambda: io.check_output(path)):
            assert remedy in refused(action, OutputError).remedy
        assert contents(tmp_path) == {"file": b"here before"}

    def test_read_only(self, tmp_path: Path) -> None:
        (tmp_path / "m.onnx").write_bytes(b"protected")
        (tmp_path / "m.onnx").chmod(0o444)
        if os.access(tmp_path / "m.onnx", os.W_OK):
            pytest.skip("this user may write anywhere")
        refused(lambda: io.save(linear(), tmp_path / "m.onnx"), OutputError)
        tmp_path.chmod(0o555)
        refused(lambda: io.save(linear(), tmp_path / "other.onnx"), OutputError)
        tmp_path.chmod(0o755)
        assert contents(tmp_path) == {"m.onnx": b"protected"}

    def test_write_protected_file(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        (tmp_path / "m.onnx").write_bytes(b"protected")
        monkeypatch.setattr(staging.os, "access", lambda path, mode: False)
        refused(lambda: io.save(linear(), tmp_path / "m.onnx"), OutputError)
        refused(lambda: io.check_output(tmp_path / "m.onnx"), OutputError)
        assert contents(tmp_path) == {"m.onnx": b"protected"}

    def test_check_output_leaves_no_trace(self, tmp_path: Path) -> None:
        (tmp_path / "m.onnx").write_bytes(b"here before")
        io.check_output(tmp_path / "m.onnx")
        io.check_output(tmp_path / "new.onnx")
        assert contents(tmp_path) == {"m.onnx": b"here before"}

    @pytest.mark.parametrize("function", ["replace", "fsync", "open"])
    @pytest.mark.parametrize("code", [errno.ENOSPC, errno.EIO, errno.EROFS])
    @pytest.mark.parametrize("call", [1, 2])
    def test_system_calls_that_fail(
        self, split: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, function: str, code: int, call: int
    ) -> None:
        # Two files are written, the data and the model: each call fails for the one and for the other.
        out = tmp_path / "out"
        out.mkdir()
        (out / "m.onnx").write_bytes(b"here before")
        model = io.load(split)
        failing(monkeypatch, function, call, OSError(code, os.strerror(code)))
        refused(lambda: io.save(model, out / "m.onnx", source=split), OutputError)
        monkeypatch.undo()
        assert contents(out) == {"m.onnx": b"here before"}
        assert not (out / "weights").exists()

    def test_interrupted(self, split: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        out = tmp_path / "out"
        out.mkdir()
        model = io.load(split)
        failing(monkeypatch, "replace", 2, KeyboardInterrupt())
        with pytest.raises(KeyboardInterrupt):
            io.save(model, out / "m.onnx", source=split)
        monkeypatch.undo()
        assert list(out.iterdir()) == []


def failing(monkeypatch: pytest.MonkeyPatch, function: str, call: int, error: BaseException) -> None:
    """Lets the n-th call of a function of `os` fail (of those for files to be written)."""
    real = getattr(os, function)
    count = 0

    def fake(*args: Any, **kwargs: Any) -> Any:
        nonlocal count
        if function != "open" or args[1] & os.O_CREAT:
            count += 1
            if count == call:
                raise error
        return real(*args, **kwargs)

    monkeypatch.setattr(os, function, fake)


class TestSaveExternalData:
    def test_stays_where_it_is(self, split: Path) -> None:
        for mode in ("auto", "keep", "copy"):
            io.save(io.load(split), split.parent / "out.onnx", source=split, external_data=mode)
            io.load(split.parent / "out.onnx")
        assert set(contents(split.parent)) == {"model.onnx", "out.onnx", "weights/w.bin"}

    @pytest.mark.parametrize("mode", ["auto", "copy"])
    @pytest.mark.parametrize("unchanged", [False, True])
    def test_is_copied_into_another_folder(self, split: Path, tmp_path: Path, mode: Any, unchanged: bool) -> None:
        out = tmp_path / "out"
        out.mkdir()
        for _ in range(2):  # the second time it is there already
            io.save(io.load(split), out / "m.onnx", source=split, external_data=mode, unchanged=unchanged)
            assert contents(out)["weights/w.bin"] == (split.parent / "weights" / "w.bin").read_bytes()
            assert set(contents(out)) == {"m.onnx", "weights/w.bin"}
        io.load(out / "m.onnx")

    def test_copied_without_help_of_the_kernel(
        self, split: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def unsupported(*args: object) -> int:
            raise OSError(errno.EXDEV, "across devices")

        monkeypatch.setattr(os, "copy_file_range", unsupported, raising=False)
        (tmp_path / "out").mkdir()
        io.save(io.load(split), tmp_path / "out" / "m.onnx", source=split)
        assert contents(tmp_path / "out")["weights/w.bin"] == (split.parent / "weights" / "w.bin").read_bytes()

    def test_folder_reached_by_a_link_is_the_same_folder(self, split: Path, tmp_path: Path) -> None:
        (tmp_path / "link").symlink_to(split.parent)
        io.save(io.load(split), tmp_path / "link" / "out.onnx", source=split, external_data="keep")
        io.load(split.parent / "out.onnx")

    def test_keep_in_another_folder(self, split: Path, tmp_path: Path) -> None:
        error = refused(
            lambda: io.save(io.load(split), tmp_path / "m.onnx", source=split, external_data="keep"), UsageError
        )
        assert "copied" in error.remedy
        assert not (tmp_path / "m.onnx").exists()

    def test_keep_without_external_data(self, tmp_path: Path) -> None:
        source = write(linear(), tmp_path / "in" / "m.onnx")
        io.save(linear(), tmp_path / "m.onnx", source=source, external_data="keep")

    def test_unknown_mode(self, tmp_path: Path) -> None:
        mode: Any = "move"
        refused(lambda: io.save(linear(), tmp_path / "m.onnx", external_data=mode), UsageError)

    def test_never_overwrites_other_data(self, split: Path, tmp_path: Path) -> None:
        out = tmp_path / "out"
        (out / "weights").mkdir(parents=True)
        for other in (b"someone's", bytes(WEIGHT_BYTES)):  # of another size, and of the same
            (out / "weights" / "w.bin").write_bytes(other)
            error = refused(lambda: io.save(io.load(split), out / "m.onnx", source=split), OutputError)
            assert (
                str(out / "weights" / "w.bin") in error.cause and str(split.parent / "weights" / "w.bin") in error.cause
            )
            assert contents(out) == {"weights/w.bin": other}

    def test_never_writes_through_a_link_out_of_the_folder(self, split: Path, tmp_path: Path) -> None:
        (tmp_path / "out").mkdir()
        (tmp_path / "elsewhere").mkdir()
        (tmp_path / "out" / "weights").symlink_to(tmp_path / "elsewhere")
        refused(lambda: io.save(io.load(split), tmp_path / "out" / "m.onnx", source=split), OutputError)
        assert contents(tmp_path / "elsewhere") == {}

    def test_output_that_is_a_data_file(self, split: Path, tmp_path: Path) -> None:
        weights = split.parent / "weights" / "w.bin"
        before = weights.read_bytes()
        refused(lambda: io.save(io.load(split), weights, source=split), UsageError)
        (split.parent / "link.onnx").symlink_to(weights)
        refused(lambda: io.save(io.load(split), split.parent / "link.onnx", source=split), UsageError)
        (tmp_path / "weights").mkdir()
        assert weights.read_bytes() == before
        flat = write(linear(external("m.onnx")), tmp_path / "flat" / "flat.onnx")
        (flat.parent / "m.onnx").write_bytes(bytes(WEIGHT_BYTES))
        refused(lambda: io.save(io.load(flat), tmp_path / "m.onnx", source=flat), UsageError)
        assert not (tmp_path / "m.onnx").exists()

    def test_data_that_vanished_meanwhile(self, split: Path, tmp_path: Path) -> None:
        model = io.load(split)
        (split.parent / "weights" / "w.bin").unlink()
        (tmp_path / "out").mkdir()
        refused(lambda: io.save(model, tmp_path / "out" / "m.onnx", source=split), ModelError)
        assert list((tmp_path / "out").iterdir()) == []

    def test_without_a_source(self, split: Path, tmp_path: Path) -> None:
        model = io.load(split)
        io.save(model, split.parent / "out.onnx")
        io.load(split.parent / "out.onnx")
        refused(lambda: io.save(model, tmp_path / "m.onnx"), UsageError)
        assert not (tmp_path / "m.onnx").exists()
