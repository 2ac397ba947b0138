"""ONNX Runtime sessions: external data without copies on disk, and errors a person can read."""

from __future__ import annotations

import os
import threading
import time
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import ModelProto, numpy_helper, parser

from onnx_fuse.errors import ModelError
from onnx_fuse.runtime.onnxruntime import sessions

WEIGHT = np.arange(64, dtype=np.float32).reshape(8, 8)
X = np.ones((2, 8), np.float32)


def text(body: str, functions: str = "", inputs: str = "float[N,8] x", outputs: str = "float[N,8] y") -> ModelProto:
    header = '<ir_version: 9, opset_import: ["" : 18, "gr.ml.infra" : 1]>'
    return parser.parse_model(f"{header} g ({inputs}) => ({outputs}) {{ {body} }} {functions}")


def linear() -> ModelProto:
    model = text("t = MatMul(x, w) y = Exp(t)")
    model.graph.initializer.append(numpy_helper.from_array(WEIGHT / 100, "w"))
    return model


@pytest.fixture
def stored(tmp_path: Path) -> Path:
    """`linear` in a file, its weight in another one beside it."""
    path = tmp_path / "models" / "linear.onnx"
    path.parent.mkdir()
    onnx.save(linear(), path, save_as_external_data=True, location="linear.data", size_threshold=0)
    return path


def outputs(model: ModelProto | Path, base_dir: str | Path | None = None) -> np.ndarray:
    return sessions.run(sessions.session(model, base_dir=base_dir), {"x": X})["y"]


EXPECTED = np.exp(X @ (WEIGHT / 100))


@pytest.mark.parametrize("optimise", [False, True])
def test_runs_a_model_in_memory_and_in_a_file(tmp_path: Path, optimise: bool) -> None:
    onnx.save(linear(), tmp_path / "m.onnx")
    for model in (linear(), tmp_path / "m.onnx", str(tmp_path / "m.onnx")):
        found = sessions.run(sessions.session(model, optimise=optimise), {"x": X})
        np.testing.assert_allclose(found["y"], EXPECTED, rtol=1e-5)


