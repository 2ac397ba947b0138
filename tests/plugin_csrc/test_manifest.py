"""The manifest: enough variants for every shape, few enough to compile, and a sample of them compiled for real."""

from __future__ import annotations

import importlib
import itertools
import os
import re
import subprocess
import sys
from collections import Counter
from fnmatch import fnmatchcase
from pathlib import Path

import pytest

pytest.importorskip("triton")

import onnx_fuse
from onnx_fuse.plugin_csrc.kernels import budgets, linear, norm_rows, pruning
from onnx_fuse.plugin_csrc.kernels.manifest import ARCHITECTURES, TYPES, Variant
from onnx_fuse.plugin_csrc.operators import catalogue
from onnx_fuse.plugin_csrc.operators.fm_interaction import kernel as fm_interaction
from onnx_fuse.plugin_csrc.operators.fused_attention_layer_norm import kernel as fused_attention_layer_norm
from onnx_fuse.plugin_csrc.operators.fused_embed_layer_norm import kernel as fused_embed_layer_norm
from onnx_fuse.plugin_csrc.operators.fused_swish import kernel as fused_swish
from onnx_fuse.plugin_csrc.operators.hierarchical_sequence_fusion import kernel as hierarchical_sequence_fusion
from onnx_fuse.plugin_csrc.operators.hstu_hierarchical_attention import kernel as hstu_hierarchical_attention
from onnx_fuse.plugin_csrc.operators.interaction_triton_fast import kernel as interaction_triton_fast
from onnx_fuse.plugin_csrc.operators.sequence_recommendation_interaction import (
    kernel as sequence_recommendation_interaction,
)

ROOT = Path(__file__).parents[2]
OPERATORS = ROOT / "plugin_csrc" / "operators"
FOLDERS = sorted(path.parent.name for path in OPERATORS.glob("*/__init__.py"))
VARIANTS = list(catalogue.variants())
NAMES = {variant.name: variant for variant in VARIANTS}


def test_every_operator_has_a_folder_with_plugin_and_kernel() -> None:
    operators = [fusion.operator.name for fusion in onnx_fuse.fusions()]
    assert sorted(name.lower() for name in operators) == sorted(folder.replace("_", "") for folder in FOLDERS)
    assert [path.name for path in OPERATORS.iterdir() if path.is_dir() and path.name not in FOLDERS] in (
        [],
        ["__pycache__"],
    )
    for folder in FOLDERS:
        assert {"kernel.py", "plugin.cpp"} <= {path.name for path in (OPERATORS / folder).iterdir()}, folder


def test_every_plugin_is_in_the_library() -> None:
    """In its list, each by the function that its plugin.cpp ends with."""
    text = (OPERATORS / "operators.cpp").read_text()
    makers = [
        "".join(word if not index else word.title() for index, word in enumerate(name.split("_"))) for name in FOLDERS
    ]
    assert re.findall(r"^Entry (\w+)\(\);", text, re.MULTILINE) == makers
    assert re.findall(r"^ +(\w+)\(\),", text, re.MULTILINE) == makers
    for folder, maker in zip(FOLDERS, makers, strict=True):
        assert f"Entry {maker}()" in (OPERATORS / folder / "plugin.cpp").read_text(), folder


def test_every_kernel_is_compiled() -> None:
    """A kernel of an operator's own is in the catalogue; the others are those that several operators share."""
    modules = [f"onnx_fuse.plugin_csrc.operators.{folder}.kernel" for folder in FOLDERS]
    modules += [
        f"onnx_fuse.plugin_csrc.kernels.{path.stem}" for path in (ROOT / "plugin_csrc/kernels").glob("[!_]*.py")
    ]
    with_variants = [name for name in modules if hasattr(importlib.import_module(name), "variants")]
    assert sorted(module.__name__ for module in catalogue.MODULES) == sorted(with_variants)


