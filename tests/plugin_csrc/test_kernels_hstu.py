"""HSTUHierarchicalAttention, both modes, on every kind of mask and every way through its norm."""

from __future__ import annotations

import math
from typing import Any

import pytest

pytest.importorskip("triton")
torch = pytest.importorskip("torch")

from onnx_fuse.plugin_csrc.operators.hstu_hierarchical_attention import kernel as hstu_hierarchical_attention
from tests.plugin_csrc.reference import TYPES, check, drawn, normalised

types = pytest.mark.parametrize("dtype", TYPES.values(), ids=TYPES)


def split(x: Any, heads: int) -> Any:
    return x.unflatten(-1, (heads, -1)).transpose(1, 2)


def rim(context: Any, lengths: Any, u: Any, gamma: Any, beta: Any, how: dict[str, Any]) -> Any:
    """y of o = [B, h, N, dv]"""
    heads, length = context.shape[1:3]
    norm, epsilon = how.get("norm", "none"), how.get("epsilon", 0.0)
    if norm == "group":
        context = normalised(context, "layer", None, None, epsilon)
    four = context.transpose(1, 2)
    if norm == "group" and gamma is not None:
        four = four * gamma.reshape(heads, -1) + beta.reshape(heads, -1)
    y = four.flatten(2)
    y = normalised(y, "layer", gamma, beta, epsilon) if norm == "layer" else y
    if u is not None:
        act = {"none": lambda u: u, "silu": torch.nn.functional.silu, "sigmoid": torch.sigmoid}
        y = y * act[how["gate_activation"]](u)
    return y if lengths is None else torch.where((torch.arange(length) < lengths[:, None])[..., None], y, 0.0)


def silu(
    q: Any, k: Any, v: Any, bias: Any, mask: Any, scale: Any, lengths: Any, u: Any, gamma: Any, beta: Any, how: Any
) -> Any:
    heads, length = how["num_heads"], q.shape[1]
    alpha = how.get("alpha", 1.0)
    inside = how.get("bias_order") == "inside_alpha"
    scores = alpha * split(q, heads) @ split(k, heads).transpose(2, 3)
    scores = scores if bias is None else scores + bias * (alpha if inside else 1.0)
    weights = torch.nn.functional.silu(scores)
    weights = weights if mask is None else weights * mask
    steps = torch.arange(length)
    if how.get("causal"):
        weights = torch.where(steps <= steps[:, None], weights, 0.0)
    if lengths is not None:
        weights = torch.where((steps < lengths[:, None])[:, None, None], weights, 0.0)
    o = weights @ split(v, heads)
    o = o * scale if scale is not None else o / (how.get("norm_length", 0) or length)
    return rim(o, lengths, u, gamma, beta, how)


def level_softmax(q: Any, k: Any, v: Any, mask: Any, lengths: Any, gamma: Any, beta: Any, how: Any) -> Any:
    heads, length, levels = how["num_heads"], q.shape[1], how["num_levels"]
    step, steps = math.ceil(length / levels), torch.arange(length)
    keep = torch.ones(1, 1, length, length, dtype=torch.bool) if mask is None else mask != 0
    if lengths is not None:
        keep = keep & (steps < lengths[:, None])[:, None, None]
    scores = how["alpha"] * split(q, heads) @ split(k, heads).transpose(2, 3)
    total, active = torch.zeros_like(split(v, heads)), 0.0
    for level in range(levels):
        here = keep & (steps >= level * step) & (steps < (level + 1) * step)
        weights = torch.softmax((how["decay"] ** level * scores).masked_fill(~here, -torch.inf), -1)
        share = here.any(-1, keepdim=True) * ((level + 1) / levels)
        total = total + share * (torch.nan_to_num(weights) @ split(v, heads))
        active = active + share
    return rim(total / torch.where(active > 0, active, 1.0), lengths, None, gamma, beta, how)


