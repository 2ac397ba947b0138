"""Fusions learned from examples: they fire on every export of the module they came from, and on nothing that differs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import ModelProto, NodeProto, numpy_helper

import onnx_fuse
from onnx_fuse.errors import LearnError, ModelError, UsageError
from onnx_fuse.learning import LearnedFusion, from_onnx, learn, learned_file, load
from onnx_fuse.patterns.language.learned import name_problem
from onnx_fuse.torch_export import Export, quiet
from tests.helpers import assert_same_results, copied, model

torch = pytest.importorskip("torch")

from onnx_fuse.learning import from_torch  # after torch is known to be there
from tests.models import learned as models

GATE = """
(float[B, 8] x, float[B, 8] y) => (float[B, 8] z) <float half = {0.5}, float two = {2.0}>
{
    scaled = Mul(x, half)
    tanh = Tanh(scaled)
    doubled = Mul(y, two)
    z = Add(tanh, doubled)
}
"""
SOFT_GATE = """
<domain: "com.example", opset_import: ["" : 18]>
SoftGate <sharpness: float = 2.0> (float[B, 8] x, float[8, 8] w) => (y)
{
    sharp = Constant<value_float: float = @sharpness>()
    product = MatMul(x, w)
    sharper = Mul(product, sharp)
    gate = Sigmoid(sharper)
    y = Mul(x, gate)
}
"""


def gate(**changes: str) -> ModelProto:
    text = GATE
    for old, new in changes.items():
        text = text.replace(*new.split("->")) if "->" in new else text.replace(old, new)
    return model(text)


def fused(original: ModelProto, *fusions: LearnedFusion) -> dict[str, int]:
    """What fuses, in a model that then passes verification."""
    report = onnx_fuse.fuse(original, fusions=fusions).report
    assert not report.fused or report.verification["passed"]
    return report.fused


def reason(original: ModelProto, fusion: LearnedFusion) -> str:
    report = onnx_fuse.explain(original, fusions=[fusion])
    assert not report.fused
    return max(report.near_misses, key=lambda miss: miss.matched).reason


# --- it fires ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("source", ["dynamo", "script"])
@pytest.mark.parametrize(("exporter", "opset"), models.EXPORTS)
def test_fires_on_every_export(source: str, exporter: str, opset: int) -> None:
    fusions = [models.learned(name, source) for name in models.MODULES]
    assert fused(models.exported(exporter, opset), *fusions) == models.COUNTS


@pytest.mark.parametrize("source", ["dynamo", "script"])
def test_fires_where_sizes_are_fixed_and_ranges_are_constants(source: str) -> None:
    fusions = [models.learned(name, source) for name in models.MODULES]
    assert fused(models.exported("script", 17, dynamic=False), *fusions) == models.COUNTS


@pytest.mark.parametrize(("exporter", "opset"), [("script", 14), ("dynamo", 18)])
def test_fires_on_renamed_shuffled_and_reweighted_models(exporter: str, opset: int) -> None:
    fusions = [models.learned(name, "dynamo") for name in models.MODULES]
    for seed in range(3):
        disguised = _disguised(models.exported(exporter, opset), np.random.default_rng(seed))
        assert fused(disguised, *fusions) == models.COUNTS


def _disguised(original: ModelProto, random: np.random.Generator) -> ModelProto:
    """The model with other names, its nodes in another order, and other weights."""
    made = copied(original)
    inputs = {value.name for value in (*made.graph.input, *made.graph.output)}
    names: dict[str, str] = {"": "", **{name: name for name in inputs}}

    def renamed(name: str) -> str:
        return names.setdefault(name, f"r{random.integers(1 << 40)}")

    for tensor in made.graph.initializer:
        array = numpy_helper.to_array(tensor)
        if array.dtype.kind == "f" and array.size > 1:
            array = random.normal(size=array.shape, scale=0.3).astype(array.dtype)
        tensor.CopyFrom(numpy_helper.from_array(array, renamed(tensor.name)))
    known = {tensor.name for tensor in made.graph.initializer} | {value.name for value in made.graph.input}
    waiting: list[NodeProto] = []
    for node in made.graph.node:
        node.name = ""
        node.input[:] = [renamed(name) for name in node.input]
        node.output[:] = [renamed(name) for name in node.output]
        waiting.append(node)
    order: list[NodeProto] = []
    known.add("")
    while waiting:
        ready = [node for node in waiting if known.issuperset(node.input)]
        chosen = ready[random.integers(len(ready))]
        waiting.remove(chosen)
        known.update(chosen.output)
        order.append(chosen)
    copies = [copied_node(node) for node in order]
    del made.graph.node[:], made.graph.value_info[:]
    made.graph.node.extend(copies)
    return made


def copied_node(node: NodeProto) -> NodeProto:
    copy = NodeProto()
    copy.CopyFrom(node)
    return copy


class Causal(torch.nn.Module):  # type: ignore[misc]
    """A mask that follows from the length alone: a constant where the length is fixed."""

    def forward(self, x: Any) -> Any:
        length = x.shape[1]
        lower = torch.tril(torch.ones(length, length))
        return (x @ x.transpose(1, 2)).masked_fill(lower == 0, float("-inf")).softmax(-1) @ x


@pytest.mark.parametrize("dynamic", [True, False])
def test_what_follows_from_sizes(dynamic: bool, tmp_path: Path) -> None:
    module, x, axes = Causal().eval(), torch.randn(2, 5, 8), {"x": {0: "B", 1: "S"}}
    fusion = from_torch(module, (x,), dynamic_shapes=axes, exporters=("script",))
    assert fusion.operator.inputs == ("x",)
    path = tmp_path / "causal.onnx"
    options = {"dynamo": False, "opset_version": 17, "input_names": ["x"], "dynamic_axes": axes if dynamic else None}
    with quiet():
        torch.onnx.export(module, (x,), str(path), **options)
    assert fused(onnx.load(path), fusion) == {"Causal": 1}
    anti = copied(onnx.load(path))
    for node in anti.graph.node:
        for attribute in node.attribute:
            if node.op_type == "Trilu" and attribute.name == "upper":
                attribute.i = 1
    if dynamic:
        assert fused(anti, fusion) == {}


def test_a_float16_model() -> None:
    text = GATE.replace("float[", "float16[").replace(" <float half = {0.5}, float two = {2.0}>", "")
    weights = {"half": np.array(0.5, np.float16), "two": np.array(2.0, np.float16)}
    assert fused(model(text, weights=weights), from_onnx(gate(), "Gate")) == {"Gate": 1}


def test_operands_and_comparisons_in_the_other_order() -> None:
    text = "(float[B] x, float[B] y) => (bool[B] z) { s = Mul(x, x) z = Less(s, y) }"
    other = "(float[B] x, float[B] y) => (bool[B] z) <float two = {2.0}> { s = Pow(x, two) z = Greater(y, s) }"
    assert fused(model(other), from_onnx(model(text), "Below")) == {"Below": 1}
    assert fused(model(text), from_onnx(model(other), "Below")) == {"Below": 1}


def test_a_filled_shape_by_either_operator() -> None:
    text = """(float[B, S] x) => (float[B, S] z) <float one = {1.0}, int64[1] zero = {0}>
    { s = Shape(x) f = Expand(one, s) c = CumSum(f, zero) z = Mul(c, x) }"""
    filled = text.replace("Expand(one, s)", "ConstantOfShape<value = float[1] {1.0}>(s)")
    for source, target in ((text, filled), (filled, text)):
        fusion = from_onnx(model(source), "Counted")
        assert fused(model(target), fusion) == {"Counted": 1}
        assert fused(model(target.replace("{1.0}", "{2.0}")), fusion) == {}


def test_a_part_is_a_part_by_slice_or_split() -> None:
    split = (
        "(float[B, 8] x) => (float[B, 4] z) { a, b = Split<axis = 1, num_outputs = 2>(x) c = Tanh(b) z = Mul(a, c) }"
    )
    sliced = """(float[B, 8] x) => (float[B, 4] z)
    <int64[1] zero = {0}, int64[1] four = {4}, int64[1] end = {9223372036854775807}, int64[1] axis = {-1}>
    { a = Slice(x, zero, four, axis) b = Slice(x, four, end, axis) c = Tanh(b) z = Mul(a, c) }"""
    other = sliced.replace("a = Slice(x, zero, four, axis)", "a = Slice(x, four, end, axis)")
    for source, target in ((split, sliced), (sliced, split)):
        fusion = from_onnx(model(source, opset=18), "Halves")
        assert fused(model(target, opset=18), fusion) == {"Halves": 1}
        assert fused(model(other, opset=18), fusion) == {}


# --- it refuses -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changed", "sentence"),
    [
        ("{0.5}->{0.25}", "the constant is 0.25, pattern wants 0.5"),
        ("Tanh->Sigmoid", None),
        ("[B, 8]->[B, 16]", None),
        ("(float[B, 8] z)->(float[B, 8] z, float[B, 8] tanh)", "its output tanh is a graph output"),
    ],
)
def test_refuses_what_differs(changed: str, sentence: str | None) -> None:
    fusion = from_onnx(gate(), "Gate")
    target = gate(change=changed)
    assert fused(target, fusion) == {}
    if sentence is not None:  # else there is too little of it to be a near miss
        assert reason(target, fusion) == sentence


def test_refuses_other_attributes_also_where_only_one_names_them() -> None:
    text = "(float[B, 8, 4] x) => (float[B, 8, 4] z) { s = Softmax(x) z = Tanh(s) }"
    fusion = from_onnx(model(text), "Soft")
    assert fused(model(text.replace("Softmax(x)", "Softmax<axis = 2>(x)")), fusion) == {"Soft": 1}
    assert fused(model(text.replace("Softmax(x)", "Softmax<axis = 1>(x)")), fusion) == {}


def test_refuses_a_fixed_table_with_other_values() -> None:
    text = """(float[B, 3] x) => (float[B, 3] z) <int64[3] order = {2, 0, 1}>
    { g = Gather<axis = 1>(x, order) z = Tanh(g) }"""
    fusion = from_onnx(model(text), "Turn")
    assert [note.name for note in fusion.notes if note.kind == "fixed"] == ["constant_1"]
    assert fused(model(text), fusion) == {"Turn": 1}
    assert "other values" in reason(model(text.replace("{2, 0, 1}", "{2, 1, 0}")), fusion)


def test_refuses_inputs_of_another_type() -> None:
    text = "(int64[B, 8] ids, float[4, 8] t) => (float[B, 8, 8] z) { r = Gather(t, ids) z = Tanh(r) }"
    fusion = from_onnx(model(text), "LookUp")
    assert "is INT32" in reason(model(text.replace("int64", "int32")), fusion)


def test_whole_numbers_must_be_equal() -> None:
    text = (
        "(float[B, 200000] x) => (float[B] z) <int64 place = {100000}> { g = Gather<axis = 1>(x, place) z = Tanh(g) }"
    )
    fusion = from_onnx(model(text), "Pick")
    assert fused(model(text), fusion) == {"Pick": 1}
    assert fused(model(text.replace("100000}", "100001}")), fusion) == {}


def test_an_input_that_the_example_lacks() -> None:
    text = "(float[B] x) => (float[B] z) <float most = {6.0}> { c = Clip(x, , most) z = Tanh(c) }"
    bounded = "(float[B] x) => (float[B] z) <float most = {6.0}, float least = {0.0}> { c = Clip(x, least, most) z = Tanh(c) }"
    fusion = from_onnx(model(text), "Capped")
    assert fused(model(text), fusion) == {"Capped": 1}
    assert fused(model(bounded), fusion) == {}


def test_a_reshape_must_lead_to_the_same_shape() -> None:
    text = """(float[B, S, 8] x) => (float[B, S, 2, 4] z) <int64[4] target = {0, 0, 2, 4}>
    { t = Tanh(x) r = Reshape(t, target) z = Sigmoid(r) }"""
    fusion = from_onnx(model(text), "Heads")
    assert fused(model(text), fusion) == {"Heads": 1}
    assert fused(model(text.replace("2, 4", "4, 2")), fusion) == {}


# --- what becomes of constants ----------------------------------------------------------------------------------------


def test_a_constant_becomes_an_attribute_or_an_input() -> None:
    fusion = from_onnx(gate(), "Gate", attributes={"sharpness": 0.5}, inputs={"weight": 2.0})
    assert fusion.operator.attributes == ("sharpness",) and fusion.operator.inputs == ("x", "y", "weight")
    result = onnx_fuse.fuse(gate(change="{0.5}->{0.25}", more="{2.0}->{3.0}"), fusions=[fusion])
    assert result.report.fused == {"Gate": 1}
    attributes = {item.name: item.f for item in result.model.graph.node[0].attribute}
    assert attributes["sharpness"] == 0.25


def test_an_ambiguous_constant_is_not_guessed() -> None:
    twice = gate(change="{2.0}->{0.5}")
    with pytest.raises(UsageError, match=r"2 constants of the example are 0\.5: constant_1, constant_2"):
        from_onnx(twice, "Gate", attributes={"sharpness": 0.5})
    with pytest.raises(UsageError, match="No constant of the example is 7"):
        from_onnx(twice, "Gate", attributes={"sharpness": 7.0})
    with pytest.raises(UsageError, match="no constant constant_9"):
        from_onnx(twice, "Gate", inputs={"w": "constant_9"})
    fusion = from_onnx(twice, "Gate", attributes={"sharpness": "constant_1"})
    assert [note.kind for note in fusion.notes if note.name in ("sharpness", "constant_2")] == ["attribute", "fixed"]


def test_weights_are_inputs_and_zeros_are_not_dropped() -> None:
    """A bias that is zero in the example is one that may be anything."""
    linear = torch.nn.Sequential(torch.nn.Linear(8, 8), torch.nn.LayerNorm(8))
    torch.nn.init.zeros_(linear[0].bias)
    fusion = from_torch(linear, torch.randn(2, 8), "LinearNorm", dynamic_shapes=({0: "B"},), exporters=("script",))
    weights = [note.name for note in fusion.notes if note.kind == "weight"]
    assert weights == ["_0_weight", "_0_bias", "_1_weight", "_1_bias"]
    assert fusion.operator.attributes == ("epsilon",)


def test_a_fixed_parameter_keeps_its_value() -> None:
    fusion = from_torch(
        models.MODULES["PowerPooling"](),
        models.MODULES["PowerPooling"].example_inputs(),
        dynamic_shapes=models.MODULES["PowerPooling"].dynamic_shapes,
        fixed=["p"],
        exporters=("script",),
    )
    assert fusion.operator.inputs == ("x", "lengths")
    assert fused(models.exported("script", 17), fusion) == {"PowerPooling": 1}
    other = copied(models.exported("script", 17))
    for tensor in other.graph.initializer:
        if tensor.name == "pooling.p":
            tensor.CopyFrom(numpy_helper.from_array(np.float32(2.0), tensor.name))
    assert fused(other, fusion) == {}


def test_an_unused_input_is_left_out() -> None:
    fusion = from_onnx(gate(change="8] y)->8] y, float[B, 4] q)"), "Gate")
    assert fusion.operator.inputs == ("x", "y")
    assert [note.name for note in fusion.notes if note.kind == "unused"] == ["q"]


def test_forms_that_differ_in_masked_rows_have_bodies_of_their_own() -> None:
    """ONNX's Attention gives zeros where a Softmax over nothing gives NaN."""
    softmax = model(ATTENTION)
    guarded = model(ATTENTION.replace("p = Softmax(s)", "q = Softmax(s) n = IsNaN(q) p = Where(n, nothing, q)"))
    exports = [Export("plain", softmax, ()), Export("guarded", guarded, ())]
    base = learn.Definition("Attend", {}, {}, (), domain="com.example")
    fusion = learn._learn(base, exports, learn._Choice({}, {}), [], "learned from two forms")
    assert fusion.operator.attributes == ("masked_row",)
    for original, expected in ((softmax, b"nan"), (guarded, b"zero")):
        result = onnx_fuse.fuse(original, fusions=[fusion])
        assert result.report.fused == {"Attend": 1}
        assert [item.s for item in result.model.graph.node[0].attribute if item.name == "masked_row"] == [expected]
        masked = {"x": np.ones((2, 4), np.float32), "bias": np.full((2, 4), -np.inf, np.float32)}
        run = [ort.InferenceSession(m.SerializeToString()).run(None, masked)[0] for m in (original, result.model)]
        np.testing.assert_array_equal(*run)


