"""Names of the cases of `tests.gpu.cases`, which are known before these are worked out."""

from __future__ import annotations

OPERATORS = (
    "HSTUHierarchicalAttention",
    "FusedAttentionLayerNorm",
    "FusedEmbedLayerNorm",
    "FusedSkipLayerNorm",
    "FusedLinearLayerNorm",
    "HierarchicalSequenceFusion",
    "InteractionTritonFast",
    "SequenceRecommendationInteraction",
    "FMInteraction",
    "FusedSwish",
)
ELEMENTS = ("float32", "float16", "bfloat16")
BROADCASTING = ("HSTUHierarchicalAttention", "FusedAttentionLayerNorm", "HierarchicalSequenceFusion")
DRAWN = {operator: 12 if operator in BROADCASTING else 4 for operator in OPERATORS}

FIRST = [f"{operator}-{element}" for operator in OPERATORS for element in ELEMENTS]
CONTRACT = [f"{operator}-{number}" for operator, count in DRAWN.items() for number in range(1, count + 1)]
