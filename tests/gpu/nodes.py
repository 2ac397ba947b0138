"""The kernels' own `launch` functions as nodes, so that what tests kernels tests plugins."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from types import ModuleType
from typing import Any

import onnx_fuse
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
from onnx_fuse.runtime.plugins.torch_harness import Node

MODULES: dict[str, ModuleType] = {
    "FMInteraction": fm_interaction,
    "FusedAttentionLayerNorm": fused_attention_layer_norm,
    "FusedEmbedLayerNorm": fused_embed_layer_norm,
    "FusedLinearLayerNorm": fused_linear_layer_norm,
    "FusedSkipLayerNorm": fused_skip_layer_norm,
    "FusedSwish": fused_swish,
    "HierarchicalSequenceFusion": hierarchical_sequence_fusion,
    "HSTUHierarchicalAttention": hstu_hierarchical_attention,
    "InteractionTritonFast": interaction_triton_fast,
    "SequenceRecommendationInteraction": sequence_recommendation_interaction,
}
OPERATORS = {fusion.operator.name: fusion.operator for fusion in onnx_fuse.fusions()}


def node(operator: str, arguments: Mapping[str, Any]) -> Node:
    """The node that a call of the operator's `launch` stands for."""
    known = {"E": arguments.get("e"), **arguments}
    inputs = {name: known[name] for name in OPERATORS[operator].inputs if known.get(name) is not None}
    if operator == "FusedEmbedLayerNorm":
        pairs = enumerate(known["pairs"], 1)
        known["num_tables"] = len(known["pairs"])
        slots = {
            f"{kind}_{number}": item
            for number, pair in pairs
            for kind, item in zip(("ids", "table"), pair, strict=True)
        }
        inputs = {**slots, **inputs}
    elif operator == "InteractionTritonFast":
        given = known["inputs"]
        names = {
            "stacked": ["E"],
            "dense_and_sparse": ["dense", "sparse"],
            "separate": [f"feature_{number}" for number in range(1, len(given) + 1)],
        }
        inputs = dict(zip(names[known["form"]], given, strict=True))
    first, *others = OPERATORS[operator].outputs
    outputs = known["outputs"] if "outputs" in known else [first, *(name for name in others if known.get(name))]
    attributes = {name: known[name] for name in OPERATORS[operator].attributes}
    return Node(operator, attributes, inputs, tuple(outputs))


def through(operator: str, run: Callable[[Node], Mapping[str, Any]]) -> Callable[..., Any]:
    """A `launch` that has `run` make the outputs of the node, name -> tensor."""
    signature = inspect.signature(MODULES[operator].launch)

    def launch(*arguments: Any, **settings: Any) -> Any:
        given = signature.bind(*arguments, **settings)
        given.apply_defaults()
        made = run(node(operator, given.arguments))
        outputs = OPERATORS[operator].outputs
        if signature.return_annotation.startswith("dict"):
            return dict(made)
        if signature.return_annotation.startswith("tuple"):
            return tuple(made.get(name) for name in outputs)
        return made[outputs[0]]

    return launch
