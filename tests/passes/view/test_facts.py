"""What is known of values and nodes: attributes whether written as such or as inputs, and types and shapes."""

from __future__ import annotations

import pytest
from onnx import TensorProto, helper

from onnx_fuse.passes.graph.attributes import Reference
from onnx_fuse.passes.graph.dims import symbol
from onnx_fuse.passes.graph.index import Graph
from onnx_fuse.passes.view.view import View
from tests.helpers import Builder, model, view_of


class TestAttributes:
    def test_defaults_come_from_the_schema(self) -> None:
        view = view_of(
            model("(float[2,4] x) => (float[2,4] y) <float[4] g={1,1,1,1}> { y = LayerNormalization(x, g) }")
        )
        assert view.attribute(view.graph.nodes[0], "epsilon") == pytest.approx(1e-5)
        assert view.attribute(view.graph.nodes[0], "axis") == -1

    @pytest.mark.parametrize("opset", [12, 17, 18])
    def test_axes_are_an_attribute_whether_written_as_one_or_not(self, opset: int) -> None:
        body = (
            "y = ReduceMean<axes=[1]>(x)" if opset < 18 else "a = Constant<value = int64[1] {1}>() y = ReduceMean(x, a)"
        )
        view = view_of(model(f"(float[2,4] x) => (float[2,1] y) {{ {body} }}", opset=opset), canonical=False)
        node = view.producer("y")
        assert node is not None and view.attribute(node, "axes") == [1]

    def test_scalars_stay_scalars(self) -> None:
        view = view_of(
            model("(float[2] x) => (float[2] y) { lo = Constant<value_float=0.5>() y = Clip(x, lo) }"), canonical=False
        )
        assert view.attribute(view.graph.nodes[1], "min") == 0.5
        assert view.attribute(view.graph.nodes[1], "max") is None

    def test_what_the_run_decides_is_a_reference(self) -> None:
        view = view_of(model("(float[2,4] x, int64[1] a) => (float[n] y) { y = Squeeze(x, a) }"), canonical=False)
        assert isinstance(view.attribute(view.graph.nodes[0], "axes"), Reference)

    def test_another_domain_s_attributes_are_what_is_written(self) -> None:
        view = view_of(model("(float[2] x) => (float[2] y) { y = my.LayerNormalization(x) }"), canonical=False)
        assert view.attribute(view.graph.nodes[0], "epsilon") is None


class TestShapes:
    def test_a_subgraph_knows_the_shapes_outside_it(self) -> None:
        made = model(
            """(bool c, float[B,4] x) => (float[B,4] y) {
                a = Abs(x)
                y = If (c) <
                    then_branch = yes () => (float[B,4] p) { t = Neg(a) p = Neg(t) },
                    else_branch = no () => (float[B,4] q) { q = Identity(a) }
                >
            }"""
        )
        outer = Graph(made.graph, made)
        branch = next(item.g for item in made.graph.node[1].attribute if item.name == "then_branch")
        view = View(Graph(branch, made, "y/then_branch", outer))
        assert view.shape("t") == (symbol("B"), 4) and view.dtype("t") == TensorProto.FLOAT

    def test_broadcasting_to_a_shape(self) -> None:
        made = Builder(x=["B", "S", 4], row=[4], column=["S", 1], other=["T", 4], wide=[1, 1, 1, 4])
        view = view_of(made.model(made.node("Abs", "x")), canonical=False)
        target = view.shape("x") or ()
        fits = {name: view.broadcasts_to(name, target) for name in ("x", "row", "column", "other", "wide")}
        assert fits == {"x": True, "row": True, "column": True, "other": False, "wide": False}

    def test_a_declared_type_counts_where_nothing_else_is_known(self) -> None:
        node = helper.make_node("Mystery", ["x"], ["y"], domain="my")
        graph = helper.make_graph(
            [node], "g", [helper.make_tensor_value_info("x", TensorProto.FLOAT, [2])],
            [helper.make_tensor_value_info("y", TensorProto.FLOAT16, ["B", None])],
        )  # fmt: skip
        view = View(Graph(graph, helper.make_model(graph)))
        assert view.dtype("y") == TensorProto.FLOAT16
        assert [str(dim) for dim in view.shape("y") or ()] == ["B", "y#1"]
