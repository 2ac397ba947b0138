"""Attributes of nodes as Python values."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import onnx
from onnx import AttributeProto


class Reference:
    """The value of an attribute that refers to an attribute of the enclosing function: known only when the function is called."""

    def __init__(self, name: str) -> None:
        self.name = name

    def __repr__(self) -> str:
        return f"<function attribute {self.name}>"


def attribute_value(attribute: AttributeProto) -> Any:
    """The Python value of an attribute: bytes become str, tensors stay TensorProto, a reference becomes a `Reference`."""
    if attribute.ref_attr_name:
        return Reference(attribute.ref_attr_name)
    kind = attribute.type
    if kind == AttributeProto.INT:
        return attribute.i
    if kind == AttributeProto.INTS:
        return list(attribute.ints)
    if kind == AttributeProto.FLOAT:
        return attribute.f
    if kind == AttributeProto.STRING:
        return attribute.s.decode("utf-8", "replace")
    if kind == AttributeProto.STRINGS:
        return [item.decode("utf-8", "replace") for item in attribute.strings]
    return onnx.helper.get_attribute_value(attribute)


@lru_cache(maxsize=4096)
def attribute_default(op_type: str, domain: str, opset: int, name: str) -> Any:
    """The default that the operator's schema gives for an attribute; None where there is none or the operator is unknown.

    ONNX Runtime takes some operators before the opset that they came with (LayerNormalization): they have their later defaults.
    """
    try:
        schema = onnx.defs.get_schema(op_type, opset, domain)
    except onnx.defs.SchemaError:
        try:
            schema = onnx.defs.get_schema(op_type, domain)
        except onnx.defs.SchemaError:
            return None
    attribute = schema.attributes.get(name)
    if attribute is None or not attribute.default_value.name:
        return None
    return attribute_value(attribute.default_value)
