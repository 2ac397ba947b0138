"""Which values are constants, and what they hold."""

from __future__ import annotations

import numpy as np
import pytest
from onnx import ModelProto, TensorProto, helper, numpy_helper

from onnx_fuse.passes.graph.constants import decode
from onnx_fuse.passes.graph.index import Graph, graphs
from onnx_fuse.passes.view.view import View
from tests.helpers import model
from tests.passes.graph.graphs import index


class TestConstants:
    @pytest.mark.parametrize(
        ("attribute", "want"),
        [
            ("value = float[2] {1.5, 2.5}", np.array([1.5, 2.5], np.float32)),
            ("value_float = 1.5", np.array(1.5, np.float32)),
            ("value_floats = [1.5, 2.5]", np.array([1.5, 2.5], np.float32)),
            ("value_int = 3", np.array(3, np.int64)),
            ("value_ints = [3, 4]", np.array([3, 4], np.int64)),
        ],
    )
    def test_every_form_of_a_constant_node(self, attribute: str, want: np.ndarray) -> None:
        made = model(f"(float[2] x) => (float[2] y) {{ c = Constant<{attribute}>() d = Cast<to=1>(c) y = Add(x, d) }}")
        view = View(index(made))
        found = view.constant("c")
        assert view.is_constant("c")
        assert found is not None and found.dtype == want.dtype
        np.testing.assert_array_equal(found, want)
        assert view.shape("c") == want.shape

    def test_strings_and_sparse_values_are_not_decoded(self) -> None:
        indices = helper.make_tensor("i", TensorProto.INT64, [1], [1])
        sparse = helper.make_sparse_tensor(helper.make_tensor("v", TensorProto.FLOAT, [1], [2.0]), indices, [3])
        nodes = [
            helper.make_node("Constant", [], ["text"], value_string="a"),
            helper.make_node("Constant", [], ["texts"], value_strings=["a"]),
            helper.make_node("Constant", [], ["sparse"], sparse_value=sparse),
        ]
        graph = helper.make_graph(nodes, "g", [], [])
        view = View(Graph(graph, helper.make_model(graph)))
        assert [view.constant(name) for name in ("text", "texts", "sparse")] == [None, None, None]

    def test_initializers(self) -> None:
        made = model("(float[2] x) => (float[2] y) <float[2] w = {1, 2}> { y = Add(x, w) }")
        graph = index(made)
        assert graph.tensor("w") is made.graph.initializer[0]
        assert graph.tensor("x") is None and graph.tensor("y") is None

    @pytest.mark.parametrize(("ir", "constant"), [(3, True), (4, False), (10, False)])
    def test_an_initializer_that_is_also_an_input_may_be_replaced_by_the_caller(self, ir: int, constant: bool) -> None:
        made = model("(float[2] x, float[2] w) => (float[2] y) <float[2] w = {1, 2}> { y = Add(x, w) }", ir=ir)
        assert (index(made).tensor("w") is not None) is constant
        assert View(index(made)).is_constant("w") is constant

    @pytest.mark.parametrize("form", ["value = float {0.5}", "value_float = 0.5"])
    def test_a_subgraph_sees_the_constants_outside_it(self, form: str) -> None:
        made = model(
            f"""(bool c, float[2] x) => (float[2] y) <float w = {{2}}> {{
                k = Constant<{form}>()
                y = If (c) <
                    then_branch = yes () => (float[2] a) {{ a = Mul(x, k) }},
                    else_branch = no () => (float[2] b) {{ b = Mul(x, w) }}
                >
            }}"""
        )
        yes, no = [View(graph) for graph in graphs(made) if graph.path]
        assert (yes.scalar("k"), no.scalar("w")) == (0.5, 2.0)
        assert yes.scalar("x") is None

    def test_large_constants_are_decoded_only_where_the_limit_allows(self) -> None:
        tensor = numpy_helper.from_array(np.zeros(100, np.float32), "w")
        assert decode(tensor, 99) is None
        assert decode(tensor, 100) is not None


@pytest.fixture
def external() -> ModelProto:
    """A model whose weight lies in a file that does not exist."""
    made = model("(float[n,1024] x) => (float[n,4096] y) { h = MatMul(x, w) s = Sigmoid(h) y = Mul(h, s) }")
    tensor = made.graph.initializer.add(name="w", data_type=TensorProto.FLOAT, dims=[1024, 4096])
    tensor.data_location = TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value="nowhere/weights.bin")
    return made


class TestExternalData:
    def test_a_constant_in_external_data_is_a_constant_without_an_array(self, external: ModelProto) -> None:
        view = View(index(external))
        assert view.is_constant("w")
        assert view.constant("w") is None and view.scalar("w") is None
        assert view.shape("w") == (1024, 4096) and view.dtype("w") == TensorProto.FLOAT

    def test_a_constant_node_in_external_data_too(self) -> None:
        tensor = TensorProto(name="w", data_type=TensorProto.FLOAT, dims=[1], data_location=TensorProto.EXTERNAL)
        tensor.external_data.add(key="location", value="nowhere.bin")
        graph = helper.make_graph([helper.make_node("Constant", [], ["w"], value=tensor)], "g", [], [])
        view = View(Graph(graph, helper.make_model(graph)))
        assert view.constant("w") is None and view.shape("w") == (1,)

    def test_what_is_computed_from_it_is_not_folded(self, external: ModelProto) -> None:
        external.graph.node.insert(0, helper.make_node("Transpose", ["w"], ["t"]))
        assert View(index(external)).constant("t") is None
