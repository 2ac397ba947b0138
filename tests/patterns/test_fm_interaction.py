"""FMInteraction, opt-in: the second order of a factorization machine, and nothing that only looks like it."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from onnx import ModelProto, NodeProto, helper

import onnx_fuse
from examples.models.deepfm import DeepFM, FactorizationMachine
from tests import helpers
from tests.torch_export import OPSETS, SCRIPT, exported

NAME = "FMInteraction"
WEIGHTS = {
    "two": np.array(2.0, np.float32),
    "half": np.array(0.5, np.float32),
    "quarter": np.array(0.25, np.float32),
    "one": np.array([1]),
    "last": np.array([2]),
}


def model(text: str, *, output: str = "B, 8", inputs: str = "float[B,5,8] e") -> ModelProto:
    kind = "float16" if "float16" in inputs else "float"
    weights = {
        name: array
        for name, array in WEIGHTS.items()
        if name in text.replace("(", " ").replace(")", " ").replace(",", " ").split()
    }
    if kind == "float16":
        weights = {
            name: array.astype(np.float16) if array.dtype == np.float32 else array for name, array in weights.items()
        }
    made = helpers.model(f"({inputs}) => ({kind}[{output}] y) {{ {text} }}", weights=weights)
    for node in made.graph.node:
        node.name = f"{node.op_type}_{node.output[0]}"
    return made  # fmt: skip


def fused(made: ModelProto) -> tuple[ModelProto, NodeProto]:
    result = onnx_fuse.fuse(made, enable=[NAME])
    assert result.report.fused == {NAME: 1}, [miss.reason for miss in result.report.near_misses]
    return result.model, next(node for node in result.model.graph.node if node.op_type == NAME)


def reduce(node: NodeProto) -> Any:
    return next(helper.get_attribute_value(item) for item in node.attribute if item.name == "reduce")


VECTOR = """s = ReduceSum <keepdims = 0> (e, one)  q = Pow(s, two)  p = Pow(e, two)  r = ReduceSum <keepdims = 0> (p, one)
    d = Sub(q, r)  """
ROW = VECTOR.replace("keepdims = 0", "keepdims = 1")

FORMS: dict[str, tuple[str, int]] = {
    "vector": (f"{VECTOR} y = Mul(d, half)", 0),
    "divided": (f"{VECTOR} y = Div(d, two)", 0),
    "squares as products": (VECTOR.replace("Pow(s, two)", "Mul(s, s)").replace("Pow(e, two)", "Mul(e, e)") + "y = Mul(half, d)", 0),
    "summed": (f"{VECTOR} t = ReduceSum <keepdims = 1> (d, one)  y = Mul(t, half)", 1),
    "halved, then summed": (f"{VECTOR} h = Mul(d, half)  y = ReduceSum <keepdims = 1> (h, one)", 1),
    "axes kept": (f"{ROW} t = ReduceSum <keepdims = 0> (d, last)  y = Mul(t, half)", 1),
    "axes kept, squeezed": (f"{ROW} z = Squeeze(d, one)  y = Mul(z, half)", 0),
}  # fmt: skip


@pytest.mark.parametrize("name", FORMS)
def test_every_form(name: str) -> None:
    text, wanted = FORMS[name]
    made, node = fused(model(text, output="B, 1" if wanted else "B, 8"))
    assert helpers.operators(made) == [NAME]
    assert reduce(node) == wanted


# torchrec: everything side by side, each axis kept.
FLAT = """s = ReduceSum <keepdims = 1> (e, one)  k = Mul(e, e)  r = ReduceSum <keepdims = 1> (k, one)  q = Mul(s, s)
    d = Sub(q, r)  """
ELEMENTS: dict[str, str] = {
    "summed once more": f"{FLAT} t = ReduceSum <keepdims = 1> (d, one)  y = Mul(t, half)",
    "halved first": f"{FLAT} h = Mul(d, half)  y = ReduceSum <keepdims = 1> (h, one)",
    "not summed again": f"{FLAT} y = Mul(half, d)",
    "squares as powers": f"{FLAT.replace('Mul(e, e)', 'Pow(e, two)').replace('Mul(s, s)', 'Pow(s, two)')} y = Div(d, two)",
}


@pytest.mark.parametrize("name", ELEMENTS)
def test_every_element_is_a_feature(name: str) -> None:
    original = model(ELEMENTS[name], inputs="float[B,40] e", output="B, 1")
    made, node = fused(original)
    assert helpers.operators(made) == ["Unsqueeze", NAME] and reduce(node) == 1
    for sizes in ({"B": 1}, {"B": 3}):
        helpers.assert_same_results(original, made, tolerance=1e-4, **sizes)


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        (ELEMENTS["not summed again"].replace("half", "quarter"), "the constant is 0.25, pattern wants 0.5"),
        (ELEMENTS["not summed again"].replace("Sub(q, r)", "Sub(r, q)"), "pattern wants"),
        (ELEMENTS["not summed again"].replace("keepdims = 1> (e", "keepdims = 0> (e"), "pattern wants"),
    ],
    ids=["another factor", "the other way round", "an axis dropped"],
)
def test_what_only_looks_like_a_sum_of_elements(text: str, sentence: str) -> None:
    output = "B, B" if "keepdims = 0" in text else "B, 1"
    result = onnx_fuse.fuse(model(text, inputs="float[B,40] e", output=output), fusions=[NAME], verify=False)
    assert result.report.fused == {}
    assert any(sentence in miss.reason for miss in result.report.near_misses)


REFUSED = {
    "another factor": (f"{VECTOR} y = Mul(d, quarter)", "the constant is 0.25, pattern wants 0.5"),
    "the other way round": (f"{VECTOR.replace('Sub(q, r)', 'Sub(r, q)')} y = Mul(d, half)", "pattern wants"),
    "summed over the width": (f"{VECTOR.replace('(p, one)', '(p, last)').replace('(e, one)', '(e, last)')} y = Mul(d, half)", "pattern wants [1]"),
    "cubes": (VECTOR.replace("Pow(e, two)", "Mul(e, c)").replace("p =", "c = Mul(e, e)  p =") + "y = Mul(d, half)", "c stands where e was expected again"),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_near_relatives_are_refused(name: str) -> None:
    text, sentence = REFUSED[name]
    output = "B, 5" if name == "summed over the width" else "B, 8"
    result = onnx_fuse.fuse(model(text, output=output), fusions=[NAME], verify=False)
    assert result.report.fused == {}
    reasons = [miss.reason for miss in result.report.near_misses]
    assert any(sentence in reason for reason in reasons), reasons


def test_sizes_must_be_known() -> None:
    result = onnx_fuse.fuse(model(FORMS["vector"][0], inputs="float[B,F,8] e"), fusions=[NAME], verify=False)
    assert [miss.reason for miss in result.report.near_misses] == ["the number of features is F, it must be known"]


def test_it_is_opt_in() -> None:
    assert onnx_fuse.fuse(model(FORMS["vector"][0])).report.fused == {}


def test_float16() -> None:
    fused(model(FORMS["vector"][0], inputs="float16[B,5,8] e"))


_DEEPFM: list[DeepFM] = []


@pytest.mark.parametrize("exporter", OPSETS, ids=lambda item: f"{item[0]}{item[1]}")
def test_deepfm_in_every_opset(exporter: tuple[str, int]) -> None:
    if not _DEEPFM:
        _DEEPFM.append(DeepFM())
    _, node = fused(exported(_DEEPFM[0], {"ids": torch.randint(0, 100, (3, 6))}, {"ids": {0: "B"}}, *exporter))
    assert reduce(node) == 1


@pytest.mark.parametrize("summed", [False, True])
def test_the_body_against_all_pairs(summed: bool) -> None:
    features = torch.randn(3, 5, 8)
    made, _ = fused(exported(FactorizationMachine(summed), {"e": features}, {"e": {0: "B"}}, SCRIPT, 17))
    wide = features.double().numpy()
    want = sum(wide[:, i] * wide[:, j] for i in range(5) for j in range(i))
    got = helpers.run(made, {"e": features.numpy()})[0]
    np.testing.assert_allclose(got, np.sum(want, axis=1, keepdims=True) if summed else want, rtol=1e-4, atol=1e-5)
