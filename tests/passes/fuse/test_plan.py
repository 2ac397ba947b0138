"""Plans: which matches may go, who wins an overlap, in which order, and what is said to those that may not."""

from __future__ import annotations

import time
from typing import Any

import pytest
from onnx import TensorProto, helper

from onnx_fuse.patterns import pattern
from tests.helpers import fused, fusion_of, operators
from tests.passes.fuse.small_fusions import BUMP, LONG, PAIR, SWISH, long_bump, reasons, rewritten, the_miss


class TestOutsideReaders:
    def test_a_value_read_elsewhere_refuses_the_match_and_says_by_whom(self) -> None:
        _, after, report = rewritten(
            "(float[2] x) => (float[2] y, float[2] z) { [sine] s = Sin(x) m = Neg(s) y = Cos(m) [other] z = Exp(m) }",
            BUMP,
        )
        assert operators(after) == ["Sin", "Neg", "Cos", "Exp"]
        miss = the_miss(report, "Bump")
        assert miss.reason == "its output m is also read by other outside the match"
        assert (miss.failed_at, miss.node, miss.matched, miss.total) == ("m", "y", 3, 3)

    def test_a_graph_output_in_the_middle_too(self) -> None:
        _, after, report = rewritten(
            "(float[2] x) => (float[2] y, float[2] m) { s = Sin(x) m = Neg(s) y = Cos(m) }", BUMP
        )
        assert operators(after) == ["Sin", "Neg", "Cos"]
        assert the_miss(report, "Bump").reason == "its output m is a graph output"

    def test_a_value_that_a_subgraph_captures_too(self) -> None:
        _, after, report = rewritten(
            """(bool c, float[2] x) => (float[2] y, float[2] z) {
                s = Sin(x) m = Neg(s) y = Cos(m)
                [choose] z = If (c) <
                    then_branch = yes () => (float[2] p) { p = Exp(m) },
                    else_branch = no () => (float[2] q) { q = Identity(x) }
                >
            }""",
            BUMP,
        )
        assert operators(after) == ["Sin", "Neg", "Cos", "If"]
        assert the_miss(report, "Bump").reason == "its output m is also read by choose outside the match"

    def test_what_only_moves_data_may_stay_for_others(self) -> None:
        @pattern
        def shaped(op, x):
            return op.Sin(op.Transpose(x))

        _, after, report = rewritten(
            "(float[2,3] x) => (float[3,2] y, float[3,2] z) { t = Transpose(x) y = Sin(t) z = Exp(t) }",
            fusion_of(shaped, lambda op, x: op.Sin(op.Transpose(x)), name="Shaped"),
        )
        assert report.fused == {"Shaped": 1} and operators(after) == ["Transpose", "Shaped", "Exp"]

    def test_an_optional_output_appears_where_it_is_read(self) -> None:
        _, after, report = rewritten(
            """(float[2] x) => (float[2] y, float[2] z, float[2] w) {
                t = Elu(x) y = Softsign(t) z = Exp(t) u = Elu(y) w = Softsign(u)
            }""",
            PAIR,
        )
        assert operators(after) == ["Pair", "Exp", "Pair"]
        first, _, second = after.graph.node
        assert list(first.output) == ["y", "t"] and list(second.output) == ["w"]
        assert [match.outputs for match in report.matches] == [("output", "total"), ("output",)]

    def test_and_where_it_is_a_graph_output(self) -> None:
        _, after, _ = rewritten("(float[2] x) => (float[2] y, float[2] t) { t = Elu(x) y = Softsign(t) }", PAIR)
        assert [list(node.output) for node in after.graph.node] == [["y", "t"]]


