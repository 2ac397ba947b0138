"""`attention="native"`: the same results with ONNX's Attention, which NVIDIA's parser makes its own layer of."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from onnx import ModelProto, version_converter

import onnx_fuse
from onnx_fuse.errors import UsageError
from tests import helpers
from tests.onnx_fuse.cli.helpers import small_model

HIDDEN, HEADS = 576, 8


def attention(
    mask: str = "",
    scores: str = "p0 = Identity(scaled)",
    *,
    hidden: int = HIDDEN,
    kind: str = "float",
    opset: int = 17,
    more: Any = None,
) -> ModelProto:
    """Projections, attention whose scores go through `scores` (scaled -> p0), output projection, sum and norm."""
    dtype = {"float": np.float32, "float16": np.float16}[kind]
    random = np.random.default_rng(0)
    weights: dict[str, Any] = {
        f"w{item}": (random.standard_normal((hidden, hidden)) / hidden**0.5).astype(dtype) for item in "qkvo"
    }
    weights |= {"split": np.array([0, 0, HEADS, hidden // HEADS]), "flat": np.array([0, 0, hidden])}
    weights |= {"root": np.array((hidden // HEADS) ** 0.5, dtype), "zero": np.array(0, dtype), **(more or {})}
    weights |= {
        "gamma": random.standard_normal(hidden).astype(dtype),
        "beta": random.standard_normal(hidden).astype(dtype),
    }
    split = "  ".join(
        f"{n}0 = MatMul(x, w{n})  {n}1 = Reshape({n}0, split)  {n}2 = Transpose <perm = {perm}> ({n}1)"
        for n, perm in (("q", [0, 2, 1, 3]), ("k", [0, 2, 3, 1]), ("v", [0, 2, 1, 3]))
    )
    return helpers.model(
        f"""({kind}[batch,length,{hidden}] x{mask}) => ({kind}[batch,length,{hidden}] y) {{ {split}
        product = MatMul(q2, k2)  scaled = Div(product, root)  {scores}  p = Softmax <axis = -1> (p0)
        {"guard = IsNaN(p)  safe = Where(guard, zero, p)" if "keep" in mask else "safe = Identity(p)"}
        context = MatMul(safe, v2)  moved = Transpose <perm = [0, 2, 1, 3]> (context)  merged = Reshape(moved, flat)
        projected = MatMul(merged, wo)  total = Add(projected, x)
        y = LayerNormalization <axis = -1, epsilon = 1e-05> (total, gamma, beta) }}""",
        opset=opset,
        weights=weights,
    )


LOWEST = {"low": np.array(np.finfo(np.float32).min, np.float32), "one": np.array(1, np.float32)}
FORMS = {
    "no mask": attention(),
    "additive mask": attention(
        ", float[batch,length] attention_mask",
        "m1 = Unsqueeze(attention_mask, axes)  m2 = Sub(one, m1)  m3 = Mul(m2, low)  p0 = Add(scaled, m3)",
        more={**LOWEST, "axes": np.array([1, 2])},
    ),
    "boolean mask, masked rows are 0": attention(
        ", bool[batch,1,1,length] keep",
        "p0 = Where(keep, scaled, low)",
        more={"low": np.array(-np.inf, np.float32)},
    ),
    "boolean mask with a finite number": attention(
        ", bool[batch,1,length,length] mask", "p0 = Where(mask, scaled, low)", more=LOWEST
    ),
    "bias for each head": attention(f", float[1,{HEADS},length,length] bias", "p0 = Add(scaled, bias)"),
    "opset 23": attention(opset=23),
}


@pytest.mark.parametrize("form", FORMS)
def test_equal_in_onnx_runtime(form: str) -> None:
    """Verified as every fusion is: masks with rows that are masked out among the inputs."""
    done = onnx_fuse.fuse(FORMS[form], attention="native")
    assert done.report.warnings == [] and done.report.fused == {"Attention": 1}
    assert done.report.verification is not None and done.report.verification["passed"]
    operators = helpers.operators(done.model)
    assert (
        operators.count("Attention") == 1 and "Softmax" not in operators and "FusedAttentionLayerNorm" not in operators
    )
    assert done.model.opset_import[0].version == 23 and not done.model.functions
    (match,) = done.report.matches
    assert match.node in {node.name for node in done.model.graph.node if node.op_type == "Attention"}
    assert match.fusion == "FusedAttentionLayerNorm"


@pytest.mark.parametrize(
    ("model", "sentence"),
    [
        (
            attention(", bool[batch,1,length,length] mask", "p0 = Where(mask, scaled, low)", more={"low": np.array(-50.0, np.float32)}),
            "puts -50 in place of scores",
        ),
        (
            attention(
                ", float[1,1,length,length] bias, bool[batch,1,1,length] keep",
                "b = Add(scaled, bias)  p0 = Where(keep, b, low)",
                more={"low": np.array(-np.inf, np.float32)},
            ),
            "both a mask and a bias",
        ),
        (
            attention(f", float16[1,{HEADS},length,length] bias", "p0 = Add(scaled, bias)", kind="float16"),
            "fuse the float32 model",
        ),
    ],
    ids=["finite number", "two masks", "16 bits"],
)  # fmt: skip
def test_what_attention_does_not_compute_stays(model: ModelProto, sentence: str) -> None:
    done = onnx_fuse.fuse(model, attention="native", verify=False)
    assert done.report.fused == {"FusedAttentionLayerNorm": 1}
    assert any(sentence in warning for warning in done.report.warnings), done.report.warnings


def test_a_small_hidden_size_stays_with_the_plugin() -> None:
    done = onnx_fuse.fuse(attention(hidden=512), attention="native", verify=False)
    assert done.report.fused == {"FusedAttentionLayerNorm": 1}
    assert "1 of 1 nodes stay FusedAttentionLayerNorm" in done.report.warnings[0]


def test_without_attention_it_says_that_it_changes_nothing() -> None:
    done = onnx_fuse.fuse(small_model(), attention="native", verify=False)
    assert done.report.warnings == ["native attention changes nothing: no softmax attention fused"]


def test_a_model_that_cannot_be_converted(monkeypatch: pytest.MonkeyPatch) -> None:
    """Attention is fused as without the option, and the report says why."""

    def refuse(model: ModelProto, opset: int) -> ModelProto:
        raise RuntimeError("no adapter for Upsample")

    monkeypatch.setattr(version_converter, "convert_version", refuse)
    done = onnx_fuse.fuse(FORMS["no mask"], attention="native", verify=False)
    assert done.report.fused == {"FusedAttentionLayerNorm": 1}
    assert done.report.warnings[0] == "opset 17 is older than 23 and could not be converted: no adapter for Upsample."
    assert "the model, of opset 17, could not be converted" in done.report.warnings[1]


def test_in_16_bits() -> None:
    more = {"low": np.array(-np.inf, np.float16)}
    model = attention(", bool[batch,1,1,length] keep", "p0 = Where(keep, scaled, low)", kind="float16", more=more)
    done = onnx_fuse.fuse(model, attention="native")
    assert done.report.fused == {"Attention": 1} and done.report.verification and done.report.verification["passed"]


def test_an_unknown_choice() -> None:
    with pytest.raises(UsageError, match="attention='flash'"):
        onnx_fuse.fuse(FORMS["no mask"], attention="flash")


def test_tensorrt_makes_its_attention_layer_of_it() -> None:
    """Query and key are scaled before their product: the layer gets both from an elementwise one."""
    from onnx_fuse.runtime.tensorrt import binding

    try:
        binding.module()
    except UsageError as missing:
        pytest.skip(str(missing))
    from onnx_fuse.runtime.tensorrt.network_text import network_text
    from onnx_fuse.runtime.tensorrt.parse import parse_network

    model = onnx_fuse.fuse(FORMS["additive mask"], attention="native", verify=False).model
    parsed = parse_network(model, plugins=[])
    lines = network_text(parsed, model).splitlines()
    at = next(index for index, line in enumerate(lines) if " ATTENTION_INPUT " in line)
    reads = [line.split("[ElementWise]_output")[0] for line in lines[at + 1 : at + 5] if "reads" in line]
    assert parsed.result.accepted and len(reads) == 4  # query, key, value, mask
    assert sum("(Unnamed Layer*" in line for line in reads[:2]) == 2
    assert not any(" SOFTMAX " in line for line in lines)


@pytest.mark.parametrize("kind", ["float16", "float"])
def test_tensorrt_builds_it(kind: str) -> None:
    """It has no kernel for float32; parsing lets it decompose such a layer, which fails to build otherwise."""
    from onnx_fuse.runtime.tensorrt import binding

    try:
        trt = binding.module()
    except UsageError as missing:
        pytest.skip(str(missing))
    if trt.__name__ != "tensorrt_rtx":
        pytest.skip("only TensorRT-RTX builds without a GPU")
    from onnx_fuse.runtime.tensorrt.parse import parse_network

    parsed = parse_network(onnx_fuse.fuse(attention(kind=kind), attention="native", verify=False).model, plugins=[])
    config, profile = parsed.builder.create_builder_config(), parsed.builder.create_optimization_profile()
    profile.set_shape("x", *[(2, 16, HIDDEN)] * 3)
    config.add_optimization_profile(profile)
    config.num_compute_capabilities = 1
    config.set_compute_capability(trt.ComputeCapability.SM89, 0)
    with binding.logged() as log:
        engine = parsed.builder.build_serialized_network(parsed.network, config)
    assert engine is not None, log
