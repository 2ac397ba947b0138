"""FusedAttentionLayerNorm: it fires on every written form, refuses with the right sentence, and computes the same."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import ml_dtypes
import numpy as np
import onnx
import pytest
from onnx import ModelProto, NodeProto, helper

import onnx_fuse
from onnx_fuse.passes.report import MatchRecord
from tests import helpers
from tests.helpers import Array

NAME = "FusedAttentionLayerNorm"
HIDDEN, HEADS, SIZE = 8, 2, 4
RANDOM = np.random.default_rng(7)
KINDS: dict[str, Any] = {"float": np.float32, "float16": np.float16, "bfloat16": ml_dtypes.bfloat16}


def drawn(*shape: int, centre: float = 0.0) -> Array:
    return (centre + 0.4 * RANDOM.standard_normal(shape)).astype(np.float32)


INPUTS = dict.fromkeys(("q", "k", "v", "x"), "[B,S,8]")
NUMBERS: dict[str, Array] = {
    "zero": np.array(0.0, np.float32),
    "one": np.array(1.0, np.float32),
    "two": np.array(2.0, np.float32),
    "four": np.array(4.0, np.float32),
    "half": np.array(0.5, np.float32),
    "half_1": np.array([0.5], np.float32),
    "half_4": np.full((1, 1, 1, 1), 0.5, np.float32),
    "root_half": np.array(0.5**0.5, np.float32),
    "epsilon": np.array(1e-5, np.float32),
    "infinity": np.array(-np.inf, np.float32),
    "lowest": np.array(-3.4028235e38, np.float32),
    "tenthousand": np.array(-1e4, np.float32),
    "last": np.array([-1]),
    "index": np.array(3),
    "rows": np.array([-1, HIDDEN]),
}
WEIGHTS: dict[str, Array] = {
    "heads": np.array([0, 0, HEADS, SIZE]),
    "flat": np.array([0, 0, HIDDEN]),
    "weight": drawn(HIDDEN, HIDDEN),
    "weight_12": drawn(12, HIDDEN),
    "weight_16": drawn(16, HIDDEN),
    "packed_weight": drawn(HIDDEN, 3 * HIDDEN),
    "bias": drawn(HIDDEN),
    "gamma": drawn(HIDDEN, centre=1.0),
    "beta": drawn(HIDDEN),
}
STEPS = {
    "query": """
        q4 = Reshape(q, heads)
        qh = Transpose <perm = [0, 2, 1, 3]> (q4)""",
    "key": """
        k4 = Reshape(k, heads)
        kt = Transpose <perm = [0, 2, 3, 1]> (k4)""",
    "value": """
        v4 = Reshape(v, heads)
        vh = Transpose <perm = [0, 2, 1, 3]> (v4)""",
    "product": "product = MatMul(qh, kt)",
    "scale": "scaled = Mul({}, half)",
    "mask": "",
    "softmax": "probabilities = Softmax <axis = -1> ({})",
    "guard": "",
    "context": "context = MatMul({}, vh)",
    "merge": """
        moved = Transpose <perm = [0, 2, 1, 3]> ({})
        merged = Reshape(moved, flat)""",
    "projection": "projected = MatMul({}, weight)",
    "bias": "biased = Add({}, bias)",
    "residual": "total = Add({}, x)",
    "norm": "normed = LayerNormalization <axis = -1, epsilon = 1e-05> ({}, gamma, beta)",
}
"""The text of a block, step by step; {} is the result of the step before."""
CORE = {"projection": "", "bias": "", "residual": "", "norm": ""}


def attention(
    *,
    inputs: Mapping[str, str] | None = None,
    outputs: Mapping[str, str] | None = None,
    weights: Mapping[str, Array] | None = None,
    opset: int = 17,
    dtype: str = "float",
    **steps: str,
) -> ModelProto:
    """One block of attention with its rim.

    Args:
        inputs, outputs: further ones, or other shapes: name -> "[B,S,8]", with a type in front unless it is `dtype`.
        weights: further constants, or other ones. Plain numbers as they stand in the text (`half`) are there already.
        steps: steps in place of those of `STEPS`; "" leaves one out.
    """
    assert steps.keys() <= STEPS.keys()
    lines: list[str] = []
    value = ""
    for text in (STEPS | steps).values():
        if text.strip():
            lines.append(text.replace("{}", value))
            value = text.strip().splitlines()[-1].split("=")[0].split(",")[0].strip()
    body = "\n".join(lines)
    written = {name.strip() for line in body.splitlines() if "=" in line for name in line.split("=")[0].split(",")}
    read = set(re.findall(r"\w+", body)) - written

    def declared(values: Mapping[str, str]) -> str:
        return ", ".join(f"{dtype if type_[0] == '[' else ''}{type_} {name}" for name, type_ in values.items())

    taken = {name: type_ for name, type_ in {**INPUTS, **(inputs or {})}.items() if name in read}
    made = {value: taken.get("x", INPUTS["x"]), **(outputs or {})}
    constants = {
        name: array.astype(KINDS[dtype]) if array.dtype.kind == "f" else array
        for name, array in {**NUMBERS, **WEIGHTS, **(weights or {})}.items()
        if name in read
    }
    model = helpers.model(f"({declared(taken)}) => ({declared(made)}) {{\n{body}\n}}", opset=opset, weights=constants)
    for node in model.graph.node:
        node.name = f"{node.op_type}_{node.output[0]}"
    return model


@dataclass(frozen=True)
class Fused:
    """The one fused node of a model, with the model and the record it came with."""

    model: ModelProto
    node: NodeProto
    record: MatchRecord
    report: onnx_fuse.Report

    @property
    def attributes(self) -> dict[str, Any]:
        values = {item.name: helper.get_attribute_value(item) for item in self.node.attribute}
        return {name: value.decode() if isinstance(value, bytes) else value for name, value in values.items()}

    @property
    def inputs(self) -> dict[str, str]:
        return dict(zip(self.record.inputs, self.node.input, strict=True))


def fused(model: ModelProto, *, verify: bool = True) -> Fused:
    """What fusing makes of a model with one block; what it computes is compared with the original's."""
    before = model.SerializeToString(deterministic=True)
    result = onnx_fuse.fuse(model, fusions=[NAME], verify=verify)
    assert model.SerializeToString(deterministic=True) == before
    report = result.report
    assert report.fused == {NAME: 1}, [miss.reason for miss in report.near_misses]
    assert report.warnings == []
    assert [record.error for record in report.passes if record.error] == []
    onnx.checker.check_model(result.model, full_check=True)
    node = next(node for node in result.model.graph.node if node.op_type == NAME)
    return Fused(result.model, node, report.matches[0], report)


