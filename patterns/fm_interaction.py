"""Opt-in: all pairwise products of features, summed, in linear time: the second order of a factorization machine.

Rendle, "Factorization Machines" (ICDM 2010); DeepFM (arXiv 1703.04247) sums over the width, NFM's bi-interaction pooling (arXiv
1708.05027) does not. TensorRT fuses most of this itself; a plugin can be slower.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from onnx_fuse.patterns.language.body import Body
from onnx_fuse.patterns.language.declaration import declare
from onnx_fuse.patterns.language.dsl import pattern
from onnx_fuse.patterns.language.interface import Match, View
from onnx_fuse.patterns.language.operator import Fused, FusedOp, Fusion


@pattern
def fm_interaction(op, E, elements):  # type: ignore[no-untyped-def]
    def squared(value: Any) -> Any:
        return op.any_of(op.Pow(value, 2.0), op.Mul(value, value))

    def difference(e: Any, keepdims: int) -> Any:
        square_of_sum = squared(op.ReduceSum(e, axes=[1], keepdims=keepdims))
        return op.Sub(square_of_sum, op.ReduceSum(squared(e), axes=[1], keepdims=keepdims))

    e = op.shape(E, "B F D")
    vector, row = difference(e, 0), difference(e, 1)  # [B, D], [B, 1, D]
    # torchrec's FactorizationMachine: every element of the features laid side by side is a feature of width 1.
    column = difference(op.shape(elements, "B W"), 1)

    def reduced(value: Any) -> Any:
        """The difference summed over D, as [B, 1]."""
        return op.any_of(
            op.ReduceSum(value(vector), axes=[1], keepdims=1),
            op.ReduceSum(value(row), axes=[2], keepdims=0),
            op.shape(op.Reshape(op.ReduceSum(value(row), axes=[2], keepdims=1)), "B 1"),
            op.shape(op.Reshape(op.ReduceSum(value(vector), axes=[1], keepdims=0)), "B 1"),
        )

    def halved(value: Any) -> Any:
        return op.Mul(value, 0.5)

    def same(value: Any) -> Any:
        return value

    pairs = op.any_of(vector, op.shape(op.Reshape(row), "B D"))
    return op.any_of(
        op.named("reduced", op.any_of(halved(reduced(same)), reduced(halved))),
        halved(pairs),
        # A sum over the one column that is left changes nothing.
        halved(op.any_of(op.ReduceSum(column, axes=[1], keepdims=1), column)),
        op.ReduceSum(halved(column), axes=[1], keepdims=1),
    )


@fm_interaction.require
def sizes_are_static(match: Match, view: View) -> str | None:
    sizes = (("F", "the number of features"), ("D", "the width of a feature"))
    for name, what in (("W", "the number of elements"),) if "elements" in match else sizes:
        if not isinstance(match[name], int):
            return f"{what} is {match[name]}, it must be known"
    return None


def fm_body(op: Body, E: Any, reduce: Any, reduced: bool) -> Any:
    """0.5 ((sum_f e)^2 - sum_f e^2), in float32; summed over the width with `reduce`."""
    wide = op.float32(E)
    total = op.ReduceSum(wide, op.ints(1), keepdims=0)
    pairs = op.Sub(op.Mul(total, total), op.ReduceSum(op.Mul(wide, wide), op.ints(1), keepdims=0))
    if reduced:
        pairs = op.ReduceSum(pairs, op.ints(1), keepdims=1)
    return op.like(op.Mul(pairs, 0.5), E)


DECLARATION = declare(
    "E: T [B, F, D]",
    "-> output: T [B, D] if reduce=0 or [B, 1] if reduce=1",
)

FMInteraction = FusedOp.declared(
    "FMInteraction",
    DECLARATION,
    attributes=("reduce",),
    body=fm_body,
    structure=lambda attributes: {"reduced": bool(attributes["reduce"])},
)


def build(match: Match, view: View) -> Fused:
    if "elements" in match:
        last = view.array(np.array([2], dtype=np.int64), match["elements"])
        features = view.add("Unsqueeze", [match["elements"], last], like=match.root)
        return Fused({"E": features}, {"output": match.root.outputs[0]}, {"reduce": 1})
    return Fused({"E": match["E"]}, {"output": match.root.outputs[0]}, {"reduce": int("reduced" in match)})


FUSION = Fusion(
    name="FMInteraction",
    pattern=fm_interaction,
    operator=FMInteraction,
    build=build,
    default=False,
    summary="sum of all pairwise products of features (FM, DeepFM, NFM)",
)
