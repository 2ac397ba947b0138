"""Sizes for timing that the model takes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from onnx import ModelProto

import onnx_fuse
from onnx_fuse.errors import UsageError
from onnx_fuse.runtime.measure.taken_sizes import taken_sizes
from tests import helpers


def positions(rows: int = 50) -> ModelProto:
    """A table of positions, which a sequence may not be longer than, and a Swish."""
    return helpers.model(
        """(float[batch,length,8] x) => (float[batch,length,8] y) {
        s = Shape(x)  n = Gather(s, one)  p = Range(zero, n, one)  e = Gather(table, p)
        a = Add(x, e)  g = Sigmoid(a)  y = Mul(a, g) }""",
        weights={"one": np.array(1), "zero": np.array(0), "table": np.ones((rows, 8), np.float32)},
    )


def fixed(dims: str, *shape: int) -> ModelProto:
    return helpers.model(
        f"(float[{dims}] x) => (float[a,b] y) {{ t = Reshape(x, shape)  y = Exp(t) }}",
        weights={"shape": np.array(shape)},
    )


@pytest.mark.parametrize(
    ("model", "sizes"),
    [
        (positions(200), {"batch": 8, "length": 128}),
        (positions(50), {"batch": 8, "length": 50}),
        (fixed("batch,length", 8, 24), {"batch": 8, "length": 24}),
        (fixed("batch,length", 1, 24), {"batch": 1, "length": 24}),
    ],
)
def test_sizes_that_the_model_takes_are_assumed(model: ModelProto, sizes: dict[str, int]) -> None:
    assert taken_sizes(model, {}) == (sizes, tuple(sizes))


def test_what_is_given_stays() -> None:
    assert taken_sizes(positions(), {"batch": 3}) == ({"batch": 3, "length": 50}, ("length",))
    assert taken_sizes(positions(), {"x": [2, 7, 8]}) == ({"batch": 2, "length": 7}, ())


@pytest.mark.parametrize("given", [{"batch": 2, "length": 51}, {"length": 51}])
def test_given_sizes_that_it_does_not_take_are_named(given: dict[str, int]) -> None:
    with pytest.raises(UsageError, match=r"does not run with batch=\d, length=51: .*out of data bounds") as error:
        taken_sizes(positions(), given)
    assert "--sizes NAME=N" in error.value.remedy


def test_a_selection_measured_on_such_a_model_says_what_it_assumed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    done = onnx_fuse.fuse(positions(), enable=["FusedSwish"], select="measured", device="cpu")
    chosen = done.report.to_dict()["selection"]
    assert chosen["sizes"] == {"batch": 8, "length": 50} and set(chosen["assumed"]) == {"batch", "length"}
