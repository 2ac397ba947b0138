"""Steps between scores, Softmax and value, in any order: they come to one scale, one bias and one mask, or are refused by name."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from tests.helpers import Array
from tests.patterns.test_attention_layer_norm import CORE, OPERANDS, attention, drawn, fused, refused, same

B, S = 2, 4
STATIC = dict.fromkeys(("q", "k", "v"), f"[B,{S},8]")
FULL, KEYS, ROWS = "[B,1,S,S]", "[B,1,1,S]", "[B,1,S,1]"
WEIGHTS: dict[str, Array] = {
    "per_head": drawn(1, 2, 1, 1, centre=1.0),
    "wide_lowest": np.array(-3e38, np.float32),
    "billion": np.array(-1e9, np.float32),
    "tenthousands": np.array(1e4, np.float32),
    "tiny": np.array(1e-13, np.float32),
    "hundredth": np.array(0.01, np.float32),
    "zero_int": np.array(0),
    "last_axis": np.array([-1]),
    "constant_mask": np.tril(np.ones((1, 1, S, S), np.float32)),
    "constant_bias": drawn(1, 2, 1, 1),
    "low_bias": np.where(np.tril(np.ones((1, 1, S, S))), 0.0, np.float32(-3.4028235e38)).astype(np.float32),
    "ones_and_two": np.array([[[[1.0, 0.0, 1.0, 2.0]]]], np.float32),
}


def keeping(shape: tuple[int, ...], *, empty_row: bool = True) -> Array:
    """A mask that keeps some, and in one row of the last batch nothing."""
    mask = np.random.default_rng(3).random(shape) < 0.6
    mask[..., 0] = True
    if empty_row:
        mask[-1, :, -1] = False
    return mask


def given(inputs: dict[str, str], lowest: float) -> dict[str, Array]:
    """Values for the inputs of a case: bool masks with an empty row, int masks of 0 and 1, biases with `lowest` in them."""
    sizes = {"B": B, "S": S, "1": 1, "2": 2}
    values: dict[str, Array] = {}
    for name, text in inputs.items():
        kind, dims = text[:-1].split("[")
        shape = tuple(sizes[dim] for dim in dims.split(","))
        if kind in ("bool", "int64"):
            values[name] = keeping(shape).astype(kind)
        elif name.startswith("m"):
            values[name] = np.where(keeping(shape), 0.0, lowest).astype(np.float32)
        else:
            values[name] = drawn(*shape, centre=1.0)
    return values


# name -> (inputs besides query, key and value; steps; inputs of the node besides query, key and value)
TWICE = "once = Where(a, {}, VALUE)\nmasked = Where(b, once, VALUE)"
FUSES: dict[str, tuple[dict[str, str], dict[str, str], tuple[str, ...]]] = {
    "scale after the bias": ({"m": KEYS}, {"scale": "", "mask": "n = Add({}, m)\nmasked = Mul(n, half)"}, ("attention_bias",)),
    "divided after the bias": ({"m": FULL}, {"scale": "", "mask": "n = Add(m, {})\nmasked = Div(n, four)"}, ("attention_bias",)),
    "scale before and after the bias": ({"m": KEYS}, {"mask": "n = Add({}, m)\nmasked = Mul(n, two)"}, ("attention_bias",)),
    "scale after the mask": ({"a": "bool" + FULL}, {"scale": "", "mask": "n = Where(a, {}, tenthousand)\nmasked = Mul(n, half)"}, ("mask",)),
    "scale after an endless mask": ({"a": "bool" + KEYS}, {"scale": "", "mask": "n = Where(a, {}, infinity)\nmasked = Mul(n, half)"}, ("mask",)),
    "bias subtracted": ({"c": FULL}, {"mask": "masked = Sub({}, c)"}, ("attention_bias",)),
    "two masks of one value": ({"a": "bool" + FULL, "b": "bool" + KEYS}, {"mask": TWICE.replace("VALUE", "tenthousand")}, ("mask",)),
    "two endless masks": ({"a": "bool" + FULL, "b": "bool" + KEYS}, {"mask": TWICE.replace("VALUE", "infinity")}, ("mask",)),
    "two masks, one turned": ({"a": "bool" + FULL, "b": "bool" + KEYS}, {"mask": "n = Where(a, infinity, {})\nmasked = Where(b, n, infinity)"}, ("mask",)),
    "two masks of two values": ({"a": "bool" + FULL, "b": "bool" + KEYS}, {"mask": "n = Where(a, {}, infinity)\nmasked = Where(b, n, tenthousand)"}, ("attention_bias", "mask")),
    "bias after a low mask": ({"a": "bool" + FULL, "m": KEYS}, {"mask": "n = Where(a, {}, lowest)\nmasked = Add(n, m)"}, ("attention_bias",)),
    "bias after an endless mask": ({"a": "bool" + FULL, "m": KEYS}, {"mask": "n = Where(a, {}, infinity)\nmasked = Add(n, m)"}, ("attention_bias", "mask")),
    "bias, mask and bias": ({"a": "bool" + FULL, "m": KEYS, "c": "[1,2,S,S]"}, {"mask": "x1 = Add({}, c)\nx2 = Where(a, x1, wide_lowest)\nmasked = Add(x2, m)"}, ("attention_bias",)),
    "bias, mask, scale, bias, mask": (
        {"a": "bool" + FULL, "b": "bool" + KEYS, "m": KEYS, "c": "[1,2,S,S]"},
        {"mask": "x1 = Add({}, c)\nx2 = Where(a, x1, infinity)\nx3 = Mul(x2, half)\nx4 = Add(x3, m)\nmasked = Where(b, x4, infinity)"},
        ("attention_bias", "mask"),
    ),
    "products": ({"a": "bool" + FULL}, {"mask": "f = Cast <to = 1> (a)\nd = Sub(one, f)\nn = Mul(d, lowest)\ns = Mul({}, f)\nmasked = Add(s, n)"}, ("mask",)),
    "products with Not": ({"a": "bool" + KEYS}, {"mask": "f = Cast <to = 1> (a)\nt = Not(a)\nd = Cast <to = 1> (t)\nn = Mul(d, tenthousand)\ns = Mul({}, f)\nmasked = Add(n, s)"}, ("mask",)),
    "products subtracted": ({"a": "bool" + FULL}, {"mask": "f = Cast <to = 1> (a)\nd = Sub(one, f)\nn = Mul(tenthousands, d)\ns = Mul(f, {})\nmasked = Sub(s, n)"}, ("mask",)),
    "products with f - 1": ({"a": "bool" + FULL}, {"mask": "f = Cast <to = 1> (a)\nd = Sub(f, one)\nn = Mul(tenthousands, d)\ns = Mul(f, {})\nmasked = Add(s, n)"}, ("mask",)),
    "products of a comparison": ({"i": "int64" + KEYS}, {"mask": "e = Equal(i, zero_int)\np = Not(e)\nf = Cast <to = 1> (p)\nd = Cast <to = 1> (e)\nn = Mul(d, lowest)\ns = Mul({}, f)\nmasked = Add(s, n)"}, ("mask",)),
    "products beside a known bias": ({"a": "bool" + FULL}, {"mask": "e = Add({}, constant_bias)\nf = Cast <to = 1> (a)\nd = Sub(one, f)\nn = Mul(d, lowest)\ns = Mul(e, f)\nmasked = Add(s, n)"}, ("attention_bias", "mask")),
    "a learnt scale of each head": ({}, {"scale": "scaled = Mul({}, per_head)"}, ()),
    "a given scale of each head": ({"h": "[1,2,1,1]"}, {"scale": "scaled = Mul(h, {})"}, ()),
    "a given temperature": ({"h": "[1]"}, {"scale": "scaled = Div({}, h)"}, ()),
    "a scale of each query": ({"h": ROWS}, {"scale": "scaled = Mul({}, h)"}, ()),
    "a scale of each key": ({"h": KEYS}, {"scale": "scaled = Mul({}, h)"}, ()),
    "a divisor of each key": ({"h": KEYS}, {"scale": "scaled = Div({}, h)"}, ()),
    "a scale of each head after the bias": ({"m": KEYS}, {"scale": "", "mask": "n = Add({}, m)\nmasked = Mul(n, per_head)"}, ("attention_bias",)),
    "weights set to 0 again": ({"a": "bool" + FULL}, {"mask": "masked = Where(a, {}, infinity)", "guard": "guarded = Where(a, probabilities, zero)"}, ("mask",)),
    "weights set to 0 again, turned": ({"a": "bool" + FULL}, {"mask": "masked = Where(a, infinity, {})", "guard": "guarded = Where(a, zero, probabilities)"}, ("mask",)),
    "weights set to 0 again by Not": ({"a": "bool" + FULL}, {"mask": "d = Not(a)\nmasked = Where(d, lowest, {})", "guard": "guarded = Where(a, probabilities, zero)"}, ("mask",)),
    "weights set to 0 again, computed twice": ({"i": "int64" + FULL}, {"mask": "d = Equal(i, zero_int)\nmasked = Where(d, infinity, {})", "guard": "e = Equal(i, zero_int)\nguarded = Where(e, zero, probabilities)"}, ("mask",)),
    "weights set to 0 again beside a known bias": ({"a": "bool" + FULL}, {"mask": "n = Add({}, constant_bias)\nmasked = Where(a, n, infinity)", "guard": "guarded = Where(a, probabilities, zero)"}, ("attention_bias", "mask")),
    "weights times the mask": ({"a": "bool" + FULL}, {"mask": "masked = Where(a, {}, lowest)", "guard": "f = Cast <to = 1> (a)\nguarded = Mul(probabilities, f)"}, ("mask",)),
    "weights times the mask beside a known bias": ({"a": "bool" + FULL}, {"mask": "n = Add({}, constant_bias)\nmasked = Where(a, n, lowest)", "guard": "f = Cast <to = 1> (a)\nguarded = Mul(probabilities, f)"}, ("attention_bias", "mask")),
    "weights times the endless mask": ({"a": "bool" + FULL}, {"mask": "masked = Where(a, {}, infinity)", "guard": "f = Cast <to = 1> (a)\nguarded = Mul(f, probabilities)"}, ("mask",)),
    "weights times numbers that nobody knows": ({"i": "int64" + KEYS}, {"mask": "d = Equal(i, zero_int)\nmasked = Where(d, lowest, {})", "guard": "f = Cast <to = 1> (i)\nguarded = Mul(probabilities, f)"}, ("mask",)),
    "weights times a factor of each key": ({"c": KEYS}, {"guard": "guarded = Mul(probabilities, c)"}, ()),
    "weights times a factor of each head": ({}, {"guard": "guarded = Mul(probabilities, per_head)"}, ()),
    "weights times two factors": ({"c": KEYS}, {"guard": "g = Mul(probabilities, c)\nguarded = Mul(g, per_head)"}, ()),
    "weights masked and divided by their sum": (
        {"a": "bool" + FULL},
        {"mask": "masked = Where(a, {}, lowest)", "guard": "f = Cast <to = 1> (a)\ng = Mul(probabilities, f)\nt = ReduceSum(g, last_axis)\nguarded = Div(g, t)"},
        ("mask",),
    ),
    "weights masked and divided by their sum and a bit": (
        {"a": "bool" + FULL},
        {"mask": "masked = Where(a, {}, lowest)", "guard": "f = Cast <to = 1> (a)\ng = Mul(probabilities, f)\nt = ReduceSum(g, last_axis)\nu = Add(t, tiny)\nguarded = Div(g, u)"},
        ("mask",),
    ),
    "weights set to 0 and divided by at least a bit": (
        {"a": "bool" + FULL},
        {"mask": "masked = Where(a, {}, infinity)", "guard": "g = Where(a, probabilities, zero)\nt = ReduceSum(g, last_axis)\nu = Max(t, tiny)\nguarded = Div(g, u)"},
        ("mask",),
    ),
}  # fmt: skip


@pytest.mark.parametrize(("inputs", "steps", "taken"), FUSES.values(), ids=FUSES)
def test_any_order_that_the_operator_can_say_is_one_node(
    inputs: dict[str, str], steps: dict[str, Any], taken: tuple[str, ...]
) -> None:
    original = attention(inputs=inputs, weights=WEIGHTS, **{**CORE, **steps})
    found = fused(original)
    assert found.record.inputs == (*OPERANDS, *taken)
    for lowest in (-np.inf, -3.4028235e38, -2.0):
        values = given(inputs, lowest)
        same(original, found.model, B=B, S=S, **values)
        # Scores far from 0: what is put in place of some must be lower still, or it shows.
        far = {name: 30 * drawn(B, S, 8) for name in ("q", "k")}
        same(original, found.model, 1e-4, **far, v=drawn(B, S, 8), **values)
    same(
        original,
        found.model,
        B=1,
        S=1,
        **{
            name: array[:1, ..., :1]
            for name, array in given(inputs, -2.0).items()
            if array.shape[-1] == S and array.shape[-2] == 1
        },
    )


def test_values_of_a_mask_that_nobody_knows_count() -> None:
    inputs, steps, _ = FUSES["weights times numbers that nobody knows"]
    original = attention(inputs=inputs, weights=WEIGHTS, **{**CORE, **steps})
    found = fused(original)
    assert found.attributes["layout"] == "BSH"
    same(original, found.model, B=B, S=S, i=np.array([[[[0, 3, -2, 1]]], [[[0, 0, 0, 0]]]]))


def test_a_padded_row_is_zero_only_where_the_graph_says_so() -> None:
    inputs, steps, _ = FUSES["weights set to 0 again"]
    original = attention(inputs=inputs, weights=WEIGHTS, **{**CORE, **steps})
    found = fused(original)
    assert found.attributes["masked_row"] == "zero"
    values = given(inputs, 0.0)
    assert not same(original, found.model, B=B, S=S, **values)[0][-1, -1].any()


# name -> (inputs, steps, what the sentence says, the node it names)
REFUSED: dict[str, tuple[dict[str, str], dict[str, str], str, str]] = {
    "bias after a mask that is not low": ({"a": "bool" + FULL, "m": KEYS}, {"mask": "n = Where(a, {}, tenthousand)\nmasked = Add(n, m)"}, "adds m to scores that Where_n has masked with -10000", "Add_masked"),
    "bias after a mask of a billion": ({"a": "bool" + FULL, "m": KEYS}, {"mask": "n = Where(a, {}, billion)\nmasked = Add(n, m)"}, "with -1e+09", "Add_masked"),
    "bias subtracted after a mask that is not low": ({"a": "bool" + FULL, "c": KEYS}, {"mask": "n = Where(a, {}, tenthousand)\nmasked = Sub(n, c)"}, "adds c to scores", "Sub_masked"),
    "two masks of two values": ({"a": "bool" + FULL, "b": "bool" + KEYS}, {"mask": "n = Where(a, {}, tenthousand)\nmasked = Where(b, n, infinity)"}, "masks with -inf what Where_n has masked with -10000", "Where_masked"),
    "a mask after a mask and a bias": ({"a": "bool" + FULL, "b": "bool" + KEYS, "m": KEYS}, {"mask": "n = Where(a, {}, lowest)\nl = Add(n, m)\nmasked = Where(b, l, infinity)"}, "masks with -inf what Where_n has masked before a bias was added", "Where_masked"),
    "a factor of each pair": ({"c": FULL}, {"mask": "masked = Mul({}, c)"}, "multiplies the scores by c, of shape [B, 1, S, S]", "Mul_masked"),
    "a factor of masked scores": ({"a": "bool" + FULL}, {"mask": "n = Where(a, {}, lowest)\nmasked = Mul(n, per_head)"}, "multiplies the scores by per_head after Where_n has masked them", "Mul_masked"),
    "products of a mask that may hold anything": ({"c": FULL}, {"mask": "d = Sub(one, c)\nn = Mul(d, lowest)\ns = Mul({}, c)\nmasked = Add(s, n)"}, "multiplies the scores by c", "Mul_s"),
    "products of two masks": ({"a": "bool" + FULL, "b": "bool" + FULL}, {"mask": "f = Cast <to = 1> (a)\ng = Cast <to = 1> (b)\nd = Sub(one, g)\nn = Mul(d, lowest)\ns = Mul({}, f)\nmasked = Add(s, n)"}, "multiplies the scores by f", "Mul_s"),
    "products of a mask and itself": ({"a": "bool" + FULL}, {"mask": "f = Cast <to = 1> (a)\nn = Mul(f, lowest)\ns = Mul({}, f)\nmasked = Add(s, n)"}, "multiplies the scores by f", "Mul_s"),
    "products with numbers cast from int": ({"i": "int64" + FULL}, {"mask": "f = Cast <to = 1> (i)\nd = Sub(one, f)\nn = Mul(d, lowest)\ns = Mul({}, f)\nmasked = Add(s, n)"}, "multiplies the scores by f", "Mul_s"),
    "weights set to 0 by another mask": ({"a": "bool" + FULL, "b": "bool" + FULL}, {"mask": "masked = Where(a, {}, infinity)", "guard": "guarded = Where(b, probabilities, zero)"}, "set to 0 at Where_guarded by b, which is not the mask", "Where_guarded"),
    "weights set to 0 where they are kept": ({"a": "bool" + FULL}, {"mask": "masked = Where(a, {}, infinity)", "guard": "guarded = Where(a, zero, probabilities)"}, "which is not the mask", "Where_guarded"),
    "weights set to 0 after a mask that is not low": ({"a": "bool" + FULL}, {"mask": "masked = Where(a, {}, tenthousand)", "guard": "guarded = Where(a, probabilities, zero)"}, "which is not the mask", "Where_guarded"),
    "weights set to 0 without a mask before": ({"a": "bool" + FULL}, {"guard": "guarded = Where(a, probabilities, zero)"}, "which is not the mask", "Where_guarded"),
    "weights set to 0 beside a bias that may be endless": ({"a": "bool" + FULL, "m": FULL}, {"mask": "n = Add({}, m)\nmasked = Where(a, n, infinity)", "guard": "guarded = Where(a, probabilities, zero)"}, "which is not the mask", "Where_guarded"),
    "weights set to 0 beside a bias that may be as low as the mask": ({"a": "bool" + FULL, "m": KEYS}, {"mask": "n = Add({}, m)\nmasked = Where(a, n, lowest)", "guard": "guarded = Where(a, probabilities, zero)"}, "a bias beside it that may be as low", "Where_guarded"),
    "weights set to 0 beside a known bias that is as low as the mask": ({"a": f"bool[B,1,{S},{S}]", **STATIC}, {"mask": "n = Add({}, low_bias)\nmasked = Where(a, n, lowest)", "guard": "guarded = Where(a, probabilities, zero)"}, "a bias beside it that may be as low", "Where_guarded"),
    "weights times the mask beside a bias that may be as low": ({"a": "bool" + FULL, "m": KEYS}, {"mask": "n = Add({}, m)\nmasked = Where(a, n, lowest)", "guard": "f = Cast <to = 1> (a)\nguarded = Mul(probabilities, f)"}, "multiplied by f", "Mul_guarded"),
    "weights divided by their sum beside a bias that may be as low": ({"a": "bool" + FULL, "m": KEYS}, {"mask": "n = Add({}, m)\nmasked = Where(a, n, lowest)", "guard": "f = Cast <to = 1> (a)\ng = Mul(probabilities, f)\nt = ReduceSum(g, last_axis)\nu = Add(t, tiny)\nguarded = Div(g, u)"}, "divided by u at Div_guarded", "Div_guarded"),
    "products of what an endless mask made": ({"a": "bool" + FULL, "b": "bool" + KEYS}, {"mask": "e = Where(b, {}, infinity)\nf = Cast <to = 1> (a)\nd = Sub(one, f)\nn = Mul(d, lowest)\ns = Mul(e, f)\nmasked = Add(s, n)"}, "NaN where the scores are -inf, as Where_e", "Add_masked"),
    "products beside a bias that may be endless": ({"a": "bool" + FULL, "m": KEYS}, {"mask": "e = Add({}, m)\nf = Cast <to = 1> (a)\nd = Sub(one, f)\nn = Mul(d, lowest)\ns = Mul(e, f)\nmasked = Add(s, n)"}, "NaN where the scores are -inf, as the bias m", "Add_masked"),
    "products with numbers of which the mask was made": ({"c": FULL}, {"mask": "b = Cast <to = 9> (c)\nf = Cast <to = 1> (b)\nd = Sub(c, one)\nn = Mul(d, tenthousands)\ns = Mul({}, f)\nmasked = Add(s, n)"}, "multiplies the scores by f", "Mul_s"),
    "weights set to 1": ({"a": "bool" + FULL}, {"mask": "masked = Where(a, {}, infinity)", "guard": "guarded = Where(a, probabilities, one)"}, "replaced by one at Where_guarded", "Where_guarded"),
    "weights times a float mask": ({"c": FULL}, {"guard": "guarded = Mul(probabilities, c)"}, "multiplied by c [B, 1, S, S] at Mul_guarded", "Mul_guarded"),
    "weights times a factor of each query": ({"c": ROWS}, {"guard": "guarded = Mul(probabilities, c)"}, "multiplied by c [B, 1, S, 1] at Mul_guarded", "Mul_guarded"),
    "weights times another mask": ({"a": "bool" + FULL, "b": "bool" + FULL}, {"mask": "masked = Where(a, {}, lowest)", "guard": "f = Cast <to = 1> (b)\nguarded = Mul(probabilities, f)"}, "multiplied by f", "Mul_guarded"),
    "weights divided by their sum without a mask before": ({"a": "bool" + FULL}, {"guard": "f = Cast <to = 1> (a)\ng = Mul(probabilities, f)\nt = ReduceSum(g, last_axis)\nguarded = Div(g, t)"}, "divided by t at Div_guarded", "Div_guarded"),
    "weights divided by more than their sum": ({"a": "bool" + FULL}, {"mask": "masked = Where(a, {}, lowest)", "guard": "f = Cast <to = 1> (a)\ng = Mul(probabilities, f)\nt = ReduceSum(g, last_axis)\nu = Add(t, hundredth)\nguarded = Div(g, u)"}, "divided by u at Div_guarded", "Div_guarded"),
    "weights divided by the sum of others": ({"a": "bool" + FULL}, {"mask": "masked = Where(a, {}, lowest)", "guard": "f = Cast <to = 1> (a)\ng = Mul(probabilities, f)\nt = ReduceSum(probabilities, last_axis)\nguarded = Div(g, t)"}, "divided by t at Div_guarded", "Div_guarded"),
}  # fmt: skip


@pytest.mark.parametrize(("inputs", "steps", "sentence", "named"), REFUSED.values(), ids=REFUSED)
def test_what_the_operator_cannot_say_is_refused_by_name(
    inputs: dict[str, str], steps: dict[str, Any], sentence: str, named: str
) -> None:
    reasons = refused(attention(inputs=inputs, weights=WEIGHTS, **{**CORE, **steps}))
    assert len(reasons) == 1, reasons
    assert sentence in reasons[0] and named in reasons[0], reasons


@pytest.mark.parametrize("lowest", ["lowest", "tenthousand"])
def test_in_float16_no_finite_mask_is_low_enough_to_be_added(lowest: str) -> None:
    inputs = {"a": "bool" + FULL, "m": KEYS}
    low = {"lowest": np.array(-65504.0, np.float32)}
    steps = {"mask": f"n = Where(a, {{}}, {lowest})\nmasked = Add(n, m)"}
    reasons = refused(attention(inputs=inputs, weights=low, dtype="float16", **{**CORE, **steps}))
    assert len(reasons) == 1 and "adds m to scores that Where_n has masked" in reasons[0]


def test_scores_that_something_else_reads_stay() -> None:
    steps = {"scale": "", "mask": "n = Add({}, m)\nmasked = Mul(n, half)"}
    reasons = refused(attention(inputs={"m": KEYS}, outputs={"n": "[B,2,S,S]"}, **{**CORE, **steps}))
    assert len(reasons) == 1 and "n is a graph output" in reasons[0]
