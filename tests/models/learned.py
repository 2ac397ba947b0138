"""The modules of examples/learn, and one model that uses them all, exported in every way that a test asks for."""

from __future__ import annotations

import functools
import importlib.util
import os
import sys
import tempfile
from pathlib import Path
from typing import Any

import onnx
import torch
from torch import nn

from onnx_fuse import torch_export
from onnx_fuse.learning import LearnedFusion, from_torch

FOLDER = Path(__file__).parents[2] / "examples" / "learn"
EXPORTS: tuple[tuple[str, int], ...] = (("script", 14), ("script", 17), ("dynamo", 18), ("dynamo", 23))
if os.environ.get("ONNX_FUSE_ALL_MODELS"):
    EXPORTS = (*EXPORTS, ("script", 13), ("script", 16), ("dynamo", 20), ("dynamo", 21))
AXES = {"x": {0: "batch", 1: "sequence"}, "mask": {0: "batch", 1: "sequence"}, "lengths": {0: "batch"}}
COUNTS = {"SigmoidAttention": 2, "GatedCross": 2, "PowerPooling": 1}


def example(name: str) -> Any:
    """A module of examples/learn."""
    if name not in sys.modules:
        spec = importlib.util.spec_from_file_location(name, FOLDER / f"{name}.py")
        assert spec is not None and spec.loader is not None
        sys.modules[name] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(sys.modules[name])
    return sys.modules[name]


MODULES = {
    "SigmoidAttention": example("sigmoid_attention").SigmoidAttention,
    "GatedCross": example("gated_cross").GatedCross,
    "PowerPooling": example("power_pooling").PowerPooling,
}


@functools.cache
def learned(name: str, exporter: str) -> LearnedFusion:
    """The fusion learned from one exporter's file alone."""
    module = MODULES[name]
    return from_torch(module(), module.example_inputs(), dynamic_shapes=module.dynamic_shapes, exporters=(exporter,))


def ranker() -> nn.Module:
    """The model of the example, its weights from a fixed seed."""
    torch.manual_seed(1)
    return example("learn").Ranker().eval()


def inputs() -> tuple[torch.Tensor, ...]:
    torch.manual_seed(2)
    return torch.randn(3, 5, 32), torch.ones(3, 5), torch.tensor([2, 5, 1])


@functools.cache
def _program() -> Any:
    dims = torch_export.dimensions(torch, AXES)
    shapes = tuple({axis: dims[label] for axis, label in of.items()} for of in AXES.values())
    with torch_export.quiet():
        return torch.export.export(ranker(), inputs(), dynamic_shapes=shapes, strict=False), shapes


@functools.cache
def exported(exporter: str, opset: int, dynamic: bool = True) -> onnx.ModelProto:
    """The model that uses all three."""
    options: dict[str, Any] = {"input_names": list(AXES), "opset_version": opset}
    with tempfile.TemporaryDirectory() as folder, torch_export.quiet():
        path = Path(folder) / "ranker.onnx"
        if exporter == "script":
            axes = AXES if dynamic else None
            torch.onnx.export(ranker(), inputs(), str(path), dynamo=False, dynamic_axes=axes, **options)
        else:
            program, shapes = _program()
            torch.onnx.export(
                program, inputs(), str(path), dynamo=True, dynamic_shapes=shapes, verbose=False, **options
            )
        return onnx.load(path)
