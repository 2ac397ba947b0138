"""The kernel library in ONNX Runtime: every operator, type and mode loads; what is the user's own runs by its body."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import ModelProto, TensorProto, helper

import onnx_fuse
from onnx_fuse import runtime
from onnx_fuse.errors import UsageError
from onnx_fuse.patterns.language.operator import DOMAIN
from onnx_fuse.runtime.debug import debug
from onnx_fuse.runtime.onnxruntime import kernel_library, register
from onnx_fuse.runtime.onnxruntime.kernel_library import VARIABLE
from onnx_fuse.runtime.verify import body_attributes
from onnx_fuse.runtime.verify.verification import verify
from tests.helpers import copied, model
from tests.patterns.test_bodies import CASES, OPERATORS, Case, drawn, node_and_body, shape
from tests.runtime.onnxruntime.libraries import library, telling

SIZES = {"B": 2, "S": 5}
TYPES = {"float32": TensorProto.FLOAT, "float16": TensorProto.FLOAT16, "bfloat16": TensorProto.BFLOAT16}


@pytest.fixture(scope="module")
def kernels() -> Path:
    return library()


@pytest.fixture
def installed(kernels: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The library is the one that is found."""
    monkeypatch.setenv(VARIABLE, str(kernels))
    return kernels


def of_type(case: Case, kind: int) -> ModelProto:
    """The case's node with its body, floats in that type."""
    made = node_and_body(case, 18)
    for value in (*made.graph.input, *made.graph.output):
        if value.type.tensor_type.elem_type == TensorProto.FLOAT:
            value.type.tensor_type.elem_type = kind
    return made


def fed(made: ModelProto, case: Case) -> dict[str, np.ndarray]:
    kinds = {value.name: value.type.tensor_type.elem_type for value in made.graph.input}
    return {
        name: drawn(told, SIZES).astype(helper.tensor_dtype_to_np_dtype(kinds[name]))
        for name, told in case.inputs.items()
    }


def profiled(session: ort.InferenceSession) -> set[str]:
    """Operators that ran."""
    path = Path(session.end_profiling())
    events = json.loads(path.read_text())
    path.unlink()
    return {event["args"]["op_name"] for event in events if event["name"].endswith("_kernel_time")}


@pytest.mark.parametrize("optimise", [False, True])
@pytest.mark.parametrize("kind", TYPES)
@pytest.mark.parametrize("case", CASES, ids=str)
def test_every_operator_type_and_mode_loads_and_runs(case: Case, kind: str, optimise: bool, installed: Path) -> None:
    """By its kernel where the library has one, else by its body; ONNX Runtime has no bfloat16 for many bodies."""
    made = of_type(case, TYPES[kind])
    has_kernel = case.operator in kernel_library.contents(installed).operators
    chosen = kernel_library.choose(made, True if has_kernel else None)
    assert chosen.nodes == ({case.operator: 1} if has_kernel else {}), chosen.reason
    if kind == "bfloat16" and not has_kernel:
        return
    session = runtime.OrtSession(made, optimise=optimise, threads=1, library=True if has_kernel else None)
    inputs = fed(made, case)
    if kind == "bfloat16":
        for value in session.executor.session.get_outputs():
            assert value.type == "tensor(bfloat16)"
        return
    found = session.infer(inputs)
    bodies = runtime.OrtSession(made, optimise=optimise, threads=1, library=False).infer(inputs)
    for name, told in case.outputs.items():
        assert found[name].shape == shape(told, SIZES) and found[name].dtype == kind
        scale = max(1.0, float(np.abs(bodies[name].astype(np.float32)).max()))
        assert np.abs(found[name].astype(np.float32) - bodies[name]).max() <= scale * (
            1e-5 if kind == "float32" else 2e-3
        )
    if has_kernel:
        (layer,) = [layer for layer in session.layers(inputs, runs=1) if layer.operators == (case.operator,)]
        assert layer.nodes == ("fused",)


def test_every_operator_with_a_kernel_is_one_of_ours(installed: Path) -> None:
    held = kernel_library.contents(installed)
    assert set(held.operators) == set(OPERATORS) - {"FusedAttentionLayerNorm", "FusedLinearLayerNorm"}
    assert all(takes.types == set(TYPES) for takes in held.operators.values())
    assert held.version == "1" and held.instructions in ("plain", "avx2", "avx512")


# --- sessions ---------------------------------------------------------------------------------------------------------


