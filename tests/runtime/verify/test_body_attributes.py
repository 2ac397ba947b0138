"""Every number that a body reads is found to be another, for each operator."""

from __future__ import annotations

from typing import Any

import pytest
from onnx import FunctionProto, TensorProto, helper

import onnx_fuse
from onnx_fuse.runtime.verify import body_attributes

OPERATORS = {fusion.operator.name: fusion.operator for fusion in onnx_fuse.fusions()}
HSTU = {"alpha": 0.3, "bias_order": "outside_alpha", "norm_length": 0.0, "causal": 0, "norm": "layer", "epsilon": 1e-5}
HSTU |= {"num_heads": 2, "gate_activation": "silu", "mode": "silu", "num_levels": 2, "decay": 0.8}
ATTENTION: dict[str, Any] = {
    "num_heads": 4,
    "num_key_value_heads": 2,
    "scale": 0.3,
    "mask_value": -1e4,
    "layout": "BSH",
}
ATTENTION |= {"causal": "none", "masked_row": "uniform", "norm": "layer", "epsilon": 1e-5}
FUSION: dict[str, Any] = {"temperature": 0.7, "windows": [3, 5], "window_weights": [0.5, 0.25], "pad": "zero"}
CASES: list[tuple[str, list[str], list[str], dict[str, Any], list[str]]] = [
    ("FusedSwish", ["x"], ["output"], {"beta": 1.5}, ["beta"]),
    ("FusedSkipLayerNorm", ["x", "skip", "gamma"], ["output"], {"norm": "layer", "epsilon": 1e-5}, ["epsilon"]),
    ("FusedLinearLayerNorm", ["x", "weight"], ["output"], {"norm": "rms", "epsilon": 1e-6}, ["epsilon"]),
    ("FusedEmbedLayerNorm", ["ids_1", "table_1", "ids_2", "table_2"], ["output"], {"num_tables": 2, "norm": "layer", "epsilon": 1e-12}, ["epsilon"]),
    ("HSTUHierarchicalAttention", ["q", "k", "v", "u"], ["y"], HSTU, ["alpha", "epsilon"]),
    ("HSTUHierarchicalAttention", ["q", "k", "v", "mask"], ["y"], {**HSTU, "mode": "level_softmax"}, ["alpha", "decay"]),
    ("FusedAttentionLayerNorm", ["query", "key", "value", "mask", "residual"], ["output"], ATTENTION, ["scale", "epsilon"]),
    ("HierarchicalSequenceFusion", ["x", "level_embeddings"], ["y"], FUSION, ["temperature"]),
    ("SequenceRecommendationInteraction", ["items"], ["cooccurrence"], {"short_window": 5, "decay": 0.1, "normalize": 0}, ["decay"]),
]  # fmt: skip


def frozen(body: FunctionProto, attribute: str, value: Any) -> FunctionProto:
    """The body with a value in place of a reference."""
    other = FunctionProto()
    other.CopyFrom(body)
    for node in other.node:
        for place, item in enumerate(node.attribute):
            if item.ref_attr_name == attribute:
                node.attribute[place].CopyFrom(helper.make_attribute(item.name, value))
    assert other != body
    return other


@pytest.mark.parametrize(("name", "inputs", "outputs", "attributes", "read"), CASES, ids=lambda item: str(item)[:30])
def test_a_number_that_is_another_in_the_body(
    name: str, inputs: list[str], outputs: list[str], attributes: dict[str, Any], read: list[str]
) -> None:
    operator = OPERATORS[name]
    node = operator.make_node({each: each for each in inputs}, {each: each for each in outputs}, attributes, "node")
    made = operator.make_function(inputs, outputs, attributes, {"": 20}, TensorProto.FLOAT)

    def judged(body: FunctionProto) -> tuple[str, ...]:
        return body_attributes.contradicted(operator, node, body, made, TensorProto.FLOAT, lambda _: None)

    for attribute in read:
        value = attributes[attribute]
        other = [3 * item + 1 for item in value] if isinstance(value, list) else type(value)(3 * value + 1)
        assert judged(frozen(made, attribute, value)) == (), attribute
        assert judged(frozen(made, attribute, other)) == (attribute,), attribute


def test_a_node_that_the_operator_does_not_allow_is_left_to_the_plugin() -> None:
    operator = OPERATORS["HSTUHierarchicalAttention"]
    inputs, attributes = ["q", "k", "v", "lengths"], {**HSTU, "mode": "level_softmax"}
    node = operator.make_node({each: each for each in inputs}, {"y": "y"}, attributes, "node")
    made = operator.make_function(inputs, ["y"], attributes, {"": 20}, TensorProto.FLOAT)
    other = frozen(made, "alpha", 5.0)
    assert body_attributes.contradicted(operator, node, other, made, TensorProto.FLOAT, lambda _: None) == ()
