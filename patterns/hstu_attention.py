"""HSTU attention: SiLU in place of Softmax, divided by a length, with its norm and its gate.

"Actions Speak Louder than Words: Trillion-Parameter Sequential Transducers for Generative Recommendations" (arXiv 2402.17152).
Found in the authors' research and production forms and in NVIDIA's recsys-examples. The projections of q, k, v and u, the
relative bias and the residual stay outside.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from onnx import TensorProto

from onnx_fuse.patterns.language.body import Body
from onnx_fuse.patterns.language.declaration import declare
from onnx_fuse.patterns.language.dsl import Attribute, Optional, Scalar, pattern
from onnx_fuse.patterns.language.interface import Match, View
from onnx_fuse.patterns.language.operator import FLOATS, Fused, FusedOp, Fusion
from onnx_fuse.patterns.parts.heads import four_axes, misfit, narrow, producer, rows, unexpanded, wide
from onnx_fuse.patterns.parts.level_attention import build_levels, level_attention, levels_body
from onnx_fuse.patterns.parts.masks import conjunction, is_lower_triangle, lengths_behind, negated, split_off
from onnx_fuse.patterns.parts.norm import affine_problem

SILU_IS_ZERO = -128.0
"""At and below this number SiLU is zero in float32."""
_TRILU_SINCE = 14
_LOWEST = float(np.finfo(np.float32).min)
_PRECISION: dict[int, float] = {TensorProto.FLOAT: 1e-6, TensorProto.FLOAT16: 1e-3, TensorProto.BFLOAT16: 8e-3}
"""How far from the reciprocal of a whole number a constant may be that was meant to be one."""


def _scaled(op: Any, value: Any, factor: Any, divisor: Any) -> Any:
    """The value, or the value times a constant or divided by a tensor: the 1/N may stand in any of several places."""
    return op.any_of(op.Mul(value, factor), op.Div(value, divisor), op.Mul(value, op.Reciprocal(divisor)), value)


def _masked(op: Any, value: Any, mask: Any, keep: Any, drop: Any) -> Any:
    # A mask can be anything, so it comes last: a number is a scale.
    return op.any_of(op.Where(keep, value, 0.0), op.Where(drop, 0.0, value), value, op.Mul(value, mask))


def _weights(op: Any, product: Any, scores: Any, scales: Any, masks: Any) -> Any:
    """The masked and divided SiLU of the scores, from q k^T."""
    alpha, bias, keep, drop, fill = scores
    product = op.any_of(op.Cast(product, to=wide), product)
    inside = op.named("inside", op.Mul(op.Add(product, bias), alpha))
    scaled = op.any_of(op.Mul(product, alpha), product)
    value = op.any_of(inside, op.Add(scaled, bias), scaled)
    value = op.any_of(op.Where(keep, value, fill), op.Where(drop, fill, value), value)
    value = _scaled(op, op.Swish(value, alpha=1.0), *scales[0])
    for mask in masks:
        value = _masked(op, value, *mask)
    value = _scaled(op, value, *scales[1])
    return op.any_of(op.Cast(value, to=narrow), value)


def _affine_of_heads(op: Any, turned: Any, gamma: Any, beta: Any) -> Any:
    """A scale and a shift after a norm of each head: one number a head, one vector for all heads, or all of it."""

    def spans(vector: Any) -> Any:
        return op.any_of(op.shape(vector, "h 1"), op.shape(vector, "dv"), op.shape(vector, "h dv"))

    def affine(value: Any, scale: Any, shift: Any) -> Any:
        return op.Add(op.Mul(value, scale), shift)

    flat = op.Reshape(turned)
    in_heads = op.any_of(op.shape(flat, "_ h dv"), op.shape(turned, "B N h dv"))
    in_rows = op.any_of(op.shape(flat, "_ E"), op.shape(flat, "B N E"))
    return op.any_of(
        affine(in_heads, spans(gamma), spans(beta)), affine(in_rows, op.shape(gamma, "E"), op.shape(beta, "E"))
    )


@pattern
def hstu_attention(  # type: ignore[no-untyped-def]
    op,
    query,
    key_t,
    value,
    alpha: Scalar,
    bias,
    keep_score,
    drop_score,
    score_fill: Scalar,
    factor_1: Scalar,
    divisor_1,
    mask_1,
    keep_1,
    drop_1,
    mask_2,
    keep_2,
    drop_2,
    factor_2: Scalar,
    divisor_2,
    factor_3: Scalar,
    divisor_3,
    head_gamma: Optional,
    head_beta: Optional,
    group_gamma,
    group_beta,
    factor_4: Scalar,
    divisor_4,
    gamma: Optional,
    beta: Optional,
    epsilon: Attribute,
    gate,
    present,
):
    product = op.MatMul(op.shape(query, "B h N d"), op.shape(key_t, "B h d M"))
    weights = _weights(
        op,
        product,
        (alpha, bias, keep_score, drop_score, score_fill),
        ((factor_1, divisor_1), (factor_2, divisor_2)),
        ((mask_1, keep_1, drop_1), (mask_2, keep_2, drop_2)),
    )
    context = _scaled(op, op.MatMul(weights, op.shape(value, "B h M dv")), factor_3, divisor_3)
    # A norm for each head comes before the heads are merged, wherever the model has it; its scale and shift need not.
    per_head = op.named("group", op.LayerNormalization(context, head_gamma, head_beta, axis=-1, epsilon=epsilon))
    context = op.any_of(per_head, context)
    turned = op.any_of(op.Transpose(context, perm=[0, 2, 1, 3]), op.shape(context, "B 1 N dv"))
    affine = _affine_of_heads(op, turned, group_gamma, group_beta)
    merged = op.shape(op.any_of(op.Reshape(op.any_of(affine, turned)), affine), "B N E")
    merged = op.named("merged", _scaled(op, merged, factor_4, divisor_4))
    normed = op.any_of(op.named("layer", op.LayerNormalization(merged, gamma, beta, axis=-1, epsilon=epsilon)), merged)
    gated = op.any_of(op.Mul(normed, op.shape(gate, "B N E")), normed)
    return op.any_of(op.Mul(gated, op.shape(present, "B N 1")), gated)


@pattern
def hstu_attention_of_one_head(  # type: ignore[no-untyped-def]
    op,
    query,
    key_t,
    value,
    alpha: Scalar,
    bias,
    keep_score,
    drop_score,
    score_fill: Scalar,
    factor_1: Scalar,
    divisor_1,
    mask_1,
    keep_1,
    drop_1,
    mask_2,
    keep_2,
    drop_2,
    factor_2: Scalar,
    divisor_2,
    factor_3: Scalar,
    divisor_3,
    gamma: Optional,
    beta: Optional,
    epsilon: Attribute,
    gate,
    present,
):
    """A model with one head may have no axis for it."""
    weights = _weights(
        op,
        op.MatMul(op.shape(query, "B N d"), op.shape(key_t, "B d M")),
        (alpha, bias, keep_score, drop_score, score_fill),
        ((factor_1, divisor_1), (factor_2, divisor_2)),
        ((mask_1, keep_1, drop_1), (mask_2, keep_2, drop_2)),
    )
    context = op.MatMul(op.shape(weights, "B N N"), op.shape(value, "B M dv"))
    merged = _scaled(op, context, factor_3, divisor_3)
    merged = op.named("merged", op.shape(merged, "B N E"))
    normed = op.any_of(op.named("layer", op.LayerNormalization(merged, gamma, beta, axis=-1, epsilon=epsilon)), merged)
    gated = op.any_of(op.Mul(normed, op.shape(gate, "B N E")), normed)
    return op.any_of(op.Mul(gated, op.shape(present, "B N 1")), gated)


@hstu_attention_of_one_head.require
@hstu_attention.require
def sizes_are_static(match: Match, view: View) -> str | None:
    for name, what in (("h", "the number of heads"), ("d", "the head size"), ("dv", "the head size of the value")):
        if not isinstance(match.get(name, 1), int):
            return f"{what} is {match[name]}, it must be known"
    return None


@hstu_attention_of_one_head.require
@hstu_attention.require
def queries_and_keys_are_the_same_positions(match: Match, view: View) -> str | None:
    if match["N"] != match["M"]:
        return f"there are {match['N']} queries and {match['M']} keys, HSTU's are of the same positions"
    return None


@hstu_attention_of_one_head.require
@hstu_attention.require
def operands_have_one_type(match: Match, view: View) -> str | None:
    types = {view.dtype(match[name]) for name in ("query", "key_t", "value")}
    return "query, key and value have different types" if len(types) > 1 else None


@hstu_attention_of_one_head.require
@hstu_attention.require
def masks_fit_the_scores(match: Match, view: View) -> str | None:
    scores = _scores(match)
    for name in ("bias", *_MASKS, "keep_score", "drop_score"):
        problem = misfit(view, match[name], scores, "bias" if name == "bias" else "mask") if name in match else None
        if problem is not None:
            return problem
    return None


@hstu_attention_of_one_head.require
@hstu_attention.require
def masked_scores_weigh_nothing(match: Match, view: View) -> str | None:
    fill = view.scalar(match["score_fill"]) if "score_fill" in match else None
    if fill is None or SILU_IS_ZERO >= fill > -np.inf:
        return None
    return f"masked scores become {fill:g}, of which SiLU is not zero"


@hstu_attention.require
def one_norm_alone(match: Match, view: View) -> str | None:
    if "group_gamma" in match and ("group" not in match or "head_gamma" in match):
        return "the heads are scaled and shifted other than after their norm"
    for name in ("head_gamma", "head_beta"):
        if name in match and view.shape(match[name]) != (match["dv"],):
            return f"the norm of each head has the scale or shift {match[name]}, which is no vector of {match['dv']}"
    if "group" in match and "layer" in match:
        return "each head is normed, and all of them together once more"
    if "group" in match and ("factor_4" in match or "divisor_4" in match):
        return "the heads are scaled after their norm"
    return None


@hstu_attention_of_one_head.require
@hstu_attention.require
def affine_spans_the_last_axis(match: Match, view: View) -> str | None:
    return affine_problem(match, view, match["merged"])


_MASKS = ("mask_1", "keep_1", "drop_1", "mask_2", "keep_2", "drop_2")


def _scores(match: Match) -> tuple[Any, ...]:
    return tuple(match[name] for name in ("B", "h", "N", "M") if name in match)


def hstu_body(  # type: ignore[no-untyped-def]
    op: Body,
    q,
    k,
    v,
    bias,
    mask,
    scale,
    lengths,
    u,
    gamma,
    beta,
    num_heads,
    alpha,
    bias_order,
    norm_length,
    causal,
    norm,
    gate_activation,
    epsilon,
    mode,
    num_levels,
    decay,
    is_causal,
    divides_by_n,
    levels,
) -> Any:
    """a = silu(s) * mask, s = alpha q k^T + bias or alpha (q k^T + bias);  y = norm(merge(a v / N)) * act(u)."""
    heads = op.Reshape(num_heads, op.ints(1))
    length = op.size(v, 1, 0)
    position = op.Range(op.Squeeze(op.ints(0)), op.Squeeze(length), op.Squeeze(op.ints(1)))

    def split(x: str, perm: list[int]) -> str:
        four = op.Reshape(op.float32(x), op.Concat(op.ints(0, 0), heads, op.Div(op.last_size(x), heads), axis=0))
        return str(op.Transpose(four, perm=perm))

    queries, values = split(q, [0, 2, 1, 3]), split(v, [0, 2, 1, 3])
    if mode == "level_softmax":
        keys = split(k, [0, 2, 1, 3])
        context = levels_body(op, queries, keys, values, alpha, mask, position, length, decay, levels)
        return op.like(op.Reshape(op.Transpose(context, perm=[0, 2, 1, 3]), op.open_shape(v, 0, 1)), q)
    scores = op.MatMul(queries, split(k, [0, 2, 3, 1]))
    bias = None if bias is None else op.float32(bias)
    if bias is not None and mask is not None:
        bias = op.Max(bias, _LOWEST)  # SiLU of -inf is NaN, which no mask would clear below
    if bias is not None and bias_order == "inside_alpha":
        scores = op.Mul(op.Add(scores, bias), alpha)
    else:
        scores = op.Mul(scores, alpha)
        scores = scores if bias is None else op.Add(scores, bias)
    weights = op.Mul(scores, op.Sigmoid(scores))
    if mask is not None:
        weights = op.Mul(weights, op.float32(mask))
    if is_causal and op.opset >= _TRILU_SINCE:
        weights = op.Trilu(weights, upper=0)
    elif is_causal:
        weights = op.Where(op.LessOrEqual(position, op.Unsqueeze(position, op.ints(1))), weights, 0.0)
    if lengths is not None:
        present = op.Less(position, op.Unsqueeze(op.Cast(lengths, to=TensorProto.INT64), op.ints(1)))
        weights = op.Where(op.Unsqueeze(present, op.ints(1, 2)), weights, 0.0)
    context = op.MatMul(weights, values)
    if scale is not None:
        context = op.Mul(context, op.float32(scale))
    else:
        context = op.Div(context, op.float32(length) if divides_by_n else norm_length)
    if norm == "group":
        context = op.normalise(context, "layer", None, None, epsilon)
    four = op.Transpose(context, perm=[0, 2, 1, 3])
    if norm == "group":
        per_head = op.Concat(heads, op.ints(-1), axis=0)
        four = four if gamma is None else op.Mul(four, op.Reshape(op.float32(gamma), per_head))
        four = four if beta is None else op.Add(four, op.Reshape(op.float32(beta), per_head))
    y = op.Reshape(four, op.open_shape(v, 0, 1))
    if norm == "layer":
        y = op.normalise(y, "layer", gamma, beta, epsilon)
    if u is not None:
        y = op.Mul(y, _activated(op, op.float32(u), gate_activation))
    if lengths is not None:
        y = op.Where(op.Unsqueeze(present, op.ints(2)), y, 0.0)
    return op.like(y, q)


def _activated(op: Body, x: str, activation: str) -> str:
    if activation == "none":
        return x
    gate = op.Sigmoid(x)
    return str(gate if activation == "sigmoid" else op.Mul(x, gate))


DECLARATION = declare(
    "q: T [B, N, h*d]",
    "k: T [B, N, h*d]",
    "v: T [B, N, h*dv]",
    "bias?: T|float32 [1|B, 1|h, 1|N, 1|N] if mode=silu # added to the scores",
    "mask?: bool|T [1|B, 1|h, 1|N, 1|N] # true keeps; a number is what the weights are multiplied with",
    "scale?: T|float32 [1|B, 1, 1|N, 1] if mode=silu # multiplies the weights of a row; then `norm_length` is not used",
    "lengths?: int32|int64 [1|B] if mode=silu # keys at and beyond it are masked, rows at and beyond it are 0",
    "u?: T [B, N, h*dv] if mode=silu # gate",
    "gamma?: T|float32 [h*dv] if mode=silu or [h] if norm=group",
    "beta?: T|float32 [h*dv] if mode=silu or [h] if norm=group",
    "-> y: T [B, N, h*dv]",
    sizes={"h": "num_heads"},
)

HSTUHierarchicalAttention = FusedOp.declared(
    "HSTUHierarchicalAttention",
    DECLARATION,
    attributes=(
        "num_heads",
        "alpha",
        "bias_order",
        "norm_length",
        "causal",
        "norm",
        "gate_activation",
        "epsilon",
        "mode",
        "num_levels",
        "decay",
    ),
    body=hstu_body,
    structure=lambda attributes: {
        "is_causal": bool(attributes["causal"]),
        "divides_by_n": attributes["norm_length"] == 0,
        "levels": attributes["num_levels"],
    },
)


def build(match: Match, view: View) -> Fused | str:
    if "levels" in match:
        return build_levels(match, view)
    like = match.root
    masks, causal = split_off(view, _masks(match, view), like, lambda view, part: _is_causal(match, view, part))
    lengths = lengths_behind(view, match["present"]) if "present" in match else None
    if "present" in match:
        if lengths is None:
            return f"the rows are multiplied by {match['present']}, which is not known to be made of lengths"
        masks, masked = split_off(view, masks, like, lambda view, part: _masks_keys(match, view, part, lengths))
        if not masked and not causal:
            return f"rows beyond {lengths} are cleared, and their keys are not masked"
    length, scale = _length(match, view, masks)
    if length is None:
        return "the weights are divided by something else than one number for each position"
    norm = "group" if "group" in match else "layer" if "layer" in match else "none"
    activation, gate = _gate(match, view)
    inputs = {
        "q": rows(view, match["query"], match.get("h"), like),
        "k": rows(view, match["key_t"], match.get("h"), like, key=True),
        "v": rows(view, match["value"], match.get("h"), like),
        "bias": _four_axes(view, match, unexpanded(view, match["bias"], _scores(match))) if "bias" in match else None,
        "mask": conjunction(view, [_four_axes(view, match, mask) for mask in masks], like),
        "scale": None if scale is None else _four_axes(view, match, scale),
        "lengths": lengths,
        "u": gate,
        "gamma": _affine(match, view, "gamma", neutral=1.0),
        "beta": _affine(match, view, "beta", neutral=0.0),
    }
    attributes = {
        "num_heads": match.get("h", 1),
        "alpha": float(view.scalar(match["alpha"]) or 0.0) if "alpha" in match else 1.0,
        "bias_order": "inside_alpha" if "inside" in match else "outside_alpha",
        "norm_length": length,
        "causal": int(causal),
        "norm": norm,
        "gate_activation": activation,
        "epsilon": float(match.get("epsilon", 0.0)),
        "mode": "silu",
        "num_levels": 1,
        "decay": 1.0,
    }
    taken = {
        "bias": "bias" in match,
        "mask": causal or bool(masks) or lengths is not None,
        "norm": norm != "none",
        "gate": gate is not None,
    }
    return Fused(
        inputs, {"y": like.outputs[0]}, attributes, parts=tuple(part for part, is_in in taken.items() if is_in)
    )


def _masks(match: Match, view: View) -> list[str]:
    """What the weights are multiplied with, or kept where: bool where the model has it as bool."""
    found: list[str] = []
    for name in (*_MASKS, "keep_score", "drop_score"):
        if name not in match:
            continue
        mask = unexpanded(view, match[name], _scores(match))
        cast = producer(view, mask, "Cast")
        if cast is not None and view.dtype(cast.inputs[0]) == TensorProto.BOOL:
            mask = unexpanded(view, view.resolve(cast.inputs[0]), _scores(match))
        found.append(negated(view, mask, match.root) if name.startswith("drop") else mask)
    return found


def _length(match: Match, view: View, masks: list[str]) -> tuple[float | None, str | None]:
    """(norm_length, scale): what the weights are divided by, or a tensor they are multiplied with, taken from the masks."""
    factor = 1.0
    for place in range(1, 5):
        factor *= float(view.scalar(match[f"factor_{place}"]) or 0.0) if f"factor_{place}" in match else 1.0
    divisors = [place for place in range(1, 5) if f"divisor_{place}" in match]
    if factor <= 0 or len(divisors) > 1 or (divisors and factor != 1.0):
        return None, None
    each_row = (match["B"], 1, match["N"], 1) if "h" in match else (match["B"], match["N"], 1)
    if divisors:
        divisor = match[f"divisor_{divisors[0]}"]
        if view.dimension(divisor) == match["N"]:
            return 0.0, None
        if divisors[0] == 4 or not view.broadcasts_to(divisor, each_row):
            return None, None
        return 1.0, view.add("Reciprocal", [divisor], like=match.root)
    scale = next((mask for mask in masks if view.dtype(mask) in FLOATS and view.broadcasts_to(mask, each_row)), None)
    if scale is not None and factor == 1.0:
        masks.remove(scale)
        return 1.0, scale
    # The reciprocal of a whole number, as far as the type it is written in can hold it.
    whole = round(1 / factor)
    return float(whole) if abs(factor * whole - 1) < _PRECISION.get(
        view.dtype(match["query"]), 0.0
    ) else 1 / factor, None


def _is_causal(match: Match, view: View, part: str) -> bool:
    """Whether a mask is the causal one: a lower triangle of all positions, not of one that is broadcast."""
    return is_lower_triangle(view, part) and (view.shape(part) or (None,))[-1] == match["N"]


def _masks_keys(match: Match, view: View, part: str, lengths: str) -> bool:
    """Whether a mask keeps the keys below the lengths."""
    keys = (match["B"], 1, 1, match["N"]) if "h" in match else (match["B"], 1, match["N"])
    return view.shape(part) == keys and lengths_behind(view, part) == lengths


def _four_axes(view: View, match: Match, value: str) -> str:
    """The value as it broadcasts to [B, h, N, N], also where the scores have no axis for their one head."""
    if "h" not in match and view.rank(value) == 3:
        return view.add("Unsqueeze", [value, view.array(np.array([1], dtype=np.int64), value)], like=match.root)
    return four_axes(view, value, match.root)


def _gate(match: Match, view: View) -> tuple[str, str | None]:
    """(gate_activation, u)."""
    if "gate" not in match:
        return "none", None
    node = view.producer(match["gate"])
    if node is not None and node.domain == "":
        if node.op_type == "Sigmoid":
            return "sigmoid", view.resolve(node.inputs[0])
        if node.op_type == "Swish" and view.attribute(node, "alpha") == 1.0:
            return "silu", view.resolve(node.inputs[0])
    return "none", match["gate"]


def _affine(match: Match, view: View, name: str, neutral: float) -> str | None:
    """Scale or shift of the norm, [h*dv] or [h]; None where there is none, or it does nothing."""
    value = next((match[item] for item in (f"head_{name}", f"group_{name}", name) if item in match), None)
    array = None if value is None else view.constant(value)
    if value is None or (array is not None and bool(np.all(np.asarray(array, dtype=np.float32) == neutral))):
        return None
    shape = view.shape(value) or ()
    if "group" in match and shape == (match["dv"],) and match["h"] > 1:
        return view.add("Tile", [value, view.array(np.array([match["h"]], dtype=np.int64), value)], like=match.root)
    if len(shape) > 1:
        return view.add("Reshape", [value, view.array(np.array([-1], dtype=np.int64), value)], like=match.root)
    return value


FUSION = Fusion(
    name="HSTUHierarchicalAttention",
    pattern=(hstu_attention, hstu_attention_of_one_head, level_attention),
    operator=HSTUHierarchicalAttention,
    build=build,
    summary="HSTU attention: SiLU of the scores, divided by a length, with its norm and its gate",
    anchor="Swish",
    rim=("norm", "gate"),
)
