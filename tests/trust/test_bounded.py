"""What fusing takes grows with the graph, not faster: towers of every operator that something follows, three heights high."""

from __future__ import annotations

import contextlib
import math
import resource
import sys
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from onnx import ModelProto, TensorProto, helper, numpy_helper

import onnx_fuse
from onnx_fuse.errors import ModelError
from onnx_fuse.passes import precision
from onnx_fuse.passes.files.checker import check
from onnx_fuse.passes.fuse.read_form import read
from onnx_fuse.passes.graph.confined import confined
from onnx_fuse.passes.graph.inlining import count_inlined, inline_calls
from onnx_fuse.passes.graph.onnx_inference import bounded_inference
from onnx_fuse.patterns.language import term_facts, terms
from onnx_fuse.runtime.device import memory
from tests import helpers

LOWEST, HEIGHTS = 8, (16, 24, 40)
MOST = 1.3
"""The exponent that a linear pass may show: small graphs have a part that does not grow, and a logarithm is no fault."""
OPT_IN = ("FMInteraction", "FusedLinearLayerNorm", "FusedSkipLayerNorm", "FusedSwish")
CALLS_EACH = 20_000
"""More calls for each node than any linear pass makes."""


class Tower:
    """A graph that grows by a storey at a time: each reads the one below once (a chain) or twice (a diamond).

    Attributes:
        value: the value on top.
    """

    def __init__(self, *, twice: bool) -> None:
        self.twice = twice
        self.nodes: list[Any] = []
        self.weights: list[Any] = []
        self.value = ""

    def node(self, op_type: str, *inputs: str, **attributes: Any) -> str:
        name = f"v{len(self.nodes)}"
        self.nodes.append(helper.make_node(op_type, inputs, [name], name=f"n{len(self.nodes)}", **attributes))
        return name

    def constant(self, value: Any, dtype: Any = np.int64) -> str:
        self.weights.append(numpy_helper.from_array(np.array(value, dtype), f"c{len(self.weights)}"))
        return str(self.weights[-1].name)

    def both(self, op_type: str, other: str) -> str:
        """The value below with itself, or with another."""
        return self.node(op_type, self.value, self.value if self.twice else other)

    def meet(self, made: Callable[[], str]) -> str:
        """For an operator of one operand: two of its nodes on the value below, and what they come to together."""
        one = made()
        return self.node("Add", one, made()) if self.twice else one


def _concat(tower: Tower) -> str:
    half = tower.node("Slice", tower.value, *(tower.constant(item) for item in ([0], [2], [3])))
    return tower.node("Concat", half, half if tower.twice else "low", axis=3)


def _branch(tower: Tower) -> str:
    def graph(name: str) -> Any:
        made = f"b{name}{len(tower.nodes)}"
        inner = helper.make_node("Mul", [tower.value, tower.value if tower.twice else "x"], [made])
        return helper.make_graph([inner], name, [], [helper.make_tensor_value_info(made, TensorProto.FLOAT, None)])

    return tower.node("If", "flag", then_branch=graph("then"), else_branch=graph("else"))


def _transpose(tower: Tower) -> str:
    return tower.meet(lambda: tower.node("Transpose", tower.value, perm=[0, 1, 3, 2]))


def _reshape(tower: Tower) -> str:
    shapes = [[2, 2, 16], [2, 2, 4, 4]]
    flat = tower.node("Reshape", tower.value, tower.constant(shapes[0]))
    return tower.meet(lambda: tower.node("Reshape", flat, tower.constant(shapes[1])))


def _cast(tower: Tower) -> str:
    narrow = tower.node("Cast", tower.value, to=TensorProto.FLOAT16)
    return tower.meet(lambda: tower.node("Cast", narrow, to=TensorProto.FLOAT))


def _unsqueeze(tower: Tower) -> str:
    wide = tower.node("Unsqueeze", tower.value, tower.constant([0]))
    return tower.meet(lambda: tower.node("Squeeze", wide, tower.constant([0])))


def _norm(tower: Tower) -> str:
    return tower.meet(lambda: tower.node("LayerNormalization", tower.value, "gamma", axis=-1))