ATTENTION = """
(float[B, 4] x, float[B, 4] bias) => (float[B, 4] z) <float nothing = {0.0}>
{
    s = Add(x, bias)
    p = Softmax(s)
    z = Tanh(p)
}
"""


# --- what cannot be learned -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("(float16[B] x) => (float16[B] z) { s = Tanh(x) z = Mul(s, x) }", "a form is learned in float32"),
        ("(float[B] x) => (float[B] z) { z = Identity(x) }", "is an input, a constant, or another result"),
        ("(float[B] x) => (float[B] z) { r = RandomNormalLike(x) z = Mul(r, x) }", "is random"),
        ("(float[B] x) => (float[B] z) { r = my.Op(x) z = Mul(r, x) }", "operator of domain my"),
        (
            "(float[B] x, int64[2] t) => (float[M, N] z) { r = Reshape(x, t) z = Tanh(r) }",
            "no dimensions of the inputs",
        ),
    ],
)
def test_what_cannot_be_learned_is_said(text: str, sentence: str) -> None:
    with pytest.raises(LearnError, match=sentence) as error:
        from_onnx(model(text), "Example")
    assert error.value.exit_code == 7 and error.value.remedy


@pytest.mark.parametrize(
    "name", ["Swish", "Gelu", "Attention", "MultiHeadAttention", "TRT_Conv", "MatMul", "two words"]
)
def test_names_that_are_taken_are_refused(name: str) -> None:
    with pytest.raises(UsageError, match="cannot be called"):
        from_onnx(gate(), name)


