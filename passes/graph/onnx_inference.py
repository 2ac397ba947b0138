"""ONNX's own shape inference over a model, without loading or copying its weights."""

from __future__ import annotations

import math
from collections.abc import Callable

import onnx
from onnx import GraphProto, ModelProto, TensorProto

from onnx_fuse.passes.graph.index import Graph

_SMALL = 1024
"""Elements up to which a weight keeps its data: shapes and axes, whose contents shape inference reads."""


def inferred_types(graph: Graph) -> Callable[[], dict[str, onnx.TypeProto]] | None:
    """A function that runs ONNX's shape inference on the main graph, without its weights; None for other graphs."""
    if graph.path or not isinstance(graph.proto, GraphProto):
        return None

    def infer() -> dict[str, onnx.TypeProto]:
        light = without_weights(graph.model)
        try:
            inferred = onnx.shape_inference.infer_shapes(light, data_prop=True)
        except Exception:
            # Shapes are a help, not a need: what needs one it cannot have refuses with a sentence.
            return {}
        values = [*inferred.graph.value_info, *inferred.graph.output]
        return {value.name: value.type for value in values}

    return infer


def without_weights(model: ModelProto) -> ModelProto:
    """A copy of the model in which weights have a type and a shape but no data."""
    light = ModelProto(ir_version=model.ir_version, producer_name=model.producer_name)
    light.opset_import.extend(model.opset_import)
    light.functions.extend(model.functions)
    graph = light.graph
    graph.name = model.graph.name
    graph.node.extend(model.graph.node)
    graph.input.extend(model.graph.input)
    graph.output.extend(model.graph.output)
    graph.value_info.extend(model.graph.value_info)
    graph.sparse_initializer.extend(model.graph.sparse_initializer)
    for tensor in model.graph.initializer:
        if tensor.data_location != TensorProto.EXTERNAL and math.prod(tensor.dims) <= _SMALL:
            graph.initializer.append(tensor)
            continue
        shell = graph.initializer.add(name=tensor.name, data_type=tensor.data_type, dims=tensor.dims)
        shell.data_location = TensorProto.EXTERNAL
        shell.external_data.add(key="location", value="weights")
    return light
