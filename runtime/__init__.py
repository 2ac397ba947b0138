"""Building, opening and running models. Everything here is imported on first use."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

_EXPORTS = {
    "Engine": "onnx_fuse.runtime.engine",
    "OrtSession": "onnx_fuse.runtime.engine",
    "open": "onnx_fuse.runtime.engine",
}

__all__ = ["Engine", "OrtSession", "open"]

if TYPE_CHECKING:
    from onnx_fuse.runtime.engine import Engine, OrtSession, open


def __getattr__(name: str) -> Any:
    if name not in _EXPORTS:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    import importlib

    return getattr(importlib.import_module(_EXPORTS[name]), name)


def __dir__() -> list[str]:
    return __all__
