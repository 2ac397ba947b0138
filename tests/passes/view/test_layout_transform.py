"""Chains of data movement: one form for all that move the same, and that form moves the same."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import ModelProto, numpy_helper

from onnx_fuse.passes.graph.dims import Dim, Shape, multiply, symbol
from onnx_fuse.passes.view.layout_transform import Move, coalesce, find_move, identity, regroup, steps_of
from tests.helpers import Builder, assert_same_results, feeds, model, operators, session, simplified, view_of

B, S = symbol("B"), symbol("S")
HEADS = 12  # splits in many ways


def form(made: ModelProto) -> list[tuple[str, list[int]]]:
    """The operators of the simplified model with their permutation or target."""
    simple = simplified(made)
    constants = {tensor.name: numpy_helper.to_array(tensor).tolist() for tensor in simple.graph.initializer}
    steps = []
    for node in simple.graph.node:
        if node.op_type == "Transpose":
            steps.append(("Transpose", list(node.attribute[0].ints)))
        elif node.op_type == "Reshape":
            steps.append(("Reshape", constants[node.input[1]]))
        else:
            assert node.op_type == "Identity"
    return steps


def target(have: list[Dim], want: list[Dim]) -> list[int] | None:
    """A constant target that leads from one shape to the other; None where there is none."""
    numbers = [
        dim if isinstance(dim, int) else 0 if axis < len(have) and have[axis] == dim else -1
        for axis, dim in enumerate(want)
    ]
    return numbers if numbers.count(-1) <= 1 else None


class Chain:
    """A chain of moves that starts at x[B, S, 12] and knows the shape it has reached."""

    def __init__(self) -> None:
        self.builder = Builder(x=["B", "S", HEADS])
        self.value = "x"
        self.shape: list[Dim] = [B, S, HEADS]

    def node(self, op_type: str, *inputs: str, **attributes: Any) -> None:
        self.value = self.builder.node(op_type, self.value, *inputs, **attributes)

    def transpose(self, perm: list[int]) -> None:
        self.node("Transpose", perm=perm)
        self.shape = [self.shape[axis] for axis in perm]

    def unsqueeze(self, axis: int) -> None:
        self.node("Unsqueeze", self.builder.constant(axis))
        self.shape.insert(axis, 1)

    def squeeze(self, axis: int) -> None:
        assert self.shape.pop(axis) == 1
        self.node("Squeeze", self.builder.constant(axis))

    def flatten(self, axis: int) -> None:
        self.node("Flatten", axis=axis)
        rows: Dim = 1
        columns: Dim = 1
        for dim in self.shape[:axis]:
            rows = multiply(rows, dim)
        for dim in self.shape[axis:]:
            columns = multiply(columns, dim)
        self.shape = [rows, columns]

    def reshape(self, shape: list[Dim], *, computed: bool = False) -> None:
        """Reshape to `shape`, the target written as a constant where it can be, or put together when the model runs."""
        constant = None if computed else target(self.shape, shape)
        self.node("Reshape", self.builder.constant(*constant) if constant else self._computed(shape))
        self.shape = list(shape)

    def _computed(self, shape: list[Dim]) -> str:
        made = self.builder
        sizes = made.node("Shape", "x")
        parts = []
        for dim in shape:
            part = made.constant(dim if isinstance(dim, int) else dim.factor)
            for name in () if isinstance(dim, int) else dim.symbols:
                part = made.node("Mul", part, made.node("Gather", sizes, made.constant("BS".index(name))))
            parts.append(part)
        return str(made.node("Concat", *parts, axis=0))

    def model(self, opset: int = 17) -> ModelProto:
        return self.builder.model(self.value, opset=opset)


def step(chain: Chain, data: st.DataObject) -> None:
    """One move of any kind."""

    def pick(options: Any) -> Any:
        return data.draw(st.sampled_from(list(options)))

    rank = len(chain.shape)
    kind = pick(["transpose", "transpose", "unsqueeze", "squeeze", "merge", "split", "flatten"])
    if kind == "transpose" and rank > 1:
        chain.transpose(data.draw(st.permutations(range(rank))))
    elif kind == "unsqueeze" and rank < 6:
        chain.unsqueeze(pick(range(rank + 1)))
    elif kind == "squeeze" and 1 in chain.shape and rank > 1:
        chain.squeeze(pick(axis for axis, dim in enumerate(chain.shape) if dim == 1))
    elif kind == "merge" and rank > 1:
        axis = pick(range(rank - 1))
        merged = multiply(chain.shape[axis], chain.shape[axis + 1])
        chain.reshape([*chain.shape[:axis], merged, *chain.shape[axis + 2 :]], computed=pick([True, False]))
    elif kind == "split" and rank < 6:
        axes = [axis for axis, dim in enumerate(chain.shape) if dim in (12, 6, 4)]
        if axes:
            axis = pick(axes)
            whole = chain.shape[axis]
            assert isinstance(whole, int)
            part = pick(size for size in (2, 3, 4, 6) if whole % size == 0)
            chain.reshape(
                [*chain.shape[:axis], part, whole // part, *chain.shape[axis + 1 :]], computed=pick([True, False])
            )
    elif kind == "flatten":
        chain.flatten(pick(range(rank + 1)))


def detour(chain: Chain, data: st.DataObject) -> None:
    """Moves that cancel."""
    rank = len(chain.shape)
    kind = data.draw(st.sampled_from(["none", "transpose", "unsqueeze", "reshape", "identity"]))
    if kind == "transpose":
        perm = data.draw(st.permutations(range(rank)))
        chain.transpose(perm)
        chain.transpose([perm.index(axis) for axis in range(rank)])
    elif kind == "unsqueeze":
        axis = data.draw(st.integers(0, rank))
        chain.unsqueeze(axis)
        chain.squeeze(axis)
    elif kind == "reshape" and rank > 1:
        before = list(chain.shape)
        chain.reshape([multiply(before[0], before[1]), *before[2:]])
        chain.reshape(before, computed=True)
    elif kind == "identity":
        chain.node("Identity")


@settings(derandomize=True, deadline=None, max_examples=70, database=None)
@given(st.data())
def test_any_chain_comes_down_to_three_moves_that_do_the_same(data: st.DataObject) -> None:
    chain = Chain()
    for _ in range(data.draw(st.integers(2, 7))):
        step(chain, data)
    made = chain.model()
    after = simplified(made)
    for sizes in ({"B": 2, "S": 3}, {"B": 1, "S": 5}):
        assert_same_results(made, after, tolerance=0, **sizes)
    for sizes in ({"B": 0, "S": 3}, {"B": 2, "S": 0}):
        if runs(made, **sizes):
            assert_same_results(made, after, tolerance=0, **sizes)
    view = view_of(made)
    move = find_move(view, chain.value)
    assert move is not None and move.shape == tuple(chain.shape)
    if steps_of(coalesce(move)) is not None:
        assert move.base == "x"
        # A Reshape that only adds or drops axes of size 1 may be written so, which takes values without elements.
        names = ["Reshape" if name in ("Squeeze", "Unsqueeze") else name for name in operators(after)]
        kinds = [name for name in names if name in ("Reshape", "Transpose")]
        assert kinds == [kind for kind, there in zip(FORM, _needed(kinds), strict=True) if there]
        assert "Flatten" not in names


def runs(model: ModelProto, **sizes: int) -> bool:
    try:
        session(model).run(None, feeds(model, 0, **sizes))
    except Exception:  # of any type, none of them public
        return False
    return True


@pytest.mark.parametrize("opset", [13, 17])
@pytest.mark.parametrize(
    ("before", "after", "body", "written"),
    [
        ("B,S", "B,1,1,S", "t = Unsqueeze(x, one)  y = Unsqueeze(t, one)", {"Unsqueeze"}),
        ("B,1,1,S", "B,S", "t = Squeeze(x, one)  y = Squeeze(t, one)", {"Squeeze"}),
        ("B,S,1", "B,1,S", "t = Squeeze(x, last)  y = Unsqueeze(t, one)", {"Shape", "Slice", "Concat", "Reshape"}),
        ("B,S,12", "B,1,n", "t = Flatten(x)  y = Unsqueeze(t, one)", {"Shape", "Slice", "Mul", "Concat", "Reshape"}),
        ("B,S,12", "n,12", "y = Flatten <axis = 2> (x)", {"Reshape"}),
    ],
)
def test_what_is_written_takes_values_without_elements(
    before: str, after: str, body: str, written: set[str], opset: int
) -> None:
    """ONNX Runtime works out no -1 beside a 0."""
    made = model(
        f"(float[{before}] x) => (float[{after}] y) {{ {body} }}",
        opset=opset,
        weights={"one": np.array([1]), "last": np.array([2])},
    )
    simple = simplified(made)
    assert set(operators(simple)) == written
    for sizes in ({"B": 0, "S": 3}, {"B": 2, "S": 3}, {"B": 2, "S": 0}):
        if opset > 13 or sizes["S"] or "Concat" not in written:  # before, no target says that a size is 0
            assert_same_results(made, simple, tolerance=0, **sizes)


FORM = ("Reshape", "Transpose", "Reshape")


def _needed(kinds: list[str]) -> tuple[bool, bool, bool]:
    split = kinds[:1] == ["Reshape"]
    return split, "Transpose" in kinds, len(kinds) > split + ("Transpose" in kinds)


@settings(derandomize=True, deadline=None, max_examples=50, database=None)
@given(st.data())
def test_chains_that_move_the_same_come_to_the_same_form(data: st.DataObject) -> None:
    direct, roundabout = Chain(), Chain()
    for _ in range(data.draw(st.integers(1, 4))):
        heads, size = data.draw(st.sampled_from([(2, 6), (3, 4), (12, 1)]))
        for chain in (direct, roundabout):
            if chain is roundabout:
                detour(chain, data)
            chain.reshape([B, S, heads, size], computed=chain is roundabout)
            chain.transpose([0, 2, 1, 3])
            if chain is roundabout:
                detour(chain, data)
            chain.transpose([0, 2, 1, 3])
            chain.reshape([B, S, 12], computed=chain is roundabout)
        perm = data.draw(st.permutations(range(3)))
        back = [perm.index(axis) for axis in range(3)]
        for chain in (direct, roundabout):
            chain.transpose(perm)
            chain.transpose(back)
    last = data.draw(st.permutations(range(3)))
    direct.transpose(last)
    detour(roundabout, data)
    roundabout.transpose(last)
    assert form(direct.model()) == form(roundabout.model())
    assert form(direct.model()) == ([] if list(last) == [0, 1, 2] else [("Transpose", list(last))])


SPLITS: list[tuple[str, list[Any]]] = [
    ("in one step", [("reshape", [B, S, 3, 4]), ("transpose", [0, 2, 1, 3])]),
    ("from [S, B, H]", [("transpose", [1, 0, 2]), ("reshape", [S, B, 3, 4]), ("transpose", [1, 2, 0, 3])]),
    ("with batch and heads merged", [
        ("transpose", [1, 0, 2]), ("reshape", [S, multiply(B, 3), 4]), ("transpose", [1, 0, 2]), ("reshape", [B, 3, S, 4]),
    ]),
    ("from flat rows", [("reshape", [multiply(B, S), 12]), ("reshape", [B, S, 3, 4]), ("transpose", [0, 2, 1, 3])]),
    ("with an axis in between", [
        ("unsqueeze", 2), ("reshape", [B, S, 1, 3, 4]), ("squeeze", 2), ("transpose", [0, 2, 1, 3]),
    ]),
    ("transposed twice", [
        ("reshape", [B, S, 3, 4]), ("transpose", [0, 1, 3, 2]), ("transpose", [0, 3, 1, 2]),
    ]),
]  # fmt: skip


@pytest.mark.parametrize(("name", "moves"), SPLITS, ids=[name for name, _ in SPLITS])
@pytest.mark.parametrize("computed", [False, True])
def test_every_way_to_split_heads_is_one_reshape_and_one_transpose(name: str, moves: list[Any], computed: bool) -> None:
    chain = Chain()
    for kind, argument in moves:
        if kind == "reshape":
            chain.reshape(argument, computed=computed)
        else:
            getattr(chain, kind)(argument)
    made = chain.model()
    assert form(made) == [("Reshape", [0, 0, 3, 4]), ("Transpose", [0, 2, 1, 3])]
    assert_same_results(made, simplified(made), tolerance=0)


def test_splitting_and_merging_heads_again_is_nothing() -> None:
    chain = Chain()
    chain.reshape([B, S, 3, 4])
    chain.transpose([0, 2, 1, 3])
    chain.transpose([0, 2, 1, 3])
    chain.reshape([B, S, 12])
    assert form(chain.model()) == []


def test_merging_other_heads_than_were_split_is_not_nothing() -> None:
    chain = Chain()
    chain.reshape([B, S, 3, 4])
    chain.transpose([0, 1, 3, 2])
    chain.reshape([B, S, 12])
    made = chain.model()
    assert form(made) == [("Reshape", [0, 0, 3, 4]), ("Transpose", [0, 1, 3, 2]), ("Reshape", [0, 0, -1])] or form(
        made
    ) == [("Reshape", [0, 0, 3, 4]), ("Transpose", [0, 1, 3, 2]), ("Reshape", [0, 0, 12])]
    assert_same_results(made, simplified(made), tolerance=0)


def test_what_cannot_be_told_to_fit_stays_as_it_is() -> None:
    made = Builder(x=["B", "S", HEADS])
    target = made.node("Concat", made.node("Shape", "x", start=2), made.constant(-1), axis=0)
    strange = made.node("Reshape", made.node("Transpose", "x", perm=[1, 0, 2]), target)
    result = made.model(made.node("Transpose", strange, perm=[1, 0]))
    after = simplified(result)
    for sizes in ({"B": 2, "S": 3}, {"B": 5, "S": 1}):
        assert_same_results(result, after, tolerance=0, **sizes)


@pytest.mark.parametrize("opset", [11, 12])
def test_axes_written_as_attributes(opset: int) -> None:
    made = Builder(x=["B", "S", HEADS])
    opened = made.node("Unsqueeze", "x", axes=[0, -1])
    result = made.model(made.node("Squeeze", opened, axes=[0]), opset=opset)
    assert form(result) == [("Reshape", [0, 0, 12, 1])]
    assert_same_results(result, simplified(result), tolerance=0)


def test_axes_of_no_size_are_left_alone() -> None:
    made = Builder(x=["B", 0, 4])
    first = made.node("Reshape", "x", made.constant(2, 0, 2), allowzero=1)
    result = made.model(made.node("Reshape", first, made.constant(0, 4, 4), allowzero=1))
    assert_same_results(result, simplified(result), tolerance=0)


class TestRegroup:
    def atoms(self, *shape: Dim) -> Move:
        return identity("x", shape)

    def test_splits_make_atoms(self) -> None:
        move = regroup(self.atoms(B, S, 12), (B, S, 3, 4))
        assert move is not None and move.shape == (B, S, 3, 4) and move.keeps_order
        assert move.base_shape == (B, S, 12)

    def test_merges_keep_them(self) -> None:
        move = regroup(self.atoms(B, 3, S, 4), (B, 3, multiply(4, S)))
        assert move is not None and move.shape == (B, 3, multiply(4, S))
        assert coalesce(move).shape == move.shape and len(coalesce(move).sizes) == 4

    @pytest.mark.parametrize(
        ("have", "want"),
        [
            ((B, S), (S, B)),
            ((B, 6), (B, 4)),
            ((B, S), (multiply(2, B), S)),
            ((6, B), (4, B)),
            ((B,), (B, 2)),
            ((B, 2), (B,)),
        ],
    )
    def test_what_does_not_fit_is_refused(self, have: Shape, want: Shape) -> None:
        assert regroup(identity("x", have), want) is None

    def test_ones_come_and_go(self) -> None:
        for shape in itertools.permutations((B, 1, 12, 1)):
            if shape.index(B) < shape.index(12):
                move = regroup(self.atoms(1, B, 12), shape)
                assert move is not None and move.shape == shape
                assert regroup(move, (B, 12)) is not None
