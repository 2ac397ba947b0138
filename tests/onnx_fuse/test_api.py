"""`fuse` and `explain` from Python: what they take, and what they give."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest

import onnx_fuse
from onnx_fuse.errors import ModelError, UsageError
from tests.helpers import model


@pytest.fixture
def given() -> onnx.ModelProto:
    made = model("(float[N, 8] x) => (float[N, 8] y) { p = MatMul(x, w) s = Sigmoid(p) y = Mul(p, s) }")
    made.graph.initializer.append(onnx.numpy_helper.from_array(np.full((8, 8), 0.5, np.float32), "w"))
    return made


def test_bytes_in_and_out(given: onnx.ModelProto) -> None:
    result = onnx_fuse.fuse(given.SerializeToString(), enable=["FusedSwish"])
    assert result.report.fused == {"FusedSwish": 1}
    assert onnx.load_model_from_string(result.to_bytes()) == result.model
    assert onnx_fuse.explain(given.SerializeToString(), enable=["FusedSwish"]).fused == {"FusedSwish": 1}


def test_bytes_that_are_no_model() -> None:
    with pytest.raises(ModelError, match="The given data is not an ONNX model"):
        onnx_fuse.fuse(b"no model at all")


def test_a_model_in_memory_with_data_in_a_folder(given: onnx.ModelProto, tmp_path: Path) -> None:
    path = tmp_path / "here" / "m.onnx"
    path.parent.mkdir()
    onnx.save(given, path, save_as_external_data=True, location="m.data", size_threshold=0)
    lazy = onnx.load(path, load_external_data=False)
    result = onnx_fuse.fuse(lazy, enable=["FusedSwish"], base_dir=path.parent)
    assert result.report.fused == {"FusedSwish": 1} and result.report.verification["passed"]
    (tmp_path / "there").mkdir()
    result.save(tmp_path / "there" / "fused.onnx")
    assert (tmp_path / "there" / "m.data").read_bytes() == (path.parent / "m.data").read_bytes()
    assert onnx_fuse.verify(path, tmp_path / "there" / "fused.onnx").passed
    with pytest.raises(UsageError, match="base_dir"):
        onnx_fuse.fuse(path, base_dir=path.parent)


def test_results_read_as_a_line(given: onnx.ModelProto) -> None:
    result = onnx_fuse.fuse(given, enable=["FusedSwish"])
    line = "1 FusedSwish; 3 nodes before, 2 after; verified"
    assert repr(result) == f"<FuseResult: {line}>" and repr(result.report) == f"<Report: {line}>"
    assert repr(onnx_fuse.fuse(given, verify=False).report).endswith(
        "nothing fused; 3 nodes before, 3 after; not verified>"
    )
    assert repr(onnx_fuse.verify(given, result.model)).startswith("<Verification: equal: ")


def test_what_a_model_cannot_be() -> None:
    with pytest.raises(UsageError, match="cannot be a list"):
        onnx_fuse.fuse([])  # type: ignore[arg-type]
