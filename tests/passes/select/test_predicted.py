"""Which fusions are worth a plugin: the cost model on kernels worked out by hand, its decisions, and decisions by measurement."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from onnx import ModelProto, TensorProto, helper

import onnx_fuse
from onnx_fuse.errors import UsageError
from onnx_fuse.passes.select import cost_model, measured
from onnx_fuse.passes.select.cost_model import Device, Step, device_of, kernels
from onnx_fuse.passes.select.measured import Verdict, Verdicts, choose, judge
from onnx_fuse.passes.select.plugin_facts import plugin_facts
from onnx_fuse.passes.select.predicted import select_fused, without
from onnx_fuse.patterns import FusedOp, Fusion, pattern
from tests import helpers

SLOW = Device("slow", 80, 10, bandwidth=1e9, float32=1e9, tf32=1e10, half=1e11)


def step(kind: str, reads: str, makes: str, size: int = 100, **more: Any) -> Step:
    return Step(kind, dict.fromkeys(reads.split(), size), dict.fromkeys(makes.split(), size), **more)


def grouped(*steps: Step) -> list[list[str]]:
    """What each kernel makes."""
    return [[value for item in kernel.steps for value in item.makes] for kernel in kernels(steps)]


# --- kernels ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("steps", "expected"),
    [
        ([("pointwise", "x", "a"), ("pointwise", "a", "b"), ("pointwise", "b x", "c")], [["a", "b", "c"]]),
        ([("matrix", "x w", "a"), ("pointwise", "a bias", "b"), ("pointwise", "b", "c")], [["a", "b", "c"]]),
        ([("matrix", "x w", "a"), ("pointwise", "a r", "b"), ("reduction", "b", "c"), ("pointwise", "b c", "d")], [["a", "b"], ["c", "d"]]),
        ([("pointwise", "x", "a"), ("matrix", "a w", "b")], [["a"], ["b"]]),
        ([("gather", "t1 i", "a"), ("gather", "t2 j", "b"), ("pointwise", "a b", "c"), ("reduction", "c", "d")], [["a", "b", "c", "d"]]),
        ([("gather", "t1 i", "a"), ("gather", "t2 j", "b"), ("plugin", "a b", "c")], [["a", "b"], ["c"]]),
        ([("pointwise", "i", "a"), ("gather", "t a", "b"), ("matrix", "b w", "c")], [["a", "b"], ["c"]]),
        ([("plugin", "x", "a"), ("pointwise", "a", "b")], [["a"], ["b"]]),
        ([("pointwise", "x", "a"), ("plugin", "a", "b"), ("pointwise", "a b", "c")], [["a"], ["b"], ["c"]]),
    ],
    ids=["chain", "epilogue", "norm after product", "product", "look-ups and norm", "look-ups", "indices", "after a plugin", "around a plugin"],
)  # fmt: skip
def test_what_becomes_one_kernel(steps: Sequence[tuple[str, str, str]], expected: list[list[str]]) -> None:
    assert grouped(*(step(*item) for item in steps)) == expected


def test_no_kernel_waits_for_itself() -> None:
    """`c` needs the product of `a`, so it cannot be in the kernel that the product waits for."""
    found = kernels([step("pointwise", "x", "a"), step("matrix", "a w", "b"), step("pointwise", "a b", "c")])
    assert [[v for item in kernel.steps for v in item.makes] for kernel in found] == [["a"], ["b", "c"]]
    for kernel in found:
        made = {value for item in kernel.steps for value in item.makes}
        later = {v for other in found if other.order > kernel.order for item in other.steps for v in item.makes}
        assert not later & {v for item in kernel.steps for v in item.reads if v not in made}


def test_attention_is_one_kernel() -> None:
    chain = [
        step("attention", "q k", "s", chain=1),
        step("matrix", "x w", "v"),
        step("attention", "s", "p", chain=1),
        step("attention", "p v", "o", chain=1),
        step("pointwise", "o", "y"),
    ]
    assert grouped(*chain) == [["s", "p", "o"], ["v"], ["y"]]


def test_what_kernels_cost() -> None:
    """Bytes by bandwidth or products by rate, whichever takes longer, and a launch; what stays inside is not moved."""
    chain = [step("pointwise", "x", "a", 1000), step("pointwise", "a", "b", 1000)]
    found = cost_model.cost(chain, SLOW, lambda value: value == "b")
    assert (found.launches, found.bytes) == (1, 2000)
    assert found.seconds == pytest.approx(cost_model.LAUNCH + 2000 / (cost_model.BANDWIDTH_SHARE * 1e9))
    both = cost_model.cost(chain, SLOW, lambda value: True)
    assert both.bytes == 3000
    for half, rate in ((False, 1e10), (True, 1e11)):
        product = cost_model.cost([step("matrix", "x w", "y", 8, products=1e9, half=half)], SLOW, lambda value: True)
        assert product.seconds == pytest.approx(cost_model.LAUNCH + 1e9 / (cost_model.TENSORRT_SHARE * rate))
    plugin = cost_model.cost(
        [step("plugin", "x", "y", 8, products=1e9, launches=3, scratch=50)], SLOW, lambda value: True
    )
    assert (plugin.launches, plugin.bytes) == (3, 8 + 8 + 2 * 50)
    assert plugin.seconds == pytest.approx(
        3 * cost_model.LAUNCH + 1e9 / (cost_model.PLUGIN_SHARE * 1e9)
    )  # IEEE, not TF32


def test_devices() -> None:
    assert device_of("NVIDIA H100 80GB HBM3").name == "H100"
    assert device_of("rtx-4090").name == device_of("NVIDIA GeForce RTX 4090").name == "RTX 4090"
    assert device_of("sm_120").name == "RTX 5090" and device_of("NVIDIA L4").name == "L4"
    with pytest.raises(UsageError, match="speed of 'T4'"):
        device_of("T4")


# --- decisions --------------------------------------------------------------------------------------------------------


def attention(hidden: int = 256, heads: int = 4, *, dtype: int = TensorProto.FLOAT16) -> ModelProto:
    """Projections, softmax attention, output projection, residual sum and norm, with static hidden size."""
    name = {TensorProto.FLOAT16: "float16", TensorProto.FLOAT: "float"}[dtype]
    kind = helper.tensor_dtype_to_np_dtype(dtype)
    random = np.random.default_rng(0)
    weights: dict[str, Any] = {
        f"w{item}": (random.standard_normal((hidden, hidden)) / hidden**0.5).astype(kind) for item in "qkvo"
    }
    weights |= {"split": np.array([0, 0, heads, hidden // heads]), "flat": np.array([0, 0, hidden])}
    weights |= {"root": np.array((hidden // heads) ** 0.5, kind)}
    weights |= {"gamma": np.ones(hidden, kind), "beta": np.zeros(hidden, kind)}
    split = "  ".join(
        f"{n}0 = MatMul(x, w{n})  {n}1 = Reshape({n}0, split)  {n}2 = Transpose <perm = {perm}> ({n}1)"
        for n, perm in (("q", [0, 2, 1, 3]), ("k", [0, 2, 3, 1]), ("v", [0, 2, 1, 3]))
    )
    return helpers.model(
        f"""({name}[batch,length,{hidden}] x) => ({name}[batch,length,{hidden}] y) {{ {split}
        product = MatMul(q2, k2)  scaled = Div(product, root)  p = Softmax <axis = -1> (scaled)  context = MatMul(p, v2)
        moved = Transpose <perm = [0, 2, 1, 3]> (context)  merged = Reshape(moved, flat)
        projected = MatMul(merged, wo)  total = Add(projected, x)
        y = LayerNormalization <axis = -1, epsilon = 1e-05> (total, gamma, beta) }}""",
        weights=weights,
    )


def feed_forward() -> ModelProto:
    """A linear layer with x * sigmoid(x), the sum with x and a norm: what TensorRT chains by itself."""
    return helpers.model(
        """(float[batch,length,64] x) => (float[batch,length,64] y) { h = MatMul(x, w)  s = Sigmoid(h)  a = Mul(h, s)
        total = Add(a, x)  y = LayerNormalization <axis = -1, epsilon = 1e-05> (total, gamma, beta) }""",
        weights={
            "w": np.eye(64, dtype=np.float32) + 0.1,
            "gamma": np.ones(64, np.float32),
            "beta": np.zeros(64, np.float32),
        },
    )


def fused(model: ModelProto, *names: str) -> ModelProto:
    made: ModelProto = onnx_fuse.fuse(model, enable=names, verify=False).model
    return made


def test_attention_with_its_rim_pays() -> None:
    """The plugin is one launch, TensorRT needs one for attention, for the projection and for the norm."""
    before = fused(attention())
    found = select_fused(before, sizes={"batch": 64, "length": 128}, device="A100", alternative="original")
    (decision,) = found.decisions
    assert decision.keep and decision.operator == "FusedAttentionLayerNorm"
    assert (decision.launches_before, decision.launches_after) == (4, 1)
    assert decision.before_us is not None and decision.after_us is not None and decision.before_us > decision.after_us
    assert decision.reason.startswith("TensorRT adds 4 kernels") and found.left_out == set()
    assert found.sizes == {"batch": 64, "length": 128} and found.assumed == () and found.precision == "float16"


def test_few_rows_need_two_launches() -> None:
    """With fewer tiles than multiprocessors the plugin does not run its rim in the same launch."""
    found = select_fused(fused(attention()), sizes={"batch": 1, "length": 64}, device="A100", alternative="original")
    assert found.decisions[0].launches_after == 2


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
    again = without(model, [name])
    assert "FusedSwish" not in helpers.operators(again) and "FusedSkipLayerNorm" in helpers.operators(again)
    helpers.assert_same_results(feed_forward(), again, batch=2, length=3)
    assert "FusedSwish" in helpers.operators(model)


# --- fuse -------------------------------------------------------------------------------------------------------------


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


# --- measured ---------------------------------------------------------------------------------------------------------


def drawn(seconds: float, noise: float, seed: int, count: int = 40) -> list[float]:
    return [seconds * (1 + noise * item) for item in np.random.default_rng(seed).standard_normal(count)]


def test_verdict_on_given_samples() -> None:
    old = drawn(1e-3, 0.02, 0)
    faster = judge(old, [0.9 * item for item in drawn(1e-3, 0.02, 1)])
    assert faster.wins and faster.low < 0.9 < faster.high < 1
    assert not judge(old, drawn(1e-3, 0.02, 2)).wins  # the same
    assert not judge(old, [0.98 * item for item in drawn(1e-3, 0.3, 3)]).wins  # lost in the noise
    assert not judge(old, [0.995 * item for item in old]).wins  # clear, and too little
    assert not judge(old[:3], [0.5 * item for item in old[:3]]).wins  # too few to say
    assert judge(old, [1.1 * item for item in old]).ratio == pytest.approx(1.1)


def test_both_are_slowed_by_what_slows_the_machine() -> None:
    """The second of two equal models is not blamed for a machine that gets slower all the time."""
    clock = [1.0]

    def run() -> float:
        clock[0] *= 1.01
        return clock[0]

    verdict = judge(*measured.compare(run, run))
    assert verdict.ratio == pytest.approx(1.0, abs=0.011) and not verdict.wins


class GivenTimer:
    """Seconds by the operators in a model."""

    name = "a device, version 1"

    def __init__(self, seconds: Mapping[str, float]) -> None:
        self.seconds = seconds
        self.opened: list[list[str]] = []

    def open(self, model: ModelProto) -> Callable[[], float]:
        operators = helpers.operators(model)
        self.opened.append(operators)
        samples = iter(drawn(sum(self.seconds[item] for item in operators), 0.01, len(self.opened), 10_000))
        return lambda: next(samples)


def build(kept: Sequence[str]) -> ModelProto:
    """One node for each of three parts, fused (A, B, C) or not (a, b, c)."""
    nodes = [item if item in kept else item.lower() for item in "ABC"]
    model = helpers.model(
        f"(float[n] x) => (float[n] y) {{ t = d.{nodes[0]}(x)  u = d.{nodes[1]}(t)  y = d.{nodes[2]}(u) }}"
    )
    return model


def test_operators_are_chosen_one_by_one(tmp_path: Path) -> None:
    timer = GivenTimer({"a": 3.0, "A": 1.0, "b": 2.0, "B": 2.0, "c": 2.0, "C": 3.0})
    store = Verdicts(tmp_path / "verdicts")
    found = choose("ABC", build, timer, verdicts=store)
    assert {name: verdict.wins for name, verdict in found.items()} == {"A": True, "B": False, "C": False}
    assert found["A"].ratio == pytest.approx(5 / 7, rel=0.02)
    assert timer.opened == [["a", "b", "c"], ["A", "b", "c"], ["A", "B", "c"], ["A", "b", "C"]]

    again = GivenTimer(timer.seconds)
    assert choose("ABC", build, again, verdicts=store) == found and again.opened == []  # remembered
    other = GivenTimer(timer.seconds)
    other.name = "a device, version 2"
    choose("ABC", build, other, verdicts=store)
    assert other.opened  # another version, another verdict
    for path in (tmp_path / "verdicts").iterdir():
        path.write_text("{ damaged")
    assert choose("ABC", build, again, verdicts=store).keys() == found.keys() and again.opened
    assert {path.suffix for path in (tmp_path / "verdicts").iterdir()} == {".json"}


def test_a_verdict_that_is_remembered_opens_what_comes_after(tmp_path: Path) -> None:
    """A is remembered as a winner, B is not: it is timed on top of A."""
    store = Verdicts(tmp_path)
    seconds = {"a": 3.0, "A": 1.0, "b": 2.0, "B": 1.0, "c": 2.0, "C": 2.0}
    key = measured.key_of(build("AB"), "A", [], GivenTimer.name, {})
    store.put(key, Verdict(0.7, 0.69, 0.71, 40, True), {})
    timer = GivenTimer(seconds)
    found = choose("AB", build, timer, verdicts=store)
    assert found["B"].wins and timer.opened == [["A", "b", "c"], ["A", "B", "c"]]


def test_timing_onnx_runtime(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Real times: what they are does not matter here, that they are taken, judged and remembered does."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    done = onnx_fuse.fuse(
        feed_forward(), enable=["FusedSwish"], select="measured", device="cpu", sizes={"batch": 2, "length": 8}
    )
    (decision,) = done.report.to_dict()["selection"]["decisions"]
    assert decision["operator"] == "FusedSwish" and decision["ratio"] > 0 and decision["before_us"] is None
    assert "40 pairs of runs" in decision["reason"]
    assert (done.report.fused == {"FusedSwish": 1}) == decision["keep"]
    assert len(list(tmp_path.glob("onnx-fuse/*/verdicts/*.json"))) == 1


def test_without_a_gpu_measuring_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    from onnx_fuse.runtime.device import gpus

    monkeypatch.setattr(gpus, "devices", lambda: ((), None, "there is no NVIDIA driver"))
    with pytest.raises(UsageError, match="no GPU can be used: there is no NVIDIA driver"):
        onnx_fuse.fuse(feed_forward(), enable=["FusedSwish"], select="measured")


def facts_of(operator: str, attributes: Mapping[str, Any], **inputs: Sequence[int]) -> Any:
    node = helper.make_node(operator, list(inputs), ["y"], domain="gr.ml.infra", **attributes)
    node.attribute.append(helper.make_attribute("inputs", ",".join(inputs)))
    return plugin_facts(node, lambda name: tuple(inputs[name]), True, SLOW)


def test_what_plugins_refuse() -> None:
    """The limits of docs/plugins.md: building an engine would fail there."""
    tables = {f"table_{number}": (10, 8) for number in range(1, 10)}
    assert "9 tables" in facts_of("FusedEmbedLayerNorm", {}, **tables).refusal
    levels = {"x": (2, 3, 8), "level_embeddings": (129, 8)}
    assert "129 levels" in facts_of("HierarchicalSequenceFusion", {"windows": [1]}, **levels).refusal
    windows = {"x": (2, 3, 8), "level_embeddings": (4, 8)}
    assert "5 windows" in facts_of("HierarchicalSequenceFusion", {"windows": [1, 3, 5, 7, 9]}, **windows).refusal
    assert "65 features" in facts_of("InteractionTritonFast", {}, E=(2, 65, 8)).refusal
    wide = {"q": (2, 3, 1024), "k": (2, 3, 1024), "v": (2, 3, 1024)}
    assert "heads of 512" in facts_of("HSTUHierarchicalAttention", {"num_heads": 2, "norm": "none"}, **wide).refusal


# --- what plugins launch ----------------------------------------------------------------------------------------------


def test_launches_are_those_of_the_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    """For each of the cases that the plugins' C++ is tested with, as many kernels as their `launch` starts."""
    pytest.importorskip("triton")
    torch = pytest.importorskip("torch")
    from tests.plugin_csrc.built import launched
    from tests.plugin_csrc.test_launches import CASES, MULTIPROCESSORS

    device = Device("recording", 80, MULTIPROCESSORS, 1e12, 1e12, 1e12, 1e12)
    for case in CASES:
        launches, _ = launched(monkeypatch, case.launch)
        if not launches:
            continue  # a tensor without elements
        names = {"inputs": ",".join(case.inputs), "outputs": ",".join(case.outputs)}
        node = helper.make_node(case.name, list(case.inputs), list(case.outputs), domain="gr.ml.infra")
        for key, value in {**case.attributes, **names}.items():
            node.attribute.append(helper.make_attribute(key, value))
        shapes = {name: tuple(item.shape) for name, item in case.inputs.items()}
        half = next(iter(case.inputs.values())).dtype in (torch.float16, torch.bfloat16)
        if case.name == "FusedEmbedLayerNorm":
            half = case.inputs["table_1"].dtype != torch.float32
        facts = plugin_facts(node, shapes.__getitem__, half, device)
        assert facts is not None and facts.refusal is None and facts.launches == len(launches), (
            f"{case.name} of {shapes}"
        )
