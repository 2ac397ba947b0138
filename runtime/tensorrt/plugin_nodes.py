"""Nodes that are meant for a plugin, and the plugin creators that are registered for them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from onnx import AttributeProto, ModelProto, NodeProto

from onnx_fuse.errors import VerificationError
from onnx_fuse.passes.graph.inlining import nodes_of
from onnx_fuse.runtime.tensorrt import binding

_FOR_TENSORRT = ("plugin_namespace", "plugin_version")
_FIELD_TYPES = {
    AttributeProto.INT: ("INT32", "INT64"),
    AttributeProto.INTS: ("INT32", "INT64"),
    AttributeProto.FLOAT: ("FLOAT32", "FLOAT64"),
    AttributeProto.FLOATS: ("FLOAT32", "FLOAT64"),
    AttributeProto.STRING: ("CHAR",),
}


def fused_nodes(model: ModelProto) -> list[NodeProto]:
    """The nodes that are meant for a plugin, those of functions too."""
    nodes = [*model.graph.node, *(node for function in model.functions for node in function.node)]
    return [node for node in nodes_of(nodes) if text_of(node, "plugin_namespace")]


def is_plugin(node: NodeProto) -> bool:
    """Whether TensorRT makes a plugin of the node even where the model has a body, or TensorRT an importer, of that name.

    It does so when `plugin_namespace` leads to a registered creator. The domain leads to one only where there is neither.
    """
    named = creator(node, text_of(node, "plugin_namespace"))
    if named is not None or creator(node, node.domain) is not None:
        binding.require_plugin_nodes()
    return named is not None


def creator(node: NodeProto, namespace: str) -> Any:
    """The plugin creator that is registered for a node in a namespace; None where there is none, or no namespace."""
    if not namespace:
        return None
    version = text_of(node, "plugin_version") or "1"
    return binding.module().get_plugin_registry().get_creator(node.op_type, version, namespace)


def text_of(node: NodeProto, name: str) -> str:
    """The text in an attribute, "" where the node does not carry it."""
    return next((attribute.s.decode() for attribute in node.attribute if attribute.name == name), "")


def operators_without_plugin(model: ModelProto) -> tuple[str, ...]:
    """`domain::operator` of the nodes that are meant for a plugin for which none is registered."""
    return tuple(sorted({f"{node.domain}::{node.op_type}" for node in fused_nodes(model) if not is_plugin(node)}))


def without_plugin(proto: ModelProto, libraries: Sequence[Path]) -> dict[str, tuple[str, ...]]:
    """Reason -> fused nodes for which no plugin is registered."""
    found: dict[str, tuple[str, ...]] = {}
    for node in fused_nodes(proto):
        if not is_plugin(node):
            wanted = (
                f"{text_of(node, 'plugin_namespace')}::{node.op_type} version {text_of(node, 'plugin_version') or '1'}"
            )
            reason = f"no loaded library has a plugin {wanted}" if libraries else "no plugin library is loaded"
            found[reason] = (*found.get(reason, ()), node.name or node.output[0])
    return found


def check_fields(proto: ModelProto) -> None:
    """Holds each fused node's attributes against the fields that its plugin takes: TensorRT drops what is not among them.

    Raises:
        VerificationError: an attribute is no field, or of another type.
    """
    for node in fused_nodes(proto):
        maker = creator(node, text_of(node, "plugin_namespace"))
        if maker is None:
            continue
        fields = {field.name: field.type.name for field in maker.field_names}
        for attribute in node.attribute:
            kinds = _FIELD_TYPES.get(attribute.type)
            if attribute.name in _FOR_TENSORRT or (kinds and fields.get(attribute.name) in (*kinds, "UNKNOWN")):
                continue
            if attribute.name in fields and kinds is None:
                continue  # a tensor or shape: the creator says what it makes of it
            has = f"is {fields[attribute.name]} there" if attribute.name in fields else "is no field of the plugin"
            kind = AttributeProto.AttributeType.Name(attribute.type)
            raise VerificationError(
                f"Node {node.name or node.output[0]} ({node.op_type}): attribute {attribute.name} ({kind}) {has}, so TensorRT "
                "would build something else than the model says.",
                "Fuse the model and build the plugin library with the same version of onnx-fuse, or build without plugins.",
            )
