"""Bodies that do not make what the graph has."""

from __future__ import annotations

from tests.helpers import assert_same_results, fused, fusion_of, model, operators
from tests.passes.fuse.small_fusions import SWISH, bump, reasons, the_miss


class TestTypes:
    def test_an_output_whose_shape_would_change_is_refused(self) -> None:
        wrong = fusion_of(bump, lambda op, x: op.Flatten(op.Cos(x), axis=0), name="Wrong")
        before = model("(float[2,3] x) => (float[2,3] y) { s = Sin(x) m = Neg(s) y = Cos(m) }")
        after, report = fused(before, wrong)
        assert operators(after) == ["Sin", "Neg", "Cos"]
        assert the_miss(report, "Wrong").reason == "y has shape [2, 3], Wrong makes [1, 6]"

    def test_double_is_refused_as_the_operators_compute_in_float(self) -> None:
        before = model("(double[2,3] x) => (double[2,3] y) { s = Sigmoid(x) y = Mul(x, s) }")
        after, report = fused(before, SWISH)
        assert operators(after) == ["Sigmoid", "Mul"]
        assert "DOUBLE" in reasons(report)[0]

    def test_an_unknown_type_is_refused_where_the_opset_needs_it_written_down(self) -> None:
        functions = """<domain: "my", opset_import: ["" : {0}]>
            Block (x) => (y) {{ s = Sigmoid(x) y = Mul(x, s) }}"""
        # Calls that disagree on the type leave it open.
        text = "(float16[2] x, float[2] z) => (float16[2] y, float[2] w) { y = my.Block(x) w = my.Block(z) }"
        before = model(text, opset=14, functions=functions.format(14))
        after, report = fused(before, SWISH)
        assert [node.op_type for node in after.functions[0].node] == ["Sigmoid", "Mul"]
        assert "opset 14" in reasons(report)[0]
        before = model(text, opset=15, functions=functions.format(15))
        after, _ = fused(before, SWISH)
        assert [node.op_type for node in after.functions[0].node] == ["FusedSwish"]
        assert_same_results(before, after, tolerance=1e-2)
