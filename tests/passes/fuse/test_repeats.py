"""Graphs that repeat blocks: few of them are looked at, and what comes out is what looking at all of them gives."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import ModelProto, helper, numpy_helper

from onnx_fuse.passes.fuse import fuse_pass, repeats
from onnx_fuse.passes.graph.index import Graph
from onnx_fuse.patterns import fusions
from tests.helpers import fused, model, operators

BLOCKS = 12
WIDTH = 4
MIDDLE = range(repeats.HEAD, BLOCKS - repeats.TAIL)
FUSIONS = [fusion for fusion in fusions() if fusion.name in ("FusedSwish", "FusedSkipLayerNorm")]

BLOCK = """
    a{i} = MatMul(x{i}, weight{i})
    b{i} = Mul(a{i}, factor{i})
    c{i} = Sigmoid(b{i})
    d{i} = Mul(a{i}, c{i})
    e{i} = Add(x{i}, d{i})
    x{n} = LayerNormalization<axis = -1, epsilon = 0.001>(e{i}, gamma{i}, beta{i})
"""

Edit = Callable[[str], str]


@pytest.fixture(autouse=True, scope="module")
def small_graphs_count() -> Iterator[None]:
    """What is left out is worth it from 8 nodes on."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(repeats, "LEAST", 8)
        yield


def deep(
    edits: dict[int, tuple[str, str]] | None = None,
    *,
    block: str = BLOCK,
    before: str = "",
    after: str = "",
    outputs: str = "",
) -> ModelProto:
    """Blocks in a row.

    Args:
        edits: number of a block -> (what is written there, what to write instead).
        block: the text of a block, with its number {i} and the next one's {n}.
        before, after: nodes around the blocks.
        outputs: outputs besides the last value, each with a comma before it.
    """
    texts = [block.format(i=i, n=i + 1) for i in range(BLOCKS)]
    for number, (old, new) in (edits or {}).items():
        old, new = (text.format(i=number, n=number + 1) for text in (old, new))
        assert old in texts[number]
        texts[number] = texts[number].replace(old, new)
    body = f"x0 = Relu(x) {before} {''.join(texts)} {after} y = Relu(x{BLOCKS})"
    made = model(
        f"(float[n,m,{WIDTH}] x, bool cond) => (float[n,m,{WIDTH}] y {outputs}) {{ {body} }}", weights=_weights()
    )
    return _without_unread(made)


def _weights() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    shapes: dict[str, tuple[int, ...]] = {"weight": (WIDTH, WIDTH), "gamma": (WIDTH,), "beta": (WIDTH,)}
    weights = {f"{name}{i}": rng.normal(size=shape) for i in range(BLOCKS) for name, shape in shapes.items()}
    weights |= {f"factor{i}": np.array(1.5) for i in range(BLOCKS)}
    return {name: array.astype(np.float32) for name, array in weights.items()}


def _without_unread(made: ModelProto) -> ModelProto:
    Graph(made.graph, made).drop_unread_initializers({tensor.name for tensor in made.graph.initializer})
    return made


def set_weight(made: ModelProto, name: str, array: Any) -> None:
    tensor = next(tensor for tensor in made.graph.initializer if tensor.name == name)
    tensor.CopyFrom(numpy_helper.from_array(np.asarray(array), name))


def taken(made: ModelProto) -> bool:
    """Whether a few blocks stood for all; fails unless the model and the report are those of looking at all blocks."""
    decided: list[bool] = []
    ask = fuse_pass.FusePass._decide_on_excerpt

    def spy(*arguments: Any) -> Any:
        decision = ask(*arguments)
        decided.append(decision is not None)
        return decision

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fuse_pass.FusePass, "_decide_on_excerpt", spy)
        few = _fused(made)
        patch.setattr(fuse_pass, "excerpt", lambda graph: None)
        assert few == _fused(made)
    return any(decided)


def _fused(made: ModelProto) -> tuple[bytes, str]:
    result, report = fused(made, *FUSIONS)
    told = re.sub(r'"seconds": [\d.e-]+', "", json.dumps(report.to_dict()))
    return result.SerializeToString(deterministic=True), told


