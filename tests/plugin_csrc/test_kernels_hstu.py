"""HSTUHierarchicalAttention, both modes, on every kind of mask and every way through its norm."""

from __future__ import annotations

import math
from typing import Any

import pytest

errors = pytest.importorskip("triton.runtime.errors")
torch = pytest.importorskip("torch")

from onnx_fuse.plugin_csrc.operators.hstu_hierarchical_attention import kernel as hstu_hierarchical_attention
from onnx_fuse.plugin_csrc.operators.hstu_hierarchical_attention import tiles
from tests.plugin_csrc.reference import TYPES, check, drawn, normalised, within_memory

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
    how = {name: value for name, value in how.items() if name != "architecture"}
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


half_types = pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=["fp16", "bf16"])
architectures = pytest.mark.parametrize("architecture", [80, 90])


@half_types
@architectures
@pytest.mark.parametrize("extra", hstu_hierarchical_attention.EXTRAS.values())
def test_tiles(dtype: Any, architecture: int, extra: str) -> None:
    """Every kind of bias and mask; a tile of rows that is full and one that is not, which has a tile of keys before its diagonal."""
    given = operands(dtype, 1, 136, 2, 32, 32)
    bias = drawn((1, 2, 136, 136), dtype, 4) if "bias" in extra else None
    mask = masks("holes", 1, 136) if "mask" in extra else None
    settings = {
        "num_heads": 2,
        "alpha": 0.3,
        "causal": True,
        "bias_order": "inside_alpha",
        "architecture": architecture,
    }
    with within_memory():
        run(*given, bias, mask, None, torch.tensor([133]), None, None, None, **settings)


@architectures
@pytest.mark.parametrize("size, length", [(32, 8), (64, 129), (64, 256), (128, 130), (256, 72), (256, 130)])
def test_tiles_of_every_head(architecture: int, size: int, length: int) -> None:
    dtype = torch.float16 if length % 8 else torch.bfloat16
    given = operands(dtype, 1, length, 1, size, size)
    with within_memory():
        run(*given, *[None] * 7, num_heads=1, alpha=size**-0.5, causal=length == 256, architecture=architecture)


@pytest.mark.parametrize("shape", [(2, 1, 1, 136), (1, 2, 136, 136), (1, 1, 1, 136), (2, 2, 136, 136)])
def test_tiles_of_a_bias_and_a_mask_that_broadcast(shape: tuple[int, ...]) -> None:
    given = operands(torch.bfloat16, 2, 136, 2, 32, 32)
    bias, mask = drawn(shape, torch.bfloat16, 4), drawn(tuple(reversed(shape[:2])) + shape[2:], torch.float32, 5) > 0
    u, gamma, beta = (
        drawn(given[2].shape, torch.bfloat16, 8),
        drawn((2,), torch.bfloat16, 6),
        drawn((2,), torch.bfloat16, 7),
    )
    how = {"norm": "group", "gate_activation": "silu", "epsilon": 1e-6, "architecture": 90}
    with within_memory():
        run(*given, bias, mask, None, torch.tensor([136, 0]), u, gamma, beta, num_heads=2, alpha=0.2, **how)


@pytest.mark.parametrize("sign", [1, -1])
@pytest.mark.parametrize("magnitude", [1.0, 3.0])
def test_tanh_may_be_as_wrong_as_is_promised(monkeypatch: pytest.MonkeyPatch, sign: int, magnitude: float) -> None:
    """tanh.approx.f32 may be off by 2^-11, relative: everywhere in the same direction here, which is the worst."""
    monkeypatch.setattr(tiles, "TANH_ERROR", sign * 2.0**-11)
    given = [drawn((1, 136, 64), torch.bfloat16, seed, magnitude if seed < 2 else 1.0) for seed in range(3)]
    run(*given, *[None] * 7, num_heads=2, alpha=32**-0.5, architecture=90)
    x = torch.linspace(-20, 20, 4001, dtype=torch.float64)
    half = x / 2
    made = half * torch.tanh(half) * (1 + tiles.TANH_ERROR) + half
    assert (made - torch.nn.functional.silu(x)).abs().le(half.abs() * 2.0**-11).all(), "what tiles.py says of a weight"


def test_a_read_outside_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    """What `within_memory` is for: here the rows of a bias are twice as long as they are said to be."""
    given = operands(torch.bfloat16, 1, 136, 1, 32, 32)
    monkeypatch.setattr(hstu_hierarchical_attention, "strides_of", lambda tensor, axes: [0, 0, 272, 1][-axes:])
    with pytest.raises(errors.InterpreterError, match="outside of all tensors"), within_memory():
        run(*given, drawn((1, 1, 136, 136), torch.bfloat16), *[None] * 6, num_heads=1)


@half_types
@pytest.mark.parametrize("least", [False, True])
def test_a_bias_takes_keys_out(dtype: Any, least: bool) -> None:
    """However negative it is, the weight is 0, as that of float32 is."""
    bias = torch.where(masks("holes", 1, 136), 0.0, torch.finfo(dtype).min if least else -1e4).to(dtype)
    given = operands(dtype, 1, 136, 2, 32, 32)
    run(*given, bias, *[None] * 6, num_heads=2, alpha=0.2, architecture=90)


@half_types
@architectures
def test_what_stands_beyond_the_lengths_is_not_looked_at(dtype: Any, architecture: int) -> None:
    lengths = torch.tensor([133, 128])
    given = operands(dtype, 2, 200, 1, 32, 32)
    whole = hstu_hierarchical_attention.launch(*given, lengths=lengths, num_heads=1, architecture=architecture)
    for sample, length in enumerate(lengths):
        for tensor in given:
            tensor[sample, length:] = torch.nan
    again = hstu_hierarchical_attention.launch(*given, lengths=lengths, num_heads=1, architecture=architecture)
    assert torch.equal(whole, again)


@types
@pytest.mark.parametrize("levels, length", [(1, 5), (2, 66), (4, 9), (6, 5)])
@pytest.mark.parametrize("kind", ["absent", "holes", "none"])
def test_level_softmax(dtype: Any, levels: int, length: int, kind: str) -> None:
    heads = 2 if kind == "holes" else 1
    given = operands(dtype, 2, length, heads, 16, 16 if levels < 4 else 9)
    mask = masks(kind, 2, length)
    how = {"num_heads": heads, "num_levels": levels, "decay": 0.9, "alpha": 0.25, "norm": "none", "epsilon": 1e-5}
    y = hstu_hierarchical_attention.launch(*given, mask=mask, mode="level_softmax", **how)
    check(y, lambda *inputs: level_softmax(*inputs, None, None, how), *given, mask, None)


def test_refusals() -> None:
    x = drawn((1, 2, 257), torch.float32)
    with pytest.raises(ValueError, match="at most 256"):
        hstu_hierarchical_attention.launch(x, x, x, num_heads=1)
    with pytest.raises(ValueError, match="no bias"):
        x = drawn((1, 2, 16), torch.float32)
        hstu_hierarchical_attention.launch(x, x, x, num_heads=1, mode="level_softmax", causal=True)
