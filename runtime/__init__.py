"""From a fused model to an engine that serves.

    built = onnx_fuse.runtime.build("fused.onnx", "model.plan")
    with onnx_fuse.runtime.open("model.plan") as engine:
        outputs = engine.infer({"x": x})

Everything here is imported on first use.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

_EXPORTS = {
    "Built": "onnx_fuse.runtime.builder",
    "Engine": "onnx_fuse.runtime.engine",
    "EngineConfig": "onnx_fuse.runtime.tensorrt.config",
    "OrtSession": "onnx_fuse.runtime.engine",
    "build": "onnx_fuse.runtime.builder",
    "open": "onnx_fuse.runtime.engine",
    "read_shapes": "onnx_fuse.runtime.tensorrt.config",
}

__all__ = ["Built", "Engine", "EngineConfig", "OrtSession", "build", "open", "read_shapes"]

if TYPE_CHECKING:
    from onnx_fuse.runtime.builder import Built, build
    from onnx_fuse.runtime.engine import Engine, OrtSession, open
    from onnx_fuse.runtime.tensorrt.config import EngineConfig, read_shapes


def __getattr__(name: str) -> Any:
    if name not in _EXPORTS:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    import importlib

    return getattr(importlib.import_module(_EXPORTS[name]), name)


def __dir__() -> list[str]:
    return __all__
