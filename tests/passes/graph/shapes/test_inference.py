"""Shapes worked out with their names kept, where ONNX's own inference gives up on them."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import ModelProto, TensorProto, helper

from onnx_fuse.passes.graph.dims import Dim
from onnx_fuse.passes.graph.index import Graph
from onnx_fuse.passes.view.view import View
from tests.helpers import Builder, model, session, view_of
from tests.passes.graph.shapes.texts import nameless, text


def test_a_rule_without_a_name_for_a_size_takes_the_declared_one() -> None:
    made = model("(float[B,K] x, float[C,K] z) => (float[rows,K] y) { y = Concat<axis=0>(x, z) a = Add(x, z) }")
    view = view_of(made)
    assert text(view.shape("y")) == "(B+C) K"
    assert text(view.shape("a")) == "? K"


def test_operators_without_a_rule_are_left_to_onnx() -> None:
    made = model("(float[1,3,8,8] x) => (float[a,b,c,e] out) { y = MaxPool<kernel_shape=[3,3]>(x) out = Abs(y) }")
    assert view_of(made).shape("y") == (1, 3, 6, 6)


def test_a_malformed_node_is_no_reason_to_stop() -> None:
    nodes = [helper.make_node("Concat", ["x"], ["y"]), helper.make_node("Transpose", ["x"], ["z"], perm=[7, 8, 9])]
    graph = helper.make_graph(nodes, "g", [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["B", 2, 3])], [])
    view = View(Graph(graph, helper.make_model(graph)))
    assert view.shape("y") is None and view.shape("z") is None


def test_a_deep_graph_needs_no_deep_stack() -> None:
    kinds = (("Abs", []), ("Add", ["x"]), ("Reshape", ["t"]))
    depth = 50_000
    nodes = [
        helper.make_node(op_type, [f"v{number}", *others], [f"v{number + 1}"])
        for number, (op_type, others) in zip(range(depth), itertools.cycle(kinds), strict=False)
    ]
    inputs = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["B", 4]) for name in ("x", "v0")]
    target = helper.make_tensor("t", TensorProto.INT64, [2], [0, -1])
    graph = helper.make_graph(nodes, "deep", inputs, [], [target])
    view = View(Graph(graph, helper.make_model(graph)))
    assert text(view.shape(f"v{depth}")) == "B 4"


# What follows draws graphs at random and asks ONNX Runtime.

SYMBOLS = ("B", "S")


def number(dim: Dim, sizes: dict[str, int]) -> int | None:
    """The size a dimension claims to have; None where it only claims to be some dimension."""
    if isinstance(dim, int):
        return dim
    if nameless(dim):
        return None
    found: Any = dim.factor
    for name in dim.symbols:
        found *= sizes[name] if name in sizes else eval(name, {"min": min}, dict(sizes))
    return int(found)


def assert_claims_hold(made: ModelProto, values: list[str], sizes: dict[str, int]) -> None:
    view = view_of(made, canonical=False)
    random = np.random.default_rng(0)
    x = random.standard_normal((sizes["B"], sizes["S"], 8)).astype(np.float32)
    for name, got in zip(values, session(made).run(None, {"x": x}), strict=True):
        info = view.info(name)
        assert info.dtype == helper.np_dtype_to_tensor_dtype(got.dtype), name
        if info.shape is not None:
            assert len(info.shape) == got.ndim, (name, info)
            claimed = [number(dim, sizes) for dim in info.shape]
            assert list(got.shape) == [
                have if want is None else want for want, have in zip(claimed, got.shape, strict=True)
            ], (name, info, got.shape)
        if info.content is not None:
            claimed = [None if item is None else number(item, sizes) for item in info.content]
            have = got.reshape(-1).tolist()
            assert len(claimed) == len(have), (name, info)
            assert all(one is None or one == other for one, other in zip(claimed, have, strict=True)), (
                name,
                info,
                have,
            )


class Values:
    """Draws nodes; knows the rank of each value."""

    def __init__(self, data: st.DataObject) -> None:
        self.data = data
        self.builder = Builder(x=["B", "S", 8])
        self.ranks = {"x": 3}
        self.names: list[str] = []

    def pick(self, options: Any) -> Any:
        return self.data.draw(st.sampled_from(list(options)))

    def add(self, rank: int, op_type: str, *inputs: str, **attributes: Any) -> str:
        name: str = self.builder.node(op_type, *inputs, **attributes)
        self.ranks[name] = rank
        self.names.append(name)
        return name

    def step(self) -> None:
        value = self.pick([name for name, rank in self.ranks.items() if rank >= 1][-4:])
        rank = self.ranks[value]
        axis = self.pick(range(-rank, rank))
        kind = self.pick(
            [
                "Transpose",
                "Unsqueeze",
                "Flatten",
                "Concat",
                "Slice",
                "Gather",
                "Reduce",
                "Tile",
                "Reshape",
                "Outer",
                "Expand",
            ]
        )
        builder = self.builder
        if kind == "Transpose":
            self.add(rank, "Transpose", value, perm=self.data.draw(st.permutations(range(rank))))
        elif kind == "Unsqueeze" and rank < 5:
            opened = self.add(rank + 1, "Unsqueeze", value, builder.constant(self.pick(range(-rank - 1, rank + 1))))
            if self.pick([True, False]):
                self.add(rank, "Squeeze", opened, builder.nodes[-1].input[1])
        elif kind == "Flatten":
            self.add(2, "Flatten", value, axis=self.pick(range(-rank, rank + 1)))
        elif kind == "Concat":
            self.add(rank, "Concat", value, value, axis=axis)
        elif kind == "Slice":
            bounds = [builder.constant(self.pick([0, 1, -1, -2])), builder.constant(self.pick([1, 2, -1, 1 << 62]))]
            self.add(rank, "Slice", value, *bounds, builder.constant(axis), builder.constant(self.pick([1, 1, 2])))
        elif kind == "Gather":
            self.add(rank, "Gather", value, builder.constant(0, -1), axis=axis)
        elif kind == "Reduce":
            keep = self.pick([0, 1])
            self.add(rank if keep else rank - 1, "ReduceMean", value, axes=[axis], keepdims=keep)
        elif kind == "Tile":
            self.add(rank, "Tile", value, builder.constant(*[self.pick([1, 2]) for _ in range(rank)]))
        elif kind == "Reshape":
            self.reshape(value, rank)
        elif kind == "Outer":
            column = self.add(rank + 1, "Unsqueeze", value, builder.constant(-1))
            row = self.add(rank + 1, "Unsqueeze", value, builder.constant(-2))
            self.add(rank + 1, "MatMul", column, row)
        elif kind == "Expand":
            shape = self.add(1, "Shape", value)
            minus = builder.constant(*[self.pick([1, -1]) for _ in range(rank)])
            ones = self.add(
                1, "ConstantOfShape", self.add(1, "Shape", shape), value=helper.make_tensor("", 7, [1], [1])
            )
            keep = self.add(1, "Equal", minus, builder.constant(-1))
            self.add(rank, "Expand", value, self.add(1, "Where", keep, ones, shape))

    def reshape(self, value: str, rank: int) -> None:
        builder = self.builder
        shape = self.add(1, "Shape", value)
        way = self.pick(["constant", "gathered", "same", "doubled"])
        if way == "constant":
            self.add(rank + 1, "Reshape", value, builder.constant(*[0] * rank, 1))
        elif way == "same":
            self.add(rank, "Reshape", value, shape)
        else:
            sizes = [self.add(1, "Gather", shape, builder.constant(axis)) for axis in range(rank)]
            one = builder.constant(1)
            if way == "doubled":
                two = self.add(1, "Add", one, one)
                sizes[0] = self.add(1, "Div", self.add(1, "Mul", sizes[0], two), two)
            total = sizes[-1] if rank < 2 else self.add(1, "Mul", sizes[-2], sizes[-1])
            target = self.add(1, "Concat", *sizes[: max(rank - 2, 0)], builder.constant(-1), total, axis=0)
            self.add(max(rank - 2, 0) + 2, "Reshape", value, target)


@settings(derandomize=True, deadline=None, max_examples=60, database=None)
@given(st.data())
def test_whatever_is_said_of_a_shape_is_so(data: st.DataObject) -> None:
    values = Values(data)
    for _ in range(data.draw(st.integers(1, 8))):
        values.step()
    made = values.builder.model(*values.names)
    for sizes in ({"B": 3, "S": 4}, {"B": 2, "S": 7}):
        assert_claims_hold(made, values.names, sizes)
