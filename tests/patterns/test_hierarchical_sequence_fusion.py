"""HierarchicalSequenceFusion: it fires on every exported form, refuses its relatives, and computes the same."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from onnx import ModelProto, NodeProto, helper
from torch import Tensor, nn

import onnx_fuse
from examples.models.sequence_fusion import HierarchicalSequenceFusion as Model
from onnx_fuse.patterns.hierarchical_sequence_fusion import HierarchicalSequenceFusion
from tests import helpers
from tests.helpers import Array
from tests.models.torch_export import EXPORTERS, Source, sampled

NAME = "HierarchicalSequenceFusion"
RANDOM = np.random.default_rng(5)
WIDTH, LEVELS = 8, 3


# -- exported forms ---------------------------------------------------------------------------------------------------------

Write = Callable[["Form", Tensor, Tensor], Tensor]
FORMS: dict[str, tuple[Write, str]] = {}


def form(inputs: str) -> Callable[[Write], Write]:
    """Registers a form with the inputs its fused node must have."""

    def register(write: Write) -> Write:
        FORMS[write.__name__] = (write, inputs)
        return write

    return register


class Form(nn.Module):
    """One way to write it: a function (self, x [B, S, H], mask [B, S, L] bool) -> y."""

    def __init__(self, name: str) -> None:
        super().__init__()
        self.name = name
        self.levels = nn.Parameter(torch.randn(LEVELS, WIDTH))
        self.model = Model(WIDTH, LEVELS, 0.5, (3, 5), (0.25, 2.0))
        self.padded = Model(WIDTH, LEVELS, 2.0, (3,), (0.5,), count_padding=True)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        return FORMS[self.name][0](self, x, mask)

    def gated(self, weights: Tensor, x: Tensor) -> Tensor:
        mixed = weights @ self.levels
        gate = torch.sigmoid((mixed * x).sum(-1, keepdim=True) / WIDTH)
        return gate * mixed + (1 - gate) * x


@form("x,level_embeddings,level_mask")
def model_with_windows(self: Form, x: Tensor, mask: Tensor) -> Tensor:
    return self.model(x, mask)[0]


@form("x,level_embeddings")
def model_without_mask(self: Form, x: Tensor, mask: Tensor) -> Tensor:
    return self.padded(x)[0]


@form("x,level_embeddings,level_mask")
def mean_and_lerp(self: Form, x: Tensor, mask: Tensor) -> Tensor:
    """A mask by a large number and a product; the gate as a mean; x + g (f - x)."""
    scores = (x * 0.5) @ self.levels.T
    weights = torch.softmax(torch.where(mask, scores, torch.full((), -1e9)), -1) * mask
    mixed = weights @ self.levels
    gate = torch.sigmoid((mixed * x).mean(-1, keepdim=True))
    return x + gate * (mixed - x)


@form("x,level_embeddings,level_mask")
def einsum_and_guard(self: Form, x: Tensor, mask: Tensor) -> Tensor:
    """NaN replaced after the Softmax; the gate without its last axis."""
    scores = torch.einsum("bsh,lh->bsl", x, self.levels) * 3.0
    weights = torch.softmax(scores.masked_fill(~mask, float("-inf")), -1)
    weights = torch.where(torch.isnan(weights), torch.zeros(()), weights)
    mixed = torch.einsum("bsl,lh->bsh", weights, self.levels)
    gate = torch.sigmoid((mixed * x).sum(-1) / WIDTH).unsqueeze(-1)
    return gate * mixed + (1.0 - gate) * x


class Forms(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.forms = nn.ModuleList(Form(name) for name in FORMS)

    def forward(self, x: Tensor, mask: Tensor) -> tuple[Tensor, ...]:
        return tuple(form(x, mask) for form in self.forms)


@functools.cache
def forms() -> Source:
    torch.manual_seed(0)
    mask = torch.rand(3, 7, LEVELS) > 0.3
    mask[1, 2] = False
    axes = {"x": {0: "B", 1: "S"}, "mask": {0: "B", 1: "S"}}
    inputs = {"x": torch.randn(3, 7, WIDTH), "mask": mask}
    return Source(Forms().eval(), inputs, axes, [f"out_{name}" for name in FORMS])


@pytest.mark.parametrize(
    ("exporter", "opset", "dynamic"),
    sampled(
        *((*exporter, dynamic) for exporter in EXPORTERS for dynamic in (False, True)),
        usual={("script", 14, True), ("script", 17, False), ("dynamo", 23, True)},
    ),
)
def test_every_form_fuses(exporter: str, opset: int, dynamic: bool) -> None:
    source = forms()
    result = onnx_fuse.fuse(source.export(exporter, opset, dynamic=dynamic))
    assert result.report.verification["passed"]
    made = {node.output[0]: node for node in result.model.graph.node}
    for name, (_, inputs) in FORMS.items():
        assert made[f"out_{name}"].op_type == NAME, name
        assert attributes_of(made[f"out_{name}"])["inputs"] == inputs, name
    with torch.no_grad():
        wanted = source.module(*source.inputs.values())
    found = helpers.run(result.model, {name: value.numpy() for name, value in source.inputs.items()})
    for name, want, got in zip(FORMS, wanted, found, strict=True):
        np.testing.assert_allclose(got, want.numpy(), rtol=1e-4, atol=1e-5, err_msg=name)


def test_weights_that_are_read_become_an_output() -> None:
    inputs = {"x": torch.randn(2, 5, WIDTH), "mask": torch.rand(2, 5, LEVELS) > 0.5}
    source = Source(Model(WIDTH, LEVELS, 0.7).eval(), inputs, {}, ("y", "w"))
    result = onnx_fuse.fuse(source.export("script", 17, dynamic=False))
    (node,) = result.model.graph.node
    assert list(node.output) == ["y", "w"] and attributes_of(node)["outputs"] == "y,level_weights"


def attributes_of(node: NodeProto) -> dict[str, Any]:
    values = {item.name: helper.get_attribute_value(item) for item in node.attribute}
    return {name: value.decode() if isinstance(value, bytes) else value for name, value in values.items()}


# -- the body ---------------------------------------------------------------------------------------------------------------


def reference(x: Array, levels: Array, mask: Array | None, attributes: dict[str, Any]) -> tuple[Array, Array]:
    """The operator in float64, position by position."""
    x, levels = x.astype(np.float64), levels.astype(np.float64)
    batch, length, width = x.shape
    y, weights = np.zeros(x.shape), np.zeros((batch, length, len(levels)))
    for b, t in np.ndindex(batch, length):
        active = [level for level in range(len(levels)) if mask is None or mask[b, t, level]]
        scores = np.array([x[b, t] @ levels[level] for level in active]) / attributes["temperature"]
        if active:
            exponentials = np.exp(scores - scores.max())
            weights[b, t, active] = exponentials / exponentials.sum()
        mixed = weights[b, t] @ levels
        gate = 1 / (1 + np.exp(-(mixed @ x[b, t]) / width))
        y[b, t] = gate * mixed + (1 - gate) * x[b, t]
        for window, weight in zip(attributes["windows"], attributes["window_weights"], strict=True):
            around = x[b, max(t - window // 2, 0) : t + window // 2 + 1]
            y[b, t] += weight * around.sum(0) / (window if attributes["pad"] == "zero" else len(around))
    return y, weights


def operator_model(inputs: dict[str, Array], attributes: dict[str, Any], opset: int = 17) -> ModelProto:
    names, outputs = list(inputs), ["y", "level_weights"]
    node = HierarchicalSequenceFusion.make_node(
        {name: name for name in names}, {name: name for name in outputs}, attributes, "fused"
    )
    dtype = helper.np_dtype_to_tensor_dtype(inputs["x"].dtype)
    kinds = {name: helper.np_dtype_to_tensor_dtype(array.dtype) for name, array in inputs.items()}
    values = [helper.make_tensor_value_info(name, kinds[name], inputs[name].shape) for name in names]
    results = [helper.make_tensor_value_info(name, dtype, [None] * 3) for name in outputs]
    function = HierarchicalSequenceFusion.make_function(names, outputs, attributes, {"": opset}, dtype)
    imports = [helper.make_opsetid("", opset), helper.make_opsetid("gr.ml.infra", 1)]
    graph = helper.make_graph([node], "main", values, results)
    return helper.make_model(graph, functions=[function], opset_imports=imports, ir_version=10)


NO_WINDOWS = {"windows": [1], "window_weights": [0.0], "pad": "truncate"}
WINDOWS = {"windows": [3, 7], "window_weights": [0.5, -0.25], "pad": "truncate"}


def drawn(batch: int, length: int, masked: bool) -> dict[str, Array]:
    inputs: dict[str, Array] = {
        "x": RANDOM.standard_normal((batch, length, WIDTH)).astype(np.float32),
        "level_embeddings": RANDOM.standard_normal((LEVELS, WIDTH)).astype(np.float32),
    }
    if masked:
        inputs["level_mask"] = RANDOM.random((batch, length, LEVELS)) < 0.4
    return inputs


@pytest.mark.parametrize("windows", [NO_WINDOWS, WINDOWS, {**WINDOWS, "pad": "zero"}], ids=["none", "truncate", "zero"])
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize(("batch", "length"), [(2, 9), (1, 1), (3, 2)])
def test_body_computes_the_definition(windows: dict[str, Any], masked: bool, batch: int, length: int) -> None:
    attributes = {"temperature": 0.7, **windows}
    inputs = drawn(batch, length, masked)
    found = helpers.run(operator_model(inputs, attributes), inputs)
    wanted = reference(inputs["x"], inputs["level_embeddings"], inputs.get("level_mask"), attributes)
    for got, want in zip(found, wanted, strict=True):
        np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-5)


def test_a_position_without_a_level_keeps_half_of_itself() -> None:
    inputs = drawn(1, 4, True)
    inputs["level_mask"][:] = False
    y, weights = helpers.run(operator_model(inputs, {"temperature": 1.0, **NO_WINDOWS}), inputs)
    assert not weights.any()
    np.testing.assert_array_equal(y, inputs["x"] / 2)


@pytest.mark.parametrize("opset", [13, 18, 23])
@pytest.mark.parametrize(("batch", "length"), [(0, 3), (2, 0)])
def test_body_takes_empty_axes(opset: int, batch: int, length: int) -> None:
    inputs = drawn(batch, length, True)
    found = helpers.run(operator_model(inputs, {"temperature": 1.0, **NO_WINDOWS}, opset), inputs)
    assert found[0].shape == (batch, length, WIDTH) and found[1].shape == (batch, length, LEVELS)


def test_float16() -> None:
    inputs = drawn(2, 6, True)
    half = {name: array.astype(np.float16) if array.dtype == np.float32 else array for name, array in inputs.items()}
    attributes = {"temperature": 0.7, **WINDOWS}
    found = helpers.run(operator_model(half, attributes), half)
    wanted = helpers.run(operator_model(inputs, attributes), inputs)
    assert found[0].dtype == np.float16
    np.testing.assert_allclose(found[0].astype(np.float32), wanted[0], rtol=5e-3, atol=5e-3)


# -- near relatives ---------------------------------------------------------------------------------------------------------

STEPS = {
    "scores": "product = MatMul(x, columns)",
    "scale": "scaled = Mul({}, half)",
    "mask": "masked = Where(keep, {}, lowest)",
    "softmax": "soft = Softmax <axis = -1> ({})",
    "after": "weights = Where(keep, {}, zero)",
    "mixture": "mixed = MatMul({}, rows)",
    "overlap": "overlap = Mul({}, x)\ntotal = ReduceSum({}, last)".replace("ReduceSum({}", "ReduceSum(overlap"),
    "gate": "mean = Mul({}, eighth)\ngate = Sigmoid(mean)",
    "result": "taken = Mul({}, mixed)\nrest = Sub(one, {})\nkept = Mul(rest, x)\nout = Add(taken, kept)",
    "window": "",
}
LEVEL_ROWS = RANDOM.standard_normal((LEVELS, WIDTH)).astype(np.float32)
CONSTANTS = (
    "<float half = {0.5}, float eighth = {0.125}, float zero = {0}, float one = {1}, float lowest = {-1e9}, float low = {-5}, "
    "float fourth = {0.25}, float infinity = {-inf}, int64[1] last = {-1}, int64[1] middle = {1}>"
)


def fusion(weights: dict[str, Array] | None = None, **steps: str) -> ModelProto:
    """The fusion as text, with other steps; {} is the result of the step before."""
    assert steps.keys() <= STEPS.keys()
    lines: list[str] = []
    value = ""
    for text in (STEPS | steps).values():
        if text:
            lines.append(text.replace("{}", value))
            value = text.splitlines()[-1].split("=")[0].strip()
    declared = "float[B,S,8] x, bool[B,S,3] keep, bool[B,S,3] other, float[B,S,3] factor"
    text = f"({declared}) => (float[B,S,8] {value}) {CONSTANTS} {{ {chr(10).join(lines)} }}"
    arrays = {"rows": LEVEL_ROWS, "columns": LEVEL_ROWS.T.copy(), **(weights or {})}
    return helpers.model(text.replace("-inf", "-3e38"), weights=arrays)


def reasons(original: ModelProto) -> tuple[list[str], list[str]]:
    """(operators, why not) of the fused model."""
    result = onnx_fuse.fuse(original, verify=False)
    told = [miss.reason for miss in result.report.near_misses if miss.fusion == NAME]
    return helpers.operators(result.model), told


def test_the_text_form_fuses() -> None:
    original = fusion()
    result = onnx_fuse.fuse(original)
    assert helpers.operators(result.model) == [NAME]
    helpers.assert_same_results(original, result.model, B=2, S=5)


REFUSED: dict[str, tuple[str, dict[str, Any]]] = {
    "other levels in the scores": (
        "columns, which is not known to be rows transposed",
        {"weights": {"columns": LEVEL_ROWS.T + 1}},
    ),
    "masked scores that weigh something": (
        "masked scores become -5, which weigh something",
        {"mask": "masked = Where(keep, {}, low)"},
    ),
    "equal weights for a position without a level": ("weights of equal size, not of 0", {"after": ""}),
    "another mask after the Softmax": (
        "the scores and the weights are masked differently",
        {"after": "weights = Where(other, {}, zero)"},
    ),
    "the opposite mask after the Softmax": (
        "the scores and the weights are masked differently",
        {"after": "weights = Where(keep, zero, {})"},
    ),
    "a mask after the Softmax alone": ("masked after the Softmax, and not before", {"mask": ""}),
    "weights that are multiplied by a tensor": (
        "which may be something else than a mask",
        {"after": "weights = Mul({}, factor)"},
    ),
    "an overlap of another scale": (
        "the overlap is multiplied by 0.25",
        {"gate": "mean = Mul({}, fourth)\ngate = Sigmoid(mean)"},
    ),
    "Softmax over positions": ("attribute axis is -2, pattern wants -1", {"softmax": "soft = Softmax <axis = 1> ({})"}),
}


@pytest.mark.parametrize("relative", REFUSED)
def test_relatives_are_refused(relative: str) -> None:
    says, steps = REFUSED[relative]
    made, told = reasons(fusion(**steps))
    assert NAME not in made
    assert any(says in reason for reason in told), told


POOL = "turned = Transpose <perm = [0, 2, 1]> (x)\npool = AveragePool <kernel_shape = [{}], pads = [{}]> (turned)\n"
BACK = "back = Transpose <perm = [0, 2, 1]> (pool)\nmore = Mul(back, half)\nend = Add(out, more)"


@pytest.mark.parametrize(
    ("kernel", "pads", "says"),
    [
        ("2", "1, 0", "a window has 2 positions, an even number"),
        ("3", "2, 0", "is padded by [2, 0], pattern wants [1, 1]"),
    ],
)
def test_odd_windows_stay_outside(kernel: str, pads: str, says: str) -> None:
    text = POOL.replace("{}", kernel, 1).replace("{}", pads, 1) + BACK
    original = fusion(window=text)
    result = onnx_fuse.fuse(original)
    assert {NAME, "AveragePool"} <= set(helpers.operators(result.model))
    (match,) = [match for match in result.report.matches if match.operator == NAME]
    assert any(says in sentence for sentence in match.left_out), match.left_out
    helpers.assert_same_results(original, result.model, B=2, S=5)
