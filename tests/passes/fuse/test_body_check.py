"""Nodes whose operator does not take what they would read, and bodies that do not make what the graph has."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from onnx_fuse.patterns.language.declaration import declare
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


class TestDeclarations:
    @pytest.mark.parametrize(
        "line, inputs, reason",
        [
            ("[B, 1|S]", "float[2,3] x", None),
            ("[B, 1|S]", "float[n,3] x", None),
            ("[B, 4]", "float[2,3] x", "x is [2, 3], allowed is [B, 4] with B = 2"),
            ("[B, 4]", "float[n,3] x", "x is [?, 3], allowed is [B, 4]"),
            ("[B]", "float[n,m] x", "x is [?, ?], allowed is [B]"),
            ("[..., H]", "float[n,m] x", None),
        ],
    )
    def test_only_shapes_that_are_declared_are_fused(self, line: str, inputs: str, reason: str | None) -> None:
        fusion = fusion_of(bump, lambda op, x: op.Cos(op.Neg(op.Sin(x))), name="Bump")
        declared = replace(fusion.operator, declaration=declare(f"x: T {line}", f"-> output: T {line}"))
        before = model(f"({inputs}) => ({inputs[:-1]}y) {{ s = Sin(x) m = Neg(s) y = Cos(m) }}")
        after, report = fused(before, replace(fusion, operator=declared))
        assert operators(after) == (["Bump"] if reason is None else ["Sin", "Neg", "Cos"])
        if reason is not None:
            assert the_miss(report, "Bump").reason == f"Bump does not take its inputs: {reason}"

    def test_only_types_that_are_declared_are_fused(self) -> None:
        fusion = fusion_of(bump, lambda op, x: op.Cos(op.Neg(op.Sin(x))), name="Bump")
        before = model("(float[2,3] x) => (float[2,3] y) { s = Sin(x) m = Neg(s) y = Cos(m) }")
        declarations: dict[str, Any] = {
            kind: declare(f"x: {kind} [B, 3]") for kind in ("T", "bool|T", "float32", "bool")
        }
        made = {}
        for kind, declaration in declarations.items():
            operator = replace(fusion.operator, declaration=declaration)
            made[kind] = operators(fused(before, replace(fusion, operator=operator))[0])
        assert [kind for kind, found in made.items() if found == ["Bump"]] == ["T", "bool|T", "float32"]
