"""The plugin library in NVIDIA's parser and builder, and the errors that a user of it meets."""

from __future__ import annotations

import ctypes
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from onnx import TensorProto, helper, save

pytest.importorskip("triton")
torch = pytest.importorskip("torch")

import onnx_fuse
from onnx_fuse.errors import UsageError
from onnx_fuse.patterns.language.operator import FusedOp
from onnx_fuse.plugin_csrc.operators import catalogue
from onnx_fuse.runtime.device.library_file import cache_folder
from onnx_fuse.runtime.plugins import aot, harness, plugin_library
from tests.plugin_csrc.built import CACHE, ROOT, enqueued, library
from tests.plugin_csrc.test_launches import CASES, Case, described, hstu, linear_layer_norm, tensor
from tests.trust import mutations

OPERATORS: dict[str, FusedOp] = {fusion.operator.name: fusion.operator for fusion in onnx_fuse.fusions()}
USED = sorted({case.name for case in CASES})
TYPES = {
    torch.float32: TensorProto.FLOAT,
    torch.float16: TensorProto.FLOAT16,
    torch.bfloat16: TensorProto.BFLOAT16,
    torch.int32: TensorProto.INT32,
    torch.int64: TensorProto.INT64,
    torch.bool: TensorProto.BOOL,
}


def write(case: Case, path: Path, *, dynamic: bool = False, **changed: Any) -> Path:
    """A model of one fused node; with `dynamic`, axes of size 2 (the batch) are left open."""
    operator = OPERATORS[case.name]
    sizes = {
        name: [("batch" if dynamic and at == 2 and not axis else at) for axis, at in enumerate(item.shape)]
        for name, item in case.inputs.items()
    }
    inputs = [helper.make_tensor_value_info(name, TYPES[item.dtype], sizes[name]) for name, item in case.inputs.items()]
    attributes = {**{name: case.attributes.get(name) for name in operator.attributes}, **changed}
    node = operator.make_node(
        {name: name for name in case.inputs}, {name: name for name in case.outputs}, attributes, "node"
    )
    kind = next(item.dtype for item in case.inputs.values() if item.dtype.is_floating_point)
    outputs = [onnx_output(name, TYPES[kind]) for name in case.outputs]
    graph = helper.make_graph([node], "one", inputs, outputs)
    opsets = [helper.make_opsetid("", 20), helper.make_opsetid("gr.ml.infra", 1)]
    save(helper.make_model(graph, opset_imports=opsets, ir_version=10), path)
    return path


def onnx_output(name: str, kind: int) -> Any:
    info = helper.make_empty_tensor_value_info(name)
    info.type.tensor_type.elem_type = kind
    return info


def in_tensorrt(models: list[Path], *capabilities: str) -> list[dict[str, Any]]:
    result = answered(models, *capabilities)
    assert result.returncode == 0, result.stderr
    answers: list[dict[str, Any]] = json.loads(result.stdout)
    return answers


def answered(models: list[Path], *capabilities: str) -> subprocess.CompletedProcess[str]:
    given = {"libraries": [str(library())], "models": [str(model) for model in models], "capabilities": capabilities}
    return subprocess.run(
        [sys.executable, "-m", "tests.plugin_csrc.tensorrt_worker"],
        input=json.dumps(given),
        capture_output=True,
        text=True,
        cwd=ROOT,
        check=False,
    )


def test_every_operator_has_a_plugin_with_its_attributes() -> None:
    assert sorted(OPERATORS) == USED
    examples = {case.name: case.attributes for case in reversed(CASES)}
    for name, operator in OPERATORS.items():
        found = harness.fields(library(), name)
        assert sorted(found) == sorted([*operator.attributes, "inputs", "outputs"])
        for attribute, value in examples[name].items():
            one = (value or [None])[0] if isinstance(value, list) else value
            assert one is None or found[attribute] == type(one).__name__, f"{name}.{attribute}"


