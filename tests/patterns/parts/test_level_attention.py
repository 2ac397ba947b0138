"""HSTUHierarchicalAttention with `mode="level_softmax"`: it fires where the runs are known, refuses, and computes the same."""

from __future__ import annotations

import functools
from typing import Any

import numpy as np
import pytest
import torch
from onnx import ModelProto

import onnx_fuse
from examples.models.hstu import LevelAttention
from onnx_fuse.patterns.parts.level_attention import level_attention
from tests import helpers
from tests.helpers import Array
from tests.models.torch_export import EXPORTERS, Source, sampled
from tests.patterns.test_hstu_attention import ATTRIBUTES, NAME, attributes_of, operator_model

RANDOM = np.random.default_rng(11)
HEADS, SIZE, VALUE = 2, 4, 6


@functools.cache
def source(length: int) -> Source:
    torch.manual_seed(length)
    widths = {"q": HEADS * SIZE, "k": HEADS * SIZE, "v": HEADS * VALUE}
    inputs = {name: torch.randn(3, length, width) for name, width in widths.items()}
    return Source(LevelAttention(HEADS, 3).eval(), inputs, {name: {0: "B"} for name in inputs})


@pytest.mark.parametrize(
    ("exporter", "opset", "length"),
    sampled(
        *((*exporter, length) for exporter in EXPORTERS for length in (6, 7)),
        usual={("script", 14, 6), ("script", 17, 7), ("dynamo", 23, 7)},
    ),
)
def test_it_fuses_where_the_runs_are_known(exporter: str, opset: int, length: int) -> None:
    result = onnx_fuse.fuse(source(length).export(exporter, opset))
    assert result.report.verification["passed"]
    (node,) = result.model.graph.node
    found = attributes_of(node)
    assert (found["mode"], found["num_levels"], found["alpha"], found["inputs"]) == ("level_softmax", 3, 0.5, "q,k,v")
    assert found["decay"] == pytest.approx(0.9)