def test_names_of_our_own_and_domains_of_onnx_are_refused() -> None:
    with pytest.raises(UsageError, match="onnx-fuse has an operator of that name"):
        from_onnx(gate(), "FusedSwish")
    with pytest.raises(UsageError, match="ONNX's own"):
        from_onnx(gate(), "Gate", domain="ai.onnx.ml")
    assert from_onnx(gate(), "FusedSwish", domain="com.example").operator.domain == "com.example"


def test_names_as_tensorrt_takes_them() -> None:
    pytest.importorskip("tensorrt_rtx_libs")
    from onnx_fuse.runtime.tensorrt import binding

    trt = binding.module()
    builder = trt.Builder(binding.logger())
    parser = trt.OnnxParser(builder.create_network(0), binding.logger())
    names = {schema.name for schema in onnx.defs.get_all_schemas()}
    names |= {"ImageScaler", "QMoE", "MatMulNBits", "ScaledTanh", "DistCollective", "SkipSimplifiedLayerNormalization"}
    assert all(name_problem(name, "gr.ml.infra") for name in names if parser.supports_operator(name))
    assert name_problem("SigmoidAttention", "gr.ml.infra") is None
    assert not parser.supports_operator("SigmoidAttention")


# --- files ------------------------------------------------------------------------------------------------------------


