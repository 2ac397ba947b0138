"""A user against a sequence of items: masked scores, short-term and long-term interest, co-occurrence, in one look at the items.

Any of the four outputs alone, or several on the same items, mask and time weights. The maths is that of time-decayed pooling in
two-tower retrieval models (examples/models/two_tower.py). Pooling with other weights, such as those of a small network (DIN,
arXiv 1706.06978; STAMP) or of a Softmax (SDM, arXiv 1909.00385), is refused.
"""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
from onnx import TensorProto, helper

from onnx_fuse.patterns.language.body import Body
from onnx_fuse.patterns.language.declaration import declare
from onnx_fuse.patterns.language.dsl import Attribute, Constant, Pattern, Scalar
from onnx_fuse.patterns.language.interface import Match, View
from onnx_fuse.patterns.language.operator import Fused, FusedOp, Fusion
from onnx_fuse.patterns.parts.masks import counts_up

OUTPUTS = ("scores", "short_term", "long_term", "cooccurrence")

_WEIGHTS = {"scores": "scores_weights", "short_term": "short_weights", "long_term": "long_weights"}
_BACKWARDS = {"starts": [-1], "axes": [1], "steps": [-1]}


def _to_the_start(ends: Any) -> bool | str:
    return (isinstance(ends, list) and len(ends) == 1 and ends[0] < -(1 << 31) + 1) or "past the first element"


def _absent(maximum: Any) -> bool | str:
    return maximum is None or "no upper limit"


