"""Products of all pairs of features: the interaction of DLRM (arXiv 1906.00091) with what it is put together from and leads to.

Found in facebookresearch/dlrm and NVIDIA's DLRM (lower triangle), torchrec's InteractionArch (upper triangle) and PNN's inner
products. Which pairs, in which order, is part of a checkpoint: it is read from the constant indices of each match.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from onnx import TensorProto

from onnx_fuse.patterns.language.body import Body
from onnx_fuse.patterns.language.declaration import declare
from onnx_fuse.patterns.language.dsl import VIEW_DOMAIN, Constant, pattern
from onnx_fuse.patterns.language.interface import Match, View
from onnx_fuse.patterns.language.operator import Fused, FusedOp, Fusion
from onnx_fuse.patterns.parts.features import Block, blocks_of, is_first_row


@pattern
def dot_interaction(op, left, right, places: Constant, dense):  # type: ignore[no-untyped-def]
    product = op.MatMul(op.shape(left, "B F D"), op.shape(right, "B D F"))
    pairs = op.shape(op.domain(VIEW_DOMAIN).Select(product, places), "B P")
    return op.any_of(
        op.named("first", op.Concat(dense, pairs, axis=1)),
        op.named("last", op.Concat(pairs, dense, axis=1)),
        pairs,
    )


@pattern
def inner_products(op, features, rows: Constant, columns: Constant, dense):  # type: ignore[no-untyped-def]
    """Pairs that are gathered first and multiplied then, as PNN (arXiv 1611.00144) is written."""
    e = op.shape(features, "B F D")
    products = op.Mul(op.Gather(e, op.shape(rows, "P"), axis=1), op.Gather(e, op.shape(columns, "P"), axis=1))
    summed = op.ReduceSum(products, axes=[-1], keepdims=0)
    column = op.ReduceSum(products, axes=[-1], keepdims=1)
    pairs = op.shape(op.any_of(summed, op.Reshape(column)), "B P")
    return op.any_of(
        op.named("first", op.Concat(dense, pairs, axis=1)),
        op.named("last", op.Concat(pairs, dense, axis=1)),
        pairs,
    )


@dot_interaction.require
def one_operand_is_the_other_transposed(match: Match, view: View) -> str | None:
    if _features(match, view) is None:
        return f"{match['right']} is not {match['left']} transposed"
    return None


@inner_products.require
@dot_interaction.require
def sizes_are_static(match: Match, view: View) -> str | None:
    for name, what in (("F", "the number of features"), ("D", "the width of a feature")):
        if not isinstance(match[name], int):
            return f"{what} is {match[name]}, it must be known"
    return None


@inner_products.require
@dot_interaction.require
def a_triangle_is_selected(match: Match, view: View) -> str | None:
    found = _triangle(match, view)
    return found if isinstance(found, str) else None


@inner_products.require
@dot_interaction.require
def dense_is_the_first_feature(match: Match, view: View) -> str | None:
    features = _features(match, view)
    if "dense" not in match or features is None or is_first_row(view, match["dense"], features):
        return None
    return f"{match['dense']} beside the products is not the first feature"


def _features(match: Match, view: View) -> str | None:
    """E, where the product is E times E transposed; None where it is not."""
    if "features" in match:
        return str(match["features"])
    left, right = match["left"], match["right"]
    for value, turned in ((left, right), (right, left)):
        node = view.producer(turned)
        if node is None or node.domain != "" or node.op_type != "Transpose":
            continue
        if list(view.attribute(node, "perm") or ()) == [0, 2, 1] and view.resolve(node.inputs[0]) == value:
            return str(left)
    return None


def _triangle(match: Match, view: View) -> tuple[str, int] | str:
    """(triangle, self_interaction), or why the selected pairs are none. Z is symmetric: (i, j) is as good as (j, i)."""
    features, selected = match["F"], _pairs(match, view)
    if selected is None:
        return "the indices are too many to be read"
    found = [(max(pair), min(pair)) for pair in selected]
    diagonal = int(any(i == j for i, j in found))
    if features < 2:
        return "there is only one feature"
    count = features * (features - 1) // 2 + features * diagonal
    if len(found) != count:
        named = "the diagonal included" if diagonal else "without the diagonal"
        return f"{len(found)} products are selected, a triangle of {features} features has {count}, {named}"
    lower = [(i, j) for i in range(features) for j in range(i + diagonal)]
    upper = sorted(lower, key=lambda pair: pair[::-1])
    if found == lower:
        return "lower", diagonal
    if found == upper:
        return "upper", diagonal
    place = next(index for index, (pair, other) in enumerate(zip(found, lower, strict=True)) if pair != other)
    return (
        f"the products are in the order of neither triangle: number {place} is of features {found[place]}, "
        f"lower has {lower[place]} there, upper {upper[place][::-1]}"
    )


def _pairs(match: Match, view: View) -> list[tuple[int, int]] | None:
    """The features of each selected product."""
    features = match["F"]
    if "places" in match:
        places = view.constant(match["places"])
        return None if places is None else [divmod(int(place), features) for place in places.reshape(-1)]
    rows, columns = view.constant(match["rows"]), view.constant(match["columns"])
    if rows is None or columns is None:
        return None
    return [(int(i) % features, int(j) % features) for i, j in zip(rows, columns, strict=True)]


def interaction_body(  # type: ignore[no-untyped-def]
    op: Body, E, dense, sparse, triangle, self_interaction, concat_dense, **features
) -> Any:
    """Z = E E^T; the triangle of Z row by row, its places counted from the number of features; row 0 of E before or after.

    Number p of a triangle whose row r holds r + 1 entries is entry p - r (r + 1) / 2 of row r, the last row that starts at p or
    before. The upper triangle is the lower one backwards, with the features counted from the end.
    """
    like = E or dense or next(iter(features.values()))
    rows = [op.Unsqueeze(op.float32(value), op.ints(1)) for value in ([dense] if dense else features.values())]
    rows += [op.float32(value) for value in (E, sparse) if value]
    e = op.Concat(*rows, axis=1) if len(rows) > 1 else rows[0]
    zero, one, two = (op.Squeeze(op.ints(value)) for value in (0, 1, 2))
    count = op.Squeeze(op.size(e, 1, 0))
    above = op.Sub(one, self_interaction)  # rows of Z above the triangle
    height = op.Sub(count, above)
    place = op.Range(zero, op.Div(op.Mul(height, op.Add(height, one)), two), one)
    if triangle == "upper":
        place = op.Sub(op.Sub(op.Div(op.Mul(height, op.Add(height, one)), two), one), place)
    row = op.Range(one, height, one)
    starts = op.Div(op.Mul(row, op.Add(row, one)), two)
    begun = op.Not(op.Less(op.Unsqueeze(place, op.ints(1)), op.Unsqueeze(starts, op.ints(0))))
    r = op.ReduceSum(op.Cast(begun, to=TensorProto.INT64), op.ints(1), keepdims=0)
    i, j = op.Add(r, above), op.Sub(place, op.Div(op.Mul(r, op.Add(r, one)), two))
    if triangle == "upper":
        last = op.Sub(count, one)
        i, j = op.Sub(last, i), op.Sub(last, j)
    # With the batch last, whole rows are gathered: in ONNX Runtime far faster than number by number, the turns included.
    z = op.Transpose(op.MatMul(e, op.Transpose(e, perm=[0, 2, 1])), perm=[1, 2, 0])
    pairs = op.Concat(op.Unsqueeze(i, op.ints(1)), op.Unsqueeze(j, op.ints(1)), axis=1)
    out = op.Transpose(op.GatherND(z, pairs), perm=[1, 0])
    first = op.Gather(e, zero, axis=1)
    ends = {"none": [out], "first": [first, out], "last": [out, first]}[concat_dense]
    return op.like(op.Concat(*ends, axis=1) if len(ends) > 1 else out, like)


DECLARATION = declare(
    "E?: T [B, F, D] # all features; or",
    "dense?: T [B, D] # the first feature, and",
    "sparse?: T [B, F-1, D] # the others; or",
    "feature_*?: T [B, D] # each feature by itself",
    "-> output: T [B, P] # P = F(F-1)/2, with the diagonal F(F+1)/2; D more with the dense feature",
    least={"F": 1},
)

InteractionTritonFast = FusedOp.declared(
    "InteractionTritonFast",
    DECLARATION,
    attributes=("triangle", "self_interaction", "concat_dense"),
    body=interaction_body,
)


def build(match: Match, view: View) -> Fused | str:
    triangle, features = _triangle(match, view), _features(match, view)
    if isinstance(triangle, str) or features is None:
        return "the products selected are no triangle"
    side = next((name for name in ("first", "last") if name in match), "none")
    attributes = {"triangle": triangle[0], "self_interaction": triangle[1], "concat_dense": side}
    parts = ("dense",) if "dense" in match else ()
    return Fused(_inputs(match, view, features), {"output": match.root.outputs[0]}, attributes, parts=parts)


def _inputs(match: Match, view: View, features: str) -> dict[str, str | None]:
    """E as separate features, as a dense and a block of sparse ones, or as it is."""
    blocks = blocks_of(view, features)
    if all(block.rows == 1 for block in blocks):
        return {f"feature_{number}": _flat(match, view, block) for number, block in enumerate(blocks, 1)}
    if len(blocks) == 2 and blocks[0].rows == 1 and view.rank(blocks[1].value) == 3:
        return {"dense": _flat(match, view, blocks[0]), "sparse": blocks[1].value}
    return {"E": features}


def _flat(match: Match, view: View, block: Block) -> str:
    """One feature as [B, D]."""
    if block.single:
        return block.value
    target = view.array(np.array([0, match["D"]], dtype=np.int64), block.value)
    return view.add("Reshape", [block.value, target], like=match.root)


FUSION = Fusion(
    name="InteractionTritonFast",
    pattern=(dot_interaction, inner_products),
    operator=InteractionTritonFast,
    build=build,
    summary="products of all pairs of features (DLRM): E times its transpose, a triangle of it, the dense feature beside it",
    rim=("dense",),
)