FLOATS: dict[str, Callable[[Tower], str]] = {
    **{op: lambda tower, op=op: tower.both(op, "x") for op in ("Add", "Mul", "Sub", "Div", "Max", "MatMul")},  # type: ignore[misc]
    "Where": lambda tower: tower.node("Where", "mask", tower.value, tower.value if tower.twice else "x"),
    "Concat": _concat,
    "Reshape": _reshape,
    "Transpose": _transpose,
    "Cast": _cast,
    "Expand": lambda tower: tower.meet(lambda: tower.node("Expand", tower.value, tower.constant([2, 2, 4, 4]))),
    "Unsqueeze": _unsqueeze,
    "If": _branch,
    "Identity": lambda tower: tower.meet(lambda: tower.node("Identity", tower.value)),
    "Softmax": lambda tower: tower.meet(lambda: tower.node("Softmax", tower.value, axis=-1)),
    "LayerNormalization": _norm,
    "Sigmoid": lambda tower: tower.node("Mul", tower.value, tower.node("Sigmoid", tower.value)),
    "Neg": lambda tower: tower.meet(lambda: tower.node("Neg", tower.value)),
}
"""Storeys of float32 values [2, 2, 4, 4]."""


def _nor(tower: Tower) -> str:
    return tower.node("Not", tower.both("Or", "mask"))


def _nand(tower: Tower) -> str:
    return tower.node("Not", tower.both("And", "mask"))


def _masked_reshape(tower: Tower) -> str:
    flat = tower.node("Reshape", tower.value, tower.constant([1, 4, 4]))
    back = [tower.node("Unsqueeze", flat, tower.constant([0])) for _ in range(2)]
    return tower.node("And", back[0], back[1] if tower.twice else "mask")


MASKS: dict[str, Callable[[Tower], str]] = {
    "And": lambda tower: tower.both("And", "mask"),
    "Or": lambda tower: tower.both("Or", "mask"),
    "Xor": lambda tower: tower.both("Xor", "mask"),
    "Not": lambda tower: tower.node("And", tower.node("Not", tower.value), tower.value if tower.twice else "mask"),
    "NotOr": _nor,
    "NotAnd": _nand,
    "Where": lambda tower: tower.node("Where", "mask", tower.value, tower.value if tower.twice else "mask"),
    "Equal": lambda tower: tower.both("Equal", "mask"),
    "Reshape": _masked_reshape,
    "Cast": lambda tower: tower.node("Cast", tower.node("Cast", tower.both("And", "mask"), to=1), to=9),
}
"""Storeys of masks [1, 1, 4, 4]."""

NUMBERS: dict[str, Callable[[Tower], str]] = {
    op: lambda tower, op=op: tower.both(op, "low_number")  # type: ignore[misc]
    for op in ("Add", "Mul", "Sub", "Div", "Min", "Max")
}
"""Storeys of constants of one element."""


def attention(tower: Tower, *, query: str = "x", mask: str = "", scale: str = "", silu: bool = False) -> str:
    """Scores of the query with keys, masked and weighted: what many a requirement looks back from."""
    turned = tower.node("Transpose", "x", perm=[0, 1, 3, 2])
    scores = tower.node("MatMul", query, turned)
    scores = tower.node("Mul", scores, scale) if scale else scores
    if silu:
        weights = tower.node("Mul", scores, tower.node("Sigmoid", scores))
        weights = tower.node("Mul", weights, tower.node("Cast", mask, to=1)) if mask else weights
        weights = tower.node("Mul", weights, tower.constant(0.25, np.float32))
    else:
        scores = tower.node("Where", mask, scores, tower.constant(-1e9, np.float32)) if mask else scores
        weights = tower.node("Softmax", scores, axis=-1)
    moved = tower.node("Transpose", tower.node("MatMul", weights, "x"), perm=[0, 2, 1, 3])
    return tower.node("Reshape", moved, tower.constant([2, 4, 8]))


def tower_of(kind: str, op_type: str, height: int, *, twice: bool) -> ModelProto:
    """A tower, and attention that has its top as query, as mask or as scale."""
    tower = Tower(twice=twice)
    tower.value = {"floats": "x", "masks": "mask", "weights": "mask", "numbers": "one"}[kind]
    storeys = {"floats": FLOATS, "masks": MASKS, "weights": MASKS, "numbers": NUMBERS}[kind]
    for _ in range(height):
        tower.value = storeys[op_type](tower)
    top = tower.value
    if kind == "floats":
        result = attention(tower, query=top)
    elif kind == "numbers":
        result = attention(tower, scale=top)
    else:
        result = attention(tower, mask=top, silu=kind == "weights")
    tower.weights += [
        numpy_helper.from_array(np.ones((2, 2, 4, 2), np.float32), "low"),
        numpy_helper.from_array(np.ones(4, np.float32), "gamma"),
        numpy_helper.from_array(np.array([1.0], np.float32), "one"),
        numpy_helper.from_array(np.array([1.5], np.float32), "low_number"),
    ]
    inputs = [
        helper.make_tensor_value_info("x", TensorProto.FLOAT, [2, 2, 4, 4]),
        helper.make_tensor_value_info("mask", TensorProto.BOOL, [1, 1, 4, 4]),
        helper.make_tensor_value_info("flag", TensorProto.BOOL, []),
    ]
    outputs = [helper.make_tensor_value_info(result, TensorProto.FLOAT, [2, 4, 8])]
    graph = helper.make_graph(tower.nodes, "tower", inputs, outputs, tower.weights)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


