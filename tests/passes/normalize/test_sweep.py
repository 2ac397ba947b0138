"""The canonical form: it is reached from every way of writing, by nothing that merely looks alike, and computes the same."""

from __future__ import annotations

import itertools
from typing import Any, ClassVar

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import ModelProto, TensorProto, helper

from onnx_fuse.passes.graph.index import Graph
from onnx_fuse.passes.graph.node import Node
from onnx_fuse.passes.normalize import sweep
from onnx_fuse.passes.normalize.sweep import READING, normalize
from onnx_fuse.passes.view.rule import Rule, Rules, reads
from onnx_fuse.passes.view.view import View
from tests.drawn import transformer
from tests.helpers import assert_same_results, bfloat16, model, operators, run, simplified, view_of

NEWEST = 24
"""The opset that has an operator for everything that is recognised, so that --simplify can write it."""


def canonical(made: ModelProto, **sizes: int) -> list[str]:
    """The operators of the canonical form (Identity, which only renames, left out), after it was seen to compute the same."""
    after = simplified(made)
    assert_same_results(made, after, seeds=(0, 1), **sizes)
    return [name for name in operators(after) if name not in ("Identity", "Constant")]


def written(body: str, *, opset: int = NEWEST, inputs: str = "float[B,S,8] x", **options: Any) -> list[str]:
    return canonical(model(f"({inputs}) => (float[k] y) {{ {body} }}", opset=opset, **options))


class TestNothingDone:
    @pytest.mark.parametrize(
        "body",
        [
            "y = Identity(x)",
            "y = Dropout(x)",
            "r = Constant<value_float=0.5>() t = Constant<value=bool {0}>() y = Dropout(x, r, t)",
            "y = Cast<to=1>(x)",
            "s = Shape(x) y = Reshape(x, s)",
            "t = Constant<value=int64[3] {0,-1,8}>() y = Reshape(x, t)",
            "t = Transpose<perm=[1,0,2]>(x) y = Transpose<perm=[1,0,2]>(t)",
            "y = Transpose<perm=[0,1,2]>(x)",
            "s = Shape(x) y = Expand(x, s)",
            "o = Constant<value=int64[1] {1}>() y = Expand(x, o)",
            "y = Concat<axis=0>(x)",
            "a = Constant<value=int64[1] {1}>() u = Unsqueeze(x, a) y = Squeeze(u, a)",
        ],
    )
    def test_what_does_nothing_is_gone(self, body: str) -> None:
        assert written(body, opset=17) == []

    @pytest.mark.parametrize(
        ("body", "left"),
        [
            ("h = Cast<to=10>(x) y = Cast<to=1>(h)", ["Cast", "Cast"]),
            ("t = Transpose<perm=[1,0,2]>(x) y = Transpose<perm=[2,0,1]>(t)", ["Transpose"]),
            ("t = Constant<value=int64[2] {-1,8}>() y = Reshape(x, t)", ["Reshape"]),
            ("o = Constant<value=int64[4] {2,1,1,1}>() y = Expand(x, o)", ["Expand"]),
            ("y = Concat<axis=0>(x, x)", ["Concat"]),
        ],
    )
    def test_what_does_something_stays(self, body: str, left: list[str]) -> None:
        assert written(body, opset=17) == left

    def test_dropout_that_trains_stays(self) -> None:
        made = model(
            """(float[B,8] x) => (float[B,8] y) {
                r = Constant<value_float=0.5>() t = Constant<value=bool {1}>() d = Dropout(x, r, t) y = Abs(d)
            }"""
        )
        assert operators(simplified(made)) == ["Constant", "Constant", "Dropout", "Abs"]

    def test_dropout_that_may_train_stays(self) -> None:
        made = model("(float[B,8] x, bool t) => (float[B,8] y) { d = Dropout(x, , t) y = Abs(d) }")
        assert operators(simplified(made)) == ["Dropout", "Abs"]

    def test_dropout_whose_mask_is_read_stays(self) -> None:
        made = model("(float[B,8] x) => (float[B,8] y, bool[B,8] n) { d, m = Dropout(x) y = Abs(d) n = Not(m) }")
        assert canonical(made) == ["Dropout", "Abs", "Not"]

    def test_dropout_whose_mask_is_an_output_stays(self) -> None:
        made = model("(float[B,8] x) => (float[B,8] d, bool[B,8] m) { d, m = Dropout(x) }")
        assert canonical(made) == ["Dropout"]

    def test_the_second_of_two_equal_casts_is_the_first(self) -> None:
        made = model(
            """(float[B,8] x) => (float16[B,8] y) {
                a = Cast<to=10>(x) e = Exp(a) b = Cast<to=10>(x) c = Cast<to=1>(x) y = Add(e, b)
            }""",
            opset=17,
        )
        view = view_of(made)
        assert view.resolve("b") == "a" and view.resolve("c") == "x"


