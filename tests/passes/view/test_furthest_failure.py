"""Of several ways not to fit the one that tells most is told."""

from __future__ import annotations

import pytest

from onnx_fuse.passes.view.furthest_failure import FurthestFailure
from onnx_fuse.passes.view.matcher import NearMiss
from onnx_fuse.patterns import pattern
from tests.helpers import attempt, model, refusal


class TestNearMisses:
    @pattern
    def chain(op, x):
        return op.Relu(op.Neg(op.Abs(op.Exp(x))))

    def test_the_deepest_failure_is_told(self) -> None:
        made = model(
            "(float[2] a) => (float[2] y) { [wave] s = Sin(a) [size] b = Abs(s) n = Neg(b) [end] y = Relu(n) }"
        )
        miss = attempt(self.chain, made)
        assert isinstance(miss, NearMiss)
        assert (miss.root.name, miss.failed_at, miss.matched) == ("end", "wave", 3)
        assert miss.reason == "found Sin wave, pattern wants Exp"
        assert {name for name, _ in miss.reached} == {"Relu", "Neg", "Abs", "Sin"}

    def test_an_input_of_the_graph(self) -> None:
        made = model("(float[2] a) => (float[2] y) { b = Neg(a) y = Relu(b) }")
        assert refusal(self.chain, made) == "found the graph input a, pattern wants Abs"

    def test_a_constant(self) -> None:
        made = model("(float[2] a) => (float[2] y) <float[2] k={1,2}> { b = Neg(k) y = Relu(b) }")
        assert refusal(self.chain, made) == "found the constant k, pattern wants Abs"

    def test_the_best_of_several_alternatives(self) -> None:
        @pattern
        def either(op, x):
            return op.Relu(op.any_of(op.Sin(x), op.Neg(op.Abs(op.Exp(x)))))

        made = model("(float[2] a) => (float[2] y) { s = Cos(a) b = Abs(s) n = Neg(b) y = Relu(n) }")
        assert refusal(either, made) == "found Cos s, pattern wants Exp"


class TestWeight:
    @pytest.mark.parametrize(("weights", "told"), [((0, 1, 2, 3), 3), ((3, 2, 1, 0), 0), ((1, 1), 0), ((2, 3, 2), 1)])
    def test_among_equally_deep_failures_the_first_of_the_greatest_weight_is_told(
        self, weights: tuple[int, ...], told: int
    ) -> None:
        failure = FurthestFailure([], "root")
        for number, weight in enumerate(weights):
            assert not failure.note(f"node{number}", lambda text=f"sentence {number}": text, weight)
        where, matched, sentence = failure.take()
        assert (where, matched, sentence()) == (f"node{told}", 0, f"sentence {told}")

    def test_more_nodes_matched_count_more_than_any_weight(self) -> None:
        matched = ["first", "second"]
        failure = FurthestFailure(matched, "root")
        failure.note("deep", lambda: "deep", 0)
        matched.pop()
        failure.note("shallow", lambda: "shallow", 3)
        assert failure.take()[:2] == ("deep", 2)

    def test_where_nothing_failed_the_root_is_told(self) -> None:
        where, matched, sentence = FurthestFailure([], "root").take()
        assert (where, matched, sentence()) == ("root", 0, "nothing matched")