def _pattern(wanted: tuple[str, ...]) -> Pattern:
    """The pattern of these outputs, on the same items."""

    def sequence_interaction(  # type: ignore[no-untyped-def]
        op,
        items,
        user,
        keep,
        scores_keep,
        scores_weights,
        short_weights,
        long_weights,
        positions,
        other_positions,
        rows,
        columns,
        nowhere: Scalar,
        window: Scalar,
        window_end: Scalar,
        axis: Scalar,
        slope: Scalar,
        decay: Scalar,
        pairs: Constant,
        short_floor: Scalar,
        long_floor: Scalar,
        short_least: Attribute,
        long_least: Attribute,
    ):
        x = op.shape(items, "B S D")
        flag = op.shape(keep, "B S")

        def number(value: float) -> Any:
            """A constant, or what float16 makes of it."""
            return op.any_of(op.number(value), op.number(float(np.float16(value))))

        def cast(value: Any) -> Any:
            return op.optional(op.Cast(value), value)

        def masked(value: Any, mask: Any) -> Any:
            """`value` where the mask is true, else 0."""
            return op.any_of(
                op.Mul(value, op.Cast(mask)), op.Where(mask, value, 0.0), op.Where(op.Not(mask), 0.0, value)
            )

        def weighted(value: Any, weights: Any, mask: Any) -> Any:
            """`value`, masked, times weights if there are any, in any order."""
            return op.any_of(
                masked(op.Mul(value, weights), mask),
                op.Mul(masked(value, mask), weights),
                op.Mul(value, masked(weights, mask)),
                masked(value, mask),
            )

        def scores() -> Any:
            u = op.shape(user, "B D")
            products = op.shape(op.MatMul(x, op.Reshape(u)), "B S 1")
            turned = op.shape(op.MatMul(op.Reshape(u), op.Transpose(x, perm=[0, 2, 1])), "B 1 S")
            summed = op.ReduceSum(op.Mul(x, op.shape(op.Reshape(u), "B 1 D")), axes=[-1], keepdims=0)
            dot = op.shape(op.any_of(op.Reshape(op.any_of(products, turned)), summed), "B S")
            mask, weights = op.shape(scores_keep, "B S"), op.shape(scores_weights, "B S")
            return op.any_of(weighted(dot, weights, mask), op.Mul(dot, weights))

        def pooled(weights: Any, floor: Any, least: Any, name: str) -> Any:
            """Sum over s of weights[b, s] items[b, s, :], or their average by weight."""
            row = op.shape(op.Reshape(weights), "B 1 S")
            column = op.shape(op.Reshape(weights), "B S 1")
            summed = op.any_of(
                op.ReduceSum(op.Mul(x, column), axes=[1], keepdims=0),
                op.shape(op.Reshape(op.MatMul(row, x)), "B D"),
                op.shape(op.Reshape(op.MatMul(op.Transpose(x, perm=[0, 2, 1]), column)), "B D"),
            )
            weight = op.ReduceSum(weights, axes=[1], keepdims=1)
            clipped = op.any_of(op.Max(weight, floor), op.Clip(weight, min=least, max=_absent))
            guarded = op.Where(op.Equal(weight, 0.0), 0.0, op.Div(summed, weight))
            averaged = op.any_of(op.named(f"{name}_clipped", op.Div(summed, clipped)), guarded)
            return op.any_of(op.named(f"{name}_averaged", averaged), summed)

        def short_term() -> Any:
            ones = op.Cast(flag)
            flipped = op.Slice(ones, ends=_to_the_start, **_BACKWARDS)
            flipped_flag = op.Cast(op.Slice(flag, ends=_to_the_start, **_BACKWARDS))
            counted = op.CumSum(op.any_of(flipped, flipped_flag), axis, reverse=0, exclusive=0)
            later = op.any_of(
                op.Slice(counted, ends=_to_the_start, **_BACKWARDS),
                op.CumSum(ones, axis, reverse=1, exclusive=0),
                op.Sub(op.ReduceSum(ones, axes=[1], keepdims=1), op.CumSum(ones, axis, reverse=0, exclusive=1)),
            )
            later = op.named("later", cast(later))
            within = op.any_of(op.LessOrEqual(later, window), op.Less(later, window_end))
            recent = op.named("recent", op.And(flag, within))
            count = op.ReduceSum(op.Cast(recent), axes=[1], keepdims=1)
            rank = cast(op.Sub(cast(count), later))
            return pooled(
                weighted(op.Add(op.Mul(rank, number(0.1)), 1.0), op.shape(short_weights, "B S"), recent),
                short_floor,
                short_least,
                "short",
            )

        def long_term() -> Any:
            where = op.any_of(op.Where(flag, positions, nowhere), op.Where(op.Not(flag), nowhere, positions))
            last = op.ReduceMax(op.any_of(where, op.Mul(op.Cast(flag), positions)), axes=[1], keepdims=1)
            age, lag = cast(op.Sub(last, other_positions)), cast(op.Sub(other_positions, last))
            fading = op.Exp(
                op.any_of(op.Mul(age, number(-0.1)), op.Mul(lag, number(0.1)), op.Neg(op.Mul(age, number(0.1))))
            )
            factor = op.any_of(op.Add(op.Mul(fading, 0.5), 0.5), op.Mul(op.Add(fading, 1.0), 0.5))
            return pooled(weighted(factor, op.shape(long_weights, "B S"), flag), long_floor, long_least, "long")

        def cooccurrence() -> Any:
            gram = op.MatMul(x, op.Transpose(x, perm=[0, 2, 1]))
            row, column = op.Reshape(op.Cast(flag)), op.Reshape(op.Cast(flag))
            first, second = op.shape(row, "B S 1"), op.shape(column, "B 1 S")
            both = op.any_of(
                op.Mul(first, second),
                op.Cast(op.And(op.shape(op.Reshape(flag), "B S 1"), op.shape(op.Reshape(flag), "B 1 S"))),
            )
            distance = op.Sub(columns, rows)
            distance = cast(op.any_of(op.Abs(distance), distance))
            fading = op.Exp(op.any_of(op.Mul(distance, slope), op.Neg(op.Mul(distance, decay))))
            upper = op.any_of(op.shape(pairs, "S S"), op.Trilu(fading, 1.0, upper=1))

            def product(weights: Any) -> Any:
                kept = op.any_of(op.Mul(gram, both), op.Mul(op.Mul(gram, first), second))
                near = op.Mul(gram, weights)
                return op.any_of(
                    op.Mul(kept, weights),
                    op.Mul(near, both),
                    op.Mul(op.Mul(near, first), second),
                    op.Mul(gram, op.Mul(weights, both)),
                )

            return op.shape(op.any_of(product(upper), op.Trilu(product(fading), 1.0, upper=1)), "B S S")

        made = {"scores": scores, "short_term": short_term, "long_term": long_term, "cooccurrence": cooccurrence}
        return tuple(made[name]() for name in wanted)

    made = Pattern(sequence_interaction)
    for requirement in (
        mask_is_bool,
        weights_are_shared,
        averages_are_exact,
        positions_count_up,
        distances_fade,
        window_is_known,
    ):
        made.require(requirement)
    return made


def mask_is_bool(match: Match, view: View) -> str | None:
    masks = {match.get("scores_keep" if name == "scores" else "keep") for name in _wanted(match)}
    if len(masks) > 1:
        return "the outputs have different masks" if None not in masks else "one of the outputs has no mask"
    for mask in masks:
        if mask is not None and view.dtype(mask) != TensorProto.BOOL:
            return f"the mask {mask} is not bool, it may hold more than 0 and 1"
    return None


