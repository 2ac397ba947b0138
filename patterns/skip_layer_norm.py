"""Opt-in: a residual sum with the LayerNorm or RMSNorm after it. TensorRT fuses this itself; a plugin can be slower."""

from __future__ import annotations

from typing import Any

from onnx_fuse.patterns.language.body import Body
from onnx_fuse.patterns.language.declaration import declare
from onnx_fuse.patterns.language.dsl import Attribute, Optional, pattern
from onnx_fuse.patterns.language.interface import Match, View
from onnx_fuse.patterns.language.operator import Fused, FusedOp, Fusion
from onnx_fuse.patterns.parts.norm import affine_problem, norm_of


def _normed(op: Any, sum_: Any, gamma: Any, beta: Any, epsilon: Any) -> Any:
    total = op.named("total", sum_)
    return op.any_of(
        op.named("layer", op.LayerNormalization(total, gamma, beta, axis=-1, epsilon=epsilon)),
        op.named("rms", op.RMSNormalization(total, gamma, axis=-1, epsilon=epsilon)),
    )


@pattern
def skip_layer_norm(op, x, skip, bias, gamma: Optional, beta: Optional, epsilon: Attribute):  # type: ignore[no-untyped-def]
    biased = op.Add(x, op.shape(bias, "H"))
    return _normed(op, op.Add(biased, skip), gamma, beta, epsilon)


@pattern
def skip_layer_norm_alone(op, x, skip, gamma: Optional, beta: Optional, epsilon: Attribute):  # type: ignore[no-untyped-def]
    """Where the sum with the bias is needed outside, or is another fusion's: the bias stays there."""
    return _normed(op, op.Add(x, skip), gamma, beta, epsilon)


@skip_layer_norm_alone.require
@skip_layer_norm.require
def nothing_is_broadcast(match: Match, view: View) -> str | None:
    x, skip = view.shape(match["x"]), view.shape(match["skip"])
    if x is None or skip is None:
        return "the shapes of the two summands are unknown"
    return None if x == skip else f"{match['x']} and {match['skip']} differ in shape"


@skip_layer_norm_alone.require
@skip_layer_norm.require
def bias_and_affine_span_the_last_axis(match: Match, view: View) -> str | None:
    if "bias" in match and match["H"] != (view.shape(match["x"]) or (None,))[-1]:
        return f"the bias {match['bias']} is broadcast over the last axis"
    return affine_problem(match, view, match["total"])


def skip_body(op: Body, x: Any, skip: Any, bias: Any, gamma: Any, beta: Any, norm: str, epsilon: Any) -> Any:
    """norm(x + bias + skip) over the last axis, in float32."""
    total = op.float32(x)
    if bias is not None:
        total = op.Add(total, op.float32(bias))
    total = op.Add(total, op.float32(skip))
    return op.like(op.normalise(total, norm, gamma, beta, epsilon), x), op.like(total, x)


DECLARATION = declare(
    "x: T [..., H]",
    "skip: T [..., H]",
    "bias?: T|float32 [H]",
    "gamma?: T|float32 [H]",
    "beta?: T|float32 [H]",
    "-> output: T [..., H]",
    "-> residual_sum?: T [..., H] # made where something else reads it",
)

FusedSkipLayerNorm = FusedOp.declared(
    "FusedSkipLayerNorm",
    DECLARATION,
    attributes=("norm", "epsilon"),
    body=skip_body,
)


def build(match: Match, view: View) -> Fused:
    inputs = {name: match.get(name) for name in FusedSkipLayerNorm.inputs}
    attributes = {"norm": norm_of(match), "epsilon": float(match["epsilon"])}
    parts = tuple(name for name in ("bias",) if name in match)
    return Fused(inputs, {"output": match.root.outputs[0]}, attributes, {"residual_sum": match["total"]}, parts)


FUSION = Fusion(
    name="FusedSkipLayerNorm",
    pattern=(skip_layer_norm, skip_layer_norm_alone),
    operator=FusedSkipLayerNorm,
    build=build,
    default=False,
    summary="residual sum with the LayerNorm/RMSNorm after it",
    anchor="Add",
)
