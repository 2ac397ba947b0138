"""Rules that recognise norms as TensorFlow writes them: the scale is multiplied into 1/std before x is."""

from __future__ import annotations

from onnx_fuse.passes.graph.node import Node
from onnx_fuse.passes.normalize.norms import LAST_AXIS, spans_last_axis
from onnx_fuse.passes.view.matcher import Match, match_at
from onnx_fuse.passes.view.rule import begins
from onnx_fuse.passes.view.view import View
from onnx_fuse.patterns.language.dsl import Pattern, Scalar, pattern


@pattern
def scaled_layer_norm(op, x, gamma, epsilon: Scalar):  # type: ignore[no-untyped-def]
    """(x - mean) * (gamma / sqrt(variance + epsilon)) over the last axis."""
    centred = op.Sub(x, op.ReduceMean(x, axes=LAST_AXIS, keepdims=1))
    variance = op.Add(
        op.ReduceMean(op.any_of(op.Mul(centred, centred), op.Pow(centred, 2.0)), axes=LAST_AXIS, keepdims=1), epsilon
    )
    std = op.Sqrt(variance)
    inverse = op.any_of(op.Reciprocal(std), op.Div(1.0, std), op.Pow(variance, -0.5))
    return op.any_of(op.Mul(centred, op.Mul(inverse, gamma)), op.Mul(centred, op.Div(gamma, std)))


@pattern
def scaled_rms_norm(op, x, gamma, epsilon: Scalar):  # type: ignore[no-untyped-def]
    """x * (gamma / sqrt(mean(x^2) + epsilon)) over the last axis."""
    mean = op.Add(op.ReduceMean(op.any_of(op.Mul(x, x), op.Pow(x, 2.0)), axes=LAST_AXIS, keepdims=1), epsilon)
    std = op.Sqrt(mean)
    inverse = op.any_of(op.Reciprocal(std), op.Div(1.0, std), op.Pow(mean, -0.5))
    return op.Mul(x, op.Mul(inverse, gamma))


@pattern
def batch_form(op, x, gamma, beta, epsilon: Scalar):  # type: ignore[no-untyped-def]
    """x * s + (beta - mean * s), s = gamma / sqrt(variance + epsilon): tf.nn.batch_normalization over the last axis."""
    mean = op.ReduceMean(x, axes=LAST_AXIS, keepdims=1)
    centred = op.Sub(x, mean)
    variance = op.Add(
        op.ReduceMean(op.any_of(op.Mul(centred, centred), op.Pow(centred, 2.0)), axes=LAST_AXIS, keepdims=1), epsilon
    )
    std = op.Sqrt(variance)
    inverse = op.any_of(op.Reciprocal(std), op.Div(1.0, std), op.Pow(variance, -0.5))
    scale = op.Mul(inverse, gamma)
    return op.Add(op.Mul(x, scale), op.Sub(beta, op.Mul(mean, scale)))


@begins(scaled_layer_norm, scaled_rms_norm)
def scaled_norm(view: View, node: Node) -> bool:
    """LayerNorm and RMSNorm whose scale went into 1/std."""
    for found_pattern, op_type in ((scaled_layer_norm, "LayerNormalization"), (scaled_rms_norm, "RMSNormalization")):
        match = _attempt(view, found_pattern, node)
        if match is not None:
            _replace(view, node, op_type, match, ("x", "gamma"))
            return True
    return False


@begins(batch_form)
def batch_form_norm(view: View, node: Node) -> bool:
    """LayerNorm in the form of a batch normalisation, with scale and shift."""
    match = _attempt(view, batch_form, node)
    if match is None:
        return False
    _replace(view, node, "LayerNormalization", match, ("x", "gamma", "beta"))
    return True


def _replace(view: View, node: Node, op_type: str, match: Match, inputs: tuple[str, ...]) -> None:
    attributes = {"axis": -1, "epsilon": float(view.scalar(match["epsilon"]) or 0.0)}
    view.replace(node.outputs[0], op_type, [match[name] for name in inputs], attributes, like=node, covers=match.nodes)


def _attempt(view: View, found_pattern: Pattern, node: Node) -> Match | None:
    result = match_at(found_pattern, node, view)
    if not isinstance(result, Match):
        return None
    # A scale or shift with more axes than one is no affine map of the last axis.
    vectors = [result[name] for name in ("gamma", "beta") if name in result]
    return result if all(spans_last_axis(view, vector, result["x"]) for vector in vectors) else None
