"""The canonical view: an overlay that changes no byte of the model and never gives a name another meaning."""

from __future__ import annotations

import numpy as np
import pytest
from onnx import TensorProto, helper

from onnx_fuse.passes.graph.attributes import Reference
from onnx_fuse.passes.graph.dims import symbol
from onnx_fuse.passes.graph.index import Graph
from onnx_fuse.passes.view.view import View
from tests.helpers import Builder, bfloat16, model, view_of

CHAIN = "(float[B,4] x) => (float[B,4] y) { a = Abs(x) b = Neg(a) c = Exp(b) y = Add(c, b) }"


@pytest.fixture
def view() -> View:
    return view_of(model(CHAIN), canonical=False)


class TestStructure:
    def test_an_alias_stands_for_another_value(self, view: View) -> None:
        view.alias("b", "a")
        view.alias("c", "b")
        assert view.resolve("c") == "a" and view.producer("c") is view.graph.nodes[0]
        assert view.inputs(view.graph.nodes[3]) == ("a", "a")
        assert [node.op_type for node in view.all_nodes()] == ["Abs", "Add"]
        assert [node.op_type for node in view.readers("c")] == ["Add"]

    def test_long_chains_of_aliases_are_followed_at_once(self) -> None:
        made = Builder(x=["B", 4])
        last = "x"
        for _ in range(5_000):
            last = made.node("Identity", last)
        found = view_of(made.model(last))
        assert found.resolve(last) == "x" and found.all_nodes() == []

    def test_an_alias_of_itself_is_none(self, view: View) -> None:
        view.alias("a", "x")
        view.alias("x", "a")
        assert view.resolve("a") == view.resolve("x") == "x"

    def test_a_replacement_makes_the_value_from_then_on(self, view: View) -> None:
        old = view.graph.nodes[3]
        new = view.replace("y", "Sub", ["c", "a"], like=old, covers=[view.graph.nodes[1], old])
        assert view.producer("y") is new and not view.is_canonical(old)
        assert new.position == old.position and view.covers(new) == {1, 3}
        assert view.nodes([("", "Add")]) == [] and view.nodes([("", "Sub")]) == [new]

    def test_what_stands_for_what_stood_for_nodes_stands_for_those(self, view: View) -> None:
        nodes = view.graph.nodes
        first = view.replace("b", "Relu", ["x"], like=nodes[1], covers=nodes[:2])
        second = view.replace("c", "Elu", ["x"], like=nodes[2], covers=[first, nodes[2]])
        assert view.covers(second) == {0, 1, 2}

    def test_new_values_have_new_names(self, view: View) -> None:
        node = view.graph.nodes[1]
        first, second = (view.add("Relu", ["x"], like=node) for _ in range(2))
        constant = view.array(np.ones(3, np.float32))
        assert len({first, second, constant, *view.graph.names}) == len(view.graph.names)
        assert not any(view.exists_in_original(name) for name in (first, second, constant))
        assert all(view.exists_in_original(name) for name in ("x", "a", "y"))

    def test_the_model_stays_as_it_is(self) -> None:
        made = model(CHAIN)
        before = made.SerializeToString(deterministic=True)
        view = view_of(made)
        view.alias("b", "a")
        view.replace("y", "Sub", ["c", "a"], {"k": 1}, like=view.graph.nodes[3])
        view.add("Relu", ["x"], like=view.graph.nodes[0])
        assert made.SerializeToString(deterministic=True) == before

    def test_facts_are_those_of_the_original(self, view: View) -> None:
        """What a rule declares later does not change what a name means."""
        view.replace("b", "ReduceMean", ["x"], {"axes": [0], "keepdims": 0}, like=view.graph.nodes[1])
        assert view.shape("b") == (symbol("B"), 4)

    def test_nodes_come_in_graph_order(self, view: View) -> None:
        view.replace("a", "Relu", ["x"], like=view.graph.nodes[0])
        keys = [("", "Exp"), ("", "Relu"), ("", "Neg")]
        assert [node.op_type for node in view.nodes(keys)] == ["Relu", "Neg", "Exp"]


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