class _TooMany(BaseException):
    """No Exception: nothing on the way may take it for a fault of its own."""


def calls(work: Callable[[], object], most: int) -> int:
    """How many functions a piece of work calls."""
    count = 0

    def profile(frame: Any, event: str, argument: Any) -> None:
        nonlocal count
        if event == "call":
            count += 1
            if count > most:
                raise _TooMany

    sys.setprofile(profile)
    try:
        work()
    finally:
        sys.setprofile(None)
    return count


def exponent(counts: dict[int, int]) -> float:
    """The power of the size that counts grow with, by least squares on their logarithms."""
    slope, _ = np.polyfit(np.log(list(counts)), np.log(list(counts.values())), 1)
    return float(slope)


def exponent_of(work: Callable[[ModelProto], object], kind: str, op_type: str, *, twice: bool) -> float:
    """How the calls that work on a tower makes grow with its storeys, beyond those for one of LOWEST."""
    counts: dict[int, int] = {}
    for height in (LOWEST, LOWEST, *HEIGHTS):  # the first time for imports and caches
        made = tower_of(kind, op_type, height, twice=twice)
        most = CALLS_EACH * len(made.graph.node)
        try:
            counts[height] = calls(lambda made=made: work(made), most)  # type: ignore[misc]
        except _TooMany:
            return math.inf
    base = counts.pop(LOWEST)
    return exponent({height - LOWEST: count - base for height, count in counts.items()})


TOWERS = [
    *(("floats", op_type) for op_type in FLOATS),
    *(("masks", op_type) for op_type in MASKS),
    *(("weights", op_type) for op_type in MASKS),
    *(("numbers", op_type) for op_type in NUMBERS),
]


def fused(model: ModelProto) -> None:
    onnx_fuse.fuse(model, enable=OPT_IN, verify=False)


def simplified(model: ModelProto) -> None:
    onnx_fuse.fuse(model, enable=OPT_IN, verify=False, simplify=True)


def estimated(model: ModelProto) -> None:
    memory.needed_bytes(model, model, {"x": (2, 2, 4, 4), "mask": (1, 1, 4, 4), "flag": ()})


@pytest.mark.parametrize("twice", [False, True], ids=["chain", "diamond"])
@pytest.mark.parametrize(("kind", "op_type"), TOWERS)
def test_fusing_a_tower_is_linear(kind: str, op_type: str, twice: bool) -> None:
    assert exponent_of(fused, kind, op_type, twice=twice) < MOST


@pytest.mark.parametrize("work", [simplified, onnx_fuse.explain, estimated], ids=lambda work: work.__name__)
@pytest.mark.parametrize(
    ("kind", "op_type"), [("floats", "Reshape"), ("floats", "If"), ("weights", "NotOr"), ("numbers", "Mul")]
)
def test_so_is_what_else_looks_at_it(work: Callable[[ModelProto], object], kind: str, op_type: str) -> None:
    assert exponent_of(work, kind, op_type, twice=True) < MOST


def test_every_storey_of_masks_is_found() -> None:
    """The towers reach what they are for: the mask of a diamond of Ands is one of its parts, taken once."""
    made = onnx_fuse.fuse(tower_of("weights", "And", 40, twice=True), verify=False)
    assert made.report.fused == {"HSTUHierarchicalAttention": 1}
    assert "And" in helpers.operators(made.model) or "mask" in {
        name for node in made.model.graph.node for name in node.input
    }


# -- contents that sizes do not bound ------------------------------------------------------------------------------------

BOMBS = {
    "filled": "r = ConstantOfShape <value = int64[1] {3}> (many) s = Add(r, r) y = Identity(x)",
    "expanded": "r = Expand(one, many) s = Add(r, r) y = Identity(x)",
    "tiled": "r = Tile(one, many) s = Add(r, r) y = Identity(x)",
    "counted": "r = Range(zero, most, step) s = Cast <to = 6> (r) y = Identity(x)",
    "doubled": "t0 = Shape(x) "
    + " ".join(f"t{storey + 1} = Concat <axis = 0> (t{storey}, t{storey})" for storey in range(40))
    + " y = Identity(x)",
    "in a function": "r = my.Fill(many) y = Identity(x)",
}
FILL = """<domain: "my", opset_import: ["" : 17]> Fill (n) => (s)
    { r = ConstantOfShape <value = int64[1] {3}> (n) s = Add(r, r) }"""