class TestOrder:
    def test_a_fused_node_stands_before_all_who_read_its_outputs(self) -> None:
        _, after, _ = rewritten(
            "(float[2] x) => (float[2] y, float[2] z) { t = Elu(x) z = Exp(t) a = Abs(z) y = Softsign(t) }", PAIR
        )
        assert operators(after) == ["Pair", "Exp", "Abs"]

    def test_so_it_does_when_they_are_fused_themselves(self) -> None:
        @pattern
        def five(op, x, t):
            return op.Add(t, op.Tanh(op.Abs(op.Neg(op.Sin(x)))))

        wide = fusion_of(
            five, lambda op, x, t: op.Add(t, op.Tanh(op.Abs(op.Neg(op.Sin(x))))), name="Five", inputs=("x", "t")
        )
        # Five covers more than Pair, stands where Pair's reader stood, and reads Pair's second output.
        _, after, report = rewritten(
            """(float[2] x) => (float[2] y, float[2] z) {
                a = Sin(x) b = Neg(a) c = Abs(b) e = Tanh(c) t = Elu(x) z = Add(t, e) y = Softsign(t)
            }""",
            wide,
            PAIR,
        )
        assert report.fused == {"Five": 1, "Pair": 1} and operators(after) == ["Pair", "Five"]

    def test_a_node_that_stays_for_another_reads_what_was_made_before_it(self) -> None:
        @pattern
        def widened(op, x):
            return op.Softsign(op.Cast(op.named("total", op.Mul(x, x)), to=TensorProto.FLOAT))

        def body(op: Any, x: str) -> tuple[str, str]:
            total = op.Mul(x, x)
            return op.Softsign(op.float32(total)), total

        wide = fusion_of(widened, body, name="Wide", outputs=("output", "total"), optional={"total": "total"})
        # Wide alone would leave the first Cast without a reader; Bump's own Cast is the same, and it reads the first.
        _, after, report = rewritten(
            """(float16[2] x) => (float[2] y, float[2] z) {
                t = Mul(x, x) c = Cast<to=1>(t) y = Softsign(c) d = Cast<to=1>(t) s = Sin(d) m = Neg(s) z = Cos(m)
            }""",
            wide,
            BUMP,
        )
        assert report.fused == {"Bump": 1, "Wide": 1} and operators(after) == ["Wide", "Cast", "Bump"]

    def test_an_input_that_is_made_from_an_output_is_refused(self) -> None:
        @pattern
        def both(op, x, w):
            return op.Sin(x), op.Add(op.Cos(x), w)

        _, after, report = rewritten(
            "(float[2] x) => (float[2] z) { s = Sin(x) w = Exp(s) c = Cos(x) z = Add(c, w) }",
            fusion_of(
                both,
                lambda op, x, w: (op.Sin(x), op.Add(op.Cos(x), w)),
                name="Both",
                inputs=("x", "w"),
                outputs=("a", "b"),
            ),
        )
        assert report.fused == {} and "one of its inputs is made from one of its outputs" in reasons(report)[0]
        assert operators(after) == ["Sin", "Exp", "Cos", "Add"]

    def test_an_input_that_stands_after_a_reader_of_an_output_is_refused(self) -> None:
        @pattern
        def both(op, x, w):
            return op.Sin(x), op.Add(op.Cos(x), w)

        _, _, report = rewritten(
            "(float[2] x) => (float[2] y, float[2] z) { s = Sin(x) y = Exp(s) w = Abs(x) c = Cos(x) z = Add(c, w) }",
            fusion_of(
                both,
                lambda op, x, w: (op.Sin(x), op.Add(op.Cos(x), w)),
                name="Both",
                inputs=("x", "w"),
                outputs=("a", "b"),
            ),
        )
        # It could be moved; whether it is moved or refused, what comes out is sound.
        assert report.fused in ({}, {"Both": 1})

    def test_two_that_would_each_need_the_other_first_are_not_both_taken(self) -> None:
        @pattern
        def left(op, x, w):
            return op.Add(op.Cos(x), w), op.Sin(x)

        @pattern
        def right(op, x, w):
            return op.Mul(op.Tanh(x), w), op.Abs(x)

        made = [
            fusion_of(one, body, name=name, inputs=("x", "w"), outputs=("a", "b"))
            for one, name, body in (
                (left, "Left", lambda op, x, w: (op.Add(op.Cos(x), w), op.Sin(x))),
                (right, "Right", lambda op, x, w: (op.Mul(op.Tanh(x), w), op.Abs(x))),
            )
        ]
        # Left makes s and p and reads k; Right makes k and q and reads s.
        _, after, report = rewritten(
            """(float[2] x, float[2] z) => (float[2] p, float[2] q) {
                k = Abs(z) s = Sin(x) h = Tanh(z) q = Mul(h, s) c = Cos(x) p = Add(c, k)
            }""",
            *made,
        )
        assert sum(report.fused.values()) <= 1
        assert len(after.graph.node) in (4, 6)


