"""Shapes worked out with their names kept, where ONNX's own inference gives up on them."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import ModelProto, TensorProto, helper

from onnx_fuse.passes.graph.dims import Dim, Shape, broadcast_shapes, symbol
from onnx_fuse.passes.graph.index import Graph
from onnx_fuse.passes.view.view import View
from tests.helpers import Builder, model, session, view_of

B, S = symbol("B"), symbol("S")


def shape_of(body: str, value: str = "y", opset: int = 17, inputs: str = "float[B,S,64] x") -> Shape | None:
    return view_of(model(f"({inputs}) => (float[n] out) {{ {body} out = Identity({value}) }}", opset=opset)).shape(
        value
    )


def text(shape: Shape | None) -> str:
    """The shape as words, with ? for a size of which nothing is known but that it is some size."""
    return "unknown" if shape is None else " ".join("?" if nameless(dim) else str(dim) for dim in shape)


def nameless(dim: Dim) -> bool:
    return any("#" in name or "unk__" in name for name in getattr(dim, "symbols", ()))


def ints(*values: int) -> str:
    """A constant in onnx's text form."""
    return f"Constant<value = int64[{len(values)}] {{{', '.join(map(str, values))}}}>()"


class TestReshape:
    def test_the_number_of_heads_follows_from_the_head_size(self) -> None:
        target = "b = Shape<start=0, end=1>(x) s = Shape<start=1, end=2>(x)"
        rest = f"r = {ints(-1, 16)} t = Concat<axis=0>(b, s, r) y = Reshape(x, t)"
        assert text(shape_of(f"{target} {rest}")) == "B S 4 16"

    def test_the_batch_of_a_flattened_value_follows_from_the_rest(self) -> None:
        assert text(shape_of(f"f = {ints(-1, 64)} a = Reshape(x, f) s = Shape(x) y = Reshape(a, s)")) == "B S 64"

    def test_zeros_copy(self) -> None:
        assert text(shape_of(f"t = {ints(0, 0, 4, -1)} y = Reshape(x, t)")) == "B S 4 16"

    def test_with_allowzero_they_do_not(self) -> None:
        found = shape_of(f"t = {ints(0, -1)} y = Reshape<allowzero=1>(x, t)", inputs="float[0,3] x")
        assert found is not None and found[0] == 0

    def test_what_does_not_divide_is_a_dimension_of_its_own(self) -> None:
        assert text(shape_of(f"t = {ints(-1, 5)} y = Reshape(x, t)")) == "? 5"

    def test_a_target_known_at_run_time_alone_still_has_a_rank(self) -> None:
        assert text(shape_of("y = Reshape(x, t)", inputs="float[B,S,64] x, int64[3] t")) == "? ? ?"

    def test_a_hard_coded_target_tells_the_size_of_a_name(self) -> None:
        made = model(
            f"""(float[B,7,64] x) => (float[m,n,k] y) {{
                t = {ints(2, 7, 4, 16)} a = Reshape(x, t) u = {ints(2, 7, 64)} y = Reshape(a, u)
            }}"""
        )
        view = view_of(made)
        assert view.shape("y") == (2, 7, 64)
        assert view.equalities == {"B": 2}
        assert view.shape("x") == (2, 7, 64)

    def test_two_unknown_sizes_cannot_be_told_apart(self) -> None:
        made = model(f"(float[B,S,64] x) => (float[2,7,64] y) {{ t = {ints(2, 7, 64)} y = Reshape(x, t) }}")
        assert view_of(made).equalities == {}


class TestConv:
    @pytest.mark.parametrize(
        ("attributes", "want"),
        [
            ("strides=[1]", "B 8 29"),
            ("strides=[2], pads=[1,2]", "B 8 16"),
            ("dilations=[3]", "B 8 23"),
            ('auto_pad="SAME_UPPER"', "B 8 32"),
        ],
    )
    def test_its_windows_are_counted(self, attributes: str, want: str) -> None:
        body = f"""t = {ints(0, 4, 32)} a = Reshape(x, t) k = {ints(8, 4, 4)} w = ConstantOfShape(k)
            y = Conv<{attributes}>(a, w)"""
        assert text(shape_of(body, inputs="float[B,128] x")) == want

    def test_other_sizes_are_of_their_own(self) -> None:
        found = shape_of(f"k = {ints(8, 64, 3)} w = ConstantOfShape(k) t = Transpose<perm=[0,2,1]>(x) y = Conv(t, w)")
        assert text(found) == "B 8 ?"


