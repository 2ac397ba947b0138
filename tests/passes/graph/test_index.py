"""The index over a model, and the edits that go through it."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import onnx
import pytest
from onnx import FunctionProto, ModelProto, NodeProto, TensorProto, helper, numpy_helper

from onnx_fuse.passes.graph.index import Graph, count_nodes, graphs
from tests.helpers import model, node_bytes, operators, run
from tests.passes.graph.graphs import FUNCTION, SUBGRAPHS, index


class TestIndex:
    def test_producers_and_readers(self) -> None:
        graph = index(model("(float[2] x) => (float[2] y) { a, b = Split(x) s = Add(a, b) y = Mul(s, s) }"))
        assert graph.producers["a"] is graph.producers["b"] is graph.nodes[0]
        assert "x" not in graph.producers
        assert [node.op_type for node in graph.readers["s"]] == ["Mul"]
        assert [node.op_type for node in graph.readers["a"]] == ["Add"]
        assert "y" not in graph.readers
        assert graph.outputs == {"y"} and graph.inputs == ("x",)

    def test_readers_are_in_graph_order(self) -> None:
        graph = index(model("(float[2] x) => (float[2] y) { a = Abs(x) b = Neg(x) c = Exp(x) y = Sum(a, b, c, x) }"))
        assert [node.op_type for node in graph.readers["x"]] == ["Abs", "Neg", "Exp", "Sum"]

    def test_absent_inputs_and_outputs_are_no_values(self) -> None:
        made = helper.make_node("Clip", ["x", "", "top"], ["y", ""])
        graph = helper.make_graph([made], "g", [], [])
        found = Graph(graph, helper.make_model(graph))
        assert "" not in found.producers and "" not in found.readers

    def test_declared_types_with_symbolic_shapes(self) -> None:
        made = model("(float[batch,4] x) => (float[batch,4] y) <float16[3] h> { h = Cast<to=10>(x) y = Cast<to=1>(h) }")
        types = index(made).value_types
        assert types["x"].tensor_type.shape.dim[0].dim_param == "batch"
        assert types["h"].tensor_type.elem_type == TensorProto.FLOAT16
        assert set(types) == {"x", "y", "h"}

    def test_opsets_by_domain(self) -> None:
        made = model("(float[2] x) => (float[2] y) { y = my.Op(x) }", opset=16)
        made.opset_import[0].domain = "ai.onnx"
        graph = index(made)
        assert (graph.opset(), graph.opset("my"), graph.opset("com.microsoft")) == (16, 1, 0)


class TestSubgraphs:
    def test_a_captured_value_is_read_by_the_node_that_captures_it(self) -> None:
        graph = index(model(SUBGRAPHS))
        assert [node.name for node in graph.readers["deep"]] == ["choose"]
        assert [node.name for node in graph.readers["outside"]] == ["choose"]
        assert "read_by_nobody" not in graph.readers

    @pytest.mark.parametrize("operator", ["Loop", "Scan"])
    def test_loops_and_scans_capture_too(self, operator: str) -> None:
        state, item = (helper.make_tensor_value_info(name, TensorProto.FLOAT, [2]) for name in ("s", "i"))
        out = helper.make_tensor_value_info("o", TensorProto.FLOAT, [2])
        body = helper.make_graph([helper.make_node("Sum", ["s", "i", "outer"], ["o"])], "body", [state, item], [out])
        node = helper.make_node(operator, ["x", "z"], ["y"], body=body)
        graph = helper.make_graph([helper.make_node("Abs", ["x"], ["outer"]), node], "g", [], [])
        readers = Graph(graph, helper.make_model(graph)).readers
        assert [reader.op_type for reader in readers["outer"]] == [operator]
        assert "s" not in readers and "i" not in readers

    def test_every_graph_is_indexed_with_the_path_to_it(self) -> None:
        made = model(SUBGRAPHS, functions=FUNCTION)
        other = FunctionProto()
        other.CopyFrom(made.functions[0])
        other.overload = "wide"
        made.functions.append(other)
        paths = [graph.path for graph in graphs(made)]
        assert paths == [
            "",
            "choose/then_branch",
            "choose/then_branch/inner/then_branch",
            "choose/then_branch/inner/else_branch",
            "choose/else_branch",
            "function my::Block",
            "function my::Block:wide",
        ]

    def test_the_opsets_of_a_function_are_its_own(self) -> None:
        made = model(
            "(bool c, float[2] x) => (float[2] y) { y = my.Block(c, x) }",
            opset=17,
            functions="""
            <domain: "my", opset_import: ["" : 15, "other" : 3]>
            Block (c, x) => (y) {
                y = If (c) <
                    then_branch = yes () => (float[2] a) { a = Abs(x) },
                    else_branch = no () => (float[2] b) { b = Neg(x) }
                >
            }""",
        )
        found = {graph.path: graph for graph in graphs(made)}
        assert found[""].opset() == 17
        inside = [graph for path, graph in found.items() if path]
        assert [(graph.opset(), graph.opset("other")) for graph in inside] == [(15, 3)] * 3
        assert [graph.is_function for graph in inside] == [True, False, False]

    def test_nodes_are_counted_in_all_graphs_but_the_bodies_of_fused_operators(self) -> None:
        made = model(SUBGRAPHS, functions=FUNCTION)
        assert count_nodes(made) == 4 + 1 + 1 + 2 + 1 + 2
        assert count_nodes(made, frozenset({"my"})) == 9

    def test_a_new_name_is_in_use_nowhere(self) -> None:
        made = model(SUBGRAPHS)
        everywhere = list(graphs(made))
        assert everywhere[0].fresh_name("q") == "q_1"
        assert everywhere[0].fresh_name("q") == "q_2"
        assert everywhere[2].fresh_name("outside") == "outside_1"
        assert everywhere[0].fresh_name("unheard of") == "unheard of"


def relu(value: str, output: str) -> NodeProto:
    return helper.make_node("Relu", [value], [output], name=f"made {output}")


class TestEdit:
    @pytest.fixture
    def chain(self) -> ModelProto:
        made = model("(float[2] x) => (float[2] d) { a = Abs(x) b = Neg(a) c = Exp(b) d = Sqrt(c) }")
        for number, node in enumerate(made.graph.node):
            node.name = f"node {number}"
            node.metadata_props.add(key="from", value=str(number))
            node.doc_string = "as the exporter wrote it"
        return made

    def test_untouched_nodes_keep_their_bytes_and_their_order(self, chain: ModelProto) -> None:
        before = node_bytes(chain)
        index(chain).edit(add=[(2, relu("a", "b"))], remove={1})
        assert operators(chain) == ["Abs", "Relu", "Exp", "Sqrt"]
        after = node_bytes(chain)
        assert [after[0], *after[2:]] == [before[0], *before[2:]]
        run(chain, {"x": np.ones(2, np.float32)})

    def test_nodes_go_before_the_position_in_the_order_given(self, chain: ModelProto) -> None:
        index(chain).edit(add=[(4, relu("d", "last")), (0, relu("x", "p")), (0, relu("p", "q")), (2, relu("b", "r"))])
        names = [node.output[0] for node in chain.graph.node]
        assert names == ["p", "q", "a", "b", "r", "c", "d", "last"]

    def test_no_change_changes_no_byte(self, chain: ModelProto) -> None:
        before = chain.SerializeToString()
        index(chain).edit()
        assert chain.SerializeToString() == before

    def test_all_nodes_can_go(self, chain: ModelProto) -> None:
        index(chain).edit(add=[(4, relu("x", "d"))], remove={0, 1, 2, 3})
        assert operators(chain) == ["Relu"]

    def test_initializers_are_appended(self, chain: ModelProto) -> None:
        index(chain).edit(initializers=[numpy_helper.from_array(np.ones(1), "w")])
        assert [tensor.name for tensor in chain.graph.initializer] == ["w"]

    def test_in_a_function_they_are_constant_nodes_at_its_head(self) -> None:
        made = model("(float[2] x) => (float[2] y) { y = my.Block(x, x) }", functions=FUNCTION)
        function = Graph(made.functions[0], made)
        assert function.is_function and not function.initializers
        function.edit(add=[(1, relu("t", "u"))], initializers=[numpy_helper.from_array(np.ones(1, np.float32), "w")])
        assert [node.op_type for node in made.functions[0].node] == ["Constant", "Add", "Relu", "LeakyRelu"]

    def test_a_graph_of_many_nodes_is_edited_in_one_go(self) -> None:
        nodes = [helper.make_node("Abs", [f"v{number}"], [f"v{number + 1}"]) for number in range(20_000)]
        made = helper.make_model(helper.make_graph(nodes, "g", [], []))
        graph = index(made)
        graph.edit(add=[(position, relu("v0", f"w{position}")) for position in range(0, 20_000, 2)], remove={1, 19_999})
        assert len(made.graph.node) == 29_998
        assert [node.output[0] for node in made.graph.node[:4]] == ["w0", "v1", "w2", "v3"]

    def test_initializers_that_nothing_reads_go_if_they_are_candidates(self) -> None:
        made = model(
            """(float[1] x, float[1] default) => (float[1] y, float[1] out)
            <float[1] default = {0}, float[1] gone = {1}, float[1] read = {2}, float[1] out = {3}, float[1] spare = {4}>
            { y = Add(x, read) }"""
        )
        index(made).drop_unread_initializers({"default", "gone", "read", "out", "unknown"})
        assert [tensor.name for tensor in made.graph.initializer] == ["default", "read", "out", "spare"]

    def test_what_a_subgraph_captures_is_read(self) -> None:
        made = model(SUBGRAPHS)
        made.graph.initializer.append(numpy_helper.from_array(np.ones(2, np.float32), "kept"))
        made.graph.node[3].attribute[1].g.node[0].input[0] = "kept"
        index(made).drop_unread_initializers({"kept"})
        assert [tensor.name for tensor in made.graph.initializer] == ["kept"]

    def test_declared_types_of_lost_values_go(self) -> None:
        made = model("(float[2] x) => (float[2] y) <float[2] a, float[2] b, float[2] c> { y = Abs(x) }")
        index(made).drop_value_info({"b", "y"})
        assert [value.name for value in made.graph.value_info] == ["a", "c"]


class TestUnsound:
    @staticmethod
    def problem(text: str, **options: int) -> str | None:
        return index(model(text, **options)).unsound()

    def test_a_sound_graph_has_no_problem(self) -> None:
        for graph in graphs(model(SUBGRAPHS, functions=FUNCTION)):
            assert graph.unsound() is None

    def test_a_value_read_before_it_is_made(self) -> None:
        found = self.problem("(float[2] x) => (float[2] y) { y = Neg(a) a = Abs(x) }")
        assert found == "y reads a, which nothing makes before it"

    def test_a_value_made_twice(self) -> None:
        assert self.problem("(float[2] x) => (float[2] y) { y = Neg(x) [again] y = Abs(x) }") == (
            "again makes y, which was made before"
        )

    def test_a_node_that_makes_an_input(self) -> None:
        assert self.problem("(float[2] x) => (float[2] x) { x = Neg(x) }") == "x makes x, which was made before"

    def test_an_output_that_nothing_makes(self) -> None:
        assert self.problem("(float[2] x) => (float[2] y) { a = Neg(x) }") == "nothing makes the output y"

    def test_a_capture_of_a_value_that_is_made_later(self) -> None:
        found = self.problem(
            """(bool c, float[2] x) => (float[2] y) {
                [choose] y = If (c) <
                    then_branch = yes () => (float[2] a) { a = Abs(late) },
                    else_branch = no () => (float[2] b) { b = Abs(x) }
                >
                late = Neg(x)
            }"""
        )
        assert found == "choose reads late, which nothing makes before it"

    def test_an_input_that_is_an_initializer_as_well(self) -> None:
        assert self.problem("(float[1] x, float[1] w) => (float[1] y) <float[1] w = {0}> { y = Add(x, w) }") is None


def test_deeply_nested_subgraphs() -> None:
    def nested(depth: int) -> Iterator[onnx.GraphProto]:
        out = helper.make_tensor_value_info(f"o{depth}", TensorProto.FLOAT, [2])
        if depth == 0:
            yield helper.make_graph([helper.make_node("Abs", ["x"], ["o0"])], "deepest", [], [out])
            return
        inner = next(nested(depth - 1))
        node = helper.make_node("If", ["c"], [f"o{depth}"], then_branch=inner, else_branch=inner)
        yield helper.make_graph([node], f"level {depth}", [], [out])

    graph = next(nested(6))
    made = helper.make_model(graph)
    assert "x" in index(made).readers
    assert len(list(graphs(made))) == 2**7 - 1


def test_an_edit_brings_the_index_along() -> None:
    made = helper.make_graph(
        [helper.make_node("Abs", ["x"], ["a"], "first"), helper.make_node("Neg", ["a"], ["y"], "second")],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1])],
    )
    graph = Graph(made, helper.make_model(made))
    assert [node.name for node in graph.readers["a"]] == ["second"]
    second = graph.nodes[1]
    weight = numpy_helper.from_array(np.ones(1, np.float32), "w")
    new = [(0, helper.make_node("Add", ["x", "w"], ["b"], "new")), (1, helper.make_node("Abs", ["b"], ["a"], "other"))]
    graph.edit(add=new, remove={0}, initializers=[weight])
    assert [(node.name, node.position, node.proto.name) for node in graph.nodes] == [
        (name, place, name) for place, name in enumerate(("new", "other", "second"))
    ]
    assert graph.nodes[2] is second
    assert {value: node.name for value, node in graph.producers.items()} == {"b": "new", "a": "other", "y": "second"}
    assert [node.name for node in graph.readers["w"]] == ["new"]
    assert set(graph.initializers) == {"w"}
    assert graph.unsound() is None