def weights_are_shared(match: Match, view: View) -> str | None:
    weights = {match.get(_WEIGHTS[name]) for name in _wanted(match) if name in _WEIGHTS}
    return None if len(weights) < 2 else "the outputs have different time weights"


def averages_are_exact(match: Match, view: View) -> str | None:
    pooled = [name.partition("_")[0] for name in _wanted(match) if name.endswith("_term")]
    if len({f"{name}_averaged" in match for name in pooled}) > 1:
        return "one of the interests is divided by its weights, the other is not"
    for name in pooled:
        if f"{name}_clipped" not in match:
            continue
        least = match.get(f"{name}_least")
        least = view.scalar(match[f"{name}_floor"]) if least is None else least
        if f"{name}_weights" in match or least is None or not 0 < least <= 0.5:
            return "the sum of the weights is clipped at a value that it may be below"
    return None


def positions_count_up(match: Match, view: View) -> str | None:
    size = match["S"]
    for name, axis in (("positions", 0), ("other_positions", 0), ("columns", 0), ("rows", 1)):
        if name in match and not _counts_up(view, match[name], size, axis):
            return f"{match[name]} is not 0, 1, 2, ... along the sequence"
    if "axis" in match and view.scalar(match["axis"]) not in (1, -1):
        return "the mask is not summed along the sequence"
    if "nowhere" in match and view.scalar(match["nowhere"]) not in (-1, 0):
        return f"the last item of none is {view.scalar(match['nowhere']):g}, pattern wants -1 or 0"
    return None


def distances_fade(match: Match, view: View) -> str | None:
    if "pairs" in match and _decay(match, view) is None:
        return f"{match['pairs']} is not exp(-decay |j - i|) above the diagonal and 0 elsewhere"
    return None


def window_is_known(match: Match, view: View) -> str | None:
    if "recent" not in match:
        return None
    return None if _window(match, view) >= 1 else "the short window holds no item"


def _wanted(match: Match) -> tuple[str, ...]:
    """The outputs that were matched, in order."""
    signs = {
        "scores": ("user",),
        "short_term": ("recent",),
        "long_term": ("other_positions",),
        "cooccurrence": ("slope", "decay", "pairs"),
    }
    return tuple(name for name in OUTPUTS if any(sign in match for sign in signs[name]))


def _window(match: Match, view: View) -> int:
    end = view.scalar(match["window"]) if "window" in match else view.scalar(match["window_end"])
    if end is None:
        return 0
    return int(np.floor(end)) if "window" in match else int(np.ceil(end)) - 1


def _decay(match: Match, view: View) -> float | None:
    """The decay of co-occurrence with distance; None where the weights are of another form."""
    if "slope" in match:
        return -float(view.scalar(match["slope"]) or 0.0)
    if "decay" in match:
        return float(view.scalar(match["decay"]) or 0.0)
    pairs = view.constant(match["pairs"])
    if pairs is None or len(pairs) < 2 or not pairs[0, 1] > 0:
        return None
    decay = -float(np.log(np.float64(pairs[0, 1])))
    steps = np.arange(len(pairs))
    wanted = np.triu(np.exp(-decay * np.abs(steps - steps[:, None])), 1)
    close = pairs.shape == wanted.shape and np.allclose(pairs, wanted, rtol=1e-3 if pairs.dtype == np.float16 else 1e-5)
    return decay if close else None


def _counts_up(view: View, value: str, size: Any, axis: int) -> bool:
    """Whether a value is 0, 1, ..., size - 1 along its last axis but `axis`, and all others are 1."""
    shape = view.shape(value)
    if shape is None or len(shape) <= axis:
        return False
    place = len(shape) - 1 - axis
    if shape[place] != size or any(dim != 1 for index, dim in enumerate(shape) if index != place):
        return False
    return counts_up(view, value, ("Reshape", "Cast"))


