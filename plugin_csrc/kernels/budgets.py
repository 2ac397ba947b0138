"""What the machine code of the main variants may cost at most, and the build of all. The tests compile the former and fail where
one costs more.

A figure is here once the kernels meet it, so that a change cannot undo it unseen. Nothing here imports triton.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from types import MappingProxyType

from onnx_fuse.plugin_csrc.kernels.manifest import SAME_PTX, Variant


@dataclass(frozen=True)
class Budget:
    """Limits of one variant on one architecture.

    Attributes:
        instructions: of a thread for one score, on the shortest way through the main loop.
        stack: bytes of local memory of a thread, none of which the main loop touches.
        width: bytes that every load and store of the main loop moves for each thread, at least.
    """

    instructions: float
    stack: int
    width: int


HSTU = MappingProxyType(
    {
        # Architecture -> end of the variant's name -> heads of 32, 64, 128 and 256. On sm_90 heads of 128 with a bias were to take
        # 11.5: the scores, the bias and what goes into exp2 are three products, of which tanh needs two.
        90: {
            "": (5.75, 6.25, 8.5, 12.0),
            ".bias": (10.75, 11.25, 11.6, 15.0),
            ".mask": (8.75, 9.25, 11.75, 15.25),
        },
        80: {"": (6.2, 8.6, 15.25, 30.0), ".bias": (12.2, 14.2, 18.3, 31.4)},
    }
)
"""Instructions for one score in bfloat16, by tanh for heads of 32 and 64 without a bias, else by exp2, which takes 2.25 more."""
HSTU_STACK = MappingProxyType({90: (72, 72, 72, 80), 80: (72, 72, 96, 200)})
"""Architecture -> bytes of stack: outside of the loop over full tiles, large heads do not fit into the registers."""

_WIDTHS = (64, 128, 256, 384, 512, 768, 1024)
STREAMS = (
    # Widths of rows that fill less of the smallest variant that holds them have a smaller share: of a norm, those from 1032 to
    # 1390 and from 2056 to 2780.
    *(("FusedEmbedLayerNorm", {"W": width}, 0.85) for width in _WIDTHS),
    *(("FusedSkipLayerNorm", {"R": 32768, "W": width}, 0.8) for width in (*_WIDTHS, 320, 1536, 2048, 3072, 4096)),
    *(("FMInteraction", {"B": 65536, "F": 26, "W": size}, 0.75) for size in (16, 24, 32, 64, 128, 256)),
    # What sums items has its few numbers under way at once: at B=64 latency leaves it 30 %.
    ("SequenceRecommendationInteraction", {"B": 64}, 0.5),
    ("SequenceRecommendationInteraction", {"B": 1024}, 0.8),
)
"""Operator, sizes of its case in benchmarks/kernel_cases.py, and the least share of the bandwidth that the model of
passes/select/roofline.py gives its kernels together on sm_90, in bfloat16."""


def hstu() -> Mapping[tuple[str, int], Budget]:
    """(variant, architecture) -> its budget."""
    found = {}
    for architecture, kinds in HSTU.items():
        for extra, figures in kinds.items():
            for size, figure, stack in zip((32, 64, 128, 256), figures, HSTU_STACK[architecture], strict=True):
                name = f"hstu_hierarchical_attention.tiles.bf16.d{size}{extra}" + ".large" * (architecture == 90)
                width = 8 if extra == ".mask" else 16  # rows of a mask of bytes begin at multiples of 8
                found[name, architecture] = Budget(figure, stack, width)
    return found


ATTENTION: Mapping[int, Mapping[str, tuple[float, ...]]] = MappingProxyType(
    {
        # As `HSTU`. On sm_80 heads of 128 and 256 are without: they take 14 and 41, and part of it is local memory.
        90: {"": (6.5, 7.25, 8.0, 15.5), ".bias": (9.5, 10.5, 11.25, 19.0), ".mask": (9.5, 10.5, 11.5, 20.0)},
        80: {"": (8.03, 11.66)},
    }
)


def attention() -> Mapping[tuple[str, int], Budget]:
    """(variant, architecture) -> its budget."""
    found = {}
    for architecture, kinds in ATTENTION.items():
        for extra, figures in kinds.items():
            for size, figure in zip((32, 64, 128, 256), figures, strict=False):
                name = f"fused_attention_layer_norm.whole.bf16.d{size}{extra}" + ".large" * (architecture == 90)
                found[name, architecture] = Budget(figure, 72, 8 if extra == ".mask" else 16)
    return found


SECONDS_OF_ONE, SECONDS_OF_ALL = 220, 1470
"""CPU seconds that compiling all variants may take, for one architecture and for all: of 4 minutes and 25 what the C++ leaves."""
_COMPILED = MappingProxyType(
    {
        "attention": 1.7,
        "attention_projected": 2.3,
        "embed_rows": 0.9,
        "fm_interaction": 0.3,
        "fused_embed_layer_norm": 2.1,
        "fused_swish": 0.1,
        "hierarchical_sequence_fusion": 2.0,
        "hstu_level_softmax": 1.6,
        "hstu_mapped_tiles": 1.9,
        "hstu_silu": 1.3,
        "hstu_tiles": 1.8,
        "interaction_triton_fast": 1.0,
        "linear": 1.2,
        "norm_rows": 0.5,
        "sequence_cooccurrence": 0.8,
        "sequence_interests": 0.9,
    }
)
"""Kernel -> CPU seconds that one of its variants takes for one architecture, on average, measured on sm_90."""
_ASSEMBLED = 0.25
"""Part of that for an architecture that shares its PTX with another."""


def build_seconds(variants: Iterable[Variant], architectures: Iterable[int]) -> float:
    """About how many CPU seconds compiling them takes."""
    found = 0.0
    for variant in variants:
        chosen = variant.architectures & set(architectures)
        assembled = {item for item in chosen if SAME_PTX.get(item) in chosen}
        found += _COMPILED[variant.function.__name__] * (len(chosen - assembled) + _ASSEMBLED * len(assembled))
    return found
