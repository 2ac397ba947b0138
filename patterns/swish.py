"""Opt-in: x * sigmoid(beta x) (SiLU, arXiv 1702.03118). TensorRT fuses this itself; a plugin can be slower."""

from __future__ import annotations

from typing import Any

from onnx_fuse.patterns.language.body import Body
from onnx_fuse.patterns.language.declaration import declare
from onnx_fuse.patterns.language.dsl import Attribute, Scalar, pattern
from onnx_fuse.patterns.language.interface import Match, View
from onnx_fuse.patterns.language.operator import Fused, FusedOp, Fusion


@pattern
def swish(op, x, beta: Attribute, factor: Scalar):  # type: ignore[no-untyped-def]
    written_out = op.Mul(x, op.Sigmoid(op.any_of(op.Mul(x, factor), x)))
    return op.any_of(op.Swish(x, alpha=beta), written_out)


def swish_body(op: Body, x: Any, beta: Any) -> Any:
    """x * sigmoid(beta x), in float32."""
    wide = op.float32(x)
    return op.like(op.Mul(wide, op.Sigmoid(op.Mul(wide, beta))), x)


DECLARATION = declare("x: T [...]", "-> output: T [...]")

FusedSwish = FusedOp.declared(
    "FusedSwish",
    DECLARATION,
    attributes=("beta",),
    body=swish_body,
)


def build(match: Match, view: View) -> Fused:
    beta = match.get("beta")
    if beta is None:
        beta = view.scalar(match["factor"]) if "factor" in match else 1.0
    return Fused({"x": match["x"]}, {"output": match.root.outputs[0]}, {"beta": float(beta)})


FUSION = Fusion(
    name="FusedSwish",
    pattern=swish,
    operator=FusedSwish,
    build=build,
    default=False,
    summary="x * sigmoid(beta x), SiLU",
    anchor="Sigmoid",
)
