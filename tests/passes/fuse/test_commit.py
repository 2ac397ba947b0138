"""Commits: what a fused node takes over, what goes, and that everything else keeps its bytes."""

from __future__ import annotations

import json
from typing import Any

import numpy as np

from onnx_fuse.patterns import Fused, Fusion, Optional, Scalar, pattern
from tests.helpers import fused, fusion_of, model, node_bytes, operators
from tests.passes.fuse.small_fusions import BUMP, rewritten


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