def test_every_case_becomes_a_plugin(tmp_path: Path) -> None:
    cases = [
        (case, dynamic)
        for case in CASES
        if 0 not in next(iter(case.inputs.values())).shape
        for dynamic in (False, True)
    ]
    models = [write(case, tmp_path / f"{number}.onnx", dynamic=dynamic) for number, (case, dynamic) in enumerate(cases)]
    for (case, dynamic), answer in zip(cases, in_tensorrt(models), strict=True):
        assert answer["accepted"] and answer["plugins"] == ["node"], f"{case.name} {dynamic} {answer}"


def test_engines_are_built_ahead_of_time(tmp_path: Path) -> None:
    cases = {case.name: case for case in CASES if 0 not in next(iter(case.inputs.values())).shape}
    models = [write(case, tmp_path / f"{name}.onnx", dynamic=True) for name, case in cases.items()]
    for name, answer in zip(cases, in_tensorrt(models, "SM80", "SM86", "SM89", "SM120"), strict=True):
        assert all(isinstance(size, int) and size > 1000 for size in answer["engines"].values()), f"{name}: {answer}"


def test_what_the_operator_does_not_take_is_refused_with_a_reason(tmp_path: Path) -> None:
    case = next(case for case in CASES if case.name == "FusedSkipLayerNorm")
    wrong = write(case, tmp_path / "wrong.onnx", norm="batch")
    answer = answered([wrong])
    assert not json.loads(answer.stdout)[0]["accepted"]
    assert 'node: attribute norm is "batch", which is not known' in answer.stderr


def test_an_engine_for_a_gpu_that_the_library_has_no_kernels_for(tmp_path: Path) -> None:
    """Machine code for sm_80 and PTX of it: nothing older runs that. The engine would fail where it is run."""
    assert plugin_library.held(library(), "FusedSwish") == plugin_library.Held((80,), (80,))
    assert plugin_library.held(library(), "Other") is None
    model = write(CASES[0], tmp_path / "swish.onnx")
    command = [
        sys.executable,
        "-m",
        "onnx_fuse",
        "build",
        model,
        "-o",
        tmp_path / "swish.engine",
        "--plugins",
        library(),
    ]
    done = subprocess.run([*command, "--target", "SM75"], capture_output=True, text=True, check=False)
    assert done.returncode == 2 and not (tmp_path / "swish.engine").exists()
    told = " ".join(done.stderr.split())
    assert "has no kernels of FusedSwish for sm_75; it has machine code for sm_80; PTX for sm_80 and later." in told


def test_a_node_whose_body_says_something_else_is_refused(tmp_path: Path) -> None:
    """The plugin would compute what ONNX Runtime does not."""
    model = onnx_fuse.fuse(mutations.attention_block(), verify=False).model
    save(model, tmp_path / "right.onnx")
    node = next(node for node in model.graph.node if node.op_type == "FusedAttentionLayerNorm")
    next(item for item in node.attribute if item.name == "causal").s = b"upper_left"
    save(model, tmp_path / "wrong.onnx")
    right, wrong = in_tensorrt([tmp_path / "right.onnx", tmp_path / "wrong.onnx"])
    assert right["accepted"] and node.name in right["plugins"]
    assert not wrong["accepted"]
    assert (
        f"node {node.name} (FusedAttentionLayerNorm): attribute causal = 'upper_left' says something else"
        in wrong["errors"][0]
    )


@pytest.mark.parametrize(
    "attributes, reason",
    [
        ({"inputs": "x", "outputs": "output"}, "attribute beta is missing"),
        ({"beta": 1, "inputs": "x", "outputs": "output"}, "attribute beta has to be a float"),
        ({"beta": [1.0, 2.0], "inputs": "x", "outputs": "output"}, "attribute beta has to be one number, not 2"),
        ({"beta": 1.0, "inputs": "x,y", "outputs": "output"}, "FusedSwish has no input y"),
        ({"beta": 1.0, "inputs": "", "outputs": "output"}, "input x is missing"),
        ({"beta": 1.0, "inputs": "x", "outputs": "z"}, "FusedSwish has no output z"),
        ({"beta": 1.0, "inputs": "x", "outputs": ""}, "attribute outputs names none"),
    ],
)
def test_wrong_attributes(attributes: dict[str, Any], reason: str) -> None:
    with pytest.raises(UsageError, match="FusedSwish is refused") as error:
        harness.Plugin(library(), "FusedSwish", attributes)
    assert reason in error.value.cause


