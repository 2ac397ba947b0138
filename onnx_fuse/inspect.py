"""What is in a model file, without reading its external weights: behind `onnx-fuse inspect`."""

from __future__ import annotations

import os
from collections import Counter, deque
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from onnx import FunctionProto, GraphProto, ModelProto, NodeProto, TensorProto, TypeProto, ValueInfoProto

from onnx_fuse.passes.files.encoding import blames_text
from onnx_fuse.passes.files.external_data import byte_size, external_files, tensors
from onnx_fuse.passes.files.io import load_lazily
from onnx_fuse.passes.graph.node import Node
from onnx_fuse.passes.graph.spans import is_external
from onnx_fuse.passes.graph.subgraphs import subgraphs
from onnx_fuse.patterns.language.operator import type_name

FUSED_DOMAIN = "gr.ml.infra"


@dataclass(frozen=True)
class Value:
    """An input or output of the model; `type` is written as in `float32[batch, 7, 64]`."""

    name: str
    type: str


@dataclass(frozen=True)
class FusedNode:
    """A node of one of this project's operators.

    Attributes:
        name, operator: of the node.
        graph: "" for the main graph, else the path to the subgraph or function that holds it.
        inputs, outputs: which of the operator's inputs and outputs are present, in order.
    """

    name: str
    operator: str
    graph: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]


@dataclass(frozen=True)
class Function:
    """A model-local function: `name` is `domain::name`, with `:overload` where it has one."""

    name: str
    inputs: int
    outputs: int
    nodes: int


@dataclass(frozen=True)
class DataFile:
    """A file with external data: its size on disk, and the tensors of the model that lie in it."""

    location: str
    file_bytes: int
    tensors: int
    tensor_bytes: int


@dataclass(frozen=True)
class Inspection:
    """What a model holds.

    Attributes:
        model: its path.
        file_bytes: size of the file itself.
        ir_version, opsets, producer, metadata: as in the model; opsets by domain, "ai.onnx" for ONNX's own.
        inputs: what the caller must or may give (initializers that are listed as inputs are left out).
        outputs: what it computes.
        nodes, subgraph_nodes, function_nodes: nodes of the main graph, of If/Loop/Scan bodies, of model-local functions.
        operators: operator -> number of nodes of all graphs, most frequent first; other domains as `domain::operator`.
        fused, functions, external_data: see their classes.
        weights: number of initializers and constants.
        parameters: elements in them.
        embedded_bytes, external_bytes: bytes they take in the file and outside.
    """

    model: str
    file_bytes: int
    ir_version: int
    opsets: dict[str, int]
    producer: str
    metadata: dict[str, str]
    inputs: tuple[Value, ...]
    outputs: tuple[Value, ...]
    nodes: int
    subgraph_nodes: int
    function_nodes: int
    operators: dict[str, int]
    fused: tuple[FusedNode, ...]
    functions: tuple[Function, ...]
    external_data: tuple[DataFile, ...]
    weights: int
    parameters: int
    embedded_bytes: int
    external_bytes: int

    def to_dict(self) -> dict[str, Any]:
        """The inspection as JSON-ready data."""
        return asdict(self)


@blames_text
def inspect(path: str | os.PathLike[str]) -> Inspection:
    """Reads a model file and lists what is in it.

    Raises:
        ModelError: the file cannot be read or is no model.
    """
    path = Path(path)
    model, _file = load_lazily(path)
    operators: Counter[str] = Counter()
    fused: list[FusedNode] = []
    graph = model.graph
    subgraph_nodes = _survey(graph, "", operators, fused) - len(graph.node)
    function_nodes = sum(
        _survey(function, f"function {_function_name(function)}", operators, fused) for function in model.functions
    )
    initialized = {tensor.name for tensor in graph.initializer}
    weights = _weights(model)
    return Inspection(
        model=str(path),
        file_bytes=path.stat().st_size,
        ir_version=model.ir_version,
        opsets={opset.domain or "ai.onnx": opset.version for opset in model.opset_import},
        producer=" ".join(filter(None, (model.producer_name, model.producer_version))),
        metadata={entry.key: entry.value for entry in model.metadata_props},
        inputs=tuple(_value(value) for value in graph.input if value.name not in initialized),
        outputs=tuple(_value(value) for value in graph.output),
        nodes=len(graph.node),
        subgraph_nodes=subgraph_nodes,
        function_nodes=function_nodes,
        operators=dict(sorted(operators.items(), key=lambda item: (-item[1], item[0]))),
        fused=tuple(fused),
        functions=tuple(
            Function(_function_name(function), len(function.input), len(function.output), len(function.node))
            for function in model.functions
        ),
        external_data=tuple(
            DataFile(file.location, (path.parent / file.location).stat().st_size, file.tensors, file.bytes)
            for file in external_files(model)
        ),
        weights=len(weights),
        parameters=sum(_elements(tensor) for tensor in weights),
        embedded_bytes=sum(byte_size(t) for t in weights if not is_external(t)),
        external_bytes=sum(byte_size(t) for t in weights if is_external(t)),
    )