class TestShapeArithmetic:
    def test_the_expand_idiom(self) -> None:
        found = shape_of(
            f"""b = Shape<start=0, end=1>(x) s = Shape<start=1, end=2>(x) minus = {ints(-1)}
            want = Concat<axis=0>(b, minus, s) rank = Shape(want) ones = ConstantOfShape<value=int64[1] {{1}}>(rank)
            keep = Equal(want, minus) t = Where(keep, ones, want) m = Constant<value=float[1,1,1] {{0}}>()
            y = Expand(m, t)"""
        )
        assert text(found) == "B 1 S"

    def test_slices_of_tables(self) -> None:
        table = "p = ConstantOfShape(k)"
        end = f"z = {ints(0)} s = Shape<start=1, end=2>(x) one = {ints(1)} y = Slice(p, z, s, one)"
        assert text(shape_of(f"k = {ints(1, 512)} {table} {end}")) == "1 min(512,S)"

    def test_a_sum_with_what_was_sliced_for_it_has_the_plain_size(self) -> None:
        found = shape_of(
            f"""k = {ints(1, 512, 64)} p = ConstantOfShape(k) z = {ints(0)} one = {ints(1)}
            s = Shape<start=1, end=2>(x) q = Slice(p, z, s, one) y = Add(x, q)"""
        )
        assert text(found) == "B S 64"

    @pytest.mark.parametrize(
        ("start", "end", "step", "want"),
        [
            (0, 1 << 62, 1, "S"),
            (1, 1 << 62, 1, "(S-1)"),
            (-1, 1 << 62, 1, "min(1,S)"),
            (0, -1, 1, "(S-1)"),
            (0, 5, 1, "min(5,S)"),
        ],
    )
    def test_slices_of_a_named_size(self, start: int, end: int, step: int, want: str) -> None:
        body = f"a = {ints(start)} b = {ints(end)} c = {ints(1)} e = {ints(step)} y = Slice(x, a, b, c, e)"
        assert text(shape_of(body)) == f"B {want} 64"

    def test_slices_that_only_the_run_knows_keep_the_rank_and_type(self) -> None:
        made = model(
            "(float16[B,S,64] x, int64[1] a, int64[1] b) => (float16[p,q,r] out) { y = Slice(x, a, b) out = Abs(y) }"
        )
        view = view_of(made)
        assert view.rank("y") == 3 and view.dtype("y") == TensorProto.FLOAT16

    def test_division_rounds_towards_zero_as_onnx_does(self) -> None:
        view = view_of(
            model(
                f"""(float[n] x) => (int64[k] out) {{
                    a = {ints(-7, 7, -8)} b = {ints(2, -2, 3)} q = Div(a, b) out = Add(q, q)
                }}"""
            )
        )
        assert view.info("q").content == (-3, -3, -2)

    def test_sizes_that_cancel(self) -> None:
        made = model(
            f"""(float[B,S,64] x) => (int64[1] out) {{
                s = Shape(x) n = Size(x) w = {ints(64)} t = Div(n, w) one = {ints(1)} two = {ints(2)}
                q = Slice(s, one, two) out = Div(t, q)
            }}"""
        )
        assert view_of(made).info("out").content == (B,)

    def test_what_a_scalar_s_shape_says(self) -> None:
        made = model(
            f"""(float x) => (int64[k] out) {{
                s = Shape(x) c = Constant<value=bool[1] {{1}}>() one = {ints(1)} out = Where(c, s, one)
            }}"""
        )
        assert view_of(made).shape("s") == (0,)


