"""`onnx-fuse plugins check`, `plugins build --from` and `plugins show`, and the example from module to plugin."""

from __future__ import annotations

import ctypes
import hashlib
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("triton")

from onnx_fuse.runtime.device import library_file
from onnx_fuse.runtime.onnxruntime import kernel_library
from onnx_fuse.runtime.plugins import kernel_library_build, plugin_library
from tests.onnx_fuse.cli.helpers import run
from tests.onnx_fuse.own_kernels.kernels import NARROW, written
from tests.plugin_csrc.built import CACHE, ROOT
from tests.runtime.onnxruntime.libraries import library as kernels
from tests.runtime.onnxruntime.libraries import recorded

EXAMPLE = ROOT / "examples" / "own_kernel"


def test_check(tmp_path: Path) -> None:
    folder = written(tmp_path, narrow=NARROW.replace("value + value", "value * value"))
    done = run("plugins", "check", folder, "--sizes", "M=2,N=7", "--sizes", "M=3, N=32")
    assert done.exit_code == 4
    assert re.search(
        "^TwiceNarrow.fp16.0 2 [0-9.e+]+ % M=., N=.+, float16", re.sub(" +", " ", done.stdout), re.MULTILINE
    )
    assert "error: TwiceNarrow.fp16.0 with M=2, N=7, float16: output differs by" in done.stderr
    assert "4 of 4 runs failed" in done.stderr


def test_what_is_wrong_is_told_before_anything_is_compiled(tmp_path: Path) -> None:
    folder = written(tmp_path, narrow=NARROW.replace('grid="M * 2"', 'grid="M / 2"'))
    for command in (["check", folder], ["build", "--from", folder, "-o", tmp_path / "lib.so"]):
        done = run("plugins", *command)
        assert done.exit_code == 2
        assert "narrow.py, line 24: grid: 'M / 2': a size is an integer; write // or ceil_div." in done.stderr
    assert run("plugins", "build", "--from", tmp_path / "missing").exit_code == 2
    for sizes in ("M", "M=x", "M=2,,", "=2"):
        assert "is not of the form NAME=N" in run("plugins", "check", folder, "--sizes", sizes).stderr


