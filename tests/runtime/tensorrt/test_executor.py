"""The TensorRT executor as far as no GPU is needed: what it refuses, and its calls, on a double that runs in ONNX Runtime."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from onnx_fuse.errors import ModelError, UsageError
from onnx_fuse.runtime import Engine
from onnx_fuse.runtime.device.arrays import Tensor
from onnx_fuse.runtime.onnxruntime.executor import OrtContext, OrtExecutor
from onnx_fuse.runtime.tensorrt import binding
from onnx_fuse.runtime.tensorrt.executor import TensorRTExecutor, allocator, nodes_of
from tests.helpers import model
from tests.runtime.devices import PosingDevice
from tests.runtime.engines import write_engine

X = np.arange(8, dtype=np.float32).reshape(2, 4) - 4
trt = binding.module()


class DoubleEngine:
    """What of `ICudaEngine` and `Runtime` is called, for relu and the places of what is not 0."""

    def __init__(self) -> None:
        self.executor = OrtExecutor(
            model("(float[n,4] x) => (float[n,4] y, int64[2,k] w) { y = Relu(x) w = NonZero(y) }")
        )
        self.contexts: list[DoubleContext] = []

    def get_tensor_location(self, name: str) -> Any:
        return trt.TensorLocation.DEVICE

    def create_execution_context(self) -> Any:
        self.contexts.append(DoubleContext(self.executor))
        return self.contexts[-1]


class DoubleContext:
    """What of `IExecutionContext` is called."""

    def __init__(self, executor: OrtExecutor) -> None:
        self.executor = executor
        self.shape: tuple[int, ...] = ()
        self.addresses: dict[str, int] = {}
        self.allocators: dict[str, Any] = {}
        self.profile: Any = None
        self.profiler: Any = None
        self.enqueue_emits_profile = False

    def set_optimization_profile_async(self, profile: int, stream: int) -> bool:
        self.profile = (profile, stream)
        return True

    def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool:
        self.shape = shape
        return True

    def infer_shapes(self) -> list[str]:
        return [] if self.shape else ["x"]

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        return self.shape if name == "y" else (2, -1)

    def set_tensor_address(self, name: str, address: int) -> bool:
        self.addresses[name] = address
        return True

    def set_output_allocator(self, name: str, found: Any) -> bool:
        self.allocators[name] = found
        return True

    def execute_async_v3(self, stream: int) -> bool:
        assert (0, stream) == self.profile
        context = OrtContext(self.executor)
        inputs = {"x": Tensor(self.addresses["x"], "float32", self.shape)}
        context.prepare(inputs)
        context.enqueue(inputs, {"y": Tensor(self.addresses["y"], "float32", self.shape)})
        places = context.made()["w"].numpy()
        target = self.allocators["w"].reallocate_output("w", 0, places.nbytes, 256)
        Tensor(target, "int64", places.shape).numpy()[...] = places
        self.allocators["w"].notify_shape("w", places.shape)
        for layer, milliseconds in (("relu", 1.0), ("{ForeignNode[relu...nonzero]}", 2.0)):
            if self.profiler and self.enqueue_emits_profile:
                self.profiler.report_layer_time(layer, milliseconds)
        return True


@pytest.fixture
def double(monkeypatch: pytest.MonkeyPatch) -> Iterator[DoubleEngine]:
    engine = DoubleEngine()
    real = binding.module()

    class Module(SimpleNamespace):
        def __getattr__(self, name: str) -> Any:
            return getattr(real, name)

    runtime = SimpleNamespace(deserialize_cuda_engine=lambda plan: engine)
    monkeypatch.setattr(binding, "module", lambda: Module(__name__="tensorrt_rtx", Runtime=lambda logger: runtime))
    yield engine


def test_every_call_of_the_double_is_one_of_the_module() -> None:
    for double, real in ((DoubleContext, trt.IExecutionContext), (DoubleEngine, trt.ICudaEngine)):
        called = {name for name in vars(double) if not name.startswith("_")}
        assert called <= set(dir(real))
    assert {"profiler", "enqueue_emits_profile"} <= set(dir(trt.IExecutionContext))
    assert "deserialize_cuda_engine" in dir(trt.Runtime)


def test_an_engine_runs(tmp_path: Path, double: DoubleEngine) -> None:
    device = PosingDevice()
    engine = Engine(TensorRTExecutor(write_engine(tmp_path), device))
    earlier = []
    for rows in (2, 5, 2):
        x = np.random.default_rng(rows).standard_normal((rows, 4)).astype(np.float32)
        results = engine.infer({"x": x})
        np.testing.assert_array_equal(results["y"], np.maximum(x, 0))
        np.testing.assert_array_equal(results["w"], np.stack(np.nonzero(results["y"])))
        there = engine.infer({"x": Tensor(x.ctypes.data, "float32", x.shape, device.where, x)})["w"]
        earlier.append((there, results["w"]))
    for there, places in earlier:  # not written over by later runs
        np.testing.assert_array_equal(Tensor(there.address, "int64", there.shape, owner=there).numpy(), places)
    assert len(double.contexts) == 1
    with pytest.raises(UsageError, match=r"input 'x' has shape \[33, 4\]; the engine allows \[1..32, 4\]"):
        engine.infer({"x": np.ones((33, 4), np.float32)})


def test_layers_of_an_engine_and_their_nodes(tmp_path: Path, double: DoubleEngine) -> None:
    made = model("(float[n,4] x) => (float[n,4] y, int64[2,k] w) { y = Relu(x) w = NonZero(y) }")
    for node, name in zip(made.graph.node, ("relu", "places"), strict=True):
        node.name = name
    layers = {"relu": ("relu",), "nonzero": ("places",)}
    engine = Engine(TensorRTExecutor(write_engine(tmp_path, made, layers=layers), PosingDevice()))
    found = engine.layers({"x": X}, runs=3)
    assert [(layer.seconds, layer.nodes, layer.operators) for layer in found] == [
        (0.001, ("relu",), ("Relu",)),
        (0.002, ("relu", "places"), ("Relu", "NonZero")),
    ]
    assert [layer.products for layer in found] == [0, 0]


def test_a_refused_shape_and_a_failing_run_give_the_reason(
    tmp_path: Path, double: DoubleEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = Engine(TensorRTExecutor(write_engine(tmp_path), PosingDevice()))
    monkeypatch.setattr(DoubleContext, "execute_async_v3", lambda self, stream: False)
    with pytest.raises(ModelError, match="TensorRT cannot run the engine: no reason was logged"):
        engine.infer({"x": X})
    monkeypatch.setattr(DoubleContext, "infer_shapes", lambda self: ["x"])
    with pytest.raises(UsageError, match="TensorRT wants to know more of x"):
        engine.infer({"x": X})

    def contradicted(self: DoubleContext) -> list[str]:
        raise RuntimeError("shape inference failed")

    monkeypatch.setattr(DoubleContext, "infer_shapes", contradicted)
    with pytest.raises(UsageError, match="TensorRT refuses these shapes"):
        engine.infer({"x": X})
    monkeypatch.setattr(DoubleContext, "set_input_shape", lambda self, name, shape: False)
    with pytest.raises(UsageError, match=r"TensorRT refuses input 'x' of shape \[2, 4\]"):
        engine.infer({"x": X})


def test_a_plan_that_tensorrt_does_not_open(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="does not open the engine") as caught:
        TensorRTExecutor(write_engine(tmp_path, module=trt.__name__), PosingDevice())
    assert "no reason was logged" not in caught.value.cause


def test_an_engine_of_the_other_module(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=rf"was built by other 1\.7\.1; here is {trt.__name__}"):
        TensorRTExecutor(write_engine(tmp_path, module="other"), PosingDevice())


def test_an_allocator_keeps_its_memory_until_it_is_handed_over() -> None:
    device = PosingDevice()
    found = allocator(device)
    first = found.reallocate_output("w", 0, 100, 256)
    assert found.reallocate_output("w", first, 50, 256) == first
    assert found.reallocate_output_async("w", first, 200, 256, 7) != first
    found.notify_shape("w", trt.Dims((2, 3)))
    memory, shape = found.handed_over()
    assert memory.size == 200 and shape == (2, 3)
    assert found.reallocate_output("w", 0, 10, 256) != memory.address


def test_nodes_of_layers_that_tensorrt_made_of_several() -> None:
    nodes = {"a": ("A",), "b": ("B1", "B2"), "c/d": ("A",)}
    assert nodes_of("a", nodes) == ("A",)
    assert nodes_of("a + b", nodes) == ("A", "B1", "B2")
    assert nodes_of("{ForeignNode[b...c/d]}", nodes) == ("B1", "B2", "A")
    assert nodes_of("copy of something", nodes) == ()