def swish(beta: float = 1.0) -> ModelProto:
    original = model("(float[n,4] x) => (float[n,4] y) { s = Sigmoid(x) y = Mul(x, s) }")
    made = onnx_fuse.fuse(original, enable=["FusedSwish"], verify=False).model
    next(item for item in made.graph.node[0].attribute if item.name == "beta").f = beta
    return made


X = np.arange(8, dtype=np.float32).reshape(2, 4) - 4


def test_it_is_found_and_turned_off(installed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    onnx.save(swish(), tmp_path / "swish.onnx")
    session = runtime.open(tmp_path / "swish.onnx")
    assert isinstance(session, runtime.OrtSession) and session.kernels.library == installed
    assert f"by the kernels ({session.kernels.instructions}) of {installed}" in repr(session)
    np.testing.assert_allclose(session.infer({"x": X})["y"], X / (1 + np.exp(-X)), rtol=1e-5)
    off = runtime.open(tmp_path / "swish.onnx", library=False)
    assert isinstance(off, runtime.OrtSession) and off.kernels.library is None
    assert "by their bodies: no kernel library was wanted" in repr(off)
    monkeypatch.setenv(VARIABLE, "")
    named = runtime.open(tmp_path / "swish.onnx", library=installed)
    assert isinstance(named, runtime.OrtSession) and named.kernels.library == installed


def test_an_original_says_nothing_of_kernels(installed: Path) -> None:
    session = runtime.OrtSession(model("(float[n,4] x) => (float[n,4] y) { y = Relu(x) }"), library=True)
    assert session.description.endswith("on the CPU, model 'main'")


OWN = '<domain: "{domain}", opset_import: ["" : 17]> Own (q) => (r) {{ r = Add(q, q) }}'


@pytest.mark.parametrize("domain", [DOMAIN, "my.ops"])
def test_an_operator_of_the_users_own_runs_by_its_body(domain: str, installed: Path) -> None:
    """Beside one of ours, in the same session."""
    made = swish()
    own = model(f"(float[n,4] x) => (float[n,4] y) {{ y = {domain}.Own(x) }}", functions=OWN.format(domain=domain))
    own.graph.node[0].input[0], own.graph.node[0].output[0], made.graph.node[0].output[0] = "swished", "y", "swished"
    made.graph.node.extend(own.graph.node)
    made.functions.extend(own.functions)
    if domain != DOMAIN:
        made.opset_import.append(helper.make_opsetid(domain, 1))
    session = runtime.OrtSession(made)
    assert session.kernels.nodes == {"FusedSwish": 1}
    np.testing.assert_allclose(session.infer({"x": X})["y"], 2 * X / (1 + np.exp(-X)), rtol=1e-5)


def test_an_operator_of_the_users_own_with_the_name_of_one_of_ours_runs_by_its_body(installed: Path) -> None:
    made = model(
        "(float[n,4] x) => (float[n,4] y) { y = gr.ml.infra.FusedSwish(x) }",
        functions=OWN.format(domain=DOMAIN).replace("Own", "FusedSwish"),
    )
    session = runtime.OrtSession(made)
    np.testing.assert_array_equal(session.infer({"x": X})["y"], 2 * X)
    assert "is another operator of that name" in session.description


@pytest.mark.parametrize("functions", ["keep", "none"])
def test_a_node_has_a_kernel_whatever_its_body(functions: Any, installed: Path, tmp_path: Path) -> None:
    """Under an overload, and without a body."""
    original = model("(float[n,4] x) => (float[n,4] y) { s = Sigmoid(x) y = Mul(x, s) }")
    made = onnx_fuse.fuse(original, enable=["FusedSwish"], functions=functions).model
    if made.functions:
        made.functions[0].overload = made.graph.node[0].overload = "v7"
    session = runtime.OrtSession(made, library=True)
    np.testing.assert_allclose(session.infer({"x": X})["y"], X / (1 + np.exp(-X)), rtol=1e-5)
    assert [layer.operators for layer in session.layers({"x": X}, runs=1)] == [("FusedSwish",)]


# --- sessions of the user's own ---------------------------------------------------------------------------------------


def opened(made: ModelProto, options: ort.SessionOptions, folder: Path) -> ort.InferenceSession:
    options.enable_profiling, options.profile_file_prefix = True, str(folder / "profile")
    return ort.InferenceSession(made.SerializeToString(), options, providers=["CPUExecutionProvider"])


def test_register(installed: Path, tmp_path: Path) -> None:
    options = ort.SessionOptions()
    onnx.save(swish(), tmp_path / "swish.onnx")
    for given in ((), (swish(),), (tmp_path / "swish.onnx",)):  # again and again is as good as once
        assert register(options, *given).library == installed
    session = opened(swish(), options, tmp_path)
    np.testing.assert_allclose(session.run(None, {"x": X})[0], X / (1 + np.exp(-X)), rtol=1e-5)
    assert profiled(session) == {"FusedSwish"}


def test_register_nothing(tmp_path: Path, kernels: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where there is no library, where it is not wanted, and where it lacks something: bodies run."""
    unfit = swish()
    unfit.graph.node[0].attribute.remove(
        next(item for item in unfit.graph.node[0].attribute if item.name == "plugin_version")
    )
    monkeypatch.setenv(VARIABLE, "")
    cases: list[Callable[[ort.SessionOptions], Any]] = [
        lambda options: register(options),
        lambda options: register(options, swish(), library=False),
        lambda options: _found(monkeypatch, kernels) or register(options, unfit),
    ]
    for case in cases:
        options = ort.SessionOptions()
        found = case(options)
        assert found.library is None and found.reason
        session = opened(swish(), options, tmp_path)
        np.testing.assert_allclose(session.run(None, {"x": X})[0], X / (1 + np.exp(-X)), rtol=1e-5)
        assert "FusedSwish" not in profiled(session)


def _found(monkeypatch: pytest.MonkeyPatch, path: Path) -> None:
    monkeypatch.setenv(VARIABLE, str(path))


def test_options_take_one_library(installed: Path, tmp_path: Path) -> None:
    """ONNX Runtime would say so only where a session is opened, and not which options they were."""
    options = ort.SessionOptions()
    register(options)
    copy = tmp_path / "copy.so"
    copy.write_bytes(installed.read_bytes() + b"\0")
    with pytest.raises(UsageError, match="have a kernel library already, and another one is wanted") as caught:
        register(options, library=copy)
    assert "SessionOptions of their own" in caught.value.remedy
    with pytest.raises(UsageError, match="already, and the model is to run fused nodes by their bodies: no kernel"):
        register(options, swish(), library=False)
    assert register(options, model("(float[4] x) => (float[4] y) { y = Relu(x) }")).library is None


def test_a_library_that_onnx_runtime_does_not_take(tmp_path: Path) -> None:
    told = {"version": "1", "api": 18, "instructions": "avx2", "operators": {"FusedSwish": {"types": ["float32"]}}}
    with pytest.raises(UsageError, match="ONNX Runtime does not take the kernel library"):
        register(ort.SessionOptions(), swish(), library=telling(tmp_path / "tells.so", told))


# --- verify and debug -------------------------------------------------------------------------------------------------


def test_verify_runs_bodies_unless_it_is_told(installed: Path) -> None:
    original = model("(float[n,4] x) => (float[n,4] y) { s = Sigmoid(x) y = Mul(x, s) }")
    plain = verify(original, swish())
    assert plain.passed and not any("kernel" in note for note in plain.notes)
    found = verify(original, swish(), library=True)
    assert found.passed and any(f"of {installed}" in note for note in found.notes), found.notes
    assert verify(original, swish(), library=installed).passed


def lying(made: ModelProto) -> ModelProto:
    """The body is right, and what the attributes tell the kernel is wrong."""
    wrong = copied(made)
    next(item for item in wrong.graph.node[0].attribute if item.name == "beta").f = 1.5
    (body,) = wrong.functions
    for node in body.node:
        for item in node.attribute:
            if item.ref_attr_name == "beta":
                item.ClearField("ref_attr_name")
                item.f = 1.0
    return wrong


def test_a_kernel_that_is_wrong_is_found(installed: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    original = model("(float[n,4] x) => (float[n,4] y) { s = Sigmoid(x) y = Mul(x, s) }")
    monkeypatch.setattr(body_attributes, "contradicted", lambda *_: ())  # which finds the lie before anything runs
    found = verify(original, lying(swish()), library=True)
    assert not found.passed and "Verify without --library" in found.remedy
    place = debug(original, lying(swish()), library=True).place
    assert place is not None and place.kernel == str(installed) and not place.inside
    assert f"makes by the kernel of {installed}" in place.sentence() and "without --library" in place.remedy()
    assert debug(original, lying(swish())).equal
