"""InteractionTritonFast against E E^T and numpy's order of triangles."""

from __future__ import annotations

from typing import Any

import pytest

pytest.importorskip("triton")
torch = pytest.importorskip("torch")

from onnx_fuse.plugin_csrc.operators.interaction_triton_fast import kernel as interaction_triton_fast
from tests.plugin_csrc.reference import TYPES, check, drawn

types = pytest.mark.parametrize("dtype", TYPES.values(), ids=TYPES)


def given(e: Any, form: str) -> list[Any]:
    if form == "stacked":
        return [e]
    if form == "separate":
        return [e[:, feature].contiguous() for feature in range(e.shape[1])]
    return [e[:, 0].contiguous(), e[:, 1:].contiguous()]


def interaction(e: Any, triangle: str, diagonal: bool, concat: str) -> Any:
    z, count = e @ e.transpose(1, 2), e.shape[1]
    order = torch.tril_indices(count, count, -1 + diagonal)
    if triangle == "upper":
        order = torch.triu_indices(count, count, 1 - diagonal)
    out = z[:, order[0], order[1]]
    return {"none": out, "first": torch.cat([e[:, 0], out], 1), "last": torch.cat([out, e[:, 0]], 1)}[concat]


@types
@pytest.mark.parametrize("form", ["separate", "stacked", "dense_and_sparse"])
@pytest.mark.parametrize(
    "batch, features, size",
    [(0, 3, 16), (1, 1, 16), (9, 8, 16), (5, 17, 64), (3, 27, 64), (2, 64, 80), (3, 33, 13), (2, 2, 1), (1, 5, 65)],
)
def test_interaction(dtype: Any, form: str, batch: int, features: int, size: int) -> None:
    e = drawn((batch, features, size), dtype)
    for triangle, diagonal, concat in {
        "separate": [("lower", False, "first"), ("upper", True, "last")],
        "stacked": [("lower", True, "none"), ("upper", False, "first")],
        "dense_and_sparse": [("lower", False, "last")],
    }[form]:
        out = interaction_triton_fast.launch(
            given(e, form), form, triangle=triangle, self_interaction=diagonal, concat_dense=concat
        )
        check(out, interaction, e, triangle, diagonal, concat)


@types
def test_programs_go_from_tile_to_tile(dtype: Any) -> None:
    e = drawn((20, 4, 16), dtype)
    out = interaction_triton_fast.launch([e], "stacked", triangle="upper", programs=1)
    check(out, interaction, e, "upper", False, "none")


@types
def test_large_values_stay_finite_until_the_end(dtype: Any) -> None:
    e = drawn((2, 3, 32), dtype, magnitude=20.0)
    check(interaction_triton_fast.launch([e], "stacked"), interaction, e, "lower", False, "none")


def test_more_features_than_slots_are_refused() -> None:
    with pytest.raises(ValueError, match="65 features"):
        interaction_triton_fast.launch([drawn((1, 65, 16), torch.float32)], "stacked")
