"""Loaders for Polygraphy, NVIDIA's tool for comparing and debugging models: fused models and the plugin library.

    from onnx_fuse.runtime.tensorrt.polygraphy_loaders import BytesFromFused, LoadPlugins  # before polygraphy.backend.trt
    from polygraphy.backend.trt import NetworkFromOnnxBytes, TrtRunner

    network = NetworkFromOnnxBytes(LoadPlugins(BytesFromFused("fused.onnx")), strongly_typed=True)

Importing this module tells Polygraphy which TensorRT there is: it takes `tensorrt` unless it is told otherwise before its
`polygraphy.backend.trt` is imported. Polygraphy's own LoadPlugins opens a library without registering what is in it.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from onnx import ModelProto

from onnx_fuse import installation
from onnx_fuse.errors import UsageError
from onnx_fuse.passes.files import io
from onnx_fuse.runtime.plugins import plugin_library
from onnx_fuse.runtime.tensorrt import binding, parse


def _point_polygraphy() -> None:
    config = installation.require("polygraphy.config", extra="polygraphy", purpose="load models for it")
    try:
        is_rtx = binding.module().__name__ == "tensorrt_rtx"
    except UsageError:
        return  # its loaders for ONNX Runtime need none
    if is_rtx != config.USE_TENSORRT_RTX and "polygraphy.backend.trt" in sys.modules:
        raise UsageError(
            "polygraphy.backend.trt was imported before these loaders and looks for another TensorRT.",
            "Import onnx_fuse.runtime.tensorrt.polygraphy_loaders first.",
        )
    config.USE_TENSORRT_RTX = is_rtx


_point_polygraphy()


@dataclass(frozen=True)
class OnnxFromFused:
    """Gives a fused model with its bodies, for ONNX Runtime. Weights in external data stay outside."""

    path: str | Path

    def __call__(self) -> ModelProto:
        return io.load(self.path)


@dataclass(frozen=True)
class BytesFromFused:
    """Gives a fused model for TensorRT: what no loaded plugin takes is its body, written out."""

    model: ModelProto | str | Path

    def __call__(self) -> bytes:
        prepared, _ = parse.prepare(self.model)
        return bytes(prepared.SerializeToString())


@dataclass(frozen=True)
class LoadPlugins:
    """Registers plugin libraries (those that `plugin_library.find` finds if None), then gives what `then` gives."""

    then: Callable[..., Any]
    libraries: Sequence[str | Path] | None = None

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        binding.load_plugins(plugin_library.find() if self.libraries is None else self.libraries)
        return self.then(*args, **kwargs)
