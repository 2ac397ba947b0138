"""Bodies written out in place of nodes."""

from __future__ import annotations

import numpy as np
import pytest
from onnx import ModelProto

import onnx_fuse
from onnx_fuse.passes.graph.inlining import inline_bodies
from tests import helpers

TWICE = "(T[n,4] x) => (T[n,4] y) { a = Sigmoid(x) b = Mul(x, a) c = Sigmoid(b) d = Mul(b, c) y = Relu(d) }"


def inlined(model: ModelProto) -> ModelProto:
    result = onnx_fuse.fuse(model, enable=["FusedSwish"], functions="inline")
    assert result.report.fused == {"FusedSwish": 2} and not result.model.functions
    return result.model


@pytest.mark.parametrize("kind", ["float", "float16"])
def test_inlining_again_changes_nothing(kind: str) -> None:
    original = helpers.model(TWICE.replace("T", kind))
    once = inlined(original)
    # Each body casts to float32 and back.
    assert (
        helpers.operators(once).count("Cast")
        == helpers.operators(once).count("CastLike")
        == (0 if kind == "float" else 2)
    )
    again = inlined(once)
    # A cast that the body begins with may stand elsewhere the first time: it belongs to the model then.
    assert sorted(helpers.node_bytes(again)) == sorted(helpers.node_bytes(once))
    assert inlined(again).SerializeToString(deterministic=True) == again.SerializeToString(deterministic=True)


def test_what_is_inlined_computes_the_same() -> None:
    original = helpers.model(TWICE.replace("T", "float"))
    once = inlined(original)
    again = inlined(once)
    feeds = helpers.feeds(original)
    for made in (once, again):
        for want, got in zip(helpers.run(original, feeds), helpers.run(made, feeds), strict=True):
            np.testing.assert_allclose(want, got, rtol=1e-6)


def test_values_that_need_their_names_keep_them() -> None:
    """The result of a body that is an output of the model, and one of the model's inputs behind a cast."""
    made = helpers.model("(float[n,4] x) => (float[n,4] y) { a = Sigmoid(x) y = Mul(x, a) }")
    result = onnx_fuse.fuse(made, enable=["FusedSwish"], functions="inline").model
    assert [value.name for value in result.graph.output] == ["y"] and helpers.operators(result).count("CastLike") == 0
    body = '<domain: "d", opset_import: ["" : 17]> Same (v) => (w) { w = CastLike(v, v) }'
    model = helpers.model("(float[n,4] x) => (float[n,4] y) { y = d.Same(x) }", functions=body)
    assert helpers.operators(inline_bodies(model, [("d", "Same")])) == ["CastLike"]


def test_the_users_own_casts_and_those_of_unknown_types_stay() -> None:
    body = (
        '<domain: "d", opset_import: ["" : 17]> Half (v) => (w) { a = Cast<to = 1>(v) b = Neg(a) w = CastLike(b, v) }'
    )
    text = "(float[n,4] x) => (float16[n,4] y) { a = Cast<to = 1>(x) b = com.example.Unknown(a) y = d.Half(b) }"
    assert helpers.operators(inline_bodies(helpers.model(text, functions=body), [("d", "Half")])) == [
        "Cast",
        "Unknown",
        "Cast",
        "Neg",
        "CastLike",
    ]
