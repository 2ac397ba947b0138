"""What a pattern matches, what it does not, and what it says then. `attempt` also sees that matching changes no byte."""

from __future__ import annotations

import time
from typing import Any

import numpy as np
import pytest
from onnx import TensorProto, helper

from onnx_fuse.passes.graph.dims import symbol
from onnx_fuse.passes.graph.index import Graph, graphs
from onnx_fuse.passes.view.matcher import STEP_BUDGET, Match, NearMiss, match_at
from onnx_fuse.passes.view.view import View
from onnx_fuse.patterns import Attribute, Constant, Optional, Pattern, Scalar, Value, pattern
from onnx_fuse.patterns.language.terms import Term
from tests.helpers import attempt, matched, model, refusal


def test_a_match_tells_what_was_bound_and_which_nodes_it_took() -> None:
    @pattern
    def hidden(op, x: Value, w: Constant):
        return op.Relu(op.named("sum", op.Add(op.MatMul(x, w), x)))

    made = model(
        "(float[n,2] a) => (float[n,2] y) <float[2,2] k={1,2,3,4}> { m = MatMul(a, k) s = Add(a, m) y = Relu(s) }"
    )
    found = matched(hidden, made)
    assert dict(found.bindings) == {"x": "a", "w": "k", "sum": "s"}
    assert [node.op_type for node in found.nodes] == ["MatMul", "Add", "Relu"]
    assert found.value == "y" and found.values == ("y",) and found.root.op_type == "Relu"
    assert "w" in found and "other" not in found and found.get("other") is None and found["x"] == "a"


class TestOperands:
    @pattern
    def gate(op, x, w):
        return op.Mul(op.Sigmoid(op.Add(x, w)), op.Sub(x, w))

    @pytest.mark.parametrize("product", ["Mul(s, d)", "Mul(d, s)"])
    @pytest.mark.parametrize("total", ["Add(a, b)", "Add(b, a)"])
    def test_commutative_ones_match_in_either_order_as_the_rest_needs_it(self, product: str, total: str) -> None:
        made = model(
            f"(float[2] a, float[2] b) => (float[2] y) {{ t = {total} s = Sigmoid(t) d = Sub(a, b) y = {product} }}"
        )
        found = matched(self.gate, made)
        assert (found["x"], found["w"]) == ("a", "b")

    @pytest.mark.parametrize("operator", ["Sub", "Div", "MatMul", "Pow"])
    def test_others_do_not(self, operator: str) -> None:
        @pattern
        def ordered(op, x):
            return op.Relu(op.node(operator, op.Abs(x), x))

        straight = model(f"(float[2,2] a) => (float[2,2] y) {{ b = Abs(a) c = {operator}(b, a) y = Relu(c) }}")
        swapped = model(f"(float[2,2] a) => (float[2,2] y) {{ b = Abs(a) c = {operator}(a, b) y = Relu(c) }}")
        matched(ordered, straight)
        assert "Abs" in refusal(ordered, swapped)

    def test_deep_sums_are_matched_in_every_order(self) -> None:
        @pattern
        def deep(op, a, b, c, d):
            return op.Add(op.Add(op.Abs(a), op.Neg(b)), op.Add(op.Exp(c), op.Sqrt(d)))

        made = model(
            """(float[2] x) => (float[2] y) {
                a = Abs(x) b = Neg(a) c = Exp(b) d = Sqrt(c) p = Add(d, c) q = Add(b, a) y = Add(p, q)
            }"""
        )
        found = matched(deep, made)
        assert [found[name] for name in "abcd"] == ["x", "a", "b", "c"]

    def test_a_variable_that_occurs_twice_is_one_value(self) -> None:
        @pattern
        def square(op, x):
            return op.Mul(x, x)

        matched(square, model("(float[2] a) => (float[2] y) { y = Mul(a, a) }"))
        made = model("(float[2] a, float[2] b) => (float[2] y) { y = Mul(a, b) }")
        assert refusal(square, made) == "b stands where a was expected again (x)"

    def test_or_two_equal_numbers(self) -> None:
        @pattern
        def twice(op, x, c: Scalar):
            return op.Mul(op.Add(x, c), c)

        text = "(float[2] a) => (float[2] y) <float c={{2}}, float d={{{0}}}> {{ s = Add(a, c) y = Mul(s, d) }}"
        matched(twice, model(text.format("2")))
        assert "(c)" in refusal(twice, model(text.format("3")))

    def test_a_term_that_occurs_twice_is_one_node(self) -> None:
        @pattern
        def shared(op, x):
            root = op.Sqrt(x)
            return op.Div(op.Neg(root), root)

        matched(shared, model("(float[2] a) => (float[2] y) { r = Sqrt(a) n = Neg(r) y = Div(n, r) }"))
        found = refusal(
            shared, model("(float[2] a) => (float[2] y) { r = Sqrt(a) q = Sqrt(a) n = Neg(r) y = Div(n, q) }")
        )
        assert found == "pattern wants r here again"

    def test_more_inputs_than_the_pattern_names_are_too_many(self) -> None:
        @pattern
        def clip(op, x):
            return op.LayerNormalization(x, op.number(1.0))

        made = model(
            "(float[2,4] a) => (float[2,4] y) <float[1] g={1}, float[1] b={0}> { y = LayerNormalization(a, g, b) }"
        )
        assert refusal(clip, made) == "LayerNormalization has 3 inputs, pattern wants 2"

    def test_what_opsets_moved_to_the_inputs_is_an_attribute_in_patterns(self) -> None:
        @pattern
        def mean(op, x):
            return op.ReduceMean(x, axes=[-1])

        matched(mean, model("(float[2,4] a) => (float[2,1] y) { y = ReduceMean<axes=[1]>(a) }", opset=17))
        text = "(float[2,4] a) => (float[2,1] y) <int64[1] k={1}> { y = ReduceMean(a, k) }"
        matched(mean, model(text, opset=18))


