"""Engines on disk as `onnx-fuse build` leaves them, without a plan that could run."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import onnx
from onnx import ModelProto

from onnx_fuse.runtime.device import engine_file
from onnx_fuse.runtime.device.engine_file import EngineRecord, EngineTensor, ShapeRange

PLAN = b"no plan that TensorRT could open"
RECORD = EngineRecord(
    model="model.onnx",
    key="0" * 64,
    module="tensorrt_rtx",
    version="1.7.1",
    targets=("SM120",),
    inputs=(EngineTensor("x", "float32", ("n", 4)),),
    outputs=(EngineTensor("y", "float32", ("n", 4)), EngineTensor("w", "int64", (2, "k"))),
    profiles=({"x": ShapeRange((1, 4), (8, 4), (32, 4))},),
    plugins={},
    layers={"relu": ("relu",)},
    sha256=hashlib.sha256(PLAN).hexdigest(),
)


def write_engine(folder: Path, model: ModelProto | None = None, **changes: Any) -> Path:
    """An engine with its record, and the model beside it."""
    path = folder / "model.engine"
    path.write_bytes(PLAN)
    facts: Mapping[str, Any] = changes
    engine_file.record_path(path).write_bytes(engine_file.to_json(replace(RECORD, **facts)))
    if model is not None:
        onnx.save(model, folder / RECORD.model)
    return path
