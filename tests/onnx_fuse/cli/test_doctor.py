"""`onnx-fuse doctor`: what is printed, JSON, and exit codes."""

from __future__ import annotations

import json
from pathlib import Path

import onnx
import pytest

from tests.onnx_fuse.cli.helpers import run


def test_doctor(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("ONNX_FUSE_PLUGINS", "")
    result = run("doctor")
    assert result.exit_code == 0, result.output
    assert "onnxruntime" in result.stdout and "Nothing is broken." in result.stdout
    found = json.loads(run("doctor", "--json").stdout)
    assert found["ok"] is True and found["facts"]["packages"]["onnx"] == onnx.__version__
    assert {"level", "what", "remedy"} == set(found["findings"][0])
    monkeypatch.setenv("ONNX_FUSE_PLUGINS", str(tmp_path / "none.so"))
    broken = run("doctor")
    assert broken.exit_code == 4 and "broken: There is no plugin library" in broken.stdout
    error, hint = broken.stderr.splitlines()
    assert error == "error: 1 thing in this installation is broken." and hint.startswith("hint: ")
    assert json.loads(run("doctor", "--json").stdout)["ok"] is False