class TestVariables:
    @pattern
    def norm(op, x, gamma: Optional, beta: Optional, epsilon: Attribute):
        return op.LayerNormalization(x, gamma, beta, axis=-1, epsilon=epsilon)

    def test_an_optional_input_may_be_absent(self) -> None:
        text = (
            "(float[2,4] a) => (float[2,4] y) <float[4] g={{1,1,1,1}}> {{ y = LayerNormalization<epsilon=0.5>({0}) }}"
        )
        found = matched(self.norm, model(text.format("a, g")), canonical=False)
        assert found["gamma"] == "g" and "beta" not in found and found["epsilon"] == 0.5
        assert matched(self.norm, model(text.format("a, g, g")), canonical=False)["beta"] == "g"

    def test_also_in_the_middle(self) -> None:
        @pattern
        def clip(op, x, low: Optional, high):
            return op.domain("my").Clip(x, low, high)

        found = matched(clip, model("(float[2] a, float b) => (float[2] y) { y = my.Clip(a, , b) }"))
        assert found["high"] == "b" and "low" not in found

    def test_a_missing_epsilon_is_what_the_schema_says(self) -> None:
        made = model("(float[2,4] a) => (float[2,4] y) <float[4] g={1,1,1,1}> { y = LayerNormalization(a, g) }")
        assert matched(self.norm, made)["epsilon"] == pytest.approx(1e-5)

    def test_an_input_the_pattern_wants_may_not_be_absent(self) -> None:
        @pattern
        def both(op, x, low, high):
            return op.domain("my").Clip(x, low, high)

        assert refusal(both, model("(float[2] a, float b) => (float[2] y) { y = my.Clip(a, , b) }")) == (
            "an input is absent where the pattern wants low"
        )

    def test_constants_and_scalars(self) -> None:
        @pattern
        def constant(op, x, c: Constant):
            return op.Sub(x, c)

        @pattern
        def scalar(op, x, c: Scalar):
            return op.Sub(x, c)

        text = "(float[2] a, float[2] b) => (float[2] y) <float[2] k={{1,2}}, float one={{3}}> {{ y = Sub(a, {0}) }}"
        assert matched(constant, model(text.format("k")))["c"] == "k"
        assert refusal(constant, model(text.format("b"))) == "b is not a constant (c)"
        assert matched(scalar, model(text.format("one")))["c"] == "one"
        assert refusal(scalar, model(text.format("k"))) == "k is not a constant with one element (c)"

    def test_what_folds_to_a_constant_is_one(self) -> None:
        @pattern
        def half(op, x):
            return op.Mul(x, 0.5)

        matched(
            half, model("(float[2] a) => (float[2] y) <float c={4}> { r = Sqrt(c) q = Reciprocal(r) y = Mul(a, q) }")
        )


