"""Passes in a row: ours and a user's own, on either kind of graph; one that fails fails alone."""

from __future__ import annotations

import gc
from typing import Any

import numpy as np
import onnx_graphsurgeon as gs
import pytest
from onnx import ModelProto, helper

import onnx_fuse
from onnx_fuse import Graph, Pipeline
from onnx_fuse.errors import FusionWarning, PatternError
from onnx_fuse.passes.fuse.fuse_pass import FusePass
from onnx_fuse.passes.fuse.simplify import Simplify
from onnx_fuse.passes.pipeline import GraphPass, Pass, SurgeonPass, as_pass
from onnx_fuse.passes.report import Log
from onnx_fuse.patterns import Fused, FusedOp, Fusion, fusions, pattern
from tests.helpers import assert_same_results, copied, model, operators

TEXT = "(float[n,4] x) => (float[n,4] y) { [gate] s = Sigmoid(x) [product] m = Mul(x, s) [end] y = Relu(m) }"
SWISH = next(fusion for fusion in fusions() if fusion.name == "FusedSwish")


class Rename:
    """A pass of a user's own."""

    name = "rename"

    def run(self, model: ModelProto, log: Log) -> ModelProto:
        for node in model.graph.node:
            node.name = f"new {node.name}"
            log.rewrites += 1
        log.warnings.append("everything is called otherwise now")
        return model


def drop_relu(graph: Graph) -> None:
    """A user's function on Graph."""
    for node in graph.nodes:
        if node.op_type == "Relu":
            identity = helper.make_node("Identity", list(node.inputs), list(node.outputs), name="was relu")
            graph.edit(add=[(node.position, identity)], remove={node.position})
            return


def tanh_for_relu(graph: gs.Graph) -> gs.Graph:
    """A user's function on a graphsurgeon graph."""
    for node in graph.nodes:
        if node.op == "Relu":
            node.op = "Tanh"
    return graph.cleanup()


class TestPasses:
    def test_a_pass_is_an_object_with_a_name_and_a_run(self) -> None:
        assert isinstance(Rename(), Pass) and as_pass(Rename()).name == "rename"
        after, report = Pipeline([Rename()]).run(model(TEXT))
        assert [node.name for node in after.graph.node] == ["new gate", "new product", "new end"]
        assert report.warnings == ["everything is called otherwise now"]
        (record,) = report.passes
        assert (record.name, record.rewrites, record.nodes_before, record.nodes_after) == ("rename", 3, 3, 3)
        assert record.error is None and record.seconds >= 0

    def test_a_function_on_graph_is_one(self) -> None:
        after, report = Pipeline([drop_relu]).run(model(TEXT))
        assert operators(after) == ["Sigmoid", "Mul", "Identity"]
        assert report.passes[0].name == "drop_relu"

    def test_it_is_called_for_every_graph_of_the_model(self) -> None:
        seen = []
        made = model(
            """(bool c, float[2] x) => (float[2] y) {
                a = my.Block(x)
                y = If (c) <then_branch = yes () => (float[2] p) { p = Abs(a) }, else_branch = no () => (float[2] q) { q = Neg(a) }>
            }""",
            functions="""<domain: "my", opset_import: ["" : 17]> Block (x) => (y) { y = Relu(x) }""",
        )
        Pipeline([lambda graph: seen.append(graph.path)]).run(made)
        assert seen == ["", "y/then_branch", "y/else_branch", "function my::Block"]

    @pytest.mark.parametrize("returns", [True, False])
    def test_a_function_on_a_graphsurgeon_graph_is_one(self, returns: bool) -> None:
        def in_place(graph: gs.Graph) -> None:
            tanh_for_relu(graph)

        after, report = Pipeline([tanh_for_relu if returns else in_place]).run(model(TEXT))
        assert operators(after) == ["Sigmoid", "Mul", "Tanh"]
        assert report.passes[0].error is None

    def test_which_it_is_the_annotation_tells(self) -> None:
        def quoted(graph: "gs.Graph") -> None: ...  # noqa: UP037

        def plain(graph: Any) -> None: ...

        def typed(graph: Graph) -> None: ...

        assert isinstance(as_pass(quoted), SurgeonPass)
        assert isinstance(as_pass(plain), GraphPass) and isinstance(as_pass(typed), GraphPass)

    @pytest.mark.parametrize("item", [3, "fuse", None])
    def test_anything_else_is_refused(self, item: Any) -> None:
        with pytest.raises(PatternError, match="is no pass"):
            Pipeline([item])

    def test_ours_and_theirs_in_any_order(self) -> None:
        before = model(TEXT)
        after, report = Pipeline([Rename(), tanh_for_relu, FusePass([SWISH]), drop_relu, Simplify()]).run(
            copied(before)
        )
        assert operators(after) == ["FusedSwish", "Tanh"]
        assert [record.name for record in report.passes] == ["rename", "tanh_for_relu", "fuse", "drop_relu", "simplify"]
        assert (report.nodes_before, report.nodes_after) == (3, 2)
        assert report.seconds > 0

    def test_progress_is_told_before_each(self) -> None:
        said: list[str] = []
        Pipeline([Rename(), drop_relu], progress=said.append).run(model(TEXT))
        assert said == ["rename", "drop_relu"]

    def test_they_run_before_fusing_when_given_to_fuse(self) -> None:
        result = onnx_fuse.fuse(model(TEXT), enable=["FusedSwish"], passes=[tanh_for_relu], verify=False)
        assert operators(result.model) == ["FusedSwish", "Tanh"] and result.changed