def test_wrong_types_are_refused() -> None:
    plugin = harness.Plugin(library(), "FusedSwish", {"beta": 1.0, "inputs": "x", "outputs": "output"})
    x = harness.Tensor("int32", (2, 3))
    assert plugin.refused_position([x], [x]) == 0
    with pytest.raises(UsageError, match="no kernels for data type"):
        plugin.outputs([x])
    half, single = harness.Tensor("float16", (2, 3)), harness.Tensor("float32", (2, 3))
    assert plugin.refused_position([half], [single]) == 1
    with pytest.raises(UsageError, match="has 2 inputs, its attribute inputs names 1"):
        plugin.outputs([half, half])
    plugin.close()


def test_a_weight_whose_sizes_are_not_known_is_refused() -> None:
    """Workspace for the greatest width need not do for a smaller one, which may take two launches."""
    case = linear_layer_norm(64, 256)
    plugin = harness.Plugin(
        library(), case.name, {**case.attributes, "inputs": ",".join(case.inputs), "outputs": "output"}
    )
    given = [harness.Tensor(str(item.dtype)[6:], tuple(item.shape)) for item in case.inputs.values()]
    plugin.outputs(given)
    with pytest.raises(UsageError, match="both axes of input weight have to be known when the engine is built"):
        plugin.outputs(given, known=False)
    plugin.close()


def test_without_a_driver_nothing_is_launched() -> None:
    plugin = harness.Plugin(library(), "FusedSwish", {"beta": 1.0, "inputs": "x", "outputs": "output"})
    x = harness.Tensor("float16", (2, 3), 256)
    try:
        ctypes.CDLL("libcuda.so.1")
    except OSError:
        with pytest.raises(UsageError, match="no CUDA driver"):
            plugin.enqueue([x], [x])
    plugin.close()


def test_a_driver_that_refuses_machine_code_gets_ptx(tmp_path: Path) -> None:
    case = CASES[0]
    made = case.launch()
    run = {
        "name": case.name,
        "attributes": {**case.attributes, "inputs": "x", "outputs": "output"},
        "inputs": [described(item) for item in case.inputs.values()],
        "outputs": [described(made)],
    }
    for settings in ({"FAKE_CUDA_REFUSES_CUBINS": "1"}, {"FAKE_CUDA_SM": "103"}):
        (answer,) = enqueued([run], tmp_path, **settings)
        assert len(answer["launches"]) == 1, f"{settings}: {answer}"
    (answer,) = enqueued([run], tmp_path, FAKE_CUDA_SM="75")
    assert "was not built for sm_75" in answer["error"]


def test_a_library_that_is_not_what_was_built(tmp_path: Path) -> None:
    copy = tmp_path / plugin_library.LIBRARY
    copy.write_bytes(library().read_bytes())
    facts = {"version": "1", "sha256": "0" * 64, "architectures": [80], "variants": 1, "size": 1, "seconds": 1.0}
    copy.with_name(f"{copy.name}.json").write_text(json.dumps(facts))
    with pytest.raises(UsageError, match="its hash differs"):
        plugin_library.described(copy)
    copy.with_name(f"{copy.name}.json").write_text("{")
    with pytest.raises(UsageError, match="is no record of a plugin library"):
        plugin_library.described(copy)
    copy.unlink()
    with pytest.raises(UsageError, match="There is no plugin library"):
        plugin_library.described(copy)


def test_the_library_registers_itself_for_callers_from_c() -> None:
    loaded = ctypes.CDLL(str(library()))
    assert loaded.get_num_registered_plugins() == len(USED)
    script = f"import ctypes; print(ctypes.CDLL({str(library())!r}).initialize_gr_ml_infra_plugins())"
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "-1"  # no TensorRT is loaded there