class TestNumbers:
    TEXT = "(float[2] a) => (float[2] y) <float c={{{0}}}> {{ y = Sub(a, c) }}"

    @staticmethod
    def wants(value: float, tolerance: float | None = None) -> Pattern:
        @pattern
        def number(op, x):
            return op.Sub(x, value if tolerance is None else op.number(value, tolerance))

        return number

    @pytest.mark.parametrize(("have", "want"), [(2, 2), (2.0000001, 2), (-0.5, -0.5), (0, 0), (1e-12, 1e-12)])
    def test_equal_within_a_tolerance(self, have: float, want: float) -> None:
        matched(self.wants(want), model(self.TEXT.format(have)))

    @pytest.mark.parametrize(("have", "want"), [(2.0001, 2), (-2, 2), (0.0001, 0), (1e-7, 0), (1e-5, 1e-6), (0, 1e-5)])
    def test_not_equal(self, have: float, want: float) -> None:
        assert (
            refusal(self.wants(want), model(self.TEXT.format(have)))
            == f"the constant is {have:g}, pattern wants {want:g}"
        )

    def test_the_tolerance_is_the_pattern_s_to_choose(self) -> None:
        matched(self.wants(2.0, 0.1), model(self.TEXT.format(2.1)))
        assert "2.1" in refusal(self.wants(2.0, 0.01), model(self.TEXT.format(2.1)))

    def test_an_exponent_has_no_tolerance(self) -> None:
        @pattern
        def square(op, x):
            return op.Pow(x, 2.0)

        text = "(float[2] a) => (float[2] y) <float c={{{0}}}> {{ y = Pow(a, c) }}"
        matched(square, model(text.format(2)))
        assert "the constant is 2, pattern wants 2" in refusal(square, model(text.format(2.0000019)))

    def test_an_array_is_no_number_and_neither_is_a_value(self) -> None:
        made = model("(float[2] a) => (float[2] y) <float[2] c={2,2}> { y = Sub(a, c) }")
        assert refusal(self.wants(2), made) == "found the constant c, pattern wants the constant 2"
        made = model("(float[2] a, float[2] b) => (float[2] y) { y = Sub(a, b) }")
        assert refusal(self.wants(2), made) == "found the graph input b, pattern wants the constant 2"

    def test_any_type_will_do(self) -> None:
        made = model("(int64[2] a) => (int64[2] y) <int64[1] c={2}> { y = Sub(a, c) }")
        matched(self.wants(2), made)

    def test_infinity(self) -> None:
        made = model("(float[2] a) => (float[2] y) { y = Sub(a, c) }", weights={"c": np.array(-np.inf, np.float32)})
        matched(self.wants(float("-inf")), made)
        assert "inf" in refusal(self.wants(-1e9), made)


