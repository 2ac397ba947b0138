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