def masks(kind: str, batch: int, length: int) -> Any:
    draw, steps = torch.Generator().manual_seed(5), torch.arange(length)
    return {
        "absent": None,
        "all": torch.ones(batch, 1, 1, length, dtype=torch.bool),
        "none": torch.zeros(1, 1, length, length, dtype=torch.bool),
        "left": (steps >= length // 2).expand(batch, 1, length, length).contiguous(),
        "right": (steps < length // 2)[None, None, None],
        "holes": torch.rand((batch, 2, length, length), generator=draw) > 0.5,
    }[kind]


def operands(dtype: Any, batch: int, length: int, heads: int, size: int, value_size: int) -> list[Any]:
    return [drawn((batch, length, heads * each), dtype, seed) for seed, each in enumerate((size, size, value_size))]


def run(*given: Any, **how: Any) -> None:
    """Launch and reference on q, k, v, bias, mask, scale, lengths, u, gamma, beta."""
    names = ("bias", "mask", "scale", "lengths", "u", "gamma", "beta")
    y = hstu_hierarchical_attention.launch(*given[:3], **dict(zip(names, given[3:], strict=True)), **how)
    check(y, lambda *inputs: silu(*inputs, how), *given)


@types
@pytest.mark.parametrize(
    "batch, length, heads, size, value_size",
    [
        (0, 3, 2, 16, 16),
        (1, 0, 1, 16, 16),
        (1, 1, 1, 8, 8),
        (2, 63, 2, 25, 25),
        (1, 129, 2, 32, 16),
        (2, 65, 1, 64, 64),
        (1, 128, 1, 80, 128),
        (1, 33, 2, 256, 240),
        (1, 17, 1, 7, 100),
    ],
)
def test_sizes(dtype: Any, batch: int, length: int, heads: int, size: int, value_size: int) -> None:
    given = operands(dtype, batch, length, heads, size, value_size)
    run(*given, *[None] * 7, num_heads=heads, alpha=size**-0.5, causal=length > 64)


@types
@pytest.mark.parametrize("kind", ["all", "none", "left", "right", "holes"])
def test_masks(dtype: Any, kind: str) -> None:
    mask = masks(kind, 2, 65)
    mask = mask.to(dtype) if kind in ("left", "right") else mask
    given = operands(dtype, 2, 65, 2, 16, 16)
    run(*given, None, mask, None, None, None, None, None, num_heads=2, causal=kind == "holes")


@types
@pytest.mark.parametrize("shape", [(1, 1), (2, 1), (1, 2), (2, 2)])
@pytest.mark.parametrize("order", ["outside_alpha", "inside_alpha"])
def test_bias_scale_and_lengths(dtype: Any, shape: tuple[int, int], order: str) -> None:
    given = operands(dtype, 2, 40, 2, 16, 16)
    bias = drawn((*shape, 40, 40), torch.float32 if shape == (2, 1) else dtype, 4)
    scale = drawn((shape[0], 1, 40 if shape[1] == 2 else 1, 1), dtype, 5).abs()
    lengths = torch.tensor([40, 33], dtype=torch.int32 if order == "inside_alpha" else torch.int64)
    run(*given, bias, None, scale, lengths, None, None, None, num_heads=2, alpha=0.25, bias_order=order, causal=True)


@types
@pytest.mark.parametrize(
    "heads, norm, affine",
    [
        (2, "layer", 32),
        (1, "layer", 16),
        (2, "group", 32),
        (2, "group", 2),
        (2, "group", 0),
        (2, "layer", 0),
        (2, "none", 0),
    ],
)
def test_norm_and_gate(dtype: Any, heads: int, norm: str, affine: int) -> None:
    activation = {0: "none", 2: "sigmoid"}.get(affine, "silu")
    given = operands(dtype, 2, 20, heads, 16, 16)
    gamma, beta = (drawn((affine,), torch.float32 if heads == 1 else dtype, seed) for seed in (6, 7))
    gamma, beta = (gamma, beta) if affine else (None, None)
    u = drawn(given[2].shape, dtype, 8)
    how = {"norm": norm, "gate_activation": activation, "epsilon": 1e-6, "norm_length": 50.0}
    run(*given, None, None, None, torch.tensor([20, 7]), u, gamma, beta, num_heads=heads, **how)


@types
@pytest.mark.parametrize("magnitude", [1e-2, 6.0])
def test_long_rows_do_not_vanish(dtype: Any, magnitude: float) -> None:
    """1/N is for the float32 sum: weights divided by 4096 would be subnormal in float16."""
    given = [drawn((1, 130, 16), dtype, seed, magnitude) for seed in range(3)]
    run(*given, *[None] * 7, num_heads=1, norm_length=4096.0)


@types
@pytest.mark.parametrize("levels, length", [(1, 5), (2, 66), (4, 9), (6, 5)])
@pytest.mark.parametrize("kind", ["absent", "holes", "none"])
def test_level_softmax(dtype: Any, levels: int, length: int, kind: str) -> None:
    heads = 2 if kind == "holes" else 1
    norm = "layer" if kind == "holes" else "none"
    given = operands(dtype, 2, length, heads, 16, 16 if levels < 4 else 9)
    mask = masks(kind, 2, length)
    lengths = torch.tensor([length, length - 2]) if levels == 4 else None
    how = {"num_heads": heads, "num_levels": levels, "decay": 0.9, "alpha": 0.25, "norm": norm, "epsilon": 1e-5}
    y = hstu_hierarchical_attention.launch(*given, mask=mask, lengths=lengths, mode="level_softmax", **how)
    check(y, lambda *inputs: level_softmax(*inputs, None, None, how), *given, mask, lengths)


def test_refusals() -> None:
    x = drawn((1, 2, 257), torch.float32)
    with pytest.raises(ValueError, match="at most 256"):
        hstu_hierarchical_attention.launch(x, x, x, num_heads=1)
    with pytest.raises(ValueError, match="no bias"):
        x = drawn((1, 2, 16), torch.float32)
        hstu_hierarchical_attention.launch(x, x, x, num_heads=1, mode="level_softmax", causal=True)