class TestAlternatives:
    def test_any_of_takes_the_first_that_lets_all_match(self) -> None:
        @pattern
        def either(op, x, z):
            return op.Sub(op.any_of(x, op.Abs(x)), op.Neg(z) if False else op.any_of(op.Neg(x), z))

        found = matched(either, model("(float[2] a) => (float[2] y) { b = Abs(a) n = Neg(a) y = Sub(b, n) }"))
        # x alone fits the first operand, but then Neg(x) does not: z takes the second.
        assert found["x"] == "b" and found["z"] == "n"

    def test_a_choice_is_undone_when_what_follows_fails(self) -> None:
        @pattern
        def undone(op, x):
            return op.Sub(op.any_of(x, op.Abs(x)), op.Neg(x))

        found = matched(undone, model("(float[2] a) => (float[2] y) { b = Abs(a) n = Neg(a) y = Sub(b, n) }"))
        assert found["x"] == "a" and len(found.nodes) == 3

    def test_optional_nodes(self) -> None:
        @pattern
        def scaled(op, x, scale: Scalar):
            return op.Softmax(op.optional(op.Mul(x, scale), x))

        text = "(float[2,4] a) => (float[2,4] y) <float k={{0.5}}> {{ b = Mul(a, k) y = Softmax({0}) }}"
        assert matched(scaled, model(text.format("b")))["scale"] == "k"
        found = matched(scaled, model(text.format("a")))
        assert found["x"] == "a" and "scale" not in found

    def test_names_tell_which_it_was(self) -> None:
        @pattern
        def either(op, x):
            return op.any_of(op.named("is_abs", op.Abs(x)), op.named("is_neg", op.Neg(x)))

        found = matched(either, model("(float[2] a) => (float[2] y) { y = Neg(a) }"))
        assert "is_neg" in found and found["is_neg"] == "y" and "is_abs" not in found

    def test_a_name_outlives_an_alternative_that_failed(self) -> None:
        @pattern
        def shared(op, x):
            unit = op.named("unit", op.Elu(x))
            return op.domain("my").Pair(unit, op.any_of(op.Sub(unit, op.Abs(x)), op.Sub(unit, op.Neg(x))))

        made = model("(float[2] a) => (float[2] y) { e = Elu(a) n = Neg(a) s = Sub(e, n) y = my.Pair(e, s) }")
        assert matched(shared, made)["unit"] == "e"

    def test_several_operator_types_in_one_place(self) -> None:
        @pattern
        def reduced(op, x):
            return op.Abs(op.Relu(op.node(["ReduceMean", "ReduceSum"], x, axes=[-1])))

        for name in ("ReduceMean<axes=[-1]>(a)", "ReduceSum(a, k)"):
            matched(
                reduced,
                model(f"(float[2,4] a) => (float[2,1] y) <int64[1] k={{-1}}> {{ b = {name} c = Relu(b) y = Abs(c) }}"),
            )
        assert "ReduceMean or ReduceSum" in refusal(
            reduced, model("(float[2,4] a) => (float[2,1] y) { b = ReduceMax<axes=[-1]>(a) c = Relu(b) y = Abs(c) }")
        )


class TestVariadic:
    @pattern
    def joined(op, x):
        return op.Concat(op.variadic(op.Abs(x), count="parts"), axis=0)

    @pytest.mark.parametrize("count", [1, 2, 5])
    def test_any_number_of_inputs(self, count: int) -> None:
        names = [f"b{number}" for number in range(count)]
        body = " ".join(f"{name} = Abs(a)" for name in names)
        made = model(f"(float[2] a) => (float[n] y) {{ {body} y = Concat<axis=0>({', '.join(names)}) }}")
        found = matched(self.joined, made, canonical=False)
        assert found["parts"] == count
        assert [found[f"x_{number}"] for number in range(1, count + 1)] == ["a"] * count
        assert len(found.nodes) == count + 1

    def test_each_of_them_must_fit(self) -> None:
        made = model("(float[2] a) => (float[n] y) { b = Abs(a) c = Neg(a) y = Concat<axis=0>(b, c) }")
        assert "found Neg" in refusal(self.joined, made) and "Abs" in refusal(self.joined, made)

    def test_after_named_ones(self) -> None:
        @pattern
        def total(op, first, rest):
            return op.domain("my").Sum(first, op.variadic(rest))

        found = matched(total, model("(float[2] a, float[2] b, float[2] c) => (float[2] y) { y = my.Sum(a, b, c) }"))
        assert (found["first"], found["rest_1"], found["rest_2"], found["count"]) == ("a", "b", "c", 2)

    def test_more_than_can_be_followed_are_refused(self) -> None:
        node = helper.make_node("Concat", ["x"] * 5_000, ["y"], axis=0)
        graph = helper.make_graph([node], "g", [helper.make_tensor_value_info("x", TensorProto.FLOAT, [2])], [])
        view = View(Graph(graph, helper.make_model(graph)))

        @pattern
        def anything(op, x):
            return op.Concat(op.variadic(x))

        found = match_at(anything, view.graph.nodes[0], view)
        assert isinstance(found, NearMiss) and "more inputs than" in found.reason


