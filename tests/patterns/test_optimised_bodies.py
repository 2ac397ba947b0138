"""Every operator in several forms, in ONNX Runtime: the fused model has no more nodes after its optimisation than the original."""

from __future__ import annotations

import re
import tempfile
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import ModelProto

import onnx_fuse
from tests.helpers import Array, model

RANDOM = np.random.default_rng(5)


def normal(*shape: int) -> Array:
    return RANDOM.standard_normal(shape).astype(np.float32)


WEIGHTS: dict[str, Array] = {
    "four": np.array([0, 0, 4, 8]),
    "flat": np.array([0, 0, 32]),
    "weight": normal(32, 32),
    "bias": normal(32),
    "gamma": 1 + 0.2 * normal(32),
    "beta": 0.2 * normal(32),
    "words": normal(11, 32),
    "positions": normal(9, 32),
    "scale": np.array(0.35, np.float32),
    "n": np.array(9, np.float32),
    "half": np.array(0.5, np.float32),
    "two": np.array(2, np.float32),
    "epsilon": np.array(1e-5, np.float32),
    "low": np.array(-np.inf, np.float32),
    "triangle": np.tril(np.ones((9, 9), np.float32)),
    "one": np.array([1]),
    "less": np.array(0.175, np.float32),
    "normaliser": np.array(2 / 3, np.float32),
    **{f"at{place}": np.array([place]) for place in (0, 5, 9)},
    "axis2": np.array([2]),
    "pairs": np.array([[i, j] for i in range(5) for j in range(i)]),
}

HEADS = """
    q4 = Reshape({q}, four) qh = Transpose<perm = [0, 2, 1, 3]>(q4)
    k4 = Reshape({k}, four) kt = Transpose<perm = [0, 2, 3, 1]>(k4)
    v4 = Reshape({v}, four) vh = Transpose<perm = [0, 2, 1, 3]>(v4)"""
SOFTMAX = HEADS.format(q="q", k="k", v="v") + "s = MatMul(qh, kt) t = Mul(s, scale) {mask} p = Softmax<axis = -1>(u) "
MERGE = "c = MatMul(p, vh) ct = Transpose<perm = [0, 2, 1, 3]>(c) m = Reshape(ct, flat) "
RIM = "o = MatMul(m, weight) ob = Add(o, bias) r = Add(ob, x) "
LAYER = "{y} = LayerNormalization<axis = -1, epsilon = 1e-5>({x}, gamma, beta) "
PARTS = """
    mu = ReduceMean<axes = [-1], keepdims = 1>({x}) ce = Sub({x}, mu) sq = Pow(ce, two)
    va = ReduceMean<axes = [-1], keepdims = 1>(sq) ve = Add(va, epsilon) sd = Sqrt(ve) di = Div(ce, sd) ga = Mul(di, gamma)
    {y} = Add(ga, beta) """
RMS = """
    sq = Pow({x}, two) va = ReduceMean<axes = [-1], keepdims = 1>(sq) ve = Add(va, epsilon) sd = Sqrt(ve) di = Div({x}, sd)
    {y} = Mul(di, gamma) """
SILU = HEADS.format(q="q", k="k", v="v") + "s = MatMul(qh, kt) t = Mul(s, scale) {bias} g = Sigmoid(u) a = Mul(u, g) "
QKV = "float[B,S,32] q, float[B,S,32] k, float[B,S,32] v"
Y = "float[B,S,32] y"


@dataclass(frozen=True)
class Form:
    """A model with one match: its operator, inputs, nodes, output `y`, and the opsets that have these nodes."""

    operator: str
    inputs: str
    nodes: str
    output: str = Y
    opsets: tuple[int, ...] = (17,)


