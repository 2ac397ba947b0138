"""Memory is asked for before a model runs, and limited where nobody can tell how much it takes."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import ModelProto

from onnx_fuse import runtime
from onnx_fuse.errors import ModelError
from onnx_fuse.runtime.debug import debug
from onnx_fuse.runtime.measure import profile
from onnx_fuse.runtime.measure.timers import OrtTimer
from onnx_fuse.runtime.onnxruntime import room
from onnx_fuse.runtime.serve import deploy
from onnx_fuse.runtime.verify.verification import verify
from tests import helpers

GIGA = 1 << 30


def counting(many: str) -> ModelProto:
    """A model that counts up to a number: a constant one, or one that its input says."""
    return helpers.model(
        f"""(float[n,4] x) => (float[n,4] y) <float zero = {{0}}, float one = {{1}}, float most = {{200000000000}}> {{
        a = Abs(x) s = ReduceMax <keepdims = 0> (a) t = Mul(s, most) r = Range(zero, {many}, one)
        m = ReduceMin <keepdims = 0> (r) y = Add(x, m) }}"""
    )


CONSTANT, OF_INPUT = counting("most"), counting("t")
X = {"x": np.ones((2, 4), np.float32)}


@pytest.fixture
def little(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in ("onnx_fuse.runtime.onnxruntime.room", "onnx_fuse.runtime.verify.verification"):
        monkeypatch.setattr(f"{module}.available_bytes", lambda: GIGA)


def test_what_fits_is_done_here() -> None:
    assert room.with_room(os.getpid, 1) == os.getpid()


def test_what_does_not_fit_is_not_begun(little: None) -> None:
    with pytest.raises(ModelError, match=r"takes about 5\.0 GB of memory, 1\.1 GB is available") as error:
        room.with_room(os.abort, 5 * 10**9, remedy="Do this.")
    assert error.value.remedy == "Do this."


def test_what_nobody_can_tell_is_done_in_another_process(little: None) -> None:
    assert room.with_room(os.getpid, None) != os.getpid()
    with pytest.raises(ModelError, match=r"with 0\.5 GB of memory: it took more memory than it may"):
        room.with_room(lambda: len(bytearray(GIGA)), None)


@pytest.mark.parametrize("optimise", [False, True])
@pytest.mark.parametrize("made", [CONSTANT, OF_INPUT], ids=["constant", "of the input"])
def test_room_for_a_model(little: None, made: ModelProto, optimise: bool) -> None:
    with pytest.raises(ModelError, match=r"memory|Failed to allocate"):
        room.require_room(made, X, optimise=optimise)


def test_a_model_of_unknown_sizes_that_fits(little: None) -> None:
    room.require_room(OF_INPUT, {"x": np.full((2, 4), 1e-9, np.float32)})


def test_nobody_runs_it_without_asking(little: None, tmp_path: Path) -> None:
    """Each of these would otherwise ask for 800 GB."""
    path = tmp_path / "constant.onnx"
    onnx.save(CONSTANT, path)
    assert "takes about" in (verify(CONSTANT, CONSTANT).skipped or "")
    ways = [
        lambda: debug(CONSTANT, CONSTANT),
        lambda: OrtTimer({}).open(CONSTANT),
        lambda: profile.require_room(path, X),
        lambda: deploy._onnx_model(path, deploy.SERVER, True),
    ]
    for way in ways:
        with pytest.raises(ModelError, match="takes about"):
            way()


def test_a_model_of_unknown_sizes_is_verified_in_a_process_of_its_own(little: None) -> None:
    made = helpers.model(
        "(float[n,4] x) => (float[n,4] y) { s = Sum(x, x) n = NonZero(x) l = ReduceMax <axes = [1], keepdims = 0> (n) "
        "o = ConstantOfShape(l) m = ReduceMax <keepdims = 0> (o) y = Add(s, m) }"
    )
    result = verify(made, made)
    assert result.passed and len(result.cases) > 2 and result.bytes_needed == 0
    wrong = helpers.copied(made)
    wrong.graph.node[-1].op_type = "Sub"
    wrong.graph.node[0].op_type = "Max"
    found = verify(made, wrong)
    assert not found.passed and "y" in (found.problem or "")


def test_a_session_in_the_child_does_not_disturb_those_before(little: None, tmp_path: Path) -> None:
    path = tmp_path / "small.onnx"
    onnx.save(helpers.model("(float[n,4] x) => (float[n,4] y) { y = Relu(x) }"), path)
    with runtime.open(path) as engine:
        room.require_room(OF_INPUT, {"x": np.zeros((2, 4), np.float32)})
        assert engine.infer(X)["y"].shape == (2, 4)
