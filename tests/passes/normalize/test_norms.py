"""Norms written out in smaller operators: what they are recognised as, what merely looks like one, and that nothing changes."""

from __future__ import annotations

import numpy as np
import pytest
from onnx import ModelProto

from tests.helpers import assert_same_results, model, operators, run, simplified

RANDOM = np.random.default_rng(3)
CONSTANTS = {
    "g": RANDOM.standard_normal(8).astype(np.float32),
    "b": RANDOM.standard_normal(8).astype(np.float32),
    "g3": RANDOM.standard_normal((1, 1, 8)).astype(np.float32),
    "b3": RANDOM.standard_normal((1, 1, 8)).astype(np.float32),
    "g4": RANDOM.standard_normal((1, 1, 1, 8)).astype(np.float32),
    "rows": RANDOM.standard_normal((1, 3, 1)).astype(np.float32),
    "e": np.array(1e-5, np.float32),
    "zero": np.array(0.0, np.float32),
    "one": np.array(1.0, np.float32),
    "two": np.array(2.0, np.float32),
    "n": np.array(8.0, np.float32),
    "share": np.array(1 / 8, np.float32),
    "n_less_1": np.array(7.0, np.float32),
    "last": np.array([-1]),
    "middle": np.array([1]),
}
MEAN = "m = ReduceMean(x, last)"
CENTRED = "c = Sub(x, m)"
VARIANCE = "q = Mul(c, c) v = ReduceMean(q, last)"
ROOT = "ve = Add(v, e) s = Sqrt(ve)"
SECOND_MOMENT = "q = Mul(x, x) a = ReduceMean(q, last) p = Mul(m, m) w = Sub(a, p)"
SCALED = "d = Div(c, s) dg = Mul(d, g) y = Add(dg, b)"


def norm(*steps: str, inputs: str = "float[B,3,8] x", output: str = "float[B,3,8] y") -> ModelProto:
    body = " ".join(steps)
    read = set(body.replace("(", " ").replace(")", " ").replace(",", " ").split())
    weights = {name: array for name, array in CONSTANTS.items() if name in read}
    return model(f"({inputs}) => ({output}) {{ {body} }}", opset=23, weights=weights)


def canonical(made: ModelProto, tolerance: float = 1e-5) -> list[str]:
    after = simplified(made)
    assert_same_results(made, after, tolerance=tolerance, seeds=(0, 1), B=2)
    return [name for name in operators(after) if name not in ("Identity", "Constant")]


LAYER_NORMS = {
    "mean of squares less square of the mean": (MEAN, CENTRED, "q = Mul(x, x) a = ReduceMean(q, last) p = Mul(m, m) v = Sub(a, p)", ROOT, SCALED),
    "the same with Pow": (MEAN, CENTRED, "q = Pow(x, two) a = ReduceMean(q, last) p = Pow(m, two) v = Sub(a, p)", ROOT, SCALED),
    "Flax: the same with a floor of 0": (MEAN, CENTRED, f"{SECOND_MOMENT} v = Max(w, zero)", ROOT, SCALED),
    "sums divided by their number": ("t = ReduceSum(x, last) m = Div(t, n)", CENTRED, "q = Mul(c, c) u = ReduceSum(q, last) v = Div(u, n)", ROOT, SCALED),
    "sums times a share": ("t = ReduceSum(x, last) m = Mul(share, t)", CENTRED, "q = Mul(c, c) u = ReduceSum(q, last) v = Mul(u, share)", ROOT, SCALED),
    "poolings": ("m = GlobalAveragePool(x)", CENTRED, "q = Mul(c, c) v = GlobalAveragePool(q)", ROOT, SCALED),
    "an epsilon of 0": (MEAN, CENTRED, VARIANCE, "ve = Add(v, zero) s = Sqrt(ve)", SCALED),
    "no epsilon": (MEAN, CENTRED, VARIANCE, "s = Sqrt(v)", SCALED),
    "vectors of three axes": (MEAN, CENTRED, VARIANCE, ROOT, "d = Div(c, s) dg = Mul(g3, d) y = Add(dg, b3)"),
    "the node, with vectors of three axes": ("y = LayerNormalization <axis = -1, epsilon = 1e-05> (x, g3, b3)",),
    "a shift of beta plus a negative mean": (MEAN, CENTRED, VARIANCE, "ve = Add(v, e) s = Sqrt(ve) i = Reciprocal(s) f = Mul(i, g) xs = Mul(x, f) nm = Neg(m) ms = Mul(nm, f) r = Add(ms, b) y = Add(xs, r)"),
    "a shift of beta less a mean, of three axes": (MEAN, CENTRED, VARIANCE, "ve = Add(v, e) s = Sqrt(ve) i = Reciprocal(s) f = Mul(i, g3) xs = Mul(x, f) ms = Mul(m, f) r = Sub(b3, ms) y = Add(xs, r)"),
}  # fmt: skip