def refused(model: ModelProto) -> list[str]:
    """The sentences on a model of which nothing fuses; it comes out as it went in."""
    result = onnx_fuse.fuse(model, fusions=[NAME], verify=False)
    assert result.report.fused == {}
    assert result.model.SerializeToString(deterministic=True) == model.SerializeToString(deterministic=True)
    assert [record.error for record in result.report.passes if record.error] == []
    return [miss.reason for miss in result.report.near_misses]


def same(original: ModelProto, made: ModelProto, tolerance: float = 1e-5, **given: Array) -> list[Array]:
    """The original's outputs on these inputs (random ones for the others), which the other model gives too."""
    sizes = {name: size for name, size in given.items() if isinstance(size, int)}
    arrays = {name: array for name, array in given.items() if not isinstance(array, int)}
    feeds = {**helpers.feeds(original, **sizes), **arrays}
    want, got = helpers.run(original, feeds), helpers.run(made, feeds)
    for one, other in zip(want, got, strict=True):
        assert one.dtype == other.dtype and one.shape == other.shape
        np.testing.assert_allclose(other, one, rtol=tolerance, atol=tolerance)
    return want


OPERANDS = ("query", "key", "value")
WHOLE = ("out_weight", "out_bias", "residual", "gamma", "beta")
DEFAULT = {
    "num_heads": 2,
    "num_key_value_heads": 2,
    "scale": 0.5,
    "mask_value": -np.inf,
    "causal": "none",
    "masked_row": "nan",
    "norm": "layer",
    "epsilon": 1e-5,
    "layout": "BSH",
}


def check(found: Fused, *, inputs: tuple[str, ...] = (*OPERANDS, *WHOLE), **attributes: Any) -> None:
    """The node has these inputs and these attributes, besides the default ones."""
    assert found.record.inputs == inputs
    expected = {**DEFAULT, **attributes}
    have = {name: value for name, value in found.attributes.items() if name in expected}
    assert have == {
        name: pytest.approx(value) if isinstance(value, float) else value for name, value in expected.items()
    }
    assert found.attributes["inputs"] == ",".join(inputs)
    assert found.attributes["plugin_namespace"] == found.node.domain == "gr.ml.infra"
    assert found.attributes["plugin_version"] == "1"


# -- it fires: the scale ------------------------------------------------------------------------------------------------


SPLIT_QUERY = "q4 = Reshape({}, heads)\nqh = Transpose <perm = [0, 2, 1, 3]> (q4)"
SPLIT_KEY = "k4 = Reshape({}, heads)\nkt = Transpose <perm = [0, 2, 3, 1]> (k4)"
SCALES = {
    "a factor on the scores": {},
    "the factor first": {"scale": "scaled = Mul(half, {})"},
    "a divisor of the scores": {"scale": "scaled = Div({}, two)"},
    "with one axis": {"scale": "scaled = Mul({}, half_1)"},
    "with four axes": {"scale": "scaled = Mul({}, half_4)"},
    "computed from a constant": {"scale": "root = Sqrt(four)\nscaled = Div({}, root)"},
    "computed from a shape": {
        "scale": """
            size = Shape(qh)
            width = Gather(size, index)
            wide = Cast <to = 1> (width)
            root = Sqrt(wide)
            scaled = Div({}, root)""",
    },
    "a Constant node": {"scale": "c = Constant <value_float = 0.5> ()\nscaled = Mul({}, c)"},
    "in two steps": {"scale": "once = Div({}, four)\nscaled = Mul(once, two)"},
    "on the query": {"query": f"qs = Mul(q, half)\n{SPLIT_QUERY.replace('{}', 'qs')}", "scale": ""},
    "on the query, as a divisor": {"query": f"qs = Div(q, two)\n{SPLIT_QUERY.replace('{}', 'qs')}", "scale": ""},
    "on the query's heads": {
        "query": f"{SPLIT_QUERY.replace('{}', 'q').replace('qh', 'qt')}\nqh = Mul(qt, half)",
        "scale": "",
    },
    "on the key": {"key": f"ks = Mul(k, half)\n{SPLIT_KEY.replace('{}', 'ks')}", "scale": ""},
    "on the key's heads": {
        "key": f"{SPLIT_KEY.replace('{}', 'k').replace('kt', 'kh')}\nkt = Mul(kh, half)",
        "scale": "",
    },
    "its root on both": {
        "query": f"{SPLIT_QUERY.replace('{}', 'q').replace('qh', 'qt')}\nqh = Mul(qt, root_half)",
        "key": f"{SPLIT_KEY.replace('{}', 'k').replace('kt', 'kh')}\nkt = Mul(kh, root_half)",
        "scale": "",
    },
    "a root before the heads and after": {
        "query": f"qs = Mul(q, root_half)\n{SPLIT_QUERY.replace('{}', 'qs')}",
        "key": f"{SPLIT_KEY.replace('{}', 'k').replace('kt', 'kh')}\nkt = Mul(root_half, kh)",
        "scale": "",
    },
}


@pytest.mark.parametrize("form", SCALES.values(), ids=SCALES)
def test_the_scale_is_found_wherever_it_stands(form: dict[str, str]) -> None:
    check(fused(attention(**form)), scale=0.5)


def test_without_a_scale_it_is_one() -> None:
    check(fused(attention(scale="")), scale=1.0)


# -- it fires: masks ----------------------------------------------------------------------------------------------------


BIAS_SHAPES = ["[B,1,1,S]", "[B,1,S,S]", "[1,1,S,S]", "[1,2,S,S]", "[B,2,S,S]", "[S,S]", "[1,S]", "[1,S,S]", "[S]"]


@pytest.mark.parametrize("shape", BIAS_SHAPES)
@pytest.mark.parametrize("order", ["masked = Add({}, m)", "masked = Add(m, {})"])
def test_an_additive_mask_is_the_bias(shape: str, order: str) -> None:
    found = fused(attention(inputs={"m": shape}, mask=order))
    check(found, inputs=(*OPERANDS, "attention_bias", *WHOLE), masked_row="nan")


def test_a_mask_made_of_ones_and_zeros_stays_what_it_was() -> None:
    text = """
        m4 = Unsqueeze(m, middle)
        float_mask = Cast <to = 1> (m4)
        inverted = Sub(one, float_mask)
        penalty = Mul(inverted, tenthousand)
        masked = Add({}, penalty)"""
    original = attention(inputs={"m": "int64[B,S]"}, mask=text, weights={"middle": np.array([1, 2])})
    found = fused(original)
    check(found, inputs=(*OPERANDS, "attention_bias", *WHOLE))
    assert found.inputs["attention_bias"] == "penalty"
    # A row of -1e4 all over is a shift, and Softmax does not see it.
    outputs = same(original, found.model, m=np.array([[1, 1, 0], [0, 0, 0]]), B=2, S=3)
    assert np.isfinite(outputs[0]).all()


KEEPS = ["bool[B,1,1,S]", "bool[B,1,S,S]", "bool[1,1,S,S]", "bool[B,2,S,S]", "bool[S,S]"]
VALUES = {"infinity": -np.inf, "tenthousand": -1e4, "lowest": -3.4028235e38}


