"""Fused nodes and their bodies as they are written into a model: valid for onnx, runnable by ONNX Runtime, readable by TensorRT."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import ModelProto, NodeProto, TensorProto, helper

import onnx_fuse
from onnx_fuse.passes.files.checker import check
from onnx_fuse.passes.graph import function_bodies, inlining
from onnx_fuse.patterns import Attribute, Fused, FusedOp, Fusion, Scalar, fusions, pattern
from tests.helpers import assert_same_results, fused, model, operators, run

SILU = "(float[n,4] x) => (float[n,4] y) { s = Sigmoid(x) y = Mul(x, s) }"
SWISH = next(fusion for fusion in fusions() if fusion.name == "FusedSwish")
SKIP = next(fusion for fusion in fusions() if fusion.name == "FusedSkipLayerNorm")
WEIGHTS = {"g": np.array([1, 2, 3, 4], np.float32), "b": np.array([-1, 0.5, 2, 1], np.float32)}


def attributes(node: NodeProto) -> dict[str, Any]:
    return {item.name: helper.get_attribute_value(item) for item in node.attribute}


def fused_nodes(made: ModelProto) -> list[NodeProto]:
    return [node for node in made.graph.node if node.domain == "gr.ml.infra"]


class TestNodes:
    def test_a_node_carries_all_that_tensorrt_needs(self) -> None:
        after, _ = fused(model(SILU), SWISH)
        (node,) = after.graph.node
        assert attributes(node) == {
            "beta": 1.0,
            "inputs": b"x",
            "outputs": b"output",
            "plugin_version": b"1",
            "plugin_namespace": b"gr.ml.infra",
        }
        assert (node.op_type, node.domain, node.overload) == ("FusedSwish", "gr.ml.infra", "")
        assert {item.domain: item.version for item in after.opset_import} == {"": 17, "gr.ml.infra": 1}

    def test_inputs_that_are_there_are_compacted_in_the_listed_order(self) -> None:
        made = model(
            "(float[n,4] x, float[n,4] r) => (float[n,4] y) { s = Add(x, r) y = LayerNormalization<epsilon=0.5>(s, g, b) }",
            weights=WEIGHTS,
        )
        after, _ = fused(made, SKIP)
        (node,) = after.graph.node
        assert list(node.input) == ["x", "r", "g", "b"] and list(node.output) == ["y"]
        found = attributes(node)
        assert (found["inputs"], found["outputs"]) == (b"x,skip,gamma,beta", b"output")
        assert found["epsilon"] == 0.5 and found["norm"] == b"layer"

    def test_nodes_differ_where_their_inputs_or_attributes_do_and_are_else_alike(self) -> None:
        norm = "LayerNormalization<epsilon={}>"
        after, _ = fused(
            model(
                f"""(float[n,4] x, float[n,4] r) => (float[n,4] c, float[n,4] f, float[n,4] i) {{
                    a = Add(x, r) [first] c = {norm.format(0.5)}(a, g, b) d = Add(c, r) [second] f = {norm.format(0.5)}(d, b, g)
                    h = Add(f, r) [third] i = {norm.format(0.25)}(h, g, b)
                }}""",
                weights=WEIGHTS,
            ),
            SKIP,
        )
        first, second, third = after.graph.node
        assert [list(node.input) for node in after.graph.node] == [
            ["x", "r", "g", "b"],
            ["c", "r", "b", "g"],
            ["f", "r", "g", "b"],
        ]
        assert attributes(first) == attributes(second) == {**attributes(third), "epsilon": 0.5}
        assert attributes(third)["epsilon"] == 0.25
        assert len({node.name for node in after.graph.node}) == 3

    def test_outputs_that_are_there_are_named_too(self) -> None:
        made = model(
            """(float[n,4] x, float[n,4] r) => (float[n,4] y, float[n,4] z) {
                s = Add(x, r) y = LayerNormalization(s, g, b) z = Relu(s)
            }""",
            weights=WEIGHTS,
        )
        after, _ = fused(made, SKIP)
        (node,) = fused_nodes(after)
        assert list(node.output) == ["y", "s"] and attributes(node)["outputs"] == b"output,residual_sum"

    def test_an_import_that_is_there_already_stays(self) -> None:
        made = model(SILU)
        made.opset_import.append(helper.make_opsetid("gr.ml.infra", 1))
        after, _ = fused(made, SWISH)
        assert len(after.opset_import) == 2


class TestBodies:
    def test_one_body_serves_all_nodes_whatever_their_attributes(self) -> None:
        made = model(
            """(float[n,4] x) => (float[n,4] y) {
                a = Constant<value_float=1.5>() p = Mul(x, a) s = Sigmoid(p) m = Mul(x, s)
                b = Constant<value_float=0.25>() q = Mul(m, b) t = Sigmoid(q) y = Mul(m, t)
            }"""
        )
        after, _ = fused(made, SWISH)
        assert [attributes(node)["beta"] for node in fused_nodes(after)] == [1.5, 0.25]
        (body,) = after.functions
        assert list(body.attribute) == ["beta"] and body.overload == ""
        assert any(item.ref_attr_name == "beta" for node in body.node for item in node.attribute)
        assert_same_results(made, after)

    def test_one_body_serves_all_sizes(self) -> None:
        """No size is a constant in it: TensorRT would take those of the first body for all nodes."""
        blocks, weights = "", {}
        for number, (heads, size) in enumerate(((2, 4), (4, 2))):
            weights[f"four{number}"] = np.array([0, 0, heads, size])
            blocks += f"""
                q{number} = Reshape(x, four{number}) qh{number} = Transpose<perm=[0, 2, 1, 3]>(q{number})
                kt{number} = Transpose<perm=[0, 2, 3, 1]>(q{number}) s{number} = MatMul(qh{number}, kt{number})
                t{number} = Mul(s{number}, scale) p{number} = Softmax<axis=-1>(t{number}) c{number} = MatMul(p{number}, qh{number})
                m{number} = Transpose<perm=[0, 2, 1, 3]>(c{number}) y{number} = Reshape(m{number}, flat)"""
        weights |= {"flat": np.array([0, 0, 8]), "scale": np.array(0.5, np.float32)}
        made = model(f"(float[B,S,8] x) => (float[B,S,8] y) {{ {blocks} y = Mul(y0, y1) }}", weights=weights)
        result = onnx_fuse.fuse(made)
        assert result.report.fused == {"FusedAttentionLayerNorm": 2}
        assert sorted(attributes(node)["num_heads"] for node in fused_nodes(result.model)) == [2, 4]
        assert len(result.model.functions) == 1
        assert not result.report.warnings

    def test_other_inputs_make_another_body_and_a_warning(self) -> None:
        made = model(
            """(float[n,4] x, float[n,4] r) => (float[n,4] y) {
                s = Add(x, r) a = LayerNormalization(s, g, b) t = Add(a, x) y = LayerNormalization(t, g)
            }""",
            weights=WEIGHTS,
        )
        result = onnx_fuse.fuse(made, enable=["FusedSkipLayerNorm"])
        after = result.model
        assert [function.overload for function in after.functions] == ["", "v1"]
        assert [node.overload for node in fused_nodes(after)] == ["", "v1"]
        assert after.ir_version >= 10
        (warning,) = result.report.warnings
        assert warning.startswith("gr.ml.infra::FusedSkipLayerNorm has 2 bodies")
        check(after, full=True)
        assert_same_results(made, after)

    def test_a_body_that_is_there_already_is_used(self) -> None:
        made = model("(float[n,4] x) => (float[n,4] y) { s = Sigmoid(x) a = Mul(x, s) t = Relu(a) y = Abs(t) }")
        once, _ = fused(made, SWISH)
        # Somebody appends another gate to the fused model.
        once.graph.node[-1].output[0] = "u"
        once.graph.node.extend([helper.make_node("Sigmoid", ["u"], ["v"]), helper.make_node("Mul", ["u", "v"], ["y"])])
        twice, report = fused(once, SWISH)
        assert report.fused == {"FusedSwish": 1} and len(twice.functions) == 1
        check(twice, full=True)

    def test_another_s_body_of_that_name_is_left_alone(self) -> None:
        made = model(SILU)
        foreign = helper.make_function(
            "gr.ml.infra", "FusedSwish", ["x"], ["output"], [helper.make_node("Neg", ["x"], ["output"])],
            [helper.make_opsetid("", 17)],
        )  # fmt: skip
        made.functions.append(foreign)
        after, _ = fused(made, SWISH)
        assert after.functions[0] == foreign and after.functions[1].overload == "v1"
        assert fused_nodes(after)[0].overload == "v1"
        assert_same_results(made, after)

    def test_other_functions_stay(self) -> None:
        made = model(
            "(float[n,4] x) => (float[n,4] y) { a = my.Twice(x) s = Sigmoid(a) y = Mul(a, s) }",
            functions="""<domain: "my", opset_import: ["" : 17]> Twice (x) => (y) { y = Add(x, x) }""",
        )
        for functions in ("keep", "none"):
            after = onnx_fuse.fuse(made, enable=["FusedSwish"], functions=functions).model  # type: ignore[arg-type]
            assert [item.name for item in after.functions] == ["Twice", "FusedSwish"][: 2 if functions == "keep" else 1]

    def test_models_of_old_ir_versions_are_raised_to_what_functions_need(self) -> None:
        after, _ = fused(model(SILU, opset=13, ir=7), SWISH)
        assert after.ir_version == 8
        check(after, full=True)


class TestFunctions:
    @pytest.fixture
    def made(self) -> ModelProto:
        return model(SILU)

    def test_keep(self, made: ModelProto) -> None:
        after = onnx_fuse.fuse(made, enable=["FusedSwish"]).model
        assert operators(after) == ["FusedSwish"] and len(after.functions) == 1
        assert_same_results(made, after)

    def test_inline(self, made: ModelProto) -> None:
        result = onnx_fuse.fuse(made, enable=["FusedSwish"], functions="inline")
        assert "FusedSwish" not in operators(result.model) and not result.model.functions
        assert result.report.fused == {"FusedSwish": 1}
        check(result.model, full=True)
        assert_same_results(made, result.model)

    def test_inline_with_several_bodies_of_one_name(self) -> None:
        made = model(
            """(float[n,4] x, float[n,4] r) => (float[n,4] y) {
                s = Add(x, r) a = LayerNormalization(s, g, b) t = Add(a, x) y = LayerNormalization(t, g)
            }""",
            weights=WEIGHTS,
        )
        result = onnx_fuse.fuse(made, enable=["FusedSkipLayerNorm"], functions="inline")
        assert result.report.fused == {"FusedSkipLayerNorm": 2} and not result.report.warnings
        assert not fused_nodes(result.model) and not result.model.functions
        assert_same_results(made, result.model)

    def test_none(self, made: ModelProto) -> None:
        after = onnx_fuse.fuse(made, enable=["FusedSwish"], functions="none").model
        assert operators(after) == ["FusedSwish"] and not after.functions
        check(after)

    @pytest.mark.parametrize("functions", ["inline", "none"])
    def test_what_was_fused_before_can_be_inlined_or_stripped_later(self, functions: Any, tmp_path: Path) -> None:
        onnx_fuse.fuse(model(SILU), enable=["FusedSwish"]).save(tmp_path / "fused.onnx")
        result = onnx_fuse.fuse(tmp_path / "fused.onnx", enable=["FusedSwish"], functions=functions)
        assert result.changed
        result.save(tmp_path / "out.onnx")
        assert not onnx.load(tmp_path / "out.onnx").functions

    def test_inline_of_a_model_without_a_match_changes_no_byte(self, tmp_path: Path) -> None:
        path = tmp_path / "m.onnx"
        path.write_bytes(model("(float[n] x) => (float[n] y) { y = Relu(x) }").SerializeToString())
        result = onnx_fuse.fuse(path, functions="inline")
        result.save(tmp_path / "out.onnx")
        assert not result.changed and (tmp_path / "out.onnx").read_bytes() == path.read_bytes()


LAYER = """
    ({T}[n,4] x, {T}[n,4] r) => ({T}[n,4] y, {T}[n,4] z) {{
        one = Sigmoid(x) m = Mul(x, one) s = Add(m, r) z = Tanh(s)
        mean = {MEAN} c = Sub(s, mean) q = Mul(c, c) var = {VARIANCE}
        v = Add(var, eps) d = Sqrt(v) n = Div(c, d) a = Mul(n, g) y = Add(a, b)
    }}"""


def layer(opset: int, kind: str = "float", ir: int | None = None) -> ModelProto:
    """SiLU, a residual sum that is read elsewhere too, and a decomposed LayerNorm."""
    mean, variance = "ReduceMean<axes=[-1]>(s)", "ReduceMean<axes=[-1]>(q)"
    if opset >= 18:
        mean, variance = "ReduceMean(s, last)", "ReduceMean(q, last)"
    codes = {"float": TensorProto.FLOAT, "float16": TensorProto.FLOAT16, "bfloat16": TensorProto.BFLOAT16}
    dtype = helper.tensor_dtype_to_np_dtype(codes[kind])
    weights = {name: array.astype(dtype) for name, array in {**WEIGHTS, "eps": np.array(0.01)}.items()}
    if opset >= 18:
        weights["last"] = np.array([-1])
    text = LAYER.format(T=kind, MEAN=mean, VARIANCE=variance)
    return model(text, opset=opset, ir=ir or min(8 + (opset > 18) * 2, 10), weights=weights)


class TestOpsetsAndTypes:
    @pytest.mark.parametrize("opset", [13, 14, 15, 17, 18, 20, 21, 22, 23])
    def test_every_opset_gets_a_body_it_has_the_operators_for(self, opset: int) -> None:
        before = layer(opset)
        after, report = fused(before, SWISH, SKIP)
        assert report.fused == {"FusedSkipLayerNorm": 1, "FusedSwish": 1}
        assert operators(after) == ["FusedSwish", "FusedSkipLayerNorm", "Tanh"]
        assert all(function.opset_import[0].version == opset for function in after.functions)
        check(after, full=True)
        assert_same_results(before, after)

    @pytest.mark.parametrize("opset", [13, 14, 17, 23])
    @pytest.mark.parametrize("kind", ["float16", "bfloat16"])
    def test_bodies_are_the_same_for_all_types_and_pass_the_checker(self, kind: str, opset: int) -> None:
        before = layer(opset, kind)
        after, report = fused(before, SWISH, SKIP)
        assert report.fused == {"FusedSkipLayerNorm": 1, "FusedSwish": 1}
        check(after, full=True)
        inferred = onnx.shape_inference.infer_shapes(after, strict_mode=True, check_type=True)
        assert [value.type.tensor_type.elem_type for value in inferred.graph.output] == [
            value.type.tensor_type.elem_type for value in before.graph.output
        ]
        if kind == "float16":
            assert_same_results(before, after, tolerance=2e-2)

    @pytest.mark.parametrize("opset", [14, 17])
    def test_below_the_opset_of_castlike_each_type_has_its_own_body(self, opset: int) -> None:
        text = """(float[n] x, float16[n] h) => (float[n] y, float16[n] z) {
            s = Sigmoid(x) y = Mul(x, s) t = Sigmoid(h) z = Mul(h, t)
        }"""
        before = model(text, opset=opset)
        after, _ = fused(before, SWISH)
        assert len(after.functions) == (2 if opset < 15 else 1)
        check(after, full=True)
        assert_same_results(before, after, tolerance=1e-2)

    @pytest.mark.parametrize("opset", [14, 18, 23])
    def test_all_of_it_inlined_is_the_same_again(self, opset: int) -> None:
        before = layer(opset)
        result = onnx_fuse.fuse(before, enable=["FusedSwish", "FusedSkipLayerNorm"], functions="inline")
        assert result.report.fused == {"FusedSkipLayerNorm": 1, "FusedSwish": 1}
        check(result.model, full=True)
        assert_same_results(before, result.model)


@pattern
def scaled(op, x, factor: Scalar):
    return op.Sin(op.Mul(x, factor))


def scaled_fusion(body: Any, **options: Any) -> Fusion:
    operator = FusedOp("Scaled", ("x",), body, ("factor", "mode"), **options)

    def build(match: Any, view: Any) -> Fused:
        factor = view.scalar(match["factor"])
        mode = "large" if factor > 1 else "small"
        return Fused({"x": match["x"]}, {"output": match.value}, {"factor": factor, "mode": mode})

    return Fusion("Scaled", scaled, operator, build)


class TestVariants:
    TEXT = """(float[n] x) => (float[n] y) {
        a = Constant<value_float=0.5>() p = Mul(x, a) q = Sin(p) b = Constant<value_float=2.0>() r = Mul(q, b) y = Sin(r)
    }"""

    def test_a_text_attribute_makes_a_body_of_its_own(self) -> None:
        def body(op: Any, x: str, factor: str, mode: str) -> str:
            assert mode in ("large", "small")
            return str(op.Sin(op.Mul(x, factor)))

        before = model(self.TEXT)
        after, _ = fused(before, scaled_fusion(body))
        assert [function.overload for function in after.functions] == [""]  # equal bodies are one
        assert_same_results(before, after)

    def test_unequal_ones_are_overloads(self) -> None:
        def body(op: Any, x: str, factor: str, mode: str) -> str:
            product = op.Mul(factor, x) if mode == "large" else op.Mul(x, factor)
            return str(op.Sin(product))

        before = model(self.TEXT)
        after, _ = fused(before, scaled_fusion(body))
        assert [function.overload for function in after.functions] == ["", "v1"]
        assert_same_results(before, after)

    def test_another_domain_and_namespace(self) -> None:
        def body(op: Any, x: str, factor: str, mode: str) -> str:
            return str(op.Sin(op.Mul(x, factor)))

        made = scaled_fusion(body, domain="com.example", plugin_version="7", plugin_namespace="")
        before = model(self.TEXT)
        after, _ = fused(before, made)
        node = after.graph.node[-1]
        assert node.domain == "com.example"
        assert (attributes(node)["plugin_version"], attributes(node)["plugin_namespace"]) == (b"7", b"")
        assert {item.domain for item in after.opset_import} == {"", "com.example"}
        check(after, full=True)
        assert_same_results(before, after)


class TestMetadata:
    def test_the_last_of_several_wins_and_names_are_recorded(self) -> None:
        nodes = [helper.make_node("Abs", ["x"], ["a"], name="first"), helper.make_node("Neg", ["a"], ["b"])]
        for number, node in enumerate(nodes):
            node.metadata_props.add(key="k", value=str(number))
        target = helper.make_node("Fused", ["x"], ["b"])
        function_bodies.merge_metadata(target, nodes, record=True)
        found = {entry.key: entry.value for entry in target.metadata_props}
        assert found["k"] == "1" and json.loads(found["onnx_fuse.replaced"]) == ["first", "b"]

    def test_models_without_metadata_get_none(self) -> None:
        """Metadata of nodes came with IR version 10."""
        after, _ = fused(model(SILU, ir=8), SWISH)
        assert not after.graph.node[0].metadata_props


def test_attributes_of_two_nodes_reach_the_shared_body() -> None:
    @pattern
    def leaky(op, x, alpha: Attribute):
        return op.Abs(op.LeakyRelu(x, alpha=alpha))

    def body(op: Any, x: str, alpha: str) -> str:
        zero = 0.0
        return str(op.Abs(op.Where(op.Less(x, zero), op.Mul(x, alpha), x)))

    operator = FusedOp("Leaky", ("x",), body, ("alpha",))
    made = Fusion("Leaky", leaky, operator)
    before = model(
        "(float[n] x) => (float[n] y, float[n] z) {"
        " a = LeakyRelu<alpha=0.5>(x) y = Abs(a) b = LeakyRelu<alpha=0.125>(x) z = Abs(b) }"
    )
    after, _ = fused(before, made)
    assert len(after.functions) == 1
    y, z = run(after, {"x": np.array([-8, 8], np.float32)})
    assert (y.tolist(), z.tolist()) == ([4, 8], [1, 8])


TWICE = """
<domain: "d", overload: "OVERLOAD", opset_import: ["": 17]>
Twice <factor> (a) => (b) { c = Constant <value_float: float = @factor> ()  e = Mul (a, c)  b = Add (e, e) }
"""


def test_bodies_of_some_nodes_in_their_places() -> None:
    """Each call has its own body, whatever the overload; the other nodes keep theirs."""
    made = model(
        "(float[n] x) => (float[n] y) { t = d.Twice <factor = 2.0> (x)  u = d.Twice:other <factor = 3.0> (t)  y = d.Twice <factor = 5.0> (u) }",
        functions=TWICE.replace("OVERLOAD", "") + TWICE.replace("OVERLOAD", "other").replace("Add (e, e)", "Neg (e)"),
    )
    for node, name in zip(made.graph.node, ("first", "second", "third"), strict=True):
        node.name = name
    before = made.SerializeToString(deterministic=True)
    opened = inlining.inline_nodes(made, lambda node: node.name in ("second", "third"))
    assert [node.op_type for node in opened.graph.node if node.domain] == ["Twice"]
    names = [node.name for node in opened.graph.node]
    assert names[0] == "first" and all(name.startswith(("second/", "third/")) for name in names[1:])
    assert {(item.name, item.overload) for item in opened.functions} == {("Twice", ""), ("Twice", "other")}
    onnx.checker.check_model(opened)
    assert_same_results(made, opened)
    assert made.SerializeToString(deterministic=True) == before
    assert inlining.inline_nodes(made, lambda node: False) is made