FORMS = {
    "attention": Form("FusedAttentionLayerNorm", QKV, SOFTMAX.format(mask="u = Identity(t)") + MERGE + "y = Identity(m)", opsets=(13, 17, 22)),
    "attention, rim": Form(
        "FusedAttentionLayerNorm",
        f"{QKV}, float[B,S,32] x",
        SOFTMAX.format(mask="u = Identity(t)") + MERGE + RIM + LAYER.format(x="r", y="y"),
        opsets=(17, 22),
    ),
    "attention, rim in parts": Form(
        "FusedAttentionLayerNorm",
        f"{QKV}, float[B,S,32] x",
        SOFTMAX.format(mask="u = Identity(t)") + MERGE + RIM + PARTS.format(x="r", y="y"),
        opsets=(13, 17),
    ),
    "attention, bias": Form(
        "FusedAttentionLayerNorm",
        f"{QKV}, float[B,1,1,S] bias4, float[B,S,32] x",
        SOFTMAX.format(mask="u = Add(t, bias4)") + MERGE + RIM + LAYER.format(x="r", y="y"),
    ),
    "attention, mask": Form(
        "FusedAttentionLayerNorm", f"{QKV}, bool[B,1,1,S] keep", SOFTMAX.format(mask="u = Where(keep, t, low)") + MERGE + "y = Identity(m)"
    ),
    "embedding": Form(
        "FusedEmbedLayerNorm",
        "int64[B,S] ids, int64[B,S] at",
        "a = Gather(words, ids) b = Gather(positions, at) r = Add(a, b) " + LAYER.format(x="r", y="y"),
        opsets=(17, 22),
    ),
    "embedding in parts": Form(
        "FusedEmbedLayerNorm",
        "int64[B,S] ids, int64[B,S] at",
        "a = Gather(words, ids) b = Gather(positions, at) r = Add(a, b) " + PARTS.format(x="r", y="y"),
        opsets=(13, 17),
    ),
    "embedding, rms": Form(
        "FusedEmbedLayerNorm",
        "int64[B,S] ids, int64[B,S] at",
        "a = Gather(words, ids) b = Gather(positions, at) r = Add(a, b) " + RMS.format(x="r", y="y"),
        opsets=(13, 17),
    ),
    "hstu": Form(
        "HSTUHierarchicalAttention",
        QKV,
        SILU.format(bias="u = Identity(t)") + "p = Div(a, n) " + MERGE + "y = Identity(m)",
        opsets=(14, 17),
    ),
    "hstu, causal, bias, norm, gate": Form(
        "HSTUHierarchicalAttention",
        "float[B,9,32] q, float[B,9,32] k, float[B,9,32] v, float[1,1,9,9] rab, float[B,9,32] gate",
        SILU.format(bias="u = Add(t, rab)")
        + "w = Div(a, n) p = Mul(w, triangle) "
        + MERGE
        + LAYER.format(x="m", y="normed")
        + "y = Mul(normed, gate)",
        "float[B,9,32] y",
    ),
    "hstu, mask": Form(
        "HSTUHierarchicalAttention",
        f"{QKV}, float[B,1,S,S] keep",
        SILU.format(bias="u = Identity(t)") + "w = Div(a, n) p = Mul(w, keep) " + MERGE + "y = Identity(m)",
    ),
    "levels": Form(
        "HSTUHierarchicalAttention",
        "float[B,9,32] q, float[B,9,32] k, float[B,9,32] v",
        """q4 = Reshape(q, four) qh = Transpose<perm = [0, 2, 1, 3]>(q4) k4 = Reshape(k, four) kh = Transpose<perm = [0, 2, 1, 3]>(k4)
        v4 = Reshape(v, four) vh = Transpose<perm = [0, 2, 1, 3]>(v4)
        k1 = Slice(kh, at0, at5, axis2) k1t = Transpose<perm = [0, 1, 3, 2]>(k1) v1 = Slice(vh, at0, at5, axis2)
        k2 = Slice(kh, at5, at9, axis2) k2t = Transpose<perm = [0, 1, 3, 2]>(k2) v2 = Slice(vh, at5, at9, axis2)
        s1 = MatMul(qh, k1t) t1 = Mul(s1, scale) p1 = Softmax<axis = -1>(t1) c1 = MatMul(p1, v1) w1 = Mul(c1, half)
        s2 = MatMul(qh, k2t) t2 = Mul(s2, less) p2 = Softmax<axis = -1>(t2) c2 = MatMul(p2, v2)
        c = Add(w1, c2) ct = Transpose<perm = [0, 2, 1, 3]>(c) m = Reshape(ct, flat) y = Mul(m, normaliser)""",
        "float[B,9,32] y",
    ),
    "pairs by GatherND": Form(
        "InteractionTritonFast",
        "float[B,5,32] e",
        """et = Transpose<perm = [0, 2, 1]>(e) z = MatMul(e, et) zt = Transpose<perm = [1, 2, 0]>(z)
        g = GatherND(zt, pairs) y = Transpose<perm = [1, 0]>(g)""",
        "float[B,10] y",
    ),
    "swish": Form("FusedSwish", "float[B,S,32] x", "g = Sigmoid(x) y = Mul(x, g)", opsets=(13, 17)),
    "swish, beta": Form("FusedSwish", "float[B,S,32] x", "b = Mul(x, half) g = Sigmoid(b) y = Mul(x, g)", opsets=(13, 17)),
    "skip": Form("FusedSkipLayerNorm", "float[B,S,32] x, float[B,S,32] z", "r = Add(x, z) " + LAYER.format(x="r", y="y")),
    "skip in parts": Form(
        "FusedSkipLayerNorm", "float[B,S,32] x, float[B,S,32] z", "r = Add(x, z) " + PARTS.format(x="r", y="y"), opsets=(13, 17)
    ),
    "skip, rms": Form(
        "FusedSkipLayerNorm", "float[B,S,32] x, float[B,S,32] z", "r = Add(x, z) " + RMS.format(x="r", y="y"), opsets=(13, 17)
    ),
    "linear": Form(
        "FusedLinearLayerNorm", "float[B,S,32] x", "o = MatMul(x, weight) r = Add(o, bias) " + LAYER.format(x="r", y="y")
    ),
    "factorization machine": Form(
        "FMInteraction",
        "float[B,5,32] e",
        """s = ReduceSum<keepdims = 0>(e, one) ss = Mul(s, s) q = Mul(e, e) qs = ReduceSum<keepdims = 0>(q, one)
        d = Sub(ss, qs) y = Mul(d, half)""",
        "float[B,32] y",
    ),
}  # fmt: skip