class TestConstants:
    def test_shape_arithmetic_is_folded(self) -> None:
        body = """
            s = Shape(x) i = Constant<value_int=0>() b = Gather(s, i) j = Constant<value_int=1>() n = Gather(s, j)
            a = Constant<value=int64[1] {0}>() bb = Unsqueeze(b, a) nn = Unsqueeze(n, a)
            h = Constant<value=int64[2] {2,4}>() t = Concat<axis=0>(bb, nn, h) r = Reshape(x, t) y = Abs(r)"""
        assert written(body, opset=17) == ["Reshape", "Abs"]

    def test_what_constants_make_is_one(self) -> None:
        body = """
            a = Constant<value=float[2] {1,2}>() b = Constant<value=float[2] {3,4}>() c = Add(a, b) d = Sqrt(c)
            e = Concat<axis=0>(d, d, d, d) y = Mul(x, e)"""
        assert written(body, opset=17) == ["Mul"]

    def test_what_would_be_too_large_is_left_to_the_run(self) -> None:
        body = """
            s = Constant<value=int64[1] {100000}>() z = ConstantOfShape(s) o = Exp(z) r = ReduceMax<keepdims=0>(x)
            p = Mul(o, r) m = ReduceMean<keepdims=0>(p) y = Add(x, m)"""
        assert "Exp" in written(body, opset=17)

    def test_random_numbers_are_left_to_the_run(self) -> None:
        made = model("(float[B,8] x) => (float[B,8] y) { r = RandomNormal<shape=[8]>() y = Add(x, r) }")
        assert operators(simplified(made)) == ["RandomNormal", "Add"]


# -- norms ----------------------------------------------------------------------------------------------------------------


def reduce_mean(value: str, name: str, opset: int, axes: str = "-1", keepdims: int = 1) -> str:
    if opset < 18:
        return f"{name} = ReduceMean<axes=[{axes}], keepdims={keepdims}>({value}) "
    return (
        f"{name}a = Constant<value=int64[1] {{{axes}}}>() {name} = ReduceMean<keepdims={keepdims}>({value}, {name}a) "
    )


CONSTANTS = "two = Constant<value_float=2.0>() e = Constant<value_float=0.001>() "
SQUARES = {"Pow": "q = Pow({0}, two) ", "Mul": "q = Mul({0}, {0}) "}
ENDS = {
    "Div": "n = Div({0}, d) ",
    "Reciprocal": "r = Reciprocal(d) n = Mul({0}, r) ",
    "1/": "o = Constant<value_float=1.0>() r = Div(o, d) n = Mul(r, {0}) ",
    "rsqrt": "h = Constant<value_float=-0.5>() r = Pow(w, h) n = Mul({0}, r) ",
}
AFFINE = {
    "bare": "y = Identity(n)",
    "scaled": "y = Mul(g, n)",
    "scaled and shifted": "s = Mul(n, g) y = Add(b, s)",
}
WEIGHTS = {"g": np.linspace(0.5, 2, 8, dtype=np.float32), "b": np.linspace(-1, 1, 8, dtype=np.float32)}


def layer_norm(
    opset: int, square: str = "Pow", end: str = "Div", affine: str = "scaled and shifted", *, twice: bool = False
) -> str:
    body = CONSTANTS + reduce_mean("x", "m", opset) + "c = Sub(x, m) "
    again = "c"
    if twice:
        body += reduce_mean("x", "m2", opset) + "c2 = Sub(x, m2) "
        again = "c2"
    body += SQUARES[square].format(again) + reduce_mean("q", "v", opset) + "w = Add(v, e) d = Sqrt(w) "
    return body + ENDS[end].format("c") + AFFINE[affine]


def rms_norm(opset: int, square: str = "Pow", end: str = "Div", affine: str = "scaled") -> str:
    body = CONSTANTS + SQUARES[square].format("x") + reduce_mean("q", "v", opset) + "w = Add(e, v) "
    return body + "d = Sqrt(w) " + ENDS[end].format("x") + AFFINE[affine]


