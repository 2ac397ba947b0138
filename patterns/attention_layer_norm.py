"""Multi-head attention with its rim: output projection, residual and LayerNorm or RMSNorm, as far as the graph has them in a row.

Softmax attention of "Attention Is All You Need" (arXiv 1706.03762). Found in BERT, DistilBERT, RoBERTa (post-LN), GPT-2, ViT
(pre-LN) and torch.nn.TransformerEncoder of both kinds; the projections of query, key and value stay outside.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from onnx import TensorProto

from onnx_fuse.patterns.language.body import Body
from onnx_fuse.patterns.language.declaration import declare
from onnx_fuse.patterns.language.dsl import VIEW_DOMAIN, Attribute, Optional, Scalar, pattern
from onnx_fuse.patterns.language.interface import Match, View
from onnx_fuse.patterns.language.operator import FLOATS, Fused, FusedOp, Fusion, type_name
from onnx_fuse.patterns.parts.heads import before_split, four_axes, misfit, narrow, producer, unexpanded, wide
from onnx_fuse.patterns.parts.norm import affine_problem, norm_of


@pattern
def attention_layer_norm(  # type: ignore[no-untyped-def]
    op,
    query,
    key_t,
    value,
    scale: Scalar,
    attention_bias,
    keep,
    drop,
    mask_value: Scalar,
    causal: Attribute,
    out_weight,
    out_bias,
    residual,
    gamma: Optional,
    beta: Optional,
    epsilon: Attribute,
):
    scores = op.MatMul(op.shape(query, "B h Sq d"), op.shape(key_t, "B h d Sk"))
    scores = op.optional(op.Cast(scores, to=wide), scores)
    scores = op.optional(op.Mul(scores, scale), scores)
    scores = op.optional(op.Add(scores, attention_bias), scores)
    scores = op.any_of(op.Where(keep, scores, mask_value), op.Where(drop, mask_value, scores), scores)
    scores = op.optional(op.domain(VIEW_DOMAIN).Causal(scores, causal=causal), scores)
    probabilities = op.Softmax(op.optional(op.Cast(scores, to=wide), scores), axis=-1)
    probabilities = op.optional(op.Cast(probabilities, to=narrow), probabilities)
    guarded = op.named("guard", op.Where(op.IsNaN(probabilities), 0.0, probabilities))
    values = op.shape(value, "B h Sk dv")
    context = op.MatMul(op.any_of(guarded, probabilities), op.any_of(op.Cast(values, to=wide), values))
    merged = op.shape(op.Reshape(op.Transpose(context, perm=[0, 2, 1, 3])), "B Sq E")
    merged = op.optional(op.Cast(merged, to=narrow), merged)
    product = op.MatMul(merged, op.shape(out_weight, "E Ho"))
    projected = op.any_of(op.Add(product, op.shape(out_bias, "Ho")), product, merged)
    total = op.named("total", op.optional(op.Add(projected, residual), projected))
    return op.any_of(
        op.named("layer", op.LayerNormalization(total, gamma, beta, axis=-1, epsilon=epsilon)),
        op.named("rms", op.RMSNormalization(total, gamma, axis=-1, epsilon=epsilon)),
        total,
    )


@attention_layer_norm.require
def sizes_are_static(match: Match, view: View) -> str | None:
    for name, what in (("h", "the number of heads"), ("d", "the head size"), ("dv", "the head size of the value")):
        if not isinstance(match[name], int):
            return f"{what} is {match[name]}, it must be known"
    return None


@attention_layer_norm.require
def operands_have_one_type(match: Match, view: View) -> str | None:
    types = {view.dtype(match[name]) for name in ("query", "key_t", "value")}
    # What is narrower than the result is widened for the operator.
    widened = {view.dtype(match.root.outputs[0])} & {TensorProto.FLOAT}
    if len(types) > 1 and not (len(types - widened) == 1 and types <= {*FLOATS}):
        return "query, key and value have different types"
    if types.isdisjoint({*FLOATS, TensorProto.UNDEFINED}) and view.dtype(match.root.outputs[0]) in FLOATS:
        return f"query, key and value are {type_name(*types)}, of which only the product is narrowed"
    return None


@attention_layer_norm.require
def masks_fit_the_scores(match: Match, view: View) -> str | None:
    scores = tuple(match[name] for name in ("B", "h", "Sq", "Sk"))
    masks = [match[name] for name in ("attention_bias", "keep", "drop") if name in match]
    return next(filter(None, (misfit(view, mask, scores, "mask") for mask in masks)), None)


@attention_layer_norm.require
def residual_has_the_shape_of_the_sum(match: Match, view: View) -> str | None:
    if "residual" not in match:
        return None
    total, projected = view.shape(match["total"]), (match["B"], match["Sq"], match.get("Ho", match["E"]))
    if view.shape(match["residual"]) != total:
        return f"the residual {match['residual']} is broadcast"
    if total != projected:
        return (
            f"the residual {match['residual']} is larger than what it is added to, [{', '.join(map(str, projected))}]"
        )
    return None


@attention_layer_norm.require
def affine_spans_the_last_axis(match: Match, view: View) -> str | None:
    return affine_problem(match, view, match["total"])


def attention_body(  # type: ignore[no-untyped-def]
    op: Body,
    query,
    key,
    value,
    attention_bias,
    mask,
    out_weight,
    out_bias,
    residual,
    gamma,
    beta,
    num_heads,
    num_key_value_heads,
    scale,
    mask_value,
    causal,
    masked_row,
    norm,
    epsilon,
    layout,
    grouped,
) -> tuple[Any, Any]:
    """s = scale q k^T + attention_bias; masked; P = softmax(s); z = (merge(P v) W + b) + residual; output = norm(z)."""
    one = op.ints(1)
    heads, groups = op.Reshape(num_heads, one), op.Reshape(num_key_value_heads, one)

    # No -1: ONNX Runtime refuses it for an empty batch.
    def split(x: str, count: str) -> str:
        if layout == "BHSD":
            return op.float32(x)
        four = op.Concat(op.ints(0, 0), count, op.Div(op.last_size(x), count), axis=0)
        return str(op.Transpose(op.Reshape(op.float32(x), four), perm=[0, 2, 1, 3]))

    def repeat(x: str) -> str:
        """[B, hkv, S, d] -> [B, h, S, d]: each key-value head serves h / hkv query heads in a row."""
        if not grouped:
            return x
        zero, step = op.Squeeze(op.ints(0)), op.Squeeze(op.ints(1))
        served = op.Range(zero, op.Squeeze(heads), step)
        return str(op.Gather(x, op.Div(served, op.Div(heads, groups)), axis=1))

    q, k, v = split(query, heads), repeat(split(key, groups)), repeat(split(value, groups))
    scores = op.Mul(op.MatMul(q, op.Transpose(k, perm=[0, 1, 3, 2])), scale)
    if attention_bias is not None:
        scores = op.Add(scores, op.float32(attention_bias))
    if causal != "none":
        mask = _with_causal(op, mask, scores, causal)
    if mask is not None:
        scores = op.Where(mask, scores, mask_value)
    probabilities = op.Softmax(scores, axis=-1)
    context = op.MatMul(probabilities, v)
    if masked_row == "zero":  # a row of Softmax is NaN as a whole
        context = op.Where(op.IsNaN(op.ReduceSum(probabilities, op.ints(-1), keepdims=1)), 0.0, context)
    size = op.last_size(value)  # of a head, or of all key-value heads
    width = op.Mul(heads, size if layout == "BHSD" else op.Div(size, groups))
    total = op.Reshape(op.Transpose(context, perm=[0, 2, 1, 3]), op.Concat(op.ints(0, 0), width, axis=0))
    if out_weight is not None:
        total = op.MatMul(total, op.float32(out_weight))
    if out_bias is not None:
        total = op.Add(total, op.float32(out_bias))
    if residual is not None:
        total = op.Add(total, op.float32(residual))
    normed = op.normalise(total, norm, gamma, beta, epsilon)
    return op.like(normed, query), op.like(total, query)


def _with_causal(op: Body, mask: str | None, scores: str, causal: str) -> str:
    """mask AND (column <= row), where lower_right aligns the last row with the last column."""
    rows, columns = op.size(scores, 2, 0), op.size(scores, 3, 0)
    zero, step = op.Squeeze(op.ints(0)), op.Squeeze(op.ints(1))
    row = op.Unsqueeze(op.Range(zero, op.Squeeze(rows), step), op.ints(1))
    column = op.Unsqueeze(op.Range(zero, op.Squeeze(columns), step), op.ints(0))
    if causal == "lower_right":
        row = op.Add(row, op.Sub(columns, rows))
    allowed = op.LessOrEqual(column, row)
    return str(allowed if mask is None else op.And(mask, allowed))


DECLARATION = declare(
    "query: T [B, Sq, h*d] if layout=BSH or [B, h, Sq, d] if layout=BHSD",
    "key: T [B, Sk, hkv*d] if layout=BSH or [B, hkv, Sk, d] if layout=BHSD",
    "value: T [B, Sk, hkv*dv] if layout=BSH or [B, hkv, Sk, dv] if layout=BHSD",
    "attention_bias?: T|float32 [1|B, 1|h, 1|Sq, 1|Sk] # added to the scores",
    "mask?: bool [1|B, 1|h, 1|Sq, 1|Sk] # where it is false the score becomes `mask_value`",
    "out_weight?: T [h*dv, Ho] # output projection",
    "out_bias?: T|float32 [Ho] if out_weight=given or [h*dv] if out_weight=absent",
    "residual?: T [B, Sq, Ho] if out_weight=given or [B, Sq, h*dv] if out_weight=absent",
    "gamma?: T|float32 [Ho] if out_weight=given or [h*dv] if out_weight=absent",
    "beta?: T|float32 [Ho] if out_weight=given or [h*dv] if out_weight=absent",
    "-> output: T [B, Sq, Ho] if out_weight=given or [B, Sq, h*dv] if out_weight=absent",
    "-> residual_sum?: T [B, Sq, Ho] if out_weight=given or [B, Sq, h*dv] if out_weight=absent "
    "# z below: made where something else reads it, as pre-LN models do",
    sizes={"h": "num_heads", "hkv": "num_key_value_heads"},
)

FusedAttentionLayerNorm = FusedOp.declared(
    "FusedAttentionLayerNorm",
    DECLARATION,
    attributes=(
        "num_heads",
        "num_key_value_heads",
        "scale",
        "mask_value",
        "causal",
        "masked_row",
        "norm",
        "epsilon",
        "layout",
    ),
    body=attention_body,
    structure=lambda attributes: {"grouped": attributes["num_heads"] != attributes["num_key_value_heads"]},
)


def build(match: Match, view: View) -> Fused:
    norm = norm_of(match)
    like = match.root
    layout, groups, operands = _operands(match, view)
    # A float16 model that goes on in float32 after the scores: the operator has one type, so it is the wider one.
    to = {"to": view.dtype(like.outputs[0])}
    operands = [
        item if view.dtype(match[name]) == to["to"] else view.add("Cast", [item], to, like=like)
        for name, item in zip(("query", "key_t", "value"), operands, strict=True)
    ]
    scores = [match[dim] for dim in ("B", "h", "Sq", "Sk")]
    masks = {
        name: unexpanded(view, match[name], scores) for name in ("attention_bias", "keep", "drop") if name in match
    }
    mask = view.add("Not", [masks["drop"]], like=like) if "drop" in match else masks.get("keep")
    mask_value = _number(view, match, "mask_value", -math.inf)
    attributes = {
        "num_heads": match["h"],
        "num_key_value_heads": groups,
        "scale": _number(view, match, "scale", 1.0),
        "mask_value": mask_value,
        "causal": match.get("causal", "none"),
        "masked_row": _masked_row(match, mask_value),
        "norm": norm,
        "epsilon": float(match.get("epsilon", 0.0)),
        "layout": layout,
    }
    rim = ("out_weight", "out_bias", "residual", "gamma", "beta")
    inputs = {
        **dict(zip(("query", "key", "value"), operands, strict=True)),
        "attention_bias": four_axes(view, masks["attention_bias"], like) if "attention_bias" in masks else None,
        "mask": None if mask is None else four_axes(view, mask, like),
        **{name: match.get(name) for name in rim},
    }
    parts = [part for part, name in (("projection", "out_weight"), ("residual", "residual")) if name in match]
    if norm != "none":
        parts.append("norm")
    optional = {"residual_sum": match["total"]} if norm != "none" else {}
    return Fused(inputs, {"output": like.outputs[0]}, attributes, optional, tuple(parts))


def _operands(match: Match, view: View) -> tuple[str, int, list[str]]:
    """(layout, key-value heads, [query, key, value]): as they were before their heads were split, where all three were."""
    heads = match["h"]
    shared = [_before_repeat(view, match["key_t"], heads, key=True), _before_repeat(view, match["value"], heads)]
    key, value, groups = None, match["value"], heads
    if shared[0] is not None and shared[1] is not None and shared[0][1] == shared[1][1]:
        (key, groups), (value, _) = shared[0], shared[1]
    whole = [
        before_split(view, match["query"], heads, match.root),
        before_split(view, match["key_t"] if key is None else key, groups, match.root, key=key is None),
        before_split(view, value, groups, match.root),
    ]
    if None not in whole:
        return "BSH", groups, [str(item) for item in whole]
    key = _untransposed(view, match["key_t"], match.root) if key is None else key
    return "BHSD", groups, [match["query"], key, value]


def _masked_row(match: Match, mask_value: float) -> str:
    if "guard" in match:
        return "zero"
    return "uniform" if math.isfinite(mask_value) else "nan"


def _number(view: View, match: Match, name: str, default: float) -> float:
    found = view.scalar(match[name]) if name in match else None
    return default if found is None else float(found)


def _before_repeat(view: View, value: str, heads: int, *, key: bool = False) -> tuple[str, int] | None:
    """(x, g) where `value` is x [B, g, S, d] with each head repeated h / g times in a row (transposed for a key).

    Grouped-query attention (arXiv 2305.13245) is exported as Unsqueeze, Expand, Reshape.
    """
    merge = producer(view, value, "Reshape")
    five = merge and merge.inputs[0]
    if five and key:
        transpose = producer(view, five, "Transpose")
        right = transpose is not None and list(view.attribute(transpose, "perm") or []) == [0, 1, 2, 4, 3]
        five = transpose.inputs[0] if transpose is not None and right else None
    expand = producer(view, five, "Expand") if five else None
    split = producer(view, expand.inputs[0], "Reshape") if expand else None
    if expand is None or split is None:
        return None
    before, after, source = (view.shape(item) for item in (expand.inputs[0], expand.outputs[0], split.inputs[0]))
    if before is None or after is None or source is None or len(after) != 5:
        return None
    groups, times = after[1], after[2]
    if not isinstance(groups, int) or not isinstance(times, int) or groups * times != heads:
        return None
    if before != (after[0], groups, 1, *after[3:]):
        return None
    if groups == 1 and source == (after[0], *after[3:]):
        return view.add("Unsqueeze", [split.inputs[0], view.array(np.array([1]), value)], like=split), groups
    return (view.resolve(split.inputs[0]), groups) if source == (after[0], groups, *after[3:]) else None


def _untransposed(view: View, key_t: str, like: Any) -> str:
    """The key as [B, h, S, d]: what the graph transposed, or a transpose of what it has."""
    transpose = producer(view, key_t, "Transpose")
    if transpose is None:
        return view.add("Transpose", [key_t], {"perm": [0, 1, 3, 2]}, like=like)
    perm = list(view.attribute(transpose, "perm") or [])
    if perm == [0, 1, 3, 2]:
        return view.resolve(transpose.inputs[0])
    return view.add("Transpose", [transpose.inputs[0]], {"perm": [perm[axis] for axis in (0, 1, 3, 2)]}, like=like)


FUSION = Fusion(
    name="FusedAttentionLayerNorm",
    pattern=attention_layer_norm,
    operator=FusedAttentionLayerNorm,
    build=build,
    summary="multi-head softmax attention with its output projection, residual and LayerNorm/RMSNorm",
    anchor="Softmax",
    explain_every_anchor=True,
    rim=("projection", "residual", "norm"),
)
