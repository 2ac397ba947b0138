"""A fusion of your own: a bias followed by Gelu becomes one node, in a model built here.

    python examples/custom_fusion.py

Exporters for opsets below 20 write Gelu in five nodes, as this model does. The pattern need not know: it is matched against a
canonical view of the model, in which they are one. docs/patterns.md explains the same fusion.
"""

from __future__ import annotations

import numpy as np
import onnx
from onnx import numpy_helper

# docs/patterns.md: from here
import onnx_fuse
from onnx_fuse import Constant, FusedOp, Fusion, pattern


@pattern
def bias_gelu(op, x, bias: Constant):
    return op.Gelu(op.Add(x, op.shape(bias, "H")), approximate="none")


def body(op, x, bias):
    total = op.Add(op.float32(x), op.float32(bias))
    gate = op.Add(op.Erf(op.Mul(total, 0.5**0.5)), 1.0)
    return op.like(op.Mul(op.Mul(total, 0.5), gate), x)


operator = FusedOp("BiasGelu", inputs=("x", "bias"), body=body, domain="com.example")
fusion = Fusion("BiasGelu", bias_gelu, operator)
# docs/patterns.md: to here

TWO_LAYERS = """
<ir_version: 8, opset_import: ["" : 17]>
two_layers (float[batch, 16] x) => (float[batch, 16] y, float[batch, 32] biased_2)
<float root_2 = {1.41421356}, float half = {0.5}, float one = {1.0}>
{
    product_1 = MatMul(x, weight_1)
    biased_1 = Add(product_1, bias_1)
    scaled_1 = Div(biased_1, root_2)
    erf_1 = Erf(scaled_1)
    gate_1 = Add(erf_1, one)
    gated_1 = Mul(biased_1, gate_1)
    gelu_1 = Mul(gated_1, half)

    product_2 = MatMul(gelu_1, weight_2)
    biased_2 = Add(product_2, bias_2)
    scaled_2 = Div(biased_2, root_2)
    erf_2 = Erf(scaled_2)
    gate_2 = Add(erf_2, one)
    gated_2 = Mul(biased_2, gate_2)
    gelu_2 = Mul(gated_2, half)

    y = MatMul(gelu_2, weight_3)
}
"""


def two_layers() -> onnx.ModelProto:
    """Two layers with Gelu. The second one's sum is an output of the model as well, so it cannot go into a fused node."""
    model = onnx.parser.parse_model(TWO_LAYERS)
    random = np.random.default_rng(0)
    shapes = {"weight_1": (16, 32), "bias_1": (32,), "weight_2": (32, 32), "bias_2": (32,), "weight_3": (32, 16)}
    for name, shape in shapes.items():
        array = random.normal(scale=0.3, size=shape).astype(np.float32)
        model.graph.initializer.append(numpy_helper.from_array(array, name))
    return model


def main() -> None:
    result = onnx_fuse.fuse(two_layers(), fusions=[fusion], require={"BiasGelu": 1})
    report = result.report
    print(f"{report.nodes_before} nodes before, {report.nodes_after} after; fused: {report.fused}")
    for match in report.matches:
        print(f"  {match.node} replaces {', '.join(match.replaced)}")
    for miss, count in report.grouped_near_misses():
        print(f"not fused, {count}x: {miss.fusion} at {miss.node}, {miss.reason}")
    verification = report.verification or {}
    print(f"equal to the original: {verification['passed']}, in {len(verification['cases'])} cases")
    for output, worst in verification["worst"].items():
        print(f"  {output}: differs by {worst['relative']:.1e} of its scale at most")


if __name__ == "__main__":
    main()
