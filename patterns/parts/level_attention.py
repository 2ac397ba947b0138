"""HSTU attention in levels: the keys in runs, a Softmax for each run, and later runs weighing more.

The operator is `HSTUHierarchicalAttention` with `mode="level_softmax"`. Exporters unroll the levels, so it is found where the
number of positions is known: then the bounds of the runs are constants.
"""

from __future__ import annotations

import math

import numpy as np
from onnx import TensorProto

from onnx_fuse.patterns.language.body import Body
from onnx_fuse.patterns.language.dsl import Scalar, pattern
from onnx_fuse.patterns.language.interface import Match, View
from onnx_fuse.patterns.language.operator import Fused
from onnx_fuse.patterns.parts.heads import producer, rows

MOST_LEVELS = 16
_LOWEST = float(np.finfo(np.float32).min)


@pattern
def level_attention(op, query, key_t, value, scale: Scalar, weight: Scalar, normaliser: Scalar):  # type: ignore[no-untyped-def]
    scores = op.Mul(op.MatMul(op.shape(query, "B h N d"), op.shape(key_t, "B h d _")), scale)
    attended = op.MatMul(op.Softmax(scores, axis=-1), op.shape(value, "B h _ dv"))
    levels = op.tree("Add", op.any_of(op.Mul(attended, weight), attended), least=2, most=MOST_LEVELS, count="levels")
    merged = op.Reshape(op.Transpose(levels, perm=[0, 2, 1, 3]))
    return op.Mul(op.shape(merged, "B N E"), normaliser)


@level_attention.require
def sizes_are_static(match: Match, view: View) -> str | None:
    for name, what in (
        ("N", "the number of positions"),
        ("h", "the number of heads"),
        ("d", "the head size"),
        ("dv", "that of the value"),
    ):
        if not isinstance(match[name], int):
            return f"{what} is {match[name]}, it must be known"
    return None


@level_attention.require
def levels_cut_the_same_keys_in_order(match: Match, view: View) -> str | None:
    if len({match[f"query_{level}"] for level in _levels(match)}) > 1:
        return "the levels have different queries"
    size = math.ceil(match["N"] / _count(match, view))
    for name in ("key_t", "value"):
        wholes = set()
        for level in _levels(match):
            found = _run(match[f"{name}_{level}"], view, key=name == "key_t")
            if found is None:
                return f"level {level} is no run of known bounds of the keys"
            whole, start, end = found
            wanted = ((level - 1) * size, min(level * size, match["N"]))
            if (start, min(end, match["N"])) != wanted:
                return f"level {level} has the keys {start} to {end}, pattern wants {wanted[0]} to {wanted[1]}"
            wholes.add(whole)
        if len(wholes) > 1:
            return "the levels are runs of different keys"
    if len(_levels(match)) * size < match["N"]:
        return f"the last keys of {match['N']} are in no level"
    return None


@level_attention.require
def levels_weigh_more_and_decay(match: Match, view: View) -> str | None:
    weights = [_number(match, view, f"weight_{level}") for level in _levels(match)]
    scales = [_number(match, view, f"scale_{level}") for level in _levels(match)]
    total = math.fsum(weights) * _number(match, view, "normaliser")
    count = _count(match, view)
    if abs(total - 1) > 1e-4 or any(
        abs(weight * count - level) > 1e-4 * level for level, weight in zip(_levels(match), weights, strict=True)
    ):
        return f"the levels weigh {_listed(weights)}, pattern wants 1/{count}, 2/{count}, ... over their sum"
    decay = scales[1] / scales[0] if scales[0] else 0.0
    if decay <= 0 or any(
        abs(scale - scales[0] * decay**level) > 1e-4 * abs(scale) for level, scale in enumerate(scales)
    ):
        return f"the scores are scaled by {_listed(scales)}, which is no geometric sequence"
    return None


def _levels(match: Match) -> range:
    return range(1, match["levels"] + 1)


def _count(match: Match, view: View) -> int:
    """Number of levels, of which the last may have no keys: the first one weighs its reciprocal."""
    weight = _number(match, view, "weight_1")
    return max(round(1 / weight), 1) if weight > 0 else 1


def _number(match: Match, view: View, name: str) -> float:
    return float(view.scalar(match[name]) or 0.0) if name in match else 1.0


def _listed(numbers: list[float]) -> str:
    return ", ".join(f"{number:g}" for number in numbers)


