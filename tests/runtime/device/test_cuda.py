"""The CUDA device: real cuda-python, on a driver whose device memory is the host's and that records launches."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from onnx_fuse.errors import UsageError
from onnx_fuse.plugin_csrc.operators import catalogue
from onnx_fuse.runtime.device import cuda
from onnx_fuse.runtime.plugins import aot
from tests.plugin_csrc import built

pytest.importorskip("cuda.bindings")


def worker(task: str, **environment: str) -> Any:
    variables = {**os.environ, "LD_LIBRARY_PATH": str(built.tools()), **environment}
    done = subprocess.run(
        [sys.executable, "-m", "tests.runtime.cuda_worker", task],
        capture_output=True,
        text=True,
        env=variables,
        cwd=built.ROOT,
        check=False,
        timeout=200,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_a_model_behind_the_device() -> None:
    held, left = worker("numbers")
    assert held > 0 and left == 0  # an output outlives the engine, and nothing else does


def test_a_plugin_is_launched_and_replayed(tmp_path: Path) -> None:
    letters = {variant.function.__name__: aot.letters(variant) for variant in catalogue.variants()}
    signatures = tmp_path / "signatures"
    signatures.write_text("".join(f"{symbol} {text}\n" for symbol, text in letters.items()))
    calls = worker(
        "plugin_launches",
        LIBRARY=str(built.library()),
        FAKE_CUDA_LOG=str(tmp_path / "log"),
        FAKE_CUDA_SIGNATURES=str(signatures),
    )
    assert [len(launches) for launches in calls] == [1, 1, 1, 1, 1]
    first, captured, replayed, small, again = (launches[0] for launches in calls)
    assert first == captured == replayed == again  # the same kernel, grid and buffers
    assert small["grid"] != first["grid"]


def test_errors_say_what_to_do() -> None:
    missing, memory, devices = worker("errors", FAKE_CUDA_MEMORY="1000")
    assert missing[1] == "There is no GPU 7, there are 1." and "nvidia-smi" in missing[2]
    assert memory[0] == "CudaError" and "cuMemAlloc failed with CUDA_ERROR_OUT_OF_MEMORY" in memory[1]
    assert "fewer streams" in memory[2]
    assert len(devices) == 1


def test_without_a_driver() -> None:
    try:
        names = cuda.devices()
    except UsageError as error:
        assert "CUDA" in error.cause and error.remedy
    else:
        assert names  # there is a GPU here