_LIMIT = 1 << 30


@pytest.mark.parametrize("bomb", BOMBS)
def test_shape_inference_takes_no_memory_for_contents(bomb: str) -> None:
    text = f"""(float[2] x) => (float[2] y) <int64[1] many = {{100000000000}}, int64[1] one = {{1}}, int64 zero = {{0}},
        int64 most = {{100000000000}}, int64 step = {{1}}> {{ {BOMBS[bomb]} }}"""
    made = helpers.model(text, functions=FILL if "my." in text else "")
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    assert {value.name for value in bounded_inference(made).graph.output} == {"y"}
    needed = memory.needed_bytes(made, made, {"x": (2,)})
    assert needed is None or needed > _LIMIT
    onnx_fuse.fuse(made, verify=False, simplify=True)
    assert (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) << 10 < _LIMIT


# -- shapes that double with each storey ----------------------------------------------------------------------------------

SHAPES = {
    "axes": "i{0} = Cast <to = 7> (v{0}) v{1} = Gather <axis = 0> (v{0}, i{0})",
    "symbols": "f{0} = Flatten <axis = 0> (v{0}) t{0} = Transpose(f{0}) m{0} = MatMul(t{0}, f{0}) v{1} = Flatten <axis = 0> (m{0})",
    "digits": "c{0} = Concat <axis = 1> (v{0}, v{0}) t{0} = Transpose(c{0}) v{1} = MatMul(c{0}, t{0})",
    "names": "p{0} = Slice(v{0}, one, end) v{1} = Concat <axis = 0> (v{0}, p{0}, v{0})",
    "numbers": "s{0} = Size(v{0}) q{0} = Mul(s{0}, s{0}) u{0} = Unsqueeze(q{0}, zero) v{1} = Expand(x, u{0})",
    "types": "v{1} = SequenceConstruct(v{0})",
}


def doubling(kind: str, height: int) -> ModelProto:
    body = " ".join(SHAPES[kind].format(storey, storey + 1) for storey in range(height))
    return helpers.model(
        f"""(float[a,b] x) => (float[c] z) <int64[1] zero = {{0}}, int64[1] one = {{1}}, int64[1] end = {{1000}}> {{
        v0 = Identity(x) {body} y = Identity(v{height}) z = my.Unknown(y) }}"""
    )


def looked_at(made: ModelProto) -> None:
    with contextlib.suppress(ModelError):
        simplified(made)
    with contextlib.suppress(ModelError):
        check(made, full=True)
    memory.needed_bytes(made, made, {"x": (2, 3)})


@pytest.mark.parametrize("kind", SHAPES)
def test_shapes_that_double_are_followed_in_little_memory_and_time(kind: str) -> None:
    """A fault takes all of the memory: the work is done in a process that has a limit."""
    looked_at(doubling(kind, 2))  # imports
    confined(lambda: looked_at(doubling(kind, 60)), memory=_LIMIT, seconds=90)


@pytest.mark.parametrize("kind", sorted(SHAPES.keys() - {"axes"}))  # the calls there are those of a process of its own
def test_the_work_on_them_is_linear(kind: str) -> None:
    counts: dict[int, int] = {}
    for height in (LOWEST, LOWEST, *HEIGHTS):
        made = doubling(kind, height)
        counts[height] = calls(lambda made=made: looked_at(made), 50 * CALLS_EACH * len(made.graph.node))  # type: ignore[misc]
    base = counts.pop(LOWEST)
    assert exponent({height - LOWEST: count - base for height, count in counts.items()}) < MOST


# -- terms of patterns that share what they are made of --------------------------------------------------------------------


def shared(height: int) -> terms.Term:
    term: terms.Term = terms.Op(("Relu",), (terms.Variable("x"),))
    for _ in range(height):
        term = terms.AnyOf((term, terms.Named(term, "n")))
    return term


def facts_of(term: terms.Term) -> None:
    set(term_facts.root_keys(term))
    term_facts.root_operands(terms.Op(("Add",), (term, terms.Variable("y"))))
    term_facts.size_of(term)
    term_facts.needed_keys(term)
    assert isinstance(term, terms.AnyOf)
    term_facts.choices(term, ("", "Mul"))


