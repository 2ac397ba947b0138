"""FusedSwish, opt-in: x * sigmoid(beta x) and no other gate."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest
from onnx import ModelProto, NodeProto, helper

import onnx_fuse
from tests import helpers

NAME = "FusedSwish"
CONSTANTS = {
    "beta": np.array(1.702, np.float32),
    "beta_1": np.array([1.702], np.float32),
    "minus": np.array(-0.5, np.float32),
    "many": np.arange(1, 9, dtype=np.float32),
    "rank_5": np.full((1, 1, 1, 1, 1), 1.702, np.float32),
}


def swish(text: str, *, inputs: str = "float[B,S,8] x", outputs: str = "float[B,S,8] y", opset: int = 17) -> ModelProto:
    constants = {name: array for name, array in CONSTANTS.items() if name in text}
    if "float16" in inputs:
        constants = {name: array.astype(np.float16) for name, array in constants.items()}
    model = helpers.model(f"({inputs}) => ({outputs}) {{\n{text}\n}}", opset=opset, weights=constants)
    for node in model.graph.node:
        node.name = f"{node.op_type}_{node.output[0]}"
    return model


def fused(model: ModelProto) -> tuple[ModelProto, NodeProto]:
    result = onnx_fuse.fuse(model, fusions=[NAME])
    assert result.report.fused == {NAME: 1}, [miss.reason for miss in result.report.near_misses]
    assert result.report.warnings == []
    assert result.report.near_misses == []
    onnx.checker.check_model(result.model, full_check=True)
    return result.model, next(node for node in result.model.graph.node if node.op_type == NAME)


def refused(model: ModelProto) -> list[str]:
    result = onnx_fuse.fuse(model, fusions=[NAME], verify=False)
    assert result.report.fused == {}
    assert result.report.warnings == []
    assert result.model.SerializeToString(deterministic=True) == model.SerializeToString(deterministic=True)
    return [miss.reason for miss in result.report.near_misses]


def beta(node: NodeProto) -> Any:
    return next(helper.get_attribute_value(item) for item in node.attribute if item.name == "beta")


def test_it_is_opt_in() -> None:
    model = swish("g = Sigmoid(x)\ny = Mul(x, g)")
    assert onnx_fuse.fuse(model).report.fused == {}
    assert onnx_fuse.fuse(model, enable=[NAME]).report.fused == {NAME: 1}


FORMS: dict[str, tuple[str, float, dict[str, Any]]] = {
    "SiLU": ("g = Sigmoid(x)\ny = Mul(x, g)", 1.0, {}),
    "gate first": ("g = Sigmoid(x)\ny = Mul(g, x)", 1.0, {}),
    "beta": ("b = Mul(x, beta)\ng = Sigmoid(b)\ny = Mul(x, g)", 1.702, {}),
    "beta first": ("b = Mul(beta, x)\ng = Sigmoid(b)\ny = Mul(x, g)", 1.702, {}),
    "beta of one axis": ("b = Mul(x, beta_1)\ng = Sigmoid(b)\ny = Mul(x, g)", 1.702, {}),
    "negative beta": ("b = Mul(x, minus)\ng = Sigmoid(b)\ny = Mul(x, g)", -0.5, {}),
    "divided": ("b = Div(x, beta)\ng = Sigmoid(b)\ny = Mul(x, g)", 1 / 1.702, {}),
    "a Constant node": ("c = Constant <value_float = 2.5> ()\nb = Mul(x, c)\ng = Sigmoid(b)\ny = Mul(x, g)", 2.5, {}),
    "an Identity between": ("i = Identity(x)\ng = Sigmoid(i)\ny = Mul(x, g)", 1.0, {}),
    "ONNX's own": ("y = Swish <alpha = 1.25> (x)", 1.25, {"opset": 24}),
    "ONNX's own, default": ("y = Swish(x)", 1.0, {"opset": 24}),
    "one axis": ("g = Sigmoid(x)\ny = Mul(x, g)", 1.0, {"inputs": "float[N] x", "outputs": "float[N] y"}),
    "float16": (
        "b = Mul(x, beta)\ng = Sigmoid(b)\ny = Mul(x, g)",
        1.702,
        {"inputs": "float16[B,8] x", "outputs": "float16[B,8] y"},
    ),
}


@pytest.mark.parametrize(("text", "value", "options"), FORMS.values(), ids=FORMS)
def test_a_swish_is_fused(text: str, value: float, options: dict[str, Any]) -> None:
    model, node = fused(swish(text, **options))
    assert list(node.input) == ["x"]
    assert beta(node) == pytest.approx(value, rel=1e-3 if "float16" in str(options) else 1e-6)
    assert [node.op_type for node in model.graph.node] == [NAME]


def test_large_inputs_do_not_overflow() -> None:
    original = swish("g = Sigmoid(x)\ny = Mul(x, g)", inputs="float16[N] x", outputs="float16[N] y")
    model, _ = fused(original)
    x = np.array([-60000, -20, -1e-7, 0, 1e-7, 20, 60000], np.float16)
    want, got = helpers.run(original, {"x": x})[0], helpers.run(model, {"x": x})[0]
    assert got.dtype == np.float16
    np.testing.assert_allclose(got.astype(float), want.astype(float), rtol=2e-3, atol=1e-4)


REFUSED: dict[str, tuple[str, dict[str, Any]]] = {
    "a gate with weights": (
        "many is not a constant with one element (factor)",
        {"text": "b = Mul(x, many)\ng = Sigmoid(b)\ny = Mul(x, g)"},
    ),
    "a gate of another value": (
        "z stands where x was expected again (x)",
        {"text": "g = Sigmoid(z)\ny = Mul(x, g)", "inputs": "float[B,S,8] x, float[B,S,8] z"},
    ),
    "x * sigmoid(w y)": (
        "w stands where x was expected again (x)",
        {
            "text": "b = Mul(w, z)\ng = Sigmoid(b)\ny = Mul(x, g)",
            "inputs": "float[B,S,8] x, float[B,S,8] z, float[B,S,8] w",
        },
    ),
    "x * sigmoid(w x)": (
        "w is not a constant with one element (factor)",
        {"text": "b = Mul(w, x)\ng = Sigmoid(b)\ny = Mul(x, g)", "inputs": "float[B,S,8] x, float[1] w"},
    ),
    "a Sigmoid of another domain": (
        "Sigmoid of domain other is not ONNX's Sigmoid",
        {"text": "g = other.Sigmoid(x)\ny = Mul(x, g)"},
    ),
    "a Mul of another domain": (
        "Mul of domain other is not ONNX's Mul",
        {"text": "g = Sigmoid(x)\ny = other.Mul(x, g)"},
    ),
    "a gate that is an output": (
        "its output g is a graph output",
        {"text": "g = Sigmoid(x)\ny = Mul(x, g)", "outputs": "float[B,S,8] y, float[B,S,8] g"},
    ),
    "a gate that something else reads": (
        "its output g is also read by Relu_r outside the match",
        {"text": "g = Sigmoid(x)\nr = Relu(g)\ny = Mul(x, g)", "outputs": "float[B,S,8] y, float[B,S,8] r"},
    ),
}


@pytest.mark.parametrize(("sentence", "options"), REFUSED.values(), ids=REFUSED)
def test_other_gates_stay_and_are_explained(sentence: str, options: dict[str, Any]) -> None:
    assert sentence in refused(swish(**options))


def test_a_factor_that_adds_an_axis_is_none() -> None:
    text = "b = Mul(x, rank_5)\ng = Sigmoid(b)\ny = Mul(x, g)"
    assert len(refused(swish(text, outputs="float[1,1,B,S,8] y"))) <= 1