@pytest.fixture
def left_out(monkeypatch: pytest.MonkeyPatch) -> set[str]:
    """Names of the variants that there would be without pruning."""
    with monkeypatch.context() as context:
        context.setattr(pruning, "PRUNED", ())
        return {variant.name for variant in catalogue.variants()} - NAMES.keys()


def test_the_build_stays_within_its_budget() -> None:
    """Whoever adds a variant for which there is no time any more takes another one out: `kernels/pruning.py`."""
    for architecture in ARCHITECTURES:
        assert budgets.build_seconds(VARIANTS, [architecture]) <= budgets.SECONDS_OF_ONE, architecture
    assert budgets.build_seconds(VARIANTS, ARCHITECTURES) <= budgets.SECONDS_OF_ALL
    assert len(NAMES) == len(VARIANTS)


def test_what_is_pruned_has_another_in_its_place(left_out: set[str]) -> None:
    for entry in pruning.PRUNED:
        assert any(map(entry.has, left_out)), entry
        for others in entry.instead.split(", and "):
            assert any(fnmatchcase(name, others) for name in NAMES), others
        assert entry.reason
    assert left_out == {name for name in left_out if pruning.pruned(name)}
    assert not any(map(pruning.pruned, NAMES))


@pytest.mark.parametrize("variant", VARIANTS, ids=lambda variant: variant.name)
def test_a_variant_describes_its_function(variant: Variant) -> None:
    arguments = list(variant.function.arg_names)
    assert arguments == [name for name in arguments if name in variant.signature or name in variant.constants]
    assert list(variant.signature) == [name for name in arguments if name not in variant.constants]
    assert variant.signature.keys().isdisjoint(variant.constants)
    assert set(variant.divisible) <= {name for name, kind in variant.signature.items() if kind in ("i32", "i64")}
    assert variant.aligned != variant.name.endswith(".any")
    maps = {kind for kind in variant.signature.values() if kind.startswith("tensordesc<")}
    known = {f"*{each}" for each in (*TYPES, "i32", "i8")} | {"i32", "i64", "fp32"}
    assert set(variant.signature.values()) - maps <= known
    assert len(maps) <= 1 and variant.architectures <= {90, 100} | (set() if maps else set(ARCHITECTURES))


def test_each_type_has_the_same_variants(left_out: set[str]) -> None:
    """Except for what is pruned, and what makes 16-bit types faster and is not needed for any shape: attention's projection as an
    epilogue, tiles of HSTU and whole heads of attention, which take the heads of 32 that float32 has in its other kernels."""
    names = {*NAMES, *left_out}
    kinds = Counter(name.replace(element, "T") for name in names for element in TYPES if f".{element}" in name)
    extra = {kind for kind in kinds if ".tiles." in kind or ".whole." in kind}
    assert {kind for kind, count in kinds.items() if count != len(TYPES)} - extra == {
        "fused_attention_layer_norm.projected.T.h128",
        "fused_attention_layer_norm.projected.T.h512",
        "fused_attention_layer_norm.T.d32",
        "hstu_hierarchical_attention.silu.T.d32",
    }
    assert {kinds[kind] for kind in extra} == {2}


SIZES = [*range(8, 257), 1, 3]
WIDTHS = [*range(1, 600), 768, 1000, 1024, 1025, 2048, 4096, 4097, 4112, 5120, 8192, 16384]


