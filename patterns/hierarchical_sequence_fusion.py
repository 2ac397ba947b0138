"""Each position mixed with a weighted sum of level embeddings, through a gate; and, if asked for, with means of its surroundings.

The levels are those of a hierarchy (session, day, interest, ...), attended to with one Softmax for each position. Found as
examples/models/sequence_fusion.py writes it; the windows are average pools over the positions.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from onnx import TensorProto

from onnx_fuse.patterns.language.body import Body
from onnx_fuse.patterns.language.declaration import declare
from onnx_fuse.patterns.language.dsl import Attribute, Scalar, pattern
from onnx_fuse.patterns.language.interface import Match, View
from onnx_fuse.patterns.language.operator import Fused, FusedOp, Fusion
from onnx_fuse.patterns.parts.heads import misfit, unexpanded

MASKED_SCORE = -1e4
"""At and below this number a masked score gives no weight beside any other."""
MOST_WINDOWS = 3


def _ones(values: Any) -> bool | str:
    return values in (None, [1]) or "1"


@pattern
def hierarchical_sequence_fusion(  # type: ignore[no-untyped-def]
    op,
    x,
    embeddings,
    transposed,
    factor: Scalar,
    keep,
    drop,
    fill: Scalar,
    mask_after,
    keep_after,
    drop_after,
    inverse: Scalar,
    kernel_1: Attribute,
    pads_1: Attribute,
    counts_pads_1: Attribute,
    weight_1: Scalar,
    kernel_2: Attribute,
    pads_2: Attribute,
    counts_pads_2: Attribute,
    weight_2: Scalar,
    kernel_3: Attribute,
    pads_3: Attribute,
    counts_pads_3: Attribute,
    weight_3: Scalar,
):
    x = op.shape(x, "B S H")
    levels_t = op.shape(op.any_of(op.Transpose(embeddings, perm=[1, 0]), transposed), "H L")
    product = op.MatMul(x, levels_t)
    scores = op.any_of(op.Mul(product, factor), op.MatMul(op.Mul(x, factor), levels_t), product)
    scores = op.any_of(op.Where(keep, scores, fill), op.Where(drop, fill, scores), scores)
    weights = op.shape(op.Softmax(scores, axis=-1), "B S L")
    guarded = op.named("guard", op.Where(op.IsNaN(weights), 0.0, weights))
    cleared = op.any_of(
        op.Where(keep_after, weights, 0.0), op.Where(drop_after, 0.0, weights), op.Mul(weights, mask_after)
    )
    weights = op.named("weights", op.any_of(guarded, cleared, weights))
    mixed = op.MatMul(weights, op.shape(embeddings, "L H"))
    overlap = op.Mul(mixed, x)

    def mean(keepdims: int) -> Any:
        total = op.Mul(op.ReduceSum(overlap, axes=[-1], keepdims=keepdims), inverse)
        return op.any_of(op.ReduceMean(overlap, axes=[-1], keepdims=keepdims), total)

    gate = op.shape(op.any_of(op.Sigmoid(mean(1)), op.Reshape(op.Sigmoid(mean(0)))), "B S 1")
    gated = op.Add(op.Mul(gate, mixed), op.Mul(op.Sub(1.0, gate), x))
    y = op.any_of(gated, op.Add(x, op.Mul(gate, op.Sub(mixed, x))))

    def window(kernel: Any, pads: Any, counts_pads: Any, weight: Any) -> Any:
        """weight * mean over the positions around each, of x."""
        settings = {"strides": _ones, "dilations": _ones, "ceil_mode": 0, "auto_pad": "NOTSET"}
        turned = op.Transpose(x, perm=[0, 2, 1])
        pool = op.AveragePool(turned, kernel_shape=kernel, pads=pads, count_include_pad=counts_pads, **settings)
        around = op.Transpose(pool, perm=[0, 2, 1])
        return op.any_of(op.Mul(around, weight), around)

    first = window(kernel_1, pads_1, counts_pads_1, weight_1)
    second = window(kernel_2, pads_2, counts_pads_2, weight_2)
    third = window(kernel_3, pads_3, counts_pads_3, weight_3)
    one, two = op.Add(y, first), op.Add(op.Add(y, first), second)
    return op.any_of(
        op.Add(two, third),
        two,
        op.Add(y, op.Add(op.Add(first, second), third)),
        op.Add(y, op.Add(first, second)),
        one,
        y,
    )


@hierarchical_sequence_fusion.require
def sizes_are_static(match: Match, view: View) -> str | None:
    for name, what in (("H", "the width"), ("L", "the number of levels")):
        if not isinstance(match[name], int):
            return f"{what} is {match[name]}, it must be known"
    return None


@hierarchical_sequence_fusion.require
def scores_and_mixture_use_the_same_levels(match: Match, view: View) -> str | None:
    if "transposed" not in match:
        return None
    rows, columns = view.constant(match["embeddings"]), view.constant(match["transposed"])
    if rows is None or columns is None or not np.array_equal(rows, columns.T):
        return f"the scores are taken with {match['transposed']}, which is not known to be {match['embeddings']} transposed"
    return None


@hierarchical_sequence_fusion.require
def masked_levels_weigh_nothing(match: Match, view: View) -> str | None:
    """Softmax gives a position without any level NaN or equal weights: the operator gives it none."""
    before, after = _mask(match, view, ("keep", "drop")), _mask(match, view, ("keep_after", "drop_after", "mask_after"))
    fill = view.scalar(match["fill"]) if "fill" in match else None
    if "mask_after" in match and (after is None or fill == -math.inf):
        return f"the weights are multiplied by {match['mask_after']}, which may be something else than a mask"
    if fill is None:
        return "weights are masked after the Softmax, and not before" if after is not None else None
    if fill > MASKED_SCORE:
        return f"masked scores become {fill:g}, which weigh something"
    if after is None and ("guard" not in match or math.isfinite(fill)):
        return f"a position without any level has weights of {'NaN' if fill == -math.inf else 'equal size'}, not of 0"
    if after is not None and after != before:
        return "the scores and the weights are masked differently"
    mask = match.get("keep") or match["drop"]
    return misfit(view, mask, _levels(match), "mask")


@hierarchical_sequence_fusion.require
def temperature_is_finite(match: Match, view: View) -> str | None:
    return "the scores are multiplied by 0" if "factor" in match and not view.scalar(match["factor"]) else None


@hierarchical_sequence_fusion.require
def overlap_is_divided_by_the_width(match: Match, view: View) -> str | None:
    found = view.scalar(match["inverse"]) if "inverse" in match else None
    if found is None or abs(found * match["H"] - 1) < 1e-3:
        return None
    return f"the overlap is multiplied by {found:g}, pattern wants 1/{match['H']}"


@hierarchical_sequence_fusion.require
def windows_are_centred(match: Match, view: View) -> str | None:
    for number in _windows(match):
        kernel, pads = match[f"kernel_{number}"], match[f"pads_{number}"]
        width = kernel[0]
        if width % 2 == 0:
            return f"a window has {width} positions, an even number"
        if pads != [width // 2] * 2:
            return f"a window of {width} positions is padded by {pads}, pattern wants {[width // 2] * 2}"
    if len({match[f"counts_pads_{number}"] for number in _windows(match)}) > 1:
        return "the windows differ in whether positions beyond the ends count"
    return None


def _windows(match: Match) -> list[int]:
    return [number for number in range(1, MOST_WINDOWS + 1) if match.get(f"kernel_{number}") is not None]


def _mask(match: Match, view: View, names: tuple[str, ...]) -> tuple[str, bool] | None:
    """(bool value, whether it keeps) behind the mask of one of these names; None where there is none, or none that is bool."""
    name = next((item for item in names if item in match), None)
    if name is None:
        return None
    value, keeps = view.resolve(match[name]), not name.startswith("drop")
    node = view.producer(value)
    while node is not None and node.domain == "" and node.op_type in ("Cast", "Not"):
        if node.op_type == "Cast" and view.dtype(node.inputs[0]) != TensorProto.BOOL:
            break
        keeps = keeps != (node.op_type == "Not")
        value = view.resolve(node.inputs[0])
        node = view.producer(value)
    return (value, keeps) if view.dtype(value) == TensorProto.BOOL else None


def fusion_body(  # type: ignore[no-untyped-def]
    op: Body, x, level_embeddings, level_mask, temperature, windows, window_weights, pad, pools
) -> tuple[Any, Any]:
    """w = softmax(<x, E_l> / temperature);  f = sum_l w_l E_l;  g = sigmoid(<f, x> / H);  y = g f + (1 - g) x + windows."""
    wide, levels = op.float32(x), op.float32(level_embeddings)
    scores = op.Div(op.MatMul(wide, op.Transpose(levels, perm=[1, 0])), temperature)
    if level_mask is None:
        weights = op.Softmax(scores, axis=-1)
    else:
        keep = op.Cast(level_mask, to=TensorProto.BOOL)
        lowest = float(np.finfo(np.float32).min)
        weights = op.Where(keep, op.Softmax(op.Where(keep, scores, lowest), axis=-1), 0.0)
    mixed = op.MatMul(weights, levels)
    gate = op.Sigmoid(op.reduce_mean(op.Mul(mixed, wide)))
    y = op.Add(op.Mul(gate, mixed), op.Mul(op.Sub(1.0, gate), wide))
    turned = op.Transpose(wide, perm=[0, 2, 1])
    for width, weight in pools:
        pooled = op.AveragePool(
            turned, kernel_shape=[width], pads=[width // 2] * 2, count_include_pad=int(pad == "zero"), strides=[1]
        )
        y = op.Add(y, op.Mul(op.Transpose(pooled, perm=[0, 2, 1]), weight))
    return op.like(y, x), op.like(weights, x)


DECLARATION = declare(
    "x: T [B, S, H]",
    "level_embeddings: T [L, H]",
    "level_mask?: bool|T [1|B, 1|S, 1|L] # which levels a position belongs to; a number that is not 0 counts as true",
    "-> y: T [B, S, H]",
    "-> level_weights?: T [B, S, L] # w below: made where something else reads it",
)

HierarchicalSequenceFusion = FusedOp.declared(
    "HierarchicalSequenceFusion",
    DECLARATION,
    attributes=("temperature", "windows", "window_weights", "pad"),
    body=fusion_body,
    structure=lambda attributes: {
        "pools": tuple(
            pair for pair in zip(attributes["windows"], attributes["window_weights"], strict=True) if pair[1]
        )
    },
)


def build(match: Match, view: View) -> Fused:
    like = match.root
    numbers = _windows(match)
    factor = view.scalar(match["factor"]) if "factor" in match else None
    mask = _mask(match, view, ("keep", "drop"))
    if mask is not None:
        value, keeps = mask
        level_mask = unexpanded(view, value if keeps else view.add("Not", [value], like=like), _levels(match))
    weights = [float(view.scalar(match[f"weight_{n}"]) or 0.0) if f"weight_{n}" in match else 1.0 for n in numbers]
    inputs = {
        "x": match["x"],
        "level_embeddings": match["embeddings"],
        "level_mask": None if mask is None else _three_axes(view, level_mask, like),
    }
    attributes = {
        "temperature": 1.0 / float(factor or 1.0),
        # No window is a window that weighs nothing: an attribute cannot be empty.
        "windows": [match[f"kernel_{number}"][0] for number in numbers] or [1],
        "window_weights": weights or [0.0],
        "pad": "zero" if numbers and match[f"counts_pads_{numbers[0]}"] else "truncate",
    }
    parts = [part for part, is_in in (("mask", mask is not None), ("windows", bool(numbers))) if is_in]
    return Fused(inputs, {"y": like.outputs[0]}, attributes, {"level_weights": match["weights"]}, tuple(parts))


def _levels(match: Match) -> tuple[Any, ...]:
    return match["B"], match["S"], match["L"]


def _three_axes(view: View, value: str, like: Any) -> str:
    """The value with axes of size 1 put in front until it has three."""
    rank = view.rank(value)
    if rank is None or rank == 3:
        return value
    return view.add("Unsqueeze", [value, view.array(np.arange(3 - rank, dtype=np.int64), like.outputs[0])], like=like)


FUSION = Fusion(
    name="HierarchicalSequenceFusion",
    pattern=hierarchical_sequence_fusion,
    operator=HierarchicalSequenceFusion,
    build=build,
    summary="each position mixed with the embeddings of its levels through a gate, and with the means of windows around it",
    anchor="Softmax",
    rim=("windows",),
)
