"""Which kernel library is used, and which models run by it: decided before anything is registered."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import ModelProto, TensorProto, helper, numpy_helper

from onnx_fuse.errors import UsageError
from onnx_fuse.patterns import fusions
from onnx_fuse.patterns.language.operator import DOMAIN
from onnx_fuse.runtime.device import library_file
from onnx_fuse.runtime.onnxruntime import kernel_library
from onnx_fuse.runtime.onnxruntime.kernel_library import LIBRARY, VARIABLE, Kernels, choose
from onnx_fuse.runtime.plugins import plugin_library
from tests.helpers import copied, model
from tests.runtime.onnxruntime.libraries import recorded, telling

OPERATORS = {item.operator.name: item.operator for item in fusions()}
TOLD: dict[str, Any] = {
    "version": "1",
    "api": 18,
    "instructions": "avx2",
    "available": ["plain", "avx2"],
    "operators": {
        "FusedSwish": {"types": ["float32", "bfloat16", "float16"], "attributes": {}},
        "InteractionTritonFast": {"types": ["float32"], "attributes": {"triangle": ["lower"]}},
    },
}


@pytest.fixture(scope="module")
def told(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return telling(tmp_path_factory.mktemp("library") / "told.so", TOLD)


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The place of this user's library, which is found there."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.delenv(VARIABLE)
    folder = library_file.cache_folder()
    folder.mkdir(parents=True)
    return folder / LIBRARY


def fused(name: str, kind: int = TensorProto.FLOAT, **attributes: Any) -> ModelProto:
    """A model of one fused node, with its body; its data has the type."""
    made: dict[str, Any] = {
        "FusedSwish": ({"x": ["N", 4]}, {"beta": 1.0}),
        "InteractionTritonFast": (
            {"E": ["N", 3, 4]},
            {"triangle": "lower", "self_interaction": 0, "concat_dense": "none"},
        ),
        "FMInteraction": ({"E": ["N", 3, 4]}, {"reduce": 0}),
        "FusedEmbedLayerNorm": (
            {"ids_1": ["N", 4], "table_1": [9, 8], "ids_2": ["N", 4], "table_2": [5, 8]},
            {"num_tables": 2, "norm": "layer", "epsilon": 1e-5},
        ),
    }
    inputs, values = made[name]
    operator, values = OPERATORS[name], {**values, **attributes}
    node = operator.make_node({item: item for item in inputs}, {"output": "output"}, values, "it")
    body = operator.make_function(list(inputs), ["output"], values, {"": 17}, kind)
    graph = helper.make_graph(
        [node],
        "main",
        [
            helper.make_tensor_value_info(item, TensorProto.INT64 if item.startswith("ids") else kind, shape)
            for item, shape in inputs.items()
        ],
        [helper.make_tensor_value_info("output", kind, None)],
    )
    imports = [helper.make_opsetid("", 17), helper.make_opsetid(DOMAIN, 1)]
    return helper.make_model(graph, functions=[body], opset_imports=imports, ir_version=10)


# --- finding it -------------------------------------------------------------------------------------------------------


def test_only_a_library_with_its_record_is_found(cache: Path, told: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert kernel_library.find() is None
    cache.write_bytes(told.read_bytes())
    assert kernel_library.find() is None
    recorded(cache)
    assert kernel_library.find() == cache
    monkeypatch.setenv(VARIABLE, "/elsewhere.so")
    assert kernel_library.find() == Path("/elsewhere.so")
    monkeypatch.setenv(VARIABLE, "")
    assert kernel_library.find() is None


def test_what_it_says_of_itself(cache: Path, told: Path) -> None:
    cache.write_bytes(told.read_bytes())
    held = kernel_library.contents(recorded(cache))
    assert (held.version, held.api, held.instructions, held.advised) == ("1", 18, "avx2", True)
    assert held.operators["InteractionTritonFast"].attributes == {"triangle": frozenset({"lower"})}
    assert held.operators["FusedSwish"].types == {"float32", "float16", "bfloat16"}


def test_a_library_that_is_not_the_one_that_was_built_is_not_loaded(cache: Path, told: Path) -> None:
    cache.write_bytes(told.read_bytes())
    recorded(cache, sha256="0" * 64)
    with pytest.raises(UsageError, match="its hash differs"):
        kernel_library.contents(cache)
    check_refused(cache)


def test_a_damaged_plugin_library_beside_it_is_not_loaded_either(cache: Path, told: Path) -> None:
    """It would be opened for its kernels for GPUs."""
    cache.write_bytes(told.read_bytes())
    recorded(cache)
    plugins = cache.with_name(plugin_library.LIBRARY)
    plugins.write_bytes(b"the right one")
    assert kernel_library.contents(recorded(plugins).with_name(LIBRARY)).operators
    plugins.write_bytes(b"another one")
    with pytest.raises(UsageError, match=f"The plugin library {plugins} .* its hash differs"):
        kernel_library.contents(cache)
    check_refused(cache)


def check_refused(cache: Path) -> None:
    found = choose(fused("FusedSwish"))  # what nobody has named does not stop a model
    assert found.library is None and "its hash differs" in found.reason and found.bodies == {"FusedSwish": 1}
    for choice in (True, cache):
        with pytest.raises(UsageError, match="its hash differs"):
            choose(fused("FusedSwish"), choice)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, "is no kernel library that can be loaded"),
        ("[]", "does not say what it holds"),
        ("{", "does not say what it holds"),
        ({**TOLD, "operators": {"FusedSwish": {}}}, "does not say what it holds"),
        ({**TOLD, "operators": {"FusedSwish": {"types": 1, "attributes": {}}}}, "does not say what it holds"),
        ({**TOLD, "version": 1}, "'version'"),
    ],
)
def test_other_libraries_are_refused(tmp_path: Path, text: Any, message: str) -> None:
    path = telling(tmp_path / "other.so", text)
    with pytest.raises(UsageError, match=message) as caught:
        kernel_library.contents(path)
    assert "plugins build --for onnxruntime" in caught.value.remedy


def test_what_is_named_has_to_be_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "cut.so").write_bytes(b"\x7fELF\x02\x01 and no more")
    for path, message in ((tmp_path / "none.so", "There is no kernel library"), (tmp_path / "cut.so", "can be loaded")):
        with pytest.raises(UsageError, match=message):
            choose(fused("FusedSwish"), path)
        monkeypatch.setenv(VARIABLE, str(path))
        with pytest.raises(UsageError, match=message):
            choose(fused("FusedSwish"))
        assert choose(fused("FusedSwish"), False).library is None
    monkeypatch.setenv(VARIABLE, "")
    with pytest.raises(UsageError, match="No kernel library is found"):
        choose(fused("FusedSwish"), True)


# --- which models -----------------------------------------------------------------------------------------------------


@pytest.fixture
def found(told: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv(VARIABLE, str(told))
    return told


def test_a_model_runs_by_it_as_far_as_it_goes(found: Path, tmp_path: Path) -> None:
    both = fused("FusedSwish")
    both.graph.node.append(fused("FMInteraction").graph.node[0])
    both.graph.node[1].input[0], both.graph.node[1].output[0] = "e", "fm"
    onnx.save(both, tmp_path / "both.onnx")
    for given in (both, tmp_path / "both.onnx", str(tmp_path / "both.onnx")):
        kernels = choose(given)
        assert kernels.library == found and kernels.reason == ""
        assert kernels.nodes == {"FusedSwish": 1} and kernels.bodies == {"FMInteraction": 1}
        assert str(kernels) == f"1 of 2 fused nodes by the kernels (avx2) of {found}, the others by their bodies"
    assert kernels.to_dict()["library"] == str(found) and len(kernels.sha256) == 64


def test_models_that_need_no_kernel(found: Path, tmp_path: Path) -> None:
    assert choose(model("(float[4] x) => (float[4] y) { y = Relu(x) }"), True) == Kernels()
    for choice in (None, True):
        only = choose(fused("FMInteraction"), choice)
        assert only.library is None and only.reason.endswith("has no kernels for FMInteraction")
    assert choose(tmp_path / "missing.onnx") == Kernels()  # that is for ONNX Runtime to say
    assert choose(fused("FusedSwish"), False).reason == "no kernel library was wanted"


def of_version(made: ModelProto, version: int) -> ModelProto:
    next(item for item in made.opset_import if item.domain == DOMAIN).version = version
    return made


def with_attribute(made: ModelProto, name: str, value: str | None) -> ModelProto:
    kept = [item for item in made.graph.node[0].attribute if item.name != name]
    del made.graph.node[0].attribute[:]
    made.graph.node[0].attribute.extend(kept)
    if value is not None:
        made.graph.node[0].attribute.append(helper.make_attribute(name, value))
    return made


UNFIT: dict[str, tuple[Callable[[], ModelProto], str]] = {
    "mode": (lambda: fused("InteractionTritonFast", triangle="upper"), "InteractionTritonFast it has triangle='upper'"),
    "type": (lambda: fused("InteractionTritonFast", TensorProto.FLOAT16), "InteractionTritonFast it is of float16"),
    "float64": (lambda: fused("FusedSwish", TensorProto.DOUBLE), "FusedSwish it is of float64"),
    "version": (lambda: of_version(fused("FusedSwish"), 2), "FusedSwish it is of version 2 of gr.ml.infra"),
    "another plugin": (
        lambda: with_attribute(fused("FusedSwish"), "plugin_version", "2"),
        "FusedSwish it is another operator of that name",
    ),
    "other inputs": (
        lambda: with_attribute(fused("FusedSwish"), "inputs", "gate"),
        "FusedSwish it is another operator of that name",
    ),
    "no inputs": (
        lambda: with_attribute(fused("FusedSwish"), "inputs", None),
        "FusedSwish it is another operator of that name",
    ),
    "no attributes": (
        lambda: with_attribute(fused("FusedSwish"), "beta", None),
        "FusedSwish it is another operator of that name",
    ),
}


@pytest.mark.parametrize("case", UNFIT)
def test_where_it_lacks_something_bodies_run_and_it_is_said_why(found: Path, case: str) -> None:
    make, reason = UNFIT[case]
    kernels = choose(make())
    assert kernels.library is None and kernels.nodes == {} and sum(kernels.bodies.values()) == 1
    assert kernels.reason.startswith(reason), kernels.reason
    assert str(kernels).startswith("fused nodes by their bodies: ")
    with pytest.raises(UsageError, match="cannot run the model") as caught:
        choose(make(), True)
    assert reason in caught.value.cause and caught.value.remedy


@pytest.mark.parametrize("kind", [TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.BFLOAT16])
def test_every_type_that_it_names(found: Path, kind: int) -> None:
    assert choose(fused("FusedSwish", kind)).nodes == {"FusedSwish": 1}


def test_the_type_is_found_where_the_model_does_not_write_it_down(found: Path) -> None:
    """Behind other operators, behind another fused node, and in a branch."""
    for kind, fits in ((TensorProto.FLOAT, True), (TensorProto.FLOAT16, False)):
        made = fused("InteractionTritonFast", kind)
        swish = fused("FusedSwish", kind)
        made.functions.extend(swish.functions)
        nodes = [
            helper.make_node("Add", ["E", "w"], ["sum"]),
            helper.make_node("Split", ["sum"], ["first", "second"], axis=0),
            swish.graph.node[0],
            made.graph.node[0],
        ]
        nodes[2].input[0], nodes[2].output[0], nodes[3].input[0] = "second", "swished", "swished"
        ones = np.ones((4, 3, 4), helper.tensor_dtype_to_np_dtype(kind))
        made.graph.initializer.append(numpy_helper.from_array(ones, "w"))
        made.graph.input[0].type.tensor_type.shape.dim[0].dim_value = 4
        behind = copied(made)
        del behind.graph.node[:]
        behind.graph.node.extend(nodes)
        assert (choose(behind).library is not None) == fits
        branch = helper.make_graph(nodes[:], "branch", [], [helper.make_tensor_value_info("output", 0, None)])
        branch.output[0].ClearField("type")
        both = copied(made)
        del both.graph.node[:]
        both.graph.node.append(helper.make_node("If", ["c"], ["output"], then_branch=branch, else_branch=branch))
        both.graph.input.append(helper.make_tensor_value_info("c", TensorProto.BOOL, []))
        assert (choose(both).library is not None) == fits


@pytest.mark.parametrize("domain", [DOMAIN, "my.ops"])
def test_nodes_in_functions_count(found: Path, domain: str) -> None:
    """Also in the body of an operator of the user's own: ONNX Runtime inlines that, and would run the kernel."""
    for attribute, fits in (("lower", True), ("upper", False)):
        inner = fused("InteractionTritonFast", triangle=attribute)
        made = copied(inner)
        imports = [helper.make_opsetid("", 17), helper.make_opsetid(DOMAIN, 1)]
        body = helper.make_function(domain, "Own", ["E"], ["output"], [inner.graph.node[0]], imports)
        made.functions.append(body)
        del made.graph.node[:]
        made.graph.node.append(helper.make_node("Own", ["E"], ["output"], domain=domain))
        kernels = choose(made)
        assert (kernels.library is not None) == fits
        assert ("triangle='upper'" in kernels.reason) != fits


def test_bodies_run_where_they_are_faster(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    slow = telling(tmp_path / "slow.so", {**TOLD, "instructions": "plain", "advised": False})
    monkeypatch.setenv(VARIABLE, str(slow))
    found = choose(fused("FusedSwish"))
    assert found.library is None and "on this machine they are faster" in found.reason
    assert choose(fused("FusedSwish"), True).library == slow


def test_a_kernel_that_slows_the_rest_of_a_model_is_not_taken_for_itself(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    operators = {name: {"types": ["float32"]} for name in ("FusedEmbedLayerNorm", "FusedSwish")}
    library = telling(tmp_path / "both.so", {**TOLD, "operators": operators})
    monkeypatch.setenv(VARIABLE, str(library))
    alone = fused("FusedEmbedLayerNorm")
    kernels = choose(alone)
    assert kernels.library is None and "makes the rest of a model slower" in kernels.reason
    assert choose(alone, True).library == library
    alone.graph.node.extend(fused("FusedSwish").graph.node)
    assert choose(alone).library == library
