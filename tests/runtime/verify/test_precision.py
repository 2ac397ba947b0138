"""Each value is held to the types that feed it, and to no other."""

from __future__ import annotations

import numpy as np
import pytest

from onnx_fuse.runtime.verify.compare import TOLERANCES
from onnx_fuse.runtime.verify.precision import tolerance, tolerances
from tests import helpers

HALF, SINGLE, QUANTIZED = TOLERANCES["float16"], TOLERANCES["float32"], TOLERANCES["quantized"]


@pytest.mark.parametrize(
    ("text", "y", "z"),
    [
        ("{ y = Exp(x)  h = Cast <to = 10> (x)  z = Cast <to = 1> (h) }", SINGLE, HALF),
        ("{ y = Exp(x)  q, s, o = DynamicQuantizeLinear(x)  z = DequantizeLinear(q, s, o) }", SINGLE, QUANTIZED),
        ("{ h = Cast <to = 10> (x)  i = Cast <to = 1> (h)  y = Exp(i)  z = Add(x, y) }", HALF, HALF),
        ("{ h = Cast <to = 10> (x)  q, s, o = DynamicQuantizeLinear(x)  i = Cast <to = 1> (h)  d = DequantizeLinear(q, s, o)"
         "  y = Add(i, d)  z = Exp(i) }", QUANTIZED, HALF),
        ("{ w = Cast <to = 1> (half)  y = Mul(x, w)  h = Cast <to = 10> (x)  m = Mul(h, half)  z = Cast <to = 1> (m) }", SINGLE, HALF),
        ("{ c = Greater(x, x)  y = Exp(x)  h = Cast <to = 10> (x)  b = Constant <value = bool {1}> ()"
         "  z = If (b) < then_branch = t () => (float[n,4] a) { a = Cast <to = 1> (h) }, else_branch = e () => (float[n,4] d) { d = Identity(x) } > }",
         SINGLE, HALF),
        ("{ y = Exp(x)  z = local.Narrow(x) }", SINGLE, HALF),
    ],
)  # fmt: skip
def test_a_value_is_as_coarse_as_what_feeds_it(text: str, y: float, z: float) -> None:
    narrow = (
        '<domain: "local", opset_import: ["" : 17]> Narrow (a) => (b) { h = Cast <to = 10> (a)  b = Cast <to = 1> (h) }'
    )
    made = helpers.model(
        f"(float[n,4] x) => (float[n,4] y, float[n,4] z) {text}",
        functions=narrow if "Narrow" in text else "",
        weights={"half": np.ones(4, np.float16)},
    )
    found = tolerances(made)
    assert (found["y"], found["z"]) == (y, z)
    assert tolerance(made) == max(y, z)


def test_types_of_inputs_and_outputs_count() -> None:
    made = helpers.model("(float16[n] x) => (float16[n] y) { y = Exp(x) }")
    assert tolerance(made) == HALF
    assert tolerance(helpers.model("(float[n] x) => (float[n] y) { y = Exp(x) }")) == SINGLE


def test_the_order_of_nodes_does_not_matter_nor_their_number() -> None:
    """A chain of thousands of nodes, last first."""
    chain = "  ".join(f"v{i + 1} = Relu(v{i})" for i in range(3000))
    made = helpers.model(
        f"(float[n] x) => (float[n] v3000) {{ h = Cast <to = 10> (x)  v0 = Cast <to = 1> (h)  {chain} }}"
    )
    nodes = list(made.graph.node)[::-1]
    del made.graph.node[:]
    made.graph.node.extend(nodes)
    assert tolerances(made)["v3000"] == HALF
