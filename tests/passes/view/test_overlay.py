"""The structure of a view: aliases, canonical nodes, who makes and who reads a value."""

from __future__ import annotations

import pytest

from onnx_fuse.passes.graph.index import Graph
from onnx_fuse.passes.view.overlay import Overlay
from onnx_fuse.passes.view.view import View
from tests.helpers import Builder, model, view_of

CHAIN = "(float[B,4] x) => (float[B,4] y) { a = Abs(x) b = Neg(a) c = Exp(b) y = Add(c, b) }"


@pytest.fixture
def view() -> View:
    return view_of(model(CHAIN), canonical=False)


def test_an_alias_stands_for_another_value(view: View) -> None:
    view.alias("b", "a")
    view.alias("c", "b")
    assert view.resolve("c") == "a" and view.producer("c") is view.graph.nodes[0]
    assert view.inputs(view.graph.nodes[3]) == ("a", "a")
    assert [node.op_type for node in view.all_nodes()] == ["Abs", "Add"]
    assert [node.op_type for node in view.readers("c")] == ["Add"]


def test_long_chains_of_aliases_are_followed_at_once() -> None:
    made = Builder(x=["B", 4])
    last = "x"
    for _ in range(5_000):
        last = made.node("Identity", last)
    found = view_of(made.model(last))
    assert found.resolve(last) == "x" and found.all_nodes() == []


def test_the_nodes_of_an_operator_are_those_of_the_moment(view: View) -> None:
    def found() -> list[str]:
        return [node.op_type for node in view.nodes([("", "Neg"), ("", "Add"), ("", "Sum")])]

    nodes = view.graph.nodes
    assert found() == ["Neg", "Add"]
    view.replace("y", "Sum", ["c", "b"], like=nodes[3])
    assert found() == ["Neg", "Sum"]
    view.alias("b", "a")
    assert found() == ["Sum"]


def test_a_node_that_another_grew_out_of_is_off_the_lists() -> None:
    view = view_of(model("(float[4] x) => (float[4] y) { a = Abs(x) y = Neg(a) }"), canonical=False)
    assert len(view.nodes([("", "Abs")])) == 1
    view.supersede(view.graph.nodes[0], view.graph.nodes[1])
    assert view.nodes([("", "Abs")]) == []


def test_an_alias_of_itself_is_none(view: View) -> None:
    view.alias("a", "x")
    view.alias("x", "a")
    assert view.resolve("a") == view.resolve("x") == "x"


def test_nodes_come_in_graph_order(view: View) -> None:
    view.replace("a", "Relu", ["x"], like=view.graph.nodes[0])
    keys = [("", "Exp"), ("", "Relu"), ("", "Neg")]
    assert [node.op_type for node in view.nodes(keys)] == ["Relu", "Neg", "Exp"]


def test_a_value_is_defined_by_the_original_whatever_stands_in_its_place(view: View) -> None:
    old = view.graph.nodes[1]
    view.replace("b", "Relu", ["x"], like=old)
    assert view.definition("b") is old and view.producer("b") is not old
    added = view.add("Relu", ["x"], like=old)
    made = view.producer(added)
    view.alias(added, "a")
    assert view.definition(added) is made and view.producer(added) is view.graph.nodes[0]
    assert view.definition("x") is None


def test_a_node_that_another_grew_out_of_is_told_of_no_more(view: View) -> None:
    nodes = view.graph.nodes
    view.supersede(nodes[0], nodes[1])
    view.supersede(nodes[1], nodes[3])  # c reads it too
    assert [node.op_type for node in view.all_nodes()] == ["Neg", "Exp", "Add"]


def test_only_original_readers_before_a_node_are_before_it() -> None:
    made = model("(float[2] x) => (float[2] y) { i = Identity(x) a = Abs(i) b = Neg(x) c = Exp(x) y = Sum(a, b, c) }")
    overlay = Overlay(Graph(made.graph, made))
    overlay.alias("i", "x")
    neg = overlay.graph.producers["b"]
    assert [node.op_type for node in overlay.readers_before(neg)] == ["Identity"]
    assert [node.op_type for node in overlay.readers("i")] == ["Abs", "Neg", "Exp"]