class TestFailure:
    @pytest.mark.parametrize("enabled", [True, False])
    def test_the_garbage_collector_is_left_as_it_was(self, enabled: bool) -> None:
        was = gc.isenabled()
        try:
            (gc.enable if enabled else gc.disable)()
            onnx_fuse.fuse(model(TEXT), enable=["FusedSwish"], verify=False)
            assert gc.isenabled() is enabled
        finally:
            (gc.enable if was else gc.disable)()

    def test_a_pass_that_raises_is_reported_its_changes_are_dropped_and_the_others_run(self) -> None:
        def half_way(graph: Graph) -> None:
            graph.edit(remove={2})
            raise RuntimeError("no idea how to go on")

        before = model(TEXT)
        after, report = Pipeline([half_way, FusePass([SWISH]), Rename()]).run(copied(before))
        assert operators(after) == ["FusedSwish", "Relu"]
        assert after.graph.node[1].name == "new end"
        failed, *others = report.passes
        assert failed.error == "RuntimeError: no idea how to go on"
        assert (failed.nodes_before, failed.nodes_after) == (3, 3)
        assert all(record.error is None for record in others)
        assert "pass half_way: RuntimeError: no idea how to go on" in report.warnings

    def test_so_is_one_on_a_graphsurgeon_graph(self) -> None:
        def broken(graph: gs.Graph) -> gs.Graph:
            graph.nodes.clear()
            raise KeyError("nothing")

        after, report = Pipeline([broken, FusePass([SWISH])]).run(model(TEXT))
        assert operators(after) == ["FusedSwish", "Relu"] and report.passes[0].error == "KeyError: 'nothing'"

    def test_what_it_had_said_is_kept(self) -> None:
        class Talks:
            name = "talks"

            def run(self, model: ModelProto, log: Log) -> ModelProto:
                log.warnings.append("so far so good")
                raise ValueError("then not")

        _, report = Pipeline([Talks()]).run(model(TEXT))
        assert report.warnings == ["so far so good", "pass talks: ValueError: then not"]


@pattern
def relu(op, x):
    return op.Relu(x)


def relu_body(op: Any, x: str) -> str:
    return str(op.Relu(x))


def broken_fusion(where: str) -> Fusion:
    """A fusion of Relu whose pattern, build function or body raises."""

    @pattern
    def mine(op, x):
        return op.Relu(x)

    if where == "requirement":

        @mine.require
        def raises(match: Any, view: Any) -> str | None:
            raise ZeroDivisionError("in the requirement")

    def build(match: Any, view: Any) -> Fused:
        if where == "build":
            raise ZeroDivisionError("in the build function")
        return Fused({"x": match["x"]}, {"output": match.value})

    def body(op: Any, x: str) -> str:
        if where == "body":
            raise ZeroDivisionError("in the body")
        return relu_body(op, x)

    return Fusion("Broken", mine, FusedOp("Broken", ("x",), body), build)