def test_a_few_blocks_stand_for_all() -> None:
    made = deep()
    assert taken(made)
    result, report = fused(made, *FUSIONS)
    expected = ["Relu", *["MatMul", "FusedSwish", "FusedSkipLayerNorm"] * BLOCKS, "Relu"]
    assert operators(result) == expected
    assert len(report.matches) == 2 * BLOCKS


def test_a_graph_of_few_nodes_is_looked_at_as_a_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(repeats, "LEAST", 6 * len(MIDDLE) + 1)
    assert not taken(deep())


@pytest.mark.parametrize(
    "block",
    [
        pytest.param(BLOCK.replace("factor{i}", "factor0"), id="a scalar"),
        pytest.param(BLOCK.replace("weight{i}", "weight0").replace("gamma{i}", "gamma0"), id="weights"),
        pytest.param(
            BLOCK.replace("e{i} = Add(x{i}, d{i})", "m{i} = Where(cond, d{i}, mask) e{i} = Add(x{i}, m{i})"),
            id="a mask",
        ),
        pytest.param(
            "f{i} = Constant<value = float {{1.5}}>()" + BLOCK.replace("factor{i}", "f{i}"), id="constants in nodes"
        ),
    ],
)
def test_what_blocks_share_may_be_shared(block: str) -> None:
    assert taken(deep(block=block, before="mask = Sigmoid(x)"))


def test_types_that_the_model_tells_are_compared() -> None:
    made = onnx.shape_inference.infer_shapes(deep())
    assert taken(made)
    value = next(value for value in made.graph.value_info if value.name == f"d{MIDDLE[1]}")
    value.type.tensor_type.shape.dim[0].dim_param = "other"
    assert not taken(made)


@pytest.mark.parametrize("number", [0, 2, MIDDLE[0], BLOCKS - 1])
@pytest.mark.parametrize(
    ("old", "new"),
    [
        pytest.param("0.001", "0.01", id="attribute"),
        pytest.param("Sigmoid", "Tanh", id="operator"),
        pytest.param("(x{i}, d{i})", "(d{i}, x{i})", id="order of inputs"),
        pytest.param("weight{i}", "weight0", id="tied weight"),
        pytest.param("beta{i}", "gamma{i}", id="tied within the block"),
        pytest.param(", beta{i}", "", id="input left out"),
        pytest.param("(x{i}, d{i})", "(x0, d{i})", id="reads what comes before"),
        pytest.param("b{i} = Mul", "z{i} = Neg(a{i}) b{i} = Mul", id="dead node"),
        pytest.param("a{i} = MatMul(x{i}, ", "z{i} = Identity(x{i}) a{i} = MatMul(z{i}, ", id="operator between"),
    ],
)
def test_a_block_may_differ(number: int, old: str, new: str) -> None:
    taken(deep({number: (old, new)}))


@pytest.mark.parametrize(
    ("name", "array"),
    [
        ("factor", np.float32(2.5)),
        ("factor", np.ones(1, np.float32)),
        ("beta", np.ones((1, 1, WIDTH), np.float32)),
        ("gamma", np.ones(WIDTH, np.float16)),
    ],
    ids=["content", "rank", "shape", "type"],
)
def test_constants_of_one_block_may_differ(name: str, array: np.ndarray) -> None:
    made = deep()
    set_weight(made, f"{name}{MIDDLE[2]}", array)
    assert not taken(made)


def test_weights_that_nobody_looked_into_may_differ() -> None:
    made = deep()
    set_weight(made, f"weight{MIDDLE[2]}", np.zeros((WIDTH, WIDTH), np.float32))
    assert taken(made)


