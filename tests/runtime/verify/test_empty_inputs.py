"""Models that ONNX Runtime would end the process with, when it is given nothing."""

from __future__ import annotations

import numpy as np
import pytest
from onnx import ModelProto

import onnx_fuse
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
        ("(float[n,2,4,4] x) => (float[n,2,4,4] y) { y = Attention (x, x, x) }", False),
        ("(float[n,1,4,4] x) => (float[a,b,c,d] y) { y = AveragePool <kernel_shape = [2, 2]> (x) }", False),
        ("(bool c, int64[n] x) => (int64[n] y) { y = If (c) < then_branch = t () => (int64[n] a) { a = Div(x, x) }, "
         "else_branch = e () => (int64[n] b) { b = Identity(x) } > }", False),
    ],
)  # fmt: skip
def test_what_may_be_empty(text: str, safe: bool) -> None:
    assert may_be_empty(helpers.model(text, weights={"two": np.array([2])})) is safe


def grouped_attention() -> ModelProto:
    """Four query heads that share two key-value heads, repeated by Expand, with a mask made of lengths."""
    random = np.random.default_rng(0)
    weights = {name: random.standard_normal((32, size)).astype(np.float32) * 0.2 for name, size in (("wq", 32), ("wk", 16), ("wv", 16), ("wo", 32))}  # fmt: skip
    weights |= {"four": np.array([0, 0, 4, 8]), "two": np.array([0, 0, 2, 8]), "pair": np.array([1, 1, 2, 1, 1]),
                "flat": np.array([0, 0, 32]), "axis": np.array([2]), "first": np.array([1]), "last": np.array([0, 4]),
                "zero": np.array(0), "one": np.array(1), "ends": np.array([1]), "scale": np.float32(8**-0.5),
                "low": np.float32(-np.inf), "heads": np.array([2, 2]), "joined": np.array([4, 8])}  # fmt: skip
    repeated = """
        {0}r = Reshape({0}, two)  {0}t = Transpose <perm = [0, 2, 1, 3]> ({0}r)  {0}u = Unsqueeze({0}t, axis)
        {0}e = Expand({0}u, pair)  {0}s = Shape({0}t)  {0}b = Slice({0}s, none, ends)  {0}l = Slice({0}s, axis, five)
        {0}c = Concat <axis = 0> ({0}b, allheads, {0}l)  {0}h = Reshape <allowzero = 1> ({0}e, {0}c)"""
    weights |= {"none": np.array([0]), "five": np.array([4]), "allheads": np.array([4])}
    return helpers.model(
        f"""(float[B,S,32] x, int64[B] lengths) => (float[B,S,32] y) {{
        q = MatMul(x, wq)  k = MatMul(x, wk)  v = MatMul(x, wv)
        qr = Reshape(q, four)  qh = Transpose <perm = [0, 2, 1, 3]> (qr) {repeated.format("k")} {repeated.format("v")}
        shape = Shape(x)  size = Gather(shape, one)  places = Range(zero, size, one)  until = Unsqueeze(lengths, first)
        keep2 = Less(places, until)  keep3 = Unsqueeze(keep2, first)  keep = Unsqueeze(keep3, first)
        turned = Transpose <perm = [0, 1, 3, 2]> (kh)  raw = MatMul(qh, turned)  scaled = Mul(raw, scale)
        scores = Where(keep, scaled, low)  p = Softmax <axis = -1> (scores)  c = MatMul(p, vh)
        ct = Transpose <perm = [0, 2, 1, 3]> (c)  m = Reshape(ct, flat)  y = MatMul(m, wo) }}""",
        weights=weights,
        opset=18,
    )


def test_attention_with_fewer_key_value_heads_and_a_mask_of_lengths_takes_nothing() -> None:
    model = grouped_attention()
    fused = onnx_fuse.fuse(model, verify=False).model
    node = next(node for node in fused.graph.node if node.op_type == "FusedAttentionLayerNorm")
    assert next(item.i for item in node.attribute if item.name == "num_key_value_heads") == 2
    assert may_be_empty(fused)
    found = verify(model, fused)
    assert found.passed and not found.documented, found.summary()
    assert {(0, 7, 32), (2, 0, 32)} <= {case.shapes["x"] for case in found.cases}


def test_nothing_is_compared_too() -> None:
    model = helpers.model("(float[batch,length,4] x) => (float[batch,length,4] y) { y = Exp(x) }")
    shapes = {case.shapes["x"] for case in verify(model, model).cases}
    assert (0, 7, 4) in shapes and (2, 0, 4) in shapes


def test_a_fused_model_that_does_not_run_on_nothing_fails_and_so_does_one_of_another_shape() -> None:
    plain = helpers.model("(float[b,4] x) => (float[b,4] y) { y = Exp(x) }")
    body = "(float[b,4] x) => (float[b,4] y) {{ t = Reshape(x, {})  u = Exp(t)  y = Reshape(u, {}) }}"
    refusing = helpers.model(
        body.format("shape", "back"), weights={"shape": np.array([0, 2, -1]), "back": np.array([0, 4])}
    )
    found = verify(plain, refusing)
    assert not found.passed and str(found.problem).startswith("the fused model does not run (x [0, 4]): ")
    padded = helpers.model(
        """(float[b,4] x) => (float[a,4] y) { e = Exp(x)  s = Size(x)  n = Equal(s, zero)  y = If (n) <
        then_branch = t () => (float[a,4] c) { c = ConstantOfShape(row) }, else_branch = f () => (float[a,4] d) { d = Identity(e) } > }""",
        weights={"row": np.array([1, 4]), "zero": np.array(0)},
    )
    assert "is float32[1, 4], was float32[0, 4]" in str(verify(plain, padded).problem)