def reference(inputs: dict[str, Array], levels: int, decay: float, alpha: float) -> Array:
    """The operator in float64, position by position."""
    batch, length, width = inputs["v"].shape
    q, k, v = (inputs[name].astype(np.float64).reshape(batch, length, HEADS, -1) for name in "qkv")
    mask = np.broadcast_to(inputs.get("mask", np.ones(())), (batch, HEADS, length, length)).astype(bool)
    size = -(-length // levels)
    y = np.zeros((batch, length, HEADS, width // HEADS))
    for b, i, head in np.ndindex(batch, length, HEADS):
        total = 0.0
        for level in range(levels):
            keys = [j for j in range(level * size, min((level + 1) * size, length)) if mask[b, head, i, j]]
            if keys:
                exponentials = np.exp([decay**level * alpha * (q[b, i, head] @ k[b, j, head]) for j in keys])
                y[b, i, head] += (level + 1) / levels * (exponentials @ v[b, keys, head]) / exponentials.sum()
                total += (level + 1) / levels
        y[b, i, head] /= total or 1.0
    return y.reshape(batch, length, width)


@pytest.mark.parametrize("mask", ["none", "bool", "float", "empty"])
@pytest.mark.parametrize(("levels", "length"), [(3, 7), (4, 5), (3, 2), (1, 4)])
def test_body_computes_the_definition(levels: int, length: int, mask: str) -> None:
    inputs = {name: RANDOM.standard_normal((2, length, HEADS * SIZE)).astype(np.float32) for name in "qk"}
    inputs["v"] = RANDOM.standard_normal((2, length, HEADS * VALUE)).astype(np.float32)
    if mask != "none":
        keep = RANDOM.random((2, 1, length, length)) < (0.5 if mask != "empty" else 0.0)
        inputs["mask"] = keep.astype(np.float32) if mask == "float" else keep
    attributes = {**ATTRIBUTES, "mode": "level_softmax", "num_levels": levels, "decay": 0.8, "alpha": 0.5}
    found = helpers.run(operator_model(inputs, attributes), inputs)[0]
    np.testing.assert_allclose(found, reference(inputs, levels, 0.8, 0.5), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("batch", "length"), [(0, 3), (2, 0)])
def test_body_takes_empty_axes(batch: int, length: int) -> None:
    inputs = {name: np.zeros((batch, length, HEADS * SIZE), np.float32) for name in "qkv"}
    attributes = {**ATTRIBUTES, "mode": "level_softmax", "num_levels": 3, "decay": 0.9}
    assert helpers.run(operator_model(inputs, attributes), inputs)[0].shape == inputs["v"].shape


def two_levels(changes: dict[str, Any], width: int | str = 8) -> ModelProto:
    """Two levels of six positions, as text, with other numbers, or values of another width."""
    numbers = {"start": 0, "middle": 3, "again": 3, "end": 6, "alpha": 0.5, "decayed": 0.4, "low": 0.5, "share": 2 / 3}
    numbers |= changes
    arrays = {
        name: np.array([value]) if isinstance(value, int) else np.array(value, np.float32)
        for name, value in numbers.items()
    }
    arrays |= {"heads": np.array([0, 6, 2, -1]), "flat": np.array([0, 6, -1]), "two": np.array([2])}
    split = "\n".join(
        f"{name}4 = Reshape({name}, heads)\n{name}h = Transpose <perm = [0, 2, 1, 3]> ({name}4)" for name in "qkv"
    )
    levels = "\n".join(
        f"""k{n} = Slice(kh, {start}, {end}, two)
        t{n} = Transpose <perm = [0, 1, 3, 2]> (k{n})
        v{n} = Slice(vh, {start}, {end}, two)
        s{n} = MatMul(qh, t{n})
        a{n} = Mul(s{n}, {scale})
        p{n} = Softmax <axis = -1> (a{n})
        o{n} = MatMul(p{n}, v{n})"""
        for n, start, end, scale in ((1, "start", "middle", "alpha"), (2, "again", "end", "decayed"))
    )
    rest = """w1 = Mul(o1, low)
        sum = Add(w1, o2)
        mean = Mul(sum, share)
        moved = Transpose <perm = [0, 2, 1, 3]> (mean)
        y = Reshape(moved, flat)"""
    inputs = f"float[B,6,8] q, float[B,6,8] k, float[B,6,{width}] v"
    return helpers.model(f"({inputs}) => (float[B,6,{width}] y) {{ {split}\n{levels}\n{rest} }}", weights=arrays)


def test_the_text_form_fuses() -> None:
    original = two_levels({})
    result = onnx_fuse.fuse(original)
    assert helpers.operators(result.model) == [NAME]
    helpers.assert_same_results(original, result.model, B=2)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"middle": 4, "again": 4}, "level 1 has the keys 0 to 4, pattern wants 0 to 3"),
        ({"again": 2}, "level 2 has the keys 2 to 6, pattern wants 3 to 6"),
        ({"low": 0.4}, "the levels weigh 0.4, 1, pattern wants 1/2, 2/2"),
        ({"share": 0.5}, "the levels weigh 0.5, 1, pattern wants 1/2, 2/2"),
        ({"alpha": 0.0}, "the scores are scaled by 0, 0.4, which is no geometric sequence"),
        ({"decayed": -0.4}, "the scores are scaled by 0.5, -0.4, which is no geometric sequence"),
    ],
)
def test_relatives_are_refused(changes: dict[str, Any], says: str) -> None:
    original = two_levels(changes)
    assert says in helpers.refusal(level_attention, original)
    assert NAME not in helpers.operators(onnx_fuse.fuse(original).model)


def test_values_of_unknown_size_are_refused() -> None:
    assert "that of the value is" in helpers.refusal(level_attention, two_levels({}, "W"))
