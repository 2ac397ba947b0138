"""Which attempts that failed are told, and in which words: each place once, and no place that looks like a fusion in silence."""

from __future__ import annotations

from dataclasses import replace

from onnx_fuse.patterns import Fusion, pattern
from tests.helpers import fused, fusion_of, model
from tests.passes.fuse.small_fusions import BUMP, reasons, the_miss

ANCHORED = replace(BUMP, anchor="Neg", explain_every_anchor=True)


def told(text: str, *fusions: Fusion, functions: str = "") -> list[str]:
    """The sentences, for a graph in which nothing is fused."""
    _, report = fused(model(text, functions=functions), *fusions)
    assert report.fused == {}
    return reasons(report)


def test_without_an_anchor_an_attempt_is_told_from_two_nodes_on() -> None:
    assert told("(float[2] x) => (float[2] y) { y = Cos(x) }", BUMP) == []
    assert told("(float[2] x) => (float[2] y) { m = Exp(x) y = Cos(m) }", BUMP) == []
    (sentence,) = told("(float[2] x) => (float[2] y) { s = Exp(x) m = Neg(s) y = Cos(m) }", BUMP)
    assert "Exp" in sentence and "Sin" in sentence


def test_with_an_anchor_it_is_told_if_it_came_upon_that() -> None:
    assert told("(float[2] x) => (float[2] y) { s = Sin(x) e = Exp(s) y = Cos(e) }", ANCHORED) == []
    (sentence,) = told("(float[2] x) => (float[2] y) { m = Neg(x) y = Cos(m) }", ANCHORED)
    assert "Sin" in sentence


def test_without_a_node_like_the_anchor_nothing_is_searched_that_needs_it() -> None:
    asked: list[object] = []

    def any_axis(axis: object) -> bool:
        asked.append(axis)
        return True

    @pattern
    def weighed(op, x):
        return op.Softmax(op.Neg(x), axis=any_axis)

    @pattern
    def weighed_or_bare(op, x):
        return op.Softmax(op.any_of(op.Neg(x), x), axis=any_axis)

    body = lambda op, x: op.Softmax(op.Neg(x), axis=-1)  # noqa: E731
    needing = replace(fusion_of(weighed, body, name="Weighed"), anchor="Neg")
    without = "(float[2,3] x) => (float[2,3] y) { m = Abs(x) y = Softmax<axis=1>(m) }"
    assert told(without, needing) == [] and asked == []
    # Neither where it is another domain's, which is told, nor where a match may lack it.
    functions = '<domain: "my", opset_import: ["" : 17]> Neg (x) => (y) { y = Abs(x) }'
    foreign = without.replace("Abs", "my.Neg")
    assert told(foreign, needing, functions=functions) == ["Neg of domain my is not ONNX's Neg"]
    either = replace(fusion_of(weighed_or_bare, body, name="Weighed"), anchor="Neg")
    _, report = fused(model(without), either)
    assert asked and report.fused == {"Weighed": 1}


def test_or_if_it_stopped_at_its_first_node_and_the_anchor_stands_before() -> None:
    @pattern
    def weighed(op, x):
        return op.Softmax(op.Neg(x), axis=-1)

    made = fusion_of(weighed, lambda op, x: op.Softmax(op.Neg(x), axis=-1), name="Weighed")
    made = replace(made, anchor="Neg")
    (sentence,) = told("(float[2,3] x) => (float[2,3] y) { m = Neg(x) y = Softmax<axis=0>(m) }", made)
    assert "axis" in sentence
    assert told("(float[2,3] x) => (float[2,3] y) { m = Abs(x) y = Softmax<axis=0>(m) }", made) == []


def test_an_anchor_that_no_attempt_came_upon_says_what_reads_it() -> None:
    text = "(float[2] x) => (float[2] y, float[2] z) { s = Sin(x) m = Neg(s) [a] y = Exp(m) [b] z = Tanh(m) }"
    assert told(text, ANCHORED) == ["found Exp a, which reads m, pattern wants Cos"]
    assert told(text, replace(ANCHORED, explain_every_anchor=False)) == []


def test_an_operator_of_another_domain_is_another_operator() -> None:
    functions = '<domain: "my", opset_import: ["" : 17]> Neg (x) => (y) { y = Abs(x) }'
    text = "(float[2] x) => (float[2] y) { s = Sin(x) m = my.Neg(s) y = Cos(m) }"
    assert told(text, ANCHORED, functions=functions) == ["Neg of domain my is not ONNX's Neg"]


def test_of_attempts_that_failed_alike_the_furthest_is_told() -> None:
    @pattern
    def longer(op, x):
        return op.Sqrt(op.Abs(op.Cos(op.Neg(op.Sin(x)))))

    both = replace(ANCHORED, pattern=(BUMP.pattern, longer))
    _, report = fused(model("(float[2] x) => (float[2] y) { m = Neg(x) c = Cos(m) a = Abs(c) y = Sqrt(a) }"), both)
    assert the_miss(report, "Bump").matched == 4


def test_what_was_fused_is_no_near_miss_of_itself() -> None:
    """The longer form fails at the root of the shorter one, which is fused."""

    @pattern
    def longer(op, x):
        return op.Sqrt(op.Cos(op.Neg(op.Sin(op.Abs(x)))))

    both = replace(ANCHORED, pattern=(longer, BUMP.pattern))
    _, report = fused(model("(float[2] x) => (float[2] y) { s = Sin(x) m = Neg(s) c = Cos(m) y = Sqrt(c) }"), both)
    assert report.fused == {"Bump": 1} and report.near_misses == []


def test_what_follows_a_match_and_stays_says_why() -> None:
    @pattern
    def core(op, x):
        return op.Neg(op.Sin(x))

    @pattern
    def whole(op, x):
        return op.Cos(op.Neg(op.Sin(x)))

    made = fusion_of(core, lambda op, x: op.Neg(op.Sin(x)), name="Core")
    made = replace(made, pattern=(whole, core), rim=("end",))
    text = "(float[2] x) => (float[2] y) { s = Sin(x) m = Neg(s) [next] y = Exp(m) }"
    _, report = fused(model(text), made)
    (match,) = report.matches
    assert match.left_out == ("next: Exp is no part of the pattern here",)