def test_a_host_that_only_opens_the_library_has_its_plugins_if_it_asks_for_them() -> None:
    """As Triton Inference Server does, in a process that has loaded TensorRT."""
    pytest.importorskip("tensorrt_rtx")
    script = f"""
import ctypes, os
from onnx_fuse.runtime.tensorrt import binding
registry = binding.module().get_plugin_registry()
ctypes.CDLL({str(library())!r}, os.RTLD_NOW | os.RTLD_LOCAL)
print(registry.get_creator("FusedSwish", "1", "gr.ml.infra") is not None)
"""
    for asked, found in (({}, "False"), ({"ONNX_FUSE_REGISTER_PLUGINS": "1"}, "True")):
        result = subprocess.run(
            [sys.executable, "-c", script], capture_output=True, text=True, check=True, env={**os.environ, **asked}
        )
        assert result.stdout.strip() == found, result.stderr


def test_where_libraries_are_looked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setenv(plugin_library.VARIABLE, os.pathsep.join(["/a/x.so", "/b/y.so"]))
    assert plugin_library.find() == [Path("/a/x.so"), Path("/b/y.so")]
    assert plugin_library.find(["z.so"]) == [Path("z.so")]
    monkeypatch.setenv(plugin_library.VARIABLE, "")
    assert plugin_library.find() == []
    monkeypatch.delenv(plugin_library.VARIABLE)
    assert plugin_library.find() == []
    cached = cache_folder() / plugin_library.LIBRARY
    cached.parent.mkdir(parents=True)
    cached.touch()
    cached.with_name(f"{cached.name}.json").touch()
    assert plugin_library.find() == [cached]