def test_facts_of_terms_that_are_shared_are_linear() -> None:
    counts = {height: calls(lambda height=height: facts_of(shared(height)), 10**6) for height in (20, 40, 80)}  # type: ignore[misc]
    assert exponent(counts) < MOST
    facts_of(shared(5_000))  # no recursion either


def test_an_example_that_is_deep_is_read_without_recursion() -> None:
    counts = {}
    for height in (40, 40, 80, 160, 400):  # the first time for imports and caches
        weights = " ".join(f"c{storey + 1} = Mul(c{storey}, c{storey})" for storey in range(height))
        steps = " ".join(f"v{storey + 1} = Mul(v{storey}, v{storey})" for storey in range(height))
        made = helpers.model(
            f"(float[b,4] x) => (float[b,4] y) <float[4] c0 = {{1,1,1,1}}> {{ v0 = Relu(x) {weights} {steps} "
            f"y = Mul(v{height}, c{height}) }}"
        )
        counts[height] = calls(lambda made=made: read(made, {"c0"}), 10**8)  # type: ignore[misc]
    assert exponent(counts) < MOST


# -- functions ------------------------------------------------------------------------------------------------------------


def calling(height: int) -> ModelProto:
    """Functions of which each calls the one below twice."""
    text = '<domain: "my", opset_import: ["" : 17]> F0 (a) => (b) { s = Sigmoid(a) b = Mul(a, s) }'
    for storey in range(height):
        header = f'<domain: "my", opset_import: ["" : 17, "my" : 1]> F{storey + 1} (a) => (b)'
        text += f"\n{header} {{ c = my.F{storey}(a) b = my.F{storey}(c) }}"
    return helpers.model(f"(float[2,4] x) => (float[2,4] y) {{ y = my.F{height}(x) }}", functions=text)


def test_functions_are_counted_and_not_gone_through_for_each_call() -> None:
    made = calling(60)
    assert count_inlined(calling(3)) == 16 and count_inlined(made) == 2**61
    assert onnx_fuse.fuse(made, enable=OPT_IN, verify=False).report.fused == {"FusedSwish": 1}
    assert memory.needed_bytes(made, made, {"x": (2, 4)}) > 0
    with pytest.raises(ModelError, match=r"With its functions inlined the model has 2.3e\+18 nodes"):
        inline_calls(made, lambda node: False)


def test_types_for_another_precision_are_not_asked_of_what_would_not_end() -> None:
    with pytest.raises(ModelError, match="types in the model cannot be told: its functions call each other too often"):
        precision.convert(calling(60), "float16")


def test_a_function_that_calls_itself_has_no_end() -> None:
    text = '<domain: "my", opset_import: ["" : 17, "my" : 1]> F (a) => (b) { b = my.F(a) }'
    assert count_inlined(helpers.model("(float[2] x) => (float[2] y) { y = my.F(x) }", functions=text)) == math.inf


def test_vectors_that_are_short_are_followed() -> None:
    made = helpers.model(
        "(float[2,6] x) => (float[a,b] y) { s = Shape(x) t = Concat <axis = 0> (s) y = Reshape(x, t) }"
    )
    (found,) = bounded_inference(made).graph.output
    assert [dim.dim_value for dim in found.type.tensor_type.shape.dim] == [2, 6]


def test_the_triangle_of_very_many_features_is_not_written_out() -> None:
    size = 1 << 30
    made = helpers.model(
        f"""(float[B,{size},4] x) => (float[B,3] y) {{ t = Transpose <perm = [0, 2, 1]> (x) z = MatMul(x, t)
        f = Reshape(z, flat) y = Gather <axis = 1> (f, places) }}""",
        weights={"flat": np.array([0, -1]), "places": np.array([1, 2, 5])},
    )
    assert calls(lambda: onnx_fuse.fuse(made, verify=False), 1_000_000) < 1_000_000


def test_a_body_on_very_long_inputs_is_checked_in_little_memory() -> None:
    size = 1 << 33
    made = helpers.model(
        f"""(float[1,{size},8] q, bool[1,{size}] keep) => (float[1,{size},8] y) {{ t = Transpose <perm = [0, 2, 1]> (q)
        s = MatMul(q, t) g = Sigmoid(s) w = Mul(s, g) n = Mul(w, less) y = MatMul(n, q) }}""",
        weights={"less": np.array(0.25, np.float32)},
    )
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    assert onnx_fuse.fuse(made, verify=False).report.fused == {"HSTUHierarchicalAttention": 1}
    assert (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) << 10 < _LIMIT