class TestRulesThatRaise:
    @pytest.mark.parametrize("where", ["requirement", "build", "body"])
    @pytest.mark.parametrize("first", [True, False])
    def test_they_are_left_out_and_reported_and_the_others_go_on(self, where: str, first: bool) -> None:
        before = model(TEXT)
        chosen = [broken_fusion(where), SWISH][:: 1 if first else -1]
        result = onnx_fuse.fuse(before, fusions=chosen)
        assert operators(result.model) == ["FusedSwish", "Relu"]
        assert result.report.fused == {"FusedSwish": 1}
        (record,) = [item for item in result.report.passes if item.name == "fuse"]
        assert record.error is not None and "Broken" in record.error and "ZeroDivisionError" in record.error
        assert any("ZeroDivisionError" in warning for warning in result.report.warnings)
        assert_same_results(before, result.model)

    def test_a_predicate_too(self) -> None:
        @pattern
        def leaky(op, x):
            return op.LeakyRelu(x, alpha=lambda alpha: alpha.nonsense)

        made = Fusion("Leaky", leaky, FusedOp("Leaky", ("x",), relu_body))
        before = model("(float[n] x) => (float[n] y) { a = LeakyRelu(x) s = Sigmoid(a) y = Mul(a, s) }")
        result = onnx_fuse.fuse(before, fusions=[made, SWISH])
        assert result.report.fused == {"FusedSwish": 1}
        assert any("Leaky raised AttributeError" in warning for warning in result.report.warnings)

    def test_nobody_can_overlook_it(self) -> None:
        with pytest.warns(FusionWarning, match=r"Broken raised ZeroDivisionError.*\(test_pipeline.py:\d+ in"):
            onnx_fuse.fuse(model(TEXT), fusions=[broken_fusion("requirement")])

    @pytest.mark.parametrize("returned", [True, False, 0, "", ["no"]])
    def test_a_requirement_or_build_that_returns_something_else(self, returned: Any) -> None:
        @pattern
        def mine(op, x):
            return op.Relu(x)

        made = Fusion("Mine", mine, FusedOp("Mine", ("x",), relu_body), build=lambda match, view: returned)
        with pytest.raises(PatternError, match="build function of Mine returned"):
            onnx_fuse.fuse(model(TEXT), fusions=[made])
        mine.require(lambda match, view: returned)
        with pytest.raises(PatternError, match="of pattern mine returned"):
            onnx_fuse.fuse(model(TEXT), fusions=[made])

    def test_a_body_of_nonsense(self) -> None:
        made = Fusion("Nonsense", relu, FusedOp("Nonsense", ("x",), lambda op, x: op.NoSuchOperator(x)))
        try:
            result = onnx_fuse.fuse(model(TEXT), fusions=[made, SWISH])
        except PatternError as error:
            assert "Nonsense" in error.cause and "NoSuchOperator" in error.cause
        else:
            assert result.report.fused == {"FusedSwish": 1}
            assert any("Nonsense" in warning for warning in result.report.warnings)

    def test_a_body_with_too_few_results(self) -> None:
        operator = FusedOp("Short", ("x",), relu_body, outputs=("output", "more"))
        made = Fusion("Short", relu, operator)
        result = onnx_fuse.fuse(model(TEXT), fusions=[made, SWISH])
        assert result.report.fused == {"FusedSwish": 1}
        assert any("Short" in warning for warning in result.report.warnings)

    def test_a_build_function_that_names_an_input_there_is_not(self) -> None:
        made = Fusion(
            "Odd", relu, FusedOp("Odd", ("x",), relu_body), lambda match, view: Fused({"z": match["x"]}, {"output": match.root.outputs[0]})
        )  # fmt: skip
        result = onnx_fuse.fuse(model(TEXT), fusions=[made, SWISH])
        assert result.report.fused == {"FusedSwish": 1}
        assert any("Odd has no input 'z'" in warning for warning in result.report.warnings)

    def test_explain_survives_them_too(self) -> None:
        for where in ("requirement", "build", "body"):
            report = onnx_fuse.explain(model(TEXT), fusions=[broken_fusion(where), SWISH])
            assert report.fused == {"FusedSwish": 1}
            assert any("ZeroDivisionError" in warning for warning in report.warnings)


class TestReport:
    def test_it_is_json(self) -> None:
        import json

        result = onnx_fuse.fuse(model(TEXT), enable=["FusedSwish"])
        found = json.loads(result.report.to_json())
        assert found["fused"] == {"FusedSwish": 1} and found["nodes_before"] == 3 and found["nodes_after"] == 2
        assert found["verification"]["passed"] is True
        (match,) = found["matches"]
        assert match["replaced"] == ["gate", "product"] and match["root"] == "product"

    def test_bodies_of_fused_operators_are_no_nodes_of_the_model(self) -> None:
        after, report = Pipeline([FusePass([SWISH])]).run(model(TEXT))
        assert report.nodes_after == 2 and len(after.functions[0].node) > 1

    def test_seconds_of_all_passes_are_within_those_of_the_run(self) -> None:
        _, report = Pipeline([FusePass([SWISH]), Simplify()]).run(model(TEXT))
        assert 0 < sum(record.seconds for record in report.passes) <= report.seconds


def test_a_pipeline_can_run_more_than_one_model() -> None:
    pipeline = Pipeline([FusePass([SWISH]), drop_relu])
    for _ in range(2):
        after, report = pipeline.run(model(TEXT))
        assert operators(after) == ["FusedSwish", "Identity"] and len(report.passes) == 2
    assert np.isfinite(report.seconds)