class TestOverlaps:
    def test_the_largest_wins_and_the_loser_says_to_whom(self) -> None:
        text = "(float[2] x) => (float[2] y) { s = Sin(x) m = Neg(s) [end] c = Cos(m) a = Abs(c) [root] y = Sqrt(a) }"
        _, after, report = rewritten(text, BUMP, LONG)
        assert operators(after) == ["Long"] and report.fused == {"Long": 1}
        miss = the_miss(report, "Bump")
        assert (miss.reason, miss.node) == ("Long at root covers more of it", "end")

    @pytest.mark.parametrize("order", [(0, 1), (1, 0)])
    def test_ties_go_to_the_first_in_the_graph(self, order: tuple[int, int]) -> None:
        @pattern
        def front(op, x):
            return op.Neg(op.Sin(x))

        @pattern
        def back(op, x):
            return op.Cos(op.Neg(x))

        made = [
            fusion_of(front, lambda op, x: op.Neg(op.Sin(x)), name="Front"),
            fusion_of(back, lambda op, x: op.Cos(op.Neg(x)), name="Back"),
        ]
        _, after, report = rewritten(
            "(float[2] x) => (float[2] y) { s = Sin(x) [mid] m = Neg(s) y = Cos(m) }", *(made[place] for place in order)
        )
        assert operators(after) == ["Front", "Cos"]
        assert the_miss(report, "Back").reason == "Front at mid covers more of it"

    def test_what_lost_to_one_that_is_refused_in_the_end_has_its_chance(self) -> None:
        broken = fusion_of(long_bump, lambda op, x: op.Shape(x), name="Broken")
        _, after, report = rewritten(
            "(float[2] x) => (float[2] y) { s = Sin(x) m = Neg(s) c = Cos(m) a = Abs(c) y = Sqrt(a) }", broken, BUMP
        )
        assert operators(after) == ["Bump", "Abs", "Sqrt"]
        assert the_miss(report, "Broken").reason == "y is FLOAT, Broken makes INT64"

    def test_a_shared_operand_that_moves_data_is_no_overlap(self) -> None:
        @pattern
        def shaped(op, x):
            return op.Sin(op.Transpose(x))

        _, after, report = rewritten(
            "(float[2,3] x) => (float[3,2] y, float[3,2] z) { t = Transpose(x) y = Sin(t) z = Sin(t) }",
            fusion_of(shaped, lambda op, x: op.Sin(op.Transpose(x)), name="Shaped"),
        )
        assert report.fused == {"Shaped": 2} and operators(after) == ["Shaped", "Shaped"]


def test_a_graph_of_many_nodes_takes_time_in_proportion() -> None:
    """A quadratic step would show as minutes here, not as a few seconds."""
    count = 1_500
    nodes = []
    for number in range(count):
        nodes.append(helper.make_node("Sigmoid", [f"v{number}"], [f"s{number}"]))
        nodes.append(helper.make_node("Mul", [f"v{number}", f"s{number}"], [f"v{number + 1}"]))
    # Every other gate is read outside: thousands of matches, and as many refusals.
    gates = [f"s{number}" for number in range(0, count, 2)]
    nodes.append(helper.make_node("Sum", gates, ["z"]))
    graph = helper.make_graph(
        nodes, "g", [helper.make_tensor_value_info("v0", TensorProto.FLOAT, [4])],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, [4]) for name in (f"v{count}", "z")],
    )  # fmt: skip
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    started = time.process_time()
    after, report = fused(made, SWISH)
    assert time.process_time() - started < 30
    assert report.fused == {"FusedSwish": count // 2}
    assert len(after.graph.node) == count // 2 + count + 1
