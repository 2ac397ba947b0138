"""Kernels that go over rows: FusedSwish, norm_rows (FusedSkipLayerNorm), FusedEmbedLayerNorm, HierarchicalSequenceFusion."""

from __future__ import annotations

from typing import Any

import pytest

pytest.importorskip("triton")
torch = pytest.importorskip("torch")

from onnx_fuse.plugin_csrc.kernels import norm_rows
from onnx_fuse.plugin_csrc.operators.fused_embed_layer_norm import kernel as fused_embed_layer_norm
from onnx_fuse.plugin_csrc.operators.fused_skip_layer_norm import kernel as fused_skip_layer_norm
from onnx_fuse.plugin_csrc.operators.fused_swish import kernel as fused_swish
from onnx_fuse.plugin_csrc.operators.hierarchical_sequence_fusion import kernel as hierarchical_sequence_fusion
from tests.plugin_csrc.reference import TYPES, check, drawn, normalised

types = pytest.mark.parametrize("dtype", TYPES.values(), ids=TYPES)


@types
@pytest.mark.parametrize("shape", [(0,), (1,), (7, 3), (2047,), (2048,), (2049,), (2, 4096)])
@pytest.mark.parametrize("magnitude", [1.0, 100.0])
def test_swish(dtype: Any, shape: tuple[int, ...], magnitude: float) -> None:
    x = drawn(shape, dtype, magnitude=magnitude)
    check(fused_swish.launch(x, 1.5), lambda x: x * torch.sigmoid(1.5 * x), x)


@types
@pytest.mark.parametrize("norm", ["layer", "rms"])
@pytest.mark.parametrize(
    "rows, width",
    [
        (0, 16),
        (3, 0),
        (1, 1),
        (9, 16),
        (5, 50),
        (3, 255),
        (9, 256),
        (4, 257),
        (3, 1024),
        (1, 1040),
        (19, 72),
        (7, 200),
        (1, 2048),
        (1, 4096),
        (2, 4112),
    ],
)
def test_skip_layer_norm(dtype: Any, norm: str, rows: int, width: int) -> None:
    x, skip = drawn((rows, width), dtype), drawn((rows, width), dtype, seed=1)
    bias, gamma, beta = drawn((width,), dtype, 2), drawn((width,), torch.float32, 3), drawn((width,), dtype, 4)
    output, total = fused_skip_layer_norm.launch(x, skip, bias, gamma, beta, norm=norm, epsilon=1e-5, residual_sum=True)

    def reference(x: Any, skip: Any, bias: Any, gamma: Any, beta: Any) -> Any:
        return normalised(x + bias + skip, norm, gamma, beta, 1e-5)

    check(output, reference, x, skip, bias, gamma, beta)
    check(total, lambda x, skip, bias: x + bias + skip, x, skip, bias)


@types
@pytest.mark.parametrize("x_type", ["T", "float32"])
@pytest.mark.parametrize("skip_type", ["absent", "T", "float32"])
@pytest.mark.parametrize("width", [72, 50])
def test_norm_rows_of_each_kind_of_term(dtype: Any, x_type: str, skip_type: str, width: int) -> None:
    of = {"T": dtype, "float32": torch.float32}
    x = drawn((9, width), of[x_type])
    skip = None if skip_type == "absent" else drawn((9, width), of[skip_type], 1)
    output = torch.empty((9, width), dtype=dtype)
    norm_rows.launch(x, output, norm="rms", epsilon=1e-6, skip=skip, bias=drawn((width,), torch.float32, 2))

    def reference(x: Any, skip: Any, bias: Any) -> Any:
        return normalised(x + bias + (0.0 if skip is None else skip), "rms", None, None, 1e-6)

    check(output, reference, x, skip, drawn((width,), torch.float32, 2))


@types
@pytest.mark.parametrize("magnitude, offset", [(1e-3, 0.0), (30.0, 0.0), (1.0, 50.0)])
@pytest.mark.parametrize("width", [300, 512])
def test_norm_of_large_small_and_shifted_rows(dtype: Any, magnitude: float, offset: float, width: int) -> None:
    x, skip = (drawn((2, width), dtype, seed, magnitude) + offset for seed in (0, 1))
    output, total = fused_skip_layer_norm.launch(x, skip, norm="layer", epsilon=1e-12)
    assert total is None
    check(output, lambda x, skip: normalised(x + skip, "layer", None, None, 1e-12), x, skip)


@types
@pytest.mark.parametrize("activation", ["none", "silu", "sigmoid"])
@pytest.mark.parametrize("width", [24, 272])
@pytest.mark.parametrize("integer", [torch.int32, torch.int64])
def test_norm_rows_gates_and_ends_rows(dtype: Any, activation: str, width: int, integer: Any) -> None:
    x, gate = drawn((3, 4, width), torch.float32), drawn((3, 4, width), dtype, 1)
    lengths = torch.tensor([4, 0, 3], dtype=integer)
    output = gate.new_empty(gate.shape)
    norm_rows.launch(x, output, norm="layer", epsilon=1e-6, gate=gate, gate_activation=activation, lengths=lengths)
    act = {"none": lambda u: u, "silu": torch.nn.functional.silu, "sigmoid": torch.sigmoid}[activation]
    present = (torch.arange(4) < lengths[:, None])[..., None]

    def reference(x: Any, gate: Any) -> Any:
        return torch.where(present, normalised(x, "layer", None, None, 1e-6) * act(gate), 0.0)

    check(output, reference, x, gate)