def optimised(made: ModelProto) -> Counter[str]:
    options = ort.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = 1, 4
    with tempfile.TemporaryDirectory() as folder:
        options.optimized_model_filepath = str(Path(folder) / "optimised.onnx")
        ort.InferenceSession(made.SerializeToString(), options, providers=["CPUExecutionProvider"])
        return Counter(node.op_type for node in onnx.load(options.optimized_model_filepath).graph.node)


@pytest.mark.parametrize(("name", "opset"), [(name, opset) for name, form in FORMS.items() for opset in form.opsets])
def test_a_body_is_no_more_nodes_than_what_it_stands_for(name: str, opset: int) -> None:
    form = FORMS[name]
    read = set(re.findall(r"\w+", form.nodes))
    weights = {key: array for key, array in WEIGHTS.items() if key in read}
    # Not an output of the model itself: ONNX Runtime keeps a last Cast there, though it changes nothing.
    output = re.sub(r"\by\b", "out", form.output)
    original = model(f"({form.inputs}) => ({output}) {{ {form.nodes} out = Abs(y) }}", opset=opset, weights=weights)
    result = onnx_fuse.fuse(original, fusions=[form.operator])
    assert result.report.fused == {form.operator: 1}
    before, after = optimised(original), optimised(result.model)
    assert after.total() <= before.total(), {
        key: (before[key], after[key]) for key in before | after if before[key] != after[key]
    }
