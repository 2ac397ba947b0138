"""The noise of a model is measured where it arises, and a place that is masked out is told from one that counts."""

from __future__ import annotations

import numpy as np
from onnx import ModelProto

from onnx_fuse.runtime.verify.noise import Hearing
from onnx_fuse.runtime.verify.random_inputs import Array, input_specs
from onnx_fuse.runtime.verify.record import Case
from onnx_fuse.runtime.verify.reference import Evidence
from tests import helpers

X = np.random.default_rng(0).standard_normal((6, 8)).astype(np.float32)


def noise(model: ModelProto, **inputs: Array) -> Array:
    """The largest of each column."""
    expected = dict(zip(["y"], helpers.run(model, inputs), strict=True))
    evidence = Evidence(Case("mine", {}), inputs, expected, {})
    found = Hearing(model, None, input_specs(model), ()).noise(evidence, "y")
    assert found is not None and found.shape == expected["y"].shape
    return np.asarray(found.max(axis=0))


def test_sums_that_cancel_are_noisy_and_others_are_not() -> None:
    """Columns of weights of 1000 that nearly cancel beside columns of the small weights that they leave."""
    first = (1000 * np.random.default_rng(1).standard_normal((8, 4))).astype(np.float32)
    second = first * np.float32(1 + 1e-6)
    weights = {"a": first, "b": second, "small": first - second}
    cancelling = helpers.model(
        "(float[n,8] x) => (float[n,4] y) { p = MatMul(x, a)  q = MatMul(x, b)  y = Sub(p, q) }", weights=weights
    )
    exact = helpers.model("(float[n,8] x) => (float[n,4] y) { y = MatMul(x, small) }", weights=weights)
    assert noise(cancelling, x=X).min() > 1e-5
    assert noise(exact, x=X).max() < 1e-8


def test_masks_and_indices_are_exact() -> None:
    """(1 - mask) * -1e9 is 0 where the mask is 1, and a position is a whole number: to shake them would drown all else."""
    model = helpers.model(
        """(float[n,8] x, int64[n,8] mask) => (float[n,8] y) {
        keep = Cast <to = 1> (mask)  leave = Sub(one, keep)  bias = Mul(leave, low)  p = MatMul(x, w)  y = Add(p, bias) }""",
        weights={"one": np.float32([1.0]), "low": np.array(-1e9, np.float32), "w": np.eye(8, dtype=np.float32)},
    )
    mask = np.ones((6, 8), np.int64)
    mask[:, 5:] = 0
    found = noise(model, x=X, mask=mask)
    assert found[:5].max() < 1e-5 and found[5:].min() >= 0


def test_float16_is_noisier() -> None:
    text = "({0}[n,8] x) => ({0}[n,8] y) {{ y = MatMul(x, w) }}"
    weight = np.random.default_rng(2).standard_normal((8, 8))
    single = noise(helpers.model(text.format("float"), weights={"w": weight.astype(np.float32)}), x=X)
    half = noise(
        helpers.model(text.format("float16"), weights={"w": weight.astype(np.float16)}), x=X.astype(np.float16)
    )
    assert 100 < np.median(half) / np.median(single) < 100_000


def test_a_twin_that_cannot_run_tells_nothing() -> None:
    model = helpers.model("(float[n,8] x) => (float[n,8] y) { y = Exp(x) }")
    evidence = Evidence(Case("mine", {}), {"x": X[:, :3]}, {"y": X}, {})
    assert Hearing(model, None, input_specs(model), ()).noise(evidence, "y") is None


def unread(text: str, x: Array, got: Array) -> Array | None:
    model = helpers.model(f"(float[n,4] x, float[n,4] mask) => (float[n,4] y) {{ {text} }}")
    mask = np.float32([[1, 1, 0, 0]])
    (expected,) = helpers.run(model, {"x": x, "mask": mask})
    evidence = Evidence(Case("mine", {}), {"x": x, "mask": mask}, {"y": expected}, {})
    return Hearing(model, None, input_specs(model), ()).unread(evidence, "y", expected, got)


def test_what_is_multiplied_by_nothing_is_not_read() -> None:
    nan, inf = np.nan, np.inf
    right = np.float32([[1, 2, 0, 0]])
    for bad in (nan, inf, -inf):
        found = unread("y = Mul(x, mask)", np.float32([[1, 2, bad, 4]]), right)
        assert found is not None and found.tolist() == [[False, False, True, False]]
    overflows = np.float32([[1, 2, 3e38, 4]])
    found = unread("s = Mul(x, x)  y = Mul(s, mask)", overflows, np.float32([[1, 4, 0, 0]]))
    assert found is not None and found.sum() == 1
    # A place that counts, another number than 0, and no place at all.
    assert unread("y = Mul(x, mask)", np.float32([[nan, 2, 3, 4]]), np.float32([[0, 2, 0, 0]])) is None
    assert unread("y = Mul(x, mask)", np.float32([[1, 2, nan, 4]]), np.float32([[1, 2, 7, 0]])) is None
    assert unread("y = Mul(x, mask)", np.float32([[1, 2, 3, 4]]), right) is None