@pytest.mark.parametrize("steps", LAYER_NORMS.values(), ids=LAYER_NORMS)
def test_a_layer_norm(steps: tuple[str, ...]) -> None:
    found = canonical(norm(*steps))
    assert [name for name in found if name != "Reshape"] == ["LayerNormalization"]


RMS_NORMS = {
    "no epsilon": "q = Mul(x, x) v = ReduceMean(q, last) s = Sqrt(v) d = Div(x, s) y = Mul(d, g)",
    "an epsilon of 0": "q = Mul(x, x) v = ReduceMean(q, last) ve = Add(v, zero) s = Sqrt(ve) d = Div(x, s) y = Mul(d, g)",
    "one over the root": "q = Pow(x, two) v = ReduceMean(q, last) ve = Add(v, e) s = Sqrt(ve) i = Div(one, s) d = Mul(x, i) y = Mul(g3, d)",
    "sums": "q = Pow(x, two) t = ReduceSum(q, last) v = Div(t, n) ve = Add(v, e) s = Sqrt(ve) i = Div(g, s) y = Mul(x, i)",
}  # fmt: skip


@pytest.mark.parametrize("text", RMS_NORMS.values(), ids=RMS_NORMS)
def test_an_rms_norm(text: str) -> None:
    found = canonical(norm(text))
    assert [name for name in found if name != "Reshape"] == ["RMSNormalization"]


LOOKALIKES = {
    "the mean is not squared": (MEAN, CENTRED, "q = Mul(x, x) a = ReduceMean(q, last) v = Sub(a, m)", "p = Abs(v)", "ve = Add(p, e) s = Sqrt(ve)", SCALED),
    "the other way round": (MEAN, CENTRED, "q = Mul(x, x) a = ReduceMean(q, last) p = Mul(m, m) w = Sub(p, a) v = Abs(w)", ROOT, SCALED),
    "a variance of n - 1": (MEAN, CENTRED, "q = Mul(c, c) u = ReduceSum(q, last) v = Div(u, n_less_1)", ROOT, SCALED),
    "a sum of the tokens": ("t = ReduceSum(x, middle) m = Div(t, n)", CENTRED, VARIANCE, ROOT, SCALED),
    "a sum over another axis": (MEAN, CENTRED, "q = Mul(c, c) u = ReduceSum(q, middle) v = Div(u, n)", ROOT, SCALED),
    "an epsilon for each row": (MEAN, CENTRED, VARIANCE, "r = Abs(rows) ve = Add(v, r) s = Sqrt(ve)", SCALED),
    "a bound instead of an epsilon": (MEAN, CENTRED, VARIANCE, "ve = Max(v, e) s = Sqrt(ve)", SCALED),
    "a floor above 0": (MEAN, CENTRED, f"{SECOND_MOMENT} v = Max(w, e)", ROOT, SCALED),
    "a floor that is not the only one": (MEAN, CENTRED, f"{SECOND_MOMENT} v = Max(w, zero, one)", ROOT, SCALED),
    "a ceiling of 0": (MEAN, CENTRED, f"{SECOND_MOMENT} v = Min(w, zero)", ROOT, SCALED),
    "a shift with the mean's own sign": (MEAN, CENTRED, VARIANCE, "ve = Add(v, e) s = Sqrt(ve) i = Reciprocal(s) f = Mul(i, g) xs = Mul(x, f) ms = Mul(m, f) r = Add(ms, b) y = Add(xs, r)"),
    "a scale of each row": (MEAN, CENTRED, VARIANCE, ROOT, "d = Div(c, s) dg = Mul(d, rows) y = Add(dg, b)"),
}  # fmt: skip


@pytest.mark.parametrize("steps", LOOKALIKES.values(), ids=LOOKALIKES)
def test_what_is_no_norm_with_its_scale_stays(steps: tuple[str, ...]) -> None:
    found = canonical(norm(*steps))
    assert "LayerNormalization" not in found and len(found) > 4


def test_a_scale_with_more_axes_than_the_norm_stays_outside() -> None:
    made = norm(MEAN, CENTRED, VARIANCE, ROOT, "d = Div(c, s) y = Mul(d, g4)", output="float[1,B,3,8] y")
    assert canonical(made)[-1] == "Mul"


def test_a_pooling_of_images_stays() -> None:
    made = norm("y = GlobalAveragePool(x)", inputs="float[B,3,4,8] x", output="float[B,3,1,1] y")
    assert canonical(made) == ["GlobalAveragePool"]


def test_rows_that_are_all_alike_without_an_epsilon_stay_what_they_are() -> None:
    """0 / 0 is no number before and after."""
    made = norm(MEAN, CENTRED, VARIANCE, "s = Sqrt(v)", SCALED)
    after = simplified(made)
    feeds = {"x": np.ones((1, 3, 8), np.float32)}
    assert np.isnan(run(made, feeds)[0]).all() and np.isnan(run(after, feeds)[0]).all()