@pytest.mark.parametrize("shape", KEEPS)
def test_where_keeps_what_the_mask_says(shape: str) -> None:
    found = fused(attention(inputs={"m": shape}, mask="masked = Where(m, {}, infinity)"))
    check(found, inputs=(*OPERANDS, "mask", *WHOLE), mask_value=-np.inf, masked_row="nan")
    assert found.inputs["mask"] == "m" or shape == "bool[S,S]"  # which needs two axes more


@pytest.mark.parametrize("value", VALUES)
@pytest.mark.parametrize("turned", [False, True], ids=["keep", "drop"])
def test_where_may_be_written_both_ways_round(value: str, turned: bool) -> None:
    text = f"masked = Where(m, {value}, {{}})" if turned else f"masked = Where(m, {{}}, {value})"
    original = attention(inputs={"m": "bool[B,1,S,S]"}, mask=text)
    found = fused(original)
    finite = value != "infinity"
    check(
        found,
        inputs=(*OPERANDS, "mask", *WHOLE),
        mask_value=VALUES[value],
        masked_row="uniform" if finite else "nan",
    )
    assert (found.inputs["mask"] == "m") != turned
    drop = np.zeros((2, 1, 3, 3), bool)
    drop[:, :, 1] = True  # all of row 1
    drop[0, :, 0, 0] = drop[1, :, 2, 1:] = True
    outputs = same(original, found.model, m=drop if turned else ~drop, B=2, S=3)
    assert np.isfinite(outputs[0][:, [0, 2]]).all()
    assert np.isnan(outputs[0][:, 1]).all() != finite


@pytest.mark.parametrize("value", VALUES)
def test_where_and_the_guard(value: str) -> None:
    original = attention(
        inputs={"m": "bool[B,1,1,S]"},
        mask=f"masked = Where(m, {{}}, {value})",
        guard="undefined = IsNaN({0})\nguarded = Where(undefined, zero, {0})".replace("{0}", "probabilities"),
    )
    found = fused(original)
    # A finite mask value leaves nothing undefined: then the row is uniform, with a guard or without.
    check(found, inputs=(*OPERANDS, "mask", *WHOLE), mask_value=VALUES[value], masked_row="zero")
    keep = np.array([[True, False, True], [False] * 3])[:, None, None]
    assert np.isfinite(same(original, found.model, m=keep, B=2, S=3)[0]).all()


GUARD = "undefined = IsNaN(probabilities)\nguarded = Where(undefined, zero, probabilities)"


@pytest.mark.parametrize("guard", ["", GUARD], ids=["bare", "guarded"])
@pytest.mark.parametrize("lowest", [-np.inf, -1e4, -3.4028235e38])
def test_rows_that_are_masked_all_over_by_a_bias(lowest: float, guard: str) -> None:
    original = attention(inputs={"m": "[B,1,S,S]"}, mask="masked = Add({}, m)", guard=guard)
    found = fused(original)
    check(found, inputs=(*OPERANDS, "attention_bias", *WHOLE), masked_row="zero" if guard else "nan")
    bias = np.zeros((2, 1, 3, 3), np.float32)
    bias[0, 0, 1] = bias[1] = bias[0, 0, 0, 1:] = lowest
    outputs = same(original, found.model, m=bias, B=2, S=3)
    undefined = np.isinf(lowest) and not guard
    assert np.isnan(outputs[0][1]).all() == np.isnan(outputs[0][0, 1]).all() == undefined
    assert np.isfinite(outputs[0][0, [0, 2]]).all()
    assert np.isfinite(outputs[0]).all() != undefined


def test_a_guarded_row_attends_to_nothing() -> None:
    original = attention(inputs={"m": "bool[B,1,1,S]"}, mask="masked = Where(m, {}, infinity)", guard=GUARD, **CORE)
    found = fused(original)
    check(found, inputs=(*OPERANDS, "mask"), masked_row="zero", norm="none", epsilon=0.0)
    assert not same(original, found.model, m=np.zeros((2, 1, 1, 3), bool), B=2, S=3)[0].any()


def test_an_expanded_mask_is_taken_as_it_is_read() -> None:
    text = """
        shape = Shape({})
        wide = Expand(m, shape)
        masked = Where(wide, {}, infinity)"""
    found = fused(attention(inputs={"m": "bool[B,1,1,S]"}, mask=text))
    check(found, inputs=(*OPERANDS, "mask", *WHOLE))
    assert found.inputs["mask"] == "m"  # never expanded: ops.md


def test_a_mask_and_a_bias() -> None:
    text = "with_bias = Add({}, m)\nmasked = Where(keep, with_bias, infinity)"
    found = fused(attention(inputs={"m": "[1,2,S,S]", "keep": "bool[B,1,1,S]"}, mask=text))
    check(found, inputs=(*OPERANDS, "attention_bias", "mask", *WHOLE))
    assert (found.inputs["attention_bias"], found.inputs["mask"]) == ("m", "keep")


def test_two_biases_are_added_first() -> None:
    original = attention(
        inputs={"a": "[1,2,S,S]", "m": "[B,1,1,S]"}, mask="with_a = Add({}, a)\nmasked = Add(with_a, m)"
    )
    found = fused(original)
    check(found, inputs=(*OPERANDS, "attention_bias", *WHOLE))
    same(original, found.model)


# -- it fires: operands -------------------------------------------------------------------------------------------------


BHSD = {"query": "", "key": "kt = Transpose <perm = [0, 1, 3, 2]> (k)", "value": ""}
IN_HEADS = {"qh": "[B,2,S,4]", "k": "[B,2,S,4]", "vh": "[B,2,S,4]"}


def test_operands_that_come_in_heads_stay_so() -> None:
    found = fused(attention(inputs=IN_HEADS, **BHSD))
    check(found, layout="BHSD")
    assert [found.inputs[name] for name in OPERANDS] == ["qh", "k", "vh"]
    assert [node.op_type for node in found.model.graph.node] == [NAME]


def test_a_key_that_comes_transposed_is_turned_back() -> None:
    found = fused(attention(inputs={**IN_HEADS, "kt": "[B,2,4,S]"}, **{**BHSD, "key": ""}))
    check(found, layout="BHSD")
    assert [node.op_type for node in found.model.graph.node] == ["Transpose", NAME]


def test_a_key_with_two_transposes_is_split_all_the_same() -> None:
    text = """
        k4 = Reshape(k, heads)
        kh = Transpose <perm = [0, 2, 1, 3]> (k4)
        kt = Transpose <perm = [0, 1, 3, 2]> (kh)"""
    found = fused(attention(key=text))
    check(found)
    assert [node.op_type for node in found.model.graph.node] == [NAME]