def test_external_data_is_found_in_a_relative_an_absolute_and_the_current_folder(
    stored: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = onnx.load(stored, load_external_data=False)
    before = model.SerializeToString()
    monkeypatch.chdir(stored.parent.parent)
    for base_dir in (stored.parent, "models", Path("models")):
        np.testing.assert_allclose(outputs(model, base_dir), EXPECTED, rtol=1e-5)
    monkeypatch.chdir(stored.parent)
    for base_dir in (".", ""):
        np.testing.assert_allclose(outputs(model, base_dir), EXPECTED, rtol=1e-5)
    np.testing.assert_allclose(outputs(stored), EXPECTED, rtol=1e-5)
    assert model.SerializeToString() == before
    assert sorted(os.listdir(stored.parent)) == ["linear.data", "linear.onnx"]


def test_external_data_behind_links_as_in_the_hugging_face_cache(stored: Path, tmp_path: Path) -> None:
    blobs, snapshot = tmp_path / "blobs", tmp_path / "snapshots" / "0"
    blobs.mkdir()
    snapshot.mkdir(parents=True)
    for name, blob in (("linear.onnx", "aaa"), ("linear.data", "bbb")):
        os.rename(stored.parent / name, blobs / blob)
        os.symlink(Path("../../blobs") / blob, snapshot / name)
    model = onnx.load(blobs / "aaa", load_external_data=False)
    before = model.SerializeToString()
    np.testing.assert_allclose(outputs(model, snapshot), EXPECTED, rtol=1e-5)
    np.testing.assert_allclose(outputs(snapshot / "linear.onnx"), EXPECTED, rtol=1e-5)
    assert model.SerializeToString() == before


def test_external_data_outside_the_folder_is_refused(stored: Path) -> None:
    model = onnx.load(stored, load_external_data=False)
    entry = next(entry for entry in model.graph.initializer[0].external_data if entry.key == "location")
    outside = stored.parent.parent / "outside.data"
    (stored.parent / "linear.data").rename(outside)
    for location in ("../outside.data", str(outside)):
        entry.value = location
        with pytest.raises(ModelError):
            sessions.session(model, base_dir=stored.parent)


def test_external_data_without_a_folder_says_so(stored: Path) -> None:
    with pytest.raises(ModelError, match=r"linear\.data.*\n.*base_dir"):
        sessions.session(onnx.load(stored, load_external_data=False))


def test_missing_weights_name_the_file(stored: Path) -> None:
    (stored.parent / "linear.data").unlink()
    with pytest.raises(ModelError, match=r"linear\.data") as error:
        sessions.session(stored)
    assert "beside the model" in error.value.remedy
    assert "\n" not in error.value.cause


def test_a_custom_operator_runs_by_its_body() -> None:
    body = (
        '<domain: "gr.ml.infra", opset_import: ["" : 18]> Scale <factor> (a) => (b) '
        "{ f = Constant <value_float: float = @factor> () b = Mul(a, f) }"
    )
    model = text("y = gr.ml.infra.Scale <factor = 3.0> (x)", body)
    np.testing.assert_array_equal(outputs(model), 3 * X)


def test_extra_outputs_leave_the_model_as_it_is() -> None:
    model = linear()
    before = model.SerializeToString()
    found = sessions.run(sessions.session(model, extra_outputs=["t"]), {"x": X})
    np.testing.assert_allclose(np.exp(found["t"]), found["y"], rtol=1e-5)
    assert list(found) == ["y", "t"]
    assert model.SerializeToString() == before


def test_load_errors_name_the_model_and_the_node(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"nothing\.onnx: no such file"):
        sessions.session(tmp_path / "nothing.onnx")
    (tmp_path / "text.onnx").write_text("this is no model")
    with pytest.raises(ModelError, match=r"text\.onnx: ONNX Runtime cannot load it: "):
        sessions.session(tmp_path / "text.onnx")
    model = linear()
    model.graph.node[1].name, model.graph.node[1].op_type = "last", "Unheard"
    with pytest.raises(ModelError, match=r"last.*Unheard") as error:
        sessions.session(model)
    assert "no such operator" in error.value.remedy
    model = linear()
    model.ir_version = 99
    with pytest.raises(ModelError, match=r"IR version: 99.*\n.*Upgrade") as error:
        sessions.session(model)
    assert ".cc" not in error.value.cause


def test_run_errors_are_one_line_about_the_node() -> None:
    model = text("y = Gather(t, i)", inputs="int64[N] i, float[5,8] t")
    model.graph.node[0].name = "lookup"
    session = sessions.session(model)
    with pytest.raises(ModelError, match=r"Gather 'lookup': indices element out of data bounds, idx=7") as error:
        sessions.run(session, {"i": np.array([7]), "t": np.ones((5, 8), np.float32)})
    assert "\n" not in error.value.cause
    with pytest.raises(ModelError, match="missing"):
        sessions.run(session, {"i": np.array([0])})
    with pytest.raises(ModelError, match=r"expected: .tensor.int64"):
        sessions.run(session, {"i": np.array([0], np.int32), "t": np.ones((5, 8), np.float32)})


def test_source_places_are_cut_from_messages() -> None:
    session = sessions.session(text("y = Add(x, z)", inputs="float[N,8] x, float[M,8] z"))
    with pytest.raises(ModelError) as error:
        sessions.run(session, {"x": np.ones((2, 8), np.float32), "z": np.ones((3, 8), np.float32)})
    assert "onnxruntime_src" not in error.value.cause
    assert "2 by 3" in error.value.cause


def test_messages_are_kept_short() -> None:
    assert len(sessions.message(ValueError("x" * 10_000))) == 400
    assert sessions.message(ValueError("a\n  b")) == "a b"


# --- deadlines ---------------------------------------------------------------------------------------------------------


def loop(turns: int) -> ModelProto:
    model = text(
        "y = Loop (turns, yes, x) < body = step (int64 i, bool c, float[N,8] a) => (bool d, float[N,8] b) "
        "{ d = Identity(c)  b = Relu(a) } >"
    )
    model.graph.initializer.extend(
        [numpy_helper.from_array(np.array(turns), "turns"), numpy_helper.from_array(np.array(True), "yes")]
    )
    return model


def test_a_run_ends_at_its_deadline() -> None:
    session, start = sessions.session(loop(1 << 40)), time.monotonic()
    with sessions.Deadline(0.2) as deadline:
        with pytest.raises(sessions.OutOfTime):
            sessions.run(session, {"x": X}, deadline)
        assert time.monotonic() - start < 5
        assert deadline.passed and deadline.left == 0
        with pytest.raises(sessions.OutOfTime):  # and all after it
            sessions.run(sessions.session(linear()), {"x": X}, deadline)


def test_a_run_that_is_done_before_its_deadline_is_a_run_like_any_other() -> None:
    before = threading.active_count()
    with sessions.Deadline(60) as deadline:
        for _ in range(3):
            found = sessions.run(sessions.session(linear()), {"x": X}, deadline)
        np.testing.assert_array_equal(found["y"], outputs(linear()))
        assert not deadline.passed and threading.active_count() == before + 1
        with pytest.raises(ModelError) as error:
            sessions.run(sessions.session(linear()), {"x": X[:, :2]}, deadline)
        assert not isinstance(error.value, sessions.OutOfTime)
    for thread in threading.enumerate():
        if isinstance(thread, threading.Timer):
            thread.join(5)
    assert threading.active_count() == before


def test_no_deadline() -> None:
    deadline = sessions.Deadline()
    assert deadline.left is None and not deadline.passed and deadline.options() is None