class TestNorms:
    @pytest.mark.parametrize("opset", [17, 23])
    @pytest.mark.parametrize("affine", ["scaled", "scaled and shifted"])
    def test_layer_norm_in_every_way_of_writing_it(self, opset: int, affine: str) -> None:
        for square, end, twice in itertools.product(SQUARES, ENDS, (False, True)):
            body = layer_norm(opset, square, end, affine, twice=twice)
            assert written(body, opset=opset, weights=WEIGHTS) == ["LayerNormalization"], (square, end, twice)

    @pytest.mark.parametrize("affine", ["bare", "scaled"])
    def test_rms_norm_in_every_way_of_writing_it(self, affine: str) -> None:
        for square, end in itertools.product(SQUARES, ENDS):
            body = rms_norm(NEWEST, square, end, affine)
            view = view_of(model(f"(float[B,S,8] x) => (float[k] y) {{ {body} }}", opset=NEWEST, weights=WEIGHTS))
            norm = view.producer("n")
            assert norm is not None and norm.op_type == "RMSNormalization", (square, end)
            found = written(body, weights=WEIGHTS)
            assert affine == "bare" or found == ["RMSNormalization"], (square, end)

    def test_epsilon_comes_from_the_graph(self) -> None:
        after = simplified(model(f"(float[B,S,8] x) => (float[k] y) {{ {layer_norm(17)} }}", opset=17, weights=WEIGHTS))
        attributes = {item.name: helper.get_attribute_value(item) for item in after.graph.node[-1].attribute}
        assert attributes["axis"] == -1 and attributes["epsilon"] == pytest.approx(0.001)

    def test_an_older_opset_keeps_the_small_operators_but_sees_the_norm(self) -> None:
        made = model(f"(float[B,S,8] x) => (float[k] y) {{ {layer_norm(14)} }}", opset=14, weights=WEIGHTS)
        assert "LayerNormalization" not in canonical(made)
        producer = view_of(made).producer("y")
        assert producer is not None and producer.op_type == "LayerNormalization"

    def test_the_last_axis_counted_from_the_front(self) -> None:
        body = layer_norm(17).replace("axes=[-1]", "axes=[2]")
        assert written(body, opset=17, weights=WEIGHTS) == ["LayerNormalization"]

    @pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
    def test_in_half_precision(self, dtype: str) -> None:
        code = {"float16": TensorProto.FLOAT16, "bfloat16": TensorProto.BFLOAT16}[dtype]
        weights = {name: array.astype(helper.tensor_dtype_to_np_dtype(code)) for name, array in WEIGHTS.items()}
        weights["e"] = bfloat16(0.001).astype(weights["g"].dtype)
        weights["two"] = bfloat16(2.0).astype(weights["g"].dtype)
        body = layer_norm(17).replace(CONSTANTS, "")
        made = model(f"({dtype}[B,S,8] x) => ({dtype}[k] y) {{ {body} }}", opset=17, weights=weights)
        producer = view_of(made).producer("y")
        assert producer is not None and producer.op_type == "LayerNormalization"

    @pytest.mark.parametrize(("opset", "wide"), [(14, 11), (17, 1)])
    def test_in_half_precision_with_the_centred_value_widened(self, opset: int, wide: int) -> None:
        weights = {name: array.astype(np.float16) for name, array in WEIGHTS.items()}
        body = layer_norm(opset).replace("c = Sub(x, m)", f"t = Sub(x, m) c = Cast<to={wide}>(t)")
        if wide == TensorProto.DOUBLE:
            body = body.replace(CONSTANTS, "")
            weights |= {"two": np.array(2.0), "e": np.array(0.001)}
        body = body.replace("s = Mul(n, g)", "z = Cast<to=10>(n) s = Mul(z, g)")
        made = model(f"(float16[B,S,8] x) => (float16[k] y) {{ {body} }}", opset=opset, weights=weights)
        producer = view_of(made).producer("y")
        assert producer is not None and producer.op_type == "LayerNormalization"
        assert producer.inputs == ("x", "g", "b")

    NEAR: ClassVar = {
        "an exponent other than 2": layer_norm(17).replace("two = Constant<value_float=2.0>", "two = Constant<value_float=3.0>"),
        "another axis": layer_norm(17).replace("axes=[-1]", "axes=[1]"),
        "two axes": layer_norm(17).replace("axes=[-1]", "axes=[1,2]"),
        "the mean over another axis": layer_norm(17).replace("axes=[-1]", "axes=[1]", 1),
        "epsilon outside the root": layer_norm(17).replace("w = Add(v, e) d = Sqrt(w)", "w = Sqrt(v) d = Add(w, e)"),
        "no root": layer_norm(17).replace("d = Sqrt(w)", "d = Identity(w)"),
        "the square of something else": layer_norm(17).replace("q = Pow(c, two)", "q = Pow(x, two)"),
        "the norm of something else": layer_norm(17).replace("n = Div(c, d)", "n = Div(x, d)"),
        "a product that is no square": layer_norm(17, "Mul").replace("q = Mul(c, c)", "q = Mul(c, x)"),
        "the mean added": layer_norm(17).replace("c = Sub(x, m)", "c = Add(x, m)"),
        "the mean minus x": layer_norm(17).replace("c = Sub(x, m)", "c = Sub(m, x)"),
        "the sum for the mean": layer_norm(17).replace("v = ReduceMean<axes=[-1], keepdims=1>", "v = ReduceMax<axes=[-1], keepdims=1>"),
        "an epsilon for each row": layer_norm(17).replace("w = Add(v, e)", "k = ReduceMax<axes=[-1]>(x) k2 = Abs(k) w = Add(v, k2)"),
    }  # fmt: skip

    @pytest.mark.parametrize("name", list(NEAR))
    def test_near_relatives_are_not_recognised(self, name: str) -> None:
        assert self.NEAR[name] != layer_norm(17)
        body = self.NEAR[name]
        assert "LayerNormalization" not in written(body, opset=17, weights=WEIGHTS)
        view = view_of(model(f"(float[B,S,8] x) => (float[k] y) {{ {body} }}", opset=17, weights=WEIGHTS))
        assert not view.nodes([("", "LayerNormalization")])
        # x less something, divided by its root mean square, is a norm all the same, but not one of x.
        assert not any(node.inputs[0] == "x" for node in view.nodes([("", "RMSNormalization")]))

    def test_a_mean_that_drops_the_axis_broadcasts_another_way(self) -> None:
        body = layer_norm(17).replace("axes=[-1], keepdims=1", "axes=[-1], keepdims=0")
        made = model(f"(float[8,8] x) => (float[k] y) {{ {body} }}", opset=17, weights=WEIGHTS)
        assert "LayerNormalization" not in canonical(made)

    @pytest.mark.parametrize(
        "scale", [np.full((3, 1), 2.0, np.float32), np.array(2.0, np.float32), np.ones((3, 8), np.float32)]
    )
    def test_a_scale_of_another_shape_is_no_scale_of_the_norm(self, scale: np.ndarray) -> None:
        body = layer_norm(17, affine="scaled")
        made = model(f"(float[B,3,8] x) => (float[k] y) {{ {body} }}", opset=17, weights={"g": scale})
        assert canonical(made)[-1] == "Mul"
        (miss,) = view_of(made).near_misses
        shape = ", ".join(map(str, scale.shape))
        assert miss.reason == f"the scale g has shape [{shape}], pattern wants [8]"

    @pytest.mark.parametrize("shift", [np.full((3, 1), 2.0, np.float32), np.array(2.0, np.float32)])
    def test_a_shift_of_another_shape_stays_outside(self, shift: np.ndarray) -> None:
        made = model(
            f"(float[B,3,8] x) => (float[k] y) {{ {layer_norm(17)} }}", opset=17, weights={**WEIGHTS, "b": shift}
        )
        assert canonical(made) == ["LayerNormalization", "Add"]

    @pytest.mark.parametrize("axis", [1, 2, -1, -2])
    def test_a_shift_after_a_norm_over_several_axes_stays_outside(self, axis: int) -> None:
        body = f"n = LayerNormalization<axis={axis}, epsilon=0.01>(x, g) y = Add(n, b)"
        last = axis in (2, -1)
        found = written(body, opset=17, inputs="float[B,3,8] x", weights=WEIGHTS)
        assert found == (["LayerNormalization"] if last else ["LayerNormalization", "Add"])

    def test_an_epsilon_with_more_axes_than_the_input_gives_the_output_more_axes(self) -> None:
        body = layer_norm(17).replace("e = Constant<value_float=0.001>", "e = Constant<value=float[1,1,1,1] {0.001}>")
        written(body, opset=17, weights=WEIGHTS)


