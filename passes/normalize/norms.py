"""Rules that recognise LayerNorm and RMSNorm written out in smaller operators."""

from __future__ import annotations

from typing import Any

import numpy as np
from onnx import helper

from onnx_fuse.passes.graph.node import Node
from onnx_fuse.passes.normalize.casts import WIDE
from onnx_fuse.passes.view.layout_transform import Move, is_writable, write_move
from onnx_fuse.passes.view.matcher import Match, NearMiss, match_at
from onnx_fuse.passes.view.rule import begins, reads
from onnx_fuse.passes.view.view import View
from onnx_fuse.patterns.language.dsl import Pattern, Scalar, pattern

LAST_AXIS = [-1]
NORMS = (("", "LayerNormalization"), ("", "RMSNormalization"))

_AXES_AS_INPUT = 18
"""The opset in which the axes of ReduceMean became an input."""


def _over_root(op, x, square):  # type: ignore[no-untyped-def]
    """x / sqrt(square)."""
    root = op.Sqrt(square)
    return op.any_of(
        op.Div(x, root), op.Mul(x, op.any_of(op.Reciprocal(root), op.Div(1.0, root), op.Pow(square, -0.5)))
    )


def variance_of(op, x, mean, centred, epsilon):  # type: ignore[no-untyped-def]
    """mean((x - mean)^2) + epsilon, or mean(x^2) - mean^2 + epsilon; without the epsilon where it is 0.

    The difference of means is never below 0 but for rounding, so that a floor of 0, as Flax has it, is of no account.
    """

    def squared(value):  # type: ignore[no-untyped-def]
        return op.any_of(op.Pow(value, 2.0), op.Mul(value, value))

    difference = op.Sub(op.ReduceMean(squared(x), axes=LAST_AXIS, keepdims=1), squared(mean))
    variance = op.any_of(
        op.ReduceMean(squared(centred), axes=LAST_AXIS, keepdims=1),
        difference,
        op.Max(difference, op.number(0.0, tolerance=0.0)),
    )
    return op.optional(op.Add(variance, epsilon), variance)


@pattern
def layer_norm(op, x, epsilon: Scalar):  # type: ignore[no-untyped-def]
    """(x - mean) / sqrt(variance + epsilon) over the last axis; the centring may be written twice.

    torch's script exporter widens the centred value of a float16 model.
    """
    mean = op.ReduceMean(x, axes=LAST_AXIS, keepdims=1)
    centred = op.Sub(x, mean)
    centred = op.any_of(op.Cast(centred, to=lambda to: to in WIDE), centred)
    again = op.any_of(centred, op.Sub(x, op.ReduceMean(x, axes=LAST_AXIS, keepdims=1)))
    return _over_root(op, centred, variance_of(op, x, mean, again, epsilon))


@pattern
def rms_norm(op, x, epsilon: Scalar):  # type: ignore[no-untyped-def]
    """x / sqrt(mean(x^2) + epsilon) over the last axis; without the epsilon where it is 0."""
    square = op.ReduceMean(op.any_of(op.Pow(x, 2.0), op.Mul(x, x)), axes=LAST_AXIS, keepdims=1)
    return _over_root(op, x, op.optional(op.Add(square, epsilon), square))


@reads("ReduceSum")
def mean_of_sum(view: View, node: Node) -> bool:
    """ReduceSum over the last axis, of n elements, times 1/n is ReduceMean."""
    for value, factor in (node.inputs, tuple(reversed(node.inputs))):
        reduced, share = view.producer(value), view.scalar(factor)
        if reduced is None or reduced.key != ("", "ReduceSum") or share is None or view.rank(factor) not in (0, 1):
            continue
        shape = view.shape(reduced.inputs[0])
        axes = view.attribute(reduced, "axes")
        if not shape or axes not in (LAST_AXIS, [len(shape) - 1]) or not isinstance(shape[-1], int):
            continue
        kind = view.dtype(factor)
        if not view.attribute(reduced, "keepdims") or not kind or shape[-1] == 0:
            continue
        if share != float(np.array(1.0 / shape[-1], dtype=helper.tensor_dtype_to_np_dtype(kind))):
            continue
        _replace_by_mean(view, reduced.inputs[0], node, [reduced, node])
        return True
    return False


def mean_of_pool(view: View, node: Node) -> bool:
    """GlobalAveragePool of [N, C, L] is ReduceMean over the last axis."""
    if view.rank(node.inputs[0]) != 3:
        return False
    _replace_by_mean(view, node.inputs[0], node, [node])
    return True


def _replace_by_mean(view: View, value: str, node: Node, covers: list[Node]) -> None:
    inputs = [value]
    attributes: dict[str, Any] = {"keepdims": 1}
    if (view.graph.opset() or 1) < _AXES_AS_INPUT:
        attributes["axes"] = LAST_AXIS
    else:
        inputs.append(view.array(np.array(LAST_AXIS, dtype=np.int64), node.outputs[0]))
    view.replace(node.outputs[0], "ReduceMean", inputs, attributes, like=node, covers=covers)


def flat_affine(view: View, node: Node) -> bool:
    """A norm's scale or shift [1, 1, H] is [H]."""
    if view.attribute(node, "axis") not in (-1, (view.rank(node.inputs[0]) or 0) - 1):
        return False
    if any(map(view.is_read, node.outputs[1:])):
        return False
    vectors = [as_vector(view, name, node.inputs[0], node) if name else name for name in node.inputs[1:]]
    if None in vectors or tuple(vectors) == node.inputs[1:]:
        return False
    attributes = {"axis": -1, "epsilon": view.attribute(node, "epsilon")}
    inputs = [node.inputs[0], *(vector or "" for vector in vectors)]
    view.replace(node.outputs[0], node.op_type, inputs, attributes, like=node, covers=[node])
    return True


