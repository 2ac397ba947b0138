"""The bodies that attributes call for: as they are where they agree with the file, written again where they do not."""

from __future__ import annotations

from functools import cache

import onnx
import pytest
from onnx import ModelProto

import onnx_fuse
from onnx_fuse.runtime.verify.bodies import by_attributes
from tests import helpers
from tests.helpers import copied
from tests.trust import mutations


@cache
def fused(opset: int) -> ModelProto:
    original = mutations.attention_block()
    original.opset_import[0].version = opset
    if opset < 17:
        norm = original.graph.node[-1]
        norm.op_type = "Add"
        del norm.attribute[:]
        norm.input[:] = norm.input[:2]
    return onnx_fuse.fuse(original, verify=False).model


@pytest.mark.parametrize("opset", [13, 17])
def test_what_fuse_writes_agrees(opset: int) -> None:
    """With CastLike, and before it, where a body has its type written in."""
    found = by_attributes(fused(opset))
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
