"""Models that ONNX Runtime would end the process with, when it is given nothing."""

from __future__ import annotations

import numpy as np
import pytest
from onnx import helper

from onnx_fuse.runtime.verify.empty_inputs import may_be_empty
from onnx_fuse.runtime.verify.verification import verify
from tests import helpers


@pytest.mark.parametrize(
    ("text", "safe"),
    [
        ("(float[n,4] x) => (float[n,4] y) { y = Relu(x) }", True),
        ("(float[n,4] x) => (float[n,4] y) { y = Div(x, x) }", True),
        ("(float[n,4] x) => (float[a,b] y) { y = Einsum <equation = \"ij,ij->ij\"> (x, x) }", False),
        ("(int64[n] x) => (int64[n] y) { y = Div(x, x) }", False),
        ("(int64[n] x) => (int64[n] y) { t = Identity(two)  y = Mod(x, t) }", True),
        ("(float[n,4] x) => (int64[1] y) { s = Shape(x)  n = Gather(s, two)  y = Div(two, n) }", False),
        ("(float[n,4] x) => (float[n,4] y) { s = Shape(x)  f = Cast <to = 1> (s)  g = ReduceSum <keepdims = 0> (f)  y = Div(x, g) }", True),
        ("(float[n,1,4,4] x) => (float[a,b,c,d] y) { y = AveragePool <kernel_shape = [2, 2]> (x) }", False),
        ("(bool c, int64[n] x) => (int64[n] y) { y = If (c) < then_branch = t () => (int64[n] a) { a = Div(x, x) }, "
         "else_branch = e () => (int64[n] b) { b = Identity(x) } > }", False),
    ],
)  # fmt: skip
def test_what_may_be_empty(text: str, safe: bool) -> None:
    assert may_be_empty(helpers.model(text, weights={"two": np.array([2])})) is safe


def test_attention_with_fewer_key_value_heads() -> None:
    model = helpers.model("(float[n,4] x) => (float[n,4] y) { y = gr.ml.infra.FusedAttentionLayerNorm (x) }")
    for heads, safe in ((4, True), (2, False)):
        node = model.graph.node[0]
        del node.attribute[:]
        node.attribute.extend(
            [helper.make_attribute("num_heads", 4), helper.make_attribute("num_key_value_heads", heads)]
        )
        assert may_be_empty(model) is safe


def test_nothing_is_compared_too() -> None:
    model = helpers.model("(float[batch,length,4] x) => (float[batch,length,4] y) { y = Exp(x) }")
    shapes = {case.shapes["x"] for case in verify(model, model).cases}
    assert (0, 7, 4) in shapes and (2, 0, 4) in shapes


def test_a_fused_model_that_refuses_nothing_is_a_documented_difference_and_one_of_another_shape_fails() -> None:
    plain = helpers.model("(float[b,4] x) => (float[b,4] y) { y = Exp(x) }")
    body = "(float[b,4] x) => (float[b,4] y) {{ t = Reshape(x, {})  u = Exp(t)  y = Reshape(u, {}) }}"
    refusing = helpers.model(
        body.format("shape", "back"), weights={"shape": np.array([0, 2, -1]), "back": np.array([0, 4])}
    )
    found = verify(plain, refusing)
    assert found.passed and len(found.documented) == 1
    assert found.documented[0].startswith("the fused model does not run on empty inputs (x [0, 4]): ")
    assert found.summary()[0].startswith("equal but for documented differences")
    padded = helpers.model(
        """(float[b,4] x) => (float[a,4] y) { e = Exp(x)  s = Size(x)  n = Equal(s, zero)  y = If (n) <
        then_branch = t () => (float[a,4] c) { c = ConstantOfShape(row) }, else_branch = f () => (float[a,4] d) { d = Identity(e) } > }""",
        weights={"row": np.array([1, 4]), "zero": np.array(0)},
    )
    assert "is float32[1, 4], was float32[0, 4]" in str(verify(plain, padded).problem)
