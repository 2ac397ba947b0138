"""Attributes as Python values."""

from __future__ import annotations

import numpy as np
import pytest
from onnx import helper, numpy_helper

from onnx_fuse.passes.graph.attributes import Reference, attribute_default
from onnx_fuse.passes.graph.index import Graph
from tests.helpers import model
from tests.passes.graph.graphs import FUNCTION


def test_attributes_as_python_values() -> None:
    node = helper.make_node("Op", [], ["y"], i=3, f=0.5, s="text", ints=[1, 2], floats=[0.5], strings=["a", "b"])
    tensor = numpy_helper.from_array(np.array([1.0]), "t")
    node.attribute.append(helper.make_attribute("t", tensor))
    graph = helper.make_graph([node], "g", [], [])
    found = Graph(graph, helper.make_model(graph)).nodes[0]
    values = [found.attribute(name) for name in ("i", "f", "s", "ints", "floats", "strings", "t", "absent")]
    assert values == [3, 0.5, "text", [1, 2], [0.5], ["a", "b"], tensor, None]


def test_defaults_of_attributes_come_from_the_operator_s_schema() -> None:
    assert attribute_default("LayerNormalization", "", 17, "epsilon") == pytest.approx(1e-5)
    assert attribute_default("Softmax", "", 11, "axis") == 1
    assert attribute_default("Softmax", "", 13, "axis") == -1
    assert attribute_default("Softmax", "", 13, "nothing") is None
    assert attribute_default("Nothing", "nowhere", 1, "axis") is None


def test_a_reference_to_a_function_s_attribute_is_no_value() -> None:
    made = model("(float[2] x) => (float[2] y) { y = my.Block(x, x) }", functions=FUNCTION)
    graph = Graph(made.functions[0], made)
    found = graph.nodes[1].attribute("alpha")
    assert isinstance(found, Reference) and found.name == "alpha"


def test_a_default_before_the_operator_came() -> None:
    """ONNX Runtime runs LayerNormalization in any opset; an operator that ONNX does not have has no default."""
    assert attribute_default("LayerNormalization", "", 13, "epsilon") == pytest.approx(1e-5)
    assert attribute_default("Nothing", "", 13, "epsilon") is None
