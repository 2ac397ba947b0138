"""Opt-in: a linear layer with the LayerNorm or RMSNorm after it. TensorRT fuses most of this itself; a plugin can be slower."""

from __future__ import annotations

from typing import Any

from onnx_fuse.patterns.language.body import Body
from onnx_fuse.patterns.language.declaration import declare
from onnx_fuse.patterns.language.dsl import Attribute, Optional, pattern
from onnx_fuse.patterns.language.interface import Match, View
from onnx_fuse.patterns.language.operator import Fused, FusedOp, Fusion
from onnx_fuse.patterns.parts.norm import affine_problem, norm_of


@pattern
def linear_layer_norm(op, x, weight, bias, gamma: Optional, beta: Optional, epsilon: Attribute):  # type: ignore[no-untyped-def]
    product = op.MatMul(x, op.shape(weight, "K H"))
    total = op.named("total", op.optional(op.Add(product, op.shape(bias, "H")), product))
    return op.any_of(
        op.named("layer", op.LayerNormalization(total, gamma, beta, axis=-1, epsilon=epsilon)),
        op.named("rms", op.RMSNormalization(total, gamma, axis=-1, epsilon=epsilon)),
    )


@linear_layer_norm.require
def sizes_are_static(match: Match, view: View) -> str | None:
    for name, what in (("K", "the width of what it reads"), ("H", "the width of what it makes")):
        if not isinstance(match[name], int):
            return f"{what} is {match[name]}, it must be known"
    return None


@linear_layer_norm.require
def affine_spans_the_last_axis(match: Match, view: View) -> str | None:
    return affine_problem(match, view, match["total"])


def linear_body(op: Body, x: Any, weight: Any, bias: Any, gamma: Any, beta: Any, norm: str, epsilon: Any) -> Any:
    """norm(x W + b) over the last axis, in float32."""
    total = op.MatMul(op.float32(x), op.float32(weight))
    if bias is not None:
        total = op.Add(total, op.float32(bias))
    return op.like(op.normalise(total, norm, gamma, beta, epsilon), x)


DECLARATION = declare(
    "x: T [..., K]",
    "weight: T [K, H]",
    "bias?: T|float32 [H]",
    "gamma?: T|float32 [H]",
    "beta?: T|float32 [H]",
    "-> output: T [..., H]",
)

FusedLinearLayerNorm = FusedOp.declared(
    "FusedLinearLayerNorm",
    DECLARATION,
    attributes=("norm", "epsilon"),
    body=linear_body,
)


def build(match: Match, view: View) -> Fused:
    inputs = {name: match.get(name) for name in FusedLinearLayerNorm.inputs}
    attributes = {"norm": norm_of(match), "epsilon": float(match["epsilon"])}
    parts = ("bias",) if "bias" in match else ()
    return Fused(inputs, {"output": match.root.outputs[0]}, attributes, parts=parts)


FUSION = Fusion(
    name="FusedLinearLayerNorm",
    pattern=linear_layer_norm,
    operator=FusedLinearLayerNorm,
    build=build,
    default=False,
    summary="linear layer with the LayerNorm/RMSNorm after it",
    anchor="MatMul",
)
