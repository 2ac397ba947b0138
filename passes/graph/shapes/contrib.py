"""ONNX Runtime's own operators (domain com.microsoft)."""

from __future__ import annotations

from onnx import TensorProto

from onnx_fuse.passes.graph import dims as d
from onnx_fuse.passes.graph.node import Node
from onnx_fuse.passes.graph.shapes.inference import UNKNOWN, Inference, Info, Rule


def _packed_attention(inference: Inference, node: Node) -> tuple[Info, ...]:
    info, weights = (inference.info(item) for item in node.inputs[:2])
    sizes = inference.attribute(node, "qkv_hidden_sizes")
    if info.shape is None or weights.shape is None:
        return (Info(info.dtype),)
    width = sizes[2] if sizes else d.divide(weights.shape[-1], 3)
    return (Info(info.dtype, None if width is None else (*info.shape[:-1], width)),)


def _multi_head_attention(inference: Inference, node: Node) -> tuple[Info, ...]:
    query = inference.info(node.inputs[0])
    value = inference.info(node.inputs[2]) if len(node.inputs) > 2 else Info()
    if query.shape is None or value.shape is None or len(query.shape) != 3 or len(value.shape) != 3:
        return (Info(query.dtype),)
    return (Info(query.dtype, (*query.shape[:2], value.shape[2])),)


def _skip_layer_normalization(inference: Inference, node: Node) -> tuple[Info, ...]:
    info = inference.info(node.inputs[0])
    first = Info(info.dtype, info.shape)
    return (first, UNKNOWN, UNKNOWN, first)


def _embed_layer_normalization(inference: Inference, node: Node) -> tuple[Info, ...]:
    ids, table = inference.shape(node.inputs[0]), inference.info(node.inputs[2])
    if ids is None or table.shape is None or len(table.shape) != 2:
        return (Info(table.dtype),)
    rows = Info(table.dtype, (*ids, table.shape[1]))
    return (rows, Info(TensorProto.INT32, ids[:1]), rows)


def _fused_matmul(inference: Inference, node: Node) -> Info:
    shapes = [inference.shape(item) for item in node.inputs[:2]]
    dtype = inference.info(node.inputs[0]).dtype
    if any(shape is None or len(shape) < 2 for shape in shapes):
        return Info(dtype)
    if inference.attribute(node, "transBatchA") or inference.attribute(node, "transBatchB"):
        return Info(dtype)
    known = [shape for shape in shapes if shape is not None]
    rows = known[0][-1 if inference.attribute(node, "transA") else -2]
    columns = known[1][-2 if inference.attribute(node, "transB") else -1]
    batch = d.broadcast_shapes([shape[:-2] for shape in known]) or ()
    return Info(dtype, (*(inference.named(node, batch) or ()), rows, columns))


RULES: dict[str, Rule] = {
    "com.microsoft.Attention": _packed_attention,
    "com.microsoft.MultiHeadAttention": _multi_head_attention,
    "com.microsoft.SkipLayerNormalization": _skip_layer_normalization,
    "com.microsoft.SkipSimplifiedLayerNormalization": _skip_layer_normalization,
    "com.microsoft.EmbedLayerNormalization": _embed_layer_normalization,
    "com.microsoft.FusedMatMul": _fused_matmul,
}