# -- activations ----------------------------------------------------------------------------------------------------------

ERF = "t = Erf(z) one = Constant<value_float=1.0>() g = Add(t, one) "
ROOT = "k = Constant<value_float=1.4142135>() z = Div(x, k) "
HALF = "h = Constant<value_float=0.5>() "
TANH = """k = Constant<value_float=0.044715>() c = Constant<value_float=0.7978845>() one = Constant<value_float=1.0>()
    p = Mul(q, k) s = Add(x, p) z = Mul(c, s) t = Tanh(z) g = Add(one, t) """
CUBES = ("three = Constant<value_float=3.0>() q = Pow(x, three) ", "u = Mul(x, x) q = Mul(u, x) ")
PRODUCTS = ("a = Mul(x, g) y = Mul(a, h)", "a = Mul(x, h) y = Mul(a, g)", "a = Mul(h, g) y = Mul(x, a)")


class TestActivations:
    @pytest.mark.parametrize("end", PRODUCTS)
    @pytest.mark.parametrize("root", [ROOT, "k = Constant<value_float=0.70710678>() z = Mul(k, x) "])
    def test_gelu_with_erf(self, root: str, end: str) -> None:
        assert written(root + ERF + HALF + end) == ["Gelu"]

    @pytest.mark.parametrize("end", PRODUCTS)
    @pytest.mark.parametrize("cube", CUBES)
    def test_gelu_with_tanh(self, cube: str, end: str) -> None:
        assert written(cube + TANH + HALF + end) == ["Gelu"]

    @pytest.mark.parametrize("kind", [np.float16, np.float32, ml_dtypes.bfloat16])
    @pytest.mark.parametrize(
        "written_as", ["1.4142135623730951", "1.4142135", "0.7071067811865476", "0.70710678", "tanh"]
    )
    def test_factors_are_as_the_type_rounds_them(self, written_as: str, kind: Any) -> None:
        """What PyTorch and TensorFlow write of sqrt(2), its reciprocal, sqrt(2/pi) and 0.044715."""
        if written_as == "tanh":
            numbers = {"k": 0.044715, "c": 0.7978845608028654, "three": 3.0}
            body = "q = Pow(x, three) p = Mul(q, k) s = Add(x, p) z = Mul(c, s) e = Tanh(z)"
        else:
            numbers = {"k": float(written_as)}
            body = f"z = {'Div' if numbers['k'] > 1 else 'Mul'}(x, k) e = Erf(z)"
        numbers |= {"one": 1.0, "h": 0.5}
        weights = {name: np.array(number, kind) for name, number in numbers.items()}
        name = {"float16": "float16", "float32": "float", "bfloat16": "bfloat16"}[np.dtype(kind).name]
        text = f"({name}[B,8] x) => ({name}[B,8] y) {{ {body} g = Add(e, one) a = Mul(x, g) y = Mul(a, h) }}"
        producer = view_of(model(text, opset=NEWEST, weights=weights)).producer("y")
        assert producer is not None and producer.op_type == "Gelu"

    @pytest.mark.parametrize(
        "body",
        [
            "s = Sigmoid(x) y = Mul(x, s)",
            "s = Sigmoid(x) y = Mul(s, x)",
            "k = Constant<value_float=1.702>() z = Mul(k, x) s = Sigmoid(z) y = Mul(x, s)",
            "k = Constant<value=float[1] {0.5}>() z = Div(x, k) s = Sigmoid(z) y = Mul(s, x)",
        ],
    )
    def test_silu(self, body: str) -> None:
        assert written(body) == ["Swish"]

    def test_beta_is_kept(self) -> None:
        body = "k = Constant<value_float=1.702>() z = Mul(k, x) s = Sigmoid(z) y = Mul(x, s)"
        node = view_of(model(f"(float[B,8] x) => (float[k] y) {{ {body} }}")).producer("y")
        assert node is not None and node.attribute("alpha") == pytest.approx(1.702)

    def test_below_the_opset_that_has_them_they_are_seen_but_not_written(self) -> None:
        for body, name in ((ROOT + ERF + HALF + PRODUCTS[0], "Gelu"), ("s = Sigmoid(x) y = Mul(x, s)", "Swish")):
            assert name not in written(body, opset=17)
            producer = view_of(model(f"(float[B,8] x) => (float[k] y) {{ {body} }}")).producer("y")
            assert producer is not None and producer.op_type == name

    @pytest.mark.parametrize(
        "body",
        [
            (ROOT + ERF + HALF + PRODUCTS[0]).replace("1.4142135", "1.5"),
            (ROOT + ERF + HALF + PRODUCTS[0]).replace("1.4142135", "1.41425"),
            (CUBES[0] + TANH + HALF + PRODUCTS[0]).replace("0.044715", "0.0447083"),  # what float16 makes of it
            (CUBES[0] + TANH + HALF + PRODUCTS[0]).replace("0.7978845", "0.79789"),
            (ROOT + ERF + HALF + PRODUCTS[0]).replace("h = Constant<value_float=0.5>", "h = Constant<value_float=0.6>"),
            (ROOT + ERF + HALF + PRODUCTS[0]).replace("value_float=1.0", "value_float=1.01"),
            (ROOT + ERF + HALF + "b = Abs(x) a = Mul(b, g) y = Mul(a, h)"),
            (CUBES[0] + TANH + HALF + PRODUCTS[0]).replace("0.044715", "0.05"),
            (CUBES[0] + TANH + HALF + PRODUCTS[0]).replace("0.7978845", "0.79"),
            (CUBES[0] + TANH + HALF + PRODUCTS[0]).replace("value_float=3.0", "value_float=2.0"),
            (CUBES[1] + TANH + HALF + PRODUCTS[0]).replace("q = Mul(u, x)", "q = Mul(u, u)"),
            "s = Sigmoid(x) y = Add(x, s)",
            "b = Neg(x) s = Sigmoid(b) y = Mul(x, s)",
            "s = HardSigmoid(x) y = Mul(x, s)",
            "k = Constant<value=float[8] {1,1,1,1,1,1,1,2}>() z = Mul(k, x) s = Sigmoid(z) y = Mul(x, s)",
        ],
    )
    def test_near_relatives_are_not_recognised(self, body: str) -> None:
        assert not {"Gelu", "Swish"} & set(written(body))

    def test_a_gate_of_something_else_is_no_silu(self) -> None:
        made = model("(float[B,8] x, float[B,8] w) => (float[B,8] y) { s = Sigmoid(w) y = Mul(x, s) }", opset=NEWEST)
        assert canonical(made) == ["Sigmoid", "Mul"]
        made = model(
            "(float[B,8] x, float w) => (float[k] y) { z = Mul(x, w) s = Sigmoid(z) y = Mul(x, s) }", opset=NEWEST
        )
        assert canonical(made) == ["Mul", "Sigmoid", "Mul"]

    def test_a_beta_with_more_axes_than_the_input_gives_the_output_more_axes(self) -> None:
        body = "k = Constant<value=float[1,1,1,1] {2}>() z = Mul(k, x) s = Sigmoid(z) y = Mul(x, s)"
        written(body)