def test_where_one_operand_is_rotated_all_stay_in_heads() -> None:
    found = fused(attention(inputs={"qh": "[B,2,S,4]"}, query=""))
    check(found, layout="BHSD")


def test_a_packed_projection_is_split_outside() -> None:
    original = attention(
        inputs={"x": "[B,S,8]"},
        query="packed = MatMul(x, packed_weight)\nq, k, v = Split <axis = -1> (packed, thirds)\n" + STEPS["query"],
        weights={"thirds": np.array([8, 8, 8])},
    )
    found = fused(original)
    check(found)
    assert [node.op_type for node in found.model.graph.node] == ["MatMul", "Split", NAME]


def test_a_packed_projection_with_the_parts_in_front() -> None:
    original = attention(
        query="""
            packed = MatMul(x, packed_weight)
            five = Reshape(packed, in_five)
            parts = Transpose <perm = [2, 0, 3, 1, 4]> (five)
            qh = Gather <axis = 0> (parts, first)""",
        key="kh = Gather <axis = 0> (parts, second)\nkt = Transpose <perm = [0, 1, 3, 2]> (kh)",
        value="vh = Gather <axis = 0> (parts, third)",
        weights={
            "in_five": np.array([0, 0, 3, 2, 4]),
            "first": np.array(0),
            "second": np.array(1),
            "third": np.array(2),
        },
    )
    check(fused(original), layout="BHSD")


def test_cross_attention() -> None:
    original = attention(inputs={"k": "[B,T,8]", "v": "[B,T,8]", "m": "[B,1,1,T]"}, mask="masked = Add({}, m)")
    found = fused(original)
    check(found, inputs=(*OPERANDS, "attention_bias", *WHOLE))
    for sizes in ({"B": 2, "S": 3, "T": 5}, {"B": 1, "S": 5, "T": 1}, {"B": 3, "S": 1, "T": 4}):
        same(original, found.model, **sizes)


@pytest.mark.parametrize("shape", ["[B,S,8]", "[1,S,8]", "[B,1,8]", "[1,1,8]", "[2,7,8]", "[1,7,8]"])
def test_sizes_may_be_fixed_and_one(shape: str) -> None:
    original = attention(inputs=dict.fromkeys(("q", "k", "v", "x"), shape))
    found = fused(original)
    assert found.record.parts == ("projection", "residual", "norm")
    check(found, layout=found.attributes["layout"])
    for batch, length in ((1, 1), (3, 1), (1, 4)):
        same(original, found.model, B=batch, S=length)


def test_a_value_of_another_head_size() -> None:
    original = attention(
        inputs={"v": "[B,S,12]"},
        value="v4 = Reshape(v, value_heads)\nvh = Transpose <perm = [0, 2, 1, 3]> (v4)",
        weights={"value_heads": np.array([0, 0, 2, 6]), "flat": np.array([0, 0, 12])},
        projection="projected = MatMul({}, weight_12)",
    )
    check(fused(original))


def test_grouped_heads_are_not_repeated() -> None:
    def repeated(name: str, end: str) -> str:
        return f"""
            {name}4 = Reshape({name}, groups)
            {name}g = Transpose <perm = [0, 2, 1, 3]> ({name}4)
            {name}5 = Unsqueeze({name}g, two_ints)
            {name}shape = Shape({name}5)
            {name}times = Mul({name}shape, fivefold)
            {name}e = Expand({name}5, {name}times)
            {name}r = Reshape({name}e, repeated_heads)
            {end}"""

    original = attention(
        inputs={"q": "[B,S,16]", "k": "[B,S,8]", "v": "[B,S,8]"},
        query="q4 = Reshape(q, query_heads)\nqh = Transpose <perm = [0, 2, 1, 3]> (q4)",
        key=repeated("k", "kt = Transpose <perm = [0, 1, 3, 2]> (kr)"),
        value=repeated("v", "vh = Identity(vr)"),
        weights={
            "groups": np.array([0, 0, 2, 4]),
            "query_heads": np.array([0, 0, 4, 4]),
            "two_ints": np.array([2]),
            "fivefold": np.array([1, 1, 2, 1, 1]),
            "repeated_heads": np.array([0, 4, -1, 4]),
            "flat": np.array([0, 0, 16]),
        },
        projection="projected = MatMul({}, weight_16)",
    )
    found = fused(original)
    check(found, num_heads=4, num_key_value_heads=2)
    assert [found.inputs[name] for name in OPERANDS] == ["q", "k", "v"]


# -- it fires: the rim --------------------------------------------------------------------------------------------------


RIMS: dict[str, tuple[dict[str, str], tuple[str, ...], tuple[str, ...]]] = {
    "none": (CORE, (), ()),
    "projection": ({**CORE, "projection": STEPS["projection"]}, ("projection",), ("out_weight",)),
    "projection, bias": ({"residual": "", "norm": ""}, ("projection",), ("out_weight", "out_bias")),
    "projection, residual": ({"bias": "", "norm": ""}, ("projection", "residual"), ("out_weight", "residual")),
    "projection, bias, residual": ({"norm": ""}, ("projection", "residual"), ("out_weight", "out_bias", "residual")),
    "projection, bias, norm": ({"residual": ""}, ("projection", "norm"), ("out_weight", "out_bias", "gamma", "beta")),
    "residual": ({**CORE, "residual": STEPS["residual"]}, ("residual",), ("residual",)),
    "residual, norm": ({"projection": "", "bias": ""}, ("residual", "norm"), ("residual", "gamma", "beta")),
    "norm": ({**CORE, "norm": STEPS["norm"]}, ("norm",), ("gamma", "beta")),
}


@pytest.mark.parametrize(("steps", "parts", "inputs"), RIMS.values(), ids=RIMS)
def test_as_much_of_the_rim_as_there_is(steps: dict[str, str], parts: tuple[str, ...], inputs: tuple[str, ...]) -> None:
    found = fused(attention(**steps))
    norm = "norm" in parts
    check(found, inputs=(*OPERANDS, *inputs), norm="layer" if norm else "none", epsilon=1e-5 if norm else 0.0)
    assert found.record.parts == parts
    assert found.record.left_out == ()
    assert [node.op_type for node in found.model.graph.node] == [NAME]


