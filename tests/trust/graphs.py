"""Small graphs that look like a fusion, what fusing makes of them, and a comparison that owes nothing to the one under test."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
from onnx import ModelProto, NodeProto, helper

import onnx_fuse
from tests import helpers
from tests.helpers import Array

ATTENTION = "FusedAttentionLayerNorm"
EMBEDDING = "FusedEmbedLayerNorm"
SKIP = "FusedSkipLayerNorm"
SWISH = "FusedSwish"
EVERY = (ATTENTION, EMBEDDING, SKIP, SWISH)
DOMAIN = "gr.ml.infra"
HIDDEN, HEADS, SIZE = 8, 2, 4
LOWEST = float(np.finfo(np.float32).min)

_RANDOM = np.random.default_rng(3)


def drawn(*shape: int, centre: float = 0.0) -> Array:
    return (centre + 0.4 * _RANDOM.standard_normal(shape)).astype(np.float32)


CONSTANTS: dict[str, Array] = {
    "zero": np.array(0.0, np.float32),
    "one": np.array(1.0, np.float32),
    "two": np.array(2.0, np.float32),
    "three": np.array(3.0, np.float32),
    "half": np.array(0.5, np.float32),
    "quarter": np.array(0.25, np.float32),
    "root_half": np.array(0.5**0.5, np.float32),
    "epsilon": np.array(1e-5, np.float32),
    "infinity": np.array(-np.inf, np.float32),
    "lowest": np.array(LOWEST, np.float32),
    "tenthousand": np.array(-1e4, np.float32),
    "last": np.array([-1]),
    "heads": np.array([0, 0, HEADS, SIZE]),
    "flat": np.array([0, 0, HIDDEN]),
    "weight": drawn(HIDDEN, HIDDEN),
    "bias": drawn(HIDDEN),
    "gamma": drawn(HIDDEN, centre=1.0),
    "beta": drawn(HIDDEN),
    "words": drawn(11, HIDDEN),
    "places": drawn(16, HIDDEN),
    "kinds": drawn(3, HIDDEN),
}
"""What a text may read without declaring it."""

INPUTS = {
    **dict.fromkeys(("q", "k", "v", "x", "skip"), "[B,S,8]"),
    "ids": "int64[B,S]",
    "spots": "int64[1,S]",
    "types": "int64[B,S]",
}
"""The shapes of graph inputs that a text reads without declaring them."""

NORM = "normed = LayerNormalization <axis = -1, epsilon = 1e-05> ({}, gamma, beta)"
DECOMPOSED = """
    mean = ReduceMean <axes = [-1]> ({})
    centred = Sub({}, mean)
    square = Pow(centred, two)
    variance = ReduceMean <axes = [-1]> (square)
    shifted = Add(variance, epsilon)
    std = Sqrt(shifted)
    bare = Div(centred, std)
    scaled_norm = Mul(bare, gamma)
    normed = Add(scaled_norm, beta)"""
DECOMPOSED_RMS = """
    square = Mul({}, {})
    variance = ReduceMean <axes = [-1]> (square)
    shifted = Add(variance, epsilon)
    std = Sqrt(shifted)
    bare = Div({}, std)
    normed = Mul(bare, gamma)"""
GUARD = "undefined = IsNaN({})\nguarded = Where(undefined, zero, {})"

ATTENTION_STEPS = {
    "query": "q4 = Reshape(q, heads)\nqh = Transpose <perm = [0, 2, 1, 3]> (q4)",
    "key": "k4 = Reshape(k, heads)\nkt = Transpose <perm = [0, 2, 3, 1]> (k4)",
    "value": "v4 = Reshape(v, heads)\nvh = Transpose <perm = [0, 2, 1, 3]> (v4)",
    "product": "product = MatMul(qh, kt)",
    "scale": "scaled = Mul({}, half)",
    "mask": "",
    "softmax": "probabilities = Softmax <axis = -1> ({})",
    "guard": "",
    "context": "context = MatMul({}, vh)",
    "merge": "moved = Transpose <perm = [0, 2, 1, 3]> ({})\nmerged = Reshape(moved, flat)",
    "projection": "projected = MatMul({}, weight)",
    "bias": "biased = Add({}, bias)",
    "residual": "total = Add({}, x)",
    "norm": NORM,
    "after": "",
}
"""A block of attention, step by step; {} is the result of the step before."""

EMBEDDING_STEPS = {
    "first": "word = Gather(words, ids)",
    "second": "place = Gather(places, spots)",
    "sum": "total = Add(word, place)",
    "norm": NORM,
    "after": "",
}
SKIP_STEPS = {"first": "", "sum": "total = Add(x, skip)", "norm": NORM, "after": ""}
SWISH_STEPS = {"gate": "gate = Sigmoid(x)", "product": "product = Mul(x, gate)", "after": ""}
STEPS = {ATTENTION: ATTENTION_STEPS, EMBEDDING: EMBEDDING_STEPS, SKIP: SKIP_STEPS, SWISH: SWISH_STEPS}


def build(
    fusion: str,
    *,
    inputs: Mapping[str, str] | None = None,
    outputs: Mapping[str, str] | None = None,
    weights: Mapping[str, Array] | None = None,
    opset: int = 17,
    dtype: str = "float",
    functions: str = "",
    **steps: str,
) -> ModelProto:
    """The graph a fusion is for, with some of its steps replaced ("" leaves one out).

    Args:
        inputs: further inputs, or other shapes: name -> "[B,S,8]", with a type in front unless it is `dtype`.
        outputs: further outputs: name -> type, as for inputs; "" is left to shape inference.
        weights: further constants, or other ones.
        functions: model-local functions in onnx's text form.
    """
    text = STEPS[fusion]
    assert steps.keys() <= text.keys(), steps.keys() - text.keys()
    lines: list[str] = []
    value = ""
    for step in (text | steps).values():
        if step.strip():
            lines.append(step.replace("{}", value))
            value = step.strip().splitlines()[-1].split("=")[0].split(",")[0].strip()
    body = "\n".join(lines)
    written = {name.strip() for line in body.splitlines() if "=" in line for name in line.split("=")[0].split(",")}
    read = set(re.findall(r"\w+", re.sub(r"<.*?>|\w+\.\w+", "", body))) - written
    known = {**INPUTS, **(inputs or {})}
    taken = {name: kind for name, kind in known.items() if name in read and name not in (weights or {})}

    def declared(values: Mapping[str, str]) -> str:
        return ", ".join(f"{dtype if kind[0] == '[' else ''}{kind} {name}" for name, kind in values.items())

    kind = np.dtype({"float": "float32", "float16": "float16", "double": "float64"}[dtype])
    constants = {
        name: array.astype(kind) if array.dtype == np.float32 else array
        for name, array in {**CONSTANTS, **(weights or {})}.items()
        if name in read and name not in taken
    }
    missing = read - taken.keys() - constants.keys()
    model = helpers.model(
        f"({declared(taken)}) => ({declared({value: '[B,S,8]'})}) {{\n{body}\n}}",
        opset=opset,
        weights=constants,
        functions=functions,
    )
    assert not missing & {name for node in model.graph.node for name in node.input}, missing
    for node in model.graph.node:
        node.name = f"{node.op_type}_{node.output[0]}"
    # What the outputs are is for inference to say: a test should not have to.
    del model.graph.output[:]
    inferred = onnx.shape_inference.infer_shapes(model)
    types = {item.name: item for item in inferred.graph.value_info}
    extra = dict(outputs or {})
    for name in (value, *extra):
        if name in types and not extra.get(name):
            model.graph.output.append(types[name])
        else:
            model.graph.output.append(
                onnx.parser.parse_graph(f"g () => ({declared({name: extra[name]})}) {{}}").output[0]
            )
    return model


def names_of(model: ModelProto) -> set[str]:
    """Everything a report may name: nodes and values of the main graph."""
    graph = model.graph
    found = {item.name for item in (*graph.input, *graph.initializer, *graph.node)}
    return found | {name for node in graph.node for name in node.output}


def differs(want: Array, got: Array, tolerance: float) -> str | None:
    """Where two outputs differ by more than `tolerance` times the scale of the first; None where they do not."""
    if want.dtype != got.dtype or want.shape != got.shape:
        return f"{got.dtype}{got.shape} instead of {want.dtype}{want.shape}"
    if want.dtype.kind != "f":
        return None if np.array_equal(want, got) else "other values"
    one, other = want.astype(np.float64), got.astype(np.float64)
    if not np.array_equal(np.isnan(one), np.isnan(other)):
        return f"NaN in {int(np.isnan(other).sum())} places instead of {int(np.isnan(one).sum())}"
    infinite = np.isinf(one) | np.isinf(other)
    if not np.array_equal(one[infinite], other[infinite]):
        return "infinite elsewhere"
    finite = np.isfinite(one)
    scale = float(np.abs(one[finite]).max(initial=0.0)) or 1.0
    error = float(np.abs(one - other, where=finite, out=np.zeros_like(one)).max(initial=0.0))
    return None if error <= tolerance * scale else f"{error:g} apart, at a scale of {scale:g}"


def assert_equal(
    before: ModelProto, after: ModelProto, feeds: Iterable[Mapping[str, Array]], tolerance: float = 2e-5
) -> list[list[Array]]:
    """Both models give the same on each of the feeds; returns what the first gives."""
    one, other = helpers.session(before), helpers.session(after)
    wants = []
    for given in feeds:
        want, got = one.run(None, dict(given)), other.run(None, dict(given))
        for output, left, right in zip(before.graph.output, want, got, strict=True):
            problem = differs(left, right, tolerance)
            assert problem is None, f"{output.name}: {problem}"
        wants.append(want)
    return wants


def feeds_of(model: ModelProto, *sizes: Mapping[str, int], **given: Array) -> list[dict[str, Array]]:
    """Random inputs, once for each choice of sizes; `given` replaces some."""
    return [{**helpers.feeds(model, seed, **size), **given} for seed, size in enumerate(sizes or ({"B": 2, "S": 5},))]


@dataclass(frozen=True)
class Outcome:
    """A model that was fused, and what the report says."""

    model: ModelProto
    report: onnx_fuse.Report

    def nodes(self, operator: str) -> list[NodeProto]:
        return [node for node in self.model.graph.node if node.op_type == operator and node.domain == DOMAIN]

    def attributes(self, node: NodeProto) -> dict[str, Any]:
        values = {item.name: helper.get_attribute_value(item) for item in node.attribute}
        return {name: value.decode() if isinstance(value, bytes) else value for name, value in values.items()}

    def inputs(self, node: NodeProto) -> dict[str, str]:
        """Operator's input name -> value."""
        return dict(zip(self.attributes(node)["inputs"].split(","), node.input, strict=True))


def fused(model: ModelProto, fusions: Iterable[str] = EVERY) -> Outcome:
    """The model fused without onnx-fuse's own verification; checked as ONNX checks, and free of errors."""
    before = model.SerializeToString(deterministic=True)
    result = onnx_fuse.fuse(model, fusions=list(fusions), verify=False)
    assert model.SerializeToString(deterministic=True) == before
    assert [record.error for record in result.report.passes if record.error] == []
    onnx.checker.check_model(result.model, full_check=True)
    return Outcome(result.model, result.report)