def _run(value: str, view: View, *, key: bool) -> tuple[str, int, int] | None:
    """(heads [B, h, N, d], first, one past the last) where the value is a run of their positions; transposed for a key."""
    if key:
        transpose = producer(view, value, "Transpose")
        if transpose is None or list(view.attribute(transpose, "perm") or []) != [0, 1, 3, 2]:
            return None
        value = transpose.inputs[0]
    cut = producer(view, value, "Slice")
    if cut is None:
        return None
    starts, ends, axes, steps = (view.attribute(cut, name) for name in ("starts", "ends", "axes", "steps"))
    known = isinstance(starts, list) and isinstance(ends, list) and axes == [2] and steps in (None, [1])
    if not known or not isinstance(starts[0], int) or not isinstance(ends[0], int) or starts[0] < 0 or ends[0] < 0:
        return None
    return view.resolve(cut.inputs[0]), starts[0], ends[0]


def levels_body(  # type: ignore[no-untyped-def]
    op: Body, q, k, v, alpha, mask, position, length, decay, levels: int
) -> str:
    """sum_l w_l softmax_l(decay^l alpha q k^T) v / sum of w_l over the levels with a key, [B, h, N, dv]; w_l = (l + 1) / levels.

    q, k and v are [B, h, N, d or dv].
    """
    size = op.Div(op.Add(length, op.ints(levels - 1)), op.ints(levels))
    attend = _runs if mask is None else _masked_runs
    return attend(op, q, k, v, alpha, mask, position, length, decay, levels, size)


def _runs(  # type: ignore[no-untyped-def]
    op: Body, q, k, v, alpha, _mask, _position, length, decay, levels: int, size
) -> str:
    """Each level with its own keys alone: a level that starts behind the last key has none, and attends to nothing."""
    total, weight = None, None
    for level in range(levels):
        start, end = op.Mul(size, op.ints(level)), op.Mul(size, op.ints(level + 1))
        keys, values = (op.Slice(x, start, end, op.ints(2)) for x in (k, v))
        scores = op.Mul(op.MatMul(q, op.Transpose(keys, perm=[0, 1, 3, 2])), op.Mul(alpha, op.Pow(decay, float(level))))
        attended, share = op.MatMul(op.Softmax(scores, axis=-1), values), (level + 1) / levels
        present = op.Mul(op.float32(op.Less(start, length)), share)
        attended = op.Mul(attended, share) if share < 1 else attended
        total = attended if total is None else op.Add(total, attended)
        weight = present if weight is None else op.Add(weight, present)
    return str(op.Div(total, weight))


def _masked_runs(  # type: ignore[no-untyped-def]
    op: Body, q, k, v, alpha, mask, position, _length, decay, levels: int, size
) -> str:
    """All keys for each level, of which it takes its own that the mask leaves."""
    scores = op.Mul(op.MatMul(q, op.Transpose(k, perm=[0, 1, 3, 2])), alpha)
    level_of = op.Div(position, op.Max(size, op.ints(1)))
    ones = op.Unsqueeze(op.float32(op.Equal(position, position)), op.ints(1))
    keep = op.Cast(mask, to=TensorProto.BOOL)
    total, weight = None, None
    for level in range(levels):
        member = op.And(keep, op.Equal(level_of, op.ints(level)))
        inside = op.Where(member, op.Mul(scores, op.Pow(decay, float(level))), _LOWEST)
        probabilities = op.Where(member, op.Softmax(inside, axis=-1), 0.0)
        # What a level weighs where it has a key. A product, since reducing an axis without elements is no safe ground.
        present = op.float32(op.Greater(op.MatMul(probabilities, ones), 0.5))
        share = (level + 1) / levels
        attended, present = op.Mul(op.MatMul(probabilities, v), share), op.Mul(present, share)
        total = attended if total is None else op.Add(total, attended)
        weight = present if weight is None else op.Add(weight, present)
    return str(op.Where(op.Greater(weight, 0.0), op.Div(total, weight), 0.0))


def build_levels(match: Match, view: View) -> Fused | str:
    like, heads = match.root, match["h"]
    runs = [_run(match[name], view, key=name == "key_t_1") for name in ("key_t_1", "value_1")]
    if runs[0] is None or runs[1] is None:
        return "the levels are no runs of the keys"
    inputs = {
        "q": rows(view, match["query_1"], heads, like),
        "k": rows(view, runs[0][0], heads, like),
        "v": rows(view, runs[1][0], heads, like),
    }
    scale = _number(match, view, "scale_1")
    attributes = {
        "num_heads": heads,
        "alpha": scale,
        "bias_order": "outside_alpha",
        "norm_length": 1.0,
        "causal": 0,
        "norm": "none",
        "gate_activation": "none",
        "epsilon": 0.0,
        "mode": "level_softmax",
        "num_levels": _count(match, view),
        "decay": _number(match, view, "scale_2") / scale,
    }
    return Fused(inputs, {"y": like.outputs[0]}, attributes)
