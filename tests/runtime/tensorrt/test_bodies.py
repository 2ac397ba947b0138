"""The bodies of our own operators in TensorRT's parsed network: every node with its own attributes and its own form."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import ModelProto

import onnx_fuse
from onnx_fuse.errors import UsageError
from onnx_fuse.runtime import EngineConfig, build, read_shapes
from onnx_fuse.runtime.tensorrt import binding
from onnx_fuse.runtime.tensorrt.parse import ParsedNetwork, parse, parse_network
from tests import helpers
from tests.helpers import Array
from tests.patterns.test_bodies import CASES, node_and_body

try:
    trt = binding.module()
except UsageError as missing:
    pytest.skip(str(missing), allow_module_level=True)

OPSETS = (13, 17, 23)
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


def numbers(network: ParsedNetwork, made: ModelProto) -> dict[str, set[float]]:
    """Fused node -> the single float32 numbers that its layers read, and the epsilons of its norms."""
    layers = [network.network.get_layer(index) for index in range(network.network.num_layers)]
    producers = {layer.get_output(index).name: layer for layer in layers for index in range(layer.num_outputs)}

    def number(tensor: str) -> float | None:
        layer = producers.get(tensor)
        if layer is None:
            return None
        if layer.type == trt.LayerType.SHUFFLE and layer.name.startswith("ONNXTRT_Broadcast"):
            return number(layer.get_input(0).name)
        if layer.type != trt.LayerType.CONSTANT:
            return None
        layer.__class__ = trt.IConstantLayer
        weights = np.array(layer.weights)
        return float(weights.reshape(-1)[0]) if weights.size == 1 and weights.dtype == np.float32 else None

    found: dict[str, set[float]] = {}
    for node in made.graph.node:
        if node.domain != "gr.ml.infra":
            continue
        own = [layer for layer in layers if layer.name.startswith(f"{node.name}/")]
        assert own, node.name
        inputs = [layer.get_input(index) for layer in own for index in range(layer.num_inputs)]
        read = {number(tensor.name) for tensor in inputs if tensor is not None}
        found[node.name] = {value for value in read if value is not None}
        for layer in own:
            if layer.type == trt.LayerType.NORMALIZATION:
                layer.__class__ = trt.INormalizationLayer
                found[node.name].add(layer.epsilon)
    return found


X = "float[B,S,8] x"


def test_each_attention_has_its_own_scale_and_epsilon() -> None:
    body = attention(1, "x", scale=0.25, epsilon=0.125) + attention(2, "y1", scale=0.5, epsilon=0.0625)
    made = fused(model(body, X, "y2"), FusedAttentionLayerNorm=2)
    assert len(made.functions) == 1
    network = parsed(made)
    assert network.result.inlined == {"gr.ml.infra::FusedAttentionLayerNorm": 2}
    assert list(numbers(network, made).values()) == [{0.25, 0.125}, {0.5, 0.0625}]


def test_nodes_of_several_forms_are_each_of_their_own() -> None:
    body = (
        attention(1, "x", scale=0.25, epsilon=0.125)
        + attention(2, "y1", scale=0.5, epsilon=0.0625, masked=True)
        + attention(3, "y2", scale=0.75, epsilon=0.0, norm=False)
    )
    original = model(body, f"{X}, float[B,1,1,S] mask", "y3")
    result = onnx_fuse.fuse(original)
    assert result.report.fused == {"FusedAttentionLayerNorm": 3}
    assert len(result.model.functions) == 3
    assert ["has 3 bodies" in warning for warning in result.report.warnings] == [True]
    network = parsed(result.model)
    assert network.result.inlined == {"gr.ml.infra::FusedAttentionLayerNorm": 3}
    assert list(numbers(network, result.model).values()) == [{0.25, 0.125}, {0.5, 0.0625}, {0.75}]
    softmaxes = [
        layer.name
        for layer in map(network.network.get_layer, range(network.network.num_layers))
        if layer.type == trt.LayerType.SOFTMAX
    ]
    assert [name.split("/")[0] for name in softmaxes] == ["LayerNormalization_y1", "LayerNormalization_y2", "Add_r3"]


def test_each_mask_has_its_own_value() -> None:
    body = ""
    for number, x, value in ((1, "x", -1000.0), (2, "y1", -2000.0)):
        block = attention(number, x, scale=0.5, epsilon=0.125)
        mask = f"u{number} = Where(mask, t{number}, low{number})"
        body += f"low{number} = Constant <value_float = {value}> ()"
        body += block.replace(f"u{number} = Identity(t{number})", mask)
    made = fused(model(body, f"{X}, bool[B,1,1,S] mask", "y2"), FusedAttentionLayerNorm=2)
    assert list(numbers(parsed(made), made).values()) == [{0.5, 0.125, -1000.0}, {0.5, 0.125, -2000.0}]


def test_each_embedding_has_its_own_epsilon() -> None:
    body = """
        a = Gather(words, ids)  b = Gather(positions, at)  c = Add(a, b)
        n = LayerNormalization <epsilon = 0.25> (c, gamma, beta)
        d = Gather(words, at)  e = Gather(positions, ids)  f = Add(d, e)
        m = LayerNormalization <epsilon = 0.5> (f, gamma, beta)
        y = Add(n, m)"""
    made = fused(model(body, "int64[B,S] ids, int64[B,S] at", "y"), FusedEmbedLayerNorm=2)
    assert list(numbers(parsed(made), made).values()) == [{0.25}, {0.5}]


def test_each_skip_and_each_swish_has_its_own_attribute() -> None:
    body = """
        one = Constant <value_float = 1.5> ()  two = Constant <value_float = 2.5> ()
        a = Add(x, z)  n = LayerNormalization <epsilon = 0.25> (a, gamma, beta)
        b = Add(n, z)  m = LayerNormalization <epsilon = 0.5> (b, gamma, beta)
        c = Mul(m, one)  d = Sigmoid(c)  e = Mul(m, d)
        f = Mul(e, two)  g = Sigmoid(f)  y = Mul(e, g)"""
    original = model(body, f"{X}, float[B,S,8] z", "y")
    made = fused(original, FusedSkipLayerNorm=2, FusedSwish=2)
    assert list(numbers(parsed(made), made).values()) == [{0.25}, {0.5}, {1.5}, {2.5}]


@pytest.mark.parametrize("opset", [13, 14, 17, 18, 20, 22])
@pytest.mark.parametrize("dtype", [np.float32, np.float16])
def test_a_body_of_every_opset_and_type_is_parsed(opset: int, dtype: Any) -> None:
    body = attention(1, "x", scale=0.25, epsilon=0.125, masked=True, norm=opset >= 17)
    inputs, kind = f"{X}, float[B,1,1,S] mask", {np.float32: "FLOAT", np.float16: "HALF"}[dtype]
    if dtype == np.float16:
        body = body.replace(
            "c1 = Constant <value_float = 0.25> ()", "w1 = Constant <value_float = 0.25> ()\nc1 = Cast <to = 10> (w1)"
        )
        inputs = inputs.replace("float[", "float16[")
    original = model(body, inputs, "y1", opset)
    if dtype == np.float16:
        for tensor in original.graph.initializer:
            array = onnx.numpy_helper.to_array(tensor)
            if array.dtype == np.float32:
                tensor.CopyFrom(onnx.numpy_helper.from_array(array.astype(np.float16), tensor.name))
        original.graph.output[0].type.tensor_type.elem_type = onnx.TensorProto.FLOAT16
    made = fused(original, FusedAttentionLayerNorm=1)
    network = parsed(made)
    assert network.result.outputs[0].dtype == kind
    expected = {0.25, 0.125} if opset >= 17 else {0.25}
    assert list(numbers(network, made).values()) == [expected]


def test_what_is_inlined_beforehand_parses_as_well() -> None:
    body = attention(1, "x", scale=0.25, epsilon=0.125) + attention(2, "y1", scale=0.5, epsilon=0.0625)
    original = model(body, X, "y2")
    inlined = onnx_fuse.fuse(original, functions="inline").model
    assert not inlined.functions
    assert parse(inlined).accepted
    bare = onnx_fuse.fuse(original, functions="none").model
    result = parse(bare)
    assert not result.accepted
    assert {issue.op_type for issue in result.errors} == {"FusedAttentionLayerNorm"}


@pytest.mark.parametrize("opset", OPSETS)
def test_the_bodies_of_all_operators_build(opset: int, tmp_path: Path) -> None:
    """With a batch and a length that are open."""
    path = tmp_path / "model.onnx"
    for case in CASES[OPSETS.index(opset) :: len(OPSETS)]:
        onnx.save(node_and_body(case, opset), path)
        open_inputs = {name: told.split()[1:] for name, told in case.inputs.items() if {"B", "S"} & set(told.split())}
        sizes = ({"B": "1", "S": "4"}, {"B": "2", "S": "8"}, {"B": "4", "S": "16"})
        profiles = [
            ":".join([name, *("x".join(size.get(dim, dim) for dim in dims) for size in sizes)])
            for name, dims in open_inputs.items()
        ]
        build(path, tmp_path / "model.plan", EngineConfig(targets=["SM86"], profiles=read_shapes(profiles), plugins=[]))
        assert (tmp_path / "model.plan").stat().st_size > 0, case


@pytest.mark.parametrize("name", ["bert-script17-sdpa-dynamic", "gpt2-dynamo23-sdpa-dynamic"])
def test_a_real_model_has_the_scale_and_epsilon_of_its_layers(name: str) -> None:
    pytest.importorskip("torch")
    pytest.importorskip("transformers")
    from tests.models import exports

    path = exports.cached(next(cell for cell in exports.matrix() if cell.name == name))
    made = onnx_fuse.fuse(path, verify=False).model
    network = parse_network(made, base_dir=path.parent)
    assert network.result.accepted, network.result.errors
    found = numbers(network, made)
    epsilon = float(np.float32(1e-12 if name.startswith("bert") else 1e-5))
    scale = (exports.HIDDEN / exports.HEADS) ** -0.5
    attentions = [read for node, read in found.items() if node.endswith("FusedAttentionLayerNorm")]
    assert len(attentions) == exports.LAYERS
    for read in attentions:
        assert epsilon in read and any(number == pytest.approx(scale) for number in read)
    assert [read for node, read in found.items() if node.endswith("FusedEmbedLayerNorm")] == [{epsilon}]
