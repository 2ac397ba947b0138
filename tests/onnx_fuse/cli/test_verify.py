"""`onnx-fuse verify`: the verdicts, and their exit codes."""

from __future__ import annotations

from pathlib import Path

import onnx
import pytest

from tests.onnx_fuse.cli.helpers import (
    run,
    small_model,
)


def test_equal(small: Path) -> None:
    done = run("verify", small, small)
    assert done.exit_code == 0 and done.stdout.startswith("equal: ")


def test_different(small: Path, tmp_path: Path) -> None:
    onnx.save(small_model(scale=1.01), tmp_path / "other.onnx")
    done = run("verify", small, tmp_path / "other.onnx")
    assert done.exit_code == 4
    assert done.stdout.startswith("NOT equal") and "\n  output 'y' differs by " in done.stdout
    error, hint = done.stderr.splitlines()
    assert error == f"error: {tmp_path}/other.onnx does not compute what {small} computes."
    assert hint.startswith("hint: Fuse again")


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
