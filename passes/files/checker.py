"""onnx's own checker, run without reading weights, its findings as one sentence."""

from __future__ import annotations

import os
from collections import Counter

import onnx
from google.protobuf.message import Message
from onnx import AttributeProto, ModelProto, NodeProto, SparseTensorProto, TensorProto

from onnx_fuse.errors import ModelError
from onnx_fuse.passes.files.external_data import byte_size, tensors
from onnx_fuse.passes.graph.confined import Exceeded
from onnx_fuse.passes.graph.onnx_inference import in_bounds
from onnx_fuse.passes.graph.spans import span_of

# Embedded weights above this size are not handed to onnx's checker, which would copy them twice.
_LARGE_TENSOR = 1 << 20
_SPARSE_SINCE = 11  # opset from which a Constant may have a sparse value
# What ONNX Runtime's optimisers write in ONNX's domain although it has no such operator before this opset, or at all.
_RUNTIME_OWN = {"LayerNormalization": 17, "SimplifiedLayerNormalization": 1 << 30}


def check(model: ModelProto, path: str | os.PathLike[str] = "", *, full: bool = False) -> None:
    """Runs onnx's checker without reading weights.

    Nodes of domains that onnx does not know are taken as they are.

    Args:
        model: the model.
        path: what to call it in an error.
        full: infer and compare shapes too.

    Raises:
        ModelError: in one sentence, with the node where the checker names it.
    """
    name = str(path) or "The model"
    try:
        checkable = _checkable(model, name)
        in_bounds(lambda: onnx.checker.check_model(checkable, full_check=full), model, None if full else True)
    except Exceeded as error:
        raise ModelError(
            f"The shapes in {name} cannot be checked: {error}",
            "Let functions call each other less often, and give values fewer axes.",
        ) from error
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError, ValueError, RuntimeError) as error:
        raise ModelError(
            f"{name} is not valid ONNX: {one_sentence(error)}", "Export it again, or repair what the message names."
        ) from error


def one_sentence(error: BaseException) -> str:
    """The message of onnx's checker in one line, with the node it is about."""
    message, _, context = str(error).partition("==> Context:")
    sentence = " ".join(message.split()).rstrip(".")
    node = " ".join(context.split()).removeprefix("Bad node spec for node. ").split(" ==> Context:")[0]
    return f"{sentence} (node {node})." if node else f"{sentence}."


def _checkable(model: ModelProto, name: str) -> bytes:
    """The model for the checker, in which nothing refers to external data.

    The checker would look for it from the current folder, and it would copy embedded weights twice. So external and large
    initializers of the main graph become inputs of the same type. Operators that ONNX Runtime alone has are put in its domain.
    """
    graph = model.graph
    set_aside = {
        tensor.name: tensor
        for tensor in graph.initializer
        if _check_size(tensor, name) > _LARGE_TENSOR or tensor.data_location == TensorProto.EXTERNAL
    }
    stripped = model
    if set_aside:
        twice = [held for held, count in Counter(tensor.name for tensor in graph.initializer).items() if count > 1]
        if twice:  # the checker would not see it
            raise ModelError(f"{name} has two initializers called {twice[0]!r}.", "Export the model again.")
        stripped = ModelProto()
        _copy_fields(model, stripped, {"graph"})
        _copy_fields(graph, stripped.graph, {"initializer"})
        stripped.graph.initializer.extend(tensor for tensor in graph.initializer if tensor.name not in set_aside)
        declared = {value.name for value in graph.input}
        for tensor in set_aside.values():
            if tensor.name not in declared:
                value = onnx.helper.make_tensor_value_info(tensor.name, tensor.data_type, list(tensor.dims))
                stripped.graph.input.append(value)
    data: bytes = stripped.SerializeToString()
    # Looking for the words costs nothing beside walking all nodes and their attributes.
    foreign = _foreign(model) if any(name.encode() in data for name in _RUNTIME_OWN) else []
    external = b"location" in data
    if not foreign and not external:
        return data
    if stripped is model:
        stripped = ModelProto()
        stripped.CopyFrom(model)
    for index in foreign:
        stripped.graph.node[index].domain = "com.microsoft"
    if foreign and all(entry.domain != "com.microsoft" for entry in stripped.opset_import):
        stripped.opset_import.add(domain="com.microsoft", version=1)
    imports = [*model.opset_import, *(entry for function in model.functions for entry in function.opset_import)]
    sparse = min((entry.version for entry in imports if entry.domain in ("", "ai.onnx")), default=0) >= _SPARSE_SINCE
    for tensor, node in [*tensors(stripped)] if external else ():
        if tensor.data_location != TensorProto.EXTERNAL:
            continue
        # Rare: weights of a subgraph or of a Constant node. Zeros of the same size stand for them.
        if node is not None and sparse and span_of(tensor) is not None:
            _without_numbers(node)
            continue
        tensor.raw_data = bytes(byte_size(tensor))
        tensor.ClearField("external_data")
        tensor.ClearField("data_location")
    return bytes(stripped.SerializeToString())


def _without_numbers(constant: NodeProto) -> None:
    """Makes the value of a Constant node one of the same type and shape that is zero everywhere, which takes no space."""
    attribute = next(item for item in constant.attribute if item.name == "value")
    sparse = SparseTensorProto(values=TensorProto(data_type=attribute.t.data_type, dims=[0]), dims=attribute.t.dims)
    attribute.CopyFrom(AttributeProto(name="sparse_value", type=AttributeProto.SPARSE_TENSOR, sparse_tensor=sparse))


def _foreign(model: ModelProto) -> list[int]:
    """Positions of the nodes of ONNX Runtime's own operators that pass for ONNX's."""
    opset = max((entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx")), default=0)
    return [
        index
        for index, node in enumerate(model.graph.node)
        if node.op_type in _RUNTIME_OWN and node.domain == "" and opset < _RUNTIME_OWN[node.op_type]
    ]


def _check_size(tensor: TensorProto, name: str) -> int:
    """The bytes of a tensor that is kept as raw bytes; 0 for others."""
    found = len(tensor.raw_data)
    if tensor.data_location != TensorProto.EXTERNAL and (found or tensor.HasField("raw_data")):
        needed = byte_size(tensor)
        if found != needed and (needed or 0 in tensor.dims):  # 0: strings, and types that are not known
            cause = f"Initializer {tensor.name!r} of {name} has {found} bytes, but its shape and type need {needed}."
            raise ModelError(cause, "Export the model again.")
    return found


def _copy_fields(source: Message, target: Message, skip: set[str]) -> None:
    for field, value in source.ListFields():
        if field.name in skip:
            continue
        if isinstance(value, (bool, int, float, str, bytes)):
            setattr(target, field.name, value)
        else:
            getattr(target, field.name).MergeFrom(value)
