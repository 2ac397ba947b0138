"""An optional part that one half of a match has and the other has not: the halves fuse apart, or not at all, and never wrongly."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from onnx import ModelProto

from tests import helpers
from tests.helpers import Array
from tests.trust import graphs

SEQUENCE = "SequenceRecommendationInteraction"
LEVELS = "HierarchicalSequenceFusion"
HSTU = "HSTUHierarchicalAttention"
EMBEDDING = "FusedEmbedLayerNorm"
_RANDOM = np.random.default_rng(7)

# -- outputs of one sequence ---------------------------------------------------------------------------------------------

SCORES = """column = Reshape(user, as_column)
    products = MatMul(items, column)
    dots = Reshape(products, as_row)
    scores = {}"""
LONG = """spots = Where(mask, positions, before)
    newest = ReduceMax <axes = [1]> (spots)
    age = Sub(newest, positions)
    wide_age = Cast <to = 1> (age)
    slowed = Mul(wide_age, minus_tenth)
    faded = Exp(slowed)
    halved = Mul(faded, half)
    factors = Add(halved, half)
    kept = Cast <to = 1> (mask)
    masked = Mul(kept, factors)
    {}
    row = Reshape(weights, as_line)
    pooled = MatMul(row, items)
    long = Reshape(pooled, as_vector)"""
SHORT = """ones = Cast <to = 7> (mask)
    later = CumSum <reverse = 1> (ones, axis)
    within = LessOrEqual(later, window)
    recent = And(mask, within)
    counted = Cast <to = 7> (recent)
    count = ReduceSum(counted, axes)
    ranks = Sub(count, later)
    wide_ranks = Cast <to = 1> (ranks)
    steps = Mul(wide_ranks, tenth)
    grown = Add(steps, one)
    short_kept = Cast <to = 1> (recent)
    short_weights = Mul(short_kept, grown)
    line = Reshape(short_weights, as_line)
    short_pooled = MatMul(line, items)
    short = Reshape(short_pooled, as_vector)"""
TOGETHER = """turned = Transpose <perm = [0, 2, 1]> (items)
    gram = MatMul(items, turned)
    cells = Cast <to = 1> (mask)
    down = Reshape(cells, as_column)
    across = Reshape(cells, as_line)
    by_row = Mul(gram, down)
    by_both = Mul(by_row, across)
    together = Mul(by_both, nearness)"""
PLAIN = "weights = Identity(masked)"
TIMED = "weights = Mul(masked, time)"
AVERAGED = (
    "sum = ReduceSum({}, axes)\nnone = Equal(sum, zero)\nratio = Div({}, sum)\n{}_mean = Where(none, zero, ratio)"
)
NUMBERS: dict[str, Any] = {
    "as_column": np.array([0, -1, 1]),
    "as_line": np.array([0, 1, -1]),
    "as_row": np.array([0, 6]),
    "as_vector": np.array([0, 4]),
    "positions": np.arange(6),
    "before": np.array(-1),
    "axis": np.array(1),
    "axes": np.array([1]),
    "window": np.array(2),
    "nearness": np.triu(np.exp(-0.2 * np.abs(np.arange(6) - np.arange(6)[:, None])), 1).astype(np.float32),
    **{
        name: np.array(number, np.float32)
        for name, number in {"minus_tenth": -0.1, "tenth": 0.1, "half": 0.5, "one": 1.0, "zero": 0.0}.items()
    },
}
SEQUENCE_INPUTS = "float[B,6,4] items, float[B,4] user, bool[B,6] mask, bool[B,6] other, float[B,6] time"
OUTPUTS = {
    "scores": "[B,6]",
    "long": "[B,4]",
    "long_mean": "[B,4]",
    "short": "[B,4]",
    "short_mean": "[B,4]",
    "together": "[B,6,6]",
}


def mean(name: str, weights: str) -> str:
    return AVERAGED.replace("ReduceSum({}", f"ReduceSum({weights}").replace("Div({}", f"Div({name}").replace("{}", name)


def sequence(body: str, *outputs: str) -> ModelProto:
    declared = ", ".join(f"float{OUTPUTS[name]} {name}" for name in outputs)
    weights = {name: array for name, array in NUMBERS.items() if name in body}
    return helpers.model(f"({SEQUENCE_INPUTS}) => ({declared}) {{ {body} }}", weights=weights)


MASKED = "shown = Cast <to = 1> ({})\ndots_kept = Mul(dots, shown)\nscores = Mul(dots_kept, time)"
SEQUENCES: dict[str, tuple[ModelProto, list[str]]] = {
    "scores and interest with one mask are one node": (
        sequence(SCORES.replace("scores = {}", MASKED.format("mask")) + "\n" + LONG.format(TIMED), "scores", "long"),
        ["scores,long_term"],
    ),
    "scores without a mask beside interest with one": (
        sequence(SCORES.format("Mul(dots, time)") + "\n" + LONG.format(TIMED), "scores", "long"),
        ["scores", "long_term"],
    ),
    "scores without a mask beside short interest with one": (
        sequence(SCORES.format("Mul(dots, time)") + "\n" + SHORT, "scores", "short"),
        ["scores", "short_term"],
    ),
    "scores without a mask beside products with one": (
        sequence(SCORES.format("Mul(dots, time)") + "\n" + TOGETHER, "scores", "together"),
        ["scores", "cooccurrence"],
    ),
    "scores with another mask than the interest": (
        sequence(SCORES.replace("scores = {}", MASKED.format("other")) + "\n" + LONG.format(TIMED), "scores", "long"),
        ["scores", "long_term"],
    ),
    "scores whose time weights stay outside beside interest without": (
        sequence(SCORES.replace("scores = {}", MASKED.format("mask")) + "\n" + LONG.format(PLAIN), "scores", "long"),
        ["scores,long_term"],
    ),
    "interest without time weights beside interest with them": (
        sequence(SHORT + "\n" + LONG.format(TIMED), "short", "long"),
        ["short_term", "long_term"],
    ),
    "one interest averaged and the other not": (
        sequence(SHORT + "\n" + mean("short", "short_weights") + "\n" + LONG.format(PLAIN), "short_mean", "long"),
        ["short_term", "long_term"],
    ),
    "both interests averaged are one node": (
        sequence(
            "\n".join([SHORT, mean("short", "short_weights"), LONG.format(PLAIN)])
            + "\n"
            + mean("long", "weights").replace("sum", "sum2").replace("none", "none2").replace("ratio", "ratio2"),
            "short_mean",
            "long_mean",
        ),
        ["short_term,long_term"],
    ),
}


@pytest.mark.parametrize("name", SEQUENCES)
def test_the_outputs_of_a_sequence(name: str) -> None:
    original, wanted = SEQUENCES[name]
    made = graphs.fused(original, [SEQUENCE])
    graphs.assert_equal(original, made.model, graphs.feeds_of(original, {"B": 3}, {"B": 1}, {"B": 2}))
    assert sorted(made.attributes(node)["outputs"] for node in made.nodes(SEQUENCE)) == sorted(wanted)


# -- levels of attention -------------------------------------------------------------------------------------------------


def two_levels(first: str = "Softmax <axis = -1> (a1)", shared: str = "Mul(o2, high)", keys: int = 6) -> ModelProto:
    """Attention in two runs of keys, as text."""
    weights: dict[str, Array] = {
        **{name: np.array([number]) for name, number in {"start": 0, "middle": 3, "end": 1 << 40, "two": 2}.items()},
        **{
            name: np.array(number, np.float32)
            for name, number in {
                "alpha": 0.5,
                "beta": 0.4,
                "low": 0.5,
                "high": 1.0,
                "share": 2 / 3,
                "drop": -1e9,
            }.items()
        },
        "heads": np.array([0, 0, 2, 4]),
        "flat": np.array([0, 0, 8]),
    }
    body = "\n".join(
        [
            *(f"{n}4 = Reshape({n}, heads)\n{n}h = Transpose <perm = [0, 2, 1, 3]> ({n}4)" for n in "qkv"),
            "k1 = Slice(kh, start, middle, two)\nk2 = Slice(kh, middle, end, two)",
            "v1 = Slice(vh, start, middle, two)\nv2 = Slice(vh, middle, end, two)",
            *(f"t{n} = Transpose <perm = [0, 1, 3, 2]> (k{n})\ns{n} = MatMul(qh, t{n})" for n in "12"),
            f"a1 = Mul(s1, alpha)\na2 = Mul(s2, beta)\nm1 = Where(mask, a1, drop)\np1 = {first}",
            "p2 = Softmax <axis = -1> (a2)\no1 = MatMul(p1, v1)\no2 = MatMul(p2, v2)",
            f"w1 = Mul(o1, low)\nw2 = {shared}\nsum = Add(w1, w2)\nmean = Mul(sum, share)",
            "moved = Transpose <perm = [0, 2, 1, 3]> (mean)\ny = Reshape(moved, flat)",
        ]
    )
    inputs = f"float[B,6,8] q, float[B,{keys},8] k, float[B,{keys},8] v, bool[B,1,6,3] mask"
    return helpers.model(f"({inputs}) => (float[B,6,8] y) {{ {body} }}", weights=weights)


@pytest.mark.parametrize(
    ("original", "count"),
    [
        (two_levels(), 1),
        (two_levels(shared="Identity(o2)"), 1),
        (two_levels(shared="Mul(o2, low)"), 0),
        (two_levels(first="Softmax <axis = -1> (m1)"), 0),
        (two_levels(first="Softmax <axis = -1> (s1)"), 0),
        (two_levels(keys=8), 0),
    ],
    ids=[
        "all alike",
        "one without its weight",
        "another weight",
        "one masked",
        "one unscaled",
        "more keys than queries",
    ],
)
def test_the_levels_of_attention(original: ModelProto, count: int) -> None:
    made = graphs.fused(original, [HSTU])
    graphs.assert_equal(original, made.model, graphs.feeds_of(original, {"B": 2}, {"B": 1}))
    assert len(made.nodes(HSTU)) == count


# -- levels of a hierarchy -----------------------------------------------------------------------------------------------


def hierarchy(
    *, before: str = "", after: str = "", pads: tuple[int, int] = (1, 1), second: str = "Mul(b2, half)"
) -> ModelProto:
    """Positions mixed with their levels and two windows, as text; the masks are those before and after the Softmax."""
    lines = ["levels = Transpose <perm = [1, 0]> (rows)\nproduct = MatMul(x, levels)"]
    lines += [f"scores = Where({before}, product, lowest)" if before else "scores = Identity(product)"]
    lines += ["soft = Softmax <axis = -1> (scores)"]
    lines += [f"weights = Where({after}, soft, zero)" if after else "weights = Identity(soft)"]
    lines += ["mixed = MatMul(weights, rows)\noverlap = Mul(mixed, x)\nmean = ReduceMean <axes = [-1]> (overlap)"]
    lines += ["gate = Sigmoid(mean)\nrest = Sub(one, gate)\na = Mul(gate, mixed)\nb = Mul(rest, x)\nbase = Add(a, b)"]
    lines += ["turned = Transpose <perm = [0, 2, 1]> (x)"]
    for number, counted in enumerate(pads, 1):
        width = 2 * number + 1
        settings = f"kernel_shape = [{width}], pads = [{number}, {number}], count_include_pad = {counted}"
        lines += [
            f"pool{number} = AveragePool <{settings}> (turned)\nb{number} = Transpose <perm = [0, 2, 1]> (pool{number})"
        ]
    lines += [f"w1 = Mul(b1, half)\nw2 = {second}\nwith1 = Add(base, w1)\ny = Add(with1, w2)"]
    weights = {
        "rows": _RANDOM.standard_normal((3, 8)).astype(np.float32),
        **{name: np.array(n, np.float32) for name, n in {"one": 1, "zero": 0, "half": 0.5, "lowest": -1e9}.items()},
    }
    declared = "float[B,S,8] x, bool[B,S,3] keep, bool[B,S,3] other"
    return helpers.model(f"({declared}) => (float[B,S,8] y) {{ {chr(10).join(lines)} }}", weights=weights)


@pytest.mark.parametrize(
    ("original", "windows"),
    [
        (hierarchy(), 2),
        (hierarchy(before="keep", after="keep"), 2),
        (hierarchy(second="Identity(b2)"), 2),
        (hierarchy(before="keep"), None),
        (hierarchy(after="keep"), None),
        (hierarchy(before="keep", after="other"), None),
        (hierarchy(pads=(1, 0)), 1),
    ],
    ids=[
        "no mask",
        "one mask twice",
        "one window without its weight",
        "scores masked and weights not",
        "weights masked and scores not",
        "two masks",
        "one window that counts its padding",
    ],
)
def test_the_levels_of_a_hierarchy(original: ModelProto, windows: int | None) -> None:
    made = graphs.fused(original, [LEVELS])
    graphs.assert_equal(original, made.model, graphs.feeds_of(original, {"B": 2, "S": 7}, {"B": 1, "S": 3}))
    found = [len(made.attributes(node)["windows"]) for node in made.nodes(LEVELS)]
    assert found == ([] if windows is None else [windows])


# -- tables of an embedding ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("steps", "count"),
    [
        ({}, 1),
        ({"inputs": {"spots": "int32[1,S]"}}, 1),
        ({"inputs": {"spots": "int64[B,S]"}}, 1),
        ({"second": "place = Identity(fixed)", "weights": {"fixed": graphs.drawn(1, 5, 8)}}, 1),
    ],
    ids=["all alike", "one of int32", "one without a batch of 1", "one looked up already"],
)
def test_the_tables_of_an_embedding(steps: dict[str, Any], count: int) -> None:
    original = graphs.build(EMBEDDING, **steps)
    made = graphs.fused(original, [EMBEDDING])
    graphs.assert_equal(original, made.model, graphs.feeds_of(original, {"B": 2, "S": 5}, {"B": 1, "S": 5}))
    assert len(made.nodes(EMBEDDING)) == count


# -- the rows of attention -----------------------------------------------------------------------------------------------

KEYS = """wide = Unsqueeze(lengths, last)
    present = Less(positions, wide)
    keys = Unsqueeze(present, middle)
    kept = Cast <to = 1> (keys)"""


def hstu(*, mask: str = "kept", rows: str = "lengths", look_back: bool = False) -> ModelProto:
    """HSTU attention of one head whose keys and rows may be masked by lengths, as text."""
    lines = [
        KEYS,
        "turned = Transpose <perm = [0, 2, 1]> (k)\nproduct = MatMul(q, turned)\ngate = Sigmoid(product)",
        "silu = Mul(product, gate)",
        "seen = Where(triangle, silu, zero)" if look_back else "seen = Identity(silu)",
        f"masked = Mul(seen, {mask})" if mask else "masked = Identity(seen)",
        "divided = Mul(masked, sixth)\nout = MatMul(divided, v)",
        f"bounds = Unsqueeze({rows or 'lengths'}, last)\nhere = Less(positions, bounds)",
        "column = Unsqueeze(here, last)\nweight = Cast <to = 1> (column)",
        "y = Mul(out, weight)" if rows else "y = Identity(out)",
    ]
    weights = {
        "positions": np.arange(6),
        "last": np.array([-1]),
        "middle": np.array([1]),
        "triangle": np.tril(np.ones((6, 6), bool)),
        "zero": np.array(0, np.float32),
        "sixth": np.array(1 / 6, np.float32),
    }
    declared = "float[B,6,4] q, float[B,6,4] k, float[B,6,4] v, int64[B] lengths, int64[B] others"
    return helpers.model(f"({declared}) => (float[B,6,4] y) {{ {chr(10).join(lines)} }}", weights=weights)


@pytest.mark.parametrize(
    ("original", "inputs"),
    [
        (hstu(), "q,k,v,lengths"),
        (hstu(rows=""), "q,k,v,mask"),
        (hstu(mask="", look_back=True), "q,k,v,lengths"),
        (hstu(mask="", rows="", look_back=True), "q,k,v"),
        (hstu(mask=""), "q,k,v"),
        (hstu(rows="others"), "q,k,v,mask"),
    ],
    ids=[
        "keys and rows",
        "keys alone",
        "rows that look back",
        "neither",
        "rows alone",
        "keys and rows of other lengths",
    ],
)
def test_the_keys_and_rows_of_lengths(original: ModelProto, inputs: str) -> None:
    made = graphs.fused(original, [HSTU])
    lengths = [np.array([6, 2, 0]), np.array([1, 3, 5])]
    for one, other in (lengths, lengths[::-1]):
        graphs.assert_equal(original, made.model, graphs.feeds_of(original, {"B": 3}, lengths=one, others=other))
    assert [made.attributes(node)["inputs"] for node in made.nodes(HSTU)] == [inputs]
