"""ONNX Runtime: sessions, and the kernel library that runs fused nodes in them.

    onnx_fuse.runtime.onnxruntime.register(options, "fused.onnx")  # for sessions of your own

Everything here is imported on first use.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

_EXPORTS = {
    "Kernels": "onnx_fuse.runtime.onnxruntime.kernel_library",
    "register": "onnx_fuse.runtime.onnxruntime.registration",
}

__all__ = ["Kernels", "register"]

if TYPE_CHECKING:
    from onnx_fuse.runtime.onnxruntime.kernel_library import Kernels
    from onnx_fuse.runtime.onnxruntime.registration import register


def __getattr__(name: str) -> Any:
    if name not in _EXPORTS:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    import importlib

    return getattr(importlib.import_module(_EXPORTS[name]), name)


def __dir__() -> list[str]:
    return __all__
