"""The bodies of our own operators in TensorRT's parsed network: every node with its own attributes and its own form."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import pytest
from onnx import ModelProto, helper

import onnx_fuse
from onnx_fuse.errors import UsageError
from onnx_fuse.runtime import tensorrt
from onnx_fuse.runtime.parse import ParsedNetwork, parse_network
from tests import helpers
from tests.helpers import Array

try:
    trt = tensorrt.module()
except UsageError as missing:
    pytest.skip(str(missing), allow_module_level=True)

RANDOM = np.random.default_rng(11)
WEIGHTS: dict[str, Array] = {
    "heads": np.array([0, 0, 2, 4]),
    "flat": np.array([0, 0, 8]),
    "weight": (0.4 * RANDOM.standard_normal((8, 8))).astype(np.float32),
    "bias": (0.4 * RANDOM.standard_normal(8)).astype(np.float32),
    "gamma": (1 + 0.2 * RANDOM.standard_normal(8)).astype(np.float32),
    "beta": (0.2 * RANDOM.standard_normal(8)).astype(np.float32),
    "words": RANDOM.standard_normal((11, 8)).astype(np.float32),
    "positions": RANDOM.standard_normal((9, 8)).astype(np.float32),
}


def attention(number: int, x: str, *, scale: float, epsilon: float, masked: bool = False, norm: bool = True) -> str:
    """A block that reads `x` and makes `y<number>`."""
    mask = "Add(t_, mask)" if masked else "Identity(t_)"
    end = f"LayerNormalization <axis = -1, epsilon = {epsilon}> (r_, gamma, beta)" if norm else "Identity(r_)"
    text = f"""
        c_ = Constant <value_float = {scale}> ()
        q4_ = Reshape({x}, heads)  q_ = Transpose <perm = [0, 2, 1, 3]> (q4_)
        k4_ = Reshape({x}, heads)  k_ = Transpose <perm = [0, 2, 3, 1]> (k4_)
        v4_ = Reshape({x}, heads)  v_ = Transpose <perm = [0, 2, 1, 3]> (v4_)
        s_ = MatMul(q_, k_)  t_ = Mul(s_, c_)  u_ = {mask}  p_ = Softmax <axis = -1> (u_)
        z_ = MatMul(p_, v_)  m4_ = Transpose <perm = [0, 2, 1, 3]> (z_)  m_ = Reshape(m4_, flat)
        o_ = MatMul(m_, weight)  b_ = Add(o_, bias)  r_ = Add(b_, {x})
        y_ = {end}"""
    return re.sub(r"\b([a-z]4?)_", rf"\g<1>{number}", text)


def model(body: str, inputs: str, output: str, opset: int = 17) -> ModelProto:
    read = set(re.findall(r"\w+", body))
    weights = {name: array for name, array in WEIGHTS.items() if name in read}
    made = helpers.model(f"({inputs}) => (float[B,S,8] {output}) {{ {body} }}", opset=opset, weights=weights)
    for node in made.graph.node:
        node.name = f"{node.op_type}_{node.output[0]}"
    return made


def fused(original: ModelProto, **expected: int) -> ModelProto:
    """The fused model, proven equal, with these counts of operators."""
    result = onnx_fuse.fuse(original, fusions=list(expected))
    assert result.report.fused == expected
    made: ModelProto = result.model
    return made


def parsed(made: ModelProto) -> ParsedNetwork:
    network = parse_network(made)
    assert network.result.accepted, network.result.errors
    assert network.result.plugins == ()
    return network


def numbers_of(network: ParsedNetwork) -> dict[str, list[float]]:
    """Fused node -> the numbers that its layers read, in order."""
    found: dict[str, list[float]] = {}
    layers = [network.network.get_layer(index) for index in range(network.network.num_layers)]
    constants: dict[str, float] = {}
    for layer in layers:
        if layer.type == trt.LayerType.CONSTANT:
            layer.__class__ = trt.IConstantLayer
            weights = np.array(layer.weights)
            if weights.size == 1 and weights.dtype == np.float32:
                constants[layer.get_output(0).name] = float(weights.reshape(-1)[0])
    for name in constants:
        found.setdefault(name, []).append(constants[name])
    return found


def attributes(made: ModelProto, operator: str) -> list[dict[str, Any]]:
    nodes = [node for node in made.graph.node if node.op_type == operator]
    return [{item.name: helper.get_attribute_value(item) for item in node.attribute} for node in nodes]
