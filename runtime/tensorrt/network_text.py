"""TensorRT's network of a model as text: its layers with their types, shapes and settings, and the fields of the plugins."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from onnx import ModelProto, helper

from onnx_fuse.passes.files.io import load
from onnx_fuse.runtime.tensorrt import binding
from onnx_fuse.runtime.tensorrt.parse import ParsedNetwork


def network_text(parsed: ParsedNetwork, model: ModelProto | str | Path) -> str:
    """The network of `model`, a line for each input, output and layer, and below a layer what it reads, makes and is set to."""
    network, found = parsed.network, parsed.result
    fields = _plugin_fields(model if isinstance(model, ModelProto) else load(model))
    lines = [f"{found.module} {found.version}: {found.layers} layers, {len(found.plugins)} of them plugins"]
    lines += [f"input  {_tensor(network.get_input(index))}" for index in range(network.num_inputs)]
    lines += [f"output {_tensor(network.get_output(index))}" for index in range(network.num_outputs)]
    lines += [f"error  {issue.node} ({issue.op_type}): {issue.code}: {issue.message}" for issue in found.errors]
    for index in range(network.num_layers):
        layer = network.get_layer(index)
        kind = layer.type.name
        name = layer.name
        lines += ["", f"{index} {kind} {name}"]
        lines += [f"    reads {_tensor(layer.get_input(at))}" for at in range(layer.num_inputs) if layer.get_input(at)]
        lines += [f"    makes {_tensor(layer.get_output(at))}" for at in range(layer.num_outputs)]
        settings = fields.get(name, {}) if kind.startswith("PLUGIN") else dict(_settings(layer))
        lines += [f"    {key} = {value}" for key, value in settings.items()]
    return "\n".join(lines) + "\n"


def _tensor(tensor: Any) -> str:
    try:
        shape = ", ".join(map(str, tensor.shape))
    except ValueError:  # a rank of -1: the network contradicts itself
        shape = "?"
    return f"{tensor.name} {tensor.dtype.name.lower()}[{shape}]"


def _settings(layer: Any) -> Iterator[tuple[str, Any]]:
    """What is particular to a layer of its type: its properties that are numbers, names or sizes (weights are not shown)."""
    trt = binding.module()
    wanted = layer.type.name.replace("_", "")
    for name in dir(trt):
        if name.startswith("I") and name.endswith("Layer") and name[1:-5].upper() == wanted:
            kind = getattr(trt, name)
            layer.__class__ = kind
            break
    else:
        return
    for key in sorted(set(vars(kind)) - set(dir(trt.ILayer))):
        try:
            value = getattr(layer, key)
        except (AttributeError, RuntimeError, TypeError, ValueError):
            continue  # a property that this form of the layer does not have
        if isinstance(value, (bool, int, float, str)) or type(value).__name__ in ("Dims", "Permutation"):
            yield key, list(value) if hasattr(value, "__iter__") and not isinstance(value, str) else value
        elif hasattr(value, "name") and hasattr(type(value), "__members__"):
            yield key, value.name


def _plugin_fields(model: ModelProto) -> dict[str, dict[str, Any]]:
    """Node -> its attributes, which are the fields that its plugin is made of."""
    return {
        node.name: {
            item.name: value.decode() if isinstance(value := helper.get_attribute_value(item), bytes) else value
            for item in node.attribute
        }
        for node in model.graph.node
        if node.domain not in ("", "ai.onnx")
    }