# -- products and scales --------------------------------------------------------------------------------------------------

KERNEL = {"w": np.linspace(-1, 1, 32, dtype=np.float32).reshape(8, 4), "b": np.linspace(1, 2, 4, dtype=np.float32)}
TURNED = {"w": np.ascontiguousarray(KERNEL["w"].T), "b": KERNEL["b"]}


def seen(body: str, inputs: str = "float[B,S,8] x", **options: Any) -> list[str]:
    """The operators on the way to y in the view."""
    view = view_of(model(f"({inputs}) => (float[k] y) {{ {body} }}", opset=17, **options))
    found, value = [], "y"
    while (node := view.producer(value)) is not None and node.op_type != "Constant":
        found.insert(0, node.op_type)
        value = node.inputs[0]
    return found


class TestProducts:
    @pytest.mark.parametrize(
        ("body", "weights", "want"),
        [
            ("y = Gemm(x, w, b)", KERNEL, ["MatMul", "Add"]),
            ("y = Gemm<transB=1>(x, w, b)", TURNED, ["MatMul", "Add"]),
            ("y = Gemm(x, w)", KERNEL, ["MatMul"]),
        ],
    )
    def test_gemm_is_seen_as_matmul_and_add(self, body: str, weights: dict[str, np.ndarray], want: list[str]) -> None:
        assert seen(body, "float[B,8] x", weights=weights) == want

    def test_gemm_is_left_as_it_is_where_nothing_is_fused(self) -> None:
        body = "y = Gemm<transB=1>(x, w, b)"
        assert written(body, opset=17, inputs="float[B,8] x", weights=TURNED) == ["Gemm"]

    @pytest.mark.parametrize("attributes", ["alpha=0.5", "beta=2.0", "alpha=2.0, transB=1"])
    def test_gemm_with_factors_stays(self, attributes: str) -> None:
        weights = TURNED if "transB" in attributes else KERNEL
        assert seen(f"y = Gemm<{attributes}>(x, w, b)", "float[B,8] x", weights=weights) == ["Gemm"]

    def test_gemm_of_a_transposed_input_stays(self) -> None:
        assert seen("y = Gemm<transA=1>(x, w, b)", "float[8,B] x", weights=KERNEL) == ["Gemm"]

    def test_gemm_whose_bias_is_a_matrix_stays(self) -> None:
        weights = {**KERNEL, "b": np.ones((3, 4), np.float32)}
        assert seen("y = Gemm(x, w, b)", "float[3,8] x", weights=weights) == ["Gemm"]

    def test_a_weight_that_a_function_s_caller_may_transpose_stays(self) -> None:
        made = model(
            "(float[2,4] x, float[4,4] w) => (float[2,4] y) { y = my.Linear<turned=0>(x, w) }",
            functions="""<domain: "my", opset_import: ["" : 17]>
            Linear <turned> (x, w) => (y) { y = Gemm<transB: int = @turned>(x, w) }""",
        )
        view = View(Graph(made.functions[0], made))
        normalize(view)
        node = view.producer("y")
        assert node is not None and node.op_type == "Gemm"

    @pytest.mark.parametrize(
        "body",
        [
            "f = Constant<value=int64[2] {-1,8}>() r = Reshape(x, f) p = Gemm(r, w, b) s = Shape<end=2>(x)"
            " l = Constant<value=int64[1] {4}>() t = Concat<axis=0>(s, l) y = Reshape(p, t)",
            "r = Transpose<perm=[1,0,2]>(x) p = MatMul(r, w) q = Add(b, p) y = Transpose<perm=[1,0,2]>(q)",
            "p = MatMul(x, w) y = Add(p, b)",
        ],
    )
    def test_a_linear_layer_is_one_product_and_one_sum(self, body: str) -> None:
        assert seen(body, weights=KERNEL) == ["MatMul", "Add"]
        written(body, opset=17, weights=KERNEL)


