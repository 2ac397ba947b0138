"""onnx_fuse.runtime.build: real engines of TensorRT, made without a GPU; nothing here opens one."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import ModelProto, TensorProto, helper

import onnx_fuse
from onnx_fuse.errors import ModelError, OutputError, UsageError, VerificationError
from onnx_fuse.runtime import EngineConfig, build, read_shapes
from onnx_fuse.runtime.device import engine_file, gpus
from onnx_fuse.runtime.device.engine_file import EngineTensor, ShapeRange
from onnx_fuse.runtime.tensorrt import binding
from onnx_fuse.runtime.tensorrt.parse import parse_network
from onnx_fuse.runtime.tensorrt.plan import configure
from tests.helpers import model

try:
    trt = binding.module()
except UsageError as missing:
    pytest.skip(str(missing), allow_module_level=True)
if trt.__name__ != "tensorrt_rtx":
    pytest.skip("these engines are built ahead of time, with tensorrt_rtx", allow_module_level=True)

ROOT = Path(__file__).parents[2]
NODE = 'plugin_namespace = "gr.ml.infra", plugin_version = "1"'
MLP = "(float[batch, 8] x) => (float[batch, 8] y) { h = MatMul(x, W) r = Relu(h) y = MatMul(r, W) }"
SCALE = '<domain: "gr.ml.infra", opset_import: ["": 17]> Scale (a) => (b) { b = Add (a, a) }'
CALL = f"(float[n] x) => (float[n] y) {{ y = gr.ml.infra.Scale <{NODE}> (x) }}"


def mlp(scale: float = 1.0) -> ModelProto:
    made = model(MLP, weights={"W": np.full((8, 8), scale, np.float32)})
    for node in made.graph.node:
        node.name = f"node_{node.output[0]}"
    return made


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    onnx.save(mlp(), tmp_path / "mlp.onnx")
    return tmp_path / "mlp.onnx"


def test_an_engine_and_its_record(saved: Path, tmp_path: Path) -> None:
    out = tmp_path / "mlp.plan"
    built = build(saved, out, EngineConfig(targets=["SM120"], profiles=read_shapes(["x:1x8:2x8:4x8"])))
    assert not built.reused and built.rebuilt is None and built.parsed is not None and built.parsed.accepted
    assert out.stat().st_size > 10_000
    record = engine_file.read(out)
    assert record == built.record
    assert (record.model, record.module, record.version) == ("mlp.onnx", trt.__name__, trt.__version__)
    assert record.targets == ("SM120",) and record.plugins == {} and record.options == {}
    assert record.inputs == (EngineTensor("x", "float32", ("batch", 8)),)
    assert record.outputs == (EngineTensor("y", "float32", ("batch", 8)),)
    assert record.profiles == ({"x": ShapeRange((1, 8), (2, 8), (4, 8))},)
    assert record.layers == {f"node_{name}": (f"node_{name}",) for name in ("h", "r", "y")}
    assert json.loads(json.dumps(built.to_dict()))["record"]["key"] == record.key


def test_without_a_target_the_engine_is_portable_and_shapes_are_assumed(saved: Path, tmp_path: Path) -> None:
    built = build(saved, tmp_path / "mlp.plan")
    assert built.record.targets == ("SM80", "SM86", "SM89", "SM120")
    assert built.assumed == ("batch is 1 to 32, optimised for 8",)


def test_an_engine_that_is_up_to_date_is_kept(saved: Path, tmp_path: Path) -> None:
    out, config = tmp_path / "mlp.plan", EngineConfig(targets=["SM86"])
    first = build(saved, out, config)
    before = {path: path.stat().st_mtime_ns for path in tmp_path.iterdir()}
    second = build(str(saved), str(out), config)
    assert second.reused and second.record == first.record and second.assumed == first.assumed
    assert {path: path.stat().st_mtime_ns for path in tmp_path.iterdir()} == before


def test_whatever_an_engine_depends_on_makes_it_anew(saved: Path, tmp_path: Path) -> None:
    out = tmp_path / "mlp.plan"
    build(saved, out, EngineConfig(targets=["SM86"]))
    for config, why in (
        (EngineConfig(targets=["SM120"]), "for other GPUs"),
        (EngineConfig(targets=["SM120"], max_batch_size=4), "the shapes are others"),
        (EngineConfig(targets=["SM120"], max_batch_size=4, opt_level=1), "the options are others"),
    ):
        built = build(saved, out, config)
        assert not built.reused and built.rebuilt is not None and why in built.rebuilt
        assert build(saved, out, config).reused
    onnx.save(mlp(2.0), saved)
    built = build(saved, out, config)
    assert built.rebuilt is not None and "the model, onnx-fuse or the GPU has changed" in built.rebuilt


def test_weights_in_external_data_count(tmp_path: Path) -> None:
    path, out, config = tmp_path / "m.onnx", tmp_path / "m.plan", EngineConfig(targets=["SM86"], precision="fp16")
    for scale in (1.0, 2.0):
        (tmp_path / "w.bin").unlink(missing_ok=True)  # onnx appends to it
        onnx.save_model(mlp(scale), path, save_as_external_data=True, location="w.bin", size_threshold=0)
        built = build(path, out, config)
        assert not built.reused and built.accuracy is not None and built.accuracy.cases > 0
    assert build(path, out, config).reused


@pytest.mark.parametrize("damage", ["cut", "foreign", "no record", "record cut", "record of another"])
def test_a_file_that_is_no_engine_of_ours_is_replaced(saved: Path, tmp_path: Path, damage: str) -> None:
    out, config = tmp_path / "mlp.plan", EngineConfig(targets=["SM86"])
    record = engine_file.record_path(out)
    build(saved, out, config)
    if damage == "cut":
        out.write_bytes(out.read_bytes()[:-1])
    elif damage == "foreign":
        out.write_bytes(b"not an engine")
    elif damage == "no record":
        record.unlink()
    elif damage == "record cut":
        record.write_bytes(record.read_bytes()[:-100])
    else:
        record.write_text('{"format": 1, "model": "x"}')
    built = build(saved, out, config)
    assert not built.reused and built.rebuilt is not None and "mlp.plan" in built.rebuilt
    assert engine_file.read(out) == built.record


def test_nothing_is_written_where_it_fails(saved: Path, tmp_path: Path) -> None:
    files = sorted(tmp_path.iterdir())
    with pytest.raises(VerificationError, match="workspace") as error:
        build(saved, tmp_path / "mlp.plan", EngineConfig(targets=["SM86"], workspace=1))
    assert "--workspace" in error.value.remedy
    with pytest.raises(OutputError, match="none"):
        build(saved, tmp_path / "none" / "mlp.plan")
    with pytest.raises(UsageError, match=r"The engine would overwrite .*mlp\.onnx"):
        build(saved, saved)
    with pytest.raises(ModelError, match="does not exist"):
        build(tmp_path / "no.onnx", tmp_path / "mlp.plan")
    with pytest.raises(VerificationError, match=r"does not accept main: .*Unknown"):
        build(model("(float[n] x) => (float[n] y) { y = my.ops.Unknown(x) }"), tmp_path / "mlp.plan")
    assert sorted(tmp_path.iterdir()) == files


def test_targets_that_there_are(saved: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="does not build for SM70") as error:
        build(saved, tmp_path / "mlp.plan", EngineConfig(targets=["SM70"]))
    assert "SM86" in error.value.remedy
    built = build(saved, tmp_path / "mlp.plan", EngineConfig(targets=["SM86", "SM120"], timing_cache=tmp_path / "t"))
    assert built.record.targets == ("SM86", "SM120")
    settings = configure(parse_network(saved, plugins=()), EngineConfig(), built.record.profiles, ("SM86", "SM120"))
    assert [settings.get_compute_capability(index).name for index in range(2)] == ["SM86", "SM120"]
    assert "no timing cache" in built.warnings[0] and not (tmp_path / "t").exists()


def test_assumed_shapes_that_do_not_fit_are_named(tmp_path: Path) -> None:
    """A table of positions that ends before the longest sequence that was assumed."""
    text = "(float[n, 8] x) => (float[n, 8] y) { s = Shape<end=1>(x) z = Constant<value_ints=[0]>() p = Slice(P, z, s, z) y = Add(x, p) }"
    made = model(text, weights={"P": np.ones((4, 8), np.float32)})
    made.graph.input[0].type.tensor_type.shape.dim[0].dim_param = "batch"
    with pytest.raises(VerificationError, match="profile 0") as error:
        build(made, tmp_path / "m.plan", EngineConfig(targets=["SM86"]))
    assert "assumed that batch is 1 to 32" in error.value.remedy
    assert not build(made, tmp_path / "m.plan", EngineConfig(targets=["SM86"], max_batch_size=4)).assumed


def test_two_profiles(saved: Path, tmp_path: Path) -> None:
    shapes = read_shapes(["x:1x8:1x8:1x8", "x:2x8:8x8:64x8"])
    record = build(saved, tmp_path / "mlp.plan", EngineConfig(targets=["SM86"], profiles=shapes)).record
    assert [profile["x"].max for profile in record.profiles] == [(1, 8), (64, 8)]


def test_precision_is_that_of_the_network(saved: Path, tmp_path: Path) -> None:
    sizes = {}
    for precision in (None, "fp16", "bf16"):
        built = build(saved, tmp_path / "mlp.plan", EngineConfig(targets=["SM120"], precision=precision))
        assert [tensor.dtype for tensor in built.record.inputs] == ["float32"]
        sizes[precision] = built.converted
        if precision:
            assert built.accuracy is not None and 0 < built.accuracy.worst < 0.02
            assert built.parsed is not None and built.parsed.layers > 3  # casts
    assert sizes == {None: None, "fp16": (3, 0), "bf16": (3, 0)}
    unmeasured = EngineConfig(targets=["SM86"], precision="fp16", verify=False)
    assert build(saved, tmp_path / "mlp.plan", unmeasured).accuracy is None


def test_weights_are_stored_in_the_narrow_type(tmp_path: Path) -> None:
    weight = np.random.default_rng(0).normal(size=(700, 700)).astype(np.float32)
    made = model("(float[n, 700] x) => (float[n, 700] y) { y = MatMul(x, W) }", weights={"W": weight})
    sizes = []
    for precision in ("fp32", "fp16"):
        config = EngineConfig(targets=["SM120"], precision=precision, max_batch_size=4)
        sizes.append(build(made, tmp_path / "m.plan", config).engine.stat().st_size)
    assert sizes[1] < 0.65 * sizes[0]


def test_quantised_precisions_need_a_quantised_model(saved: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="int8 is only for models") as error:
        build(saved, tmp_path / "mlp.plan", EngineConfig(precision="int8"))
    assert "nvidia-modelopt" in error.value.remedy
    text = """(float[n, 8] x) => (float[n, 8] y) {
        q = QuantizeLinear(x, scale, zero)  d = DequantizeLinear(q, scale, zero)
        w = DequantizeLinear(W, scale, zero)  y = MatMul(d, w)
    }"""
    quantised = model(
        text,
        weights={"W": np.ones((8, 8), np.int8), "scale": np.array(0.1, np.float32), "zero": np.array(0, np.int8)},
    )
    assert build(quantised, tmp_path / "q.plan", EngineConfig(precision="int8", targets=["SM86"])).converted is None
    with pytest.raises(UsageError, match="fp8 is only for models"):
        build(quantised, tmp_path / "q.plan", EngineConfig(precision="fp8"))


def test_a_half_model_is_not_widened(tmp_path: Path) -> None:
    half = model(
        "(float16[n, 2] x) => (float16[n, 2] y) { y = MatMul(x, W) }", weights={"W": np.ones((2, 2), np.float16)}
    )
    with pytest.raises(UsageError, match="The model is in float16"):
        build(half, tmp_path / "m.plan", EngineConfig(precision="fp32"))
    record = build(half, tmp_path / "m.plan", EngineConfig(precision="fp16", targets=["SM86"])).record
    assert record.inputs[0].dtype == "float16"


def test_bodies_run_where_there_is_no_plugin(tmp_path: Path) -> None:
    built = build(model(CALL, functions=SCALE), tmp_path / "m.plan", EngineConfig(targets=["SM86"]))
    assert built.plugins == () and built.without_plugin == {"no plugin library is loaded": ("y",)}
    assert built.parsed is not None and built.parsed.inlined == {"gr.ml.infra::Scale": 1}
    assert built.parsed.missing == ("gr.ml.infra::Scale",) and built.parsed.lacking == ()


def test_neither_plugin_nor_body(tmp_path: Path) -> None:
    with pytest.raises(VerificationError, match=r"no plugin for gr\.ml\.infra::Scale, and the model no body") as raised:
        build(model(CALL), tmp_path / "m.plan", EngineConfig(targets=["SM86"]))
    assert "onnx-fuse plugins build" in raised.value.remedy and "--plugins LIB" in raised.value.remedy


def test_attributes_that_the_plugin_does_not_take(tmp_path: Path, plugin: Callable[..., None]) -> None:
    plugin("Scale", factor=trt.PluginFieldType.FLOAT32, axis=trt.PluginFieldType.INT32)
    call = "(float[n] x) => (float[n] y) {{ y = gr.ml.infra.Scale <{}, {}> (x) }}"
    for attribute, message in (
        ("power = 2.0", r"attribute power \(FLOAT\) is no field of the plugin"),
        ("factor = 2", r"attribute factor \(INT\) is FLOAT32 there"),
        ('axis = "last"', r"attribute axis \(STRING\) is INT32 there"),
    ):
        with pytest.raises(VerificationError, match=message):
            build(model(call.format(attribute, NODE)), tmp_path / "m.plan")


def test_a_plugin_inside_a_function(tmp_path: Path, plugin: Callable[..., None]) -> None:
    plugin("Scale")
    outer = f'<domain: "my.ops", opset_import: ["": 17, "gr.ml.infra": 1]> Outer (a) => (b) {{ t = gr.ml.infra.Scale <{NODE}> (a)  b = Relu (t) }}'
    made = model("(float[n] x) => (float[n] y) { y = my.ops.Outer(x) }", functions=outer)
    made.opset_import.add(domain="gr.ml.infra", version=1)
    with pytest.raises(
        VerificationError, match="builds no engine"
    ):  # the plugin takes no format: it is no more than a name
        build(made, tmp_path / "m.plan", EngineConfig(targets=["SM86"]))
    with pytest.raises(VerificationError, match="attribute power"):
        strange = outer.replace("gr.ml.infra.Scale <", "gr.ml.infra.Scale <power = 1, ")
        made = model("(float[n] x) => (float[n] y) { y = my.ops.Outer(x) }", functions=strange)
        made.opset_import.add(domain="gr.ml.infra", version=1)
        build(made, tmp_path / "m.plan", EngineConfig(targets=["SM86"]))


def test_names_that_tensorrt_knows_are_refused(tmp_path: Path) -> None:
    with pytest.raises(VerificationError, match="TensorRT takes mine for operators of its own"):
        made = model(f"(float[n] x) => (float[n] y) {{ y = gr.ml.infra.Gelu <{NODE}> (x) }}")
        made.graph.node[0].name = "mine"
        build(made, tmp_path / "m.plan")


def test_values_that_become_shapes_are_refused(tmp_path: Path) -> None:
    made = model("(float[n] x, int64[2] shape) => (float[a, b] y) { y = Reshape(x, shape) }")
    with pytest.raises(UsageError, match="values of input shape become a shape"):
        build(made, tmp_path / "m.plan", EngineConfig(targets=["SM86"]))


def in_a_process(jobs: list[dict[str, Any]]) -> list[dict[str, Any]]:
    done = subprocess.run(
        [sys.executable, "-m", "tests.runtime.build_worker"],
        input=json.dumps({"jobs": jobs}),
        capture_output=True,
        text=True,
        cwd=ROOT,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    answers: list[dict[str, Any]] = json.loads(done.stdout)
    return answers


def test_every_fused_operator_is_a_plugin_in_float16_where_it_shall_be(tmp_path: Path) -> None:
    """What `FusedOp.float32_inputs` leaves in float32 is what the plugins take in float32. By default only what pays is a plugin."""
    pytest.importorskip("triton")
    torch = pytest.importorskip("torch")
    from tests.plugin_csrc.built import library
    from tests.plugin_csrc.test_launches import CASES

    operators = {fusion.operator.name: fusion.operator for fusion in onnx_fuse.fusions()}
    kinds = {torch.bool: TensorProto.BOOL, torch.int32: TensorProto.INT32, torch.int64: TensorProto.INT64}
    jobs = []
    for name in sorted(operators):
        case = max((one for one in CASES if one.name == name), key=lambda one: len(one.inputs))
        attributes = {key: case.attributes.get(key) for key in operators[name].attributes}
        inputs, weights = [], []
        for key, item in case.inputs.items():
            kind = kinds.get(item.dtype, TensorProto.FLOAT)
            if kind == TensorProto.FLOAT and (item.ndim == 1 or "weight" in key or "table" in key):
                weights.append(onnx.numpy_helper.from_array(np.ones(tuple(item.shape), np.float32), key))
            else:
                inputs.append(helper.make_tensor_value_info(key, kind, tuple(item.shape)))
        outputs = {key: key for key in case.outputs}
        node = operators[name].make_node({key: key for key in case.inputs}, outputs, attributes, "node")
        body = operators[name].make_function(list(case.inputs), list(outputs), attributes, {"": 17}, TensorProto.FLOAT)
        values = [onnx.ValueInfoProto(name=key) for key in outputs]
        graph = helper.make_graph([node], "one", inputs, values, weights)
        for value in graph.output:
            value.type.tensor_type.elem_type = TensorProto.FLOAT
        opsets = [helper.make_opsetid("", 17), helper.make_opsetid("gr.ml.infra", 1)]
        path = tmp_path / f"{name}.onnx"
        onnx.save(helper.make_model(graph, functions=[body], opset_imports=opsets, ir_version=10), path)
        settings = {"precision": "fp16", "targets": ["SM86"], "plugins": [str(library())], "select": "all"}
        jobs.append({"model": str(path), "output": str(path.with_suffix(".plan")), "config": settings})
    swish: dict[str, Any] = next(job for job in jobs if "FusedSwish" in job["model"])
    by_cost = {**swish, "output": str(tmp_path / "auto.plan"), "config": {**swish["config"], "select": "auto"}}
    *answers, inlined = in_a_process([*jobs, by_cost])
    assert inlined["plugins"] == [] and inlined["without_plugin"] == {"its plugin is not predicted to pay": ["node"]}
    assert [item["keep"] for item in inlined["selection"]["decisions"]] == [False]
    assert inlined["record"]["options"]["without_plugin"] == ["node"] and inlined["record"]["plugins"] == {}
    for job, answer in zip(jobs, answers, strict=True):
        assert "error" not in answer, f"{job['model']}: {answer}"
        assert answer["plugins"] == ["node"] and answer["converted"] == [1, 0] and answer["without_plugin"] == {}
        assert list(answer["record"]["plugins"]) == [str(library())]


# --- the branches of a TensorRT that cannot be installed here: a double of its module, for the logic alone --------------


class Double:
    """What `configure` calls of TensorRT 10 and 11, noted."""

    IBuilderConfig = object
    MemoryPoolType = SimpleNamespace(WORKSPACE="workspace")
    ProfilingVerbosity = SimpleNamespace(DETAILED="detailed")
    __name__, __version__ = "tensorrt", "11.0"

    def __init__(self) -> None:
        self.calls: list[Any] = []
        self.profiling_verbosity = self.builder_optimization_level = None

    def create_builder_config(self) -> Any:
        return self

    def set_memory_pool_limit(self, pool: str, size: int) -> None:
        self.calls.append((pool, size))

    def create_timing_cache(self, content: bytes) -> bytes:
        return content

    def set_timing_cache(self, cache: bytes, ignore_mismatch: bool) -> bool:
        self.calls.append(("timing cache", cache))
        return True


def test_a_module_without_targets(saved: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    double = Double()
    monkeypatch.setattr(binding, "module", lambda: double)
    can = binding.features()
    assert can.targets == () and can.timing_cache
    (tmp_path / "cache").write_bytes(b"measured")
    config = EngineConfig(workspace="1K", opt_level=4, timing_cache=tmp_path / "cache")
    network: Any = SimpleNamespace(builder=double, network=SimpleNamespace(num_inputs=0))
    configure(network, config, (), ())
    assert double.calls == [("workspace", 1024), ("timing cache", b"measured")]
    assert (double.builder_optimization_level, double.profiling_verbosity) == (4, "detailed")

    monkeypatch.setattr(gpus, "first", lambda: None)
    with pytest.raises(UsageError, match="builds for the GPU of this machine, and there is none") as error:
        build(saved, tmp_path / "mlp.plan", EngineConfig(plugins=[]))
    assert "--target SM86" in error.value.remedy
    with pytest.raises(UsageError, match="only, not for SM86"):
        build(saved, tmp_path / "mlp.plan", EngineConfig(targets=["SM86"]))
