"""What the C++ plugins enqueue is what the kernels' own `launch` starts: variant, grid, every argument.

`launch` is what the kernels are tested with in the interpreter, so together the two say that a plugin computes its operator.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("triton")
torch = pytest.importorskip("torch")

from onnx_fuse.plugin_csrc.operators import catalogue
from onnx_fuse.plugin_csrc.operators.fm_interaction import kernel as fm_interaction
from onnx_fuse.plugin_csrc.operators.fused_attention_layer_norm import kernel as fused_attention_layer_norm
from onnx_fuse.plugin_csrc.operators.fused_embed_layer_norm import kernel as fused_embed_layer_norm
from onnx_fuse.plugin_csrc.operators.fused_linear_layer_norm import kernel as fused_linear_layer_norm
from onnx_fuse.plugin_csrc.operators.fused_skip_layer_norm import kernel as fused_skip_layer_norm
from onnx_fuse.plugin_csrc.operators.fused_swish import kernel as fused_swish
from onnx_fuse.plugin_csrc.operators.hierarchical_sequence_fusion import kernel as hierarchical_sequence_fusion
from onnx_fuse.plugin_csrc.operators.hstu_hierarchical_attention import kernel as hstu_hierarchical_attention
from onnx_fuse.plugin_csrc.operators.interaction_triton_fast import kernel as interaction_triton_fast
from onnx_fuse.plugin_csrc.operators.sequence_recommendation_interaction import (
    kernel as sequence_recommendation_interaction,
)
from onnx_fuse.runtime.plugins import aot
from tests.plugin_csrc.built import enqueued, launched, tools

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


def embed_layer_norm(
    width: int, ids: Sequence[tuple[int, int]], *, dtype: Any = HALF, last: Any = None, wide: Any = torch.int64
) -> Case:
    types = [dtype] * (len(ids) - 1) + [last or dtype]
    pairs = [
        (tensor(*sizes, dtype=wide if number else torch.int32), tensor(10 + number, width, dtype=types[number]))
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
    width: int,
    levels: int,
    *,
    dtype: Any = HALF,
    mask: Any = None,
    windows: Sequence[int] = (1,),
    of: Sequence[int] = (2, 33, 0),
) -> Case:
    inputs = {"x": tensor(2, 33, width, dtype=dtype), "level_embeddings": tensor(levels, width, dtype=dtype)}
    inputs |= {"level_mask": tensor(*of[:2], of[2] or levels, dtype=mask)} if mask is not None else {}
    weights = [0.5 / window if window > 1 else 0.0 for window in windows]
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


def interaction(form: str, features: int, size: int, *, dtype: Any = HALF, batch: int = 9, **settings: Any) -> Case:
    settings = {"triangle": "lower", "self_interaction": 0, "concat_dense": "none", **settings}
    inputs = {
        "stacked": lambda: {"E": tensor(batch, features, size, dtype=dtype)},
        "dense_and_sparse": lambda: {
            "dense": tensor(batch, size, dtype=dtype),
            "sparse": tensor(batch, features - 1, size, dtype=dtype),
        },
        "separate": lambda: {
            f"feature_{number}": tensor(batch, size, dtype=dtype) for number in range(1, features + 1)
        },
    }[form]()
    return Case(
        "InteractionTritonFast",
        settings,
        inputs,
        lambda: interaction_triton_fast.launch(list(inputs.values()), form, programs=8 * MULTIPROCESSORS, **settings),
    )


def fm(features: int, size: int, *, dtype: Any = HALF, reduce: int = 0) -> Case:
    e = tensor(9, features, size, dtype=dtype)
    return Case("FMInteraction", {"reduce": reduce}, {"E": e}, lambda: fm_interaction.launch(e, reduce=bool(reduce)))


def linear_layer_norm(inner: int, width: int, *, dtype: Any = HALF, affine: Any = HALF, bias: bool = True) -> Case:
    inputs = {"x": tensor(3, 7, inner, dtype=dtype), "weight": tensor(inner, width, dtype=dtype)}
    inputs |= {"bias": tensor(width, dtype=dtype)} if bias else {}
    inputs |= {"gamma": tensor(width, dtype=affine), "beta": tensor(width, dtype=affine)} if affine else {}
    settings = {"norm": "layer" if bias else "rms", "epsilon": 1e-5}
    return Case("FusedLinearLayerNorm", settings, inputs, lambda: fused_linear_layer_norm.launch(**inputs, **settings))


def hstu(
    size: int,
    *,
    heads: int = 2,
    value_size: int | None = None,
    dtype: Any = HALF,
    length: int = 33,
    architecture: int = 80,
    more: Mapping[str, Any] | None = None,
    **settings: Any,
) -> Case:
    width = heads * (size if value_size is None else value_size)
    inputs = {name: tensor(2, length, heads * size, dtype=dtype) for name in ("q", "k")}
    inputs |= {"v": tensor(2, length, width, dtype=dtype), **(more or {})}
    attributes: dict[str, Any] = {
        "num_heads": heads,
        "alpha": 0.25,
        "bias_order": "outside_alpha",
        "norm_length": 0.0,
        "causal": 0,
        "norm": "none",
        "gate_activation": "none",
        "epsilon": 1e-6,
        "mode": "silu",
        "num_levels": 1,
        "decay": 1.0,
        **settings,
    }
    return Case(
        "HSTUHierarchicalAttention",
        attributes,
        inputs,
        lambda: hstu_hierarchical_attention.launch(**inputs, **attributes, architecture=architecture),
        ("y",),
    )


def attention(
    size: int,
    *,
    groups: int = 2,
    value_size: int | None = None,
    dtype: Any = HALF,
    rim: Mapping[str, Any] | None = None,
    total: bool = False,
    batch: int = 2,
    keys: int = 40,
    architecture: int = 80,
    **settings: Any,
) -> Case:
    heads, queries = 2 * groups, 33
    value_size = size if value_size is None else value_size
    if settings.get("layout") == "BHSD":
        sizes = [(batch, heads, queries, size), (batch, groups, keys, size), (batch, groups, keys, value_size)]
    else:
        sizes = [(batch, queries, heads * size), (batch, keys, groups * size), (batch, keys, groups * value_size)]
    inputs = {name: tensor(*at, dtype=dtype) for name, at in zip(("query", "key", "value"), sizes, strict=True)}
    inputs |= rim or {}
    attributes: dict[str, Any] = {
        "num_heads": heads,
        "num_key_value_heads": groups,
        "scale": 0.125,
        "mask_value": -10000.0,
        "causal": "none",
        "masked_row": "uniform",
        "norm": "none",
        "epsilon": 1e-5,
        "layout": "BSH",
        **settings,
    }
    return Case(
        "FusedAttentionLayerNorm",
        attributes,
        inputs,
        lambda: fused_attention_layer_norm.launch(
            **inputs,
            **attributes,
            residual_sum=total,
            multiprocessors=MULTIPROCESSORS,
            architecture=architecture,
        ),
        ("output", "residual_sum") if total else ("output",),
    )


def rim(
    width: int, out: int, *, dtype: Any = HALF, affine: Any = FLOAT, projection: bool = True, batch: int = 2
) -> dict[str, Any]:
    """What follows attention whose heads have `width` numbers together."""
    weight = {"out_weight": tensor(width, out, dtype=dtype)} if projection else {}
    rest = {"out_bias": tensor(out, dtype=dtype), "residual": tensor(batch, 33, out, dtype=dtype)}
    return {**weight, **rest, "gamma": tensor(out, dtype=affine), "beta": tensor(out, dtype=affine)}


def sequence_interaction(
    size: int, outputs: Sequence[str], *, dtype: Any = HALF, weights: Any = None, mask: Any = None
) -> Case:
    inputs = {"items": tensor(3, 33, size, dtype=dtype)}
    inputs |= {"user": tensor(3, size, dtype=dtype)} if "scores" in outputs else {}
    inputs |= {"time_weights": tensor(3, 33, dtype=weights)} if weights else {}
    inputs |= {"mask": tensor(3, 33, dtype=mask)} if mask else {}
    settings = {"short_window": 5, "decay": 0.1, "normalize": int(mask is not None)}

    def launch() -> Any:
        made = sequence_recommendation_interaction.launch(**inputs, **settings, outputs=outputs)
        return tuple(made[name] for name in outputs)

    return Case("SequenceRecommendationInteraction", settings, inputs, launch, outputs)


MULTIPROCESSORS = 132
"""What the recording driver claims to have."""

VARIANTS = {variant.name: variant for variant in catalogue.variants()}

WORKSPACE = 1 << 40
"""Where the workspace of every run lies."""

ATTENTION_EXTRAS = [
    (64, torch.bfloat16, "attention_bias", (2, 1, 1, 40), torch.bfloat16),
    (32, HALF, "mask", (2, 1, 1, 40), torch.bool),
    (128, HALF, "mask", (1, 4, 33, 40), torch.bool),
    (256, HALF, "attention_bias", (1, 4, 33, 40), HALF),
    (64, HALF, "attention_bias", (1, 4, 33, 40), FLOAT),
    (64, HALF, "mask", (1, 4, 33, 1), torch.bool),
    (48, HALF, "mask", (1, 4, 33, 40), torch.bool),
]

CASES = [
    *(swish(*sizes, dtype=dtype) for sizes in ((3, 5), (4, 2048), (0, 7)) for dtype in (FLOAT, HALF, torch.bfloat16)),
    *(skip_layer_norm(5, width) for width in (16, 256, 272, 1024, 4096, 4112, 50)),
    skip_layer_norm(3, 64, dtype=torch.bfloat16, affine=FLOAT, bias=False, total=False),
    skip_layer_norm(3, 64, dtype=FLOAT, affine=None),
    skip_layer_norm(0, 64),
    *(skip_layer_norm(3, width) for width in (100, 128, 200, 2048)),
    *(skip_layer_norm(3, width, dtype=FLOAT, affine=FLOAT) for width in (100, 102, 1028)),
    embed_layer_norm(64, [(2, 7)]),
    embed_layer_norm(1040, [(2, 7), (1, 7), (2, 1)], dtype=FLOAT),
    embed_layer_norm(50, [(2, 7)] * 8, wide=torch.int32),
    embed_layer_norm(8192, [(1, 7), (2, 7)]),
    embed_layer_norm(200, [(2, 7), (1, 7), (2, 1)], dtype=torch.bfloat16),
    embed_layer_norm(200, [(2, 7), (1, 7)], dtype=FLOAT),
    embed_layer_norm(100, [(2, 7), (1, 7)]),
    embed_layer_norm(768, [(2, 7)] * 4),
    embed_layer_norm(768, [(2, 7), (1, 7)], last=FLOAT),
    sequence_fusion(64, 4),
    sequence_fusion(64, 17, mask=torch.bool, windows=(3, 5)),
    sequence_fusion(50, 3, mask=HALF, windows=(1, 3, 5, 7)),
    sequence_fusion(128, 128, dtype=FLOAT),
    *(sequence_fusion(64, 4, mask=torch.bool, of=of) for of in ((1, 1, 0), (2, 1, 0), (1, 33, 0), (2, 33, 1), (1, 1, 1))),
    *(interaction("stacked", features, 64) for features in (2, 16, 17, 33, 64)),
    interaction("separate", 27, 128, concat_dense="first"),
    interaction("separate", 3, 50, dtype=FLOAT, triangle="upper", self_interaction=1, concat_dense="last"),
    interaction("dense_and_sparse", 27, 64, dtype=torch.bfloat16, self_interaction=1, concat_dense="first"),
    interaction("stacked", 8, 16, batch=100_000),
    interaction("stacked", 1, 16),
    *(fm(5, size) for size in (16, 40, 64, 300, 304)),
    fm(5, 100, dtype=FLOAT),
    fm(5, 10, dtype=FLOAT, reduce=1),
    linear_layer_norm(64, 128),
    linear_layer_norm(64, 256, dtype=torch.bfloat16, affine=FLOAT),
    linear_layer_norm(64, 1024),
    linear_layer_norm(64, 1024, dtype=FLOAT, affine=None, bias=False),
    linear_layer_norm(50, 300),
    *(hstu(size, dtype=dtype) for size, dtype in ((32, HALF), (64, FLOAT), (128, HALF), (256, torch.bfloat16), (50, HALF), (100, HALF))),
    hstu(64, value_size=32, norm="layer", gate_activation="silu", causal=1, more={"u": tensor(2, 33, 64), "gamma": tensor(64), "beta": tensor(64)}),
    hstu(64, dtype=FLOAT, norm="layer", more={"lengths": tensor(2, dtype=torch.int64)}),
    hstu(64, heads=1, norm="layer", norm_length=50.0, more={"u": tensor(2, 33, 64), "lengths": tensor(2, dtype=torch.int32)}),
    hstu(64, norm="group", more={"u": tensor(2, 33, 128), "gamma": tensor(2), "beta": tensor(2)}),
    hstu(64, bias_order="inside_alpha", more={"bias": tensor(1, 2, 33, 33), "mask": tensor(2, 1, 1, 33, dtype=torch.bool), "scale": tensor(2, 1, 1, 1, dtype=FLOAT)}),
    hstu(32, length=200, more={"bias": tensor(1, 2, 200, 200), "mask": tensor(2, 1, 1, 200, dtype=torch.bool)}),
    hstu(128, length=16, dtype=torch.bfloat16, more={"bias": tensor(1, 1, 16, 16, dtype=FLOAT), "lengths": tensor(2, dtype=torch.int64)}),
    hstu(256, length=16, more={"mask": tensor(2, 1, 16, 16, dtype=torch.bool)}),
    hstu(64, length=16, more={"bias": tensor(2, 1, 16, 16, dtype=FLOAT), "mask": tensor(2, 1, 16, 16, dtype=torch.bool)}),
    hstu(64, mode="level_softmax", num_levels=3, decay=0.9, more={"mask": tensor(2, 1, 33, 33)}),
    hstu(100, mode="level_softmax", num_levels=2),
    hstu(64, mode="level_softmax", num_levels=2, more={"mask": tensor(2, 1, 33, 1, dtype=torch.bool)}),
    *(hstu(64, more={"bias": tensor(*bias), "mask": tensor(*mask, dtype=torch.bool)}) for bias, mask in (((1, 1, 1, 33), (1, 2, 33, 33)), ((1, 2, 33, 1), (2, 1, 33, 33)), ((2, 2, 1, 33), (1, 1, 1, 1)))),
    hstu(32, norm="group", more={"lengths": tensor(1, dtype=torch.int64), "beta": tensor(2)}),
    hstu(32, norm="group", more={"gamma": tensor(2, dtype=FLOAT), "beta": tensor(64)}),
    hstu(32, norm="layer", more={"lengths": tensor(1, dtype=torch.int32)}),
    attention(64, rim={"attention_bias": tensor(2, 1, 33, 1), **rim(256, 256)}),
    attention(32, batch=140, rim={"mask": tensor(140, 1, 1, 1, dtype=torch.bool), **rim(128, 128, batch=140)}),
    *(attention(size, dtype=dtype) for size, dtype in ((32, HALF), (64, FLOAT), (128, torch.bfloat16), (256, HALF), (50, HALF), (100, FLOAT))),
    *(attention(size, dtype=dtype, rim={name: tensor(*sizes, dtype=kind)}) for size, dtype, name, sizes, kind in ATTENTION_EXTRAS),
    attention(64, rim={"mask": tensor(1, 1, 33, 39, dtype=torch.bool)}, keys=39),
    attention(64, keys=39, scale=-0.5),
    attention(64, rim={"attention_bias": tensor(1, 1, 33, 40), "mask": tensor(1, 1, 33, 40, dtype=torch.bool)}),
    attention(64, value_size=32, layout="BHSD", causal="lower_right", masked_row="zero"),
    attention(64, groups=1, norm="layer", causal="upper_left", rim=rim(128, 128), total=True),
    attention(64, norm="layer", rim={"mask": tensor(2, 1, 1, 40, dtype=torch.bool), **rim(256, 256)}),
    attention(64, norm="rms", rim={"attention_bias": tensor(1, 4, 33, 40), **rim(256, 1024)}, total=True),
    attention(64, dtype=FLOAT, norm="layer", rim=rim(256, 1024, dtype=FLOAT)),
    attention(64, norm="layer", rim=rim(256, 256, projection=False), total=True),
    attention(64, dtype=FLOAT, norm="layer", rim=rim(256, 256, dtype=FLOAT, projection=False)),
    attention(64, rim={"out_weight": tensor(256, 96)}),
    attention(64, batch=140, norm="layer", rim=rim(256, 128, batch=140), total=True),
    attention(32, batch=140, norm="rms", dtype=torch.bfloat16, rim=rim(128, 512, batch=140, dtype=torch.bfloat16)),
    sequence_interaction(64, ("scores", "short_term", "long_term", "cooccurrence"), weights=HALF, mask=torch.bool),
    sequence_interaction(50, ("short_term",), dtype=FLOAT, mask=FLOAT),
    sequence_interaction(64, ("scores",), weights=FLOAT),
    sequence_interaction(64, ("cooccurrence",), mask=HALF),
    *(sequence_interaction(50, ("cooccurrence",), dtype=dtype) for dtype in (FLOAT, HALF, torch.bfloat16)),
]  # fmt: skip

LARGE_CASES = [
    *(hstu(size, dtype=torch.bfloat16, architecture=90) for size in (32, 256)),
    hstu(64, length=136, architecture=90, more={"bias": tensor(1, 1, 136, 136)}),
    hstu(128, length=0, architecture=90),  # a matrix without rows has no tensor map
    *(attention(size, dtype=torch.bfloat16, architecture=90) for size in (32, 256)),
    attention(64, architecture=90, rim={"attention_bias": tensor(1, 1, 33, 40)}),
]


ENCODE = """
import ctypes, json, sys

