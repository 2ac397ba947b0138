"""ONNX's own shape inference over a model, without loading or copying its weights, in memory and time that are bounded.

`infer_shapes` here is the one way from this package into ONNX's, and `in_bounds` the way into what else of ONNX infers shapes.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TypeVar

import onnx
from onnx import GraphProto, ModelProto, TensorProto, TypeProto

from onnx_fuse.passes.graph.axes import has_few_axes
from onnx_fuse.passes.graph.confined import Exceeded, confined
from onnx_fuse.passes.graph.index import Graph
from onnx_fuse.passes.graph.inlining import MOST_INLINED, count_inlined
from onnx_fuse.passes.graph.node import ONNX_DOMAINS
from onnx_fuse.passes.graph.subgraphs import subgraphs

_SMALL = 1024
"""Elements up to which a weight keeps its data: shapes and axes, whose contents shape inference reads."""
_WHOLE = (TensorProto.INT32, TensorProto.INT64)
# For work in a child: the memory beside that for copies of the model, those copies, how long, and how much may come of it.
_MEMORY = 256 << 20
_COPIES = 8
_SECONDS = 5.0
_MADE = 16 << 20

T = TypeVar("T")


def inferred_types(graph: Graph) -> Callable[[], dict[str, onnx.TypeProto]] | None:
    """A function that runs ONNX's shape inference on the main graph, without its weights; None for other graphs."""
    if graph.path or not isinstance(graph.proto, GraphProto):
        return None

    def infer() -> dict[str, onnx.TypeProto]:
        light = without_weights(graph.model)
        try:
            inferred = bounded_inference(light)
        except Exception:
            # Shapes are a help, not a need: what needs one it cannot have refuses with a sentence.
            return {}
        values = [*inferred.graph.value_info, *inferred.graph.output]
        return {value.name: value.type for value in values}

    return infer


def infer_shapes(
    model: ModelProto, *, check_type: bool = False, strict_mode: bool = False, data_prop: bool = False
) -> ModelProto:
    """ONNX's `infer_shapes`, in bounds.

    Raises:
        Exceeded: functions call functions so often that going through them would not end, or it takes too much memory or time.
        Exception: what ONNX raises on a malformed model.
    """

    def infer(data: ModelProto | bytes) -> ModelProto:
        return onnx.shape_inference.infer_shapes(data, check_type, strict_mode, data_prop)

    if is_bounded(model):
        return infer(model)

    def written() -> bytes:
        made: bytes = infer(model).SerializeToString()
        if len(made) > _MADE + 2 * model.ByteSize():
            raise Exceeded("the shapes of its values are too long.")
        return made

    return ModelProto.FromString(in_bounds(written, model, False))


def is_bounded(model: ModelProto) -> bool:
    """Whether it follows from sizes that inferring the model's shapes takes little more memory than the model.

    Raises:
        Exceeded: functions call functions so often that going through them would not end.
    """
    if model.functions and count_inlined(model) > MOST_INLINED:
        raise Exceeded("its functions call each other too often.")
    return has_few_axes(model)


def in_bounds(work: Callable[[], T], model: ModelProto, bounded: bool | None = None) -> T:
    """Does something that infers the shapes of a model: here if they are bounded, else in a child process with limits.

    Raises:
        Exceeded: as for `infer_shapes`.
        Exception: what the work raises.
    """
    if is_bounded(model) if bounded is None else bounded:
        return work()
    return confined(work, memory=_MEMORY + _COPIES * model.ByteSize(), seconds=_SECONDS)


def bounded_inference(model: ModelProto) -> ModelProto:
    """The model with the types that ONNX infers, in memory that its size bounds.

    ONNX follows the elements of vectors of whole numbers, however long they are: a small file can ask for any amount. It does so
    here only if all such vectors are known to be short. It also goes through a function again for each call.

    Raises:
        Exceeded: as for `infer_shapes`.
        Exception: what ONNX raises on a malformed model.
    """
    plain = infer_shapes(model)
    return infer_shapes(model, data_prop=True) if has_short_vectors(plain) else plain


def has_short_vectors(inferred: ModelProto) -> bool:
    """Whether ONNX can follow the elements of all vectors of whole numbers: none is long, or of unknown length."""
    if inferred.functions:
        return False  # what is inside of them is not written down
    pending = [inferred.graph]
    while pending:
        graph = pending.pop()
        types = {value.name: value.type.tensor_type for value in (*graph.input, *graph.value_info, *graph.output)}
        for node in graph.node:
            pending += [inner for _, inner in subgraphs(node)]
            for name in node.output if node.domain in ONNX_DOMAINS else ():
                kind = types.get(name)
                if name and (kind is None or kind.elem_type in _WHOLE) and not _is_short(kind):
                    return False
    return True


def _is_short(kind: TypeProto.Tensor | None) -> bool:
    if kind is None or not kind.HasField("shape"):
        return False
    dims = kind.shape.dim
    return len(dims) != 1 or (dims[0].HasField("dim_value") and dims[0].dim_value <= _SMALL)


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
