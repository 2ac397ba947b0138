"""One engine, called from 1, 2 and 4 threads, each call on a stream and a context of its own.

python examples/tensorrt/threads.py
"""

from __future__ import annotations

import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import swish

from onnx_fuse import runtime
from onnx_fuse.runtime.measure import profile

CALLS = 200


def main() -> None:
    swish.say_what_runs()
    with tempfile.TemporaryDirectory() as folder:
        path, _ = swish.engine("native", Path(folder))
        for threads in (1, 2, 4):
            with runtime.open(path, streams=threads, threads=1, fallback=True) as model:
                with ThreadPoolExecutor(threads) as pool:
                    right = sum(pool.map(lambda number: is_right(model, number), range(CALLS)))
                measured = profile.measure(model, {"x": inputs(0)}, streams=threads, duration=0.5)
            print(f"{threads} threads: {right} of {CALLS} calls right, {measured.throughput:.0f} calls/s")


def inputs(number: int) -> np.ndarray:
    """Another batch, of another size, for every call."""
    return np.random.default_rng(number).standard_normal((1 + number % 32, 16)).astype(np.float32)


def is_right(model: runtime.Engine, number: int) -> bool:
    x = inputs(number)
    return bool(np.abs(model.infer({"x": x})["y"] - swish.reference("native", x)).max() < 1e-6)


if __name__ == "__main__":
    main()