class TestScales:
    @pytest.mark.parametrize(
        ("body", "left"),
        [
            ("c = Constant<value_float=8.0>() y = Div(x, c)", ["Mul"]),
            ("c = Constant<value=float[1] {8}>() y = Div(x, c)", ["Mul"]),
            ("c = Constant<value_float=8.0>() d = Constant<value_float=0.5>() a = Mul(x, c) y = Mul(d, a)", ["Mul"]),
            ("c = Constant<value_float=8.0>() a = Mul(x, c) b = Div(a, c) y = Mul(b, c)", ["Mul"]),
            ("c = Constant<value_float=8.0>() a = Mul(x, c) y = Transpose(a)", ["Transpose", "Mul"]),
            ("c = Constant<value_float=8.0>() t = Transpose<perm=[0,2,1]>(x) a = Mul(x, c) b = Mul(t, c) y = MatMul(a, b)",
             ["Transpose", "MatMul", "Mul"]),
            ("c = Constant<value_float=8.0>() t = Transpose<perm=[0,2,1]>(x) a = Mul(x, c) b = Div(t, c) y = MatMul(a, b)",
             ["Transpose", "MatMul"]),
        ],
    )  # fmt: skip
    def test_one_factor_in_one_place(self, body: str, left: list[str]) -> None:
        assert written(body, opset=17) == left

    @pytest.mark.parametrize(
        ("body", "left"),
        [
            ("c = Constant<value=float[8] {1,2,3,4,5,6,7,8}>() y = Div(x, c)", ["Div"]),
            ("c = Constant<value_float=1.0>() y = Div(c, x)", ["Div"]),
            ("c = Constant<value=float[1,1,1,1] {2}>() y = Div(x, c)", ["Div"]),
            ("c = Constant<value_float=0.0>() y = Div(x, c)", ["Div"]),
            ("c = Constant<value_int=2>() i = Cast<to=7>(x) d = Div(i, c) y = Cast<to=1>(d)", ["Cast", "Div", "Cast"]),
        ],
    )
    def test_what_is_no_factor_stays(self, body: str, left: list[str]) -> None:
        made = model(f"(float[B,S,8] x) => (float[k] y) {{ {body} }}", opset=17)
        assert [name for name in operators(simplified(made)) if name not in ("Identity", "Constant")] == left
        if "0.0" not in body:
            assert_same_results(made, simplified(made))

    @pytest.mark.parametrize(
        "body",
        [
            "c = Constant<value_float=300.0>() h = Cast<to=10>(c) a = Mul(x, h) y = Mul(a, h)",
            "c = Constant<value_float=0.00001>() h = Cast<to=10>(c) y = Div(x, h)",
        ],
    )
    def test_factors_are_not_merged_into_one_that_overflows(self, body: str) -> None:
        made = model(f"(float16[4] x) => (float16[4] y) {{ {body} }}", opset=17)
        weak = {"x": np.array([1e-4, 2e-4, 0, 1e-5], np.float16)}
        np.testing.assert_allclose(run(simplified(made), weak)[0], run(made, weak)[0], rtol=1e-2)


