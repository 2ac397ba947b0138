"""`--attention native`: softmax attention of a large hidden size as ONNX's `Attention`, which TensorRT has a fused layer for.

It starts from what the fusion found: the fused node, in whatever form the exporter wrote it, becomes an `Attention` node with its
rim in ordinary operators. TensorRT's parser puts the root of the scale on query and key before their product, where its fused
layer wants it, so the scale needs no node of its own.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from onnx import ModelProto, NodeProto, TensorProto, helper

from onnx_fuse.passes.graph import inlining
from onnx_fuse.passes.graph.index import Graph
from onnx_fuse.passes.graph.onnx_inference import inferred_types
from onnx_fuse.passes.opset_conversion import opset_of
from onnx_fuse.passes.report import Report
from onnx_fuse.passes.view.view import View
from onnx_fuse.patterns.language.body import Body
from onnx_fuse.patterns.language.operator import DOMAIN, FusedOp

SINCE = 23
"""The opset that brought Attention."""
MOST_HIDDEN = 512
"""Hidden size up to which the plugin can run attention with its rim in one launch; beyond it, TensorRT's own layer is taken."""

_OPERATOR = "FusedAttentionLayerNorm"
_ABSORBS = 1e9  # a score added to a number as far from 0 as this is lost in float32
_LOWEST = -1.7e38
# Half of float32's lowest number: ONNX Runtime takes the lowest for "masked out", and makes rows of it 0.


def to_native(model: ModelProto, report: Report) -> ModelProto:
    """The model with `Attention` in place of fused attention of a large hidden size; the report says of which, and why not."""
    nodes = [node for node in model.graph.node if (node.domain, node.op_type) == (DOMAIN, _OPERATOR)]
    if not nodes:
        report.warnings.append("native attention changes nothing: no softmax attention fused")
        return model
    view = _view(model)
    chosen: dict[str, NodeProto] = {}
    small = 0
    for node in nodes:
        hidden = _hidden_size(node, view)
        if hidden is not None and hidden <= MOST_HIDDEN:
            small += 1
            continue
        problem = _why_not(node, view, opset_of(model))
        if problem is None:
            chosen[node.name] = node
        else:
            report.warnings.append(f"{node.name} stays {_OPERATOR}: {problem}")
    if not chosen:
        if small:
            report.warnings.append(
                f"native attention changes nothing: {small} of {len(nodes)} nodes stay {_OPERATOR}, as their hidden size is "
                f"{MOST_HIDDEN} or less"
            )
        return model
    for number, node in enumerate(chosen.values()):
        _give_body(model, node, view, number)
    kept = {(item.domain, item.name) for item in model.functions}
    model = inlining.inline_nodes(model, lambda node: node.name in chosen)
    still_called = {(node.domain, node.op_type) for node in model.graph.node}
    inlining.drop_bodies(model, [key for key in kept if key[1].startswith(_OPERATOR) and key not in still_called])
    made = {
        node.name.partition("/Attention_")[0]: node.name
        for node in model.graph.node
        if node.op_type == "Attention" and "/Attention_" in node.name
    }
    report.matches = [
        replace(item, operator="Attention", node=made[item.node]) if item.node in chosen else item
        for item in report.matches
    ]
    return model


def _view(model: ModelProto) -> View:
    graph = Graph(model.graph, model)
    return View(graph, inferred_types(graph))


def _attributes(node: NodeProto) -> dict[str, Any]:
    values = {item.name: helper.get_attribute_value(item) for item in node.attribute}
    return {name: value.decode() if isinstance(value, bytes) else value for name, value in values.items()}


def _inputs(node: NodeProto) -> dict[str, str]:
    return dict(zip(_attributes(node)["inputs"].split(","), node.input, strict=True))


def _hidden_size(node: NodeProto, view: View) -> int | None:
    attributes = _attributes(node)
    size = (view.shape(node.input[0]) or (None,))[-1]
    if not isinstance(size, int):
        return None
    return size * attributes["num_heads"] if attributes["layout"] == "BHSD" else size


