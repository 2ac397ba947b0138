"""Small torch modules as ONNX models, from both exporters."""

from __future__ import annotations

import io
from collections.abc import Mapping
from weakref import WeakKeyDictionary

import onnx
import onnx_ir as ir
import torch
from onnx import ModelProto
from onnxscript import version_converter

from onnx_fuse.torch_export import quiet

SCRIPT, DYNAMO = "script", "dynamo"
OPSETS = ((SCRIPT, 14), (SCRIPT, 17), (DYNAMO, 18), (DYNAMO, 20), (DYNAMO, 23))
USUAL = ((SCRIPT, 17), (DYNAMO, 20))
_OWN_OPSET = 18

# Not on the module itself: the exporter puts back the attributes that it had before.
_EXPORTED: WeakKeyDictionary[torch.nn.Module, dict[str, bytes]] = WeakKeyDictionary()

Axes = Mapping[str, Mapping[int, str]]


def exported(
    module: torch.nn.Module, inputs: Mapping[str, torch.Tensor], axes: Axes, exporter: str, opset: int
) -> ModelProto:
    """The module (in eval mode) as a model; `axes` names the dynamic axes of its inputs."""
    module = module.eval()
    names = list(inputs)
    with quiet():
        if exporter == SCRIPT:
            buffer = io.BytesIO()
            torch.onnx.export(
                module,
                tuple(inputs.values()),
                buffer,
                dynamo=False,
                opset_version=opset,
                input_names=names,
                dynamic_axes={name: dict(of) for name, of in axes.items()},
            )
            return onnx.load_from_string(buffer.getvalue())
        model = _dynamo(module, inputs, axes)
        if opset != _OWN_OPSET:
            version_converter.convert_version(model, opset)
    return ir.to_proto(model)


def _dynamo(module: torch.nn.Module, inputs: Mapping[str, torch.Tensor], axes: Axes) -> ir.Model:
    """The module in the opset that the exporter writes: it converts to others as `exported` does. Kept with the module."""
    kept = _EXPORTED.setdefault(module, {})
    key = repr((axes, [(name, value.shape) for name, value in inputs.items()]))
    if key not in kept:
        labels = sorted({label for of in axes.values() for label in of.values()})
        dims = {label: torch.export.Dim(label, min=1, max=256) for label in labels}
        shapes = tuple({axis: dims[label] for axis, label in axes.get(name, {}).items()} for name in inputs)
        program = torch.onnx.export(
            module,
            tuple(inputs.values()),
            dynamo=True,
            opset_version=_OWN_OPSET,
            input_names=list(inputs),
            dynamic_shapes=shapes,
            verbose=False,
        )
        assert program is not None
        kept[key] = program.model_proto.SerializeToString()
    return ir.from_proto(onnx.load_from_string(kept[key]))
