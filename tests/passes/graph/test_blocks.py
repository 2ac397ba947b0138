"""The names of blocks, as each exporter leaves them, and what is advised against a refusal."""

from __future__ import annotations

import re

import pytest
from onnx import ModelProto, NodeProto, helper

import onnx_fuse
from onnx_fuse.choice import check_met
from onnx_fuse.cli.render import by_layer
from onnx_fuse.errors import RequirementError
from onnx_fuse.passes.graph import blocks
from onnx_fuse.passes.graph.index import Graph
from onnx_fuse.passes.report import MatchRecord, NearMissRecord, Report
from tests import helpers


def node(name: str = "", *, inputs: tuple[str, ...] = ("x",), output: str = "y", **metadata: str) -> NodeProto:
    made = helper.make_node("Add", inputs, [output], name)
    for key, value in metadata.items():
        made.metadata_props.add(key={"scopes": "pkg.torch.onnx.name_scopes"}.get(key, key), value=value)
    return made


@pytest.mark.parametrize(
    ("made", "block"),
    [
        (node("node_add", scopes="['', 'm', 'm.h.0', 'm.h.0.attn', 'add']"), "m.h.0.attn"),
        (node("node_add", scopes="['', 'add']"), ""),
        (node("/a/Add", scopes="['_empty_nn_module_stack_from_metadata_hook', 'add']"), ""),
        (node("node_add", scopes="nonsense", inputs=("h.1.weight",)), "h.1"),
        (node("n", namespace=": W/m: pkg.Model/m.h.0: pkg.Block/add: aten.add.Tensor"), "m.h.0"),
        (node("/model/encoder/layer.0/attention/self/MatMul"), "model.encoder.layer.0.attention.self"),
        (node("StatefulPartitionedCall/bert/layer_._0/add"), "bert.layer_._0"),
        (node(output="/model/layer.3/Add_output_0"), "model.layer.3"),
        (
            node("n", inputs=("x", "encoder.layer.0.attention.self.query.weight")),
            "encoder.layer.0.attention.self.query",
        ),
        (node("n", inputs=("onnx::MatMul_647", "0.5", "x")), ""),
        (node("/Add"), ""),
    ],
)
def test_block(made: NodeProto, block: str) -> None:
    assert blocks.block_of(made) == block


@pytest.mark.parametrize(
    ("block", "layer"),
    [
        ("encoder.layer.2.attention.self", "encoder.layer.2"),
        ("h.0", "h.0"),
        ("model.0.auto_model.encoder.layer.11.output", "model.0.auto_model.encoder.layer.11"),
        ("encoder.block.0.layer.1.SelfAttention", "encoder.block.0"),
        ("net.3.fc1", "net.3"),
        ("bert.layer_._0.attention", "bert.layer_._0"),
        ("embeddings.LayerNorm", "embeddings.LayerNorm"),
        ("", ""),
    ],
)
def test_layer(block: str, layer: str) -> None:
    assert blocks.layer_of(block) == layer


def test_block_of_a_match() -> None:
    inside = [node(f"/m/layer.0/attention/self/n{n}") for n in range(30)] + [node("/m/layer.0/attention/output/n")] * 3
    assert blocks.block_of_all(inside) == "m.layer.0.attention"
    assert blocks.block_of_all([*inside, node("/m/mask")]) == "m.layer.0.attention"  # nearly all is enough
    across = [node("/m/layer.0/Add"), node("/m/layer.1/norm/Norm")]
    assert blocks.block_of_all(across, across[1]) == "m.layer.1.norm"
    assert blocks.block_of_all([node("n")], node("n")) == ""


def test_outline() -> None:
    made = helper.make_graph(
        [node(f"/m/{path}/n{n}", output=f"v{n}") for n, path in enumerate(["emb/LayerNorm", "emb/word", "enc/layer.0/a", "enc/layer.1"])]
        + [helper.make_node("Constant", [], ["c"], "/m/enc/layer.1/c", value_float=1.0), node("n", output="w")],
        "g", [], [],
    )  # fmt: skip
    model = helper.make_model(made)
    assert blocks.outline(model) == {"m.emb": 2, "m.enc.layer.0": 1, "m.enc.layer.1": 1, "": 1}


@pytest.mark.parametrize(
    ("reason", "said"),
    [
        ("the head size is d, it must be known", "fixed numbers"),
        ("the mask m has an unknown shape, the scores have [B, 2, S, S]", "one name"),
        ("v has shape unknown, pattern wants [B h Sq d]", "one name"),
        ("found Tanh, pattern wants MatMul", "soft cap"),
        ("found Dropout, pattern wants MatMul", "evaluation mode"),
        ("s is not a constant with one element (scale)", "Python number"),
        ("opset 11 is older than 13 and could not be converted", "opset_version"),
        ("Attention of domain com.microsoft is not ONNX's Attention", "ONNX Runtime"),
        ("found DequantizeLinear, pattern wants MatMul", "quantis"),
        ("its output present.0.key is a graph output", "use_cache=False"),
        ("its output hidden is a graph output", "hidden"),
    ],
)
def test_advice(reason: str, said: str) -> None:
    assert said in blocks.advise(reason)


