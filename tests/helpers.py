"""Small models written as text, and what to do with them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import ml_dtypes
import numpy as np
import onnxruntime as ort
from onnx import ModelProto, NodeProto, TensorProto, ValueInfoProto, helper, numpy_helper, parser, shape_inference

from onnx_fuse.passes.fuse.fuse_pass import FusePass
from onnx_fuse.passes.fuse.simplify import Simplify
from onnx_fuse.passes.graph.index import Graph
from onnx_fuse.passes.graph.onnx_inference import inferred_types
from onnx_fuse.passes.normalize.sweep import normalize
from onnx_fuse.passes.pipeline import Pipeline
from onnx_fuse.passes.report import Report
from onnx_fuse.passes.view.matcher import Match, NearMiss, match_at
from onnx_fuse.passes.view.view import View
from onnx_fuse.patterns import Fused, FusedOp, Fusion, Pattern

Array = np.ndarray


def model(
    text: str, *, opset: int = 17, ir: int = 10, functions: str = "", weights: Mapping[str, Array] | None = None
) -> ModelProto:
    """`(float[n,4] x) => (float[n,4] y) { y = Relu(x) }` as a model; domains that its nodes use are imported at version 1.

    Args:
        functions: model-local functions in onnx's text form.
        weights: initializers that are too large, or of a type too odd, to be written as text.
    """
    made = parser.parse_model(f'<ir_version: {ir}, opset_import: ["" : {opset}]>\nmain {text}\n{functions}')
    domains = {node.domain for node in made.graph.node} | {item.domain for item in made.functions}
    made.opset_import.extend(helper.make_opsetid(domain, 1) for domain in sorted(domains - {"", "ai.onnx"}))
    for name, array in (weights or {}).items():
        made.graph.initializer.append(numpy_helper.from_array(array, name))
    return made


def copied(original: ModelProto) -> ModelProto:
    copy = ModelProto()
    copy.CopyFrom(original)
    return copy


def operators(made: Any) -> list[str]:
    """Operator types of a model or graph, in graph order."""
    graph = made.graph if isinstance(made, ModelProto) else made
    return [node.op_type for node in graph.node]


def node_bytes(made: ModelProto) -> list[bytes]:
    return [node.SerializeToString(deterministic=True) for node in made.graph.node]


def view_of(made: ModelProto, *, canonical: bool = True) -> View:
    """The view of the main graph."""
    graph = Graph(made.graph, made)
    view = View(graph, inferred_types(graph))
    if canonical:
        normalize(view)
    assert not view.errors
    return view


def attempt(pattern: Pattern, made: ModelProto, at: str = "y", *, canonical: bool = True) -> Match | NearMiss:
    """The pattern tried at the node that makes the value `at`, on a model that must come out of it unchanged."""
    before = made.SerializeToString(deterministic=True)
    view = view_of(made, canonical=canonical)
    node = view.producer(at)
    assert node is not None
    result = match_at(pattern, node, view)
    assert made.SerializeToString(deterministic=True) == before
    return result


def matched(pattern: Pattern, made: ModelProto, at: str = "y", *, canonical: bool = True) -> Match:
    result = attempt(pattern, made, at, canonical=canonical)
    assert isinstance(result, Match), result
    return result


def refusal(pattern: Pattern, made: ModelProto, at: str = "y", *, canonical: bool = True) -> str:
    """The sentence of the near miss."""
    result = attempt(pattern, made, at, canonical=canonical)
    assert isinstance(result, NearMiss), result
    return result.reason


def fusion_of(
    pattern: Pattern,
    body: Callable[..., Any],
    *,
    name: str = "",
    inputs: Sequence[str] = ("x",),
    attributes: Sequence[str] = (),
    outputs: Sequence[str] = ("output",),
    optional: Mapping[str, str] | None = None,
) -> Fusion:
    """A fusion whose operator takes the pattern's variables by name.

    Args:
        optional: optional output -> name bound in the pattern; the others are the pattern's results in order.
    """
    operator = FusedOp(
        name or "Fused" + pattern.name.title().replace("_", ""), tuple(inputs), body, tuple(attributes), tuple(outputs)
    )

    def build(match: Any, view: Any) -> Fused:
        required = [output for output in operator.outputs if output not in (optional or {})]
        return Fused(
            {name: match.get(name) for name in operator.inputs},
            dict(zip(required, match.values, strict=True)),
            {name: match[name] for name in operator.attributes},
            {output: match[bound] for output, bound in (optional or {}).items()},
        )

    return Fusion(operator.name, pattern, operator, build)


def fused(original: ModelProto, *fusions: Fusion) -> tuple[ModelProto, Report]:
    """The model after the pass that fuses, and the report; the original stays as it is."""
    domains = {fusion.operator.domain for fusion in fusions}
    return Pipeline([FusePass(fusions)], bodies=domains).run(copied(original))


def simplified(original: ModelProto) -> ModelProto:
    made, report = Pipeline([Simplify()]).run(copied(original))
    assert not report.warnings, report.warnings
    return made


def session(made: ModelProto) -> ort.InferenceSession:
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    return ort.InferenceSession(made.SerializeToString(), options, providers=["CPUExecutionProvider"])


def run(made: ModelProto, feeds: Mapping[str, Array]) -> list[Array]:
    """Its outputs, in ONNX Runtime."""
    outputs: list[Array] = session(made).run(None, dict(feeds))
    return outputs


def feeds(made: ModelProto, seed: int = 0, **sizes: int) -> dict[str, Array]:
    """Random inputs; symbolic dimensions are 2, 3, 4, ... in order of appearance, unless `sizes` says otherwise."""
    random = np.random.default_rng(seed)
    given = {tensor.name for tensor in made.graph.initializer}
    arrays = {}
    for value in made.graph.input:
        if value.name in given:
            continue
        kind = value.type.tensor_type
        shape = []
        for dim in kind.shape.dim:
            name = dim.dim_param
            shape.append(sizes.setdefault(name, 2 + len(sizes)) if name else dim.dim_value)
        dtype = helper.tensor_dtype_to_np_dtype(kind.elem_type)
        if kind.elem_type == TensorProto.BOOL:
            arrays[value.name] = np.asarray(random.random(shape) < 0.5)
        elif np.issubdtype(dtype, np.integer):
            arrays[value.name] = random.integers(0, 3, shape).astype(dtype)
        else:
            arrays[value.name] = random.standard_normal(shape).astype(dtype)
    return arrays


def assert_same_results(
    before: ModelProto, after: ModelProto, *, tolerance: float = 1e-5, seeds: Iterable[int] = (0,), **sizes: int
) -> None:
    """Both give equal outputs, of equal type and shape, on the same random inputs."""
    one, other = session(before), session(after)
    for seed in seeds:
        given = feeds(before, seed, **sizes)
        for want, got in zip(one.run(None, given), other.run(None, given), strict=True):
            assert want.dtype == got.dtype and want.shape == got.shape
            wide = (want.astype(np.float64), got.astype(np.float64)) if want.dtype.kind == "f" else (want, got)
            np.testing.assert_allclose(wide[1], wide[0], rtol=tolerance, atol=tolerance)


def bfloat16(*values: float) -> Array:
    return np.array(values[0] if len(values) == 1 else values, dtype=ml_dtypes.bfloat16)


class Builder:
    """Collects the nodes of a model that a test draws at random."""

    def __init__(self, dtype: int = TensorProto.FLOAT, **inputs: Sequence[int | str]) -> None:
        self.inputs = [helper.make_tensor_value_info(name, dtype, dims) for name, dims in inputs.items()]
        self.nodes: list[NodeProto] = []
        self.weights: list[TensorProto] = []

    def node(self, op_type: str, *inputs: str, outputs: int = 1, **attributes: Any) -> Any:
        """Adds a node; gives the name of its output, or a tuple of names."""
        made = [f"v{len(self.nodes)}_{number}" for number in range(outputs)]
        self.nodes.append(helper.make_node(op_type, inputs, made, **attributes))
        return made[0] if outputs == 1 else tuple(made)

    def constant(self, *values: float, dtype: Any = np.int64) -> str:
        """A constant with one axis."""
        return self.array(np.array(values, dtype=dtype))

    def array(self, array: Array) -> str:
        self.weights.append(numpy_helper.from_array(array, f"c{len(self.weights)}"))
        return self.weights[-1].name

    def model(self, *outputs: str, opset: int = 17) -> ModelProto:
        values = [ValueInfoProto(name=name) for name in outputs]
        graph = helper.make_graph(self.nodes, "main", self.inputs, values, self.weights)
        made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=10)
        inferred = {value.name: value for value in shape_inference.infer_shapes(made).graph.output}
        for value in made.graph.output:
            value.CopyFrom(inferred[value.name])
        return made
