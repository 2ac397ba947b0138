"""onnx-graphsurgeon at the border: its graphs come in, and go out again, with nothing lost that it can carry."""

from __future__ import annotations

import numpy as np
import onnx
import onnx_graphsurgeon as gs
import pytest
from onnx import helper

import onnx_fuse
from onnx_fuse.errors import UsageError
from onnx_fuse.passes.files.checker import check
from onnx_fuse.passes.files.graphsurgeon import from_surgeon, is_surgeon_graph, to_surgeon
from onnx_fuse.passes.pipeline import Pipeline
from tests.helpers import assert_same_results, model, operators, run

TEXT = "(float[n,4] x) => (float[n,4] y) <float[4] w={1,2,3,4}> { a = Add(x, w) s = Sigmoid(a) y = Mul(a, s) }"


def test_its_graphs_are_known_without_importing_it() -> None:
    class Own(gs.Graph):  # type: ignore[misc]
        pass

    assert is_surgeon_graph(gs.Graph()) and is_surgeon_graph(Own())
    assert not is_surgeon_graph(onnx.GraphProto()) and not is_surgeon_graph("graph") and not is_surgeon_graph(None)


def test_a_graph_in_a_graph_out() -> None:
    before = model(TEXT)
    graph = gs.import_onnx(before)
    result = onnx_fuse.fuse(graph, enable=["FusedSwish"])
    assert isinstance(result.model, gs.Graph)
    assert [node.op for node in result.model.nodes] == ["Add", "FusedSwish"]
    assert [node.op for node in graph.nodes] == ["Add", "Sigmoid", "Mul"]
    assert result.report.fused == {"FusedSwish": 1}
    exported = gs.export_onnx(result.model)
    check(exported)
    assert_same_results(before, exported)


def test_such_a_result_can_be_saved(tmp_path) -> None:  # type: ignore[no-untyped-def]
    result = onnx_fuse.fuse(gs.import_onnx(model(TEXT)), enable=["FusedSwish"])
    result.save(tmp_path / "out.onnx")
    after = onnx.load(tmp_path / "out.onnx")
    assert operators(after) == ["Add", "FusedSwish"] and len(after.functions) == 1


def test_explain_takes_one_too() -> None:
    assert onnx_fuse.explain(gs.import_onnx(model(TEXT)), enable=["FusedSwish"]).fused == {"FusedSwish": 1}


def test_a_pass_keeps_what_graphsurgeon_drops() -> None:
    made = model(TEXT)
    made.metadata_props.add(key="author", value="somebody")

    def nothing(graph: gs.Graph) -> gs.Graph:
        return graph

    after, report = Pipeline([nothing]).run(made)
    assert not report.warnings
    assert {entry.key: entry.value for entry in after.metadata_props} == {"author": "somebody"}
    assert after.ir_version >= made.ir_version
    assert_same_results(model(TEXT), after)


def test_several_bodies_of_one_name_go_in_inlined() -> None:
    """graphsurgeon knows no overloads and would give all nodes the first body."""
    before = model(
        """(float[n,4] x, float[n,4] r) => (float[n,4] y) <float[4] g={1,2,3,4}, float[4] b={1,2,3,4}> {
            s = Add(x, r) a = LayerNormalization(s, g, b) t = Add(a, x) y = LayerNormalization(t, g)
        }"""
    )
    fused = onnx_fuse.fuse(before, enable=["FusedSkipLayerNorm"]).model
    assert len(fused.functions) == 2
    again = from_surgeon(to_surgeon(fused), fused)
    check(again, full=True)
    assert_same_results(before, again)
    result = onnx_fuse.fuse(gs.import_onnx(before), enable=["FusedSkipLayerNorm"])
    exported = gs.export_onnx(result.model)
    given = {"x": np.ones((2, 4), np.float32), "r": np.arange(8, dtype=np.float32).reshape(2, 4)}
    np.testing.assert_allclose(run(exported, given)[0], run(before, given)[0], rtol=1e-4, atol=1e-5)


def test_a_graph_built_by_hand() -> None:
    x = gs.Variable("x", np.float32, ("n", 4))
    gate, y = gs.Variable("gate", np.float32), gs.Variable("y", np.float32, ("n", 4))
    nodes = [gs.Node("Sigmoid", "s", inputs=[x], outputs=[gate]), gs.Node("Mul", "m", inputs=[x, gate], outputs=[y])]
    graph = gs.Graph(nodes, [x], [y], opset=17)
    result = onnx_fuse.fuse(graph, enable=["FusedSwish"])
    assert [node.op for node in result.model.nodes] == ["FusedSwish"]


@pytest.mark.parametrize("item", [onnx.GraphProto(), 3, [model(TEXT)]])
def test_what_is_no_model_is_refused(item: object) -> None:
    with pytest.raises(UsageError, match="cannot be a"):
        onnx_fuse.fuse(item)


def test_subgraphs_and_functions_come_through() -> None:
    before = model(
        """(bool c, float[2,4] x) => (float[2,4] y) {
            g = my.Twice(x)
            y = If (c) <
                then_branch = yes () => (float[2,4] p) { s = Sigmoid(g) p = Mul(g, s) },
                else_branch = no () => (float[2,4] q) { q = Identity(g) }
            >
        }""",
        functions="""<domain: "my", opset_import: ["" : 17]> Twice (x) => (y) { y = Add(x, x) }""",
    )
    result = onnx_fuse.fuse(gs.import_onnx(before), enable=["FusedSwish"])
    assert result.report.fused == {"FusedSwish": 1}
    exported = gs.export_onnx(result.model)
    for choice in (True, False):
        given = {"c": np.array(choice), "x": np.linspace(-1, 1, 8, dtype=np.float32).reshape(2, 4)}
        np.testing.assert_allclose(run(exported, given)[0], run(before, given)[0], rtol=1e-5)


def test_nodes_of_other_domains_come_through() -> None:
    made = model(TEXT)
    made.graph.node.append(helper.make_node("Gelu", ["y"], ["z"], domain="com.microsoft"))
    made.graph.output[0].name = "z"
    made.opset_import.append(helper.make_opsetid("com.microsoft", 1))
    result = onnx_fuse.fuse(gs.import_onnx(made), enable=["FusedSwish"])
    assert [(node.op, node.domain or "") for node in result.model.nodes] == [
        ("Add", ""), ("FusedSwish", "gr.ml.infra"), ("Gelu", "com.microsoft"),
    ]  # fmt: skip
