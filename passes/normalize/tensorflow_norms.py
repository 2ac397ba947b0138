"""Rules that recognise norms as TensorFlow writes them: the scale is multiplied into 1/std before x is."""

from __future__ import annotations

from onnx_fuse.passes.graph.node import Node
from onnx_fuse.passes.normalize.norms import LAST_AXIS, as_vector, variance_of
from onnx_fuse.passes.view.matcher import Match, match_at
from onnx_fuse.passes.view.rule import begins
from onnx_fuse.passes.view.view import View
from onnx_fuse.patterns.language.dsl import Pattern, Scalar, pattern


def _inverse(op, square):  # type: ignore[no-untyped-def]
    """1 / sqrt(square)."""
    root = op.Sqrt(square)
    return op.any_of(op.Reciprocal(root), op.Div(1.0, root), op.Pow(square, -0.5))


@pattern
def scaled_layer_norm(op, x, gamma, epsilon: Scalar):  # type: ignore[no-untyped-def]
    """(x - mean) * (gamma / sqrt(variance + epsilon)) over the last axis."""
    mean = op.ReduceMean(x, axes=LAST_AXIS, keepdims=1)
    centred = op.Sub(x, mean)
    variance = variance_of(op, x, mean, centred, epsilon)
    return op.any_of(
        op.Mul(centred, op.Mul(_inverse(op, variance), gamma)), op.Mul(centred, op.Div(gamma, op.Sqrt(variance)))
    )


@pattern
def scaled_rms_norm(op, x, gamma, epsilon: Scalar):  # type: ignore[no-untyped-def]
    """x * (gamma / sqrt(mean(x^2) + epsilon)) over the last axis."""
    square = op.ReduceMean(op.any_of(op.Mul(x, x), op.Pow(x, 2.0)), axes=LAST_AXIS, keepdims=1)
    square = op.optional(op.Add(square, epsilon), square)
    return op.any_of(op.Mul(x, op.Mul(_inverse(op, square), gamma)), op.Mul(x, op.Div(gamma, op.Sqrt(square))))


@pattern
def batch_form(op, x, gamma, beta, epsilon: Scalar):  # type: ignore[no-untyped-def]
    """x * s + (beta - mean * s), s = gamma / sqrt(variance + epsilon): tf.nn.batch_normalization over the last axis.

    The difference may be written as beta + (-mean) * s.
    """
    mean = op.ReduceMean(x, axes=LAST_AXIS, keepdims=1)
    scale = op.Mul(_inverse(op, variance_of(op, x, mean, op.Sub(x, mean), epsilon)), gamma)
    shift = op.any_of(op.Sub(beta, op.Mul(mean, scale)), op.Add(op.Mul(op.Neg(mean), scale), beta))
    return op.Add(op.Mul(x, scale), shift)


@begins(scaled_layer_norm, scaled_rms_norm)
def scaled_norm(view: View, node: Node) -> bool:
    """LayerNorm and RMSNorm whose scale went into 1/std."""
    for found_pattern, op_type in ((scaled_layer_norm, "LayerNormalization"), (scaled_rms_norm, "RMSNormalization")):
        match = _attempt(view, found_pattern, node)
        if match is not None:
            return _replace(view, node, op_type, match, ("gamma",))
    return False


@begins(batch_form)
def batch_form_norm(view: View, node: Node) -> bool:
    """LayerNorm in the form of a batch normalisation, with scale and shift."""
    match = _attempt(view, batch_form, node)
    if match is None:
        return False
    return _replace(view, node, "LayerNormalization", match, ("gamma", "beta"))


def _replace(view: View, node: Node, op_type: str, match: Match, vectors: tuple[str, ...]) -> bool:
    """A scale or shift of more than the last axis is no affine map of it."""
    flat = [as_vector(view, match[name], match["x"], node) for name in vectors]
    inputs = [match["x"], *(vector for vector in flat if vector is not None)]
    if len(inputs) <= len(vectors):
        return False
    epsilon = view.scalar(match["epsilon"]) if "epsilon" in match else 0.0
    attributes = {"axis": -1, "epsilon": float(epsilon or 0.0)}
    view.replace(node.outputs[0], op_type, inputs, attributes, like=node, covers=match.nodes)
    return True


def _attempt(view: View, found_pattern: Pattern, node: Node) -> Match | None:
    result = match_at(found_pattern, node, view)
    return result if isinstance(result, Match) else None
