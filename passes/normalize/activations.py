"""Rules that recognise Gelu and SiLU written out in smaller operators."""

from __future__ import annotations

from onnx_fuse.passes.graph.node import Node
from onnx_fuse.passes.normalize.norms import attempt
from onnx_fuse.passes.view.rule import begins
from onnx_fuse.passes.view.view import View
from onnx_fuse.patterns.language.dsl import Scalar, pattern


@pattern
def swish(op, x, beta: Scalar):  # type: ignore[no-untyped-def]
    """x * sigmoid(beta x)."""
    return op.Mul(x, op.Sigmoid(op.any_of(op.Mul(x, beta), x)))


@pattern
def gelu_erf(op, x):  # type: ignore[no-untyped-def]
    """0.5 x (1 + erf(x / sqrt(2))), the factors in any order."""
    gate = op.Add(op.Erf(op.Mul(x, op.number(0.70710678, 1e-3))), 1.0)
    return op.any_of(op.Mul(x, op.Mul(gate, 0.5)), op.Mul(op.Mul(x, gate), 0.5), op.Mul(op.Mul(x, 0.5), gate))


@pattern
def gelu_tanh(op, x):  # type: ignore[no-untyped-def]
    """0.5 x (1 + tanh(sqrt(2/pi) (x + 0.044715 x^3))), the factors in any order."""
    cube = op.any_of(op.Pow(x, 3.0), op.Mul(x, op.Mul(x, x)))
    small, outer = op.number(0.044715, 1e-3), op.number(0.79788456, 1e-3)
    polynomial = op.Mul(op.Add(x, op.Mul(cube, small)), outer)
    factored = op.Mul(op.Mul(x, outer), op.Add(op.Mul(op.Mul(x, small), x), 1.0))
    gate = op.Add(op.Tanh(op.any_of(polynomial, factored)), 1.0)
    return op.any_of(op.Mul(x, op.Mul(gate, 0.5)), op.Mul(op.Mul(x, gate), 0.5), op.Mul(op.Mul(x, 0.5), gate))


@begins(swish)
def swish_rule(view: View, node: Node) -> bool:
    """x * sigmoid(beta x) is Swish."""
    match = attempt(view, swish, node)
    if match is None:
        return False
    beta = view.scalar(match["beta"]) if "beta" in match else 1.0
    view.replace(node.outputs[0], "Swish", [match["x"]], {"alpha": float(beta or 0.0)}, like=node, covers=match.nodes)
    return True


@begins(gelu_erf, gelu_tanh)
def gelu(view: View, node: Node) -> bool:
    """Gelu in its erf and tanh forms."""
    for found_pattern, approximate in ((gelu_erf, "none"), (gelu_tanh, "tanh")):
        match = attempt(view, found_pattern, node)
        if match is not None:
            view.replace(
                node.outputs[0], "Gelu", [match["x"]], {"approximate": approximate}, like=node, covers=match.nodes
            )
            return True
    return False
