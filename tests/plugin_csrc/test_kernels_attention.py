"""FusedAttentionLayerNorm and FusedLinearLayerNorm, whose kernel makes attention's output projection."""

from __future__ import annotations

from typing import Any

import pytest

pytest.importorskip("triton")
torch = pytest.importorskip("torch")

from onnx_fuse.plugin_csrc.kernels import linear
from onnx_fuse.plugin_csrc.operators.fused_attention_layer_norm import kernel as fused_attention_layer_norm
from onnx_fuse.plugin_csrc.operators.fused_linear_layer_norm import kernel as fused_linear_layer_norm
from tests.plugin_csrc.reference import TYPES, check, drawn, normalised, within_memory

types = pytest.mark.parametrize("dtype", TYPES.values(), ids=TYPES)
half_types = pytest.mark.parametrize(
    "dtype, architecture", [(torch.float16, 80), (torch.bfloat16, 90)], ids=["fp16-sm_80", "bf16-sm_90"]
)


def attention(
    q: Any,
    k: Any,
    v: Any,
    bias: Any,
    mask: Any,
    weight: Any,
    out_bias: Any,
    residual: Any,
    gamma: Any,
    beta: Any,
    how: Any,
) -> Any:
    """(output, z), on operands of the layout BHSD"""
    times = q.shape[1] // k.shape[1]
    k, v = (x.repeat_interleave(times, 1) for x in (k, v))
    scores = how["scale"] * (q @ k.transpose(2, 3))
    scores = scores if bias is None else scores + bias
    keep = torch.ones(scores.shape, dtype=torch.bool) if mask is None else (mask != 0).expand(scores.shape)
    rows, columns = scores.shape[2:]
    if how.get("causal", "none") != "none":
        keep = keep.tril(columns - rows if how["causal"] == "lower_right" else 0)
    scores = torch.where(keep, scores, how.get("mask_value", -torch.inf))
    weights = torch.softmax(scores, -1)
    weights = torch.nan_to_num(weights) if how.get("masked_row") == "zero" else weights
    z = (weights @ v).transpose(1, 2).flatten(2)
    z = z if weight is None else z @ weight
    z = z if out_bias is None else z + out_bias
    z = z if residual is None else z + residual
    return normalised(z, how.get("norm", "none"), gamma, beta, how.get("epsilon", 0.0)), z


def run(
    q: Any,
    k: Any,
    v: Any,
    *given: Any,
    residual_sum: bool = False,
    layout: str = "BSH",
    multiprocessors: int = 132,
    architecture: int = 80,
    **how: Any,
) -> None:
    """Launch and reference on [B, h, S, d] operands, attention_bias, mask, out_weight, out_bias, residual, gamma, beta."""
    names = ("attention_bias", "mask", "out_weight", "out_bias", "residual", "gamma", "beta")
    given = (*given, *[None] * (len(names) - len(given)))
    operands = [q, k, v] if layout == "BHSD" else [x.transpose(1, 2).flatten(2).contiguous() for x in (q, k, v)]
    how = {"scale": q.shape[-1] ** -0.5, **how}
    with within_memory():
        results = fused_attention_layer_norm.launch(
            *operands,
            num_heads=q.shape[1],
            num_key_value_heads=k.shape[1],
            layout=layout,
            residual_sum=residual_sum,
            multiprocessors=multiprocessors,
            architecture=architecture,
            **dict(zip(names, given, strict=True)),
            **how,
        )
    for place, result in enumerate(results):
        if result is not None:
            check(result, lambda *inputs, place=place: attention(*inputs, how)[place], q, k, v, *given)


def operands(
    dtype: Any, batch: int, heads: int, rows: int, columns: int, size: int, value_size: int, groups: int
) -> Any:
    shapes = ((heads, rows, size), (groups, columns, size), (groups, columns, value_size))
    return [drawn((batch, *shape), dtype, seed) for seed, shape in enumerate(shapes)]