@pytest.mark.parametrize(
    ("operator", "size", "other"),
    [("Tile(z{i}, size{i})", [1, 1, WIDTH], [1, 1, 1]), ("Resize(z{i}, , , size{i})", [2, 3, WIDTH], [2, 3, 1])],
    ids=["our own shape inference", "that of ONNX"],
)
def test_sizes_that_one_block_computes_may_differ(operator: str, size: list[int], other: list[int]) -> None:
    """Where the sum is broadcast it is not fused."""
    sizes = "z{i} = ReduceMean<axes = [-1]>(x{i}) s{i} = " + operator + " e{i} = Add(x{i}, s{i})"
    made = deep(block=BLOCK.replace("e{i} = Add(x{i}, d{i})", sizes))
    for value in (made.graph.input[0], made.graph.output[0]):
        value.type.CopyFrom(helper.make_tensor_type_proto(onnx.TensorProto.FLOAT, [2, 3, WIDTH]))
    made.graph.initializer.extend(numpy_helper.from_array(np.array(size), f"size{i}") for i in range(BLOCKS))
    assert fused(made, *FUSIONS)[1].to_dict()["fused"]["FusedSkipLayerNorm"] == BLOCKS
    taken(made)
    set_weight(made, f"size{MIDDLE[2]}", np.array(other))
    assert not taken(made)
    assert fused(made, *FUSIONS)[1].to_dict()["fused"]["FusedSkipLayerNorm"] == BLOCKS - 1


@pytest.mark.parametrize("first", [0, 1, repeats.HEAD, BLOCKS - 2])
@pytest.mark.parametrize("step", [1, 2, 5])
def test_some_blocks_share_a_weight(first: int, step: int) -> None:
    taken(deep(dict.fromkeys(range(first, min(first + 5, BLOCKS), step), ("gamma{i}", f"gamma{first}"))))


def test_two_weights_take_turns() -> None:
    groups = [0] * 5 + [5] * 2 + [0] * (BLOCKS - 7)
    assert not taken(deep({number: ("gamma{i}", f"gamma{group}") for number, group in enumerate(groups)}))
    taken(deep({number: ("gamma{i}", f"gamma{number % 2}") for number in range(BLOCKS)}))


@pytest.mark.parametrize("number", [0, 3, MIDDLE[1], BLOCKS - 2])
@pytest.mark.parametrize("name", ["gamma{i}", "factor{i}", "d{i}", "e{i}", "x{n}"])
def test_what_comes_after_reads_a_block(number: int, name: str) -> None:
    read = name.format(i=number, n=number + 1)
    skip = f"p = Add(x{BLOCKS}, {read}) q = LayerNormalization<axis = -1>(p, gamma0, beta1)"
    taken(deep(after=skip, outputs=f", float[n,m,{WIDTH}] q"))


@pytest.mark.parametrize("number", [1, MIDDLE[2], BLOCKS - 1])
def test_what_comes_before_reads_a_weight(number: int) -> None:
    taken(deep(before=f"z = Mul(x, gamma{number})", outputs=f", float[n,m,{WIDTH}] z"))


@pytest.mark.parametrize("number", [1, MIDDLE[0], MIDDLE[-1]])
@pytest.mark.parametrize("name", ["a{i}", "d{i}", "e{i}", "x{i}"])
def test_a_value_within_a_block_is_an_output(number: int, name: str) -> None:
    took = taken(deep(outputs=f", float[n,m,{WIDTH}] {name.format(i=number)}"))
    assert not took or number not in MIDDLE or name == "x{i}"  # which the block before makes


@pytest.mark.parametrize("number", [0, MIDDLE[0], MIDDLE[-1], BLOCKS - 1])
def test_a_subgraph_captures_a_value_of_a_block(number: int) -> None:
    branch = f"z = If(cond) <then_branch = then () => (float[n,m,{WIDTH}] t) {{ t = Neg(d{number}) }},"
    branch += f"else_branch = else () => (float[n,m,{WIDTH}] u) {{ u = Identity(x{number}) }}>"
    assert taken(deep(after=branch, outputs=f", float[n,m,{WIDTH}] z")) == (number == BLOCKS - 1)


def test_blocks_in_the_body_of_a_loop() -> None:
    body = deep().graph
    body.input.insert(0, helper.make_tensor_value_info("turn", onnx.TensorProto.INT64, []))
    body.input[1].CopyFrom(helper.make_tensor_value_info("keep", onnx.TensorProto.BOOL, []))
    body.input[2].CopyFrom(helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, ["n", "m", WIDTH]))
    body.node.insert(0, helper.make_node("Identity", ["keep"], ["on"]))
    body.output.insert(0, helper.make_tensor_value_info("on", onnx.TensorProto.BOOL, []))
    outer = model(f"(int64 turns, bool cond, float[n,m,{WIDTH}] v) => (float[n,m,{WIDTH}] w) {{ w = Identity(v) }}")
    outer.graph.node[0].CopyFrom(helper.make_node("Loop", ["turns", "cond", "v"], ["w"], body=body))
    onnx.checker.check_model(outer)
    assert taken(outer)


