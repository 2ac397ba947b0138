"""What `--simplify` writes: the canonical form as far as the model's opset has it, and nothing that was not asked for."""

from __future__ import annotations

import time

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import ModelProto, TensorProto, helper

import onnx_fuse
from onnx_fuse.passes.files.checker import check
from onnx_fuse.passes.fuse.simplify import Simplify
from onnx_fuse.passes.graph.index import graphs
from onnx_fuse.passes.pipeline import Pipeline
from tests.drawn import transformer
from tests.helpers import assert_same_results, copied, model, node_bytes, operators, run, simplified


def checked(made: ModelProto) -> ModelProto:
    """The simplified model, sound, equal in what it computes, and as simple as it gets."""
    before = made.SerializeToString()
    after = simplified(made)
    assert made.SerializeToString() == before
    check(after, full=True)
    assert all(graph.unsound() is None for graph in graphs(after))
    assert_same_results(made, after)
    return after


class TestWhatStays:
    def test_a_model_that_is_simple_already_keeps_its_bytes(self) -> None:
        made = model("(float[n,4] x) => (float[n,4] y) <float[4] w={1,2,3,4}> { a = Add(x, w) y = Relu(a) }")
        after, report = Pipeline([Simplify()]).run(copied(made))
        assert after.SerializeToString() == made.SerializeToString()
        assert report.passes[0].rewrites == 0

    def test_nodes_that_are_not_touched_keep_theirs(self) -> None:
        made = model(
            "(float[n,4] x) => (float[n,4] y) { [first] a = Abs(x) i = Identity(a) [last] y = Neg(a) z = Exp(i) }"
        )
        made.graph.node[0].doc_string = "as exported"
        after = checked(made)
        assert node_bytes(after) == [node_bytes(made)[0], node_bytes(made)[2]]

    def test_names_of_inputs_and_outputs(self) -> None:
        made = model(
            "(float[n,4] x) => (float[n,4] y, float[n,4] z, float[n,4] w) { y = Identity(x) a = Dropout(x) z = Identity(a) w = Abs(z) }"
        )
        after = checked(made)
        assert after.graph.input == made.graph.input and after.graph.output == made.graph.output
        assert sorted(operators(after)) == ["Abs", "Identity", "Identity"]

    def test_what_a_subgraph_captures(self) -> None:
        made = model(
            """(bool c, float[2] x) => (float[2] y) {
                a = Abs(x) i = Identity(a) k = Constant<value=float[2] {1,2}>() j = Neg(k)
                y = If (c) <
                    then_branch = yes () => (float[2] p) { t = Add(i, j) p = Identity(t) },
                    else_branch = no () => (float[2] q) { d = Dropout(i) q = Neg(d) }
                >
            }"""
        )
        after = checked(made)
        for choice in (True, False):
            given_ = {"c": np.array(choice), "x": np.array([1, -2], np.float32)}
            np.testing.assert_array_equal(run(after, given_)[0], run(made, given_)[0])
        branches = {item.name: item.g for item in after.graph.node[-1].attribute}
        assert operators(branches["else_branch"]) == ["Neg"]

    def test_a_graph_output_that_is_a_constant(self) -> None:
        made = model(
            "(float[2] x) => (float[2] y, float[2] k) { c = Constant<value=float[2] {1,2}>() k = Neg(c) y = Add(x, k) }"
        )
        checked(made)

    def test_a_graph_output_that_is_an_input_or_an_initializer(self) -> None:
        made = model(
            "(float[2] x) => (float[2] x2, float[2] w2) <float[2] w={1,2}> { x2 = Identity(x) w2 = Identity(w) }"
        )
        checked(made)

    def test_both_outputs_of_a_node_of_which_one_means_nothing(self) -> None:
        made = model("(float[2] x) => (float[2] y, bool[2] m, float[2] z) { y, m = Dropout(x) z = Abs(y) }")
        checked(made)

    def test_the_mean_that_a_norm_gives_as_well(self) -> None:
        made = model(
            """(float[B,S,8] x) => (float[k,8] y, float[k,1] m) <float[8] g={1,2,3,4,5,6,7,8}> {
                t = Constant<value=int64[2] {-1,8}>() r = Reshape(x, t) n, m = LayerNormalization(r, g) y = Abs(n)
            }"""
        )
        checked(made)

    def test_bodies_of_fused_operators(self) -> None:
        made = model("(float[n,4] x) => (float[n,4] y) { s = Sigmoid(x) m = Mul(x, s) i = Identity(m) y = Relu(i) }")
        result = onnx_fuse.fuse(made, enable=["FusedSwish"], simplify=True)
        assert operators(result.model) == ["FusedSwish", "Relu"]
        plain = onnx_fuse.fuse(made, enable=["FusedSwish"]).model
        assert result.model.functions == plain.functions

    def test_functions_of_the_model_are_simplified_too(self) -> None:
        made = model(
            "(float[2] x) => (float[2] y) { y = my.Block(x) }",
            functions="""<domain: "my", opset_import: ["" : 17]>
            Block (x) => (y) { a = Identity(x) b = Dropout(a) c = Constant<value=float[2] {1,2}>() n = Neg(c) y = Add(b, n) }""",
        )
        after = checked(made)
        assert [node.op_type for node in after.functions[0].node] == ["Constant", "Add"]