@types
@pytest.mark.parametrize(
    "batch, heads, rows, columns, size, value_size, groups",
    [
        (0, 2, 3, 3, 16, 16, 2),
        (2, 2, 0, 3, 16, 16, 2),
        (1, 2, 3, 0, 16, 16, 2),
        (1, 1, 1, 1, 8, 8, 1),
        (1, 2, 63, 65, 32, 32, 1),
        (1, 4, 129, 64, 64, 16, 2),
        (1, 2, 7, 5, 16, 24, 1),
        (2, 2, 7, 5, 16, 24, 2),
        (2, 1, 17, 130, 50, 50, 1),
        (1, 1, 33, 40, 128, 96, 1),
        (1, 2, 5, 33, 256, 256, 2),
        (1, 1, 5, 7, 65, 3, 1),
    ],
)
def test_sizes(
    dtype: Any, batch: int, heads: int, rows: int, columns: int, size: int, value_size: int, groups: int
) -> None:
    given = operands(dtype, batch, heads, rows, columns, size, value_size, groups)
    run(*given, layout="BHSD" if groups < heads or size == 128 else "BSH")


@types
@pytest.mark.parametrize(
    "causal, rows, columns",
    [("upper_left", 70, 70), ("lower_right", 140, 66), ("lower_right", 3, 130), ("upper_left", 5, 70)],
)
@pytest.mark.parametrize("mask_value", [float("-inf"), -1e4, -3.4028234663852886e38])
def test_causal(dtype: Any, causal: str, mask_value: float, rows: int, columns: int) -> None:
    mask_value = max(mask_value, -6e4) if dtype == torch.float16 and mask_value > -torch.inf else mask_value
    given = operands(dtype, 1, 1, rows, columns, 16, 16, 1)
    run(*given, causal=causal, mask_value=mask_value, masked_row="zero")


@types
@pytest.mark.parametrize("mask_value, masked_row", [(float("-inf"), "zero"), (-1e4, "uniform")])
@pytest.mark.parametrize("kind", ["all", "none", "left", "right", "holes", "causal rows without a key"])
def test_masks(dtype: Any, mask_value: float, masked_row: str, kind: str) -> None:
    steps, draw = torch.arange(70), torch.Generator().manual_seed(3)
    mask = {
        "all": torch.ones(2, 1, 1, 70, dtype=torch.bool),
        "none": torch.zeros(1, 1, 1, 1, dtype=torch.bool),
        "left": (steps >= 65).expand(2, 1, 40, 70).contiguous(),
        "right": (steps < 9)[None, None, None],
        "holes": torch.rand((2, 1, 40, 70), generator=draw) > 0.5,
        "causal rows without a key": (steps > 20)[None, None, None],
    }[kind]
    causal = "upper_left" if kind.startswith("causal") else "none"
    given = operands(dtype, 2, 1, 40, 70, 16, 16, 1)
    run(*given, None, mask, mask_value=mask_value, masked_row=masked_row, causal=causal)


@types
def test_masked_row_is_nan_where_the_model_makes_it_so(dtype: Any) -> None:
    q, k, v = (x.transpose(1, 2).flatten(2) for x in operands(dtype, 1, 1, 3, 3, 16, 16, 1))
    mask = torch.tensor([True, False, True])[None, None, :, None]
    out, _ = fused_attention_layer_norm.launch(
        q, k, v, num_heads=1, num_key_value_heads=1, scale=1.0, mask=mask, masked_row="nan"
    )
    assert torch.isnan(out).any(-1).tolist() == [[False, True, False]]


@types
@pytest.mark.parametrize("shape", [(1, 2, 33, 65), (2, 1, 1, 65), (1, 1, 33, 1)])
@pytest.mark.parametrize("magnitude", [1.0, 30.0])
def test_bias(dtype: Any, shape: tuple[int, ...], magnitude: float) -> None:
    bias = drawn(shape, torch.float32 if shape[0] == 2 else dtype, 7, magnitude)
    bias = torch.where(bias < -magnitude, -torch.inf, bias) if shape[1] == 2 else bias
    run(*operands(dtype, 2, 2, 33, 65, 16, 16, 2), bias)


