"""Which fusions are predicted to be worth a plugin, and what is done without the others."""

from __future__ import annotations

from pathlib import Path

import pytest
from onnx import ModelProto, TensorProto, helper

import onnx_fuse
from onnx_fuse.errors import UsageError
from onnx_fuse.passes.select import cost_model
from onnx_fuse.passes.select.decisions import leave_out
from onnx_fuse.passes.select.predicted import select_fused
from onnx_fuse.patterns import FusedOp, Fusion, pattern
from tests import helpers
from tests.passes.select.small_models import attention, feed_forward


def fused(model: ModelProto, *names: str) -> ModelProto:
    made: ModelProto = onnx_fuse.fuse(model, enable=names, verify=False).model
    return made


def test_attention_with_its_rim_pays() -> None:
    """The plugin is two launches, TensorRT needs one for attention, for the projection, and for the norm."""
    before = fused(attention(128, 2))
    found = select_fused(before, sizes={"batch": 64, "length": 128}, device="H200", alternative="original")
    (decision,) = found.decisions
    assert decision.keep and decision.operator == "FusedAttentionLayerNorm"
    assert (decision.launches_before, decision.launches_after) == (4, 2)
    assert decision.before_us is not None and decision.after_us is not None and decision.before_us > decision.after_us
    assert decision.reason.startswith("TensorRT adds 4 kernels") and found.left_out == set()
    assert found.sizes == {"batch": 64, "length": 128} and found.assumed == () and found.precision == "float16"


def test_the_variant_that_would_run_decides() -> None:
    """By the type of the model, its sizes, and the device."""
    sizes = {"batch": 64, "length": 128}
    half = select_fused(fused(attention(128, 2)), sizes=sizes, device="A100", alternative="original").decisions[0]
    single = fused(attention(128, 2, dtype=TensorProto.FLOAT))
    plain = select_fused(single, sizes=sizes, device="A100", alternative="original").decisions[0]
    assert ".fp16." in half.reason and ".fp32." in plain.reason
    assert half.after_us is not None and plain.after_us is not None and plain.after_us > 2 * half.after_us
    times = [
        select_fused(fused(attention(128, 2)), sizes=sizes, device=device, alternative="original").decisions[0].after_us
        for device in ("H100", "H200")
    ]
    assert times[0] is not None and times[1] is not None and times[0] > times[1]


def test_a_refusal_names_both_times() -> None:
    found = select_fused(
        fused(attention(512, 8)), sizes={"batch": 1, "length": 64}, device="L4", alternative="original"
    )
    (decision,) = found.decisions
    assert not decision.keep
    assert decision.before_us is not None and decision.after_us is not None
    adds, _, takes = decision.reason.partition("; the plugin takes")
    assert f"and {decision.before_us:.1f} us" in adds and f"and {decision.after_us:.1f} us" in takes


def test_few_rows_need_two_launches() -> None:
    """With fewer tiles than multiprocessors the plugin does not run its rim in the same launch."""
    model = fused(attention(128, 2))
    for batch, launches in ((64, 1), (1, 2)):
        found = select_fused(model, sizes={"batch": batch, "length": 128}, device="A100", alternative="original")
        assert found.decisions[0].launches_after == launches


def test_wide_heads_have_no_kernel() -> None:
    found = select_fused(fused(attention(640, 2)), device="H100")
    assert not found.decisions[0].keep and "heads of 320 are above 256" in found.decisions[0].reason


def test_what_tensorrt_chains_is_left_to_it() -> None:
    model = fused(feed_forward(), "FusedSwish", "FusedSkipLayerNorm")
    found = select_fused(model, sizes={"batch": 32, "length": 128}, device="L4", alternative="original")
    kept = {item.operator: item.keep for item in found.decisions}
    assert kept == {"FusedSwish": False, "FusedSkipLayerNorm": False}
    swish = next(item for item in found.decisions if item.operator == "FusedSwish")
    assert swish.launches_before == 0 and "TensorRT chains it with its neighbours" in swish.reason


def test_dot_interaction_pays() -> None:
    """Without the plugin the product and the choice of its triangle are two kernels more than the look-ups before it."""
    torch = pytest.importorskip("torch")
    from benchmarks.recommenders import MODELS

    torch.manual_seed(0)
    model = fused(MODELS["DLRM"][0]().export("script", 17))
    for batch in (8, 2048):
        (decision,) = select_fused(model, sizes={"B": batch}, device="A100", alternative="original").decisions
        assert decision.operator == "InteractionTritonFast" and decision.keep
        assert (decision.launches_before, decision.launches_after) == (2, 1)


def test_a_body_in_float32_costs_more_than_the_original_nodes() -> None:
    model = fused(attention())
    sizes = {"batch": 64, "length": 128}
    body = select_fused(model, sizes=sizes, device="H100").decisions[0]
    original = select_fused(model, sizes=sizes, device="H100", alternative="original").decisions[0]
    assert body.before_us is not None and original.before_us is not None and body.before_us > 1.5 * original.before_us
    assert body.after_us == original.after_us


