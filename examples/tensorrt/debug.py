"""A plugin that prints what goes through it: compiled, parsed behind an ONNX node, and run by the project's harness.

python examples/tensorrt/debug.py
"""

from __future__ import annotations

import ctypes
import os
import shutil
import subprocess
import tempfile
from pathlib import Path

import numpy as np
import onnx
import swish

from onnx_fuse.runtime.device import cuda
from onnx_fuse.runtime.plugins import harness
from onnx_fuse.runtime.plugins.harness import Tensor
from onnx_fuse.runtime.tensorrt.parse import parse_network

FOLDER = Path(__file__).parent
MODEL = """<ir_version: 9, opset_import: ["" : 17, "gr.ml.debug" : 1]>
traced (float[n,16] x) => (float[n,16] y) {
    s = Sigmoid(x)
    seen = gr.ml.debug.PrintStatistics<
        label = "sigmoid", plugin_namespace = "gr.ml.debug", plugin_version = "1">(s)
    y = Mul(x, seen)
}"""


def compiled(folder: Path) -> Path:
    """The library of the debug plugin."""
    hints = [f"-D{name}_INCLUDE_DIR={place}" for name, place in include_folders().items()]
    for command in (
        ["-S", str(FOLDER), "-B", str(folder), *hints],
        ["--build", str(folder), "--target", "print_statistics"],
    ):
        subprocess.run([shutil.which("cmake") or "cmake", *command], check=True, capture_output=True)
    return folder / "libprint_statistics.so"


def include_folders() -> dict[str, str]:
    """The headers that the plugin library was built with, as CMake remembers them."""
    cache = (harness.tools() / "CMakeCache.txt").read_text().splitlines()
    facts = dict(line.split("=", 1) for line in cache if "_INCLUDE_DIR:PATH=" in line)
    return {key.removesuffix("_INCLUDE_DIR:PATH"): value for key, value in facts.items()}


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        library = compiled(Path(folder))
        parsed = parse_network(onnx.parser.parse_model(MODEL), plugins=[library])
        print(f"parsed: {parsed.result.layers} layers, of them plugins: {', '.join(parsed.result.plugins)}")
        if not swish.has_gpu():
            print("No GPU: the plugin runs on a driver whose device memory is the host's.")
            os.environ["FAKE_CUDA_MAY_WAIT"] = "1"  # as this plugin has to, to print what it reads
            ctypes.CDLL(str(harness.tools() / "libcuda.so.1"))  # found by its name from now on
        device = cuda.CudaDevice()
        plugin = harness.Plugin(library, "PrintStatistics", {"label": "sigmoid"})
        plugin.reborn()
        for rows in (1, 8):
            x = np.linspace(-4, 4, rows * 16).reshape(rows, 16)
            opened = (1 / (1 + np.exp(-x))).astype(np.float32)
            run(plugin, device, opened)
        opened[0, :3] = np.nan, np.inf, -np.inf
        run(plugin, device, opened)


def run(plugin: harness.Plugin, device: cuda.CudaDevice, values: np.ndarray) -> None:
    """One run of the plugin, whose output has to be its input."""
    stream, passed_on = device.stream(), np.empty_like(values)
    memory = [device.allocate(values.nbytes) for _ in range(2)]
    source, target = (Tensor("float32", values.shape, item.address) for item in memory)
    device.copy(source.data, values.ctypes.data, values.nbytes, stream)
    plugin.prepare([source], [target])
    plugin.enqueue([source], [target], stream=stream)
    device.copy(passed_on.ctypes.data, target.data, values.nbytes, stream)
    device.synchronize(stream)
    if passed_on.tobytes() != values.tobytes():
        raise SystemExit("the plugin changed what went through it")
    device.close_stream(stream)


if __name__ == "__main__":
    main()
