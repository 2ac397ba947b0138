"""When an attribute is what a pattern wants, and what is said where it is not."""

from __future__ import annotations

import pytest

from onnx_fuse.passes.graph.index import Graph
from onnx_fuse.passes.view.matcher import NearMiss, match_at
from onnx_fuse.passes.view.view import View
from onnx_fuse.patterns import Attribute, pattern
from tests.helpers import matched, model, refusal

TEXT = "(float[2,3,4] a) => (float[2,3,4] y) {{ y = Softmax{0}(a) }}"


def test_literals() -> None:
    @pattern
    def turned(op, x):
        return op.Transpose(x, perm=[0, 2, 1, 3])

    text = "(float[2,3,4,5] a) => (float[p,q,r,s] y) {{ y = Transpose<perm=[{0}]>(a) }}"
    matched(turned, model(text.format("0,2,1,3")))
    assert (
        refusal(turned, model(text.format("0,1,3,2"))) == "attribute perm is [0, 1, 3, 2], pattern wants [0, 2, 1, 3]"
    )


@pytest.mark.parametrize(
    ("written", "wanted"), [("<axis=-1>", -1), ("<axis=2>", -1), ("<axis=2>", 2), ("<axis=-1>", 2), ("", -1)]
)
def test_axes_are_counted_as_the_pattern_counts_them(written: str, wanted: int) -> None:
    @pattern
    def last(op, x):
        return op.Softmax(x, axis=wanted)

    matched(last, model(TEXT.format(written)))


def test_another_axis_is_said() -> None:
    @pattern
    def last(op, x):
        return op.Softmax(x, axis=-1)

    assert refusal(last, model(TEXT.format("<axis=1>"))) == "attribute axis is -2, pattern wants -1"


def test_predicates() -> None:
    @pattern
    def leaky(op, x):
        return op.LeakyRelu(x, alpha=lambda alpha: alpha < 0.5 or "less than 0.5")

    @pattern
    def silent(op, x):
        return op.LeakyRelu(x, alpha=lambda alpha: alpha < 0.5)

    text = "(float[2] a) => (float[2] y) {{ y = LeakyRelu<alpha={0}>(a) }}"
    matched(leaky, model(text.format(0.25)))
    assert refusal(leaky, model(text.format(0.75))) == "attribute alpha is 0.75, pattern wants less than 0.5"
    assert refusal(silent, model(text.format(0.75))) == "attribute alpha is 0.75"


def test_one_captured_twice_is_equal_both_times() -> None:
    @pattern
    def twice(op, x, alpha: Attribute):
        return op.Elu(op.LeakyRelu(x, alpha=alpha), alpha=alpha)

    text = "(float[2] a) => (float[2] y) {{ b = LeakyRelu<alpha=0.5>(a) y = Elu<alpha={0}>(b) }}"
    assert matched(twice, model(text.format(0.5)))["alpha"] == 0.5
    assert refusal(twice, model(text.format(0.25))) == "attribute alpha is 0.5, elsewhere it is 0.25"


def test_also_on_one_node() -> None:
    @pattern
    def hard(op, x, both: Attribute):
        return op.HardSigmoid(x, alpha=both, beta=both)

    text = "(float[2] a) => (float[2] y) {{ y = HardSigmoid<alpha=0.5, beta={0}>(a) }}"
    assert matched(hard, model(text.format(0.5)))["both"] == 0.5
    assert refusal(hard, model(text.format(0.25))) == "attribute beta is 0.25, elsewhere it is 0.5"


def test_a_failed_alternative_does_not_forget_what_was_captured_before() -> None:
    @pattern
    def either(op, x, alpha: Attribute):
        inner = op.any_of(op.Elu(op.Abs(x), alpha=alpha), op.Elu(x, alpha=alpha))
        return op.domain("my").Pair(op.LeakyRelu(x, alpha=alpha), inner)

    text = "(float[2] a) => (float[2] y) {{ b = LeakyRelu<alpha=0.5>(a) c = Elu<alpha={0}>(a) y = my.Pair(b, c) }}"
    assert matched(either, model(text.format(0.5)))["alpha"] == 0.5
    assert "alpha" in refusal(either, model(text.format(0.25)))


def test_what_the_run_decides_is_refused() -> None:
    @pattern
    def mean(op, x):
        return op.ReduceMean(x, axes=[-1])

    made = model("(float[2,4] a, int64[1] k) => (float[p,q] y) { y = ReduceMean(a, k) }", opset=18)
    assert "not known before run time" in refusal(mean, made)


def test_what_the_caller_of_a_function_decides_too() -> None:
    @pattern
    def leaky(op, x, alpha: Attribute):
        return op.LeakyRelu(x, alpha=alpha)

    made = model(
        "(float[2] x) => (float[2] y) { y = my.Block(x) }",
        functions="""<domain: "my", opset_import: ["" : 17]>
        Block <alpha: float = 2.0> (a) => (y) { y = LeakyRelu <alpha: float = @alpha> (a) }""",
    )
    graph = Graph(made.functions[0], made)
    found = match_at(leaky, graph.nodes[0], View(graph))
    assert isinstance(found, NearMiss) and "not known before run time" in found.reason