class TestTree:
    @pattern
    def looked_up(op, table, ids):
        return op.named("total", op.tree("Add", op.Gather(table, ids, axis=0), least=2, most=4))

    @staticmethod
    def rows(shape: str) -> Any:
        gathers = " ".join(f"g{number} = Gather(t{number}, i)" for number in range(5))
        tables = ", ".join(f"float[9,2] t{number}" for number in range(5))
        return model(f"({tables}, int64[3] i) => (float[3,2] y) {{ {gathers} {shape} }}")

    @pytest.mark.parametrize(
        ("shape", "order"),
        [
            ("y = Add(g0, g1)", "01"),
            ("a = Add(g0, g1) y = Add(a, g2)", "012"),
            ("a = Add(g1, g2) y = Add(g0, a)", "012"),
            ("a = Add(g0, g1) b = Add(g2, g3) y = Add(a, b)", "0123"),
        ],
    )
    def test_leaves_come_in_operand_order_however_the_sum_is_nested(self, shape: str, order: str) -> None:
        found = matched(self.looked_up, self.rows(shape))
        assert found["count"] == len(order)
        assert [found[f"table_{place}"] for place in range(1, len(order) + 1)] == [f"t{number}" for number in order]
        assert len(found.nodes) == 2 * len(order) - 1

    def test_too_many_leaves(self) -> None:
        shape = "a = Add(g0, g1) b = Add(a, g2) c = Add(b, g3) y = Add(c, g4)"
        assert refusal(self.looked_up, self.rows(shape)) == "5 operands of Add, pattern wants 2 to 4"

    def test_a_leaf_that_does_not_fit(self) -> None:
        assert "Gather" in refusal(self.looked_up, self.rows("r = Relu(g0) y = Add(r, g1)"))


class TestDimensions:
    @pattern
    def product(op, x, w, bias):
        return op.Add(op.MatMul(op.shape(x, "B S K"), op.shape(w, "K H")), op.shape(bias, "H"))

    TEXT = "(float[{0}] a, float[{1}] w, float[{2}] b) => (float[p,q,r] y) {{ m = MatMul(a, w) y = Add(m, b) }}"

    def test_names_are_bound_to_sizes_and_symbols(self) -> None:
        found = matched(self.product, model(self.TEXT.format("n,s,8", "8,h", "h")))
        assert [found[name] for name in "BSKH"] == [symbol("n"), symbol("s"), 8, symbol("h")]

    def test_equal_names_are_equal_dimensions(self) -> None:
        found = refusal(self.product, model(self.TEXT.format("n,s,8", "8,4", "1")))
        assert found == "dimension H of b is 1, elsewhere in the match it is 4"
        matched(self.product, model(self.TEXT.format("n,s,k", "k,h", "h")))
        assert "dimension H" in refusal(self.product, model(self.TEXT.format("n,s,k", "k,h", "g")))

    def test_another_rank(self) -> None:
        found = refusal(self.product, model(self.TEXT.format("n,s,8", "8,4", "1,4")))
        assert found == "b has shape [1, 4], pattern wants [H]"

    def test_numbers_and_blanks(self) -> None:
        @pattern
        def fixed(op, x):
            return op.Relu(op.shape(x, "_ 3 _"))

        matched(fixed, model("(float[n,3,m] a) => (float[n,3,m] y) { y = Relu(a) }"))
        found = refusal(fixed, model("(float[n,4,m] a) => (float[n,4,m] y) { y = Relu(a) }"))
        assert "4" in found and "3" in found

    def test_an_unknown_shape(self) -> None:
        @pattern
        def known(op, x):
            return op.Relu(op.shape(x, "n"))

        made = model("(float[2] a) => (float[2] y) { b = my.Mystery(a) y = Relu(b) }")
        assert refusal(known, made) == "b has shape unknown, pattern wants [n]"

    def test_a_name_bound_by_an_alternative_that_failed_is_free_again(self) -> None:
        @pattern
        def either(op, x, z):
            return op.any_of(op.Sub(op.shape(x, "n 1"), op.Abs(z)), op.Sub(op.shape(x, "n m"), op.shape(z, "m n")))

        found = matched(either, model("(float[3,1] a, float[1,3] b) => (float[3,3] y) { y = Sub(a, b) }"))
        assert (found["n"], found["m"]) == (3, 1)


