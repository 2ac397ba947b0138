"""Records of engines that somebody else wrote, or a disk has damaged: an error with a remedy, whatever they are."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path
from typing import Any

import pytest

from onnx_fuse.errors import ModelError
from onnx_fuse.runtime.device import engine_file
from onnx_fuse.runtime.device.engine_file import EngineRecord, EngineTensor, ShapeRange

RECORD = EngineRecord(
    model="m.onnx",
    key="0" * 64,
    module="tensorrt",
    version="11.1.0",
    targets=("SM90",),
    inputs=(EngineTensor("x", "float32", ("batch", 4)),),
    outputs=(EngineTensor("y", "float32", ("batch", 4)),),
    profiles=({"x": ShapeRange((1, 4), (8, 4), (32, 4))},),
    plugins={"/lib.so": "1" * 64},
    layers={"layer": ("node",)},
    sha256=hashlib.sha256(b"plan").hexdigest(),
)
FACTS: dict[str, Any] = json.loads(engine_file.to_json(RECORD))


@pytest.fixture
def engine(tmp_path: Path) -> Path:
    (tmp_path / "m.engine").write_bytes(b"plan")
    engine_file.record_path(tmp_path / "m.engine").write_bytes(engine_file.to_json(RECORD))
    return tmp_path / "m.engine"


def test_what_was_written_is_read(engine: Path) -> None:
    assert engine_file.read(engine) == RECORD


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        "null",
        "[" * 100_000,
        '{"a":' * 100_000,
        "{}",
        json.dumps({**FACTS, "format": 2}),
        json.dumps({**FACTS, "unknown": 1}),
        json.dumps({key: value for key, value in FACTS.items() if key != "layers"}),
        *(
            json.dumps({**FACTS, key: value})
            for key, value in (
                ("sha256", 1),
                ("model", None),
                ("plugins", ["/lib.so"]),
                ("plugins", {"/lib.so": 1}),
                ("layers", []),
                ("layers", {"layer": 1}),
                ("inputs", [1]),
                ("inputs", [{"name": "x", "dtype": "float32", "shape": "text"}]),
                ("inputs", [{"name": "x", "dtype": "float32", "shape": [[1]]}]),
                ("inputs", [{"name": 1, "dtype": "float32", "shape": []}]),
                ("profiles", [{"x": {"min": [1], "opt": [1]}}]),
                ("profiles", [{"x": {"min": ["1"], "opt": [1], "max": [1]}}]),
                ("profiles", 1),
            )
        ),
    ],
)
def test_records_that_are_none(engine: Path, text: str) -> None:
    engine_file.record_path(engine).write_text(text)
    with pytest.raises(ModelError) as caught:
        engine_file.read(engine)
    assert "m.engine" in caught.value.cause and "Build the engine again" in caught.value.remedy


def test_a_huge_record_is_not_read(engine: Path) -> None:
    os.truncate(engine_file.record_path(engine), 1 << 40)
    with pytest.raises(ModelError, match="more than 64 MB"):
        engine_file.read(engine)


def test_paths_that_no_file_can_have(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="does not exist"):
        engine_file.read(tmp_path / ("x" * 300))
