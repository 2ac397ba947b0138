"""Every kernel there is to compile: the modules of this package that have variants."""

from __future__ import annotations

from collections.abc import Iterator

from onnx_fuse.plugin_csrc.kernels import (
    fm_interaction,
    fused_attention_layer_norm,
    fused_embed_layer_norm,
    fused_swish,
    hierarchical_sequence_fusion,
    hstu_hierarchical_attention,
    interaction_triton_fast,
    linear,
    norm_rows,
    sequence_recommendation_interaction,
)
from onnx_fuse.plugin_csrc.kernels.manifest import Variant

MODULES = (
    fm_interaction,
    fused_attention_layer_norm,
    fused_embed_layer_norm,
    fused_swish,
    hierarchical_sequence_fusion,
    hstu_hierarchical_attention,
    interaction_triton_fast,
    linear,
    norm_rows,
    sequence_recommendation_interaction,
)


def variants() -> Iterator[Variant]:
    """All variants, in a fixed order."""
    for module in MODULES:
        yield from module.variants()