# -- the whole ------------------------------------------------------------------------------------------------------------


def test_a_rule_that_raises_is_reported_and_the_others_go_on() -> None:
    def broken(view: View, node: Node) -> bool:
        raise RuntimeError("no such thing")

    def drop(view: View, node: Node) -> bool:
        view.alias(node.outputs[0], node.inputs[0])
        return True

    made = model("(float[2] x) => (float[2] y) { [here] a = Abs(x) y = Identity(a) }")
    view = View(Graph(made.graph, made))
    assert normalize(view, {"Abs": (broken, drop), "Identity": (drop,)}) == 2
    assert view.errors == ["broken raised RuntimeError at here: no such thing"]
    assert view.resolve("y") == "x"


def test_rules_that_never_come_to_rest_are_stopped() -> None:
    def again(view: View, node: Node) -> bool:
        view.replace(node.outputs[0], "Abs", list(node.inputs), like=node)
        return True

    made = model("(float[2] x) => (float[2] y) { y = Abs(x) }")
    assert normalize(View(Graph(made.graph, made)), {"Abs": (again,)}) < 100


def test_a_rule_is_tried_only_behind_the_operators_it_names_as_the_view_has_them() -> None:
    tried = []

    @reads("Abs", "Neg")
    def seen(view: View, node: Node) -> bool:
        tried.append(node.name)
        return False

    def drop(view: View, node: Node) -> bool:
        view.alias(node.outputs[0], node.inputs[0])
        return True

    made = model(
        """(float[2] x) => (float[2] y) {
            a = Abs(x) [behind] b = Relu(a) [not_behind] c = Relu(x)
            i = Identity(a) [behind_what_is_dropped] y = Relu(i)
        }"""
    )
    normalize(View(Graph(made.graph, made)), {"Relu": (seen,), "Identity": (drop,)})
    assert tried == ["behind", "behind_what_is_dropped"]


