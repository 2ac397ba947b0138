"""ONNX Runtime's own operators: read as the maths they are, verified against its kernels, refused with a reason."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import ModelProto

import onnx_fuse
from tests import helpers
from tests.helpers import Array, view_of
from tests.patterns.test_attention_layer_norm import NAME, Fused, attention, fused, refused, same

RANDOM = np.random.default_rng(11)
RIM = ("projection", "residual", "norm")


def drawn(*shape: int, centre: float = 0.0) -> Array:
    return (centre + 0.5 * RANDOM.standard_normal(shape)).astype(np.float32)


WEIGHTS = {
    "w": drawn(8, 24),
    "w_uneven": drawn(8, 20),
    "b": drawn(24),
    "b_uneven": drawn(20),
    "out_w": drawn(8, 8),
    "out_w_4": drawn(4, 8),
    "out_b": drawn(8),
    "gamma": drawn(8, centre=1.0),
    "beta": drawn(8),
    "bias_4": drawn(1, 2, 5, 5),
}
MASKS = np.array([[1, 1, 1, 0, 0], [0, 0, 1, 1, 1], [1, 0, 1, 0, 1], [0, 0, 0, 0, 0]], np.int32)
"""Right padding, left padding, holes, and a row in which no key counts."""


def block(core: str, inputs: str = "", rim: str = "", *, opset: int = 17, length: str = "S") -> ModelProto:
    """A core that makes `c` from x [B,length,8], with a rim that makes `y`."""
    rim = (
        rim
        or "p = MatMul(c, out_w)\ny = com.microsoft.SkipLayerNormalization <epsilon = 1e-5> (p, x, gamma, beta, out_b)"
    )
    body = f"{core}\n{rim}"
    weights = {name: array for name, array in WEIGHTS.items() if f" {name}," in body or f" {name})" in body}
    text = f"(float[B,{length},8] x{inputs}) => (float[B,{length},8] y) {{\n{body}\n}}"
    made = helpers.model(text, weights=weights, opset=opset)
    for node in made.graph.node:
        node.name = f"{node.op_type}_{node.output[0]}"
    return made


def whole(made: ModelProto) -> Fused:
    """One fused node with all of the rim, and nothing of com.microsoft left."""
    found = fused(made)
    assert found.record.parts == RIM
    assert [node.op_type for node in found.model.graph.node if node.domain == "com.microsoft"] == []
    return found


class TestAttention:
    def test_packed_weights_become_a_product_and_its_three_parts(self) -> None:
        found = whole(block("c = com.microsoft.Attention <num_heads = 2> (x, w, b)"))
        assert found.attributes["scale"] == pytest.approx(0.5)
        assert (found.attributes["num_heads"], found.attributes["layout"]) == (2, "BSH")
        assert found.attributes["causal"] == "none"
        assert "out_bias" in found.inputs

    @pytest.mark.parametrize("attributes", ["", ", unidirectional = 1", ", mask_filter_value = -50.0", ", scale = 0.7"])
    def test_a_mask_of_keys_is_added(self, attributes: str) -> None:
        made = block(f"c = com.microsoft.Attention <num_heads = 2{attributes}> (x, w, b, m)", ", int32[B,S] m")
        found = whole(made)
        assert "attention_bias" in found.inputs
        assert found.attributes["causal"] == ("upper_left" if "unidirectional" in attributes else "none")
        same(made, found.model, x=drawn(4, 5, 8), m=MASKS)

    def test_lengths_mask_what_lies_behind(self) -> None:
        made = block("c = com.microsoft.Attention <num_heads = 2> (x, w, b, m)", ", int32[B] m")
        same(made, whole(made).model, x=drawn(4, 5, 8), m=np.array([5, 3, 1, 0], np.int32))

    def test_a_mask_for_each_query(self) -> None:
        made = block("c = com.microsoft.Attention <num_heads = 2> (x, w, b, m)", ", int32[B,S,S] m")
        mask = (RANDOM.random((4, 5, 5)) < 0.5).astype(np.int32)
        same(made, whole(made).model, x=drawn(4, 5, 8), m=mask)

    def test_causal_alone(self) -> None:
        made = block("c = com.microsoft.Attention <num_heads = 2, unidirectional = 1> (x, w, b)")
        assert whole(made).attributes["causal"] == "upper_left"

    def test_a_bias_besides_the_mask(self) -> None:
        core = "c = com.microsoft.Attention <num_heads = 2, mask_filter_value = -3.4e38> (x, w, b, m, , bias_4)"
        made = block(core, ", int32[B,5] m", length="5")
        same(made, whole(made).model, x=drawn(4, 5, 8), m=MASKS)

    def test_values_of_another_size(self) -> None:
        core = "c = com.microsoft.Attention <num_heads = 2, qkv_hidden_sizes = [8, 8, 4]> (x, w_uneven, b_uneven)"
        rim = "p = MatMul(c, out_w_4)\ny = com.microsoft.SkipLayerNormalization <epsilon = 1e-5> (p, x, gamma, beta, out_b)"
        whole(block(core, rim=rim))

    def test_layers_share_what_is_made_of_their_mask(self) -> None:
        core = """
            a = com.microsoft.Attention <num_heads = 2> (x, w, b, m)
            pa = MatMul(a, out_w)
            ya = com.microsoft.SkipLayerNormalization (pa, x, gamma, beta, out_b)
            c = com.microsoft.Attention <num_heads = 2> (ya, w, b, m)"""
        rim = "p = MatMul(c, out_w)\ny = com.microsoft.SkipLayerNormalization (p, ya, gamma, beta, out_b)"
        made = block(core, ", int32[B,S] m", rim)
        result = onnx_fuse.fuse(made, fusions=[NAME])
        assert result.report.fused == {NAME: 2}
        assert [node.op_type for node in result.model.graph.node].count("Where") == 1

    @pytest.mark.parametrize(
        ("core", "inputs", "sentence"),
        [
            (
                "c, n = com.microsoft.Attention <num_heads = 2> (x, w, b, , past)",
                ", float[2,B,2,P,4] past",
                "it has a key-value cache, which no fused operator has",
            ),
            (
                "c = com.microsoft.Attention <num_heads = 2> (x, w, b, m)",
                ", int32[B,1,M,M] m",
                "its mask m has shape [B, 1, M, M]; only 0 and 1 for each key, [batch, keys], and lengths, [batch], are read",
            ),
            (
                "c = com.microsoft.Attention <num_heads = 2> (x, w, b, m)",
                ", int32[M] m",
                "its mask m has shape [M]; only 0 and 1 for each key, [batch, keys], and lengths, [batch], are read",
            ),
            (
                "c = com.microsoft.Attention <num_heads = 2, do_rotary = 1> (x, w, b)",
                "",
                "it rotates query and key",
            ),
            (
                "c = com.microsoft.GroupQueryAttention <num_heads = 2, kv_num_heads = 1> (x, k, k, , , n, t)",
                ", float[B,S,4] k, int32[B] n, int32 t",
                "GroupQueryAttention of com.microsoft works on a key-value cache, which no fused operator has",
            ),
            (
                "c = com.microsoft.PackedAttention <num_heads = 2> (x, w, b, o, l)",
                ", int32[B,S] o, int32[Z] l",
                "PackedAttention of com.microsoft works on sequences packed without padding, which no fused operator does",
            ),
        ],
    )
    def test_what_is_beyond_the_operator_says_so(self, core: str, inputs: str, sentence: str) -> None:
        made = block(core, inputs)
        assert sentence in refused(made)


MULTI_HEAD = "c = com.microsoft.MultiHeadAttention <num_heads = 2{}> ({})"


class TestMultiHeadAttention:
    @pytest.mark.parametrize("operands", ["x, k, v", "x, k, v, b"])
    @pytest.mark.parametrize("attributes", ["", ", scale = 0.3"])
    def test_three_operands_and_their_bias(self, operands: str, attributes: str) -> None:
        made = block(MULTI_HEAD.format(attributes, operands), ", float[B,T,8] k, float[B,T,8] v")
        found = whole(made)
        assert found.attributes["scale"] == pytest.approx(0.3 if "scale" in attributes else 0.5)
        for queries, keys in ((5, 5), (3, 5), (5, 3)):
            same(made, found.model, B=2, S=queries, T=keys)

    @pytest.mark.parametrize("operands", ["x, k, v", "x, k, v, b", "x, k, v, , m"])
    def test_causal(self, operands: str) -> None:
        inputs = ", float[B,S,8] k, float[B,S,8] v" + (", int32[B,S] m" if "m" in operands else "")
        made = block(MULTI_HEAD.format(", unidirectional = 1", operands), inputs)
        found = whole(made)
        assert found.attributes["causal"] == "upper_left"
        masks = {"m": MASKS} if "m" in operands else {}
        same(made, found.model, x=drawn(4, 5, 8), k=drawn(4, 5, 8), v=drawn(4, 5, 8), **masks)

    @pytest.mark.parametrize("attributes", ["", ", mask_filter_value = -3.0"])
    def test_a_mask_of_keys(self, attributes: str) -> None:
        inputs = ", float[B,T,8] k, float[B,T,8] v, int32[B,T] m"
        made = block(MULTI_HEAD.format(attributes, "x, k, v, b, m"), inputs)
        same(made, whole(made).model, x=drawn(4, 5, 8), k=drawn(4, 5, 8), v=drawn(4, 5, 8), m=MASKS)

    def test_a_bias_on_the_scores(self) -> None:
        inputs = ", float[B,T,8] k, float[B,T,8] v, int32[B,T] m, float[B,2,S,T] r"
        made = block(MULTI_HEAD.format(", mask_filter_value = -3.4e38", "x, k, v, , m, r"), inputs)
        found = whole(made)
        operands = {name: drawn(4, 5, 8) for name in "xkv"}
        same(made, found.model, **operands, m=MASKS, r=drawn(4, 2, 5, 5))

    @pytest.mark.parametrize(
        ("operands", "inputs", "sentence"),
        [
            ("x, k, v, , , , pk, pv", ", float[B,2,P,4] pk, float[B,2,P,4] pv", "it has a key-value cache, which"),
            (
                "x, k, v, , m, r",
                ", int32[B,T] m, float[B,2,S,T] r",
                "it adds -10000 for the mask m and then the bias r, a fused",
            ),
            ("packed", ", float[B,S,2,3,4] packed", "its query, key and value are not [batch, sequence, hidden] each"),
        ],
    )
    def test_what_is_beyond_the_operator_says_so(self, operands: str, inputs: str, sentence: str) -> None:
        inputs += ", float[B,T,8] k, float[B,T,8] v" if "k" in operands.split(", ") else ""
        made = block(MULTI_HEAD.format("", operands), inputs)
        assert any(reason.startswith(sentence) for reason in refused(made))

    def test_causal_with_more_keys_than_queries_is_not_triangular(self) -> None:
        made = block(MULTI_HEAD.format(", unidirectional = 1", "x, k, v"), ", float[B,T,8] k, float[B,T,8] v")
        assert "it is causal, and its queries and keys are not equally many" in refused(made)


class TestNorms:
    @pytest.mark.parametrize("order", ["p, x", "x, p"])
    @pytest.mark.parametrize(
        ("operator", "rest", "norm"),
        [
            ("SkipLayerNormalization", "gamma, beta, out_b", "layer"),
            ("SkipLayerNormalization", "gamma, beta", "layer"),
            ("SkipLayerNormalization", "gamma", "layer"),
            ("SkipSimplifiedLayerNormalization", "gamma, out_b", "rms"),
            ("SkipSimplifiedLayerNormalization", "gamma", "rms"),
        ],
    )
    def test_the_sum_and_its_norm_are_the_rim(self, order: str, operator: str, rest: str, norm: str) -> None:
        rim = f"p = MatMul(c, out_w)\ny = com.microsoft.{operator} <epsilon = 1e-3> ({order}, {rest})"
        found = whole(block("c = com.microsoft.Attention <num_heads = 2> (x, w, b)", rim=rim))
        assert found.attributes["norm"] == norm
        assert found.attributes["epsilon"] == pytest.approx(1e-3)
        assert ("out_bias" in found.inputs) == ("out_b" in rest)

    def test_the_sum_that_a_later_layer_reads_becomes_the_second_output(self) -> None:
        rim = """p = MatMul(c, out_w)
            n, , , s = com.microsoft.SkipLayerNormalization <epsilon = 1e-5> (p, x, gamma, beta, out_b)
            f = MatMul(n, out_w)
            y = Add(f, s)"""
        found = whole(block("c = com.microsoft.Attention <num_heads = 2> (x, w, b)", rim=rim))
        assert found.record.outputs == ("output", "residual_sum")

    def test_simplified_is_rms(self) -> None:
        rim = "p = MatMul(c, out_w)\nt = Add(p, x)\ny = SimplifiedLayerNormalization <axis = -1, epsilon = 1e-3> (t, gamma)"
        made = block("c = com.microsoft.Attention <num_heads = 2> (x, w, b)", rim=rim)
        result = onnx_fuse.fuse(made, fusions=[NAME])
        assert result.report.matches[0].parts == RIM
        assert result.report.verification is not None

    def test_layer_norm_in_an_opset_that_onnx_does_not_have_it_in(self) -> None:
        """ONNX Runtime's optimisers write it in any opset, and ONNX Runtime runs it."""
        rim = "p = MatMul(c, out_w)\nt = Add(p, x)\ny = LayerNormalization <axis = -1, epsilon = 1e-5> (t, gamma, beta)"
        made = block("c = com.microsoft.Attention <num_heads = 2> (x, w, b)", rim=rim, opset=14)
        assert onnx_fuse.fuse(made, fusions=[NAME]).report.matches[0].parts == RIM

    def test_statistics_that_are_read_keep_the_operator(self) -> None:
        made = block(
            "c = com.microsoft.Attention <num_heads = 2> (x, w, b)",
            rim="n, m = com.microsoft.SkipLayerNormalization (c, x, gamma, beta)\ny = Add(n, m)",
        )
        view = view_of(made)
        assert [node.op_type for node in view.nodes([("com.microsoft", "SkipLayerNormalization")])]

    @pytest.mark.parametrize("positions", [False, True])
    def test_embeddings(self, positions: bool) -> None:
        extra, inputs = (", , p", ", int32[B,S] p") if positions else ("", "")
        text = f"""(int32[B,S] i, int32[B,S] s{inputs}) => (float[B,S,8] y) {{
            y, n = com.microsoft.EmbedLayerNormalization <epsilon = 1e-5> (i, s, words, places, kinds, gamma, beta{extra})
        }}"""
        weights = {"words": drawn(11, 8), "places": drawn(9, 8), "kinds": drawn(5, 8)}
        made = helpers.model(text, weights={**weights, "gamma": WEIGHTS["gamma"], "beta": WEIGHTS["beta"]})
        result = onnx_fuse.fuse(made, fusions=["FusedEmbedLayerNorm"], verify=False)
        assert result.report.fused == {"FusedEmbedLayerNorm": 1}
        ids = {
            "i": RANDOM.integers(0, 11, (2, 7)),
            "s": RANDOM.integers(0, 5, (2, 7)),
            "p": RANDOM.integers(0, 9, (2, 7)),
        }
        given = {name: array.astype(np.int32) for name, array in ids.items() if positions or name != "p"}
        (want,), (got,) = helpers.run(made, given), helpers.run(result.model, given)
        np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-5)


