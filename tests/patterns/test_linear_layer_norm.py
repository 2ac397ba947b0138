"""FusedLinearLayerNorm, opt-in: a linear layer and the norm behind it."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from onnx import ModelProto, NodeProto, helper
from torch import nn

import onnx_fuse
from tests import helpers
from tests.torch_export import OPSETS, exported

NAME = "FusedLinearLayerNorm"
RANDOM = np.random.default_rng(7)
WEIGHTS = {
    "w": RANDOM.standard_normal((6, 8)).astype(np.float32),
    "b": RANDOM.standard_normal(8).astype(np.float32),
    "gamma": (1 + 0.2 * RANDOM.standard_normal(8)).astype(np.float32),
    "beta": RANDOM.standard_normal(8).astype(np.float32),
    "column": RANDOM.standard_normal((5, 1)).astype(np.float32),
    "stacked": RANDOM.standard_normal((2, 6, 8)).astype(np.float32),
}


def model(text: str, *, inputs: str = "float[B,5,6] x", output: str = "B,5,8", opset: int = 17) -> ModelProto:
    words = text.replace("(", " ").replace(")", " ").replace(",", " ").split()
    kind = "float16" if "float16" in inputs else "float"
    held = {
        name: array.astype(kind.replace("float16", "f2").replace("float", "f4"))
        for name, array in WEIGHTS.items()
        if name in words
    }
    made = helpers.model(f"({inputs}) => ({kind}[{output}] y) {{ {text} }}", opset=opset, weights=held)
    for node in made.graph.node:
        node.name = f"{node.op_type}_{node.output[0]}"
    return made  # fmt: skip


def fused(made: ModelProto, count: int = 1) -> tuple[ModelProto, dict[str, Any]]:
    result = onnx_fuse.fuse(made, enable=[NAME])
    assert result.report.fused == {NAME: count}, [miss.reason for miss in result.report.near_misses]
    node: NodeProto = next(node for node in result.model.graph.node if node.op_type == NAME)
    values = {item.name: helper.get_attribute_value(item) for item in node.attribute}
    return result.model, {name: value.decode() if isinstance(value, bytes) else value for name, value in values.items()}


NORM = "y = LayerNormalization <axis = -1, epsilon = 0.01> (l, gamma, beta)"
FORMS: dict[str, tuple[str, str, str, dict[str, Any]]] = {
    "with a bias": (f"m = MatMul(x, w)  l = Add(m, b)  {NORM}", "x,weight,bias,gamma,beta", "layer", {}),
    "without": (f"l = MatMul(x, w)  {NORM}", "x,weight,gamma,beta", "layer", {}),
    "Gemm": (f"l = Gemm(x, w, b)  {NORM}", "x,weight,bias,gamma,beta", "layer", {"inputs": "float[B,6] x", "output": "B,8"}),
    "RMS": (
        "m = MatMul(x, w)  l = Add(m, b)  y = RMSNormalization <axis = -1, epsilon = 0.01> (l, gamma)",
        "x,weight,bias,gamma",
        "rms",
        {"opset": 23},
    ),
    "float16": (f"m = MatMul(x, w)  l = Add(m, b)  {NORM}", "x,weight,bias,gamma,beta", "layer", {"inputs": "float16[B,5,6] x"}),
}  # fmt: skip


@pytest.mark.parametrize("name", FORMS)
def test_every_form(name: str) -> None:
    text, inputs, norm, options = FORMS[name]
    made, found = fused(model(text, **options))
    assert (found["inputs"], found["norm"]) == (inputs, norm)
    assert found["epsilon"] == pytest.approx(0.01)
    assert helpers.operators(made) == [NAME]


REFUSED = {
    "a norm over another axis": (
        "l = MatMul(x, w)  y = LayerNormalization <axis = 1> (l, column)", "attribute axis is -2, pattern wants -1",
    ),
    "a weight for each of the batch": (f"l = MatMul(x, stacked)  {NORM}", "stacked has shape [2, 6, 8], pattern wants [K H]"),
    "a sum that is read": (f"l = MatMul(x, w)  {NORM.replace('y =', 'n =')}  y = Add(n, l)", "its output l is also read by Add_y"),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_near_relatives_are_refused(name: str) -> None:
    text, sentence = REFUSED[name]
    inputs = "float[2,5,6] x" if "stacked" in text else "float[B,5,6] x"
    result = onnx_fuse.fuse(model(text, inputs=inputs), fusions=[NAME], verify=False)
    assert result.report.fused == {}
    reasons = [miss.reason for miss in result.report.near_misses]
    assert any(sentence in reason for reason in reasons), reasons


def test_it_is_opt_in() -> None:
    assert onnx_fuse.fuse(model(FORMS["with a bias"][0])).report.fused == {}


_TOWER: list[nn.Module] = []


@pytest.mark.parametrize("exporter", OPSETS, ids=lambda item: f"{item[0]}{item[1]}")
def test_a_tower_in_every_opset(exporter: tuple[str, int]) -> None:
    if not _TOWER:
        _TOWER.append(nn.Sequential(nn.Linear(6, 8), nn.LayerNorm(8), nn.ReLU(), nn.Linear(8, 4), nn.LayerNorm(4)))
    fused(exported(_TOWER[0], {"x": torch.randn(3, 5, 6)}, {"x": {0: "B", 1: "S"}}, *exporter), count=2)