LINEARS = {
    "operands swapped": {"bias": "biased = Add(bias, {})", "residual": "total = Add(x, {})"},
    "Gemm": {
        "projection": "rows_in = Reshape({}, rows)\nproduct_2 = Gemm(rows_in, weight, bias)\nprojected = Reshape(product_2, back)",
        "bias": "",
    },
    "Gemm, transposed weight": {
        "projection": "rows_in = Reshape({}, rows)\nproduct_2 = Gemm <transB = 1> (rows_in, weight, bias)\nprojected = Reshape(product_2, back)",
        "bias": "",
    },
    "Gemm without bias": {
        "projection": "rows_in = Reshape({}, rows)\nproduct_2 = Gemm(rows_in, weight)\nprojected = Reshape(product_2, back)",
    },
    "Gemm without bias, whatever its beta": {
        "projection": "rows_in = Reshape({}, rows)\nproduct_2 = Gemm <beta = 0.0> (rows_in, weight)\nprojected = Reshape(product_2, back)",
    },
    "transposed weight": {"projection": "turned = Transpose <perm = [1, 0]> (weight)\nprojected = MatMul({}, turned)"},
    "dropout": {"bias": "biased_0 = Add({}, bias)\nbiased, _dropped = Dropout(biased_0)"},
    "identity": {"bias": "biased_0 = Add({}, bias)\nbiased = Identity(biased_0)"},
}


@pytest.mark.parametrize("steps", LINEARS.values(), ids=LINEARS)
def test_the_projection_in_other_words(steps: dict[str, str]) -> None:
    found = fused(attention(weights={"back": np.array([2, -1, 8])}, inputs=dict.fromkeys("qkvx", "[2,S,8]"), **steps))
    check(found)
    assert found.record.parts == ("projection", "residual", "norm")


SCALED_LINEARS = {
    "a bias that counts for nothing": "Gemm <beta = 0.0> (rows_in, weight, bias)",
    "a bias that counts twice": "Gemm <beta = 2.0> (rows_in, weight, bias)",
    "a product that is scaled": "Gemm <alpha = 0.5, beta = 0.0> (rows_in, weight)",
}


@pytest.mark.parametrize("product", SCALED_LINEARS.values(), ids=SCALED_LINEARS)
def test_a_projection_with_factors_stays_outside(product: str) -> None:
    projection = f"rows_in = Reshape({{}}, rows)\nproduct_2 = {product}\nprojected = Reshape(product_2, back)"
    weights = {"back": np.array([2, -1, 8])}
    found = fused(attention(weights=weights, inputs=dict.fromkeys("qkvx", "[2,S,8]"), projection=projection, bias=""))
    assert found.record.parts == ()
    assert "Gemm" in [node.op_type for node in found.model.graph.node]


DECOMPOSED = """
    mean = ReduceMean <axes = [-1]> ({})
    centred = Sub({}, mean)
    square = SQUARE
    variance = ReduceMean <axes = [-1]> (square)
    shifted = Add(variance, epsilon)
    std = Sqrt(shifted)
    bare = Div(centred, std)"""
NORMS: dict[str, tuple[str, dict[str, Any]]] = {
    "no shift": ("normed = LayerNormalization <axis = -1, epsilon = 1e-05> ({}, gamma)", {}),
    "axis from the front": ("normed = LayerNormalization <axis = 2, epsilon = 1e-05> ({}, gamma, beta)", {}),
    "no epsilon attribute": ("normed = LayerNormalization <axis = -1> ({}, gamma, beta)", {}),
    "no attribute at all": ("normed = LayerNormalization({}, gamma, beta)", {}),
    "another epsilon": ("normed = LayerNormalization <epsilon = 0.125> ({}, gamma, beta)", {"epsilon": 0.125}),
    "epsilon 0": ("normed = LayerNormalization <epsilon = 0.0> ({}, gamma, beta)", {"epsilon": 0.0}),
    "decomposed": (
        DECOMPOSED.replace("SQUARE", "Pow(centred, two)") + "\nscaled_ = Mul(bare, gamma)\nnormed = Add(scaled_, beta)",
        {"epsilon": 1e-5},
    ),
    "decomposed with a product": (
        DECOMPOSED.replace("SQUARE", "Mul(centred, centred)")
        + "\nscaled_ = Mul(gamma, bare)\nnormed = Add(beta, scaled_)",
        {},
    ),
    "decomposed without shift": (DECOMPOSED.replace("SQUARE", "Pow(centred, two)") + "\nnormed = Mul(bare, gamma)", {}),
    "decomposed without affine": (DECOMPOSED.replace("SQUARE", "Pow(centred, two)"), {}),
    "decomposed RMS": (
        """
        square = Pow({}, two)
        variance = ReduceMean <axes = [-1]> (square)
        shifted = Add(variance, epsilon)
        std = Sqrt(shifted)
        bare = Div({}, std)
        normed = Mul(bare, gamma)""",
        {"norm": "rms"},
    ),
    "decomposed RMS by a reciprocal": (
        """
        square = Mul({}, {})
        variance = ReduceMean <axes = [-1]> (square)
        shifted = Add(epsilon, variance)
        std = Sqrt(shifted)
        inverse = Reciprocal(std)
        bare = Mul({}, inverse)
        normed = Mul(gamma, bare)""",
        {"norm": "rms"},
    ),
}


@pytest.mark.parametrize(("text", "attributes"), NORMS.values(), ids=NORMS)
def test_the_norm_in_other_words(text: str, attributes: dict[str, Any]) -> None:
    original = attention(norm=text)
    found = fused(original)
    affine = tuple(name for name in ("gamma", "beta") if re.search(rf"\b{name}\b", text))
    check(found, inputs=(*OPERANDS, "out_weight", "out_bias", "residual", *affine), **attributes)
    assert [node.op_type for node in found.model.graph.node] == [NAME]


def test_rms_normalization_of_opset_23() -> None:
    found = fused(attention(opset=23, norm="normed = RMSNormalization <axis = -1, epsilon = 0.001> ({}, gamma)"))
    check(found, inputs=(*OPERANDS, "out_weight", "out_bias", "residual", "gamma"), norm="rms", epsilon=1e-3)


def test_the_sum_before_the_norm_becomes_an_output_where_it_is_read() -> None:
    original = attention(norm=STEPS["norm"] + "\nskipped = Relu(total)\nend = Add(normed, skipped)")
    found = fused(original)
    check(found)
    assert found.record.outputs == ("output", "residual_sum")
    assert list(found.node.output) == ["normed", "total"]
    assert found.attributes["outputs"] == "output,residual_sum"


def test_the_sum_before_the_norm_becomes_an_output_where_it_is_one_of_the_graph() -> None:
    original = attention(outputs={"total": "[B,S,8]"})
    found = fused(original)
    assert found.record.outputs == ("output", "residual_sum")
    assert [output.name for output in found.model.graph.output] == ["normed", "total"]


# -- it fires: types and ONNX's own Attention -----------------------------------------------------------------------------


@pytest.mark.parametrize("opset", [13, 14, 17, 18, 20, 21, 23])
def test_every_opset(opset: int) -> None:
    norm = (
        DECOMPOSED
        if opset < 18
        else DECOMPOSED.replace(" <axes = [-1]> ({})", "({}, last)").replace(
            " <axes = [-1]> (square)", "(square, last)"
        )
    )
    check(
        fused(
            attention(
                opset=opset,
                norm=norm.replace("SQUARE", "Mul(centred, centred)")
                + "\nscaled_ = Mul(bare, gamma)\nnormed = Add(scaled_, beta)",
            )
        )
    )


