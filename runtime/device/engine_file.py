"""An engine on disk: TensorRT's plan, and beside it a JSON record of what it was built from and what it takes."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from onnx_fuse.errors import ModelError, reason
from onnx_fuse.passes.files import json_object
from onnx_fuse.passes.files.digest import sha256

FORMAT = 1
"""Version of the record's layout."""


@dataclass(frozen=True)
class ShapeRange:
    """The shapes that an optimisation profile allows for one input."""

    min: tuple[int, ...]
    opt: tuple[int, ...]
    max: tuple[int, ...]


@dataclass(frozen=True)
class EngineTensor:
    """An input or output: numpy's name of its type ("float32", "bfloat16", "int64", ...), and its shape; a dimension that may
    differ from call to call is a name."""

    name: str
    dtype: str
    shape: tuple[int | str, ...]


@dataclass(frozen=True)
class EngineRecord:
    """What is known of a plan without opening it (which needs a GPU).

    Attributes:
        model: file name of the ONNX model it was built from.
        key: SHA-256 over model, plugins, TensorRT's version, targets and options: equal keys, equal engines.
        module, version: the TensorRT module that built it, "tensorrt" or "tensorrt_rtx", and its version.
        targets: compute capabilities it was built for, such as "SM120"; empty for the GPU of the machine.
        inputs, outputs: what it takes and gives, in the order of the model.
        profiles: one mapping for each optimisation profile, input -> its shapes.
        plugins: plugin library -> SHA-256 of its bytes. They must be loaded before the plan is opened.
        layers: layer of the network -> the ONNX nodes it came from.
        sha256: of the plan's bytes.
        options: what else was chosen, for people to read.
    """

    model: str
    key: str
    module: str
    version: str
    targets: tuple[str, ...]
    inputs: tuple[EngineTensor, ...]
    outputs: tuple[EngineTensor, ...]
    profiles: tuple[Mapping[str, ShapeRange], ...]
    plugins: Mapping[str, str]
    layers: Mapping[str, tuple[str, ...]]
    sha256: str
    options: Mapping[str, Any] = field(default_factory=dict)


def record_path(engine: Path) -> Path:
    """Where the record of an engine lies."""
    return engine.parent / f"{engine.name}.json"


def to_json(record: EngineRecord) -> bytes:
    """The record as it is written."""
    return (json.dumps({"format": FORMAT, **asdict(record)}, indent=2) + "\n").encode()


def is_engine(path: Path) -> bool:
    """Whether a file is called like an engine, or has an engine's record beside it."""
    return path.suffix.lower() in (".engine", ".plan", ".trt") or os.path.isfile(record_path(path))


def read(engine: Path) -> EngineRecord:
    """The record of an engine, whose plan is checked against it.

    Raises:
        ModelError: the plan or its record is missing, damaged, of another format, or they do not belong together.
    """
    remedy = "Build the engine again: onnx-fuse build."
    record_file = record_path(engine)
    if not os.path.isfile(engine):
        raise ModelError(f"The engine {engine} does not exist.", "Check the path, or build it: onnx-fuse build.")
    if not os.path.isfile(record_file):
        raise ModelError(f"The engine {engine} has no record {record_file.name} beside it.", remedy)
    try:
        facts = json_object.read(record_file)
        plan = sha256(engine)
    except (OSError, ValueError) as error:
        raise ModelError(f"The engine {engine} or its record cannot be read: {reason(error)}.", remedy) from error
    if facts.pop("format", None) != FORMAT:
        raise ModelError(f"The record of {engine} is of another format than {FORMAT}.", remedy)
    try:
        json_object.require(facts, model=str, key=str, module=str, version=str, sha256=str, plugins=dict, layers=dict)
        json_object.require(facts["plugins"], **dict.fromkeys(facts["plugins"], str))
        record = EngineRecord(
            **{
                **facts,
                "targets": tuple(facts["targets"]),
                "inputs": tuple(_tensor(item) for item in facts["inputs"]),
                "outputs": tuple(_tensor(item) for item in facts["outputs"]),
                "profiles": tuple(
                    {
                        name: ShapeRange(**{kind: _dims(dims, int) for kind, dims in item.items()})
                        for name, item in of.items()
                    }
                    for of in facts["profiles"]
                ),
                "layers": {name: tuple(nodes) for name, nodes in facts["layers"].items()},
            }
        )
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise ModelError(f"The record of {engine} is damaged: {error}.", remedy) from error
    if plan != record.sha256:
        raise ModelError(f"The engine {engine} is not the one its record speaks of: its hash differs.", remedy)
    return record


def _tensor(item: Mapping[str, Any]) -> EngineTensor:
    json_object.require(dict(item), name=str, dtype=str, shape=list)
    return EngineTensor(item["name"], item["dtype"], _dims(item["shape"], (int, str)))


def _dims(sizes: Sequence[Any], kinds: type | tuple[type, ...]) -> tuple[Any, ...]:
    if not all(isinstance(size, kinds) for size in sizes):
        raise ValueError(f"{sizes!r} is no shape")
    return tuple(sizes)
