"""Every kernel there is to compile: the modules of this package that have variants."""

from __future__ import annotations

from collections.abc import Iterator

from onnx_fuse.plugin_csrc.kernels import linear, norm_rows
from onnx_fuse.plugin_csrc.kernels.manifest import Variant
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
    """All variants, in a fixed order, each once."""
    yield from {variant.name: variant for module in MODULES for variant in module.variants()}.values()
