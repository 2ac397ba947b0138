"""What is read off a node."""

from __future__ import annotations

from tests.helpers import model
from tests.passes.graph.graphs import index


def test_a_node_without_a_name_is_called_after_its_output() -> None:
    graph = index(model("(float[2] x) => (float[2] y) { [first] a = Abs(x) y = Neg(a) }"))
    assert [node.name for node in graph.nodes] == ["first", "y"]


def test_the_two_names_of_onnx_s_domain_are_one() -> None:
    made = model("(float[2] x) => (float[2] y) { y = Relu(x) }")
    made.graph.node[0].domain = "ai.onnx"
    assert index(made).nodes[0].key == ("", "Relu")