@half_types
@pytest.mark.parametrize("extra", ["plain", "bias", "mask"])
@pytest.mark.parametrize(
    "causal, rows, columns, groups",
    [
        ("none", 3, 8, 2),
        ("none", 130, 264, 1),
        ("upper_left", 200, 200, 2),
        ("lower_right", 70, 264, 1),
        ("lower_right", 140, 72, 2),
    ],
)
def test_whole_heads(
    dtype: Any, architecture: int, extra: str, causal: str, rows: int, columns: int, groups: int
) -> None:
    """Heads of which a variant has the kinds of bias and mask as constants: full tiles, and those at the diagonal and the end."""
    batch = 2 if columns < 100 else 1
    bias = drawn((batch, 1, rows, columns), dtype, 7) if extra == "bias" else None
    mask = drawn((1, 2, rows, columns), dtype, 8) > -0.5 if extra == "mask" else None
    given = operands(dtype, batch, 2, rows, columns, 32, 32, groups)
    how = {"causal": causal, "architecture": architecture, "layout": "BSH" if groups == 2 else "BHSD"}
    run(*given, bias, mask, masked_row="zero", **how)


@pytest.mark.parametrize(
    "dtype, architecture, size", [(torch.bfloat16, 80, 64), (torch.float16, 90, 128), (torch.float16, 90, 256)]
)
def test_whole_heads_of_other_sizes(dtype: Any, architecture: int, size: int) -> None:
    given = operands(dtype, 1, 1, 70, 200, size, size, 1)
    for bias, mask in (
        (None, None),
        (drawn((1, 1, 1, 200), dtype, 7), None),
        (None, drawn((1, 1, 70, 200), dtype) > 0),
    ):
        run(*given, bias, mask, mask_value=-1e4, causal="lower_right", architecture=architecture)


@half_types
@pytest.mark.parametrize("mask_value", [float("-inf"), -1e4, -3.4028234663852886e38])
@pytest.mark.parametrize("causal, scale", [("none", 0.2), ("upper_left", 4.0)])
def test_whole_heads_with_rows_without_a_key(
    dtype: Any, architecture: int, mask_value: float, causal: str, scale: float
) -> None:
    """Some have none in the first tiles, some no more than the causal limit takes away, and some none at all."""
    mask_value = max(mask_value, -6e4) if dtype == torch.float16 and mask_value > -torch.inf else mask_value
    mask = drawn((1, 1, 140, 264), dtype, 8) > 0
    mask[:, :, ::3] = False
    mask[:, :, 1::3, :130] = False
    given = operands(dtype, 1, 1, 140, 264, 32, 32, 1)
    how = {"mask_value": mask_value, "causal": causal, "scale": scale, "architecture": architecture}
    run(*given, None, mask, masked_row="zero" if mask_value == -torch.inf else "uniform", **how)


@half_types
@pytest.mark.parametrize("low", [-1e4, -1e9, float("-inf"), None])
def test_whole_heads_with_keys_that_a_bias_takes_out(dtype: Any, architecture: int, low: float | None) -> None:
    """In some rows all of them; None is the least number of the type, which log2 e takes out of float32's range."""
    low = torch.finfo(dtype).min if low is None or (dtype == torch.float16 and low > -torch.inf) else low
    bias = drawn((1, 1, 140, 264), torch.float32, 7)
    bias = torch.where(drawn(bias.shape, torch.float32, 8) > 0, bias, low)
    bias[:, :, ::3] = low
    bias[:, :, 1::3, :130] = low
    how = {"causal": "lower_right", "masked_row": "zero", "architecture": architecture}
    run(*operands(dtype, 1, 1, 140, 264, 32, 32, 1), bias.to(dtype), **how)


@half_types
def test_whole_heads_with_maxima_that_grow(dtype: Any, architecture: int) -> None:
    """From tile to tile, and in one row only."""
    bias = torch.zeros(1, 1, 140, 400)
    bias[..., 77, :] = torch.arange(400) // 64 * 5.0
    bias[..., 131, :] = 40.0 - torch.arange(400) // 64 * 5.0
    given = operands(dtype, 1, 1, 140, 400, 32, 32, 1)
    run(*given, bias.to(dtype), architecture=architecture)