@pytest.mark.parametrize(("opset", "half"), [(14, False), (17, True)])
@settings(derandomize=True, deadline=None, max_examples=15, database=None)
@given(data=st.data())
def test_no_rule_would_fire_where_it_says_that_it_does_not(opset: int, half: bool, data: st.DataObject) -> None:
    made = transformer(data, opset, half=half)

    def nodes() -> list[Any]:
        view = View(Graph(made.graph, made))
        normalize(view)
        return [(node.key, view.inputs(node), node.outputs) for node in view.all_nodes()]

    found = nodes()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("onnx_fuse.passes.normalize.sweep.may_fire", lambda *_: True)
        assert nodes() == found


def traces_of_declined_rules(made: ModelProto, rules: Rules = READING) -> list[str]:
    """The rules that made something in the view and then did not fire, each of them tried at every node of its operators."""
    traces: list[str] = []

    def watched(rule: Rule, view: View, node: Node) -> bool:
        before = len(view.graph.names), len(view.all_nodes())
        fired = applied(rule, view, node)
        if not fired and before != (len(view.graph.names), len(view.all_nodes())):
            traces.append(f"{rule.__name__} at {node.name}")
        return fired

    applied = sweep._applied
    view = View(Graph(made.graph, made))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sweep, "may_fire", lambda *_: True)
        patch.setattr(sweep, "_applied", watched)
        normalize(view, rules)
    assert not view.errors
    return traces


SCORES = """a = MatMul(q, k) t = Constant<value=int64[3] {-1,5,5}>() s = Reshape(a, t)
    u = Constant<value=int64[4] {-1,2,5,5}>() """


@pytest.mark.parametrize(
    ("inputs", "body"),
    [
        ("float[B,S,8] x, float[B,8,S] k", "y = MatMul(x, k)"),
        ("float16[B,S,8] x, float16[B,8,S] k", "y = MatMul(x, k)"),
        ("float[B,2,5,4] q, float[B,2,4,5] k, bool[5,5] m, float[1,1,1] c", SCORES + "y = Where(m, s, c)"),
        (
            "float[B,2,5,4] q, float[B,2,4,5] k, bool[5,5] m, float[1,1,1] c",
            SCORES + "g = Sigmoid(s) p = Mul(s, g) y = Where(m, p, c)",
        ),
        ("float[B,S,D] x, float[B,S,D] k", "y = Attention<q_num_heads=2, kv_num_heads=2>(x, k, k)"),
        ("float[B,S,6] x, float[B,S,4] k", "y = Attention<q_num_heads=3, kv_num_heads=2>(x, k, k)"),
        ("float[4,S] x, float[n,4] k", "z = my.Unknown(k) y = com.microsoft.FusedMatMul<transA=1, transB=1>(x, z)"),
    ],
)
def test_a_rule_that_declines_leaves_no_trace(inputs: str, body: str) -> None:
    made = model(f"({inputs}) => (float[k] y) {{ {body} }}", opset=23)
    assert traces_of_declined_rules(made) == []


def test_a_trace_of_a_declined_rule_is_found() -> None:
    def hasty(view: View, node: Node) -> bool:
        view.array(np.ones(1, np.float32))
        return False

    made = model("(float[2] x) => (float[2] y) { [here] y = Abs(x) }")
    assert traces_of_declined_rules(made, {"Abs": (hasty,)}) == ["hasty at here"]


@pytest.mark.parametrize(("opset", "half"), [(14, False), (17, True)])
@settings(derandomize=True, deadline=None, max_examples=15, database=None)
@given(data=st.data())
def test_no_rule_leaves_a_trace_where_it_declines(opset: int, half: bool, data: st.DataObject) -> None:
    assert traces_of_declined_rules(transformer(data, opset, half=half)) == []


@pytest.mark.parametrize(("opset", "half"), [(14, False), (17, False), (17, True)])
@settings(derandomize=True, deadline=None, max_examples=25, database=None)
@given(data=st.data())
def test_whatever_the_graph_its_canonical_form_computes_the_same(opset: int, half: bool, data: st.DataObject) -> None:
    made = transformer(data, opset, half=half)
    after = simplified(made)
    for sizes in ({"B": 2, "S": 3}, {"B": 1, "S": 4}):
        assert_same_results(made, after, tolerance=2e-2 if half else 2e-4, **sizes)
