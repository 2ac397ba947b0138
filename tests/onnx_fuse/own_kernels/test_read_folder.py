"""Folders of kernels: files that do not run, and what is found in them."""

from __future__ import annotations

from pathlib import Path

import pytest

pytest.importorskip("triton")
pytest.importorskip("torch")

from onnx_fuse.errors import UsageError
from onnx_fuse.own_kernels.read_folder import read_folder
from tests.onnx_fuse.own_kernels.kernels import NARROW, assert_told, read


@pytest.mark.parametrize(
    "old, new, line, reason",
    [
        ("grid=", "grids=", 38, "TypeError"),
        ("import triton\n", "import triton, nothing_of_that_name\n", 2, "ModuleNotFoundError"),
        ("KERNEL = OwnKernel(", "KERNEL = OwnKernel((", 38, "was never closed"),
    ],
)  # fmt: skip
def test_what_is_said_wrongly_is_told_with_its_line(old: str, new: str, line: int, reason: str, tmp_path: Path) -> None:
    assert_told(tmp_path, old, new, line, reason)


def test_folders_without_kernels(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="is no folder"):
        read_folder(tmp_path / "missing")
    with pytest.raises(UsageError, match="holds an OwnKernel"):
        read(tmp_path, helper="raise SystemExit  # is not run, since it names no kernel of the user's")
    with pytest.raises(UsageError, match=r"b.py and .*a.py both have a kernel for TwiceNarrow"):
        read(tmp_path, a=NARROW, b=NARROW)