def test_float16() -> None:
    original = attention(dtype="float16", inputs={"m": "bool[B,1,1,S]"}, mask="masked = Where(m, {}, infinity)")
    found = fused(original)
    check(found, inputs=(*OPERANDS, "mask", *WHOLE))
    same(original, found.model, tolerance=5e-3, m=np.array([[1, 1, 0], [1, 1, 1]], bool)[:, None, None], B=2, S=3)


def test_bfloat16() -> None:
    original = attention(dtype="bfloat16", inputs={"m": "[B,1,1,S]"}, mask="masked = Add({}, m)")
    found = fused(original)  # verified in float32: ONNX Runtime's CPU provider does not compute in bfloat16
    check(found, inputs=(*OPERANDS, "attention_bias", *WHOLE))
    assert found.report.verification["passed"]


def test_a_softmax_in_float32_inside_a_float16_model() -> None:
    original = attention(
        dtype="float16",
        softmax="wide = Cast <to = 1> ({})\nexact = Softmax <axis = -1> (wide)\nprobabilities = Cast <to = 10> (exact)",
    )
    check(fused(original))


def test_a_value_wider_than_query_and_key() -> None:
    original = attention(
        query="qn = Cast <to = 10> (q)\nq4 = Reshape(qn, heads)\nqh = Transpose <perm = [0, 2, 1, 3]> (q4)",
        key="kn = Cast <to = 10> (k)\nk4 = Reshape(kn, heads)\nkt = Transpose <perm = [0, 2, 3, 1]> (k4)",
        scale="wide = Cast <to = 1> ({})\nscaled = Mul(wide, half)",
    )
    found = fused(original)
    check(found, layout="BHSD")
    same(original, found.model, tolerance=5e-3, B=2, S=3)


ONNX_ATTENTION = {
    "query": "",
    "key": "",
    "value": "",
    "product": "",
    "scale": "",
    "softmax": "",
    "merge": STEPS["merge"],
}


def onnx_attention(
    text: str, inputs: Mapping[str, str] | None = None, outputs: Mapping[str, str] | None = None, **steps: str
) -> ModelProto:
    shapes = {"q": "[B,2,S,4]", "k": "[B,2,S,4]", "v": "[B,2,S,4]", **(inputs or {})}
    return attention(opset=23, inputs=shapes, outputs=outputs, **{**ONNX_ATTENTION, "context": text, **steps})


def test_onnx_attention() -> None:
    found = fused(onnx_attention("context = Attention(q, k, v)"))
    check(found, layout="BHSD", masked_row="zero")
    found = fused(onnx_attention("context = Attention <scale = 0.25> (q, k, v)"))
    check(found, layout="BHSD", masked_row="zero", scale=0.25)


def test_onnx_attention_with_a_mask() -> None:
    original = onnx_attention("context = Attention(q, k, v, m)", {"m": "bool[B,1,S,S]"})
    found = fused(original)
    check(found, inputs=(*OPERANDS, "mask", *WHOLE), layout="BHSD", masked_row="zero")
    original = onnx_attention("context = Attention(q, k, v, m)", {"m": "[B,1,S,S]"})
    check(fused(original), inputs=(*OPERANDS, "attention_bias", *WHOLE), layout="BHSD", masked_row="zero")


def test_onnx_attention_on_heads_that_were_split_before() -> None:
    steps = {
        "query": STEPS["query"],
        "key": "k4 = Reshape(k, heads)\nkh = Transpose <perm = [0, 2, 1, 3]> (k4)",
        "value": STEPS["value"],
    }
    inputs = dict.fromkeys(("q", "k", "v"), "[B,S,8]")
    check(fused(onnx_attention("context = Attention(qh, kh, vh)", inputs, **steps)), masked_row="zero")


def test_onnx_attention_in_three_axes() -> None:
    inputs = dict.fromkeys(("q", "k", "v"), "[B,S,8]")
    original = onnx_attention("context = Attention <q_num_heads = 2, kv_num_heads = 2> (q, k, v)", inputs, merge="")
    check(fused(original), masked_row="zero")


def test_onnx_attention_with_grouped_heads() -> None:
    inputs = {"q": "[B,S,16]", "k": "[B,S,8]", "v": "[B,S,8]"}
    original = onnx_attention(
        "context = Attention <q_num_heads = 4, kv_num_heads = 2> (q, k, v)",
        inputs,
        merge="",
        projection="projected = MatMul({}, weight_16)",
    )
    check(fused(original), masked_row="zero", num_heads=4, num_key_value_heads=2)


def test_onnx_attention_causal() -> None:
    original = onnx_attention("context = Attention <is_causal = 1> (q, k, v)", {"k": "[B,2,T,4]", "v": "[B,2,T,4]"})
    found = fused(original)
    check(found, layout="BHSD", masked_row="zero", causal="upper_left")
    for sizes in ({"S": 3, "T": 3}, {"S": 3, "T": 5}, {"S": 5, "T": 3}, {"S": 1, "T": 1}):
        same(original, found.model, B=2, **sizes)


def test_heads_merged_into_the_batch() -> None:
    def split(name: str, perm: str, shape: str) -> str:
        return f"""
            {name}4 = Reshape({name}, heads)
            {name}h = Transpose <perm = {perm}> ({name}4)
            {name}3 = Reshape({name}h, {shape})"""

    original = attention(
        inputs={"m": "[B,1,S,S]"},
        query=split("q", "[0, 2, 1, 3]", "merged_heads"),
        key=split("k", "[0, 2, 1, 3]", "merged_heads") + "\nkt = Transpose <perm = [0, 2, 1]> (k3)",
        value=split("v", "[0, 2, 1, 3]", "merged_heads"),
        product="product = MatMul(q3, kt)",
        mask="s4 = Reshape({}, split_scores)\nm4 = Add(s4, m)\nmasked = Reshape(m4, merged_scores)",
        context="context_3 = MatMul({}, v3)\ncontext = Reshape(context_3, split_heads)",
        weights={
            "merged_heads": np.array([-1, 5, 4]),
            "split_scores": np.array([-1, 2, 5, 5]),
            "merged_scores": np.array([-1, 5, 5]),
            "split_heads": np.array([-1, 2, 5, 4]),
        },
        **dict.fromkeys(("projection", "bias", "residual", "norm"), ""),
    )
    fixed = dict.fromkeys(("q", "k", "v"), "[B,5,8]")
    for value in original.graph.input:
        if value.name in fixed:
            value.type.tensor_type.shape.dim[1].dim_value = 5
        else:
            for axis in (2, 3):
                value.type.tensor_type.shape.dim[axis].dim_value = 5
    original.graph.output[0].type.tensor_type.shape.dim[1].dim_value = 5
    found = fused(original)
    check(found, inputs=(*OPERANDS, "attention_bias"), norm="none", epsilon=0.0)
    same(original, found.model)