def test_a_real_kernel_is_compiled_for_every_architecture(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRITON_CACHE_DIR", str(CACHE / "triton"))
    (module,) = [name for name in aot.kernel_modules() if ".fused_swish." in name]
    kernels = aot.compile_kernels([module], jobs=1)
    assert [kernel.name for kernel in kernels] == [f"fused_swish.{kind}" for kind in ("fp32", "fp16", "bf16")]
    for kernel in kernels:
        assert kernel.signature == "pplf"
        assert [image.architecture for image in kernel.images if not image.ptx] == list(aot.ARCHITECTURES)
        assert [image.architecture for image in kernel.images if image.ptx] == [aot.PTX_ARCHITECTURE]
        assert all(image.symbol == "fused_swish" and image.threads == 128 for image in kernel.images)


@pytest.mark.parametrize(
    "parameters", [".u64 a, .u32 b, .u64 c", ".u64 a, .u32 b, .u64 c, .u64 d, .u64 e", ".u64 a, .u64 b, .u64 c, .u64 d"]
)
def test_a_kernel_that_takes_something_else_than_plugins_pass(parameters: str) -> None:
    """As one of a Triton that adds more than two parameters."""

    def entry(parameters: str) -> str:
        each = ",\n".join(f"\t.param {item.strip()}" for item in parameters.split(","))
        return f".visible .entry kernel(\n{each}\n)\n.reqntid 128\n{{\n}}"

    aot.check_parameters(entry(".u64 .ptr .global .align 1 a, .u32 b, .u64 c, .u64 d"), "pi")
    with pytest.raises(ValueError, match="plugins pass 2 of \\(pi\\) and 2 hidden ones"):
        aot.check_parameters(entry(parameters), "pi")


@pytest.mark.parametrize("other", [{"swizzle": 2}, {"block_size": [128, 32]}, {"elem_size": 4}])
def test_a_kernel_that_takes_another_tensor_map_than_plugins_pass(other: dict[str, Any]) -> None:
    variant = next(each for each in catalogue.variants() if each.name.endswith("tiles.bf16.d128.large"))
    wanted = {"swizzle": 3, "elem_size": 2, "block_size": [128, 64]}
    aot.check_tensor_maps([wanted, wanted], variant)
    with pytest.raises(ValueError, match=r"takes a tensor map of .* and plugins pass"):
        aot.check_tensor_maps([wanted, {**wanted, **other}], variant)


def test_an_architecture_that_is_not_known() -> None:
    with pytest.raises(UsageError, match="cannot be compiled for sm_70"):
        aot.compile_kernels([], [70, 80])


def in_subgraphs(case: Case, path: Path, *, body: bool = True) -> Path:
    """A model with the node of a case three times: in a branch of an If, in the body of a Loop, and outside."""
    operator = OPERATORS[case.name]
    attributes = {name: case.attributes.get(name) for name in operator.attributes}

    def node(name: str) -> Any:
        made = {output: f"{name}_{output}" for output in case.outputs}
        return operator.make_node({each: each for each in case.inputs}, made, attributes, name)

    kind = next(TYPES[item.dtype] for item in case.inputs.values() if item.dtype.is_floating_point)
    out = [onnx_output(f"{name}_{case.outputs[0]}", kind) for name in ("branch", "looped", "outside")]
    then = helper.make_graph([node("branch")], "then", [], out[:1])
    other = helper.make_graph(
        [helper.make_node("Identity", ["outside_" + case.outputs[0]], ["copy"])],
        "else",
        [],
        [onnx_output("copy", kind)],
    )
    counter = [
        helper.make_tensor_value_info("i", TensorProto.INT64, []),
        helper.make_tensor_value_info("go", TensorProto.BOOL, []),
    ]
    going = helper.make_tensor_value_info("going", TensorProto.BOOL, [])
    loop = helper.make_graph(
        [helper.make_node("Identity", ["go"], ["going"]), node("looped")], "loop", counter, [going, out[1]]
    )
    nodes = [
        node("outside"),
        helper.make_node("If", ["c"], ["chosen"], "choice", then_branch=then, else_branch=other),
        helper.make_node("Loop", ["trips", "c"], ["stacked"], "repeated", body=loop),
    ]
    inputs = [helper.make_tensor_value_info(name, TYPES[item.dtype], item.shape) for name, item in case.inputs.items()]
    inputs += [helper.make_tensor_value_info("c", TensorProto.BOOL, [])]
    trips = helper.make_tensor("trips", TensorProto.INT64, [], [3])
    outputs = [out[2], onnx_output("chosen", kind), onnx_output("stacked", kind)]
    bodies = [operator.make_function(list(case.inputs), case.outputs, attributes, {"": 20}, kind)] if body else []
    graph = helper.make_graph(nodes, "three", inputs, outputs, [trips])
    opsets = [helper.make_opsetid("", 20), helper.make_opsetid("gr.ml.infra", 1)]
    save(helper.make_model(graph, opset_imports=opsets, functions=bodies, ir_version=10), path)
    return path


def test_a_plugin_that_needs_workspace_is_no_plugin_in_subgraphs(tmp_path: Path) -> None:
    frugal, greedy = hstu(64), hstu(64, norm="layer", more={"gamma": tensor(128), "beta": tensor(128)})
    models = [
        in_subgraphs(frugal, tmp_path / "frugal.onnx"),
        in_subgraphs(linear_layer_norm(64, 512), tmp_path / "one launch.onnx"),
        in_subgraphs(greedy, tmp_path / "greedy.onnx"),
        in_subgraphs(greedy, tmp_path / "bodiless.onnx", body=False),
    ]
    *both, changed, refused = in_tensorrt(models, "SM86")
    for kept in both:
        assert kept["plugins"] == ["outside", "branch", "looped"] and kept["engines"]["SM86"] > 1000
        assert not kept["inlined"]
    assert changed["plugins"] == ["outside"] and changed["engines"]["SM86"] > 1000
    assert changed["inlined"] == {"gr.ml.infra::HSTUHierarchicalAttention": 2}
    told = [line for line in changed["log"] if "its body is inlined" in line]
    assert [line.split()[2] for line in told] == ["branch", "looped"] and "needs workspace" in told[0]
    assert not refused["accepted"] and len(refused["errors"]) == 2
    assert "the model has no body of it" in refused["errors"][0]
