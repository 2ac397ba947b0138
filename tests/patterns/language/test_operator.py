"""Fused operators: the node, the body and a fusion that a user defines in a few lines."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest
from onnx import FunctionProto, ModelProto, TensorProto, helper

import onnx_fuse
from onnx_fuse import Attribute, Constant, Fused, FusedOp, Fusion, Optional, Scalar, pattern
from onnx_fuse.errors import PatternError, RequirementError, UsageError
from onnx_fuse.patterns.language.body import Body
from tests.helpers import assert_same_results, fused, model, operators, run

OPSETS = {"": 17}


def identity(op: Body, x: str) -> str:
    return x


def called(function: FunctionProto, *inputs: np.ndarray, opset: int = 17, **attributes: Any) -> list[np.ndarray]:
    """What the body of an operator computes, in ONNX Runtime."""
    names = list(function.input)
    node = helper.make_node(function.name, names, list(function.output), domain=function.domain, **attributes)
    values = [
        helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(array.dtype), array.shape)
        for name, array in zip(names, inputs, strict=True)
    ]
    graph = helper.make_graph([node], "g", values, [onnx.ValueInfoProto(name=name) for name in function.output])
    imports = [helper.make_opsetid("", opset), helper.make_opsetid(function.domain, 1)]
    made = helper.make_model(graph, functions=[function], opset_imports=imports, ir_version=8)
    return run(made, dict(zip(names, inputs, strict=True)))


class TestSignature:
    operator = FusedOp("Op", ("a", "b", "c"), lambda op, a, b, c: a)

    def test_inputs_come_in_the_operator_s_order_whatever_the_order_they_are_given_in(self) -> None:
        assert self.operator.present({"c": "z", "a": "x", "b": None}) == ["a", "c"]
        assert self.operator.present({}) == []

    def test_repeated_inputs_come_where_they_are_listed(self) -> None:
        operator = FusedOp("Op", ("first", "ids_*", "table_*", "last"), lambda op, **inputs: "")
        given = {"last": "l", "ids_1": "i", "table_1": "t", "ids_2": "j", "table_2": "u", "first": "f"}
        assert operator.present(given) == ["first", "ids_1", "table_1", "ids_2", "table_2", "last"]

    def test_an_input_that_is_not_the_operator_s(self) -> None:
        with pytest.raises(PatternError, match="Op has no input 'd'"):
            self.operator.present({"d": "x"})

    def test_attributes_are_all_there_and_no_others(self) -> None:
        operator = FusedOp("Op", ("x",), lambda op, x, alpha: x, ("alpha",))
        for attributes, said in (
            ({}, "lacks its attribute 'alpha'"),
            ({"alpha": 1.0, "beta": 2.0}, "has no attribute 'beta'"),
        ):
            with pytest.raises(PatternError, match=said):
                operator.make_node({"x": "x"}, {"output": "y"}, attributes, "n")
            with pytest.raises(PatternError, match=said):
                operator.make_function(["x"], ["output"], attributes, OPSETS, TensorProto.FLOAT)

    @pytest.mark.parametrize(
        ("body", "said"),
        [
            (lambda: "x", "has no parameter"),
            (lambda op, x: x, "does not take bias, alpha"),
            (lambda op, x, bias, alpha, beta: x, "takes beta, and the operator has no such"),
            (lambda op, *, x, alpha: x, "does not take bias"),
        ],
    )
    def test_a_body_whose_signature_does_not_fit(self, body: Any, said: str) -> None:
        with pytest.raises(PatternError, match=said):
            FusedOp("Op", ("x", "bias"), body, ("alpha",))

    def test_bodies_that_fit(self) -> None:
        FusedOp("Op", ("x", "bias"), lambda op, x, bias, alpha, beta=1.0: x, ("alpha",))
        FusedOp("Op", ("x", "bias"), lambda op, **given: given["x"], ("alpha",))
        FusedOp("Op", ("x", "ids_*"), lambda op, x, ids_1, **ids: x)
        FusedOp("Op", ("x",), lambda op, x, grouped: x, structure=lambda attributes: {"grouped": True})

    @pytest.mark.parametrize("domain", ["", "ai.onnx"])
    def test_onnx_s_own_domain_is_not_for_us(self, domain: str) -> None:
        with pytest.raises(PatternError, match="ONNX's own domain"):
            FusedOp("Op", ("x",), identity, domain=domain)


class TestBody:
    def test_it_is_a_function_of_what_is_there(self) -> None:
        operator = FusedOp("Op", ("a", "b"), lambda op, a, b: op.Add(a, b) if b else op.Neg(a))
        with_b = operator.make_function(["a", "b"], ["output"], {}, OPSETS, TensorProto.FLOAT)
        without = operator.make_function(["a"], ["output"], {}, OPSETS, TensorProto.FLOAT)
        assert [node.op_type for node in with_b.node] == ["Add"] and list(with_b.input) == ["a", "b"]
        assert [node.op_type for node in without.node] == ["Neg"] and list(without.input) == ["a"]
        assert with_b.domain == "gr.ml.infra" and with_b.opset_import[0].version == 17
        ones = np.ones(2, np.float32)
        assert called(with_b, ones, ones)[0].tolist() == [2, 2] and called(without, ones)[0].tolist() == [-1, -1]

    def test_numbers_become_constants_once(self) -> None:
        operator = FusedOp("Op", ("x",), lambda op, x: op.Add(op.Mul(x, 2.0), op.Mul(x, 2)))
        body = operator.make_function(["x"], ["output"], {}, OPSETS, TensorProto.FLOAT)
        assert [node.op_type for node in body.node].count("Constant") == 1
        assert called(body, np.array([3], np.float32))[0].tolist() == [12]

    @pytest.mark.parametrize(
        ("value", "want"), [(0.5, [1.5]), (2, [6.0]), ([1.0, 2.0], [3.0, 6.0]), ([1, 2], [3.0, 6.0])]
    )
    def test_attributes_are_constants_that_refer_to_the_node(self, value: Any, want: list[float]) -> None:
        operator = FusedOp("Op", ("x",), lambda op, x, k: op.Mul(x, op.float32(k)), ("k",))
        body = operator.make_function(["x"], ["output"], {"k": value}, OPSETS, TensorProto.FLOAT)
        assert list(body.attribute) == ["k"]
        assert called(body, np.array([3], np.float32), k=value)[0].tolist() == want

    def test_text_attributes_and_structure_reach_it_as_they_are(self) -> None:
        seen = []

        def body(op: Any, x: str, mode: str, size: str, large: bool) -> str:
            seen.append((mode, large))
            return str(op.Neg(x))

        operator = FusedOp("Op", ("x",), body, ("mode", "size"), structure=lambda found: {"large": found["size"] > 10})
        for size in (3, 30):
            operator.make_function(["x"], ["output"], {"mode": "soft", "size": size}, OPSETS, TensorProto.FLOAT)
        assert seen == [("soft", False), ("soft", True)]
        assert operator.variant({"mode": "soft", "size": 30}) == {"mode": "soft", "large": True}

    def test_outputs_that_nobody_needs_are_not_computed(self) -> None:
        operator = FusedOp("Op", ("x",), lambda op, x: (op.Neg(x), op.Exp(op.Abs(x))), outputs=("output", "more"))
        body = operator.make_function(["x"], ["output"], {}, OPSETS, TensorProto.FLOAT)
        assert [node.op_type for node in body.node] == ["Neg"] and list(body.output) == ["output"]

    def test_one_value_may_be_several_outputs_or_an_input(self) -> None:
        def body(op: Any, x: str) -> tuple[str, str, str]:
            negative = op.Neg(x)
            return negative, negative, x

        operator = FusedOp("Op", ("x",), body, outputs=("a", "b", "c"))
        made = operator.make_function(["x"], ["a", "b", "c"], {}, OPSETS, TensorProto.FLOAT)
        results = called(made, np.array([1], np.float32))
        assert [result.tolist() for result in results] == [[-1], [-1], [1]]

    def test_too_few_results_are_a_mistake(self) -> None:
        operator = FusedOp("Op", ("x",), identity, outputs=("a", "b"))
        with pytest.raises(PatternError, match="returned 1 values, it has 2 outputs"):
            operator.make_function(["x"], ["a", "b"], {}, OPSETS, TensorProto.FLOAT)

    @pytest.mark.parametrize("opset", [13, 14, 15, 18, 23])
    @pytest.mark.parametrize("dtype", [np.float32, np.float16])
    def test_helpers_write_what_the_opset_has(self, opset: int, dtype: Any) -> None:
        def body(op: Body, x: str, gamma: str, beta: str, epsilon: str) -> tuple[str, str]:
            wide = op.float32(x)
            return op.like(op.normalise(wide, "layer", gamma, beta, epsilon), x), op.like(op.reduce_mean(wide), x)

        operator = FusedOp("Op", ("x", "gamma", "beta"), body, ("epsilon",), ("normed", "mean"))
        kind = int(helper.np_dtype_to_tensor_dtype(np.dtype(dtype)))
        made = operator.make_function(["x", "gamma", "beta"], ["normed", "mean"], {"epsilon": 0.1}, {"": opset}, kind)
        x = np.arange(8, dtype=dtype).reshape(2, 4) ** 2
        gamma, beta = np.arange(1, 5, dtype=np.float32), np.ones(4, np.float32)
        normed, mean = called(made, x, gamma, beta, opset=opset, epsilon=0.1)
        wide = x.astype(np.float64)
        want = (wide - wide.mean(-1, keepdims=True)) / np.sqrt(wide.var(-1, keepdims=True) + 0.1) * gamma + beta
        assert normed.dtype == mean.dtype == dtype
        np.testing.assert_allclose(normed, want, rtol=1e-2 if dtype == np.float16 else 1e-5, atol=1e-6)
        np.testing.assert_allclose(mean, wide.mean(-1, keepdims=True), rtol=1e-2)

    def test_rms_and_no_norm(self) -> None:
        x = np.array([[3, 4]], np.float32)
        for norm, want in (("rms", x / np.sqrt(12.5)), ("none", x)):
            operator = FusedOp("Op", ("x",), lambda op, x, e, norm=norm: op.normalise(x, norm, None, None, e), ("e",))
            body = operator.make_function(["x"], ["output"], {"e": 0.0}, OPSETS, TensorProto.FLOAT)
            np.testing.assert_allclose(called(body, x, e=0.0)[0], want, rtol=1e-6)


class TestFusion:
    @staticmethod
    def two_gates() -> ModelProto:
        return model(
            """(float[n,4] x) => (float[n,4] y) {
                a = LeakyRelu<alpha=0.25>(x) b = Abs(a) c = LeakyRelu<alpha=0.5>(b) y = Abs(c)
            }"""
        )

    def test_in_fifteen_lines(self) -> None:
        # The operator, its body and the pattern it replaces: all that a user writes.
        @pattern
        def leaky_size(op, x, alpha: Attribute):
            return op.Abs(op.LeakyRelu(x, alpha=alpha))

        def body(op, x, alpha):
            return op.Abs(op.Where(op.Less(x, 0.0), op.Mul(x, alpha), x))

        operator = FusedOp("LeakySize", inputs=("x",), attributes=("alpha",), body=body, domain="com.example")
        result = onnx_fuse.fuse(self.two_gates(), fusions=[Fusion("LeakySize", leaky_size, operator)])
        # ...

        assert operators(result.model) == ["LeakySize", "LeakySize"]
        assert result.report.fused == {"LeakySize": 2}
        assert result.report.verification is not None and result.report.verification["passed"]
        assert_same_results(self.two_gates(), result.model)

    def test_without_a_build_function_everything_goes_by_name(self) -> None:
        @pattern
        def affine(op, x, w: Constant, scale: Scalar, b: Optional):
            return op.any_of(op.Add(op.Mul(op.MatMul(x, w), scale), b), op.Mul(op.MatMul(x, w), scale))

        def body(op: Any, x: str, w: str, b: str | None, scale: str) -> str:
            product = op.Mul(op.MatMul(x, w), scale)
            return str(op.Add(product, b)) if b else str(product)

        made = Fusion("Affine", affine, FusedOp("Affine", ("x", "w", "b"), body, ("scale",)))
        weights = {"w": np.arange(16, dtype=np.float32).reshape(4, 4), "b": np.ones(4, np.float32)}
        before = model(
            """(float[n,4] x) => (float[n,4] y, float[n,4] z) {
                k = Constant<value_float=0.5>() p = MatMul(x, w) q = Mul(p, k) y = Add(b, q) r = MatMul(x, w) z = Mul(k, r)
            }""",
            weights=weights,
        )
        after, report = fused(before, made)
        assert report.fused == {"Affine": 2}
        assert [match.inputs for match in report.matches] == [("x", "w", "b"), ("x", "w")]
        assert_same_results(before, after)

    def test_names_that_do_not_fit_are_told_when_the_fusion_is_defined(self) -> None:
        @pattern
        def relu(op, x):
            return op.Relu(x)

        with pytest.raises(PatternError, match="'z', which is no variable of pattern relu"):
            Fusion("Odd", relu, FusedOp("Odd", ("z",), lambda op, z: z))
        with pytest.raises(PatternError, match="'alpha', which is no variable"):
            Fusion("Odd", relu, FusedOp("Odd", ("x",), lambda op, x, alpha: x, ("alpha",)))
        with pytest.raises(PatternError, match="Decorate the function with @pattern"):
            Fusion("Odd", lambda op, x: op.Relu(x), FusedOp("Odd", ("x",), identity))  # type: ignore[arg-type]

    def test_several_patterns_for_one_operator(self) -> None:
        @pattern
        def one(op, x):
            return op.Abs(op.Neg(x))

        @pattern
        def other(op, x):
            return op.Sqrt(op.Mul(x, x))

        made = Fusion("Size", (one, other), FusedOp("Size", ("x",), lambda op, x: op.Abs(x)))
        before = model("(float[n] x) => (float[n] y, float[n] z) { a = Neg(x) y = Abs(a) b = Mul(x, x) z = Sqrt(b) }")
        after, report = fused(before, made)
        assert report.fused == {"Size": 2} and operators(after) == ["Size", "Size"]
        assert_same_results(before, after)

    def test_a_build_function_can_refuse_with_a_sentence(self) -> None:
        @pattern
        def leaky(op, x, alpha: Attribute):
            return op.Abs(op.LeakyRelu(x, alpha=alpha))

        def build(match: Any, view: Any) -> Fused | str:
            if match["alpha"] > 0.3:
                return f"alpha is {match['alpha']:g}, that is too much"
            return Fused({"x": match["x"]}, {"output": match.root.outputs[0]})

        made = Fusion(
            "Leaky", leaky, FusedOp("Leaky", ("x",), lambda op, x: op.Abs(op.LeakyRelu(x, alpha=0.25))), build
        )
        after, report = fused(self.two_gates(), made)
        assert operators(after) == ["Leaky", "LeakyRelu", "Abs"]
        assert [miss.reason for miss in report.near_misses] == ["alpha is 0.5, that is too much"]

    def test_whole_and_broken_numbers_of_one_attribute_do_not_share_a_body(self) -> None:
        """The body refers to an attribute as an int or as a float; a node with the other could not be run."""

        @pattern
        def powered(op, x, k: Scalar):
            return op.Abs(op.Mul(x, k))

        def build(match: Any, view: Any) -> Fused:
            number = view.scalar(match["k"])
            whole = number == int(number)
            return Fused({"x": match["x"]}, {"output": match.root.outputs[0]}, {"k": int(number) if whole else number})

        operator = FusedOp("Powered", ("x",), lambda op, x, k: op.Abs(op.Mul(x, op.float32(k))), ("k",))
        before = model(
            "(float[n] x) => (float[n] y) <float a={0.5}, float b={3}> { p = Mul(x, a) q = Abs(p) r = Mul(q, b) y = Abs(r) }"
        )
        after, report = fused(before, Fusion("Powered", powered, operator, build))
        assert report.fused == {"Powered": 2}
        assert_same_results(before, after)


class TestChoice:
    TEXT = "(float[n] x) => (float[n] y) { s = Sigmoid(x) y = Mul(x, s) }"

    @staticmethod
    def mine() -> Fusion:
        @pattern
        def sigmoid(op, x):
            return op.Sigmoid(x)

        return Fusion("Mine", sigmoid, FusedOp("Mine", ("x",), lambda op, x: op.Sigmoid(x)))

    def test_names_and_objects_can_be_mixed(self) -> None:
        for options in (
            {"fusions": ["FusedSwish", self.mine()]},
            {"fusions": ["FusedSwish"], "enable": [self.mine()]},
            {"enable": ["FusedSwish", self.mine()]},
        ):
            assert onnx_fuse.fuse(model(self.TEXT), **options).report.fused == {"FusedSwish": 1}  # type: ignore[arg-type]

    def test_opt_in_fusions_wait_to_be_named(self) -> None:
        assert onnx_fuse.fuse(model(self.TEXT)).report.fused == {}

    def test_disabled_ones_are_left_out_whoever_they_are(self) -> None:
        result = onnx_fuse.fuse(model(self.TEXT), fusions=["FusedSwish", self.mine()], disable=["FusedSwish"])
        assert result.report.fused == {"Mine": 1}
        result = onnx_fuse.fuse(model(self.TEXT), fusions=["FusedSwish", self.mine()], disable=["Mine"])
        assert result.report.fused == {"FusedSwish": 1}

    @pytest.mark.parametrize("option", ["fusions", "enable", "disable"])
    def test_unknown_names_are_refused_with_those_there_are(self, option: str) -> None:
        with pytest.raises(UsageError) as caught:
            onnx_fuse.fuse(model(self.TEXT), **{option: ["FusedSwich"]})  # type: ignore[arg-type]
        assert "FusedSwich" in caught.value.cause and "FusedSwish" in caught.value.remedy
        assert caught.value.exit_code == 2

    def test_what_is_required_must_be_reached(self) -> None:
        result = onnx_fuse.fuse(model(self.TEXT), enable=["FusedSwish"], require={"FusedSwish": 1})
        assert result.report.fused == {"FusedSwish": 1}
        with pytest.raises(RequirementError) as caught:
            onnx_fuse.fuse(model(self.TEXT), enable=["FusedSwish"], require={"FusedSwish": 2})
        assert caught.value.cause.startswith("2 FusedSwish required, 1 fused") and caught.value.exit_code == 3
        assert caught.value.report.fused == {"FusedSwish": 1}  # type: ignore[attr-defined]

    def test_what_does_not_run_cannot_be_required(self) -> None:
        for name in ("FusedSwish", "Nothing"):
            with pytest.raises(UsageError, match=f"{name} is required"):
                onnx_fuse.fuse(model(self.TEXT), require={name: 1})
