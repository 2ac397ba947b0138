"""Operators of quantized models: to integers and back, and products of integers."""

from __future__ import annotations

from onnx import TensorProto

from onnx_fuse.passes.graph.node import Node
from onnx_fuse.passes.graph.shapes.inference import Inference, Info, Rule
from onnx_fuse.passes.graph.shapes.products import matmul_shape


def _quantize(inference: Inference, node: Node) -> Info:
    if len(node.inputs) > 2 and node.inputs[2]:
        dtype = inference.info(node.inputs[2]).dtype
    else:
        dtype = inference.attribute(node, "output_dtype") or TensorProto.UINT8
    return Info(dtype, inference.shape(node.inputs[0]))


def _dequantize(inference: Inference, node: Node) -> Info:
    dtype = inference.attribute(node, "output_dtype") or inference.info(node.inputs[1]).dtype
    return Info(dtype, inference.shape(node.inputs[0]))


def _dynamic_quantize(inference: Inference, node: Node) -> tuple[Info, ...]:
    one = Info(TensorProto.FLOAT, ()), Info(TensorProto.UINT8, ())
    return (Info(TensorProto.UINT8, inference.shape(node.inputs[0])), *one)


def _integer_product(inference: Inference, node: Node) -> Info:
    return Info(TensorProto.INT32, matmul_shape(inference, node, *node.inputs[:2]))


def _quantized_product(inference: Inference, node: Node) -> Info:
    return Info(inference.info(node.inputs[7]).dtype, matmul_shape(inference, node, node.inputs[0], node.inputs[3]))


def _scaled_product(inference: Inference, node: Node) -> Info:
    return Info(inference.info(node.inputs[2]).dtype, matmul_shape(inference, node, *node.inputs[:2]))


def _product_with_blocks(inference: Inference, node: Node) -> Info:
    """Of weights that are packed in blocks of a few bits."""
    info, width = inference.info(node.inputs[0]), inference.attribute(node, "N")
    return Info(info.dtype, None if info.shape is None else (*info.shape[:-1], width))


RULES: dict[str, Rule] = {
    **dict.fromkeys(("QuantizeLinear", "com.microsoft.QuantizeLinear"), _quantize),
    **dict.fromkeys(("DequantizeLinear", "com.microsoft.DequantizeLinear"), _dequantize),
    "DynamicQuantizeLinear": _dynamic_quantize,
    "MatMulInteger": _integer_product,
    "QLinearMatMul": _quantized_product,
    **dict.fromkeys(("com.microsoft.DynamicQuantizeMatMul", "com.microsoft.MatMulIntegerToFloat"), _scaled_product),
    "com.microsoft.MatMulNBits": _product_with_blocks,
}
