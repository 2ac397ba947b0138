"""onnx_fuse.runtime.device.gpus: against drivers made for the test."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from onnx_fuse.runtime.device import gpus
from onnx_fuse.runtime.device.gpus import Gpu

DRIVER = """
extern "C" {
int cuDriverGetVersion(int* v) { *v = 12080; return 0; }
int cuInit(unsigned) { return STATUS; }
int cuDeviceGetCount(int* n) { *n = 2; return 0; }
int cuDeviceGet(int* d, int i) { *d = i + 7; return 0; }
int cuDeviceGetName(char* s, int, int d) { s[0] = 'G'; s[1] = '0' + d; s[2] = 0; return 0; }
int cuDeviceTotalMem_v2(unsigned long* b, int) { *b = 48ul << 30; return 0; }
int cuDeviceGetAttribute(int* v, int a, int) { *v = a == 75 ? 8 : a == 76 ? 9 : -1; return 0; }
}
"""


@pytest.mark.skipif(shutil.which("g++") is None, reason="needs g++")
def test_a_driver_with_two_gpus(tmp_path: Path) -> None:
    for status in (0, 100):
        (tmp_path / "driver.cpp").write_text(DRIVER.replace("STATUS", str(status)))
        library = tmp_path / f"libcuda{status}.so"
        subprocess.run(["g++", "-shared", "-fPIC", "-o", library, tmp_path / "driver.cpp"], check=True)
        found, driver, problem = gpus.devices(str(library))
        assert driver == (12, 8)
        if status:
            assert found == () and problem == "the driver does not start: CUDA error 100"
        else:
            assert found == (Gpu("G7", 89, 48 << 30), Gpu("G8", 89, 48 << 30)) and problem == ""


def test_no_driver() -> None:
    assert gpus.devices("libnone.so.1") == ((), None, "there is no NVIDIA driver (libcuda.so.1)")


def test_the_first_is_the_one_to_build_for(monkeypatch: pytest.MonkeyPatch) -> None:
    two = (Gpu("NVIDIA L4", 89, 24 << 30), Gpu("NVIDIA H100", 90, 80 << 30))
    monkeypatch.setattr(gpus, "devices", lambda: (two, (13, 0), ""))
    assert str(gpus.first()) == "NVIDIA L4 SM89"
    monkeypatch.setattr(gpus, "devices", lambda: ((), None, "there is no NVIDIA driver (libcuda.so.1)"))
    assert gpus.first() is None