# -- it refuses ---------------------------------------------------------------------------------------------------------


FIXED = dict.fromkeys(("q", "k", "v", "x"), "[B,3,8]")
REFUSED: dict[str, tuple[str, dict[str, Any]]] = {
    "Softmax over the heads": (
        "attribute axis is -3, pattern wants -1",
        {"softmax": "probabilities = Softmax <axis = 1> ({})"},
    ),
    "Softmax over the queries": (
        "attribute axis is -2, pattern wants -1",
        {"softmax": "probabilities = Softmax <axis = 2> ({})"},
    ),
    "Softmax of another domain": (
        "found other::Softmax Softmax_probabilities, pattern wants Where, Cast or Softmax",
        {"softmax": "probabilities = other.Softmax <axis = -1> ({})"},
    ),
    "a soft cap": (
        "found Tanh Tanh_bent, pattern wants ",
        {"mask": "capped = Div({}, four)\nbent = Tanh(capped)\nmasked = Mul(bent, four)"},
    ),
    "a mask value that is computed": (
        "s is not a constant with one element (mask_value)",
        {"mask": "masked = Where(m, {}, s)", "inputs": {"m": "bool[B,1,1,S]", "s": "[1]"}},
    ),
    "a guard that writes another number": (
        "the constant is 1, pattern wants 0",
        {"guard": "undefined = IsNaN({0})\nguarded = Where(undefined, one, {0})".replace("{0}", "probabilities")},
    ),
    "a guard the wrong way round": (
        "pattern wants the constant 0",
        {"guard": "undefined = IsNaN({0})\nguarded = Where(undefined, {0}, zero)".replace("{0}", "probabilities")},
    ),
    "heads merged in the wrong order": (
        "attribute perm is [0, 2, 3, 1], pattern wants [0, 2, 1, 3]",
        {"merge": "moved = Transpose <perm = [0, 2, 3, 1]> ({})\nmerged = Reshape(moved, flat)"},
    ),
    "heads merged as they are": (
        "found MatMul MatMul_context, pattern wants Transpose",
        {"merge": "merged = Reshape({}, flat)", "inputs": dict.fromkeys(("q", "k", "v", "x"), "[B,2,8]")},
    ),
    "a mask that enlarges the scores": (
        "dimension Sq of qh is 1, elsewhere in the match it is S",
        {"inputs": {"m": "[B,1,S,S]", "q": "[B,1,8]"}, "mask": "masked = Add({}, m)"},
    ),
    "a mask that enlarges the batch": (
        "dimension B of qh is 1, elsewhere in the match it is B",
        {
            "inputs": {"m": "[B,1,1,S]", **dict.fromkeys(("q", "k", "v"), "[1,S,8]")},
            "mask": "masked = Add({}, m)",
        },
    ),
    "a mask of another size": (
        "the mask m has shape [1, 1, 1, 3], the scores have [B, 2, S, S]",
        {"inputs": {"m": "[1,1,1,3]"}, "mask": "masked = Add({}, m)"},
    ),
    "probabilities that are an output": (
        "its output probabilities is a graph output",
        {"outputs": {"probabilities": "[B,2,S,S]"}},
    ),
    "scores that are an output": ("its output scaled is a graph output", {"outputs": {"scaled": "[B,2,S,S]"}}),
    "a context that is an output": ("its output context is a graph output", {"outputs": {"context": "[B,2,S,4]"}}),
    "probabilities that something else reads": (
        "its output probabilities is also read by Relu_shown outside the match",
        {
            "outputs": {"shown": "[B,2,S,S]"},
            "context": "shown = Relu({0})\ncontext = MatMul({0}, vh)".replace("{0}", "{}"),
        },
    ),
    "a number of heads that is not known": (
        "the number of heads is H, it must be known",
        {
            "inputs": {"qh": "[B,H,S,4]", "kt": "[B,H,4,S]", "vh": "[B,H,S,4]"},
            "query": "",
            "key": "",
            "value": "",
            "merge": "moved = Transpose <perm = [0, 2, 1, 3]> ({})\nmerged = Reshape(moved, rest)",
            "weights": {"rest": np.array([0, 0, -1])},
            **CORE,
        },
    ),
    "a head size that is not known": (
        "the head size is d, it must be known",
        {"inputs": {"qh": "[B,2,S,d]", "kt": "[B,2,d,S]"}, "query": "", "key": ""},
    ),
    "a split that only the run time knows": (
        "qh",
        {
            "inputs": {"target": "int64[4]"},
            **{step: STEPS[step].replace("heads", "target") for step in ("query", "key", "value")},
        },
    ),
}


@pytest.mark.parametrize(("sentence", "form"), REFUSED.values(), ids=REFUSED)
def test_what_is_no_such_block_stays_and_is_explained(sentence: str, form: dict[str, Any]) -> None:
    reasons = refused(attention(**form))
    assert len(reasons) == 1, reasons
    assert reasons[0].startswith(sentence) or reasons[0].endswith(sentence) or f"of {sentence} is" in reasons[0], (
        reasons
    )


def test_what_is_not_softmax_is_no_near_miss() -> None:
    assert refused(attention(softmax="probabilities = LogSoftmax <axis = -1> ({})")) == []