class TestOutputs:
    def test_one_output_of_several(self) -> None:
        @pattern
        def glu(op, x):
            value, gate = op.Split(x, outputs=2, axis=-1)
            return op.Mul(value, op.Sigmoid(gate))

        text = "(float[2,4] a) => (float[2,2] y) {{ p, q = Split<axis=1>(a) s = Sigmoid({0}) y = Mul({1}, s) }}"
        found = matched(glu, model(text.format("q", "p")))
        assert found["x"] == "a" and len(found.nodes) == 3
        for wrong in (("p", "q"), ("p", "p"), ("q", "q")):
            assert "output" in refusal(glu, model(text.format(*wrong)), canonical=False)

    def test_several_results(self) -> None:
        @pattern
        def statistics(op, x):
            mean = op.ReduceMean(x, axes=[-1])
            centred = op.Sub(x, mean)
            return centred, op.ReduceMean(op.Mul(centred, centred), axes=[-1]), mean

        made = model(
            """(float[2,4] a) => (float[2,4] y, float[2,1] v) {
                m = ReduceMean<axes=[-1]>(a) y = Sub(a, m) q = Mul(y, y) v = ReduceMean<axes=[-1]>(q) r = Relu(y)
            }"""
        )
        found = matched(statistics, made)
        assert found.values == ("y", "v", "m") and len(found.nodes) == 4

    def test_results_that_share_an_input_alone(self) -> None:
        @pattern
        def siblings(op, x, w, u):
            return op.MatMul(x, w), op.MatMul(x, u)

        made = model(
            """(float[2,4] a, float[4,4] w, float[4,4] u) => (float[2,4] y, float[2,4] z) {
                y = MatMul(a, w) r = Relu(a) z = MatMul(a, u)
            }"""
        )
        found = matched(siblings, made)
        assert found.values[0] == "y"

    def test_a_result_that_nothing_near_makes(self) -> None:
        @pattern
        def both(op, x):
            return op.Abs(x), op.Neg(x)

        found = refusal(both, model("(float[2] a, float[2] b) => (float[2] y, float[2] z) { y = Abs(a) z = Neg(b) }"))
        assert found == "no node beside it fits result 2 of the pattern"


class TestDomainsAndOpsets:
    @pattern
    def fast_gelu(op, x):
        return op.domain("my").FastGelu(x)

    @pattern
    def plain(op, x):
        return op.Abs(op.Relu(op.Gelu(x)))

    def test_operators_of_another_domain(self) -> None:
        matched(self.fast_gelu, model("(float[2] a) => (float[2] y) { y = my.FastGelu(a) }"))

    def test_equal_names_in_another_domain_are_other_operators(self) -> None:
        made = model("(float[2] a) => (float[2] y) { b = my.Gelu(a) c = Relu(b) y = Abs(c) }")
        assert refusal(self.plain, made) == "found my::Gelu b, pattern wants Gelu"

    def test_onnx_s_domain_by_either_name(self) -> None:
        made = model(
            "(float[2] a) => (float[2] y) { b = ai.onnx.Gelu(a) c = ai.onnx.Relu(b) y = ai.onnx.Abs(c) }", opset=20
        )
        assert made.graph.node[0].domain == "ai.onnx"
        matched(self.plain, made)

    @pytest.mark.parametrize(("opset", "fits"), [(12, False), (13, True), (17, True), (18, False)])
    def test_a_range_of_opsets(self, opset: int, fits: bool) -> None:
        @pattern
        def between(op, x):
            return op.Relu(x, since=13, until=17)

        result = attempt(between, model("(float[2] a) => (float[2] y) { y = Relu(a) }", opset=opset))
        assert isinstance(result, Match) is fits
        if isinstance(result, NearMiss):
            assert result.reason == f"opset {opset} is outside 13 to 17"


class TestRequirements:
    def test_all_must_be_met_and_the_first_that_is_not_is_the_reason(self) -> None:
        @pattern
        def relu(op, x):
            return op.Relu(x)

        asked = []

        @relu.require
        def first(match: Any, view: Any) -> str | None:
            asked.append(view.shape(match["x"]))
            return None

        @relu.require
        def second(match: Any, view: Any) -> str | None:
            return f"{match['x']} is not to my liking"

        @relu.require
        def third(match: Any, view: Any) -> str | None:
            raise AssertionError("not asked")

        made = model("(float[n] a) => (float[n] y) { y = Relu(a) }")
        assert refusal(relu, made) == "a is not to my liking"
        assert asked == [(symbol("n"),)]

    def test_another_way_to_match_may_meet_them(self) -> None:
        @pattern
        def pair(op, left, right):
            return op.Add(left, right)

        @pair.require
        def in_this_order(match: Any, view: Any) -> str | None:
            return None if match["left"] == "b" else "left is not b"

        found = matched(pair, model("(float[n] a, float[n] b) => (float[n] y) { y = Add(a, b) }"))
        assert (found["left"], found["right"]) == ("b", "a")


