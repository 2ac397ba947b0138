"""Runs one of the functions below in a process whose CUDA driver is the one that computes nothing (see fake_driver.cpp)."""

from __future__ import annotations

import gc
import json
import os
import sys
import threading
from pathlib import Path
from typing import Any

import numpy as np

from onnx_fuse.errors import UsageError
from onnx_fuse.runtime import Engine
from onnx_fuse.runtime.device import cuda
from onnx_fuse.runtime.device.arrays import CUDA, Tensor
from onnx_fuse.runtime.onnxruntime.executor import OrtExecutor
from tests.helpers import model
from tests.runtime.plugin_executor import PluginExecutor

X = np.arange(8, dtype=np.float32).reshape(2, 4) - 4


def used() -> int:
    """Bytes that are allocated on the device."""
    gc.collect()
    left, total = cuda._call("cuMemGetInfo")
    return int(total - left)


def numbers() -> Any:
    """ONNX Runtime behind the device: host arrays, device arrays, outputs of unknown size, several streams and threads."""
    device = cuda.CudaDevice()
    made = model("(float[n,4] x) => (float[n,4] y, int64[2,k] w) { y = Relu(x) w = NonZero(y) }")
    engine = Engine(OrtExecutor(made, device=device), streams=2)
    for rows in (2, 5, 1, 0):
        x = np.random.default_rng(rows).standard_normal((rows, 4)).astype(np.float32)
        for _ in range(2):
            results, timing = engine.timed({"x": x})
            np.testing.assert_array_equal(results["y"], np.maximum(x, 0))
            np.testing.assert_array_equal(results["w"], np.stack(np.nonzero(results["y"])))
            assert timing.h2d is not None and timing.d2h is not None and timing.h2d >= 0
    memory = device.allocate(X.nbytes)
    stream = device.stream()
    device.copy(memory.address, X.ctypes.data, X.nbytes, stream)
    device.synchronize(stream)
    there = engine.infer({"x": Tensor(memory.address, "float32", X.shape, (CUDA, 0), memory)})["y"]
    assert there.device == (CUDA, 0)
    back = np.empty_like(X)
    device.copy(back.ctypes.data, there.address, X.nbytes, stream)
    device.synchronize(stream)
    np.testing.assert_array_equal(back, np.maximum(X, 0))
    device.close_stream(stream)

    def call() -> None:
        for _ in range(20):
            np.testing.assert_array_equal(engine.infer({"x": X})["y"], np.maximum(X, 0))
        done.append(1)

    done: list[int] = []
    threads = [threading.Thread(target=call) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(done) == 4
    engine.close()
    held = used()
    del there, memory
    return [held, used()]


def plugin_launches() -> Any:
    """FusedSwish through an engine with graphs: the kernels of each call."""
    log = Path(os.environ["FAKE_CUDA_LOG"])
    executor = PluginExecutor(
        Path(os.environ["LIBRARY"]),
        "FusedSwish",
        {"inputs": "x", "outputs": "output", "beta": 1.0},
        cuda.CudaDevice(),
        [("float32", ("n", 4))],
        [("float32", ("n", 4))],
    )
    engine = Engine(executor, cuda_graphs=2)
    calls = []
    for rows in (3000, 3000, 3000, 1, 3000):
        log.write_text("")
        engine.infer({"x0": np.ones((rows, 4), np.float32)})
        calls.append([json.loads(line) for line in log.read_text().splitlines()])
    return calls


def errors() -> Any:
    """What is said when memory ends, and of a GPU that is not there."""
    found = []
    for attempt in (lambda: cuda.CudaDevice(7), lambda: cuda.CudaDevice().allocate(1 << 20)):
        try:
            attempt()
        except UsageError as error:
            found.append([type(error).__name__, error.cause, error.remedy])
    return [*found, cuda.devices()]


if __name__ == "__main__":
    json.dump({"numbers": numbers, "plugin_launches": plugin_launches, "errors": errors}[sys.argv[1]](), sys.stdout)
