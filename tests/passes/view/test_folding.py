"""What is a constant: what is stored, and what follows from that and from known sizes alone."""

from __future__ import annotations

import numpy as np
import pytest
from onnx import TensorProto

from onnx_fuse.passes.graph.index import Graph
from onnx_fuse.passes.view.view import View
from tests.helpers import Builder, bfloat16, model, view_of


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
def test_the_number_in_a_constant(array: np.ndarray, want: float | None) -> None:
    made = Builder(x=[2])
    name = made.array(array)
    view = view_of(made.model(made.node("Cast", name, to=TensorProto.FLOAT)), canonical=False)
    assert view.scalar(name) == want
    assert view.scalar("x") is None and view.scalar("") is None


def test_what_is_computed_from_constants_is_one() -> None:
    made = Builder(x=["B", 4])
    weight = made.array(np.arange(6, dtype=np.float32).reshape(2, 3))
    result = made.node("Mul", made.node("Transpose", weight, perm=[1, 0]), made.constant(2, dtype=np.float32))
    view = view_of(made.model(result), canonical=False)
    found = view.constant(result)
    assert found is not None and view.is_constant(result)
    np.testing.assert_array_equal(found, np.arange(6, dtype=np.float32).reshape(2, 3).T * 2)


def test_so_is_what_is_computed_from_known_sizes() -> None:
    made = Builder(x=["B", 4, 6])
    size = made.node("Gather", made.node("Shape", "x"), made.constant(2))
    root = made.node("Sqrt", made.node("Cast", size, to=TensorProto.FLOAT))
    other = made.node("Sqrt", made.node("Cast", made.node("Shape", "x"), to=TensorProto.FLOAT))
    view = view_of(made.model(root, other), canonical=False)
    assert view.scalar(root) == pytest.approx(6**0.5)
    assert view.constant(other) is None  # B is known at run time alone


def test_what_reads_an_input_is_none() -> None:
    made = Builder(x=["B", 4])
    result = made.node("Mul", "x", made.constant(2, dtype=np.float32))
    view = view_of(made.model(result), canonical=False)
    assert view.constant(result) is None and not view.is_constant(result)


def test_random_numbers_are_none() -> None:
    made = Builder(x=["B", 4])
    noise = made.node("RandomNormal", shape=[2])
    uniform = made.node("RandomUniformLike", made.constant(1, 2))
    view = view_of(made.model(noise, uniform), canonical=False)
    assert view.constant(noise) is None and view.constant(uniform) is None


def test_folding_is_bounded() -> None:
    made = Builder(x=[2])
    large = made.node("Expand", made.constant(1, dtype=np.float32), made.constant(1 << 20, 1 << 20))
    small = made.node("Expand", made.constant(1, dtype=np.float32), made.constant(4, 4))
    view = view_of(made.model(large, small), canonical=False)
    assert view.constant(large) is None
    assert view.constant(small, 15) is None
    assert view.constant(small, 16) is not None
    assert view.constant(small, 15) is None


def test_a_long_chain_of_constants_needs_no_deep_stack() -> None:
    made = Builder(x=[2])
    value = made.constant(1, dtype=np.float32)
    for _ in range(2_000):
        value = made.node("Neg", value)
    view_of(made.model(value), canonical=False).constant(value)


def test_what_a_caller_of_a_function_gives_is_not_folded() -> None:
    made = model(
        "(float[2] x) => (float[2] y) { y = my.Scale(x) }",
        functions="""<domain: "my", opset_import: ["" : 17]>
        Scale <by: float = 2.0> (x) => (y) { s = Constant<value_float: float = @by>() t = Neg(s) y = Mul(x, t) }""",
    )
    view = View(Graph(made.functions[0], made))
    assert view.constant("s") is None and view.constant("t") is None and view.scalar("s") is None


@pytest.mark.parametrize("ir", [8, 10])
def test_a_default_of_an_input_is_not_folded(ir: int) -> None:
    made = model("(float[2] x, float[1] w) => (float[2] y) <float[1] w = {2}> { n = Neg(w) y = Mul(x, n) }", ir=ir)
    assert view_of(made, canonical=False).constant("n") is None