ODD_AXES = DECOMPOSED.replace("SQUARE", "Pow(centred, two)").replace("[-1]", "[-2]")
CUBE = DECOMPOSED.replace("SQUARE", "Pow(centred, four)")
AFFINE = "\nscaled_ = Mul(bare, gamma)\nnormed = Add(scaled_, beta)"
ODD = {"odd": drawn(3, 8, centre=1.0), "odd_1": drawn(1, centre=1.0), "odd_3": drawn(1, 3, 8, centre=1.0)}
# name -> (parts that fuse, what is said of the rest, steps)
PARTLY: dict[str, tuple[tuple[str, ...], str, dict[str, Any]]] = {
    "norm over another axis": (
        ("projection", "residual"),
        "LayerNormalization_normed: attribute axis is -2, pattern wants -1",
        {"norm": "normed = LayerNormalization <axis = 1> ({}, odd, odd)"},
    ),
    "norm with a scale of one element": (
        ("projection", "residual"),
        "LayerNormalization_normed: the scale odd_1 has shape [1], pattern wants [8]",
        {"norm": "normed = LayerNormalization({}, odd_1, beta)"},
    ),
    "norm with a scale of two axes": (
        ("projection", "residual"),
        "LayerNormalization_normed: the scale odd has shape [3, 8], pattern wants [8]",
        {"norm": "normed = LayerNormalization({}, odd, beta)"},
    ),
    "norm with a shift of two axes": (
        ("projection", "residual"),
        "LayerNormalization_normed: the shift odd has shape [3, 8], pattern wants [8]",
        {"norm": "normed = LayerNormalization({}, gamma, odd)"},
    ),
    "norm of another domain": (
        ("projection", "residual"),
        "LayerNormalization_normed: LayerNormalization is no part of the pattern here",
        {"norm": "normed = other.LayerNormalization <axis = -1> ({}, gamma, beta)"},
    ),
    "residual that is broadcast": (
        ("projection",),
        "Add_total: the residual shared is broadcast",
        {"residual": "total = Add({}, shared)", "inputs": {"shared": "[1,3,8]"}},
    ),
    "residual of one vector": (
        ("projection",),
        "Add_total: the residual gamma is broadcast",
        {"residual": "total = Add({}, gamma)"},
    ),
    "scale between projection and residual": (
        ("projection",),
        "Mul_layer_scale: Mul is no part of the pattern here",
        {"residual": "layer_scale = Mul({}, gamma)\ntotal = Add(layer_scale, x)"},
    ),
    "residual before the bias": (
        ("projection", "residual"),
        "Add_total: x has shape [B, 3, 8], pattern wants [Ho]",
        {"bias": "biased = Add({}, x)", "residual": "total = Add({}, bias)"},
    ),
    "projection that differs in the batch": (
        (),
        "MatMul_projected: weights has shape [B, 8, 8], pattern wants [E Ho]",
        {"projection": "projected = MatMul({}, weights)", "inputs": {"weights": "[B,8,8]"}},
    ),
    "a projection that is an output": (
        ("projection",),
        "Add_biased: its output projected is a graph output",
        {"outputs": {"projected": "[B,3,8]"}},
    ),
    "a merge that is an output": (
        (),
        "MatMul_projected: its output merged is a graph output",
        {"outputs": {"merged": "[B,3,8]"}},
    ),
    "a residual from inside": (
        (),
        "MatMul_projected: its output merged is also read by Add_total outside the match",
        {"residual": "total = Add({}, merged)"},
    ),
}


@pytest.mark.parametrize(("parts", "sentence", "form"), PARTLY.values(), ids=PARTLY)
def test_what_can_fuse_does_and_the_rest_is_explained(
    parts: tuple[str, ...], sentence: str, form: dict[str, Any]
) -> None:
    inputs = {**FIXED, **form.get("inputs", {})}
    original = attention(**{**form, "inputs": inputs, "weights": ODD})
    found = fused(original, verify="other" not in str(form))
    assert found.record.parts == parts
    assert sentence in found.record.left_out
    kept = {node.op_type for node in found.model.graph.node}
    assert "Softmax" not in kept
    assert ("LayerNormalization" in kept) != ("norm" in parts)


@pytest.mark.parametrize(
    ("sentence", "text"),
    [
        ("attribute axes is [-2], pattern wants [-1]", ODD_AXES + AFFINE),
        ("the constant is 4, pattern wants 2", CUBE + AFFINE),
        ("the scale odd has shape [3, 8], pattern wants [8]", (DECOMPOSED.replace("SQUARE", "Pow(centred, two)") + AFFINE).replace("gamma", "odd")),
        ("the scale odd_3 has shape [1, 3, 8], pattern wants [8]", (DECOMPOSED.replace("SQUARE", "Pow(centred, two)") + AFFINE).replace("gamma", "odd_3")),
        ("gamma is not a constant with one element (epsilon)", (DECOMPOSED.replace("SQUARE", "Pow(centred, two)") + AFFINE).replace("epsilon", "gamma")),
    ],
    ids=["axis", "exponent", "scale of two axes", "scale of three axes", "epsilon"],
)  # fmt: skip
def test_a_decomposed_norm_that_is_none_stays(sentence: str, text: str) -> None:
    original = attention(norm=text, inputs=FIXED, weights=ODD)
    found = fused(original)
    assert found.record.parts == ("projection", "residual")
    assert any("centred" in item for item in found.record.left_out)
    assert sentence in [miss.reason for miss in found.report.near_misses]
    assert {"ReduceMean", "Sqrt", "Div"} <= {node.op_type for node in found.model.graph.node}


def test_weights_that_are_averaged_over_the_heads_are_named_as_what_stops_it() -> None:
    """torch.nn.MultiheadAttention with need_weights: heads in the batch, and a scale that no moved product covers."""
    steps = {
        "query": "q3 = Reshape(q, batch)\nqh = Transpose <perm = [1, 0, 2]> (q3)",
        "key": "k3 = Reshape(k, batch)\nkt = Transpose <perm = [1, 2, 0]> (k3)",
        "value": "v3 = Reshape(v, batch)\nvh = Transpose <perm = [1, 0, 2]> (v3)",
        "guard": "in_heads = Reshape(probabilities, split)\nshown = ReduceMean <axes = [1]> (in_heads)",
        "context": "context = MatMul(probabilities, vh)",
        "merge": "moved = Transpose <perm = [1, 0, 2]> ({})\nmerged = Reshape(moved, flat_first)",
        "residual": "",
        "norm": "",
    }
    weights = {
        "batch": np.array([5, 6, 4]),
        "split": np.array([3, 2, 5, 5]),
        "flat_first": np.array([15, 8]),
    }
    inputs = dict.fromkeys(("q", "k", "v"), "[5,3,8]")
    model = attention(inputs=inputs, outputs={"shown": "[3,1,5,5]", "biased": "[15,8]"}, weights=weights, **steps)
    result = onnx_fuse.fuse(model, fusions=[NAME], verify=False)
    assert result.report.fused == {}
    (miss,) = result.report.near_misses
    assert miss.failed_at == "Softmax_probabilities"
    assert "probabilities is also read by Reshape_in_heads outside the match" in miss.reason
    assert "need_weights=False" in miss.advice


@pytest.mark.parametrize("after", ["", "shown = Relu(context)", "shown = Identity(context)"])
def test_onnx_attention_whose_heads_are_never_merged(after: str) -> None:
    steps = {**CORE, "merge": ""}
    text = f"context = Attention(q, k, v)\n{after}"
    (sentence,) = refused(onnx_attention(text, outputs={"shown" if after else "context": "[B,2,S,4]"}, **steps))
    assert "its output context [B, 2, S, 4] stays in heads" in sentence


@pytest.mark.parametrize(
    ("sentence", "text", "inputs"),
    [
        ("its scores are soft-capped, which no fused operator does", "Attention <softcap = 2.0> (q, k, v)", {}),
        (
            "it has a key-value cache or padding lengths, which no fused operator has",
            "Attention(q, k, v, m, past_k, past_v)",
            {"m": "[S,T]", "past_k": "[B,2,P,4]", "past_v": "[B,2,P,4]"},
        ),
    ],
)
def test_onnx_attention_that_no_operator_covers(sentence: str, text: str, inputs: dict[str, str]) -> None:
    model = onnx_attention(f"context = {text}", inputs)
    assert refused(model) == [sentence]
