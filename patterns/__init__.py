"""Patterns and the fused operators that replace what they match: one fusion per file."""

from __future__ import annotations

from onnx_fuse.patterns.language.body import Body
from onnx_fuse.patterns.language.dsl import Attribute, Constant, Optional, Pattern, Scalar, Value, pattern
from onnx_fuse.patterns.language.operator import Fused, FusedOp, Fusion

__all__ = [
    "Attribute",
    "Body",
    "Constant",
    "Fused",
    "FusedOp",
    "Fusion",
    "Optional",
    "Pattern",
    "Scalar",
    "Value",
    "fusions",
    "pattern",
]


def fusions() -> tuple[Fusion, ...]:
    """The fusions that come with onnx-fuse, in the order in which ties between them are settled."""
    from onnx_fuse.patterns import (
        attention_layer_norm,
        dot_interaction,
        embed_layer_norm,
        fm_interaction,
        hierarchical_sequence_fusion,
        hstu_attention,
        linear_layer_norm,
        sequence_interaction,
        skip_layer_norm,
        swish,
    )

    return (
        attention_layer_norm.FUSION,
        embed_layer_norm.FUSION,
        hstu_attention.FUSION,
        hierarchical_sequence_fusion.FUSION,
        dot_interaction.FUSION,
        sequence_interaction.FUSION,
        fm_interaction.FUSION,
        linear_layer_norm.FUSION,
        skip_layer_norm.FUSION,
        swish.FUSION,
    )