class TestBounds:
    @staticmethod
    def ladder(rungs: int) -> Any:
        """Sums of two equal operands, on which an order of operands can be chosen at each rung."""
        body = "v0 = Abs(a) " + " ".join(f"v{number} = Add(v{number - 1}, v{number - 1})" for number in range(1, rungs))
        return model(f"(float[2] a) => (float[2] y) {{ {body} y = Relu(v{rungs - 1}) }}")

    @staticmethod
    def rungs(count: int) -> Pattern:
        @pattern
        def pathological(op, x):
            term = op.Sin(x)
            for _ in range(count):
                term = op.Add(op.any_of(term, term), op.any_of(x, term))
            return op.Relu(term)

        return pathological

    def test_a_pattern_with_more_choices_than_can_be_tried_is_refused_and_says_so(self) -> None:
        started = time.process_time()
        miss = attempt(self.rungs(30), self.ladder(32))
        assert isinstance(miss, NearMiss)
        assert miss.reason == f"more than {STEP_BUDGET} steps were needed"
        assert time.process_time() - started < 5

    def test_several_results_are_not_looked_for_among_thousands(self) -> None:

        @pattern
        def pair(op, x, w):
            return op.Sin(op.Add(x, w)), op.Tan(op.Mul(x, w))

        nodes = []
        for number in range(1_000):
            nodes.append(helper.make_node("Add", [f"x{number}", "hub"], [f"a{number}"]))
            nodes.append(helper.make_node("Sin", [f"a{number}"], [f"y{number}"]))
        inputs = [helper.make_tensor_value_info(f"x{number}", TensorProto.FLOAT, [2]) for number in range(1_000)]
        inputs.append(helper.make_tensor_value_info("hub", TensorProto.FLOAT, [2]))
        graph = helper.make_graph(nodes, "g", inputs, [])
        view = View(Graph(graph, helper.make_model(graph)))
        started = time.process_time()
        for node in view.nodes([("", "Sin")]):
            assert isinstance(match_at(pair, node, view), NearMiss)
        assert time.process_time() - started < 5


class TestWhere:
    SILU = """
        (bool c, float[B,4] x, int64 n) => (float[B,4] y) {{
            s = Sigmoid(x)
            y = {0}
        }}"""

    @pattern
    def silu(op, x):
        return op.Mul(x, op.Sigmoid(x))

    def found(self, text: str, functions: str = "") -> dict[str, Match | NearMiss]:
        made = model(text, functions=functions)
        results = {}
        for graph in graphs(made):
            for node in graph.nodes:
                if node.op_type == "Mul":
                    results[graph.path] = match_at(self.silu, node, View(graph))
        return results

    def test_in_the_body_of_an_if(self) -> None:
        branches = """If (c) <
            then_branch = yes () => (float[B,4] p) { t = Sigmoid(x) p = Mul(x, t) },
            else_branch = no () => (float[B,4] q) { q = Mul(s, x) }
        >"""
        found = self.found(self.SILU.format(branches))
        inside, across = found["y/then_branch"], found["y/else_branch"]
        assert isinstance(inside, Match) and inside["x"] == "x"
        # The gate is computed outside: a match does not reach across the border of a graph.
        assert isinstance(across, NearMiss)

    def test_in_a_function(self) -> None:
        found = self.found(
            "(float[B,4] x) => (float[B,4] y) { y = my.Block(x) }",
            functions="""<domain: "my", opset_import: ["" : 17]>
            Block (a) => (y) { s = Sigmoid(a) y = Mul(s, a) }""",
        )
        assert isinstance(found["function my::Block"], Match)


class Odd(Term):
    def __repr__(self) -> str:
        return "an odd one"


def test_what_is_no_term_is_named() -> None:
    def odd(op, x):  # type: ignore[no-untyped-def]
        return op.Relu(Odd())

    def odd_leaf(op, x):  # type: ignore[no-untyped-def]
        return op.tree("Add", Odd())

    sentence = "an odd one stands where a pattern wants a term"
    with pytest.raises(TypeError, match=sentence):
        pattern(odd)
    with pytest.raises(TypeError, match=sentence):
        attempt(pattern(odd_leaf), model("(float[2] a) => (float[2] y) { b = Abs(a) y = Add(b, a) }"))
