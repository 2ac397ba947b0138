"""Rules that recognise Gelu and SiLU written out in smaller operators."""

from __future__ import annotations

import math

from onnx import TensorProto

from onnx_fuse.passes.graph.node import Node
from onnx_fuse.passes.normalize.norms import attempt
from onnx_fuse.passes.view.rule import begins
from onnx_fuse.passes.view.view import View
from onnx_fuse.patterns.language.dsl import Pattern, Scalar, pattern


@pattern
def swish(op, x, beta: Scalar):  # type: ignore[no-untyped-def]
    """x * sigmoid(beta x)."""
    return op.Mul(x, op.Sigmoid(op.any_of(op.Mul(x, beta), x)))


def _gelu_erf(tolerance: float) -> Pattern:
    @pattern
    def gelu_erf(op, x):  # type: ignore[no-untyped-def]
        """0.5 x (1 + erf(x / sqrt(2))), the factors in any order."""
        gate = op.Add(op.Erf(op.Mul(x, op.number(math.sqrt(0.5), tolerance))), 1.0)
        return op.any_of(op.Mul(x, op.Mul(gate, 0.5)), op.Mul(op.Mul(x, gate), 0.5), op.Mul(op.Mul(x, 0.5), gate))

    return gelu_erf


def _gelu_tanh(tolerance: float) -> Pattern:
    @pattern
    def gelu_tanh(op, x):  # type: ignore[no-untyped-def]
        """0.5 x (1 + tanh(sqrt(2/pi) (x + 0.044715 x^3))), the factors in any order."""
        cube = op.any_of(op.Pow(x, 3.0), op.Mul(x, op.Mul(x, x)))
        small, outer = op.number(0.044715, tolerance), op.number(math.sqrt(2 / math.pi), tolerance)
        polynomial = op.Mul(op.Add(x, op.Mul(cube, small)), outer)
        factored = op.Mul(op.Mul(x, outer), op.Add(op.Mul(op.Mul(x, small), x), 1.0))
        gate = op.Add(op.Tanh(op.any_of(polynomial, factored)), 1.0)
        return op.any_of(op.Mul(x, op.Mul(gate, 0.5)), op.Mul(op.Mul(x, gate), 0.5), op.Mul(op.Mul(x, 0.5), gate))

    return gelu_tanh


# How far rounding to the type takes a factor; that of float32 leaves room for those that are written with seven digits.
_ROUNDING: dict[int, float] = {TensorProto.FLOAT16: 2.0**-11, TensorProto.BFLOAT16: 2.0**-8}
_EXACT = 1e-6
_GELUS = {
    tolerance: ((_gelu_erf(tolerance), "none"), (_gelu_tanh(tolerance), "tanh"))
    for tolerance in (*_ROUNDING.values(), _EXACT)
}
_LOOSEST = _GELUS[max(_GELUS)]


@begins(swish)
def swish_rule(view: View, node: Node) -> bool:
    """x * sigmoid(beta x) is Swish."""
    match = attempt(view, swish, node)
    if match is None:
        return False
    beta = view.scalar(match["beta"]) if "beta" in match else 1.0
    view.replace(node.outputs[0], "Swish", [match["x"]], {"alpha": float(beta or 0.0)}, like=node, covers=match.nodes)
    return True


@begins(*(found_pattern for found_pattern, _ in _LOOSEST))
def gelu(view: View, node: Node) -> bool:
    """Gelu in its erf and tanh forms, with factors as the type of the data rounds them."""
    for which, (found_pattern, approximate) in enumerate(_LOOSEST):
        match = attempt(view, found_pattern, node)
        if match is not None:
            tolerance = _ROUNDING.get(view.dtype(node.outputs[0]), _EXACT)
            match = attempt(view, _GELUS[tolerance][which][0], node)
        if match is not None:
            view.replace(
                node.outputs[0], "Gelu", [match["x"]], {"approximate": approximate}, like=node, covers=match.nodes
            )
            return True
    return False
