"""Commits: what they may take, what they refuse and why, and that everything else keeps its bytes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import ModelProto, TensorProto, helper

import onnx_fuse
from onnx_fuse.passes.files.checker import check
from onnx_fuse.passes.graph.index import graphs
from onnx_fuse.passes.report import NearMissRecord, Report
from onnx_fuse.patterns import Fused, Fusion, Optional, Scalar, fusions, pattern
from tests.drawn import transformer
from tests.helpers import (
    assert_same_results,
    fused,
    fusion_of,
    model,
    node_bytes,
    operators,
    run,
)


@pattern
def silu(op, x):
    return op.Mul(x, op.Sigmoid(x))


@pattern
def bump(op, x):
    return op.Cos(op.Neg(op.Sin(x)))


@pattern
def long_bump(op, x):
    return op.Sqrt(op.Abs(op.Cos(op.Neg(op.Sin(x)))))


@pattern
def pair(op, x):
    total = op.named("total", op.Elu(x))
    return op.Softsign(total)


BUMP = fusion_of(bump, lambda op, x: op.Cos(op.Neg(op.Sin(x))), name="Bump")
LONG = fusion_of(long_bump, lambda op, x: op.Sqrt(op.Abs(op.Cos(op.Neg(op.Sin(x))))), name="Long")


def pair_body(op: Any, x: str) -> tuple[str, str]:
    total = op.Elu(x)
    return op.Softsign(total), total


PAIR = fusion_of(pair, pair_body, name="Pair", outputs=("output", "total"), optional={"total": "total"})
SWISH = next(fusion for fusion in fusions() if fusion.name == "FusedSwish")


def rewritten(text: str, *chosen: Fusion, **options: Any) -> tuple[ModelProto, ModelProto, Report]:
    """The model before and after, which is valid, computes the same, and is what fusing gives every time."""
    before = model(text, **options)
    after, report = fused(before, *chosen)
    again, _ = fused(before, *chosen)
    assert after.SerializeToString() == again.SerializeToString()
    check(after, full=True)
    assert all(graph.unsound() is None for graph in graphs(after))
    assert_same_results(before, after)
    return before, after, report


def reasons(report: Report) -> list[str]:
    return [miss.reason for miss in report.near_misses]


def the_miss(report: Report, fusion: str) -> NearMissRecord:
    (found,) = [miss for miss in report.near_misses if miss.fusion == fusion]
    return found


class TestCommit:
    CHAIN = """(float[n,4] x) => (float[n,4] y, float[n,4] z) {
        [before] a = Abs(x) [sine] s = Sin(a) [between] z = Exp(a) [minus] m = Neg(s) [end] c = Cos(m) [after] y = Tanh(c)
    }"""

    def test_the_fused_node_takes_the_place_and_the_output_of_what_it_replaces(self) -> None:
        _, after, report = rewritten(self.CHAIN, BUMP)
        assert operators(after) == ["Abs", "Exp", "Bump", "Tanh"]
        node = after.graph.node[2]
        assert (list(node.input), list(node.output), node.domain) == (["a"], ["c"], "gr.ml.infra")
        (match,) = report.matches
        assert match.replaced == ("sine", "minus", "end") and match.root == "end" and match.node == node.name
        assert report.fused == {"Bump": 1}
        assert (report.nodes_before, report.nodes_after) == (6, 4)

    def test_nodes_outside_keep_their_bytes_and_their_order(self) -> None:
        made = model(self.CHAIN)
        for number, node in enumerate(made.graph.node):
            node.doc_string = f"as exported, {number}"
            node.metadata_props.add(key="from", value=str(number))
        after, _ = fused(made, BUMP)
        before, rest = node_bytes(made), node_bytes(after)
        assert [rest[0], rest[1], rest[3]] == [before[0], before[2], before[5]]

    def test_so_does_all_that_is_no_node(self) -> None:
        made = model(
            """(float[n,4] x, float[4] w) => (float[n,4] y) <float[4] w={1,2,3,4}, float[4] spare={1,2,3,4}, float[n,4] a> {
                a = Add(x, w) s = Sin(a) m = Neg(s) y = Cos(m)
            }"""
        )
        made.doc_string, made.producer_name = "a model", "an exporter"
        made.metadata_props.add(key="author", value="somebody")
        made.graph.metadata_props.add(key="graph", value="kept")
        made.graph.quantization_annotation.add(tensor_name="w")
        after, _ = fused(made, BUMP)
        for part in (
            "input",
            "output",
            "initializer",
            "value_info",
            "metadata_props",
            "quantization_annotation",
            "name",
        ):
            assert getattr(after.graph, part) == getattr(made.graph, part), part
        for part in ("doc_string", "producer_name", "metadata_props"):
            assert getattr(after, part) == getattr(made, part), part
        assert {item.domain: item.version for item in after.opset_import} == {"": 17, "gr.ml.infra": 1}

    def test_initializers_that_only_fused_nodes_read_go(self) -> None:
        @pattern
        def scaled(op, x, c: Scalar):
            return op.Sin(op.Mul(x, c))

        def build(match: Any, view: Any) -> Fused:
            return Fused({"x": match["x"]}, {"output": match.value}, {"c": view.scalar(match["c"])})

        operator = fusion_of(scaled, lambda op, x, c: op.Sin(op.Mul(x, c)), name="Scaled", attributes=("c",)).operator
        _, after, _ = rewritten(
            """(float[2] x) => (float[2] y, float[2] z, float out) <float gone={2}, float out={3}, float kept={4}, float spare={5}> {
                a = Mul(x, gone) y = Sin(a) b = Mul(y, kept) c = Sin(b) z = Mul(c, kept) d = Mul(x, out) e = Sin(d)
            }""",
            Fusion("Scaled", scaled, operator, build),
        )
        assert [tensor.name for tensor in after.graph.initializer] == ["out", "kept", "spare"]

    def test_declared_types_of_values_that_are_gone_go(self) -> None:
        _, after, _ = rewritten(
            "(float[2] x) => (float[2] y) <float[2] a, float[2] s, float[2] m, float[2] c>"
            "{ a = Abs(x) s = Sin(a) m = Neg(s) c = Cos(m) y = Exp(c) }",
            BUMP,
        )
        assert [value.name for value in after.graph.value_info] == ["a", "c"]

    def test_names_come_from_the_root_and_are_unique(self) -> None:
        text = """(float[2] x) => (float[2] y, float[2] z) {
            [one] a = Sin(x) b = Neg(a) [same] y = Cos(b) p = Sin(y) q = Neg(p) [same] z = Cos(q)
        }"""
        before = model(text)
        after, _ = fused(before, BUMP)
        assert [node.name for node in after.graph.node] == ["same/Bump", "same/Bump_1"]

    def test_metadata_of_replaced_nodes_moves_to_the_fused_one(self) -> None:
        made = model("(float[2] x) => (float[2] y) { [a] s = Sin(x) [b] m = Neg(s) y = Cos(m) }")
        for number, node in enumerate(made.graph.node):
            node.metadata_props.add(key="module", value=f"layer.{number}")
            node.metadata_props.add(key=f"only.{number}", value="kept")
        after, _ = fused(made, BUMP)
        found = {entry.key: entry.value for entry in after.graph.node[0].metadata_props}
        assert json.loads(found.pop("onnx_fuse.replaced")) == ["a", "b", "y"]
        assert found == {"module": "layer.2", "only.0": "kept", "only.1": "kept", "only.2": "kept"}

    def test_nodes_that_were_dead_before_stay_unless_they_read_what_goes(self) -> None:
        _, after, report = rewritten(
            """(float[2] x) => (float[2] y) {
                idle = Exp(x) more = Tanh(idle) s = Sin(x) reads = Abs(s) last = Exp(reads) m = Neg(s) y = Cos(m)
            }""",
            BUMP,
        )
        assert operators(after) == ["Exp", "Tanh", "Bump"]
        assert report.fused == {"Bump": 1}

    def test_a_chain_of_fusions(self) -> None:
        links = " ".join(f"s{i} = Sin(v{i}) m{i} = Neg(s{i}) v{i + 1} = Cos(m{i})" for i in range(50))
        _, after, report = rewritten(f"(float[2] x) => (float[2] y) {{ v0 = Abs(x) {links} y = Identity(v50) }}", BUMP)
        assert report.fused == {"Bump": 50} and len(after.graph.node) == 52
        assert len(after.functions) == 1

    def test_a_value_that_only_the_view_has_is_brought_along_once(self) -> None:
        """Two projections of one value in [S, B, H] order: their common product is written into the graph a single time."""

        @pattern
        def product(op, x, w):
            return op.Sin(op.MatMul(x, w))

        weights = {name: np.eye(4, dtype=np.float32) + place for place, name in enumerate("wv")}
        before, after, _ = rewritten(
            """(float[B,S,4] x) => (float[S,B,4] y, float[S,B,4] z) {
                k = Constant<value_float=2.0>() a = Mul(x, k) t = Transpose<perm=[1,0,2]>(a)
                p = MatMul(t, w) y = Sin(p) q = MatMul(t, v) z = Sin(q)
            }""",
            fusion_of(product, lambda op, x, w: op.Sin(op.MatMul(x, w)), name="Product", inputs=("x", "w")),
            weights=weights,
        )
        assert len(after.graph.node) <= len(before.graph.node)
        assert len({node.name for node in after.graph.node if node.name}) == sum(bool(n.name) for n in after.graph.node)


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


class TestTypes:
    def test_an_output_whose_shape_would_change_is_refused(self) -> None:
        wrong = fusion_of(bump, lambda op, x: op.Flatten(op.Cos(x), axis=0), name="Wrong")
        before = model("(float[2,3] x) => (float[2,3] y) { s = Sin(x) m = Neg(s) y = Cos(m) }")
        after, report = fused(before, wrong)
        assert operators(after) == ["Sin", "Neg", "Cos"]
        assert the_miss(report, "Wrong").reason == "y has shape [2, 3], Wrong makes [1, 6]"

    def test_double_is_refused_as_the_operators_compute_in_float(self) -> None:
        before = model("(double[2,3] x) => (double[2,3] y) { s = Sigmoid(x) y = Mul(x, s) }")
        after, report = fused(before, SWISH)
        assert operators(after) == ["Sigmoid", "Mul"]
        assert "DOUBLE" in reasons(report)[0]

    def test_an_unknown_type_is_refused_where_the_opset_needs_it_written_down(self) -> None:
        functions = """<domain: "my", opset_import: ["" : {0}]>
            Block (x) => (y) {{ s = Sigmoid(x) y = Mul(x, s) }}"""
        # Calls that disagree on the type leave it open.
        text = "(float16[2] x, float[2] z) => (float16[2] y, float[2] w) { y = my.Block(x) w = my.Block(z) }"
        before = model(text, opset=14, functions=functions.format(14))
        after, report = fused(before, SWISH)
        assert [node.op_type for node in after.functions[0].node] == ["Sigmoid", "Mul"]
        assert "opset 14" in reasons(report)[0]
        before = model(text, opset=15, functions=functions.format(15))
        after, _ = fused(before, SWISH)
        assert [node.op_type for node in after.functions[0].node] == ["FusedSwish"]
        assert_same_results(before, after, tolerance=1e-2)


class TestSubgraphsAndFunctions:
    IF = """(bool c, float[2,4] x) => (float[2,4] y) {
        g = Neg(x)
        y = If (c) <
            then_branch = yes () => (float[2,4] p) { s = Sigmoid(g) p = Mul(g, s) },
            else_branch = no () => (float[2,4] q) { t = Sigmoid(x) u = Mul(x, t) v = Sigmoid(u) q = Mul(v, u) }
        >
    }"""

    def test_branches_of_an_if(self) -> None:
        before = model(self.IF)
        after, report = fused(before, SWISH)
        check(after, full=True)
        assert [match.graph for match in report.matches] == ["y/then_branch", "y/else_branch", "y/else_branch"]
        branches = {item.name: item.g for item in after.graph.node[1].attribute}
        assert operators(branches["then_branch"]) == ["FusedSwish"]
        assert operators(branches["else_branch"]) == ["FusedSwish", "FusedSwish"]
        assert len(after.functions) == 1
        for choice in (True, False):
            given = {"c": np.array(choice), "x": np.linspace(-2, 2, 8, dtype=np.float32).reshape(2, 4)}
            np.testing.assert_allclose(run(after, given)[0], run(before, given)[0], rtol=1e-6)

    def test_the_body_of_a_loop(self) -> None:
        state, step, go = (
            helper.make_tensor_value_info(name, kind, dims)
            for name, kind, dims in (
                ("v", TensorProto.FLOAT, [4]),
                ("i", TensorProto.INT64, []),
                ("c", TensorProto.BOOL, []),
            )
        )
        out = helper.make_tensor_value_info("w", TensorProto.FLOAT, [4])
        still = helper.make_tensor_value_info("go", TensorProto.BOOL, [])
        body = helper.make_graph(
            [
                helper.make_node("Sigmoid", ["v"], ["s"]),
                helper.make_node("Mul", ["s", "v"], ["m"]),
                helper.make_node("Add", ["m", "outside"], ["w"]),
                helper.make_node("Identity", ["c"], ["go"]),
            ],
            "body", [step, go, state], [still, out],
        )  # fmt: skip
        nodes = [
            helper.make_node("Abs", ["x"], ["outside"]),
            helper.make_node("Loop", ["n", "", "x"], ["y"], body=body, name="loop"),
        ]
        graph = helper.make_graph(
            nodes, "main",
            [helper.make_tensor_value_info("x", TensorProto.FLOAT, [4])], [helper.make_tensor_value_info("y", TensorProto.FLOAT, [4])],
            [helper.make_tensor("n", TensorProto.INT64, [], [3])],
        )  # fmt: skip
        before = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
        after, report = fused(before, SWISH)
        assert [match.graph for match in report.matches] == ["loop/body"]
        check(after, full=True)
        assert_same_results(before, after)

    def test_a_model_local_function_and_a_subgraph_inside_it(self) -> None:
        _, after, report = rewritten(
            "(bool c, float[2,4] x) => (float[2,4] y) { y = my.Block(c, x) }",
            SWISH,
            functions="""<domain: "my", opset_import: ["" : 17]>
            Block (c, x) => (y) {
                s = Sigmoid(x) a = Mul(s, x)
                y = If (c) <
                    then_branch = yes () => (float[2,4] p) { t = Sigmoid(a) p = Mul(a, t) },
                    else_branch = no () => (float[2,4] q) { q = Identity(a) }
                >
            }""",
        )
        assert [match.graph for match in report.matches] == ["function my::Block", "function my::Block/y/then_branch"]
        block = next(function for function in after.functions if function.domain == "my")
        assert [node.op_type for node in block.node] == ["FusedSwish", "If"]
        assert {item.domain for item in block.opset_import} == {"", "gr.ml.infra"}

    def test_only_a_subgraph_of_a_function(self) -> None:
        _, _, report = rewritten(
            "(bool c, float[2,4] x) => (float[2,4] y) { y = my.Block(c, x) }",
            SWISH,
            functions="""<domain: "my", opset_import: ["" : 17]>
            Block (c, x) => (y) {
                y = If (c) <
                    then_branch = yes () => (float[2,4] p) { t = Sigmoid(x) p = Mul(x, t) },
                    else_branch = no () => (float[2,4] q) { q = Identity(x) }
                >
            }""",
        )
        assert report.fused == {"FusedSwish": 1}

    def test_constants_a_fused_node_in_a_function_needs_become_nodes(self) -> None:
        """Functions have no initializers."""

        @pattern
        def product(op, x, w):
            return op.Sin(op.MatMul(x, w))

        _, after, report = rewritten(
            "(float[2,4] x, float[4,4] w) => (float[4,2] y) { y = my.Block(x, w) }",
            fusion_of(product, lambda op, x, w: op.Sin(op.MatMul(x, w)), name="Product", inputs=("x", "w")),
            functions="""<domain: "my", opset_import: ["" : 17]>
            Block (x, w) => (y) {
                k = Constant<value_float=2.0>() a = Mul(x, k) b = Mul(a, k) p = MatMul(b, w) q = Sin(p) y = Transpose(q)
            }""",
        )
        assert report.fused in ({}, {"Product": 1})
        assert after.functions[0].name == "Block"

    def test_the_bodies_of_fused_operators_are_left_alone(self) -> None:
        before, after, _ = rewritten(self.IF.replace("g = Neg(x)", "a = Sigmoid(x) g = Mul(x, a)"), SWISH)
        assert before != after
        again, report = fused(after, *fusions())
        assert report.fused == {} and again.SerializeToString() == after.SerializeToString()


class TestExternalData:
    def test_a_model_whose_weights_are_nowhere_is_rewritten(self) -> None:
        made = model("(float[n,1024] x) => (float[n,4096] y) { h = MatMul(x, w) s = Sigmoid(h) y = Mul(h, s) }")
        tensor = made.graph.initializer.add(name="w", data_type=TensorProto.FLOAT, dims=[1024, 4096])
        tensor.data_location = TensorProto.EXTERNAL
        tensor.external_data.add(key="location", value="nowhere/weights.bin")
        after, report = fused(made, SWISH)
        assert operators(after) == ["MatMul", "FusedSwish"] and report.fused == {"FusedSwish": 1}
        assert after.graph.initializer[0] == made.graph.initializer[0]
        check(after, full=True)


class TestUnchanged:
    TEXT = "(float[n,4] x) => (float[n,4] y) { a = Abs(x) d = Dropout(a) i = Identity(d) y = Sigmoid(i) }"

    def test_a_model_without_a_match_comes_out_with_the_same_bytes(self, tmp_path: Path) -> None:
        source, target = tmp_path / "in.onnx", tmp_path / "out.onnx"
        # A field that onnx does not know; protobuf would put it elsewhere.
        data = model(self.TEXT).SerializeToString() + b"\xf2\x3f\x04text"
        source.write_bytes(data)
        result = onnx_fuse.fuse(source, enable=["FusedSwish"])
        assert not result.changed and result.report.fused == {}
        result.save(target)
        assert target.read_bytes() == data

    def test_its_model_too(self) -> None:
        before = model(self.TEXT)
        after, report = fused(before, *fusions())
        assert after.SerializeToString() == before.SerializeToString()
        assert report.fused == {}

    def test_the_model_that_was_given_stays_as_it_was(self) -> None:
        made = model("(float[n,4] x) => (float[n,4] y) { s = Sigmoid(x) y = Mul(x, s) }")
        before = made.SerializeToString()
        result = onnx_fuse.fuse(made, enable=["FusedSwish"])
        assert result.report.fused == {"FusedSwish": 1} and made.SerializeToString() == before

    def test_fusing_again_changes_nothing(self) -> None:
        made = model("(float[n,4] x) => (float[n,4] y) { s = Sigmoid(x) a = Mul(x, s) t = Elu(a) y = Softsign(t) }")
        once, _ = fused(made, SWISH, PAIR)
        twice, report = fused(once, SWISH, PAIR)
        assert twice.SerializeToString() == once.SerializeToString() and report.fused == {}

    def test_looking_changes_nothing(self) -> None:
        made = model("(float[n,4] x) => (float[n,4] y) { s = Sigmoid(x) y = Mul(x, s) }")
        before = made.SerializeToString()
        report = onnx_fuse.explain(made, enable=["FusedSwish"])
        assert report.fused == {"FusedSwish": 1} and made.SerializeToString() == before


DETERMINISM = """
import hashlib, sys
from onnx_fuse.passes.fuse.fuse_pass import FusePass
from onnx_fuse.passes.pipeline import Pipeline
from onnx_fuse.passes.fuse.simplify import Simplify
from onnx_fuse.patterns import fusions
import onnx
model = onnx.load(sys.argv[1])
model, report = Pipeline([FusePass(fusions()), Simplify()]).run(model)
assert len(report.matches) >= 4, report.fused
print(hashlib.sha256(model.SerializeToString()).hexdigest())
"""


def test_the_same_bytes_whatever_the_order_of_sets(tmp_path: Path) -> None:
    layers = "".join(
        f"""l{i} = LayerNormalization(v{i}, g{i % 2}, g1) a{i} = MatMul(l{i}, w) s{i} = Sigmoid(a{i}) m{i} = Mul(s{i}, a{i})
        h{i} = Dropout(m{i}) v{i + 1} = Add(v{i}, h{i}) """
        for i in range(4)
    )
    made = model(
        f"(float[n,4] v0) => (float[n,4] y) <float[4] g0={{1,2,3,4}}, float[4] g1={{4,3,2,1}}> {{ {layers} y = Identity(v4) }}",
        weights={"w": np.eye(4, dtype=np.float32)},
    )
    onnx.save(made, tmp_path / "m.onnx")
    runs = [
        subprocess.Popen(
            [sys.executable, "-c", DETERMINISM, str(tmp_path / "m.onnx")],
            env={**os.environ, "PYTHONHASHSEED": seed},
            stdout=subprocess.PIPE,
            text=True,
        )
        for seed in ("0", "1")
    ]
    hashes = {process.communicate()[0] for process in runs}
    assert len(hashes) == 1 and len(hashes.pop()) == 65


@pytest.mark.parametrize(("opset", "half"), [(14, False), (17, False), (17, True)])
@settings(derandomize=True, deadline=None, max_examples=20, database=None)
@given(data=st.data())
def test_whatever_the_graph_the_fused_one_computes_the_same(opset: int, half: bool, data: st.DataObject) -> None:
    before = transformer(data, opset, half=half)
    after, report = fused(before, *fusions())
    assert not report.warnings
    assert all(graph.unsound() is None for graph in graphs(after))
    check(after, full=True)
    for sizes in ({"B": 2, "S": 3}, {"B": 1, "S": 4}):
        assert_same_results(before, after, tolerance=2e-2 if half else 2e-4, **sizes)
    old, new = node_bytes(before), node_bytes(after)
    assert [node for node in new if node in old] == [node for node in old if node in new]


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


def test_optional_inputs_that_are_absent_take_no_place() -> None:
    @pattern
    def norm(op, x, g: Optional, b: Optional):
        return op.Sin(op.domain("my").Norm(x, g, b))

    made = fusion_of(norm, lambda op, x, g, b: op.Sin(op.Add(x, b) if b else x), name="Norm", inputs=("x", "g", "b"))
    before = model("(float[2] x, float[2] b) => (float[2] y) { n = my.Norm(x, , b) y = Sin(n) }")
    after, report = fused(before, made)
    node = after.graph.node[0]
    assert list(node.input) == ["x", "b"]
    assert {item.name: item.s for item in node.attribute}["inputs"] == b"x,b"
    assert report.matches[0].inputs == ("x", "b")
