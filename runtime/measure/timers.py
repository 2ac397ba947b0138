"""What times models for `--select measured`: ONNX Runtime on the CPU, or a TensorRT engine on a GPU."""

from __future__ import annotations

import platform
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import onnxruntime
from onnx import ModelProto

from onnx_fuse.errors import UsageError
from onnx_fuse.passes.select.measured import Run, Timer
from onnx_fuse.runtime.device import gpus, library_file
from onnx_fuse.runtime.device.engine_file import ShapeRange
from onnx_fuse.runtime.engine import Engine
from onnx_fuse.runtime.onnxruntime import kernel_library, room, sessions
from onnx_fuse.runtime.plugins import plugin_library
from onnx_fuse.runtime.tensorrt import binding
from onnx_fuse.runtime.tensorrt.config import EngineConfig
from onnx_fuse.runtime.verify.random_inputs import DRAWS, Array, draw_inputs, input_specs

BuildEngine = Callable[..., Any]
"""`onnx_fuse.runtime.builder.build`, which selects with these timers and so is handed to them."""


def timer_for(device: str | None, sizes: Mapping[str, int], base_dir: Path | None, build_engine: BuildEngine) -> Timer:
    """The timer of a device: "cpu" for ONNX Runtime, otherwise the GPU of this machine.

    Args:
        sizes: dimension -> size that models are run with.
        base_dir: folder of their external data.
        build_engine: makes a TensorRT engine of a model.

    Raises:
        UsageError: there is no GPU.
    """
    if device is not None and device.lower() == "cpu":
        return OrtTimer(sizes, base_dir)
    found, _, problem = gpus.devices()
    if not found:
        raise UsageError(
            f'select="measured" times TensorRT engines, and no GPU can be used: {problem or "the driver shows none"}.',
            'Use select="auto", which predicts, or time ONNX Runtime with device="cpu".',
        )
    return EngineTimer(found[0], sizes, base_dir, build_engine)


class OrtTimer:
    """ONNX Runtime on the CPU, with its own optimisations: fused nodes run by the kernel library, or as their bodies."""

    def __init__(self, sizes: Mapping[str, int], base_dir: Path | None = None) -> None:
        self.name = f"cpu: {platform.processor() or platform.machine()}, onnxruntime {onnxruntime.__version__}"
        library = kernel_library.find()
        if library is not None:
            held = kernel_library.contents(library)
            self.name += (
                f", kernel library {library_file.sha256(library, kernel_library.KIND)[:12]} ({held.instructions})"
            )
        self._sizes = sizes
        self._base_dir = base_dir

    def open(self, model: ModelProto) -> Run:
        """Raises:
        ModelError: ONNX Runtime cannot load or run it, or there is not enough memory.
        """
        inputs = drawn(model, self._sizes)
        room.require_room(model, inputs, base_dir=self._base_dir, optimise=True)
        kernels = kernel_library.choose(model)
        session = sessions.session(model, base_dir=self._base_dir, optimise=True, library=kernels.library)

        def run() -> float:
            start = time.perf_counter()
            sessions.run(session, inputs)
            return time.perf_counter() - start

        return run


class EngineTimer:
    """TensorRT engines on a GPU, the time between two events of its stream. It was never run: it needs a GPU."""

    def __init__(
        self, gpu: gpus.Gpu, sizes: Mapping[str, int], base_dir: Path | None, build_engine: BuildEngine
    ) -> None:
        trt = binding.module()
        found = [plugin_library.described(path) for path in plugin_library.find()]
        hashes = [library.sha256[:12] for library in found if library is not None]
        self.name = f"{gpu.name}, {trt.__name__} {trt.__version__}, plugins {' '.join(hashes) or 'none'}"
        self._sizes = sizes
        self._base_dir = base_dir
        self._build_engine = build_engine
        self._folder = tempfile.TemporaryDirectory(prefix="onnx-fuse-")
        self._count = 0

    def open(self, model: ModelProto) -> Run:
        """Raises:
        OnnxFuseError: it cannot be built or run.
        """
        inputs = drawn(model, self._sizes)
        shapes = {name: ShapeRange(array.shape, array.shape, array.shape) for name, array in inputs.items()}
        self._count += 1
        target = Path(self._folder.name) / f"{self._count}.engine"
        self._build_engine(model, target, EngineConfig(profiles=[shapes], select="all"), base_dir=self._base_dir)
        opened = Engine(target)

        def run() -> float:
            _, timing = opened.timed(inputs)
            return float(timing.compute)

        return run


def drawn(model: ModelProto, sizes: Mapping[str, int]) -> dict[str, Array]:
    """Random inputs of these sizes."""
    specs = [
        replace(
            spec,
            dims=tuple(_size(spec.name, axis, dim, sizes) for axis, dim in enumerate(spec.dims or ())),
            rows=tuple(sizes.get(row, row) if isinstance(row, str) else row for row in spec.rows),
        )
        for spec in input_specs(model)
    ]
    return draw_inputs(specs, DRAWS[0])


def _size(name: str, axis: int, dim: int | str, sizes: Mapping[str, int]) -> int | str:
    return dim if isinstance(dim, int) else sizes.get(dim, sizes.get(f"{name}_{axis}", dim))