@begins(layer_norm, rms_norm)
def bare_norm(view: View, node: Node) -> bool:
    """Recognises the part of a LayerNorm or RMSNorm before its scale."""
    for found_pattern, op_type in ((layer_norm, "LayerNormalization"), (rms_norm, "RMSNormalization")):
        match = attempt(view, found_pattern, node)
        if match is None:
            continue
        odd = _scaled_otherwise(view, node)
        if odd is not None:
            view.near_misses.append(NearMiss(found_pattern, node, odd[0], len(match.nodes), odd[1], frozenset()))
            return False
        epsilon = view.scalar(match["epsilon"]) if "epsilon" in match else 0.0
        x, wide = match["x"], view.dtype(node.outputs[0])
        if view.dtype(x) != wide:
            x = view.add("Cast", [x], {"to": wide}, like=node)
        view.replace(
            node.outputs[0],
            op_type,
            [x],
            {"axis": -1, "epsilon": float(epsilon or 0.0)},
            like=node,
            covers=match.nodes,
        )
        return True
    return False


@reads("LayerNormalization", "RMSNormalization")
def norm_scale(view: View, node: Node) -> bool:
    """A recognised norm times a vector of the size of the last axis takes it as its scale."""
    for value, gamma in (node.inputs, tuple(reversed(node.inputs))):
        norm = view.producer(value)
        if norm is None or norm.key not in NORMS or len(norm.inputs) > 1:
            continue
        scale = as_vector(view, gamma, value, node)
        if scale is None:
            continue
        attributes = {"axis": -1, "epsilon": view.attribute(norm, "epsilon")}
        view.replace(node.outputs[0], norm.op_type, [norm.inputs[0], scale], attributes, like=node, covers=[norm, node])
        view.supersede(norm, node)
        return True
    return False


@reads("LayerNormalization")
def layer_norm_shift(view: View, node: Node) -> bool:
    """A recognised LayerNorm with a scale plus a vector of the size of the last axis takes it as its shift."""
    for value, beta in (node.inputs, tuple(reversed(node.inputs))):
        norm = view.producer(value)
        if norm is None or norm.key != ("", "LayerNormalization") or len(norm.inputs) != 2:
            continue
        if view.attribute(norm, "axis") not in (-1, (view.rank(value) or 0) - 1):
            continue
        shift = as_vector(view, beta, value, node)
        if shift is not None:
            attributes = {"axis": -1, "epsilon": view.attribute(norm, "epsilon")}
            view.replace(
                node.outputs[0], norm.op_type, [*norm.inputs, shift], attributes, like=node, covers=[norm, node]
            )
            view.supersede(norm, node)
            return True
    return False


def spans_last_axis(view: View, vector: str, value: str) -> bool:
    """Whether `vector` has one axis, as long as the last axis of `value`."""
    shape, whole = view.shape(vector), view.shape(value)
    if shape is None or len(shape) != 1:
        return False
    return whole is None or (len(whole) > 0 and whole[-1] == shape[0])


def as_vector(view: View, vector: str, value: str, like: Node) -> str | None:
    """The scale or shift of the last axis of `value` as [H]: it, or what [1, 1, H] holds; None for anything else."""
    if spans_last_axis(view, vector, value):
        return vector
    if not _is_row(view, vector, value):
        return None
    shape = view.shape(vector) or ()
    last = len(shape) - 1
    flat = Move(view.resolve(vector), {last: shape[-1]}, (*((),) * last, (last,)), ((last,),))
    return write_move(view, flat, like) if is_writable(flat) else None


def _is_row(view: View, vector: str, value: str) -> bool:
    """Whether `vector` is [1, .., H] of no more axes than `value` [.., H] has."""
    shape, whole = view.shape(vector), view.shape(value)
    if shape is None or whole is None or not 1 < len(shape) <= len(whole):
        return False
    return shape[-1] == whole[-1] and all(dim == 1 for dim in shape[:-1])


def attempt(view: View, found_pattern: Pattern, node: Node) -> Match | None:
    """The match at a node of what keeps the shape of its x; None, with a near miss where it came close, if there is none."""
    if node.key not in found_pattern.root_keys:
        return None
    result = match_at(found_pattern, node, view)
    if isinstance(result, Match):
        # A constant with more axes than x would give the result more axes too.
        return result if view.rank(result["x"]) == view.rank(node.outputs[0]) else None
    # Two nodes and a mean are a norm already, if one over another axis.
    if result.matched >= (2 if any(op_type == "ReduceMean" for op_type, _ in result.reached) else 4):
        view.near_misses.append(result)
    return None


def _scaled_otherwise(view: View, node: Node) -> tuple[str, str] | None:
    """(node, sentence) where the norm's only reader multiplies it by something that is no scale over the last axis."""
    value = node.outputs[0]
    readers = view.graph.readers.get(value, [])
    if len(readers) != 1 or readers[0].key != ("", "Mul"):
        return None
    reader = readers[0]
    other = next((item for item in reader.inputs if item != value), value)
    shape = view.shape(other)
    if shape is None or not view.is_constant(other):
        return None
    if spans_last_axis(view, other, value) or _is_row(view, other, value):
        return None
    last = (view.shape(value) or ("?",))[-1]
    found = ", ".join(map(str, shape))
    return reader.name, f"the scale {other} has shape [{found}], pattern wants [{last}]"