def test_a_file_is_valid_onnx_that_runs_and_is_the_fusion(tmp_path: Path) -> None:
    fusion = models.learned("SigmoidAttention", "dynamo")
    path = tmp_path / "attention.onnx"
    fusion.save(path)
    written = onnx.load(path)
    onnx.checker.check_model(written, full_check=True)
    assert [function.name for function in written.functions] == ["SigmoidAttention"]

    again = load(path)
    assert again.definition.inputs == fusion.definition.inputs and again.notes == fusion.notes
    assert fused(models.exported("dynamo", 18), again) == {"SigmoidAttention": 2}
    for given in (path, str(path)):
        assert onnx_fuse.fuse(models.exported("script", 17), fusions=[given]).report.fused == {"SigmoidAttention": 2}

    module = models.MODULES["SigmoidAttention"]()
    x, mask = torch.randn(2, 7, 32), torch.ones(2, 7)
    weights = {name.replace(".", "_"): value.detach().numpy() for name, value in module.named_parameters()}
    weights = {name: value.T if value.ndim == 2 else value for name, value in weights.items()}
    session = ort.InferenceSession(written.SerializeToString())
    result = session.run(None, {"x": x.numpy(), "mask": mask.numpy(), **weights})[0]
    np.testing.assert_allclose(result, module(x, mask).detach().numpy(), atol=1e-5)


