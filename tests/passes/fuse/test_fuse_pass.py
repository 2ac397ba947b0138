"""The pass over whole models: graphs inside graphs, weights that are not there, and models that stay as they are."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper

import onnx_fuse
from onnx_fuse.passes.files.checker import check
from onnx_fuse.passes.graph.index import graphs
from onnx_fuse.patterns import fusions, pattern
from tests.drawn import transformer
from tests.helpers import assert_same_results, fused, fusion_of, model, node_bytes, operators, run
from tests.passes.fuse.small_fusions import PAIR, SWISH, rewritten


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


def printed(script: str, *arguments: str) -> set[str]:
    """What a script prints, in two processes that order sets of strings differently."""
    runs = [
        subprocess.Popen(
            [sys.executable, "-c", script, *arguments],
            env={**os.environ, "PYTHONHASHSEED": seed},
            stdout=subprocess.PIPE,
            text=True,
        )
        for seed in ("0", "1")
    ]
    return {process.communicate()[0] for process in runs}


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
    (digest,) = printed(DETERMINISM, str(tmp_path / "m.onnx"))
    assert len(digest) == 65


ONE_POSITION = """
from onnx_fuse.patterns import pattern
from tests.helpers import fused, fusion_of, model
from dataclasses import replace

@pattern
def either(op, x, w):
    return op.any_of(op.MatMul(x, w), op.Add(x, w))

made = replace(fusion_of(either, lambda op, x: x), anchor=None, build=lambda match, view: match.root.op_type)
_, report = fused(model("(float[2,4] x, float[4,4] w, float[4] b) => (float[2,4] y) { y = Gemm(x, w, b) }"), made)
print(*[miss.reason for miss in report.near_misses])
"""


def test_the_same_report_where_one_node_became_several() -> None:
    """The product and the sum of a Gemm stand at one position: nothing but the pattern's operators tells which comes first."""
    assert printed(ONE_POSITION) == {"Add MatMul\n"}


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