class TestWhatGoes:
    def test_dead_nodes_initializers_and_types(self) -> None:
        made = model(
            """(float[2] x) => (float[2] y)
            <float[2] w={1,2}, float[2] old={1,2}, float[2] spare={1,2}, float[2] a, float[2] i>
            { dead = Mul(x, old) a = Add(x, w) i = Identity(a) y = Abs(i) }"""
        )
        after = checked(made)
        assert operators(after) == ["Add", "Abs"]
        assert [tensor.name for tensor in after.graph.initializer] == ["w", "spare"]
        assert [value.name for value in after.graph.value_info] == ["a"]

    def test_a_fixed_point_is_reached_at_once(self) -> None:
        made = model(
            """(float[B,S,8] x) => (float[B,S,8] y) {
                i = Identity(x) t = Transpose<perm=[1,0,2]>(i) k = Constant<value_float=2.0>() a = Mul(t, k) b = Div(a, k)
                s = Shape(x) u = Transpose<perm=[1,0,2]>(b) r = Reshape(u, s) y = Abs(r)
            }"""
        )
        once = checked(made)
        assert simplified(once).SerializeToString() == once.SerializeToString()

    def test_names_of_nodes_stay_unique(self) -> None:
        made = model(
            """(float[B,S,8] x) => (float[B,S,8] y) {
                [a] t = Transpose<perm=[1,0,2]>(x) [b] k = Constant<value_float=2.0>() [c] m = Mul(t, k)
                [d] p = MatMul(m, w) [e] q = Add(p, v) [f] y = Transpose<perm=[1,0,2]>(q)
            }""",
            weights={"w": np.eye(8, dtype=np.float32), "v": np.ones(8, np.float32)},
        )
        names = [node.name for node in checked(made).graph.node if node.name]
        assert len(set(names)) == len(names)


class TestTypesAndOpsets:
    def test_a_norm_that_computes_in_float_keeps_its_casts(self) -> None:
        """float16 -> float -> LayerNormalization with a float scale -> float16: its types would not agree without the casts."""
        made = model(
            """(float16[n,4] x) => (float16[n,4] y) <float[4] g={1,2,3,4}, float[4] b={1,2,3,4}> {
                w = Cast<to=1>(x) l = LayerNormalization(w, g, b) y = Cast<to=10>(l)
            }"""
        )
        after = simplified(made)
        check(after, full=True)
        assert_same_results(made, after, tolerance=1e-2)

    @pytest.mark.parametrize("opset", [11, 12, 13, 16, 17, 18, 20, 23])
    def test_nothing_is_written_that_the_opset_does_not_have(self, opset: int) -> None:
        mean = "ReduceMean<axes=[-1]>({0})" if opset < 18 else "ReduceMean({0}, last)"
        made = model(
            f"""(float[n,4] x) => (float[n,4] y) <int64[1] last={{-1}}> {{
                m = {mean.format("x")} c = Sub(x, m) q = Mul(c, c) v = {mean.format("q")} w = Add(v, e) d = Sqrt(w)
                n = Div(c, d) a = Mul(n, g) l = Add(a, b) s = Sigmoid(l) y = Mul(l, s)
            }}""",
            opset=opset,
            weights={"g": np.arange(4, dtype=np.float32), "b": np.ones(4, np.float32), "e": np.array(0.1, np.float32)},
        )
        after = checked(made)
        assert ("LayerNormalization" in operators(after)) is (opset >= 17)

    def test_weights_in_external_data_are_not_read(self) -> None:
        made = model(
            "(float[n,64] x) => (float[n,64] y) { i = Identity(x) t = Transpose(w) m = MatMul(i, t) y = Relu(m) }"
        )
        tensor = made.graph.initializer.add(name="w", data_type=TensorProto.FLOAT, dims=[64, 64])
        tensor.data_location = TensorProto.EXTERNAL
        tensor.external_data.add(key="location", value="nowhere.bin")
        after = simplified(made)
        assert operators(after) == ["Transpose", "MatMul", "Relu"]
        assert after.graph.initializer == made.graph.initializer


@pytest.mark.parametrize("opset", [13, 17])
@settings(derandomize=True, deadline=None, max_examples=25, database=None)
@given(data=st.data())
def test_whatever_the_graph_what_is_written_is_valid_and_final(opset: int, data: st.DataObject) -> None:
    made = transformer(data, opset)
    after = simplified(made)
    check(after, full=True)
    assert all(graph.unsound() is None for graph in graphs(after))
    assert_same_results(made, after, tolerance=2e-4, B=3, S=2)


def test_a_graph_of_many_nodes_takes_time_in_proportion() -> None:
    nodes, value = [], "x"
    for number in range(3_000):
        op_type, attributes = [("Identity", {}), ("Transpose", {"perm": [1, 0]}), ("Abs", {})][number % 3]
        nodes.append(helper.make_node(op_type, [value], [f"v{number}"], **attributes))
        value = f"v{number}"
    inputs = [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["B", "B"])]
    outputs = [helper.make_tensor_value_info(value, TensorProto.FLOAT, ["B", "B"])]
    made = helper.make_model(
        helper.make_graph(nodes, "g", inputs, outputs), opset_imports=[helper.make_opsetid("", 17)], ir_version=8
    )
    started = time.process_time()
    after, _ = Pipeline([Simplify()]).run(made)
    assert time.process_time() - started < 20
    assert len(after.graph.node) == 2_000
    onnx.checker.check_model(after)
