"""What `doctor` makes of an installation: judged on given facts, and gathered from this machine and from a driver of our own."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import onnx_fuse
from onnx_fuse.runtime import doctor
from onnx_fuse.runtime.device.gpus import Gpu
from onnx_fuse.runtime.doctor import Creator, Facts, KernelLibrary, PluginLibrary, examine

H100 = Gpu("NVIDIA H100", 90, 80 << 30)
LIBRARY = PluginLibrary("/lib.so", "ab" * 32, onnx_fuse.__version__, (80, 86, 89, 90, 100, 120))
KERNELS = KernelLibrary("/kernels.so", "cd" * 32, onnx_fuse.__version__, "avx2", True, ("Op",))
FINE = Facts(
    packages={"tensorrt-rtx": "1.7.1", "tensorrt-rtx-cu13": "1.7.1", "cuda-python": "13.0.0", "triton": "3.5.0"},
    onnx_opset=23,
    onnxruntime_opset=23,
    tensorrt="tensorrt_rtx",
    tensorrt_version="1.7.1.116",
    libraries=(LIBRARY,),
    kernel_library=KERNELS,
    creators=(Creator("Op", "1", "gr.ml.infra", ("alpha", "inputs", "outputs")),),
    operators={"Op": ("alpha",)},
    gpus=(H100,),
    driver=(13, 0),
    ptxas=(12, 8),
)


def with_library(**changes: Any) -> dict[str, Any]:
    return {"libraries": (replace(LIBRARY, **changes),)}


def with_kernels(**changes: Any) -> dict[str, Any]:
    return {"kernel_library": replace(KERNELS, **changes)}


def test_nothing_to_say() -> None:
    assert examine(FINE) == []
    assert doctor.to_dict(FINE, [])["ok"] is True


@pytest.mark.parametrize(
    ("changes", "level", "what", "remedy"),
    [
        ({"tensorrt": "", "creators": ()}, "note", "There is no TensorRT", "[tensorrt-rtx]"),
        ({"tensorrt": "", "tensorrt_problem": "TensorRT cannot be imported (x)"}, "broken", "cannot be imported", "again"),
        ({"tensorrt_version": "1.6.1.9"}, "broken", "1.6.1.9 makes no plugins", "tensorrt-rtx>=1.7"),
        ({"tensorrt": "tensorrt", "tensorrt_version": "10.3.0"}, "broken", "10.3.0 is older than 10.7", "tensorrt>=10.7"),
        ({"tensorrt": "tensorrt", "tensorrt_version": "10.13.3"}, "note", "Both tensorrt and", "Uninstall"),
        ({"plugin_nodes": False}, "broken", "imported before onnx-fuse", "binding.module()"),
        ({"onnxruntime_opset": 22}, "warning", "up to opset 22, onnx knows 23", "Upgrade onnxruntime"),
        ({"onnx_opset": 27, "onnxruntime_opset": 26}, "note", "up to opset 26", "Upgrade onnxruntime"),
        ({"surgeon_keeps_overloads": False}, "note", "drops overloads", "--functions inline"),
        ({"libraries": ()}, "note", "No plugin library", "plugins build"),
        (with_library(problem="its hash differs"), "broken", "its hash differs", "plugins build"),
        (with_library(sha256=""), "note", "has no record", "plugins build"),
        (with_library(version="0.0.1"), "warning", "built by onnx-fuse 0.0.1", "plugins build"),
        (with_library(architectures=(80, 120)), "warning", "no machine code for NVIDIA H100", "--arch 90"),
        (with_library(architectures=(120,)), "broken", "has machine code for sm_120, and nothing for NVIDIA H100", "plugins build"),
        ({"kernel_library": None}, "note", "ONNX Runtime runs bodies", "--for onnxruntime"),
        (with_kernels(problem="its hash differs"), "broken", "its hash differs", "--for onnxruntime"),
        (with_kernels(sha256=""), "note", "/kernels.so has no record", "--for onnxruntime"),
        (with_kernels(version="0.0.1"), "warning", "/kernels.so was built by onnx-fuse 0.0.1", "--for onnxruntime"),
        (with_kernels(advised=False, instructions="plain"), "note", "only plain kernels for this machine", "--library"),
        ({"gpus": (Gpu("T4", 75, 0),)}, "broken", "T4 is sm_75", "--no-plugins"),
        ({"creators": ()}, "broken", "no plugin is registered for Op", "plugins build"),
        ({"operators": {"Op": ("alpha", "beta")}}, "broken", "does not take beta", "plugins build"),
        ({"driver": None, "gpus": (), "driver_problem": "no driver"}, "note", "No GPU can be used: no driver", "a GPU"),
        ({"gpus": (), "driver_problem": "CUDA error 100"}, "broken", "CUDA error 100", "nvidia-smi"),
        ({"gpus": ()}, "note", "shows no GPU", "nvidia-smi"),
        ({"driver": (12, 8)}, "broken", "tensorrt-rtx-cu13 needs a driver for CUDA 13", "Upgrade the driver"),
        ({"ptxas": (14, 0)}, "warning", "triton compiles with CUDA 14.0", "older triton"),
        ({"packages": {}}, "note", "cuda-python is not installed", "[serve]"),
        ({"cache": ("/root/.cache", False)}, "warning", "/root/.cache cannot be written", "XDG_CACHE_HOME"),
    ],
)  # fmt: skip
def test_each_finding(changes: dict[str, Any], level: str, what: str, remedy: str) -> None:
    """One change of a sound installation gives one finding, and its remedy."""
    (finding,) = examine(replace(FINE, **changes))
    assert finding.level == level and what in finding.what and remedy in finding.remedy


def test_code_of_an_older_minor_version_runs() -> None:
    """sm_86 runs on sm_89; what is compiled for sm_90a runs on nothing else."""
    ada = Gpu("L4", 89, 0)
    assert examine(replace(FINE, gpus=(ada,), **with_library(architectures=(80, 86)))) == []
    blackwell = Gpu("B300", 103, 0)
    (finding,) = examine(replace(FINE, gpus=(blackwell,), **with_library(architectures=(80, 100))))
    assert finding.level == "warning" and "sm_103" in finding.what


def test_the_worst_comes_first() -> None:
    found = examine(replace(FINE, libraries=(), plugin_nodes=False, onnxruntime_opset=20))
    assert [item.level for item in found] == ["broken", "warning", "note"]


def test_this_machine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("ONNX_FUSE_PLUGINS", "")
    facts = doctor.gather()
    assert facts.packages["onnx-fuse"] == onnx_fuse.__version__ and facts.libraries == ()
    assert 0 < facts.onnxruntime_opset <= facts.onnx_opset
    assert facts.operators["FusedSwish"] == ("beta",)
    assert not [item for item in examine(facts) if item.level == "broken"]
    (tmp_path / "lib.so").write_bytes(b"\x7fELF\x02\x01 and no more")
    monkeypatch.setenv("ONNX_FUSE_PLUGINS", f"{tmp_path}/lib.so:{tmp_path}/none.so")
    monkeypatch.setenv("ONNX_FUSE_KERNEL_LIBRARY", f"{tmp_path}/lib.so")
    found = examine(doctor.gather())
    assert "no kernel library that can be loaded" in " ".join(item.what for item in found if item.level == "broken")
    assert "none.so" in " ".join(item.what for item in found if item.level == "broken")
    if facts.tensorrt:
        assert "cut short" in " ".join(item.what for item in found if item.level == "broken")