EMBEDDINGS = [(0, 3, 16), (2, 0, 16), (2, 3, 16), (1, 5, 1024), (3, 1, 768), (2, 2, 50), (1, 2, 1040), (1, 1, 4112)]


@types
@pytest.mark.parametrize(
    "places_type, batch, positions, width",
    [
        *(("float32", *shape) for shape in EMBEDDINGS),
        *(("T", *shape) for shape in (*EMBEDDINGS, (3, 43, 64), (1, 3, 200), (1, 9, 320), (1, 3, 100), (1, 2, 4096))),
    ],
)
def test_embed_layer_norm(dtype: Any, places_type: str, batch: int, positions: int, width: int) -> None:
    words, places, kinds = (drawn((size, width), dtype, size) for size in (11, max(7, positions), 2))
    places = places.float() if places_type == "float32" else places
    draw = torch.Generator().manual_seed(0)
    ids = torch.randint(-11, 11, (batch, positions), generator=draw)
    order = torch.arange(positions, dtype=torch.int32)[None]
    kind = torch.randint(0, 2, (batch, 1), generator=draw)
    gamma, beta = words[0], words[1].float()
    output, total = fused_embed_layer_norm.launch(
        [(ids, words), (order, places), (kind, kinds)], gamma, beta, norm="layer", epsilon=1e-12, embedding_sum=True
    )

    def summed(words: Any, places: Any, kinds: Any) -> Any:
        return words[ids] + places[order.long()] + kinds[kind]

    check(total, summed, words, places, kinds)
    check(
        output,
        lambda *tables: normalised(summed(*tables[:3]), "layer", *tables[3:], 1e-12),
        *(words, places, kinds, gamma, beta),
    )


@pytest.mark.parametrize("count, width", [(8, 16), (8, 20), (7, 768), (6, 384), (4, 16), (1, 16)])
def test_embed_layer_norm_fills_every_slot_and_reads_nothing_outside(count: int, width: int) -> None:
    numbers = range(1, count + 1)
    tables = [drawn((size, width), torch.float16, size) for size in numbers]
    ids = [
        torch.full((1, 2), 99 if size % 2 else -99, dtype=[torch.int32, torch.int64][size // 2 % 2]) for size in numbers
    ]
    output, _ = fused_embed_layer_norm.launch(list(zip(ids, tables, strict=True)), norm="none", epsilon=0.0)
    last = [size - 1 if size % 2 else 0 for size in numbers]
    check(
        output,
        lambda *tables: sum(table[row].expand(1, 2, width) for table, row in zip(tables, last, strict=True)),
        *tables,
    )


def fusion(x: Any, embeddings: Any, mask: Any, temperature: float, windows: Any, factors: Any, pad: str) -> Any:
    """(y, level weights)"""
    scores = x @ embeddings.T / temperature
    scores = scores if mask is None else scores.masked_fill(mask == 0, -torch.inf)
    weights = torch.nan_to_num(torch.softmax(scores, -1))
    mixed = weights @ embeddings
    gate = torch.sigmoid((mixed * x).sum(-1, keepdim=True) / x.shape[-1])
    y = gate * mixed + (1 - gate) * x
    steps = torch.arange(x.shape[1])
    for window, factor in zip(windows, factors, strict=True):
        near = ((steps[:, None] - steps).abs() <= window // 2).to(x.dtype)
        y = y + factor * (near @ x) / (near.sum(-1, keepdim=True) if pad == "truncate" else window)
    return y, weights


@types
@pytest.mark.parametrize(
    "shape, levels",
    [((0, 3, 16), 2), ((2, 3, 16), 3), ((1, 33, 128), 16), ((3, 1, 144), 17), ((2, 9, 50), 4), ((1, 32, 129), 1)],
)
@pytest.mark.parametrize("mask", ["absent", "holes", "none", "float"])
def test_sequence_fusion(dtype: Any, shape: tuple[int, int, int], levels: int, mask: str) -> None:
    x, embeddings = drawn(shape, dtype), drawn((levels, shape[-1]), dtype, 1)
    keep = torch.rand((*shape[:2], levels), generator=torch.Generator().manual_seed(2)) > 0.4
    given = {"absent": None, "holes": keep, "none": keep & False, "float": keep.to(dtype)}[mask]
    y, weights = hierarchical_sequence_fusion.launch(x, embeddings, given, temperature=2.0, level_weights=True)
    for place, result in enumerate((y, weights)):
        check(result, lambda *inputs, place=place: fusion(*inputs, 2.0, (), (), "")[place], x, embeddings, given)


@types
@pytest.mark.parametrize("pad", ["truncate", "zero"])
@pytest.mark.parametrize("shape", [(2, 9, 50), (3, 5, 16), (1, 1, 16)])
def test_sequence_fusion_with_windows(dtype: Any, pad: str, shape: tuple[int, int, int]) -> None:
    x, embeddings = drawn(shape, dtype), drawn((3, shape[-1]), dtype, 1)
    windows, factors = (1, 3, 7, 33), (1.0, 0.5, -0.25, 0.2)
    y, weights = hierarchical_sequence_fusion.launch(
        x, embeddings, temperature=1.0, windows=windows, window_weights=factors, pad=pad
    )
    assert weights is None
    check(y, lambda x, e: fusion(x, e, None, 1.0, windows, factors, pad)[0], x, embeddings)


def test_sequence_fusion_refuses_what_has_no_variant() -> None:
    x, embeddings = drawn((1, 2, 16), torch.float32), drawn((129, 16), torch.float32)
    with pytest.raises(ValueError, match="more than 128 levels"):
        hierarchical_sequence_fusion.launch(x, embeddings, temperature=1.0)