def test_show(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    library = tmp_path / "own.so"
    library.write_bytes(b"library")
    facts = {"version": "1", "architectures": [80], "variants": 2, "size": 7, "seconds": 1.0}
    digest = hashlib.sha256(b"library").hexdigest()
    record = {**facts, "sha256": digest, "operators": ["mine::TwiceNarrow version 3"]}
    (tmp_path / "own.so.json").write_text(json.dumps(record))
    monkeypatch.setenv(plugin_library.VARIABLE, str(library))
    done = run("plugins", "show")
    first, second, *rest = done.stdout.splitlines()
    assert "No kernel library is found" in first and rest == ["  mine::TwiceNarrow version 3"]
    assert second.startswith(f"{library}: 2 kernels (machine code for sm_80; PTX for sm_80 and later)")


def test_show_the_kernel_library(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    copy = recorded(Path(shutil.copy(kernels(), tmp_path / "kernels.so")))
    monkeypatch.setenv(kernel_library.VARIABLE, str(copy))
    first, *rest = run("plugins", "show").stdout.splitlines()
    assert re.match(
        rf"{copy}: for ONNX Runtime, (plain|avx2|avx512) here, version 0\.1\.0, sha256 [0-9a-f]{{64}}$", first
    )
    assert "  HSTUHierarchicalAttention: bfloat16, float16, float32" in rest
    (tmp_path / "cut.so").write_bytes(copy.read_bytes()[:-1])
    (tmp_path / "cut.so").replace(copy)  # the other one is loaded, and must stay as it is
    done = run("plugins", "show")
    assert done.exit_code == 2 and "its hash differs" in done.stderr


def test_build_for_onnxruntime(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without triton, and with no headers of TensorRT and CUDA; found by the next command."""
    for name in ("triton", "kernel_lens", "nvidia"):
        monkeypatch.setitem(sys.modules, name, None)
    monkeypatch.setattr(plugin_library, "_header_hints", lambda: pytest.fail("it looks for headers"))
    compiled = kernels()
    monkeypatch.setattr(kernel_library_build, "compiled", lambda work, settings, jobs: compiled)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.delenv(kernel_library.VARIABLE)
    done = run("plugins", "build", "--for", "onnxruntime")
    assert done.exit_code == 0, done.output
    made = kernel_library.find()
    assert made is not None and made.parent == library_file.cache_folder()
    assert done.stdout.startswith(f"{made}: 8 operators for ONNX Runtime, ")
    record = kernel_library.described(made)
    assert record is not None and record.size == made.stat().st_size and record.version == "0.1.0"
    assert f"{made}: for ONNX Runtime" in run("plugins", "show").stdout


def test_options_of_build_that_do_not_go_together(tmp_path: Path) -> None:
    for options, cause in (
        (["--for", "all", "-o", tmp_path / "lib.so"], "-o names one library, and two would be built."),
        (
            ["--for", "onnxruntime", "--from", tmp_path],
            "Kernels of your own are for TensorRT, and --for says onnxruntime.",
        ),
        (["--for", "onnxruntime", "--arch", "90"], "--arch is for TensorRT, and --for says onnxruntime."),
    ):
        done = run("plugins", "build", *options)
        assert done.exit_code == 2 and f"error: {cause}" in done.stderr and "hint: " in done.stderr


@pytest.mark.parametrize("tool", ["cmake", "g++"])
def test_what_a_build_needs_is_named(tool: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    which = shutil.which
    monkeypatch.setattr(shutil, "which", lambda name: None if name == tool else which(name))
    done = run("plugins", "build", "--for", "onnxruntime", "-o", tmp_path / "lib.so")
    assert done.exit_code == 2 and f"error: Building the kernel library needs {tool}." in done.stderr
    assert not (tmp_path / "lib.so").exists()


@pytest.mark.long
def test_the_example(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Module, learned operator, kernel, library, PLUGIN_V3, as in its README; for one architecture."""
    pytest.importorskip("torch")
    pytest.importorskip("tensorrt_rtx_libs")
    work = shutil.copytree(EXAMPLE, tmp_path / "own_kernel", ignore=shutil.ignore_patterns("*.onnx"))
    monkeypatch.setenv("TRITON_CACHE_DIR", str(CACHE / "triton"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.delenv(plugin_library.VARIABLE)
    monkeypatch.chdir(work)
    learned = Path("my_ops/gated_rms_norm.onnx")
    done = run("learn", "gated_rms_norm.py:GatedRMSNorm", "-o", learned)
    assert done.exit_code == 0 and "x: float[B, S, H]" in done.stdout, done.output

    done = run("plugins", "check", "my_ops", "--sizes", "B=2,S=3,H=64", "--sizes", "B=1,S=2,H=1000")
    assert done.exit_code == 0, done.output
    assert all(f"GatedRMSNorm.{kernel} " in done.stdout for kernel in ("bf16.0.x16", "fp32.1")), done.output

    done = run("plugins", "build", "--from", "my_ops", "--arch", 80)
    assert done.exit_code == 0, done.output
    assert "18 kernels for sm_80" in done.stdout and "gr.ml.infra::GatedRMSNorm version 1" in done.stdout
    (library,) = plugin_library.find()
    assert library == plugin_library.own_folder() / "libmy_ops_tensorrt_plugins.so"
    assert ctypes.CDLL(str(library)).get_num_registered_plugins() == 1
    done = run("plugins", "build", "--from", shutil.copytree("my_ops", "same_ops"))
    assert done.exit_code == 2 and "has a plugin for gr.ml.infra::GatedRMSNorm version 1 already" in done.stderr

    subprocess.run([sys.executable, "model.py"], check=True, capture_output=True)
    done = run("fuse", "model.onnx", "-o", "fused.onnx", "--with", learned, "--require", "GatedRMSNorm=2")
    assert done.exit_code == 0 and "Verified: equal" in done.stdout, done.output
    assert "no kernel" not in done.stderr
    command = [sys.executable, "-m", "onnx_fuse", "parse", "fused.onnx"]
    parsed = subprocess.run(command, capture_output=True, text=True)
    assert parsed.returncode == 0, parsed.stderr
    assert "2 of them plugins" in parsed.stdout and "/1/Mul_3/GatedRMSNorm" in parsed.stdout