@pytest.mark.parametrize("element", TYPES)
def test_no_shape_is_without_a_variant(element: str) -> None:
    picked = [
        fused_swish.pick(element),
        *(fm_interaction.pick(element, width) for width in WIDTHS),
        sequence_recommendation_interaction.pick(element, "interests"),
        *(sequence_recommendation_interaction.pick(element, "cooccurrence", width) for width in WIDTHS),
        *(norm_rows.pick(element, width) for width in WIDTHS),
        *(fused_embed_layer_norm.pick(element, width) for width in WIDTHS),
        fused_embed_layer_norm.pick(element, 64, plain=False),
        *(hierarchical_sequence_fusion.pick(element, width, levels) for width in WIDTHS for levels in (1, 16, 17, 128)),
        *(interaction_triton_fast.pick(element, f, size) for f in range(1, 65) for size in (1, 7, 16, 64, 65, 128)),
        *(linear.pick(element, inner, width, n) for inner in (1, 16, 50) for width in WIDTHS for n in ("none", "rms")),
    ]
    for size, value_size in itertools.product(SIZES, (8, 16, 50, 64, 100, 256)):
        for mode in ("silu", "level_softmax"):
            picked.append(hstu_hierarchical_attention.pick(element, mode, size, value_size))
        picked.append(fused_attention_layer_norm.pick(element, size, value_size))
    assert None not in picked
    if element != "fp32":  # for these there is another where they are pruned
        picked += [fused_attention_layer_norm.pick_projected(element, 64, 64, width) for width in (16, 128, 144, 512)]
        for size, kinds, large in itertools.product(
            (32, 64, 128, 256), hstu_hierarchical_attention.EXTRAS, (False, True)
        ):
            picked.append(hstu_hierarchical_attention.pick_tiles(element, size, size, 200, kinds, True, large))
        for size, kinds, large in itertools.product(
            (32, 64, 128, 256), fused_attention_layer_norm.EXTRAS, (False, True)
        ):
            picked.append(fused_attention_layer_norm.pick_whole(element, size, size, 200, kinds, 0.5, large))
    for variant in filter(None, picked):
        assert variant == NAMES[variant.name]
    assert {variant.name for variant in picked if variant} == {name for name in NAMES if f".{element}" in name}


@pytest.mark.parametrize("size", [24, 48, 80, 96, 112, 240])
def test_a_variant_is_large_enough_for_what_it_is_picked_for(size: int) -> None:
    for element in TYPES:
        for module_variant in (
            hstu_hierarchical_attention.pick(element, "silu", size, size),
            fused_attention_layer_norm.pick(element, size, size),
        ):
            assert module_variant is not None
            assert module_variant.constants["SIZE"] >= size
            assert not module_variant.divisible or size % 16 == 0


@pytest.mark.parametrize(
    "size, value_size, length, kinds, dense",
    [
        (64, 32, 200, (0, 0), True),
        (48, 48, 200, (0, 0), True),
        (64, 64, 201, (1, 0), True),
        (64, 64, 200, (1, 0), False),
        (64, 64, 200, (2, 0), True),
        (64, 64, 200, (0, 1), True),
    ],
)
def test_what_tiles_do_not_take(size: int, value_size: int, length: int, kinds: tuple[int, int], dense: bool) -> None:
    for large in (False, True):
        pick = hstu_hierarchical_attention.pick_tiles
        assert pick("bf16", size, value_size, length, kinds, dense, large) is None
        assert pick("fp32", 64, 64, 200, (0, 0), True, large) is None
        assert pick("bf16", 64, 64, 201, (0, 0), False, large) is not None


@pytest.mark.parametrize(
    "size, value_size, keys, kinds, scale, dense",
    [
        (64, 32, 200, (0, 0), 0.5, True),
        (48, 48, 200, (0, 0), 0.5, True),
        (64, 64, 201, (1, 0), 0.5, True),
        (64, 64, 200, (0, 3), 0.5, False),
        (64, 64, 200, (2, 0), 0.5, True),
        (64, 64, 200, (1, 3), 0.5, True),
        (64, 64, 200, (0, 0), -0.5, True),
    ],
)
def test_what_whole_heads_are_not(
    size: int, value_size: int, keys: int, kinds: tuple[int, int], scale: float, dense: bool
) -> None:
    for large in (False, True):
        pick = fused_attention_layer_norm.pick_whole
        assert pick("bf16", size, value_size, keys, kinds, scale, large, dense) is None
        assert pick("fp32", 64, 64, 200, (0, 0), 0.5, large) is None
        assert pick("bf16", 64, 64, 201, (0, 0), 0.5, large, False) is not None