driver = ctypes.CDLL(sys.argv[1])


def encoded(*, address=32, stride=256, sizes=(128, 7), box=(64, 128), swizzle=3, type=1):
    pair, four = ctypes.c_uint64 * 2, ctypes.c_uint32 * 2
    rest = (pair(*sizes), pair(stride, 0), four(*box), four(1, 1), 0, swizzle, 2, 0)
    made = (ctypes.c_uint64 * 16)()
    return driver.cuTensorMapEncodeTiled(made, type, 2, ctypes.c_void_p(address), *rest)


print(encoded(), encoded(**json.loads(sys.argv[2])))
"""
"""Two tensor maps of the recording driver: one that is right, and one that differs from it in what the argument says."""


def described(tensor: Any) -> list[Any]:
    return [str(tensor.dtype).removeprefix("torch."), list(tensor.shape), tensor.data_ptr()]


def test_plugins_launch_what_the_kernels_launch(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    check(CASES, monkeypatch, tmp_path)


def test_large_tiles_are_for_the_architectures_that_have_the_memory(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    check(LARGE_CASES, monkeypatch, tmp_path, FAKE_CUDA_SM="90")


@pytest.mark.parametrize(
    "wrong",
    [
        {"address": 24},
        {"stride": 264},
        {"sizes": (128, 0)},
        {"box": (128, 64)},
        {"box": (64, 512)},
        {"swizzle": 2},
        {"type": 9},
    ],
    ids=lambda wrong: next(iter(wrong)),
)
def test_the_recording_driver_refuses_a_tensor_map_that_is_wrong(wrong: Mapping[str, Any]) -> None:
    # In a process of its own: whoever asks for libcuda.so.1 afterwards would get the driver that is loaded.
    command = [sys.executable, "-c", ENCODE, str(tools() / "libcuda.so.1"), json.dumps(wrong)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    right, refused = map(int, done.stdout.split())
    assert right == 0 and refused != 0


def check(cases: Sequence[Case], monkeypatch: pytest.MonkeyPatch, folder: Path, **environment: str) -> None:
    """The plugins of these nodes enqueue what their kernels' own `launch` starts."""
    runs, expected = [], []
    alive = []  # outputs, whose addresses must not be given to others
    for case in cases:
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
                "workspace": WORKSPACE,
            }
        )
        expected.append(launches)
    for case, run, launches, found in zip(cases, runs, expected, enqueued(runs, folder, **environment), strict=True):
        told = f"{case.name} of {[item[:2] for item in run['inputs']]}"
        assert "error" not in found, f"{told}: {found}"
        if launches:
            assert found["kernels"] == [item.kernel for item in launches], told
        assert len(found["launches"]) == len(launches), told
        mine = {address for _, _, address in (*run["inputs"], *run["outputs"])}
        for launch, item in zip(launches, found["launches"], strict=True):
            assert item["grid"] == [launch.programs, 1, 1], told
            *arguments, hidden, also_hidden = item["arguments"]
            assert hidden == also_hidden == 0, told
            pointers = aot.letters(VARIANTS[launch.kernel])
            for kind, have, want in zip(pointers, arguments, launch.arguments, strict=True):
                if kind == "p" and want not in mine:  # scratch: a tensor of the kernel's launch, the plugin's workspace
                    in_workspace = WORKSPACE <= have < WORKSPACE + found["workspace"]
                    assert in_workspace or have in {address for _, _, address in run["outputs"]}, told
                else:
                    assert have == pytest.approx(want, rel=1e-6), told
