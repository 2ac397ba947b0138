"""What the C++ plugins enqueue is what the kernels' own `launch` starts: variant, grid, every argument.

`launch` is what the kernels are tested with in the interpreter, so together the two say that a plugin computes its operator.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("triton")
torch = pytest.importorskip("torch")

from onnx_fuse.plugin_csrc.kernels import (  # noqa: E402
    fused_embed_layer_norm,
    fused_skip_layer_norm,
    fused_swish,
    hierarchical_sequence_fusion,
)
from tests.plugin_csrc.built import enqueued, launched  # noqa: E402

HALF, FLOAT = torch.float16, torch.float32


@dataclass(frozen=True)
class Case:
    """A node, the tensors it reads in order, and the kernel's own launch, which returns what the node makes (None: not made)."""

    name: str
    attributes: Mapping[str, Any]
    inputs: Mapping[str, Any]
    launch: Callable[[], Any]
    outputs: Sequence[str] = field(default=("output",))


def tensor(*sizes: int, dtype: Any = HALF) -> Any:
    return torch.zeros(sizes, dtype=dtype)


def swish(*sizes: int, dtype: Any) -> Case:
    x = tensor(*sizes, dtype=dtype)
    return Case("FusedSwish", {"beta": 1.5}, {"x": x}, lambda: fused_swish.launch(x, 1.5))


def skip_layer_norm(
    rows: int, width: int, *, dtype: Any = HALF, affine: Any = HALF, bias: bool = True, total: bool = True
) -> Case:
    inputs = {"x": tensor(2, rows, width, dtype=dtype), "skip": tensor(2, rows, width, dtype=dtype)}
    inputs |= {"bias": tensor(width, dtype=dtype)} if bias else {}
    inputs |= {"gamma": tensor(width, dtype=affine), "beta": tensor(width, dtype=affine)} if affine else {}
    settings = {"norm": "layer" if bias else "rms", "epsilon": 1e-5}
    return Case(
        "FusedSkipLayerNorm",
        settings,
        inputs,
        lambda: fused_skip_layer_norm.launch(**inputs, **settings, residual_sum=total),
        ("output", "residual_sum") if total else ("output",),
    )


def embed_layer_norm(width: int, ids: Sequence[tuple[int, int]], *, dtype: Any = HALF, wide: Any = torch.int64) -> Case:
    pairs = [
        (tensor(*sizes, dtype=wide if number else torch.int32), tensor(10 + number, width, dtype=dtype))
        for number, sizes in enumerate(ids)
    ]
    gamma, beta = tensor(width, dtype=FLOAT), tensor(width, dtype=dtype)
    named = {f"ids_{number}": pair[0] for number, pair in enumerate(pairs, 1)}
    inputs: dict[str, Any] = {}
    for number, (_, table) in enumerate(pairs, 1):
        inputs |= {f"ids_{number}": named[f"ids_{number}"], f"table_{number}": table}
    settings = {"norm": "layer", "epsilon": 1e-12}
    return Case(
        "FusedEmbedLayerNorm",
        {"num_tables": len(pairs), **settings},
        {**inputs, "gamma": gamma, "beta": beta},
        lambda: fused_embed_layer_norm.launch(pairs, gamma, beta, **settings, embedding_sum=len(ids) > 1),
        ("output", "embedding_sum") if len(ids) > 1 else ("output",),
    )


def sequence_fusion(
    width: int, levels: int, *, dtype: Any = HALF, mask: Any = None, windows: Sequence[int] = ()
) -> Case:
    inputs = {"x": tensor(2, 33, width, dtype=dtype), "level_embeddings": tensor(levels, width, dtype=dtype)}
    inputs |= {"level_mask": tensor(2, 33, levels, dtype=mask)} if mask is not None else {}
    weights = [0.5 / window for window in windows]
    settings: dict[str, Any] = {
        "temperature": 0.7,
        "windows": list(windows),
        "window_weights": weights,
        "pad": "zero" if mask else "truncate",
    }
    return Case(
        "HierarchicalSequenceFusion",
        settings,
        inputs,
        lambda: hierarchical_sequence_fusion.launch(**inputs, **settings, level_weights=mask is not None),
        ("y", "level_weights") if mask is not None else ("y",),
    )


CASES = [
    *(swish(*sizes, dtype=dtype) for sizes in ((3, 5), (4, 2048), (0, 7)) for dtype in (FLOAT, HALF, torch.bfloat16)),
    *(skip_layer_norm(5, width) for width in (16, 256, 272, 1024, 4096, 4112, 50)),
    skip_layer_norm(3, 64, dtype=torch.bfloat16, affine=FLOAT, bias=False, total=False),
    skip_layer_norm(3, 64, dtype=FLOAT, affine=None),
    skip_layer_norm(0, 64),
    embed_layer_norm(64, [(2, 7)]),
    embed_layer_norm(1040, [(2, 7), (1, 7), (2, 1)], dtype=FLOAT),
    embed_layer_norm(50, [(2, 7)] * 8, wide=torch.int32),
    embed_layer_norm(8192, [(1, 7), (2, 7)]),
    sequence_fusion(64, 4),
    sequence_fusion(64, 17, mask=torch.bool, windows=(3, 5)),
    sequence_fusion(50, 3, mask=HALF, windows=(1, 3, 5, 7)),
    sequence_fusion(128, 128, dtype=FLOAT),
]  # fmt: skip


def described(tensor: Any) -> list[Any]:
    return [str(tensor.dtype).removeprefix("torch."), list(tensor.shape), tensor.data_ptr()]


def test_plugins_launch_what_the_kernels_launch(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    runs, expected = [], []
    alive = []  # outputs, whose addresses must not be given to others
    for case in CASES:
        launches, made = launched(monkeypatch, case.launch)
        made = made if isinstance(made, tuple) else (made,)
        alive.append(made)
        outputs = [item for item in made if item is not None]
        assert len(outputs) == len(case.outputs)
        names = {"inputs": ",".join(case.inputs), "outputs": ",".join(case.outputs)}
        runs.append(
            {
                "name": case.name,
                "attributes": {**case.attributes, **names},
                "inputs": [described(item) for item in case.inputs.values()],
                "outputs": [described(item) for item in outputs],
            }
        )
        expected.append(launches)
    for case, run, launches, found in zip(CASES, runs, expected, enqueued(runs, tmp_path), strict=True):
        told = f"{case.name} of {[item[:2] for item in run['inputs']]}"
        assert "error" not in found, f"{told}: {found}"
        if launches:
            assert found["kernels"] == [item.kernel for item in launches], told
        assert len(found["launches"]) == len(launches), told
        for launch, item in zip(launches, found["launches"], strict=True):
            assert item["grid"] == [launch.programs, 1, 1], told
            assert item["arguments"][-2:] == [0, 0], told  # the hidden ones
            assert item["arguments"][:-2] == pytest.approx(list(launch.arguments), rel=1e-6), told