def test_a_file_whose_body_was_changed_is_refused(tmp_path: Path) -> None:
    made = from_onnx(gate(), "Gate").to_model()
    made.functions[0].node[-1].op_type = "Sub"
    onnx.save(made, tmp_path / "changed.onnx")
    with pytest.raises(ModelError, match="not the one that was learned"):
        load(tmp_path / "changed.onnx")


@pytest.mark.parametrize("damage", ["{", '{"format": 1}', '{"format": 99}', "[]", '{"format": 1, "definition": {}}'])
def test_a_damaged_file_is_refused(tmp_path: Path, damage: str) -> None:
    made = from_onnx(gate(), "Gate").to_model()
    onnx.helper.set_model_props(made, {learned_file.KEY: damage})
    onnx.save(made, tmp_path / "damaged.onnx")
    with pytest.raises(ModelError):
        load(tmp_path / "damaged.onnx")
    onnx.save(gate(), tmp_path / "model.onnx")
    with pytest.raises(ModelError, match="holds no learned fusion"):
        load(tmp_path / "model.onnx")


def test_two_fusions_of_one_name_are_refused() -> None:
    with pytest.raises(UsageError, match="two fusions called Gate"):
        onnx_fuse.fuse(gate(), fusions=[from_onnx(gate(), "Gate"), from_onnx(gate(), "Gate")])


