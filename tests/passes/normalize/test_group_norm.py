"""GroupNorm with a group for each row is read as LayerNorm of the rows."""

from __future__ import annotations

import numpy as np
import pytest
from onnx import ModelProto

from tests import helpers

WEIGHTS = {
    "one": np.ones(2, np.float32),
    "zero": np.zeros(2, np.float32),
    "scale": np.array([2, 3], np.float32),
    "shift": np.array([4, 5], np.float32),
    "scale_8": np.arange(8, dtype=np.float32),
}


def canonical(text: str, opset: int = 21) -> list[str]:
    """Operators from the output back to x, in the view."""
    read = {name: array for name, array in WEIGHTS.items() if f"{name}," in text or f"{name})" in text}
    view = helpers.view_of(helpers.model(text, opset=opset, weights=read))
    found, value = [], "y"
    while (node := view.producer(value)) is not None:
        found.append(node.op_type)
        value = view.resolve(node.inputs[0])
    return found


def rows(call: str, shape: str = "[R,2,4]") -> str:
    return f"(float{shape} x) => (float{shape} y) {{ y = {call} }}"


@pytest.mark.parametrize("call", ["InstanceNormalization", "GroupNormalization <num_groups = 2>"])
def test_rows_of_three_axes(call: str) -> None:
    assert canonical(rows(f"{call} (x, one, zero)")) == ["LayerNormalization"]
    assert canonical(rows(f"{call} (x, scale, zero)")) == ["Mul", "LayerNormalization"]
    assert canonical(rows(f"{call} (x, scale, shift)")) == ["Add", "Mul", "LayerNormalization"]


def test_flat_rows() -> None:
    call = "GroupNormalization <num_groups = 2> (x, scale_8, scale_8)"
    assert canonical(rows(call, "[R,8]")) == ["Add", "Mul", "Reshape", "LayerNormalization", "Reshape"]


@pytest.mark.parametrize(
    "text",
    [
        rows("InstanceNormalization (x, one, zero)", "[R,2,4,4]"),
        rows("GroupNormalization <num_groups = 1> (x, one, zero)"),
    ],
)
def test_groups_of_more_than_a_row_stay(text: str) -> None:
    assert canonical(text)[0].endswith(("InstanceNormalization", "GroupNormalization"))


def test_a_size_is_told_through_casts() -> None:
    made: ModelProto = helpers.model(
        "(float[B,N] x) => (float[1] y) <int64[1] one = {1}, int64[1] two = {2}> "
        "{ shape = Shape(x)\n size = Slice(shape, one, two)\n y = Cast <to = 1> (size) }"
    )
    view = helpers.view_of(made)
    assert view.dimension("y") == view.shape("x")[1] != view.shape("x")[0]  # type: ignore[index]
    assert view.dimension("shape") is None and view.dimension("x") is None