def _why_not(node: NodeProto, view: View, opset: int) -> str | None:
    """Why ONNX's Attention does not compute the same; None where it does."""
    attributes, inputs = _attributes(node), _inputs(node)
    if opset < SINCE:
        return f"Attention is of opset {SINCE}, and the model, of opset {opset}, could not be converted"
    if attributes["causal"] == "lower_right":
        return "its causal mask is aligned at the last row, that of Attention at the first"
    if "mask" in inputs and "attention_bias" in inputs:
        return "it has both a mask and a bias, Attention takes one"
    if attributes["masked_row"] == "zero" or not {"mask", "attention_bias"} & inputs.keys():
        return None
    if view.dtype(node.output[0]) != TensorProto.FLOAT:
        return (
            "where its mask leaves out a whole row, Attention in 16 bits gives something else; fuse the float32 model"
        )
    if "mask" in inputs and not (math.isfinite(attributes["mask_value"]) and attributes["mask_value"] < -_ABSORBS):
        return f"its mask puts {attributes['mask_value']:g} in place of scores, which Attention does not"
    return None


def _give_body(model: ModelProto, node: NodeProto, view: View, number: int) -> None:
    """Makes the node call a function of its own, with Attention in it."""
    attributes, inputs = _attributes(node), _inputs(node)
    rank = len(view.shape(node.input[0]) or ())

    def body(op: Body, **given: Any) -> tuple[Any, Any]:
        return _body(op, attributes, rank, given)

    names = ("query", "key", "value", "attention_bias", "mask", "out_weight", "out_bias", "residual", "gamma", "beta")
    operator = FusedOp(f"{_OPERATOR}__native_{number}", inputs=names, body=body, outputs=("output", "residual_sum"))
    opsets = {entry.domain: entry.version for entry in model.opset_import}
    outputs = attributes["outputs"].split(",")
    model.functions.append(operator.make_function(list(inputs), outputs, {}, opsets, view.dtype(node.output[0])))
    node.op_type, node.overload = operator.name, ""
    del node.attribute[:]


def _body(op: Body, attributes: Mapping[str, Any], rank: int, given: Mapping[str, Any]) -> tuple[Any, Any]:
    query = given["query"]
    settings: dict[str, Any] = {"scale": attributes["scale"]}
    if attributes["causal"] != "none":
        settings["is_causal"] = 1
    if rank == 3:
        settings |= {"q_num_heads": attributes["num_heads"], "kv_num_heads": attributes["num_key_value_heads"]}
    mask = _mask(op, attributes, rank, given)
    operands = [query, given["key"], given["value"], *([] if mask is None else [mask])]
    context = op.Attention(*operands, **settings)
    if rank == 4:
        turned = op.Transpose(context, perm=[0, 2, 1, 3])
        width = op.Mul(op.dims(turned, 2, 3), op.dims(turned, 3, 4))
        context = op.Reshape(turned, op.Concat(op.dims(turned, 0, 2), width, axis=0))  # no -1: a batch may be empty
    total = context if given["out_weight"] is None else op.MatMul(context, given["out_weight"])
    for name in ("out_bias", "residual"):
        if given[name] is not None:
            total = op.Add(total, op.like(given[name], query))
    return _normed(op, attributes, total, given, query), total


def _mask(op: Body, attributes: Mapping[str, Any], rank: int, given: Mapping[str, Any]) -> Any:
    """The mask with as many rows as the query has, which ONNX Runtime asks for."""
    mask, bias, query = given["mask"], given["attention_bias"], given["query"]
    if mask is None and bias is None:
        return None
    if mask is not None and attributes["masked_row"] != "zero":
        bias = op.Where(mask, op.number(0.0), op.number(attributes["mask_value"]))
    if bias is not None:
        mask = op.like(bias, query)
        if attributes["masked_row"] != "zero":
            mask = op.Max(mask, op.number(_LOWEST))
    rows = op.Slice(op.Shape(query), op.ints(rank - 2), op.ints(rank - 1), op.ints(0))
    return op.Expand(mask, op.Concat(op.ints(1, 1), rows, op.ints(1), axis=0))


def _normed(op: Body, attributes: Mapping[str, Any], total: Any, given: Mapping[str, Any], query: str) -> Any:
    norm, gamma, epsilon = attributes["norm"], given["gamma"], attributes["epsilon"]
    if norm == "none":
        return op.Identity(total)
    if gamma is None:
        return op.like(op.normalise(op.float32(total), norm, None, None, op.number(epsilon)), query)
    operands = [total, op.like(gamma, query)]
    if norm == "rms":
        return op.RMSNormalization(*operands, axis=-1, epsilon=epsilon)
    if given["beta"] is not None:
        operands.append(op.like(given["beta"], query))
    return op.LayerNormalization(*operands, axis=-1, epsilon=epsilon)