def sequence_body(  # type: ignore[no-untyped-def]
    op: Body, items, user, time_weights, mask, short_window, decay, normalize, normalized
) -> Any:
    """The four outputs; positions that the mask leaves out weigh nothing, whatever stands there."""
    x = op.float32(items)
    shape = op.Shape(x)
    true = helper.make_tensor("", TensorProto.BOOL, [1], [True])
    whole = op.ConstantOfShape(op.Slice(shape, op.ints(0), op.ints(2), op.ints(0)), value=true)
    keep = whole if mask is None else op.Cast(mask, to=TensorProto.BOOL)

    def weights(kept: str, factor: str) -> Any:
        by = factor if time_weights is None else op.Mul(factor, op.float32(time_weights))
        return op.Where(kept, by, 0.0)

    def pooled(by: str) -> Any:
        total = op.Squeeze(op.MatMul(op.Unsqueeze(by, op.ints(1)), x), op.ints(1))
        if not normalized:
            return total
        weight = op.ReduceSum(by, op.ints(1), keepdims=1)
        nothing = op.Equal(weight, 0.0)
        return op.Where(nothing, 0.0, op.Div(total, op.Where(nothing, 1.0, weight)))

    scores = None
    if user is not None:
        dot = op.Squeeze(op.MatMul(x, op.Unsqueeze(op.float32(user), op.ints(2))), op.ints(2))
        if time_weights is not None:
            dot = op.Mul(dot, op.float32(time_weights))
        scores = op.like(op.Where(keep, dot, 0.0), items)

    later = op.CumSum(op.float32(keep), op.Squeeze(op.ints(1)), reverse=1)
    recent = op.And(keep, op.LessOrEqual(later, op.float32(short_window)))
    rank = op.Sub(op.ReduceSum(op.float32(recent), op.ints(1), keepdims=1), later)
    short_term = pooled(weights(recent, op.Add(op.Mul(rank, 0.1), 1.0)))

    size = op.Squeeze(op.size(x, 1, 0))
    position = op.float32(op.Range(op.Squeeze(op.ints(0)), size, op.Squeeze(op.ints(1))))
    last = op.reduce_max(op.Where(keep, position, -1.0), 1)
    fading = op.Exp(op.Mul(op.Sub(last, position), -0.1))
    long_term = pooled(weights(keep, op.Add(op.Mul(fading, 0.5), 0.5)))

    distance = op.Sub(op.Unsqueeze(position, op.ints(0)), op.Unsqueeze(position, op.ints(1)))
    counted = op.And(op.Unsqueeze(keep, op.ints(2)), op.Unsqueeze(keep, op.ints(1)))
    counted = op.And(counted, op.Greater(distance, 0.0))
    nearness = op.Where(counted, op.Exp(op.Mul(op.Neg(distance), decay)), 0.0)
    cooccurrence = op.Mul(op.MatMul(x, op.Transpose(x, perm=[0, 2, 1])), nearness)
    return scores, op.like(short_term, items), op.like(long_term, items), op.like(cooccurrence, items)


DECLARATION = declare(
    "items: T [B, S, D]",
    "user?: T [B, D] # for the scores",
    "time_weights?: T|float32 [B, S]",
    "mask?: bool|T [B, S] # true for an item; a number that is not 0 counts as true",
    "-> scores?: T [B, S]",
    "-> short_term?: T [B, D]",
    "-> long_term?: T [B, D]",
    "-> cooccurrence?: T [B, S, S]",
    least={"D": 1},
)

SequenceRecommendationInteraction = FusedOp.declared(
    "SequenceRecommendationInteraction",
    DECLARATION,
    attributes=("short_window", "decay", "normalize"),
    body=sequence_body,
    structure=lambda attributes: {"normalized": bool(attributes["normalize"])},
)


def build(match: Match, view: View) -> Fused:
    wanted = _wanted(match)
    weights = next((match[name] for name in _WEIGHTS.values() if name in match), None)
    attributes = {
        "short_window": _window(match, view) if "short_term" in wanted else 0,
        "decay": (_decay(match, view) or 0.0) if "cooccurrence" in wanted else 0.0,
        "normalize": int("short_averaged" in match or "long_averaged" in match),
    }
    mask = match.get("keep", match.get("scores_keep"))
    inputs = {"items": match["items"], "user": match.get("user"), "time_weights": weights, "mask": mask}
    return Fused(
        inputs, dict(zip(wanted, match.values, strict=True)), attributes, parts=wanted, may_stay=_light(match, view)
    )


def _light(match: Match, view: View) -> tuple[str, ...]:
    """What is made of mask, weights and positions alone: [B, S] at most, where the items are [B, S, D].

    Several sequences, say of items and of their categories, often share these.
    """
    heavy = {match["items"], match.get("user")}
    light: list[str] = []
    for node in match.nodes:
        inputs = view.inputs(node)
        if heavy.isdisjoint(inputs):
            light += node.outputs
        else:
            heavy.update(node.outputs)
    return tuple(light)


FUSION = Fusion(
    name="SequenceRecommendationInteraction",
    pattern=tuple(_pattern(wanted) for size in (4, 3, 2, 1) for wanted in itertools.combinations(OUTPUTS, size)),
    operator=SequenceRecommendationInteraction,
    build=build,
    summary="a user against a sequence of items: masked scores, short-term and long-term interest, co-occurrence",
    anchor="ReduceSum",
)