@pytest.mark.parametrize(
    ("body", "want"),
    [
        ("y = Transpose(x)", "64 S B"),
        ("y = Transpose<perm=[1,0,2]>(x)", "S B 64"),
        (f"a = {ints(1, -1)} y = Unsqueeze(x, a)", "B 1 S 64 1"),
        (f"a = {ints(1)} u = Unsqueeze(x, a) y = Squeeze(u, a)", "B S 64"),
        (f"r = {ints(1, 1, 64)} k = ConstantOfShape(r) y = Squeeze(k)", "64"),
        ("y = Flatten(x)", "B 64*S"),
        ("y = Flatten<axis=-1>(x)", "B*S 64"),
        ("y = Concat<axis=1>(x, x)", "B 2*S 64"),
        ("y, z = Split<axis=-1>(x)", "B S 32"),
        (f"p = {ints(16, 48)} z, y = Split<axis=2>(x, p)", "B S 48"),
        ("y, z = Split<axis=1>(x)", "B ? 64"),
        ("y = ReduceMean<axes=[-1]>(x)", "B S 1"),
        ("y = ReduceMean<axes=[0], keepdims=0>(x)", "S 64"),
        ("y = ReduceMean<keepdims=0>(x)", ""),
        ("y = ArgMax<axis=1, keepdims=0>(x)", "B 64"),
        ("t = Transpose<perm=[0,2,1]>(x) y = MatMul(x, t)", "B S S"),
        (f"i = {ints(0, 1)} y = Gather<axis=1>(x, i)", "B 2 64"),
        ("i = Constant<value_int=0>() y = Gather<axis=1>(x, i)", "B 64"),
        (f"r = {ints(1, 2, 3)} y = Tile(x, r)", "B 2*S 192"),
        ("y = Softmax(x)", "B S 64"),
        ("y = Cast<to=7>(x)", "B S 64"),
        ("z = Constant<value_float=0.0>() c = Greater(x, z) y = Where(c, x, z)", "B S 64"),
        ("z = Constant<value_int=0>() o = Constant<value_int=1>() f = Shape(x) i = Constant<value_int=1>()"
         " s = Gather(f, i) y = Range(z, s, o)", "S"),
        ("y, m = Dropout(x)", "B S 64"),
    ],
)  # fmt: skip
def test_operators(body: str, want: str) -> None:
    assert text(shape_of(body)) == want


@pytest.mark.parametrize(
    ("body", "want"),
    [
        (f"a = {ints(-1)} y = ReduceMean(x, a)", "B S 1"),
        (f"a = {ints(0, 1)} y = ReduceSum<keepdims=0>(x, a)", "64"),
        (f"e = {ints()} y = ReduceMean<noop_with_empty_axes=1>(x, e)", "B S 64"),
        (f"e = {ints()} y = ReduceMean<keepdims=0>(x, e)", ""),
        ("y = ReduceMean<keepdims=0>(x)", ""),
    ],
)
def test_reductions_whose_axes_are_an_input(body: str, want: str) -> None:
    assert text(shape_of(body, opset=18)) == want


def test_names_of_products() -> None:
    a, b = broadcast_shapes([(B, 1), (1, S)]) or ()
    assert (a, b) == (B, S)
    assert broadcast_shapes([(B,), None]) is None
    assert broadcast_shapes([(B,), (S,)]) == (None,)


def test_a_rule_without_a_name_for_a_size_takes_the_declared_one() -> None:
    made = model("(float[B,K] x, float[C,K] z) => (float[rows,K] y) { y = Concat<axis=0>(x, z) a = Add(x, z) }")
    view = view_of(made)
    assert text(view.shape("y")) == "(B+C) K"
    assert text(view.shape("a")) == "? K"


def test_operators_without_a_rule_are_left_to_onnx() -> None:
    made = model("(float[1,3,8,8] x, float[4,3,3,3] w) => (float[a,b,c,e] out) { y = Conv(x, w) out = Abs(y) }")
    assert view_of(made).shape("y") == (1, 4, 6, 6)


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
