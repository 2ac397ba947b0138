"""Small torch modules as ONNX models, by either exporter."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import onnx
import torch
from onnx import ModelProto

from onnx_fuse.torch_export import quiet

EVERY_EXPORT = bool(os.environ.get("ONNX_FUSE_ALL_MODELS"))
EXPORTERS = (("script", 14), ("script", 17), ("dynamo", 18), ("dynamo", 23))


def sampled(*cells: Any, usual: set[Any]) -> list[Any]:
    """All cells where all exports are asked for, else the usual ones: exporting takes most of the time."""
    return [cell for cell in cells if EVERY_EXPORT or cell in usual]


@dataclass(frozen=True, eq=False)
class Source:
    """A module (eval mode) to export, with example inputs by name.

    Attributes:
        axes: for each input, the names of its dynamic axes; one name is one size, from 3 to `longest`.
    """

    module: torch.nn.Module
    inputs: Mapping[str, torch.Tensor]
    axes: Mapping[str, Mapping[int, str]]
    outputs: Sequence[str] = ("out",)
    longest: int = 40
    _programs: dict[bool, Any] = field(default_factory=dict)

    def export(self, exporter: str, opset: int, *, dynamic: bool = True) -> ModelProto:
        """The model, by `script` (TorchScript) or `dynamo`, which captures the module once for all opsets."""
        arguments = tuple(self.inputs.values())
        options: dict[str, Any] = {
            "input_names": list(self.inputs),
            "output_names": list(self.outputs),
            "opset_version": opset,
            "verbose": False,
        }
        with tempfile.TemporaryDirectory() as folder, quiet(), torch.no_grad():
            path = str(Path(folder) / "model.onnx")
            if exporter == "dynamo":
                shapes = self._shapes() if dynamic else None
                if dynamic not in self._programs:
                    self._programs[dynamic] = torch.export.export(
                        self.module, arguments, dynamic_shapes=shapes, strict=False
                    )
                program = self._programs[dynamic]
                torch.onnx.export(program, arguments, path, dynamo=True, dynamic_shapes=shapes, **options)
            else:
                axes = {name: dict(of) for name, of in self.axes.items()} if dynamic else None
                torch.onnx.export(self.module, arguments, path, dynamo=False, dynamic_axes=axes, **options)
            return onnx.load(path)

    def _shapes(self) -> tuple[dict[int, Any], ...]:
        labels = dict.fromkeys(label for of in self.axes.values() for label in of.values())
        dims = {label: torch.export.Dim(label, min=3, max=self.longest) for label in labels}
        return tuple({axis: dims[label] for axis, label in self.axes.get(name, {}).items()} for name in self.inputs)
