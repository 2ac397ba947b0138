"""Building a library of a folder."""

from __future__ import annotations

from pathlib import Path

import pytest

pytest.importorskip("triton")
pytest.importorskip("torch")

from onnx_fuse.errors import UsageError
from onnx_fuse.own_kernels.library import build_library
from tests.onnx_fuse.own_kernels.kernels import NARROW, written


def test_a_kernel_that_does_not_compile(tmp_path: Path) -> None:
    folder = written(tmp_path, narrow=NARROW.replace("value + value", "value + tl.nothing"))
    with pytest.raises(UsageError, match=r"The kernel TwiceNarrow.fp16.0 of .*narrow.py does not compile for sm_80"):
        build_library(folder, tmp_path / "lib.so", architectures=[80], jobs=1)
    assert not (tmp_path / "lib.so").exists()