def test_blocks_in_a_function() -> None:
    made = deep(block=BLOCK.replace("factor{i}", "factor0"))
    weights = [helper.make_node("Constant", [], [tensor.name], value=tensor) for tensor in made.graph.initializer]
    outer = model(f"(float[n,m,{WIDTH}] v) => (float[n,m,{WIDTH}] w) {{ w = my.Deep(v) }}")
    opset = [helper.make_opsetid("", 17)]
    outer.functions.append(helper.make_function("my", "Deep", ["x"], ["y"], [*weights, *made.graph.node], opset))
    taken(outer)
    result, _ = fused(outer, *FUSIONS)
    assert [node.op_type for node in result.functions[0].node].count("FusedSwish") == BLOCKS


def test_names_that_are_given_twice() -> None:
    """A near miss that goes by the names of what was fused is not told: here in the blocks at both ends, not in those between."""
    miss = "f{i} = Add(x{i}, d{i}) g{i} = Sigmoid(f{i}) e{i} = Mul(x{i}, g{i})"
    made = deep(block=BLOCK.replace("e{i} = Add(x{i}, d{i})", miss))
    for node in made.graph.node:
        kind, number = node.output[0][0], node.output[0][1:]
        if kind in "de" and int(number) not in MIDDLE:
            node.name = f"f{number}"
    assert len(fused(made, *FUSIONS)[1].near_misses) == len(MIDDLE)
    assert not taken(made)


def test_names_that_fusing_would_give() -> None:
    made = deep()
    for node, name in zip(
        made.graph.node[30:33], ("d7/FusedSwish", "x4/FusedSkipLayerNorm", "d2/FusedSwish"), strict=True
    ):
        node.name = name
    taken(made)


def test_defaults_that_the_caller_may_replace_are_no_constants() -> None:
    made = deep()
    made.graph.input.extend(helper.make_tensor_value_info(t.name, t.data_type, t.dims) for t in made.graph.initializer)
    assert not taken(made)


def test_a_plan_that_is_given_up_leaves_no_trace() -> None:
    """Here the view makes values of its own, and each block has a near miss."""
    block = BLOCK.replace("Mul(a{i}, c{i})", "Mul(x{i}, c{i})").replace("e{i} = Add", "u{i} = Squeeze(x{i}) e{i} = Add")
    assert not taken(deep(block=block))


@pytest.mark.parametrize("name", ["x3", "d3", "gamma3", "beta3", "gamma11"])
@pytest.mark.parametrize(
    "before", ["", "z = Neg(x)"], ids=["whole blocks", "from the middle of one to that of the next"]
)
def test_a_match_may_lie_in_two_blocks(before: str, name: str) -> None:
    """The nodes between the first value and the blocks make the first block unlike the others up to its last reader of that."""
    skip = f"p = Add(x{BLOCKS}, {name}) q = LayerNormalization<axis = -1>(p, gamma0, beta1)"
    made = deep(before=before, after=skip, outputs=f", float[n,m,{WIDTH}] q")
    taken(made)
    assert taken(deep(before=before))


VARIATIONS = [("0.001", "0.01"), ("weight{i}", "weight2"), ("gamma{i}", "beta{i}"), ("(x{i}, d{i})", "(x{i}, a{i})")]
VARIATIONS += [("(x{i}, d{i})", "(d{i}, x{i})"), ("Sigmoid", "Relu"), ("factor{i}", "factor1")]


@given(st.dictionaries(st.integers(0, BLOCKS - 1), st.sampled_from(VARIATIONS), max_size=BLOCKS), st.booleans())
@settings(max_examples=15, deadline=None)
def test_whatever_blocks_differ_in(edits: dict[int, tuple[str, str]], everywhere: bool) -> None:
    if everywhere and edits:
        edits = dict.fromkeys(range(BLOCKS), next(iter(edits.values()))) | edits
    taken(deep(edits))
