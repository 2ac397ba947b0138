"""The bodies that attributes call for: as they are where they agree with the file, written again where they do not."""

from __future__ import annotations

from functools import cache

import numpy as np
import onnx
import pytest
from onnx import ModelProto, TensorProto, helper, numpy_helper

import onnx_fuse
from onnx_fuse.runtime.verify.bodies import by_attributes
from tests import helpers
from tests.helpers import copied
from tests.trust import mutations


@cache
def fused(opset: int, half: bool = False) -> ModelProto:
    original = mutations.attention_block()
    if half:
        for tensor in original.graph.initializer:
            array = numpy_helper.to_array(tensor)
            if array.dtype == np.float32:
                tensor.CopyFrom(numpy_helper.from_array(array.astype(np.float16), tensor.name))
        for value in (*original.graph.input, *original.graph.output):
            value.type.tensor_type.elem_type = TensorProto.FLOAT16
        original.graph.node.append(helper.make_node("Neg", ["y"], ["z"], name="last"))
        original.graph.output[0].name = "z"
    original.opset_import[0].version = opset
    if opset < 17:
        norm = next(node for node in original.graph.node if "y" in node.output)
        norm.op_type = "Add"
        del norm.attribute[:]
        norm.input[:] = norm.input[:2]
    return onnx_fuse.fuse(original, verify=False).model


@pytest.mark.parametrize("half", [False, True])
@pytest.mark.parametrize("opset", [13, 17])
def test_what_fuse_writes_agrees(opset: int, half: bool) -> None:
    """With CastLike, and before it, where a body has its type written in and nothing else may tell the type."""
    model = copied(fused(opset, half))
    assert any(node.op_type == "FusedAttentionLayerNorm" for node in model.graph.node)
    del model.graph.value_info[:]
    found = by_attributes(model)
    assert (found.model, found.missing, found.other) == (None, (), ())


@pytest.mark.parametrize("opset", [13, 17])
def test_bodies_that_are_left_out_are_written_again(opset: int) -> None:
    bare = copied(fused(opset))
    del bare.functions[:]
    found = by_attributes(bare)
    assert found.missing == ("FusedAttentionLayerNorm",) and found.other == () and found.model is not None
    assert not bare.functions  # the model itself is not changed
    onnx.checker.check_model(found.model)
    helpers.assert_same_results(fused(opset), found.model)


def test_another_body_is_told() -> None:
    other = copied(fused(17))
    next(node for node in other.functions[0].node if node.op_type == "Softmax").op_type = "LogSoftmax"
    found = by_attributes(other)
    name = next(node.name for node in other.graph.node if node.op_type == "FusedAttentionLayerNorm")
    assert found.other == (f"FusedAttentionLayerNorm {name}",) and found.missing == ()
    assert found.model is not None and len(found.model.functions) == 2


def test_operators_of_others_and_odd_attributes_are_left_to_onnx_runtime() -> None:
    made = helpers.model("(float[n,4] x) => (float[n,4] y) { a = my.ops.Thing(x)  y = gr.ml.infra.FusedSwish(a) }")
    assert by_attributes(made).model is None


def edited(model: ModelProto, **attributes: object) -> ModelProto:
    """The model with other attributes at its attention, whose body stays."""
    model = copied(model)
    node = next(node for node in model.graph.node if node.op_type == "FusedAttentionLayerNorm")
    for name, value in attributes.items():
        place = next(index for index, item in enumerate(node.attribute) if item.name == name)
        node.attribute[place].CopyFrom(helper.make_attribute(name, value))
    return model


def frozen(model: ModelProto, **values: float) -> ModelProto:
    """The model with numbers in its body, in place of references to the node's attributes."""
    model = copied(model)
    for node in model.functions[0].node:
        for item in node.attribute:
            if item.ref_attr_name in values:
                item.CopyFrom(helper.make_attribute(item.name, values[item.ref_attr_name]))
    return model


@pytest.mark.parametrize("half", [False, True])
@pytest.mark.parametrize("opset", [13, 17])
def test_attributes_that_a_body_does_not_go_by_are_named(opset: int, half: bool) -> None:
    model = fused(opset, half)
    node = next(node for node in model.graph.node if node.op_type == "FusedAttentionLayerNorm")
    values = {item.name: helper.get_attribute_value(item) for item in node.attribute}
    right = {name: values[name] for name in ("scale", "epsilon")}
    for wrong, name in (
        (edited(model, causal="upper_left"), "causal"),
        (edited(model, norm="rms"), "norm"),
        (frozen(model, scale=2 * values["scale"]), "scale"),
        (frozen(model, epsilon=100 * values["epsilon"]), "epsilon"),
        (edited(frozen(model, **right), scale=3.0), "scale"),
    ):
        if name == "epsilon" and values["norm"] == b"none":
            continue
        (told,) = by_attributes(wrong).contradicted
        assert name in told.attributes and len(told.attributes) <= 2, told
        assert (told.node, told.op_type) == (node.name, "FusedAttentionLayerNorm")
        assert f"node {node.name} (FusedAttentionLayerNorm): attribute" in told.sentence


def test_a_body_that_is_only_written_otherwise_is_right() -> None:
    """As one of another version: numbers in place of references, and one operator for another."""
    model = fused(17)
    node = next(node for node in model.graph.node if node.op_type == "FusedAttentionLayerNorm")
    values = {item.name: helper.get_attribute_value(item) for item in node.attribute}
    other = frozen(model, scale=values["scale"], epsilon=values["epsilon"])
    softmax = next(node for node in other.functions[0].node if node.op_type == "Softmax")
    softmax.op_type, made = "LogSoftmax", softmax.output[0]
    softmax.output[0] = "logarithm"
    place = list(other.functions[0].node).index(softmax)
    other.functions[0].node.insert(place + 1, helper.make_node("Exp", ["logarithm"], [made]))
    found = by_attributes(other)
    assert len(found.other) == 1 and found.contradicted == ()


def test_another_operators_body_is_told() -> None:
    other = copied(fused(17))
    body = other.functions[0]
    del body.node[:]
    body.node.append(helper.make_node("Identity", [body.input[0]], [body.output[0]]))
    (told,) = by_attributes(other).contradicted
    assert "scale" in told.attributes


def test_verify_names_node_and_attribute() -> None:
    original = mutations.attention_block()
    given = onnx_fuse.fuse(original, verify=False).model
    node = next(node for node in given.graph.node if node.op_type == "FusedAttentionLayerNorm")
    assert onnx_fuse.verify(original, given).passed
    found = onnx_fuse.verify(original, edited(given, causal="upper_left"))
    assert not found.passed and found.problem is not None
    assert (
        f"node {node.name} (FusedAttentionLayerNorm): attribute causal = 'upper_left' says something else"
        in found.problem
    )