def test_no_advice_where_nothing_helps() -> None:
    assert blocks.advise("found Add, pattern wants MatMul") == ""
    assert blocks.advise("its output v is also read by relu outside the match") == ""


ATTENTION = """(float[B,2,S,4] q, float[B,2,4,S] k, float[B,2,S,4] v) => (float[B,S,8] y{output})
<int64[3] flat = {{0, 0, 8}}>
{{
  scores = MatMul(q, k)
  p = Softmax <axis = -1> (scores)
  {extra}
  context = MatMul(p, v)
  moved = Transpose <perm = [0, 2, 1, 3]> (context)
  y = Reshape(moved, flat)
}}"""


def attention(output: str = "", extra: str = "") -> ModelProto:
    made = helpers.model(ATTENTION.format(output=output, extra=extra))
    for index, item in enumerate(made.graph.node):
        item.name = f"/encoder/layer.2/attention/{item.op_type}_{index}"
    return made


@pytest.mark.parametrize(
    "made",
    [attention(output=", float[B,2,S,S] p"), attention(output=", float[B,2,S,S] r", extra="r = Relu(p)")],
    ids=["graph output", "other reader"],
)
def test_probabilities_that_are_kept(made: ModelProto) -> None:
    """The sentence names a node and a value of the graph, and they are what it says they are."""
    report = onnx_fuse.explain(made)
    assert not report.matches
    miss = next(one for one in report.near_misses if "its output" in one.reason)
    graph = Graph(made.graph, made)
    found = re.search(r"its output (\S+) is (a graph output|also read by (\S+) outside)", miss.reason)
    assert found is not None
    assert graph.producers[found[1]].name == miss.failed_at and graph.producers[found[1]].op_type == "Softmax"
    if found[3] is None:
        assert found[1] in graph.outputs
    else:
        assert found[3] in [reader.name for reader in graph.readers[found[1]]]
    assert miss.block == "encoder.layer.2.attention"
    assert "output_attentions=False" in miss.advice


def test_match_tells_block_and_subgraph() -> None:
    made = attention()
    found = onnx_fuse.explain(made).matches[0]
    assert found.block == "encoder.layer.2.attention"
    kinds = {item.name: item.op_type for item in made.graph.node}
    assert list(found.replaced_types) == [kinds[name] for name in found.replaced]
    by_name = {item.name: item for item in made.graph.node}
    for maker, reader in found.replaced_edges:
        assert set(by_name[found.replaced[maker]].output) & set(by_name[found.replaced[reader]].input)
    assert len(found.replaced_edges) == len(found.replaced) - 1


def test_unmet_requirement_lists_what_is_missing() -> None:
    made = attention(output=", float[B,2,S,S] p")
    with pytest.raises(RequirementError) as caught:
        onnx_fuse.fuse(made, require={"FusedAttentionLayerNorm": 2})
    assert "2 FusedAttentionLayerNorm required, 0 fused." in caught.value.cause
    assert "of encoder.layer.2.attention: its output p is a graph output" in caught.value.cause
    assert "output_attentions=False" in caught.value.cause


def _miss(layer: int) -> NearMissRecord:
    reason = f"its output /h.{layer}/v is a graph output"
    return NearMissRecord("FusedSwish", f"n{layer}", "Mul", "", "v", layer, 20, reason, f"h.{layer}.act", "")


@pytest.mark.parametrize(("wanted", "listed"), [(3, 3), (12, 5)])
def test_requirement_lists_the_nearest_up_to_five(wanted: int, listed: int) -> None:
    report = Report(near_misses=[_miss(layer) for layer in range(12)])
    fusions = [fusion for fusion in onnx_fuse.fusions() if fusion.name == "FusedSwish"]
    with pytest.raises(RequirementError) as caught:
        check_met({"FusedSwish": wanted}, report, fusions)
    assert re.findall(r"n(\d+) of h\.\1\.act", caught.value.cause) == [str(11 - n) for n in range(listed)]
    assert f"and {12 - listed} more" in caught.value.cause


def test_equal_layers_are_told_once() -> None:
    matches = [
        MatchRecord("F", "F", f"f{n}", f"r{n}", "", ("a",), (), (), block=f"encoder.layer.{n}.attention")
        for n in range(12)
    ]
    misses = [_miss(3), _miss(4)]
    groups = by_layer(matches, misses)
    assert [group.title for group in groups] == ["encoder.layer.0 … encoder.layer.11 (12 layers)", "h.3, h.4"]
    assert [len(group.matches) for group in groups] == [1, 0]
    odd = by_layer([*matches, matches[5]], [])
    assert [len(group.layers) for group in odd] == [11, 1]
