"""What is a constant: what is stored, and what follows from that and from known sizes alone."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from onnx import TensorProto

from onnx_fuse.passes.graph.index import Graph
from onnx_fuse.passes.view.view import View
from tests.helpers import Array, Builder, bfloat16, model, view_of
from tests.trust.foldings import OPERATORS, Fold, folded, problem


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
    for _ in range(5_000):
        value = made.node("Neg", value)
    assert view_of(made.model(value), canonical=False).scalar(value) == 1.0


@pytest.mark.parametrize("op_type", OPERATORS)
def test_every_operator_folds_to_what_onnx_runtime_makes_of_it(op_type: str) -> None:
    models = [Fold(op_type, number).model() for number in range(12)]
    assert [found for made in models if (found := problem(made)) is not None] == []
    assert any(folded(made) for made in models)


WRAPS = np.array(2**32 + 5), np.array(2**63 - 1)


@pytest.mark.parametrize(
    ("op_type", "inputs", "attributes", "want"),
    [
        ("Cast", [WRAPS[0]], {"to": TensorProto.INT32}, 5),
        ("Cast", [WRAPS[1]], {"to": TensorProto.INT32}, -1),
        ("Mul", [np.array(2**62), np.array(4)], {}, 0),
        ("Add", [WRAPS[1], np.array(1)], {}, -(2**63)),
        ("Mod", [np.array(-7), np.array(3)], {"fmod": 1}, -1),
        ("Mod", [np.array(-7), np.array(3)], {}, 2),
        ("Div", [np.array(-7), np.array(2)], {}, -3),
        ("Div", [np.array(2**62 + 1), np.array(1)], {}, 2**62 + 1),
        ("Range", [np.array(5), np.array(0), np.array(1)], {}, []),
        ("Slice", [np.arange(3), np.array([-1]), np.array([2**62]), np.array([0]), np.array([-1])], {}, []),
        ("Slice", [np.arange(3), np.array([-9]), np.array([-5]), np.array([0]), np.array([-1])], {}, [0]),
        ("Slice", [np.arange(3), np.array([1]), np.array([2**63 - 1]), np.array([0]), np.array([1])], {}, [1, 2]),
        ("ReduceProd", [np.array([2, 3]), np.array([], np.int64)], {"noop_with_empty_axes": 1}, [2, 3]),
    ],
)
def test_whole_numbers_are_those_of_onnx(
    op_type: str, inputs: list[Array], attributes: dict[str, int], want: Any
) -> None:
    made = Builder(x=[2])
    value = made.node(op_type, *map(made.array, inputs), **attributes)
    found = view_of(made.model(value, opset=18), canonical=False).constant(value)
    assert found is not None and found.tolist() == want


@pytest.mark.parametrize(
    ("op_type", "inputs", "attributes"),
    [
        ("Cast", [np.array(np.nan, np.float32)], {"to": TensorProto.INT64}),
        ("Cast", [np.array(3e9, np.float32)], {"to": TensorProto.INT32}),
        ("Div", [np.array(7), np.array(0)], {}),
        ("Div", [np.array([-(2**63), 3]), np.array([-1, -1])], {}),
        ("Mod", [np.array([7, 3]), np.array([0, 1])], {}),
        ("ReduceMean", [np.zeros((0, 2), np.int64), np.array([0])], {}),
        ("Dropout", [np.array([0.5], np.float32), np.array(0.5, np.float32), np.array(True)], {"seed": 3}),
        ("Gather", [np.arange(70) * 1.0, np.array([99])], {}),
    ],
)
def test_what_no_standard_tells_stays_a_node(op_type: str, inputs: list[Array], attributes: dict[str, int]) -> None:
    made = Builder(x=[2])
    value = made.node(op_type, *map(made.array, inputs), **attributes)
    view = view_of(made.model(value, opset=18), canonical=False)
    assert view.constant(value) is None and view.scalar(value) is None


def test_an_integer_that_no_float_is_has_no_number() -> None:
    made = Builder(x=[2])
    large, exact = made.constant(2**53 + 1), made.constant(2**53)
    view = view_of(made.model(made.node("Add", large, exact)), canonical=False)
    assert view.scalar(large) is None and view.scalar(exact) == 2.0**53


def test_a_type_that_is_declared_wrongly_does_not_say_how_much_is_folded() -> None:
    made = model(
        "(float[2] x) => (float[1] y) <int64[70] zeros> { last = ReduceMax <axes = [0]> (zeros) y = Expand(one, huge) }",
        weights={
            "zeros": np.zeros(70, np.int64),
            "one": np.ones(1, np.float32),
            "huge": np.full(65, 2, np.int64),
        },
    )
    assert view_of(made, canonical=False).constant("y") is None


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


@pytest.mark.parametrize("size", [4, 1100], ids=["small", "too large to be folded"])
def test_the_turned_weight_of_every_gemm_is_a_constant(size: int) -> None:
    """Of the first one too, whose Transpose the view made before anybody asked for a constant."""
    text = f"""(float[B,{size}] x) => (float[B,{size}] y) {{
        a = Gemm<transB=1>(x, w)
        b = Gemm<transB=1>(a, w)
        y = Gemm<transB=1>(b, w)
    }}"""
    made = model(text, weights={"w": np.zeros((size, size), np.float32)})
    view = view_of(made)
    for output in ("a", "b", "y"):
        node = view.producer(output)
        assert node is not None and node.op_type == "MatMul"
        assert view.is_constant(node.inputs[1])
        assert not view.is_constant(node.inputs[0])


def test_what_moves_an_input_is_none_however_it_is_moved() -> None:
    text = """(float[1200,1200] x, int64[2] shape) => (float[k] y, float[k] z) {
        t = Transpose<perm=[1,0]>(x)
        c = Cast<to=10>(t)
        y = Cast<to=1>(c)
        z = Reshape(w, shape)
    }"""
    view = view_of(model(text, weights={"w": np.zeros((1200, 1200), np.float32)}))
    assert not view.is_constant("y") and not view.is_constant("z")
