"""Each fusion on the inputs that go wrong first: padding on every side, rows with nothing to look at, length and batch of
one, numbers at the ends of float16."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
from onnx import ModelProto, numpy_helper

from tests import helpers
from tests.helpers import Array
from tests.trust import graphs
from tests.trust.graphs import ATTENTION, DECOMPOSED_RMS, EMBEDDING, GUARD, LOWEST, SKIP, SWISH, build

LENGTHS = (1, 2, 7)
BATCHES = (1, 3)
LOWS = {"infinity": -np.inf, "tenthousand": -1e4, "lowest": LOWEST}
FORMS = {
    "bias for keys": ("[B,1,1,S]", "masked = Add({}, m)"),
    "bias for pairs": ("[B,1,S,S]", "masked = Add(m, {})"),
    "keep keys": ("bool[B,1,1,S]", "masked = Where(m, {}, LOW)"),
    "keep pairs": ("bool[B,1,S,S]", "masked = Where(m, {}, LOW)"),
    "drop keys": ("bool[B,1,1,S]", "masked = Where(m, LOW, {})"),
    "drop pairs of heads": ("bool[B,2,S,S]", "masked = Where(m, LOW, {})"),
}
PADDINGS = ("none", "left", "right", "inner", "all", "all of one", "causal", "anti-causal")


def kept(padding: str, shape: tuple[int, ...]) -> Array:
    """What may be looked at, [B, h, Sq or 1, Sk]: each row of the batch has another amount of padding."""
    batch, _, rows, length = shape
    keep = np.ones(shape, bool)
    for row in range(batch):
        some = min(length - 1, row + 1)
        if padding == "left":
            keep[row, ..., :some] = False
        elif padding == "right":
            keep[row, ..., length - some :] = False
        elif padding == "inner":
            keep[row, ..., length // 3 : length // 3 + some] = length <= 2
    if padding == "all":
        keep[:] = False
    elif padding == "all of one":
        keep[-1, ..., -1 if rows > 1 else 0, :] = False
    elif padding == "causal" and rows > 1:
        keep &= np.tri(rows, length, dtype=bool)
    elif padding == "anti-causal" and rows > 1:
        keep &= ~np.tri(rows, length, dtype=bool)  # the last row has nothing left
    return keep


def masked_feeds(model: ModelProto, form: str, low: float, factor: float = 1.0) -> list[dict[str, Array]]:
    """Inputs for every padding, length and batch."""
    shape = FORMS[form][0]
    feeds = []
    for padding, length, batch in itertools.product(PADDINGS, LENGTHS, BATCHES):
        given = helpers.feeds(model, length, B=batch, S=length)
        given = {
            name: (array * factor).astype(array.dtype) if array.dtype.kind == "f" else array
            for name, array in given.items()
        }
        keep = kept(padding, (batch, 2 if "heads" in form else 1, 1 if "1,1,S" in shape else length, length))
        if "bool" in shape:
            given["m"] = ~keep if "drop" in form else keep
        else:
            given["m"] = np.where(keep, 0.0, low).astype(given["q"].dtype)
        feeds.append(given)
    return feeds


@pytest.mark.parametrize("guarded", [False, True], ids=["bare", "guarded"])
@pytest.mark.parametrize("low", LOWS)
@pytest.mark.parametrize("form", FORMS)
def test_attention_under_every_mask(form: str, low: str, guarded: bool) -> None:
    shape, text = FORMS[form]
    original = build(ATTENTION, inputs={"m": shape}, mask=text.replace("LOW", low), guard=GUARD if guarded else "")
    result = graphs.fused(original, [ATTENTION])
    (node,) = result.nodes(ATTENTION)
    inputs, attributes = result.inputs(node), result.attributes(node)
    assert ("attention_bias" if "bias" in form else "mask") in inputs
    undefined = "bias" in form or np.isinf(LOWS[low])
    assert attributes["masked_row"] == ("zero" if guarded else "nan" if undefined else "uniform")
    wants = graphs.assert_equal(original, result.model, masked_feeds(original, form, LOWS[low]))
    # A row with nothing to look at is NaN, unless somebody looked after it.
    nans = any(np.isnan(want[0]).any() for want in wants)
    assert nans == (low == "infinity" and not guarded)


CAUSAL = {
    "a constant triangle, kept": ({"seen": np.tri(7, dtype=bool)[None, None]}, "masked = Where(seen, {}, infinity)"),
    "a constant triangle, dropped": (
        {"unseen": ~np.tri(7, dtype=bool)[None, None]},
        "masked = Where(unseen, lowest, {})",
    ),
    "a constant bias": (
        {"unseen": np.where(np.tri(7, dtype=bool), 0, -1e4).astype(np.float32)},
        "masked = Add({}, unseen)",
    ),
    "a triangle and padding": (
        {"seen": np.tri(7, dtype=bool)[None, None]},
        "both = And(m, seen)\nmasked = Where(both, {}, infinity)",
    ),
    "a triangle and a bias": (
        {"seen": np.tri(7, dtype=bool)[None, None]},
        "causal = Where(seen, {}, lowest)\nmasked = Add(causal, b)",
    ),
}


@pytest.mark.parametrize(("weights", "text"), CAUSAL.values(), ids=CAUSAL)
def test_attention_that_looks_back(weights: dict[str, Array], text: str) -> None:
    inputs = {**dict.fromkeys("qkvx", "[B,7,8]"), "m": "bool[B,1,1,7]", "b": "[B,1,1,7]"}
    original = build(ATTENTION, inputs=inputs, weights=weights, mask=text)
    result = graphs.fused(original, [ATTENTION])
    if "b" not in {value.name for value in original.graph.input}:
        assert result.report.fused == {ATTENTION: 1}
    feeds = []
    for padding, batch in itertools.product(PADDINGS, BATCHES):
        given = helpers.feeds(original, B=batch)
        keep = kept(padding, (batch, 1, 1, 7))
        given.update({name: {"m": keep, "b": np.where(keep, 0, LOWEST / 2).astype(np.float32)}[name] for name in "mb" if name in given})  # fmt: skip
        feeds.append(given)
    graphs.assert_equal(original, result.model, feeds)


@pytest.mark.parametrize("padded", [False, True], ids=["causal", "causal and masked"])
def test_onnx_attention_that_looks_back(padded: bool) -> None:
    original = build(
        ATTENTION,
        opset=23,
        inputs={**dict.fromkeys("qkv", "[B,2,S,4]"), "m": "bool[B,1,S,S]"},
        **dict.fromkeys(("query", "key", "value", "product", "scale", "softmax"), ""),
        context=f"context = Attention <is_causal = 1> (q, k, v{', m' if padded else ''})",
    )
    result = graphs.fused(original, [ATTENTION])
    (node,) = result.nodes(ATTENTION)
    assert result.attributes(node)["causal"] == "upper_left"
    feeds = []
    for padding, length, batch in itertools.product(("none", "right", "inner"), LENGTHS, BATCHES):
        given = helpers.feeds(original, length, B=batch, S=length)
        if padded:
            # Every row keeps itself: what ONNX Runtime makes of rows without anything is not what ONNX says.
            given["m"] = kept(padding, (batch, 1, length, length)) | np.eye(length, dtype=bool)
        feeds.append(given)
    graphs.assert_equal(original, result.model, feeds)


# -- float16 ------------------------------------------------------------------------------------------------------------


def widened(model: ModelProto, exact: ModelProto) -> ModelProto:
    """`exact`, the same graph in double precision, with the constants of the float16 `model`."""
    arrays = {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
    for tensor in exact.graph.initializer:
        array = arrays[tensor.name]
        wide = array.astype(np.float64) if array.dtype == np.float16 else array
        tensor.CopyFrom(numpy_helper.from_array(wide, tensor.name))
    return exact


def worst(want: Array, got: Array) -> float:
    """The largest difference in the scale of `want`; both must be NaN in the same places."""
    one, other = want.astype(np.float64), got.astype(np.float64)
    assert np.array_equal(np.isnan(one), np.isnan(other))
    assert np.isfinite(other[np.isfinite(one)]).all()
    scale = float(np.nanmax(np.abs(one), initial=0.0)) or 1.0
    return float(np.nanmax(np.abs(one - other), initial=0.0)) / scale


def assert_no_worse(half: ModelProto, exact: ModelProto, fused: ModelProto, feeds: list[dict[str, Array]]) -> None:
    """The fused float16 model is as near to the exact result as float16 can say, or as the original is."""
    sessions = [helpers.session(model) for model in (half, exact, fused)]
    for given in feeds:
        wide = {name: array.astype(np.float64) if array.dtype == np.float16 else array for name, array in given.items()}
        (before,), (truth,), (after,) = (
            one.run(None, with_) for one, with_ in zip(sessions, (given, wide, given), strict=True)
        )
        assert after.dtype == np.float16
        assert worst(truth, after) <= max(2e-3, 1.1 * worst(truth, before))


MAGNITUDES = {"large": 20.0, "usual": 1.0, "tiny": 1e-4}


@pytest.mark.parametrize("factor", MAGNITUDES.values(), ids=MAGNITUDES)
@pytest.mark.parametrize("form", ["bias for keys", "keep pairs", "drop keys"])
def test_attention_in_float16(form: str, factor: float) -> None:
    shape, text = FORMS[form]
    low = float(np.finfo(np.float16).min)
    steps: dict[str, Any] = {
        "inputs": {"m": shape},
        "mask": text.replace("LOW", "low"),
        "weights": {"low": np.array(low, np.float32)},
    }
    half, exact = (build(ATTENTION, dtype=dtype, **steps) for dtype in ("float16", "double"))
    result = graphs.fused(half, [ATTENTION])
    assert result.report.matches[0].parts == ("projection", "residual", "norm")
    # A score and the lowest number are -inf together in float16; a bias a little above leaves room.
    assert_no_worse(half, widened(half, exact), result.model, masked_feeds(half, form, low / 4, factor))


OTHERS: dict[str, tuple[str, dict[str, Any]]] = {
    "embeddings": (EMBEDDING, {}),
    "a skip": (SKIP, {}),
    "a skip and RMSNorm": (SKIP, {"norm": DECOMPOSED_RMS}),
    "a skip with a bias": (SKIP, {"first": "shifted_x = Add(x, bias)", "sum": "total = Add(shifted_x, skip)"}),
    "swish": (SWISH, {}),
    "swish with a beta": (SWISH, {"gate": "inner = Mul(x, two)\ngate = Sigmoid(inner)"}),
}


@pytest.mark.parametrize("factor", MAGNITUDES.values(), ids=MAGNITUDES)
@pytest.mark.parametrize(("fusion", "steps"), OTHERS.values(), ids=OTHERS)
def test_the_others_in_float16(fusion: str, steps: dict[str, Any], factor: float) -> None:
    scaled = {name: graphs.CONSTANTS[name] * np.float32(factor) for name in ("words", "places")}
    half, exact = (build(fusion, dtype=dtype, weights=scaled, **steps) for dtype in ("float16", "double"))
    result = graphs.fused(half, [fusion])
    assert result.report.fused == {fusion: 1}
    feeds = []
    for length, batch in itertools.product(LENGTHS, BATCHES):
        given = helpers.feeds(half, length, B=batch, S=length)
        feeds.append(
            {name: (array * factor).astype(array.dtype) if array.dtype.kind == "f" else array for name, array in given.items()}
        )  # fmt: skip
    assert_no_worse(half, widened(half, exact), result.model, feeds)


@pytest.mark.parametrize(("fusion", "steps"), [*OTHERS.values(), (ATTENTION, {})], ids=[*OTHERS, "attention"])
def test_lengths_and_batches_of_one_and_odd(fusion: str, steps: dict[str, Any]) -> None:
    original = build(fusion, **steps)
    result = graphs.fused(original, [fusion])
    assert result.report.fused == {fusion: 1}
    sizes = [{"B": batch, "S": length} for batch, length in itertools.product(BATCHES, LENGTHS)]
    feeds = graphs.feeds_of(original, *sizes)
    if fusion != ATTENTION:  # whose reference splits heads with Reshape's -1, which is undefined where nothing is
        feeds.append({name: array if name == "spots" else array[:0] for name, array in feeds[0].items()})
    graphs.assert_equal(original, result.model, feeds)


def test_cross_attention_with_padding() -> None:
    inputs = {"k": "[B,T,8]", "v": "[B,T,8]", "m": "bool[B,1,1,T]"}
    original = build(ATTENTION, inputs=inputs, mask="masked = Where(m, {}, infinity)", guard=GUARD)
    result = graphs.fused(original, [ATTENTION])
    assert result.report.fused == {ATTENTION: 1}
    feeds = []
    for padding, (rows, length), batch in itertools.product(PADDINGS, ((1, 5), (5, 1), (3, 7)), BATCHES):
        given = helpers.feeds(original, rows, B=batch, S=rows, T=length)
        feeds.append({**given, "m": kept(padding, (batch, 1, 1, length))})
    wants = graphs.assert_equal(original, result.model, feeds)
    assert all(np.isfinite(want[0]).all() for want in wants)