def type_text(proto: TypeProto) -> str:
    """A type as people write it: `float32[batch, 7]`, `float32[...]` where the rank is open, `sequence(int64[])`."""
    kind = proto.WhichOneof("value")
    if kind == "tensor_type":
        return _element_text(proto.tensor_type.elem_type) + _shape_text(proto.tensor_type)
    if kind == "sparse_tensor_type":
        return f"sparse {_element_text(proto.sparse_tensor_type.elem_type)}{_shape_text(proto.sparse_tensor_type)}"
    if kind == "sequence_type":
        return f"sequence({type_text(proto.sequence_type.elem_type)})"
    if kind == "optional_type":
        return f"optional({type_text(proto.optional_type.elem_type)})"
    if kind == "map_type":
        return f"map({_element_text(proto.map_type.key_type)}, {type_text(proto.map_type.value_type)})"
    return "unknown"


def _element_text(elem_type: int) -> str:
    try:
        name: str = type_name(elem_type).lower()
    except ValueError:
        return f"type {elem_type}"
    return {"float": "float32", "double": "float64", "undefined": "unknown"}.get(name, name)


def _shape_text(tensor_type: Any) -> str:
    if not tensor_type.HasField("shape"):
        return "[...]"
    dims = (str(dim.dim_value) if dim.HasField("dim_value") else dim.dim_param or "?" for dim in tensor_type.shape.dim)
    return f"[{', '.join(dims)}]"


def _value(value: ValueInfoProto) -> Value:
    return Value(value.name, type_text(value.type))


def _survey(graph: GraphProto | FunctionProto, path: str, operators: Counter[str], fused: list[FusedNode]) -> int:
    """Counts the nodes of a graph and of its subgraphs by operator, and notes the fused ones."""
    total = 0
    pending: deque[tuple[GraphProto | FunctionProto, str]] = deque([(graph, path)])
    while pending:
        graph, path = pending.popleft()
        total += len(graph.node)
        for position, proto in enumerate(graph.node):
            domain = "" if proto.domain == "ai.onnx" else proto.domain
            operators[f"{domain}::{proto.op_type}" if domain else proto.op_type] += 1
            if domain == FUSED_DOMAIN:
                fused.append(_fused_node(proto, position, path))
            for name, inner in subgraphs(proto):
                pending.append((inner, f"{path}/{Node(proto, position).name}/{name}".lstrip("/")))
    return total


def _fused_node(proto: NodeProto, position: int, path: str) -> FusedNode:
    node = Node(proto, position)

    def listed(attribute: str) -> tuple[str, ...]:
        text = node.attribute(attribute)
        return tuple(text.split(",")) if isinstance(text, str) and text else ()

    return FusedNode(node.name, node.op_type, path, listed("inputs"), listed("outputs"))


def _function_name(function: FunctionProto) -> str:
    return f"{function.domain}::{function.name}" + (f":{function.overload}" if function.overload else "")


def _weights(model: ModelProto) -> list[TensorProto]:
    return [tensor for tensor, _ in tensors(model)]


def _elements(tensor: TensorProto) -> int:
    count = 1
    for dim in tensor.dims:
        count *= dim
    return count