def test_every_architecture_has_a_kernel() -> None:
    """Of those that only some architectures have there are two, which have them all."""
    for variant in VARIANTS:
        other = NAMES.get(
            variant.name.removesuffix(".large") if variant.name.endswith(".large") else f"{variant.name}.large"
        )
        others = other.architectures if other else frozenset()
        assert variant.architectures | others == set(ARCHITECTURES) and not variant.architectures & others


def test_what_has_no_variant_is_refused() -> None:
    assert hstu_hierarchical_attention.pick("fp16", "silu", 257, 16) is None
    assert fused_attention_layer_norm.pick("fp16", 16, 257) is None
    assert interaction_triton_fast.pick("fp16", 65, 16) is None
    assert hierarchical_sequence_fusion.pick("fp16", 16, 129) is None


COMPILE = r"""
import re, sys, triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from onnx_fuse.plugin_csrc.operators import catalogue

for variant in catalogue.variants():
    if variant.name not in sys.argv[1:]:
        continue
    names = list(variant.function.arg_names)
    signature = {name: variant.signature.get(name, "constexpr") for name in names}
    aligned = [i for i, name in enumerate(names) if name in variant.divisible or variant.aligned and signature[name][0] == "*"]
    attributes = {(i,): [["tt.divisibility", 16]] for i in aligned}
    source = ASTSource(variant.function, signature, dict(variant.constants), attributes)
    options = {"num_warps": variant.num_warps, "num_stages": variant.num_stages, "enable_fp_fusion": True}
    for architecture, kilobytes in ((80, 99), (90, 227)):
        if architecture not in variant.architectures:
            continue
        made = triton.compile(source, target=GPUTarget("cuda", architecture, 32), options=options)
        assert made.metadata.shared <= kilobytes * 1024, (variant.name, architecture, made.metadata.shared)
        assert made.metadata.global_scratch_size == made.metadata.profile_scratch_size == 0, variant.name
        assert ".fp32" not in variant.name or "tf32" not in made.asm["ptx"], variant.name
        vectors = "v4.b32" in made.asm["ptx"] or "cp.async.cg" in made.asm["ptx"]
        assert vectors or not variant.aligned, f"{variant.name} reads one element at a time"
        wide = re.search(r"(ld|st)\.global\S*\.v\d|cp\.async\.c", made.asm["ptx"])
        assert variant.aligned or not wide, f"{variant.name} reads several elements at once: {wide[0]}"
"""

SAMPLE = (
    "fused_attention_layer_norm.fp32.d128",
    "fused_attention_layer_norm.bf16.d64.any",
    "fused_attention_layer_norm.whole.fp16.d128.bias",
    "fused_attention_layer_norm.whole.bf16.d64.mask.large",
    "fused_embed_layer_norm.bf16.1024",
    "fused_swish.fp16",
    "hierarchical_sequence_fusion.bf16.l16",
    "hstu_hierarchical_attention.silu.fp16.d64",
    "hstu_hierarchical_attention.tiles.fp16.d64.bias",
    "hstu_hierarchical_attention.tiles.bf16.d64.mask.large",
    "interaction_triton_fast.fp16.f32",
    "linear.fp32.h128",
    "norm_rows.fp16.1024",
    "norm_rows.fp16.any",
    "sequence_recommendation_interaction.cooccurrence.fp32",
    "fm_interaction.fp16.16",
    "fm_interaction.bf16.any",
)


@pytest.mark.slow
def test_a_sample_compiles_without_a_gpu() -> None:
    """The smallest limit of shared memory counts for sm_80 too, whose PTX is what unknown chips get."""
    assert set(SAMPLE) <= NAMES.keys()
    environment = {**os.environ, "TRITON_INTERPRET": "0", "TRITON_DISABLE_LINE_INFO": "1"}
    command = [sys.executable, "-c", COMPILE, *SAMPLE]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
