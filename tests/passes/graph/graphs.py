"""Models with subgraphs and a function, and the index over a main graph."""

from __future__ import annotations

from onnx import ModelProto

from onnx_fuse.passes.graph.index import Graph

SUBGRAPHS = """
(bool c, float[2] x, float[2] unused) => (float[2] y) {
    outside = Neg(x)
    deep = Abs(x)
    read_by_nobody = Exp(x)
    [choose] y = If (c) <
        then_branch = yes () => (float[2] a) {
            [inner] a = If (c) <
                then_branch = deepest () => (float[2] p) { p = Sqrt(deep) },
                else_branch = other () => (float[2] q) { deep = Exp(outside) q = Relu(deep) }
            >
        },
        else_branch = no () => (float[2] b) { b = Identity(outside) }
    >
}
"""

FUNCTION = """
<domain: "my", opset_import: ["" : 15, "other" : 3]>
Block <alpha: float = 2.0> (a, b) => (c) { t = Add(a, b)  c = LeakyRelu <alpha: float = @alpha> (t) }
"""


def index(made: ModelProto) -> Graph:
    return Graph(made.graph, made)
