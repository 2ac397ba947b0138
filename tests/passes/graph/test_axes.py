"""The bound on axes: what real models do is within it, and what a small file can ask for is not."""

from __future__ import annotations

import pytest

from onnx_fuse.passes.graph.axes import has_few_axes
from tests import helpers

FEW = {
    "a shape that is put together": "s = Shape(x) d = Gather <axis = 0> (s, at) u = Unsqueeze(d, first) "
    "t = Concat <axis = 0> (u, rest) y = Reshape(x, t)",
    "what exporters write for expand": "s = Shape(x) n = Shape(s) o = ConstantOfShape(n) e = Equal(s, o) w = Where(e, o, s) "
    "y = Expand(x, w)",
    "a hundred times the same": " ".join(
        f"s{i} = Shape(v{i}) d{i} = Gather <axis = 0> (s{i}, at) u{i} = Unsqueeze(d{i}, first) "
        f"t{i} = Concat <axis = 0> (u{i}, rest) r{i} = Reshape(v{i}, t{i}) q{i} = Unsqueeze(r{i}, first) "
        f"v{i + 1} = Squeeze(q{i}, first)"
        for i in range(100)
    ).replace("v0", "x")
    + " y = Identity(v100)",
    "an embedding": "i = Cast <to = 7> (x) e = Gather <axis = 0> (x, i) y = Flatten(e)",
    "in a branch": "b = Cast <to = 9> (one) y = If (b) <then_branch = t () => (u) { u = Unsqueeze(x, first) }, "
    "else_branch = e () => (v) { v = Identity(x) }>",
    "in a function": "y = my.F(x)",
}
MANY = {
    "gathered": "i0 = Identity(x) "
    + " ".join(f"j{i} = Cast <to = 7> (i{i}) i{i + 1} = Gather <axis = 0> (i{i}, j{i})" for i in range(20))
    + " y = Identity(i20)",
    "one more each time": " ".join(f"v{i + 1} = Unsqueeze(v{i}, first)" for i in range(80)).replace("v0", "x")
    + " y = Identity(v80)",
    "a vector of unknown length": "n = NonZero(x) l = ReduceMax <axes = [0], keepdims = 0> (n) y = Expand(x, l)",
    "a vector that is declared long": "y = ConstantOfShape(long)",
    "in a branch": "b = Cast <to = 9> (one) y = If (b) <then_branch = t () => (u) { u = ConstantOfShape(long) }, "
    "else_branch = e () => (v) { v = Identity(x) }>",
    "in a function": "y = my.Long(long)",
    "types of types": " ".join(f"v{i + 1} = SequenceConstruct(v{i})" for i in range(80)).replace("v0", "x")
    + " y = Identity(v80)",
}
FUNCTIONS = """<domain: "my", opset_import: ["" : 17]> F (a) => (b) { s = Shape(a) b = Reshape(a, s) }
    <domain: "my", opset_import: ["" : 17]> Long (a) => (b) { b = ConstantOfShape(a) }"""


def few(body: str) -> bool:
    text = f"""(float[n,4] x, int64[1000000] long) => (y) <int64 at = {{0}}, int64[1] first = {{0}}, int64[1] rest = {{-1}},
        float one = {{1}}> {{ {body} }}"""
    return has_few_axes(helpers.model(text, functions=FUNCTIONS if "my." in body else ""))


@pytest.mark.parametrize("kind", FEW)
def test_real_models_have_few(kind: str) -> None:
    assert few(FEW[kind])


@pytest.mark.parametrize("kind", MANY)
def test_what_can_have_many_is_told(kind: str) -> None:
    assert not few(MANY[kind])
