"""`onnx-fuse verify`: the verdicts, and their exit codes."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
import pytest

import onnx_fuse
from onnx_fuse.cli.common import VERIFY_TIMEOUT
from onnx_fuse.runtime.onnxruntime import kernel_library
from onnx_fuse.runtime.verify import verification
from tests.helpers import model
from tests.onnx_fuse.cli.helpers import (
    HIDDEN,
    run,
    small_model,
)
from tests.runtime.onnxruntime.libraries import library


def test_equal(small: Path) -> None:
    done = run("verify", small, small)
    assert done.exit_code == 0 and done.stdout.startswith("equal: ")


def test_different(small: Path, tmp_path: Path) -> None:
    onnx.save(small_model(scale=1.01), tmp_path / "other.onnx")
    done = run("verify", small, tmp_path / "other.onnx")
    assert done.exit_code == 4
    assert done.stdout.startswith("NOT equal") and " output 'y' differs by " in done.stdout
    assert "\n  the weight 'w' has other bytes than in the original, from byte 0 on. Besides, " in done.stdout
    error, hint = done.stderr.splitlines()
    assert error == f"error: {tmp_path}/other.onnx does not compute what {small} computes."
    assert hint.startswith("hint: Fuse this original again.")


def test_options(small: Path, tmp_path: Path) -> None:
    """Inputs of one's own come first, N sets are drawn at least, tolerances are taken, and JSON has all of it."""
    np.savez(tmp_path / "x.npz", x=np.ones((1, HIDDEN), np.float32))
    options = ("--inputs", tmp_path / "x.npz", "--samples", 20, "--rtol", 1e-3, "--atol", 1e-6, "--json")
    done = run("verify", small, small, *options)
    assert done.exit_code == 0
    found = json.loads(done.stdout)
    assert found["passed"] and found["rtol"] == 1e-3 and found["timeout"] == VERIFY_TIMEOUT
    assert found["cases"][0]["name"] == "given inputs" and len(found["cases"]) >= 21
    assert VERIFY_TIMEOUT == verification.TIMEOUT


def test_tolerances(small: Path, tmp_path: Path) -> None:
    """A scale of its own name that is 1 % off: refused, unless that much is allowed."""
    other = small_model(scale=1.01)
    for tensor in other.graph.initializer:
        tensor.name += "_other"
    for node in other.graph.node:
        node.input[:] = [f"{name}_other" if name == "w" else name for name in node.input]
    onnx.save(other, tmp_path / "other.onnx")
    assert run("verify", small, tmp_path / "other.onnx").exit_code == 4
    assert run("verify", small, tmp_path / "other.onnx", "--rtol", "0.03").exit_code == 0
    assert run("verify", small, tmp_path / "other.onnx", "--atol", "1e38").exit_code == 0


def test_the_time_is_up(small: Path) -> None:
    done = run("verify", small, small, "--verify-timeout", "0")
    assert done.exit_code == 4 and done.stdout.startswith("not proven") and "--verify-timeout" in done.stderr


def test_not_proven(small: Path, tmp_path: Path) -> None:
    onnx.save(small_model(scale=0.0), tmp_path / "constant.onnx")
    done = run("verify", tmp_path / "constant.onnx", tmp_path / "constant.onnx")
    assert done.exit_code == 4
    assert done.stdout.startswith("not proven") and "inconclusive, the original's outputs are constant" in done.stdout
    error, hint = done.stderr.splitlines()
    assert error.startswith("error: It is not proven that ") and hint.startswith("hint: ")


def test_nothing_compared(small: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("onnx_fuse.runtime.verify.verification.available_bytes", lambda: 0)
    done = run("verify", small, small)
    assert done.exit_code == 4 and done.stdout.startswith("not verified: running the models takes about ")
    assert done.stderr == "error: Nothing was compared.\nhint: Run it on a larger machine.\n"


def test_the_kernel_library(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Bodies are compared unless it is asked for; which it was is said."""
    onnx.save(model("(float[n,4] x) => (float[n,4] y) { s = Sigmoid(x) y = Mul(x, s) }"), tmp_path / "m.onnx")
    onnx_fuse.fuse(tmp_path / "m.onnx", enable=["FusedSwish"]).save(tmp_path / "f.onnx")
    monkeypatch.setenv(kernel_library.VARIABLE, str(library()))
    plain = run("verify", tmp_path / "m.onnx", tmp_path / "f.onnx")
    assert plain.exit_code == 0 and "kernel" not in plain.stdout
    for command in ("verify", "debug"):
        done = run(command, tmp_path / "m.onnx", tmp_path / "f.onnx", "--library", "--json")
        assert done.exit_code == 0, done.output
        assert any("ran its fused nodes by the kernels" in note for note in json.loads(done.stdout)["notes"])
    monkeypatch.setenv(kernel_library.VARIABLE, "")
    for command in ("verify", "debug"):
        done = run(command, tmp_path / "m.onnx", tmp_path / "f.onnx", "--library")
        assert done.exit_code == 2 and "error: No kernel library is found." in done.stderr
