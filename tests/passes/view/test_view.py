"""The canonical view: an overlay that changes no byte of the model and never gives a name another meaning."""

from __future__ import annotations

import gc
import weakref

import numpy as np
import pytest
from onnx import TensorProto

from onnx_fuse.passes.graph.dims import symbol
from onnx_fuse.passes.normalize.sweep import normalize
from onnx_fuse.passes.view.view import View
from onnx_fuse.patterns.language.dsl import VIEW_DOMAIN
from tests.helpers import model, view_of

CHAIN = "(float[B,4] x) => (float[B,4] y) { a = Abs(x) b = Neg(a) c = Exp(b) y = Add(c, b) }"


@pytest.fixture
def view() -> View:
    return view_of(model(CHAIN), canonical=False)


def test_a_replacement_makes_the_value_from_then_on(view: View) -> None:
    old = view.graph.nodes[3]
    new = view.replace("y", "Sub", ["c", "a"], like=old, covers=[view.graph.nodes[1], old])
    assert view.producer("y") is new and not view.is_canonical(old)
    assert new.position == old.position and view.covers(new) == {1, 3}
    assert view.nodes([("", "Add")]) == [] and view.nodes([("", "Sub")]) == [new]


def test_what_stands_for_what_stood_for_nodes_stands_for_those(view: View) -> None:
    nodes = view.graph.nodes
    first = view.replace("b", "Relu", ["x"], like=nodes[1], covers=nodes[:2])
    second = view.replace("c", "Elu", ["x"], like=nodes[2], covers=[first, nodes[2]])
    assert view.covers(second) == {0, 1, 2}


def test_new_values_have_new_names(view: View) -> None:
    node = view.graph.nodes[1]
    first, second = (view.add("Relu", ["x"], like=node) for _ in range(2))
    constant = view.array(np.ones(3, np.float32))
    assert len({first, second, constant, *view.graph.names}) == len(view.graph.names)
    assert not any(view.exists_in_original(name) for name in (first, second, constant))
    assert all(view.exists_in_original(name) for name in ("x", "a", "y"))


def test_the_model_stays_as_it_is() -> None:
    made = model(CHAIN)
    before = made.SerializeToString(deterministic=True)
    view = view_of(made)
    view.alias("b", "a")
    view.replace("y", "Sub", ["c", "a"], {"k": 1}, like=view.graph.nodes[3])
    view.add("Relu", ["x"], like=view.graph.nodes[0])
    assert made.SerializeToString(deterministic=True) == before


def test_facts_are_those_of_the_original(view: View) -> None:
    """What a rule declares later does not change what a name means."""
    view.replace("b", "ReduceMean", ["x"], {"axes": [0], "keepdims": 0}, like=view.graph.nodes[1])
    assert view.shape("b") == (symbol("B"), 4)


def test_what_needs_something_that_onnx_does_not_have_cannot_be_written(view: View) -> None:
    node = view.graph.nodes[1]
    causal = view.add("Causal", ["x"], like=node, domain=VIEW_DOMAIN)
    after = view.add("Relu", [causal], like=node)
    beside = view.add("Relu", ["x"], like=node)
    assert [view.can_write(name) for name in (causal, after, beside)] == [False, False, True]
    swish = view.replace("c", "Swish", ["b"], like=node)  # opset 17 has no Swish, but the model's own value is there
    assert not view.is_valid(swish) and view.can_write("c")


def test_a_view_that_is_released_is_not_left_to_the_collector() -> None:
    made = model("(float[B,4] x) => (float[B,4] y) { k = Constant<value_float=2.0>() a = Div(x, k) y = Mul(a, k) }")
    gc.disable()
    try:
        view = view_of(made, canonical=False)
        normalize(view)
        assert view.dtype("y") == TensorProto.FLOAT and view.scalar("k") == 2.0
        view.release()
        assert view.attribute(view.graph.nodes[0], "value_float") == 2.0  # what a node carries is still told
        gone = weakref.ref(view)
        del view
        assert gone() is None
    finally:
        gc.enable()