@types
@pytest.mark.parametrize("scale", [0.0, -0.3])
def test_scales_that_are_not_positive(dtype: Any, scale: float) -> None:
    run(*operands(dtype, 1, 1, 40, 72, 32, 32, 1), scale=scale, causal="upper_left", mask_value=-1e4)


@types
@pytest.mark.parametrize("norm", ["layer", "rms", "none"])
@pytest.mark.parametrize("width", [32, 100, 400, 528])
def test_rim(dtype: Any, norm: str, width: int) -> None:
    weight, out_bias = drawn((32, width), dtype, 3, 0.2), drawn((width,), torch.float32, 4)
    residual, gamma, beta = drawn((1, 5, width), dtype, 5), drawn((width,), dtype, 6), drawn((width,), dtype, 7)
    given = operands(dtype, 1, 2, 5, 9, 16, 16, 2)
    run(
        *given,
        None,
        None,
        weight,
        out_bias,
        residual,
        gamma,
        beta,
        norm=norm,
        epsilon=1e-5,
        residual_sum=norm == "layer",
    )


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("width, norm", [(48, "layer"), (128, "none"), (272, "rms"), (512, "layer")])
def test_rim_as_an_epilogue(dtype: Any, width: int, norm: str) -> None:
    """One launch for all heads, which the number of tiles decides."""
    weight, out_bias = drawn((64, width), dtype, 3, 0.2), drawn((width,), torch.float32, 4)
    residual, gamma, beta = drawn((2, 33, width), dtype, 5), drawn((width,), dtype, 6), drawn((width,), dtype, 7)
    mask = torch.arange(40)[None, None, None] < torch.tensor([40, 9])[:, None, None, None]
    given = (*operands(dtype, 2, 2, 33, 40, 16, 32, 2), None, mask, weight, out_bias, residual, gamma, beta)
    how = {"norm": norm, "epsilon": 1e-5, "residual_sum": True, "mask_value": -1e4, "causal": "upper_left"}
    run(*given, **how, multiprocessors=2)


@types
@pytest.mark.parametrize("norm", ["layer", "none"])
def test_rim_without_a_projection(dtype: Any, norm: str) -> None:
    given = operands(dtype, 2, 2, 5, 9, 16, 16, 2)
    run(*given, None, None, None, None, drawn((2, 5, 32), dtype, 5), norm=norm, epsilon=1e-8, residual_sum=True)


def test_large_heads_are_refused() -> None:
    x = drawn((1, 2, 257), torch.float32)
    with pytest.raises(ValueError, match="at most 256"):
        fused_attention_layer_norm.launch(x, x, x, num_heads=1, num_key_value_heads=1, scale=1.0)


@types
@pytest.mark.parametrize(
    "rows, inner, width",
    [(0, 16, 16), (1, 1, 1), (65, 64, 128), (3, 80, 144), (33, 16, 512), (2, 48, 520), (2, 33, 257), (3, 0, 16)],
)
def test_linear_layer_norm(dtype: Any, rows: int, inner: int, width: int) -> None:
    x, weight = drawn((rows, inner), dtype), drawn((inner, width), dtype, 1)
    bias, gamma, beta = drawn((width,), dtype, 2), drawn((width,), torch.float32, 3), drawn((width,), dtype, 4)
    for norm in ("layer", "rms"):
        output = fused_linear_layer_norm.launch(x, weight, bias, gamma, beta, norm=norm, epsilon=1e-5)
        check(
            output,
            lambda x, w, b, gamma, beta, norm=norm: normalised(x @ w + b, norm, gamma, beta, 1e-5),
            *(x, weight, bias, gamma, beta),
        )
    output, total = linear.launch(x, weight, norm="none", epsilon=0.0)
    assert total is None
    check(output, lambda x, w: x @ w, x, weight)
