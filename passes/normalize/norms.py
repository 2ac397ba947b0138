"""Rules that recognise LayerNorm and RMSNorm written out in smaller operators."""

from __future__ import annotations

from onnx_fuse.passes.graph.node import Node
from onnx_fuse.passes.normalize.casts import WIDE
from onnx_fuse.passes.view.matcher import Match, NearMiss, match_at
from onnx_fuse.passes.view.rule import begins, reads
from onnx_fuse.passes.view.view import View
from onnx_fuse.patterns.language.dsl import Pattern, Scalar, pattern

LAST_AXIS = [-1]
NORMS = (("", "LayerNormalization"), ("", "RMSNormalization"))


def _over_root(op, x, square):  # type: ignore[no-untyped-def]
    """x / sqrt(square)."""
    root = op.Sqrt(square)
    return op.any_of(
        op.Div(x, root), op.Mul(x, op.any_of(op.Reciprocal(root), op.Div(1.0, root), op.Pow(square, -0.5)))
    )


@pattern
def layer_norm(op, x, epsilon: Scalar):  # type: ignore[no-untyped-def]
    """(x - mean) / sqrt(variance + epsilon) over the last axis; the centring may be written twice.

    torch's script exporter widens the centred value of a float16 model.
    """
    centred = op.Sub(x, op.ReduceMean(x, axes=LAST_AXIS, keepdims=1))
    centred = op.any_of(op.Cast(centred, to=lambda to: to in WIDE), centred)
    again = op.any_of(centred, op.Sub(x, op.ReduceMean(x, axes=LAST_AXIS, keepdims=1)))
    square = op.any_of(op.Pow(again, 2.0), op.Mul(again, again))
    return _over_root(op, centred, op.Add(op.ReduceMean(square, axes=LAST_AXIS, keepdims=1), epsilon))


@pattern
def rms_norm(op, x, epsilon: Scalar):  # type: ignore[no-untyped-def]
    """x / sqrt(mean(x^2) + epsilon) over the last axis."""
    square = op.any_of(op.Pow(x, 2.0), op.Mul(x, x))
    return _over_root(op, x, op.Add(op.ReduceMean(square, axes=LAST_AXIS, keepdims=1), epsilon))


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
        epsilon = view.scalar(match["epsilon"])
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
        if norm is None or norm.key not in NORMS or len(norm.inputs) > 1 or not spans_last_axis(view, gamma, value):
            continue
        attributes = {"axis": -1, "epsilon": view.attribute(norm, "epsilon")}
        view.replace(node.outputs[0], norm.op_type, [norm.inputs[0], gamma], attributes, like=node, covers=[norm, node])
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
        if spans_last_axis(view, beta, value):
            attributes = {"axis": -1, "epsilon": view.attribute(norm, "epsilon")}
            view.replace(
                node.outputs[0], norm.op_type, [*norm.inputs, beta], attributes, like=node, covers=[norm, node]
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
    if shape is None or not view.is_constant(other) or spans_last_axis(view, other, value):
        return None
    last = (view.shape(value) or ("?",))[-1]
    found = ", ".join(map(str, shape))
    return reader.name, f"the scale {other} has shape [{found}], pattern wants [{last}]"