class TestConstants:
    @pytest.mark.parametrize(
        ("array", "want"),
        [
            (np.array(0.5, np.float32), 0.5),
            (np.array([[2]], np.int64), 2.0),
            (np.array([0.25], np.float16), 0.25),
            (bfloat16(1.5), 1.5),
            (np.array(1e-12), 1e-12),
            (np.array([1.0, 1.0], np.float32), None),
            (np.zeros((0,), np.float32), None),
        ],
    )
    def test_the_number_in_a_constant(self, array: np.ndarray, want: float | None) -> None:
        made = Builder(x=[2])
        name = made.array(array)
        view = view_of(made.model(made.node("Cast", name, to=TensorProto.FLOAT)), canonical=False)
        assert view.scalar(name) == want
        assert view.scalar("x") is None and view.scalar("") is None

    def test_what_is_computed_from_constants_is_one(self) -> None:
        made = Builder(x=["B", 4])
        weight = made.array(np.arange(6, dtype=np.float32).reshape(2, 3))
        result = made.node("Mul", made.node("Transpose", weight, perm=[1, 0]), made.constant(2, dtype=np.float32))
        view = view_of(made.model(result), canonical=False)
        found = view.constant(result)
        assert found is not None and view.is_constant(result)
        np.testing.assert_array_equal(found, np.arange(6, dtype=np.float32).reshape(2, 3).T * 2)

    def test_so_is_what_is_computed_from_known_sizes(self) -> None:
        made = Builder(x=["B", 4, 6])
        size = made.node("Gather", made.node("Shape", "x"), made.constant(2))
        root = made.node("Sqrt", made.node("Cast", size, to=TensorProto.FLOAT))
        other = made.node("Sqrt", made.node("Cast", made.node("Shape", "x"), to=TensorProto.FLOAT))
        view = view_of(made.model(root, other), canonical=False)
        assert view.scalar(root) == pytest.approx(6**0.5)
        assert view.constant(other) is None  # B is known at run time alone

    def test_what_reads_an_input_is_none(self) -> None:
        made = Builder(x=["B", 4])
        result = made.node("Mul", "x", made.constant(2, dtype=np.float32))
        view = view_of(made.model(result), canonical=False)
        assert view.constant(result) is None and not view.is_constant(result)

    def test_random_numbers_are_none(self) -> None:
        made = Builder(x=["B", 4])
        noise = made.node("RandomNormal", shape=[2])
        uniform = made.node("RandomUniformLike", made.constant(1, 2))
        view = view_of(made.model(noise, uniform), canonical=False)
        assert view.constant(noise) is None and view.constant(uniform) is None

    def test_folding_is_bounded(self) -> None:
        made = Builder(x=[2])
        large = made.node("Expand", made.constant(1, dtype=np.float32), made.constant(1 << 20, 1 << 20))
        small = made.node("Expand", made.constant(1, dtype=np.float32), made.constant(4, 4))
        view = view_of(made.model(large, small), canonical=False)
        assert view.constant(large) is None
        assert view.constant(small, 15) is None
        assert view.constant(small, 16) is not None
        assert view.constant(small, 15) is None

    def test_a_long_chain_of_constants_needs_no_deep_stack(self) -> None:
        made = Builder(x=[2])
        value = made.constant(1, dtype=np.float32)
        for _ in range(2_000):
            value = made.node("Neg", value)
        view_of(made.model(value), canonical=False).constant(value)

    def test_what_a_caller_of_a_function_gives_is_not_folded(self) -> None:
        made = model(
            "(float[2] x) => (float[2] y) { y = my.Scale(x) }",
            functions="""<domain: "my", opset_import: ["" : 17]>
            Scale <by: float = 2.0> (x) => (y) { s = Constant<value_float: float = @by>() t = Neg(s) y = Mul(x, t) }""",
        )
        view = View(Graph(made.functions[0], made))
        assert view.constant("s") is None and view.constant("t") is None and view.scalar("s") is None

    @pytest.mark.parametrize("ir", [8, 10])
    def test_a_default_of_an_input_is_not_folded(self, ir: int) -> None:
        made = model("(float[2] x, float[1] w) => (float[2] y) <float[1] w = {2}> { n = Neg(w) y = Mul(x, n) }", ir=ir)
        assert view_of(made, canonical=False).constant("n") is None


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
