"""The float32 twin of a bfloat16 model, for machines that cannot compute in bfloat16.

ONNX Runtime's CPU provider has no bfloat16 kernels for most operators, but it casts. The twin has every bfloat16 type
replaced by float32, and its bfloat16 weights, left where they are, pass through a Cast when they are read.
"""

from __future__ import annotations

from collections.abc import Iterable, MutableSequence

import numpy as np
from onnx import AttributeProto, GraphProto, ModelProto, NodeProto, TensorProto, ValueInfoProto, helper, numpy_helper

from onnx_fuse.passes.files.external_data import tensors

_STORED = "__bfloat16"
_TYPE_ATTRIBUTES = {"to", "dtype", "output_dtype", "stash_type", "softmax_precision"}


def holds_bfloat16(model: ModelProto) -> bool:
    """Whether an input, an output, a weight or a Cast of `model` is bfloat16."""
    values = (*model.graph.input, *model.graph.output, *model.graph.value_info)
    if any(value.type.tensor_type.elem_type == TensorProto.BFLOAT16 for value in values):
        return True
    return any(tensor.data_type == TensorProto.BFLOAT16 for tensor, _ in tensors(model))


def widen(model: ModelProto) -> ModelProto:
    """A copy of `model` that computes in float32 wherever the model computes in bfloat16; weights stay bfloat16."""
    twin = ModelProto()
    twin.CopyFrom(model)
    _widen_graph(twin.graph)
    for function in twin.functions:
        _widen_values(function.value_info)
        _widen_nodes(function.node)
    return twin


def _widen_graph(graph: GraphProto) -> None:
    _widen_values((*graph.input, *graph.output, *graph.value_info))
    stored = [tensor for tensor in graph.initializer if tensor.data_type == TensorProto.BFLOAT16]
    casts = [_cast(tensor.name) for tensor in stored]
    # A name cannot be both an input with a default and the result of a Cast: the default wins.
    names = {tensor.name for tensor in stored}
    kept = [value for value in graph.input if value.name not in names]
    del graph.input[:]
    graph.input.extend(kept)
    for tensor in stored:
        tensor.name += _STORED
    _widen_nodes(graph.node, casts)


def _widen_values(values: Iterable[ValueInfoProto]) -> None:
    for value in values:
        if value.type.HasField("tensor_type") and value.type.tensor_type.elem_type == TensorProto.BFLOAT16:
            value.type.tensor_type.elem_type = TensorProto.FLOAT


def _widen_nodes(nodes: MutableSequence[NodeProto], first: Iterable[NodeProto] = ()) -> None:
    """Widens `nodes` in place, with the nodes of `first` put before them."""
    widened = list(first)
    for node in nodes:
        widened.append(node)
        for attribute in node.attribute:
            if attribute.type == AttributeProto.GRAPH:
                _widen_graph(attribute.g)
            elif attribute.type == AttributeProto.TENSOR and attribute.t.data_type == TensorProto.BFLOAT16:
                if node.op_type == "Constant":
                    widened.append(_cast(node.output[0]))
                    node.output[0] += _STORED
                else:  # the fill value of a ConstantOfShape
                    value = np.asarray(numpy_helper.to_array(attribute.t)).astype(np.float32)
                    attribute.t.CopyFrom(numpy_helper.from_array(value))
            elif attribute.name in _TYPE_ATTRIBUTES and attribute.i == TensorProto.BFLOAT16:
                attribute.i = TensorProto.FLOAT
    del nodes[:]
    nodes.extend(widened)


def _cast(name: str) -> NodeProto:
    return helper.make_node("Cast", [name + _STORED], [name], name=name + _STORED, to=TensorProto.FLOAT)
