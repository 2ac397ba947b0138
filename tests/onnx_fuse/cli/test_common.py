"""What the commands share."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.onnx_fuse.cli.helpers import (
    fake_api,
    full_report,
    run,
)


def test_no_colour_without_a_terminal(small: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake_api(monkeypatch, full_report())
    assert "\x1b" not in run("fuse", small, "-o", tmp_path / "out.onnx").output
    assert "\x1b[" in run("fuse", small, "-o", tmp_path / "out.onnx", FORCE_COLOR="1").output
    coloured = re.compile(r"\x1b\[[0-9;]*3[0-7]m")
    assert not coloured.search(run("fuse", small, "-o", tmp_path / "o", FORCE_COLOR="1", NO_COLOR="1").output)
