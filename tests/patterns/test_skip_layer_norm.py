"""FusedSkipLayerNorm, opt-in: a residual sum with the norm behind it, over the last axis alone."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import ModelProto, NodeProto, helper

import onnx_fuse
from tests import helpers
from tests.helpers import Array

NAME = "FusedSkipLayerNorm"
RANDOM = np.random.default_rng(5)


def drawn(*shape: int, centre: float = 0.0) -> Array:
    return (centre + 0.4 * RANDOM.standard_normal(shape)).astype(np.float32)


CONSTANTS: dict[str, Array] = {
    "bias": drawn(8),
    "gamma": drawn(8, centre=1.0),
    "beta": drawn(8),
    "odd": drawn(3, 8, centre=1.0),
    "one": drawn(1, centre=1.0),
    "epsilon": np.array(1e-5, np.float32),
    "two": np.array(2.0, np.float32),
    "three": np.array(3.0, np.float32),
}
SUM = "s = Add(x, r)"
NORM = "y = LayerNormalization <axis = -1, epsilon = 1e-05> (s, gamma, beta)"


def skip(
    text: str = SUM,
    norm: str = NORM,
    *,
    inputs: Mapping[str, str] | None = None,
    outputs: Mapping[str, str] | None = None,
    opset: int = 17,
    dtype: Any = np.float32,
) -> ModelProto:
    """x and r are [B,S,8] unless `inputs` says otherwise; `s` is their sum."""
    body = f"{text}\n{norm}"
    words = set(body.replace("(", " ").replace(")", " ").replace(",", " ").split())
    kind = {np.float32: "float", np.float16: "float16"}[dtype]
    taken = {"x": "[B,S,8]", "r": "[B,S,8]", **(inputs or {})}
    constants = {
        name: array.astype(dtype) if array.dtype.kind == "f" else array
        for name, array in CONSTANTS.items()
        if name in words
    }
    declared = ", ".join(f"{kind}{type_} {name}" for name, type_ in taken.items() if name in words)
    made = ", ".join(f"{kind}{type_} {name}" for name, type_ in {"y": taken["x"], **(outputs or {})}.items())
    model = helpers.model(f"({declared}) => ({made}) {{\n{body}\n}}", opset=opset, weights=constants)
    for node in model.graph.node:
        node.name = f"{node.op_type}_{node.output[0]}"
    return model


def attributes(node: NodeProto) -> dict[str, Any]:
    values = {item.name: helper.get_attribute_value(item) for item in node.attribute}
    return {name: value.decode() if isinstance(value, bytes) else value for name, value in values.items()}


def fused(model: ModelProto) -> tuple[ModelProto, NodeProto, onnx_fuse.Report]:
    """The fused model, proven equal, its one fused node, and the report."""
    result = onnx_fuse.fuse(model, fusions=[NAME])
    assert result.report.fused == {NAME: 1}, [miss.reason for miss in result.report.near_misses]
    assert result.report.warnings == []
    onnx.checker.check_model(result.model, full_check=True)
    return result.model, next(node for node in result.model.graph.node if node.op_type == NAME), result.report


def refused(model: ModelProto) -> list[str]:
    result = onnx_fuse.fuse(model, fusions=[NAME], verify=False)
    assert result.report.fused == {}
    assert result.report.warnings == []
    assert result.model.SerializeToString(deterministic=True) == model.SerializeToString(deterministic=True)
    return [miss.reason for miss in result.report.near_misses]


DECOMPOSED = """
    mean = ReduceMean <axes = [-1]> (s)
    centred = Sub(s, mean)
    square = Pow(centred, two)
    variance = ReduceMean <axes = [-1]> (square)
    shifted = Add(variance, epsilon)
    std = Sqrt(shifted)
    bare = Div(centred, std)
    scaled = Mul(bare, gamma)
    y = Add(scaled, beta)"""


def test_it_is_opt_in() -> None:
    model = skip()
    assert onnx_fuse.fuse(model).report.fused == {}
    assert onnx_fuse.fuse(model, enable=[NAME]).report.fused == {NAME: 1}


# name -> (sum, norm, options, the fused node's inputs by name)
FORMS: dict[str, tuple[str, str, dict[str, Any], dict[str, str]]] = {
    "sum": (SUM, NORM, {}, {"x": "x", "skip": "r"}),
    "bias first": ("xb = Add(x, bias)\ns = Add(xb, r)", NORM, {}, {"x": "x", "skip": "r", "bias": "bias"}),
    "bias written first": ("xb = Add(bias, x)\ns = Add(r, xb)", NORM, {}, {"x": "x", "skip": "r", "bias": "bias"}),
    "two axes": (SUM, NORM, {"inputs": {"x": "[N,8]", "r": "[N,8]"}}, {"x": "x", "skip": "r"}),
    "five axes": (SUM, NORM, {"inputs": dict.fromkeys("xr", "[A,B,1,3,8]")}, {"x": "x", "skip": "r"}),
    "decomposed": (SUM, DECOMPOSED, {}, {"x": "x", "skip": "r"}),
    "float16": (SUM, NORM, {"dtype": np.float16}, {"x": "x", "skip": "r"}),
    "one value twice": ("s = Add(x, x)", NORM, {}, {"x": "x", "skip": "x"}),
}


@pytest.mark.parametrize(("text", "norm", "options", "inputs"), FORMS.values(), ids=FORMS)
def test_a_residual_is_fused_with_its_norm(
    text: str, norm: str, options: dict[str, Any], inputs: dict[str, str]
) -> None:
    model, node, report = fused(skip(text, norm, **options))
    found = attributes(node)
    assert dict(zip(found["inputs"].split(","), node.input, strict=True)) == {
        **inputs,
        "gamma": "gamma",
        "beta": "beta",
    }
    assert (found["norm"], found["epsilon"]) == ("layer", pytest.approx(1e-5))
    assert [node.op_type for node in model.graph.node] == [NAME]
    assert report.near_misses == []


NORMS: dict[str, tuple[str, dict[str, Any], int]] = {
    "no shift": ("y = LayerNormalization(s, gamma)", {"epsilon": 1e-5, "inputs": "x,skip,gamma"}, 17),
    "no epsilon attribute": ("y = LayerNormalization(s, gamma, beta)", {"epsilon": 1e-5}, 17),
    "another epsilon": ("y = LayerNormalization <epsilon = 0.25> (s, gamma, beta)", {"epsilon": 0.25}, 17),
    "axis from the front": ("y = LayerNormalization <axis = 2> (s, gamma, beta)", {}, 17),
    "RMS": ("y = RMSNormalization <epsilon = 0.5> (s, gamma)", {"norm": "rms", "epsilon": 0.5}, 23),
    "no affine": (DECOMPOSED.split("scaled =")[0].replace("bare =", "y ="), {"inputs": "x,skip"}, 17),
}


@pytest.mark.parametrize(("norm", "expected", "opset"), NORMS.values(), ids=NORMS)
def test_the_norm_in_other_words(norm: str, expected: dict[str, Any], opset: int) -> None:
    _, node, _ = fused(skip(norm=norm, opset=opset))
    found = attributes(node)
    for name, value in expected.items():
        assert found[name] == (pytest.approx(value) if isinstance(value, float) else value)


def norm_of(source: str, target: str) -> str:
    """The norm in parts, of another value, its values under names of their own."""
    names = ("mean", "centred", "square", "variance", "shifted", "std", "bare", "scaled")
    text = re.sub(rf"\b({'|'.join(names)})\b", rf"{target}_\1", DECOMPOSED)
    return re.sub(r"\bs\b", source, re.sub(r"\by\b", target, text))


def test_a_norm_that_the_opset_lacks_is_read_as_it_was_before_it_was_turned() -> None:
    """In order [S, B, H] the sum is turned before its norm, and so is the residual: another norm, which cannot be written."""
    turn = "Transpose <perm = [1, 0, 2]>"
    original = skip(
        f"x_t = {turn} (x)  r_t = {turn} (r) {norm_of('x_t', 'n')} s_t = Add(n, r_t)",
        f"{norm_of('s_t', 'y_t')} y = {turn} (y_t)",
        opset=16,
    )
    model, node, _ = fused(original)
    assert node.input[1] == "r"
    assert [item.input[0] for item in model.graph.node if node.input[0] in item.output] == ["n"]


def test_a_norm_that_the_opset_lacks_is_read_as_it_is_where_tokens_are_flattened() -> None:
    flat = "flat = Constant <value_ints = [-1, 8]> ()  x_f = Reshape(x, flat)  r_f = Reshape(r, flat)"
    original = skip(
        f"{flat} {norm_of('x_f', 'n')} s_f = Add(n, r_f)", norm_of("s_f", "y"), outputs={"y": "[N,8]"}, opset=16
    )
    _, node, _ = fused(original)
    assert "r_f" in node.input


def test_the_sum_becomes_an_output_where_it_is_needed() -> None:
    for original in (
        skip(norm=NORM.replace("y =", "n =") + "\nz = Relu(s)\ny = Add(n, z)"),
        skip(outputs={"s": "[B,S,8]"}),
    ):
        model, node, report = fused(original)
        assert node.output[1] == "s"
        assert report.matches[0].outputs == ("output", "residual_sum")
        helpers.assert_same_results(original, model)


REFUSED: dict[str, tuple[str, dict[str, Any]]] = {
    "another axis": ("attribute axis is -2, pattern wants -1", {"norm": NORM.replace("-1,", "1,").replace("gamma, beta", "odd, odd"), "inputs": dict.fromkeys("xr", "[B,3,8]")}),
    "a scale of one element": ("the scale one has shape [1], pattern wants [8]", {"norm": NORM.replace("gamma", "one")}),
    "a scale of two axes": ("the scale odd has shape [3, 8], pattern wants [8]", {"norm": NORM.replace("gamma", "odd"), "inputs": dict.fromkeys("xr", "[B,3,8]")}),
    "a shift of two axes": ("the shift odd has shape [3, 8], pattern wants [8]", {"norm": NORM.replace("beta", "odd"), "inputs": dict.fromkeys("xr", "[B,3,8]")}),
    "a residual that is broadcast": ("x and r differ in shape", {"inputs": {"r": "[1,S,8]"}}),
    "two vectors": ("x and bias differ in shape", {"text": "s = Add(x, bias)"}),
    "an exponent of 3": ("the constant is 3, pattern wants 2", {"norm": DECOMPOSED.replace("two", "three")}),
    "means over another axis": ("attribute axes is [-2], pattern wants [-1]", {"norm": DECOMPOSED.replace("[-1]", "[-2]")}),
    "a decomposed scale of two axes": (
        "the scale odd has shape [3, 8], pattern wants [8]",
        {"norm": DECOMPOSED.replace("gamma", "odd"), "inputs": dict.fromkeys("xr", "[B,3,8]")},
    ),
    "a norm of another domain": (
        "LayerNormalization of domain other is not ONNX's LayerNormalization",
        {"norm": NORM.replace("LayerNormalization", "other.LayerNormalization")},
    ),
    "a sum of another domain": ("Add of domain other is not ONNX's Add", {"text": "s = other.Add(x, r)"}),
}  # fmt: skip


@pytest.mark.parametrize(("sentence", "options"), REFUSED.values(), ids=REFUSED)
def test_other_sums_stay_and_are_explained(sentence: str, options: dict[str, Any]) -> None:
    assert sentence in refused(skip(**options))


def test_what_is_no_sum_is_no_near_miss() -> None:
    assert refused(skip("s = Mul(x, r)")) == []
