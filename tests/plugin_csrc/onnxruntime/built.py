"""The kernel library that these tests share, built once, with the instruction set of one's choice."""

from __future__ import annotations

import ctypes
import fcntl
import json
import os
import shutil
import subprocess
from functools import cache
from pathlib import Path
from typing import Any

import onnxruntime as ort

ROOT = Path(__file__).parents[3]
SOURCES = ROOT / "plugin_csrc" / "onnxruntime"
CACHE = ROOT / ".cache"
LIBRARY = "libgr_ml_infra_onnxruntime.so"
INSTRUCTIONS = "GR_ML_INFRA_ONNXRUNTIME_INSTRUCTIONS"


@cache
def library(sanitizers: str = "") -> Path:
    """The library; test processes wait for the first one to build it."""
    CACHE.mkdir(exist_ok=True)
    target = CACHE / "-".join(["kernel_library", *sanitizers.split(",")]).strip("-")
    settings = [f"-DSANITIZE={sanitizers}", "-DCMAKE_BUILD_TYPE=Debug", "-DCMAKE_CXX_FLAGS_DEBUG=-g1 -O1"]
    with target.with_suffix(".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        _run("cmake", "-S", str(SOURCES), "-B", str(target), *(settings if sanitizers else []))
        _run("cmake", "--build", str(target), "--parallel", str(os.cpu_count() or 1))
    return target / LIBRARY


def _run(*command: str) -> None:
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout[-4000:] + result.stderr[-4000:]


@cache
def told(path: Path) -> Any:
    """What a library says of itself."""
    function = ctypes.CDLL(str(path)).gr_ml_infra_onnxruntime_describe
    function.restype = ctypes.c_char_p
    return json.loads(function())


@cache
def library_with(instructions: str, folder: Path) -> Path:
    """A copy of the library, which chooses its instruction set by itself: that one."""
    path = folder / f"{instructions}.so"
    shutil.copy(library(), path)
    before = os.environ.get(INSTRUCTIONS)
    os.environ[INSTRUCTIONS] = instructions
    try:
        assert told(path)["instructions"] == instructions
    finally:
        os.environ.pop(INSTRUCTIONS)
        os.environ.update({INSTRUCTIONS: before} if before is not None else {})
    return path


def session(model: Any, path: Path, *, threads: int = 1) -> ort.InferenceSession:
    """A session in which the library's kernels run."""
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 4  # what is refused is raised as well
    options.register_custom_ops_library(str(path))
    return ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
