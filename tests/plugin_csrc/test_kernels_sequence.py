"""SequenceRecommendationInteraction and FMInteraction."""

from __future__ import annotations

from typing import Any

import pytest

pytest.importorskip("triton")
torch = pytest.importorskip("torch")

from onnx_fuse.plugin_csrc.operators.fm_interaction import kernel as fm_interaction
from onnx_fuse.plugin_csrc.operators.sequence_recommendation_interaction import (
    kernel as sequence_recommendation_interaction,
)
from tests.plugin_csrc.reference import TYPES, check, drawn

types = pytest.mark.parametrize("dtype", TYPES.values(), ids=TYPES)
OUTPUTS = ("scores", "short_term", "long_term", "cooccurrence")


def interaction(
    items: Any, user: Any, time_weights: Any, mask: Any, window: int, decay: float, normalize: bool
) -> dict[str, Any]:
    batch, length, _ = items.shape
    keep = torch.ones(batch, length, dtype=torch.bool) if mask is None else mask != 0
    weights = keep * (1.0 if time_weights is None else time_weights)
    steps = torch.arange(length).to(items.dtype)
    later = keep.flip(1).cumsum(1).flip(1)
    recent = keep & (later <= window)
    short = weights * recent * (1 + 0.1 * (recent.sum(1, keepdim=True) - later))
    last = torch.where(keep, steps, -1.0).amax(1, keepdim=True) if length else steps[None]
    long = weights * (0.5 + 0.5 * torch.exp(-0.1 * (last - steps)))

    def pooled(by: Any) -> Any:
        total, weight = torch.einsum("bs,bsd->bd", by.to(items.dtype), items), by.sum(1, keepdim=True)
        return torch.where(weight == 0, 0.0, total / torch.where(weight == 0, 1.0, weight)) if normalize else total

    distance = steps - steps[:, None]
    near = torch.where(distance > 0, torch.exp(-decay * distance), 0.0) * keep[:, None] * keep[:, :, None]
    return {
        "scores": torch.einsum("bsd,bd->bs", items, user) * weights,
        "short_term": pooled(short),
        "long_term": pooled(long),
        "cooccurrence": items @ items.transpose(1, 2) * near,
    }


def masks(batch: int, length: int, kind: str) -> Any:
    steps = torch.arange(length).expand(batch, length)
    return {
        "absent": None,
        "none": steps < 0,
        "left": steps >= length // 3,
        "right": steps < length // 2,
        "holes": torch.rand((batch, length), generator=torch.Generator().manual_seed(2)) > 0.5,
    }[kind]


@types
@pytest.mark.parametrize(
    "shape, kind",
    [
        ((0, 3, 16), "absent"),
        ((2, 0, 16), "none"),
        ((1, 1, 1), "absent"),
        ((2, 33, 64), "left"),
        ((2, 32, 16), "none"),
        ((1, 65, 144), "holes"),
        ((2, 31, 50), "right"),
        ((1, 65, 16), "absent"),
        ((1, 300, 72), "holes"),
        ((1, 1100, 8), "right"),
    ],
)
def test_sequence_interaction(dtype: Any, shape: tuple[int, int, int], kind: str) -> None:
    items, user = drawn(shape, dtype), drawn((shape[0], shape[2]), dtype, 1)
    weights = drawn(shape[:2], torch.float32 if kind == "left" else dtype, 3).abs() if kind != "absent" else None
    mask = masks(*shape[:2], kind)
    mask = mask.to(dtype) if kind == "right" else mask
    normalize, window = kind in ("none", "holes"), 5
    made = sequence_recommendation_interaction.launch(
        items, user, weights, mask, outputs=OUTPUTS, short_window=window, decay=0.1, normalize=normalize
    )
    for name in OUTPUTS:
        check(
            made[name],
            lambda *inputs, name=name: interaction(*inputs, window, 0.1, normalize)[name],
            *(items, user, weights, mask),
        )


@types
@pytest.mark.parametrize("name", OUTPUTS)
def test_each_output_alone_and_items_left_out_are_not_read(dtype: Any, name: str) -> None:
    items, user = drawn((2, 20, 16), dtype), drawn((2, 16), dtype, 1)
    mask = masks(2, 20, "holes")
    spoilt = torch.where(mask[..., None], items, torch.nan)
    made = sequence_recommendation_interaction.launch(
        spoilt, user if name == "scores" else None, None, mask, outputs=[name], short_window=3, decay=0.2
    )
    assert list(made) == [name]
    check(made[name], lambda *inputs: interaction(*inputs, 3, 0.2, False)[name], items, user, None, mask)


@types
@pytest.mark.parametrize("reduce", [False, True])
@pytest.mark.parametrize(
    "shape",
    [(0, 3, 16), (3, 0, 16), (1, 1, 1), (7, 2, 50), (8, 5, 128), (67, 26, 16), (5, 8, 40), (2, 3, 129), (2, 17, 520)],
)
def test_fm(dtype: Any, reduce: bool, shape: tuple[int, int, int]) -> None:
    e = drawn(shape, dtype)

    def reference(e: Any) -> Any:
        out = 0.5 * (e.sum(1) ** 2 - (e * e).sum(1))
        return out.sum(1, keepdim=True) if reduce else out

    check(fm_interaction.launch(e, reduce=reduce), reference, e)
