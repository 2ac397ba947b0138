"""`OrtSession` and `open`: fused models on a CPU with the code that runs engines."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import ModelProto

import onnx_fuse
from onnx_fuse import installation, runtime
from onnx_fuse.errors import ModelError, UsageError
from onnx_fuse.runtime import Engine, OrtSession
from onnx_fuse.runtime.device import cuda
from onnx_fuse.runtime.onnxruntime.executor import OrtExecutor, marked
from tests.helpers import model
from tests.runtime.engines import write_engine

X = np.arange(8, dtype=np.float32).reshape(2, 4) - 4
SWISH = """<domain: "gr.ml.infra", opset_import: ["" : 17]>
FusedSwish <beta>(q) => (r) { c = Constant<value_float: float=@beta>() d = Mul(q, c) s = Sigmoid(d) r = Mul(q, s) }"""
OUTER = """<domain: "gr.ml.infra", opset_import: ["" : 17, "gr.ml.infra": 1]>
Twice <beta>(q) => (r) { d = gr.ml.infra.FusedSwish <beta: float=@beta>(q) r = Add(d, d) }"""


@pytest.fixture(autouse=True)
def no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """As if there were none, wherever this runs."""

    def refuse(number: int = 0) -> None:
        raise UsageError("There is no CUDA driver here.", "Install NVIDIA's driver, or run on the CPU.")

    monkeypatch.setattr("onnx_fuse.runtime.tensorrt.executor.CudaDevice", refuse)


def swish() -> ModelProto:
    made = model(
        "(float[n,4] x) => (float[n,4] y) { a = gr.ml.infra.FusedSwish <beta=1.0>(x) "
        "b = MatMul(a, w) y = gr.ml.infra.FusedSwish <beta=2.0>(b) }",
        functions=SWISH,
        weights={"w": np.eye(4, dtype=np.float32)},
    )
    for node, name in zip(made.graph.node, ("first", "product", ""), strict=True):
        node.name = name
    return made


def test_a_fused_model_runs_through_its_bodies(tmp_path: Path) -> None:
    original = model("(float[n,4] x) => (float[n,4] y) { s = Sigmoid(x) y = Mul(x, s) }")
    fused = onnx_fuse.fuse(original, enable=["FusedSwish"])
    assert fused.report.fused == {"FusedSwish": 1}
    fused.save(tmp_path / "fused.onnx")
    session = runtime.open(tmp_path / "fused.onnx")
    assert isinstance(session, OrtSession) and session.description.startswith("ONNX Runtime ")
    np.testing.assert_allclose(session.infer({"x": X})["y"], X / (1 + np.exp(-X)), rtol=1e-5)
    assert [(item.name, item.dtype, item.shape) for item in session.inputs] == [("x", "float32", ("n", 4))]


def test_external_data_is_found(tmp_path: Path) -> None:
    onnx.save(
        model("(float[n,4] x) => (float[n,2] y) { y = MatMul(x, w) }", weights={"w": np.ones((4, 2), np.float32)}),
        tmp_path / "m.onnx",
        save_as_external_data=True,
        location="m.data",
        size_threshold=0,
    )
    session = runtime.open(tmp_path / "m.onnx")
    np.testing.assert_array_equal(session.infer({"x": X})["y"], X @ np.ones((4, 2), np.float32))
    assert [layer.nodes for layer in session.layers({"x": X}, runs=2)] == [("y",)]


def test_what_no_session_takes(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="no such file"):
        runtime.open(tmp_path / "missing.onnx")
    (tmp_path / "text.onnx").write_text("hello")
    with pytest.raises(ModelError, match=r"text\.onnx"):
        runtime.open(tmp_path / "text.onnx")
    with pytest.raises(ModelError, match=r"'s' is a tensor\(string\)"):
        OrtSession(model("(string[n] s) => (string[n] y) { y = Identity(s) }"))
    onnx.save(swish(), tmp_path / "m.onnx")
    with pytest.raises(UsageError, match="no CUDA graphs"):
        runtime.open(tmp_path / "m.onnx", cuda_graphs=1)


# --- engines without a GPU -------------------------------------------------------------------------------------------


def test_an_engine_without_a_gpu_points_at_its_model(tmp_path: Path) -> None:
    path = write_engine(tmp_path, swish())
    with pytest.raises(UsageError) as caught:
        runtime.open(path)
    assert str(path) in caught.value.cause and "no CUDA driver" in caught.value.cause
    assert str(tmp_path / "model.onnx") in caught.value.remedy and "fallback=True" in caught.value.remedy


def test_an_engine_falls_back_to_its_model_when_asked(tmp_path: Path) -> None:
    session = runtime.open(write_engine(tmp_path, swish()), fallback=True, cuda_graphs=3)
    assert isinstance(session, OrtSession) and "model.onnx" in session.description
    assert session.infer({"x": X})["y"].shape == (2, 4)


def test_an_engine_whose_model_is_gone(tmp_path: Path) -> None:
    path = write_engine(tmp_path)
    for fallback in (False, True):
        with pytest.raises(UsageError, match="no CUDA driver"):
            runtime.open(path, fallback=fallback)


def test_a_damaged_engine_does_not_fall_back(tmp_path: Path) -> None:
    path = write_engine(tmp_path, swish())
    path.write_bytes(b"something else")
    with pytest.raises(ModelError, match="hash differs"):
        runtime.open(path, fallback=True)
    path.with_name("model.engine.json").unlink()
    with pytest.raises(ModelError, match="has no record"):
        Engine(path)


def test_cuda_python_that_is_missing_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "cuda.bindings.driver", None)
    cuda._driver.cache_clear()
    with pytest.raises(UsageError, match=r"cuda-python is not installed") as caught:
        cuda.devices()
    assert caught.value.remedy.endswith(installation.add_extra("serve"))


# --- layers ----------------------------------------------------------------------------------------------------------


def test_layers_are_the_nodes_of_the_model() -> None:
    layers = OrtSession(swish(), optimise=False).layers({"x": X}, runs=3)
    assert [(layer.nodes, layer.operators) for layer in layers] == [
        (("first",), ("FusedSwish",)),
        (("product",), ("MatMul",)),
        (("y",), ("FusedSwish",)),  # without a name of its own: by its output
    ]
    assert all(layer.seconds > 0 for layer in layers)
    assert [layer.products == layer.seconds for layer in layers] == [False, True, False]
    assert layers[0].products == 0


def test_layers_of_functions_that_call_functions() -> None:
    made = model(
        "(float[n,4] x) => (float[n,4] y) { a = gr.ml.infra.Twice <beta=1.0>(x) y = gr.ml.infra.Twice <beta=1.0>(a) }",
        functions=SWISH + "\n" + OUTER,
    )
    layers = OrtSession(made, optimise=False).layers({"x": X}, runs=1)
    assert [layer.nodes for layer in layers] == [("a",), ("y",)]
    np.testing.assert_array_equal(OrtSession(marked(made)).infer({"x": X})["y"], OrtSession(made).infer({"x": X})["y"])


def test_time_in_a_branch_is_that_of_its_if() -> None:
    made = model(
        """(float[n,4] x, bool c) => (float[n,4] y) {
            y = If (c) <then_branch = g () => (float[n,4] t) { u = Exp(x) t = Neg(u) },
                        else_branch = h () => (float[n,4] e) { e = Abs(x) }>
        }"""
    )
    layers = OrtSession(made, optimise=False).layers({"x": X, "c": np.array(True)}, runs=2)
    assert [(layer.nodes, layer.operators) for layer in layers] == [(("y",), ("If",))]


def test_what_onnx_runtime_makes_of_several_nodes() -> None:
    quick = model("(float[n,4] x) => (float[n,4] y) { s = Sigmoid(x) y = Mul(x, s) }")
    layers = OrtSession(quick).layers({"x": X}, runs=2)
    assert [(layer.nodes, layer.operators) for layer in layers] == [(("y",), ("QuickGelu",))]
    biased = model("(float[n,4] x) => (float[n,4] y) { b = Add(x, c) y = Gelu(b) }", opset=20, weights={"c": X[0]})
    layers = OrtSession(biased).layers({"x": X}, runs=2)
    assert [(layer.nodes, layer.operators) for layer in layers] == [((), ("BiasGelu",))]


def test_an_executor_describes_what_is_open() -> None:
    told = OrtExecutor(swish()).description
    assert "on the CPU, model 'main'; fused nodes by their bodies: there is no kernel library" in told
