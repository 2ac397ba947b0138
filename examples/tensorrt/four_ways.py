"""Swish by plugin and by TensorRT's own layers, in batches of 1, 8 and 32: the networks, the engines, and what they compute.

python examples/tensorrt/four_ways.py
"""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np
import swish

from onnx_fuse import runtime
from onnx_fuse.errors import UsageError


def main() -> None:
    swish.say_what_runs()
    with tempfile.TemporaryDirectory() as folder:
        for way in swish.WAYS:
            try:
                path, layers = swish.engine(way, Path(folder))
            except UsageError as error:
                print(f"{way}: left out. {error.cause}")
                continue
            print(f"{way}: {', '.join(layers)}")
            with runtime.open(path, fallback=True) as model:
                for batch in (1, 8, 32):
                    x = np.random.default_rng(batch).standard_normal((batch, 16)).astype(np.float32)
                    off = np.abs(model.infer({"x": x})["y"] - swish.reference(way, x)).max()
                    print(f"  {x.shape}: {'right' if off < 1e-6 else 'WRONG'}, at most {off:.0e} off")


if __name__ == "__main__":
    main()