class TestProductsAndActivations:
    @pytest.mark.parametrize(
        ("body", "operators"),
        [
            ("y = com.microsoft.Gelu(x)", ["Gelu"]),
            ("y = com.microsoft.FastGelu(x)", ["Gelu"]),
            ("y = com.microsoft.FastGelu(x, b)", ["Add", "Gelu"]),
            ("y = com.microsoft.BiasGelu(x, b)", ["Add", "Gelu"]),
            ("y = com.microsoft.QuickGelu <alpha = 1.5> (x)", ["Swish"]),
            ("y = com.microsoft.FusedMatMul(x, z)", ["MatMul"]),
            ("y = com.microsoft.FusedMatMul <transB = 1> (x, z)", ["Transpose", "MatMul"]),
            ("y = com.microsoft.FusedMatMul <transA = 1, alpha = 0.5> (x, z)", ["Transpose", "MatMul", "Mul"]),
            ("y = com.microsoft.FusedMatMul <transBatchA = 1> (x, z)", ["FusedMatMul"]),
        ],
    )
    def test_they_are_onnx_operators(self, body: str, operators: list[str]) -> None:
        made = helpers.model(
            f"(float[3,8,8] x, float[3,8,8] z) => (float[3,8,8] y) {{ {body} }}", weights={"b": drawn(8)}
        )
        assert [node.op_type for node in view_of(made).all_nodes()] == operators

    def test_quick_gelu_is_swish(self) -> None:
        made = helpers.model("(float[B,8] x) => (float[B,8] y) { y = com.microsoft.QuickGelu <alpha = 1.5> (x) }")
        result = onnx_fuse.fuse(made, fusions=["FusedSwish"])
        assert result.report.fused == {"FusedSwish": 1}

    def test_simplify_leaves_them_as_they_are(self) -> None:
        made = block("c = com.microsoft.Attention <num_heads = 2> (x, w, b)")
        result = onnx_fuse.fuse(made, fusions=[], simplify=True, verify=False)
        assert [node.op_type for node in result.model.graph.node] == ["Attention", "MatMul", "SkipLayerNormalization"]


FORMS: dict[str, dict[str, Any]] = {
    "bias": {},
    "additive mask": {"inputs": {"m": "[B,1,1,S]"}, "mask": "masked = Add({}, m)"},
    "pre-LN": {
        "norm": "normed = LayerNormalization <axis = -1, epsilon = 1e-05> ({}, gamma, beta)\nz = Add(normed, {})"
    },
}


@pytest.mark.parametrize("form", FORMS.values(), ids=FORMS)
def test_what_onnx_runtime_optimised_fuses_like_the_original(form: dict[str, Any], tmp_path: Path) -> None:
    made = attention(**form)
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_EXTENDED
    options.optimized_model_filepath = str(tmp_path / "optimized.onnx")
    ort.InferenceSession(made.SerializeToString(), options, providers=["CPUExecutionProvider"])
    optimized = onnx.load(options.optimized_model_filepath)
    assert {node.op_type for node in optimized.graph.node if node.domain == "com.microsoft"}
    result = onnx_fuse.fuse(optimized, fusions=[NAME])
    assert result.report.fused == {NAME: 1}
    assert result.report.matches[0].parts == RIM
