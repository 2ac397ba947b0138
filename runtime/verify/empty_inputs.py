"""Whether ONNX Runtime can be given inputs without elements: with some operators it does not fail on them but ends the process."""

from __future__ import annotations

from collections.abc import Iterable

from onnx import AttributeProto, FunctionProto, GraphProto, ModelProto, NodeProto, TensorProto

from onnx_fuse.patterns.language.operator import DOMAIN

_NEEDS_SOMETHING = frozenset({"Einsum", "AveragePool", "Attention"})
_INTEGER, _OTHER = "integer", "other"
_GIVES_INTEGERS = frozenset({"Shape", "Size", "NonZero", "ArgMax", "ArgMin"})
# fmt: off
_GIVES_OTHERS = frozenset({
    "Equal", "Greater", "Less", "GreaterOrEqual", "LessOrEqual", "Not", "And", "Or", "Xor", "IsNaN", "IsInf",
    "DequantizeLinear", "RandomNormal", "RandomUniform",
})
# fmt: on
# All other operators give what their first input holds, or the one that is named here.
_TYPED_BY = {"Where": 1, "OneHot": 2, "CastLike": 1}
_INTEGERS = frozenset(
    getattr(TensorProto, name) for name in ["INT8", "INT16", "INT32", "INT64", "UINT8", "UINT16", "UINT32", "UINT64"]
)


def may_be_empty(model: ModelProto) -> bool:
    """Whether nothing in the model is known to end the process, or to fail, on empty inputs.

    Einsum ends it, and so does an integer divided by a size that is 0; a division whose type or divisor is not known counts.
    AveragePool takes no empty axis, and ONNX's Attention no empty batch (docs/operators.md).
    """
    return _is_safe(model.graph, {}, set()) and all(_is_safe(function, {}, set()) for function in model.functions)


def _is_safe(graph: GraphProto | FunctionProto, types: dict[str, str], constant: set[str]) -> bool:
    """`types` and `constant`: what is known of the values around a subgraph."""
    pending: list[tuple[GraphProto | FunctionProto, dict[str, str], set[str]]] = [(graph, types, constant)]
    while pending:
        graph, types, constant = pending.pop()
        if isinstance(graph, GraphProto):
            for value in graph.input:
                types[value.name] = _kind(value.type.tensor_type.elem_type)
            for tensor in graph.initializer:
                types[tensor.name] = _kind(tensor.data_type)
                constant.add(tensor.name)
        for node in graph.node:
            if node.op_type in _NEEDS_SOMETHING:
                return False
            whole = node.op_type in ("Div", "Mod") and types.get(node.input[0], _INTEGER) == _INTEGER
            if whole and node.input[1] not in constant:
                return False
            _follow(node, types, constant)
            for inner in _subgraphs(node.attribute):
                pending.append((inner, dict(types), set(constant)))
    return True


def _follow(node: NodeProto, types: dict[str, str], constant: set[str]) -> None:
    kind = _type_of(node, types)
    fixed = node.op_type == "Constant" or (bool(node.input) and all(name in constant for name in node.input if name))
    for output in node.output:
        if kind is not None:
            types[output] = kind
        if fixed:
            constant.add(output)


def _type_of(node: NodeProto, types: dict[str, str]) -> str | None:
    if node.op_type in _GIVES_INTEGERS:
        return _INTEGER
    if node.op_type in _GIVES_OTHERS or node.domain == DOMAIN:
        return _OTHER
    attributes = {item.name: item for item in node.attribute}
    if node.op_type == "Cast" and "to" in attributes:
        return _kind(attributes["to"].i)
    if node.op_type in ("Constant", "ConstantOfShape"):
        if "value" in attributes:
            return _kind(attributes["value"].t.data_type)
        return _INTEGER if attributes.keys() & {"value_int", "value_ints"} else _OTHER
    if node.domain not in ("", "ai.onnx") or any(item.type == AttributeProto.GRAPH for item in node.attribute):
        return None
    place = _TYPED_BY.get(node.op_type, 0)
    return types.get(node.input[place]) if len(node.input) > place else None


def _kind(elem_type: int) -> str:
    return _INTEGER if elem_type in _INTEGERS or not elem_type else _OTHER


def _subgraphs(attributes: Iterable[AttributeProto]) -> Iterable[GraphProto]:
    for attribute in attributes:
        if attribute.type == AttributeProto.GRAPH:
            yield attribute.g
        elif attribute.type == AttributeProto.GRAPHS:
            yield from attribute.graphs
