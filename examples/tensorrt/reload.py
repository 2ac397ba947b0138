"""An engine on disk computes in another process what it computed in this one, to the last bit.

python examples/tensorrt/reload.py
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import swish

from onnx_fuse import runtime

X = np.random.default_rng(0).standard_normal((8, 16)).astype(np.float32)


def main() -> None:
    swish.say_what_runs()
    with tempfile.TemporaryDirectory() as folder:
        path, _ = swish.engine("native", Path(folder))
        with runtime.open(path, fallback=True) as model:
            here = model.infer({"x": X})["y"]
        result = Path(folder) / "y.npy"
        subprocess.run([sys.executable, __file__, str(path), str(result)], check=True)
        print(f"largest difference between the processes: {np.abs(here - np.load(result)).max():g}")


def other_process(path: str, result: str) -> None:
    with runtime.open(path, fallback=True) as model:
        np.save(result, model.infer({"x": X})["y"])


if __name__ == "__main__":
    if sys.argv[1:]:
        other_process(*sys.argv[1:])
    else:
        main()
