"""Variants that are written and not compiled, because they cost more of the build than they are worth.

Each is a special case of a more general kernel, which runs in its place: nothing is refused. `pick` in the kernels' files and
`findKernel` in C++ go on to it. Nothing here imports triton.
"""

from __future__ import annotations

from dataclasses import dataclass
from fnmatch import fnmatchcase


@dataclass(frozen=True)
class Pruned:
    """Variants that are left out.

    Attributes:
        names: a pattern, each part of which (between dots) stands for a part of their names; those for large tiles are meant too.
        instead: what runs in their place.
        reason: why they are not worth their place. Instructions are those of a thread for one score in the main loop, in bfloat16
            on sm_90 where nothing else is said (`benchmarks/kernel_costs.py`).
    """

    names: str
    instead: str
    reason: str

    def has(self, name: str) -> bool:
        """Whether a variant of this name is left out by it."""
        parts, patterns = name.removesuffix(".large").split("."), self.names.split(".")
        return len(parts) == len(patterns) and all(map(fnmatchcase, parts, patterns))


PRUNED = (
    Pruned(
        "hstu_hierarchical_attention.tiles.*.*.bias.mask",
        "hstu_hierarchical_attention.silu.*",
        "a bias and a mask of bytes at once: 14 to 19 instructions against 54 to 133",
    ),
    Pruned(
        "hstu_hierarchical_attention.tiles.fp16.d256",
        "hstu_hierarchical_attention.silu.fp16.d256.any",
        "heads of 256 in float16: 13 instructions against 109; bfloat16 has them",
    ),
    Pruned(
        "hstu_hierarchical_attention.tiles.fp16.d256.*",
        "hstu_hierarchical_attention.silu.fp16.d256.any",
        "heads of 256 in float16 with a bias or a mask: 16 instructions against 132; bfloat16 has them",
    ),
    Pruned(
        "hstu_hierarchical_attention.tiles.fp16.d128.mask",
        "hstu_hierarchical_attention.silu.fp16.d128",
        "heads of 128 in float16 with a mask of bytes: 12 instructions against 58; bfloat16 has them",
    ),
    Pruned(
        "fused_attention_layer_norm.whole.fp16.d256.*",
        "fused_attention_layer_norm.fp16.d256.any",
        "heads of 256 in float16 with a bias or a mask: 17 instructions against 167; bfloat16 has them",
    ),
    Pruned(
        "fused_attention_layer_norm.projected.*.h512",
        "fused_attention_layer_norm.whole.*, and linear.*",
        "one launch with 65 instructions in place of two, the first with 7: worth it for short sequences, which mostly have "
        "fewer than 128 columns",
    ),
    Pruned(
        "hstu_hierarchical_attention.silu.*.d256",
        "hstu_hierarchical_attention.silu.*.d256.any",
        "heads of 129 to 256 that `tiles` does not take: 50 instructions against 109, in float32 707 against 782",
    ),
    Pruned(
        "fused_attention_layer_norm.*.d256",
        "fused_attention_layer_norm.*.d256.any",
        "heads of 129 to 256 that `whole` does not take: 84 instructions against 149, in float32 714 against 760",
    ),
    Pruned(
        "hstu_hierarchical_attention.silu.fp32.d64",
        "hstu_hierarchical_attention.silu.fp32.d64.any",
        "187 instructions against 207: products of float32 leave no time to gain by wide loads",
    ),
    Pruned(
        "fused_attention_layer_norm.fp32.d64",
        "fused_attention_layer_norm.fp32.d64.any",
        "210 instructions against 229: products of float32 leave no time to gain by wide loads",
    ),
    Pruned(
        "hstu_hierarchical_attention.level_softmax.fp32.d64",
        "hstu_hierarchical_attention.level_softmax.fp32.d256.any",
        "597 instructions against 807",
    ),
    Pruned(
        "hierarchical_sequence_fusion.*.l128",
        "hierarchical_sequence_fusion.*.l128.any",
        "more than 16 levels: seldom; in float32 2454 instructions for a step against 2826",
    ),
    Pruned(
        "interaction_triton_fast.fp32.f64",
        "interaction_triton_fast.fp32.any",
        "more than 32 features in float32: 2332 instructions for a step against 2524",
    ),
)


def pruned(name: str) -> Pruned | None:
    """The entry of `PRUNED` for a variant of this name; None for one that is compiled."""
    return next((entry for entry in PRUNED if entry.has(name)), None)