def test_precision_that_it_will_be_converted_to() -> None:
    model = fused(attention(dtype=TensorProto.FLOAT))
    sizes = {"batch": 64, "length": 128}
    half = select_fused(model, sizes=sizes, device="A100", precision="float16", alternative="original")
    same = select_fused(fused(attention()), sizes=sizes, device="A100", alternative="original")
    assert half.precision == "float16" and half.decisions[0].after_us == same.decisions[0].after_us
    assert half.decisions[0].before_us == pytest.approx(same.decisions[0].before_us, rel=0.05)
    with pytest.raises(UsageError, match="precision 'int4'"):
        select_fused(model, precision="int4")


def test_sizes() -> None:
    model = fused(attention())
    before = model.SerializeToString(deterministic=True)
    found = select_fused(model)
    assert found.sizes == {"batch": 8, "length": 128} and found.assumed == ("batch", "length")
    assert found.device == cost_model.DEFAULT_DEVICE and "assumed" in found.notes[0]
    by_shape = select_fused(model, sizes={"x": (2, 7, 256)}, device="H100")
    assert by_shape.sizes == {"batch": 2, "length": 7} and by_shape.assumed == () and by_shape.notes == ()
    with pytest.raises(UsageError, match="'rows', which is no dimension"):
        select_fused(model, sizes={"rows": 3})
    with pytest.raises(UsageError, match="has 1 axes"):
        select_fused(model, sizes={"x": (2,)})
    assert model.SerializeToString(deterministic=True) == before
    assert select_fused(model).to_dict() == found.to_dict()


def test_leaving_nodes_out() -> None:
    """The body of one of two alike is written out; the other stays, and the results too."""
    model = fused(feed_forward(), "FusedSwish", "FusedSkipLayerNorm")
    name = next(node.name for node in model.graph.node if node.op_type == "FusedSwish")
    again = leave_out(model, [name])
    assert "FusedSwish" not in helpers.operators(again) and "FusedSkipLayerNorm" in helpers.operators(again)
    helpers.assert_same_results(feed_forward(), again, batch=2, length=3)
    assert "FusedSwish" in helpers.operators(model)


def test_fuse_keeps_what_pays() -> None:
    model = attention(64, 2, dtype=TensorProto.FLOAT)
    swish = helper.make_node("Sigmoid", ["y"], ["s"]), helper.make_node("Mul", ["y", "s"], ["z"])
    model.graph.node.extend(swish)
    model.graph.output[0].name = "z"
    done = onnx_fuse.fuse(model, enable=["FusedSwish"], select="auto", sizes={"batch": 32, "length": 64}, device="L4")
    assert done.report.fused == {"FusedAttentionLayerNorm": 1}
    assert helpers.operators(done.model)[-2:] == ["Sigmoid", "Mul"]
    assert done.report.verification is not None and done.report.verification["passed"]
    chosen = done.report.to_dict()["selection"]
    assert {item["operator"]: item["keep"] for item in chosen["decisions"]} == {
        "FusedAttentionLayerNorm": True,
        "FusedSwish": False,
    }
    assert done.report.nodes_after == len(done.model.graph.node)


def test_fuse_of_nothing_that_pays_changes_nothing(tmp_path: Path) -> None:
    model = feed_forward()
    before = model.SerializeToString(deterministic=True)
    done = onnx_fuse.fuse(model, enable=["FusedSwish"], select="auto", device="L4")
    assert not done.changed and done.report.fused == {}
    assert done.model.SerializeToString(deterministic=True) == before


def test_what_is_required_is_fused() -> None:
    done = onnx_fuse.fuse(
        feed_forward(), enable=["FusedSwish"], select="auto", device="L4", require={"FusedSwish": 1}, verify=False
    )
    (decision,) = done.report.to_dict()["selection"]["decisions"]
    assert done.report.fused == {"FusedSwish": 1} and decision["reason"].startswith("kept because it is required")


def test_operators_of_ones_own_are_kept() -> None:
    """Nothing is known of their plugins."""
    operator = FusedOp("Doubled", inputs=("x",), body=lambda op, x: op.Add(x, x), domain="com.example")

    @pattern
    def doubled(op, x):  # type: ignore[no-untyped-def]
        return op.Add(x, x)

    model = helpers.model("(float[n] x) => (float[n] y) { a = Add(x, x)  y = Relu(a) }")
    done = onnx_fuse.fuse(model, fusions=[Fusion("Doubled", doubled, operator)], select="auto", verify=False)
    assert done.report.fused == {"Doubled": 1}
    assert "nothing is known" in done.report.to_dict()["selection"]["decisions"][0]["reason"]


def test_fuse_refuses_what_makes_no_sense() -> None:
    with pytest.raises(UsageError, match="select='some' is not known"):
        onnx_fuse.fuse(feed_forward(), select="some")
    with pytest.raises(UsageError, match="sizes and device are for"):
        onnx_fuse.fuse(feed_forward(), device="H100")