def test_the_report_says_that_there_is_no_kernel() -> None:
    report = onnx_fuse.fuse(gate(), fusions=[from_onnx(gate(), "Gate")]).report
    assert any("a body and no kernel yet" in warning for warning in report.warnings)
    assert "a body and no kernel yet" in json.dumps(report.to_dict())


# --- from text --------------------------------------------------------------------------------------------------------


def test_a_function_in_text_with_an_attribute(tmp_path: Path) -> None:
    path = tmp_path / "gate.onnxtxt"
    path.write_text(SOFT_GATE)
    fusion = from_onnx(path)
    assert (fusion.operator.domain, fusion.name, fusion.definition.attributes) == (
        "com.example",
        "SoftGate",
        {"sharpness": 2.0},
    )
    target = model(
        "(float[N, 8] a, float[8, 8] b) => (float[N, 8] c) <float s = {3.0}>"
        "{ m = MatMul(a, b) t = Mul(s, m) g = Sigmoid(t) c = Mul(g, a) }"
    )
    result = onnx_fuse.fuse(target, fusions=[fusion])
    assert result.report.fused == {"SoftGate": 1}
    assert_same_results(target, result.model)


@pytest.mark.parametrize(
    ("text", "kind", "sentence"),
    [
        (SOFT_GATE.replace("float[B, 8] x", "x"), LearnError, "input x has no type"),
        (SOFT_GATE.replace("sharpness: float = 2.0", "sharpness"), LearnError, "attribute sharpness has no default"),
        ("f (x) => (y) {", ModelError, "neither a model nor a function"),
    ],
)
def test_text_that_does_not_do(text: str, kind: Any, sentence: str) -> None:
    with pytest.raises(kind, match=sentence):
        from_onnx(text)
