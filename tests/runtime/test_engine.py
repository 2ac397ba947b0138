"""`Engine`: arrays of any library in and out, from any thread; on a device whose memory is the host's, with ONNX Runtime."""

from __future__ import annotations

import contextlib
import gc
import subprocess
import sys
import threading
import weakref
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace
from typing import Any

import ml_dtypes
import numpy as np
import pytest
import torch
from onnx import ModelProto

from onnx_fuse import installation
from onnx_fuse.errors import ModelError, UsageError
from onnx_fuse.runtime import Engine, OrtSession
from onnx_fuse.runtime.device.arrays import CUDA, Tensor
from onnx_fuse.runtime.device.engine_file import ShapeRange
from onnx_fuse.runtime.onnxruntime.executor import OrtExecutor
from tests.helpers import model
from tests.runtime.devices import PosingDevice, PosingExecutor

Arrays = Mapping[str, Any]
X = np.arange(8, dtype=np.float32).reshape(2, 4) - 4


def rectifier() -> ModelProto:
    return model("(float[n,4] x) => (float[n,4] y) { y = Relu(x) }")


def sum_and_places() -> ModelProto:
    """A sum, and the places where it is not 0: an output whose size depends on values."""
    return model("(float[n,4] a, float[n,4] b) => (float[n,4] y, int64[2,k] w) { y = Add(a, b) w = NonZero(y) }")


class ProfiledExecutor(PosingExecutor):
    """With optimisation profiles, as an engine has."""

    profiles = (
        {"x": ShapeRange((1, 4), (2, 4), (4, 4))},
        {"x": ShapeRange((16, 4), (16, 4), (32, 4))},
    )
    chosen: list[int]

    def context(self, profile: int, stream: int) -> Any:
        self.__dict__.setdefault("chosen", []).append(profile)
        return super().context(profile, stream)


@pytest.fixture
def device() -> PosingDevice:
    return PosingDevice()


def on_device(array: np.ndarray) -> Tensor:
    """The array as if it were on the posing GPU."""
    return Tensor(array.ctypes.data, array.dtype.name, array.shape, (CUDA, 0), array)


def values(result: Any) -> np.ndarray:
    """What is in an output that stayed on the posing GPU."""
    assert isinstance(result, Tensor) and result.device == (CUDA, 0)
    return Tensor(result.address, result.dtype, result.shape, owner=result).numpy()


# --- arrays ----------------------------------------------------------------------------------------------------------


def test_inputs_are_read_where_they_are(device: PosingDevice) -> None:
    # ONNX Runtime reads this input from the address it is given: what is written there after the tensor was made, counts.
    tensor = torch.zeros(2, 4)
    with OrtSession(rectifier()) as session:
        seen = session._tensors({"x": tensor}, session._all[0])["x"]
        assert seen.address == tensor.data_ptr()
        tensor += 3
        assert session.infer({"x": tensor})["y"].tolist() == [[3.0] * 4] * 2


@pytest.mark.parametrize("kind", [torch.float32, torch.bfloat16, torch.float16, torch.int64, torch.bool, torch.uint8])
def test_outputs_are_of_the_library_and_type_of_the_inputs(kind: torch.dtype) -> None:
    name = str(kind).removeprefix("torch.").replace("float32", "float")
    session = OrtSession(model(f"({name}[n] x) => ({name}[n] y) {{ y = Identity(x) }}"))
    tensor = torch.tensor([0, 1, 5]).to(kind)
    result = session.infer({"x": tensor})["y"]
    assert isinstance(result, torch.Tensor) and result.dtype == kind and torch.equal(result, tensor)


def test_numpy_of_odd_types() -> None:
    session = OrtSession(model("(bfloat16[n] x) => (bfloat16[n] y) { y = Identity(x) }"))
    array = np.array([1, 2.5], ml_dtypes.bfloat16)
    result = session.infer({"x": array})["y"]
    assert result.dtype == ml_dtypes.bfloat16 and result.tolist() == [1, 2.5]


@pytest.mark.parametrize(
    "array", [np.asfortranarray(X), np.repeat(X, 2, axis=1)[:, ::2], X[::-1][::-1], X.astype(">f4")]
)
def test_arrays_that_do_not_lie_in_rows_are_copied(array: np.ndarray) -> None:
    session = OrtSession(rectifier())
    np.testing.assert_array_equal(session.infer({"x": array})["y"], np.maximum(X, 0))
    transposed = torch.from_numpy(np.ascontiguousarray(X.T)).T
    assert torch.equal(session.infer({"x": transposed})["y"], torch.from_numpy(np.maximum(X, 0)))


def test_an_output_lives_on_when_the_session_is_gone() -> None:
    session = OrtSession(sum_and_places())
    result = session.infer({"a": torch.ones(3, 4), "b": torch.ones(3, 4)})
    session.close()
    del session
    gc.collect()
    assert result["y"].sum() == 24 and result["w"].shape == (2, 12)


def test_an_input_is_let_go() -> None:
    session = OrtSession(rectifier())
    tensor = torch.ones(1000, 4)
    gone = weakref.ref(tensor)
    session.infer({"x": tensor})
    del tensor
    gc.collect()
    assert gone() is None


def test_a_process_ends_well_while_torch_holds_an_output() -> None:
    code = """
import torch, numpy as np
from onnx_fuse.runtime.device.arrays import Tensor
array = np.ones(4, np.float32)
kept = torch.from_dlpack(Tensor(array.ctypes.data, "float32", (4,), owner=array))
capsule = Tensor(array.ctypes.data, "float32", (4,), owner=array).__dlpack__()
"""
    assert subprocess.run([sys.executable, "-c", code], check=False, timeout=120).returncode == 0


def test_out_is_written_to(device: PosingDevice) -> None:
    for engine in (OrtSession(rectifier()), Engine(PosingExecutor(rectifier(), device))):
        for _ in range(3):
            target = np.full((2, 4), 9, np.float32)
            assert engine.infer({"x": X}, out={"y": target})["y"] is target
            np.testing.assert_array_equal(target, np.maximum(X, 0))


@pytest.mark.parametrize(
    ("target", "message"),
    [
        (np.empty((3, 4), np.float32), r"output 'y' was given an array of shape \[3, 4\], and has \[2, 4\]"),
        (np.empty((2, 4), np.float64), r"output 'y' is float64\[2, 4\]"),
        (np.empty((2, 8), np.float32)[:, ::2], r"output 'y' does not lie in memory in rows"),
        (np.broadcast_to(np.float32(0), (2, 4)).copy(order="F"), r"output 'y' does not lie in memory in rows"),
    ],
)
def test_an_out_that_does_not_fit(target: np.ndarray, message: str) -> None:
    session = OrtSession(rectifier())
    with pytest.raises(UsageError, match=message):
        session.infer({"x": X}, out={"y": target})
    frozen = np.zeros((2, 4), np.float32)
    frozen.flags.writeable = False
    with pytest.raises(UsageError, match="read-only"):
        session.infer({"x": X}, out={"y": frozen})


def test_outputs_of_a_size_that_depends_on_values(device: PosingDevice) -> None:
    for engine in (OrtSession(sum_and_places()), Engine(PosingExecutor(sum_and_places(), device))):
        for count in (8, 3, 0):
            a = np.zeros((2, 4), np.float32)
            a.flat[:count] = 1
            result = engine.infer({"a": a, "b": np.zeros_like(a)})
            np.testing.assert_array_equal(result["w"], np.stack(np.nonzero(a)))


def test_empty_dimensions(device: PosingDevice) -> None:
    for engine in (OrtSession(rectifier()), Engine(PosingExecutor(rectifier(), device), cuda_graphs=0)):
        for rows in (0, 2, 0):
            assert engine.infer({"x": np.ones((rows, 4), np.float32)})["y"].shape == (rows, 4)


def test_an_output_of_fixed_shape_is_written_in_place() -> None:
    session = OrtSession(model("(float[2,4] x) => (float[2,4] y) { y = Relu(x) }"))
    target = np.empty((2, 4), np.float32)
    context = session.executor.context(0, 0)
    assert context.prepare({}) == {"y": (2, 4)}
    assert session.infer({"x": X}, out={"y": target})["y"] is target
    np.testing.assert_array_equal(target, np.maximum(X, 0))


def test_a_dimension_that_has_the_name_of_another_and_differs() -> None:
    session = OrtSession(model("(float[n] x) => (int64[1,n] y) { y = NonZero(x) }"))
    for count in (3, 2):
        x = np.array([1, 1, 1], np.float32)
        x[count:] = 0
        assert session.infer({"x": x})["y"].shape == (1, count)


# --- what is refused -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("inputs", "cause", "remedy"),
    [
        ({"x": X, "z": X}, "The model has no input 'z'", "x float32[n, 4]"),
        ({}, "Input 'x' is missing", "x float32[n, 4]"),
        ({"x": X[0]}, "input 'x' is float32[4]; the model has x float32[n, 4]", "2 dimensions instead of 1"),
        ({"x": X[:, :3]}, "input 'x' is float32[2, 3]; the model has x float32[n, 4]", "Dimension 1 has to be 4"),
        ({"x": X.astype(np.float16)}, "input 'x' is float16[2, 4]", "float16 fits into float32"),
        ({"x": X.astype(np.float64)}, "input 'x' is float64[2, 4]", "float64 does not fit into float32"),
        ({"x": X.astype(ml_dtypes.bfloat16)}, "input 'x' is bfloat16[2, 4]", "bfloat16 fits into float32"),
        ({"x": X.tolist()}, "input 'x' is a list, not an array", "numpy"),
        ({"x": torch.ones(2, 4, requires_grad=True)}, "input 'x' (torch) gives no access", "detach"),
        ({"x": on_device(X)}, "input 'x' is on GPU 0, the model on the CPU", "Move it"),
    ],
)
def test_wrong_inputs_are_named(inputs: Arrays, cause: str, remedy: str) -> None:
    session = OrtSession(rectifier())
    with pytest.raises(UsageError) as caught:
        session.infer(inputs)
    assert cause in caught.value.cause and remedy in str(caught.value)
    np.testing.assert_array_equal(session.infer({"x": X})["y"], np.maximum(X, 0))  # it goes on as if nothing had been


def test_an_output_that_is_not_there() -> None:
    with pytest.raises(UsageError, match="no output 'z'"):
        OrtSession(rectifier()).infer({"x": X}, out={"z": X})


def test_a_model_that_fails_says_where() -> None:
    session = OrtSession(model("(float[n,4] x, int64[k] s) => (float[a,b] y) { y = Reshape(x, s) }"))
    with pytest.raises(ModelError, match="Reshape"):
        session.infer({"x": X, "s": np.array([3, 3])})


def test_shapes_outside_every_profile(device: PosingDevice) -> None:
    executor = ProfiledExecutor(rectifier(), device)
    engine = Engine(executor)
    for rows in (2, 20, 1, 32):
        assert engine.infer({"x": np.ones((rows, 4), np.float32)})["y"].shape == (rows, 4)
    assert executor.chosen == [0, 1]  # one context for each
    with pytest.raises(
        UsageError, match=r"input 'x' has shape \[8, 4\]; the engine allows \[1..4, 4\] or \[16..32, 4\]"
    ):
        engine.infer({"x": np.ones((8, 4), np.float32)})


def test_shapes_that_no_profile_allows_together(device: PosingDevice) -> None:
    executor = PosingExecutor(
        model("(float[n,4] a, float[m,4] b) => (float[p,4] y) { y = Concat <axis=0>(a, b) }"), device
    )
    small, large = ShapeRange((1, 4), (1, 4), (2, 4)), ShapeRange((3, 4), (4, 4), (9, 4))
    executor.profiles = ({"a": small, "b": small}, {"a": large, "b": large})
    engine = Engine(executor)
    two, four = np.ones((2, 4), np.float32), np.ones((4, 4), np.float32)
    assert engine.infer({"a": four, "b": four})["y"].shape == (8, 4)
    with pytest.raises(
        UsageError, match=r"No optimisation profile allows these shapes together: a \[2, 4\], b \[4, 4\]"
    ):
        engine.infer({"a": two, "b": four})


# --- a device of its own ---------------------------------------------------------------------------------------------


def test_host_arrays_go_through_pinned_buffers_that_stay(device: PosingDevice) -> None:
    engine = Engine(PosingExecutor(rectifier(), device))
    for _ in range(2):
        np.testing.assert_array_equal(engine.infer({"x": X})["y"], np.maximum(X, 0))
    before = device.calls.copy()
    first = engine.infer({"x": X})["y"]
    second = engine.infer({"x": -X})["y"]
    np.testing.assert_array_equal(first, np.maximum(X, 0))  # an output is not written to by the next call
    np.testing.assert_array_equal(second, np.maximum(-X, 0))
    made = device.calls - before
    assert made == {"copy": 4}  # in and out, twice, and no memory


def test_arrays_on_the_device_are_not_copied(device: PosingDevice) -> None:
    engine = Engine(PosingExecutor(rectifier(), device))
    for _ in range(3):
        result = engine.infer({"x": on_device(X)})["y"]
        np.testing.assert_array_equal(values(result), np.maximum(X, 0))
    assert device.calls["copy"] == 0 and device.calls["pinned"] == 0
    target = np.empty_like(X)
    held = on_device(target)
    before = device.calls.copy()
    assert engine.infer({"x": on_device(X)}, out={"y": held})["y"] is held
    np.testing.assert_array_equal(target, np.maximum(X, 0))
    assert device.calls == before


class CudaArray:
    """An array that has nothing but `__cuda_array_interface__`."""

    def __init__(self, array: np.ndarray, stream: int | None, strides: tuple[int, ...] | None = None) -> None:
        self.array = array
        self.__cuda_array_interface__ = {
            "shape": array.shape,
            "typestr": array.dtype.str,
            "data": (array.ctypes.data, False),
            "version": 3,
            "stream": stream,
            "strides": strides,
        }


def test_the_cuda_array_interface_and_its_stream(device: PosingDevice) -> None:
    engine = Engine(PosingExecutor(rectifier(), device))
    for stream, waited in ((None, []), (1, [0]), (1234, [0, 1234])):
        result = engine.infer({"x": CudaArray(X, stream, (16, 4))})["y"]
        np.testing.assert_array_equal(values(result), np.maximum(X, 0))
        assert device.waits == waited
    interface = result.__cuda_array_interface__
    assert interface["shape"] == (2, 4) and interface["typestr"] == "<f4" and interface["data"][0] == result.address
    with pytest.raises(UsageError, match="input 'x' does not lie in memory in rows"):
        engine.infer({"x": CudaArray(X, None, (4, 8))})


def test_the_stream_is_told_to_dlpack(device: PosingDevice) -> None:
    class Lender(Tensor):
        def __dlpack__(self, *, stream: int | None = None) -> Any:
            asked.append(stream)
            return super().__dlpack__()

    class Elsewhere:
        """Not of a class that is read without DLPack."""

        def __init__(self) -> None:
            self.held = Lender(X.ctypes.data, "float32", X.shape, (CUDA, 0), X)

        def __dlpack_device__(self) -> tuple[int, int]:
            return self.held.device

        def __dlpack__(self, *, stream: int | None = None) -> Any:
            return self.held.__dlpack__(stream=stream)

    asked: list[int | None] = []
    engine = Engine(PosingExecutor(rectifier(), device))
    np.testing.assert_array_equal(values(engine.infer({"x": Elsewhere()})["y"]), np.maximum(X, 0))
    assert asked == sorted(device.streams)


def test_an_array_on_another_gpu(device: PosingDevice) -> None:
    other = Tensor(X.ctypes.data, "float32", X.shape, (CUDA, 3), X)
    with pytest.raises(UsageError, match="input 'x' is on GPU 3, the model on GPU 0"):
        Engine(PosingExecutor(rectifier(), device)).infer({"x": other})


def test_times_of_the_phases(device: PosingDevice) -> None:
    _, timing = Engine(PosingExecutor(rectifier(), device)).timed({"x": X})
    parts = (timing.enqueue, timing.h2d, timing.compute, timing.d2h)
    assert all(part is not None and 0 < part < timing.latency for part in parts)
    _, timing = OrtSession(rectifier()).timed({"x": X})
    assert (timing.enqueue, timing.h2d, timing.d2h) == (None, None, None) and 0 < timing.compute < timing.latency


# --- graphs ----------------------------------------------------------------------------------------------------------


def test_a_shape_is_captured_the_second_time(device: PosingDevice) -> None:
    engine = Engine(PosingExecutor(rectifier(), device), cuda_graphs=4)
    seen = []
    for number in range(4):
        for rows in (3, 2):  # the larger first, so that buffers stay
            x = np.full((rows, 4), number - 1, np.float32)
            np.testing.assert_array_equal(engine.infer({"x": x})["y"], np.maximum(x, 0))
        seen.append((device.calls["capture"], device.calls["launch"]))
    assert seen == [(0, 0), (2, 0), (2, 2), (2, 4)]


def test_larger_buffers_do_away_with_the_graphs_that_know_the_old_ones(device: PosingDevice) -> None:
    engine = Engine(PosingExecutor(rectifier(), device), cuda_graphs=4)
    for rows in (2, 2, 2, 50, 2, 2, 2):
        x = np.random.default_rng(rows).standard_normal((rows, 4)).astype(np.float32)
        np.testing.assert_array_equal(engine.infer({"x": x})["y"], np.maximum(x, 0))
    assert device.calls["capture"] == 2


def test_only_so_many_graphs_are_kept(device: PosingDevice) -> None:
    engine = Engine(PosingExecutor(rectifier(), device), cuda_graphs=2)
    for _ in range(2):
        engine.infer({"x": np.ones((9, 4), np.float32)})  # the largest first, so that buffers stay

    def run(rows: int) -> str:
        before = device.calls.copy()
        engine.infer({"x": np.ones((rows, 4), np.float32)})
        return "".join(sorted((device.calls - before).keys() & {"capture", "launch"}))

    assert [run(rows) for rows in (1, 2, 3)] == ["", "", ""]
    assert [run(rows) for rows in (1, 2, 1, 3, 1, 2)] == [
        "capture",
        "capture",
        "launch",
        "capture",
        "launch",
        "capture",
    ]
    assert device.calls["capture"] == 5


def test_with_graphs_arrays_on_the_device_are_copied_on_the_device(device: PosingDevice) -> None:
    engine = Engine(PosingExecutor(rectifier(), device), cuda_graphs=1)
    results = [engine.infer({"x": on_device(X * number)})["y"] for number in range(5)]
    for number, result in enumerate(results):
        np.testing.assert_array_equal(values(result), np.maximum(X * number, 0))
    assert device.calls["pinned"] == 0 and device.calls["launch"] == 3
    target = np.empty_like(X)
    engine.infer({"x": X}, out={"y": target})
    np.testing.assert_array_equal(target, np.maximum(X, 0))
    with pytest.raises(UsageError, match="output 'y' was given an array of shape"):
        engine.infer({"x": X}, out={"y": np.empty((5, 4), np.float32)})


def test_models_with_sizes_that_depend_on_values_are_not_captured(device: PosingDevice) -> None:
    engine = Engine(PosingExecutor(sum_and_places(), device), cuda_graphs=2)
    for count in (3, 1, 2):
        a = np.zeros((2, 4), np.float32)
        a.flat[:count] = 1
        assert engine.infer({"a": a, "b": np.zeros_like(a)})["w"].shape == (2, count)
    assert device.calls["capture"] == 0


def test_graphs_need_a_gpu() -> None:
    with pytest.raises(UsageError, match="CUDA graphs need a GPU"):
        Engine(OrtExecutor(rectifier()), cuda_graphs=1)


# --- threads ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("streams", [1, 3])
@pytest.mark.parametrize("graphs", [0, 3])
def test_many_threads_get_their_own_results(device: PosingDevice, streams: int, graphs: int) -> None:
    engine = Engine(PosingExecutor(rectifier(), device, threads=1), streams=streams, cuda_graphs=graphs)
    assert len(device.streams) == streams

    def work(number: int) -> bool:
        random = np.random.default_rng(number)
        for _ in range(25):
            x = random.standard_normal((int(random.integers(1, 6)), 4)).astype(np.float32)
            if not np.array_equal(engine.infer({"x": x})["y"], np.maximum(x, 0)):
                return False
        return True

    with ThreadPoolExecutor(4) as pool:
        assert all(pool.map(work, range(4)))
    engine.close()
    assert not device.streams


def test_calls_run_side_by_side_on_as_many_streams_as_there_are(device: PosingDevice) -> None:
    executor = PosingExecutor(rectifier(), device)
    meeting = threading.Barrier(2)

    class Waiting:
        """A context that goes on only when another call is in the middle of its run too."""

        def __init__(self, context: Any) -> None:
            self.context = context

        def __getattr__(self, name: str) -> Any:
            return getattr(self.context, name)

        def enqueue(self, *arguments: Any) -> None:
            meeting.wait(timeout=20)
            self.context.enqueue(*arguments)

    make = executor.context
    executor.context = lambda profile, stream: Waiting(make(profile, stream))  # type: ignore[method-assign, assignment, return-value]
    engine = Engine(executor, streams=2)
    with ThreadPoolExecutor(2) as pool:
        results = list(pool.map(lambda number: engine.infer({"x": X * number})["y"], (1, 2)))
    np.testing.assert_array_equal(results[1], 2 * results[0])


def test_a_closed_engine_says_so() -> None:
    with OrtSession(rectifier(), streams=2) as session:
        session.infer({"x": X})
    for _ in range(2):
        with pytest.raises(UsageError, match="closed"):
            session.infer({"x": X})
    session.close()
    with pytest.raises(UsageError, match="streams is 0"):
        OrtSession(rectifier(), streams=0)


# --- ranges for profilers --------------------------------------------------------------------------------------------


def test_nvtx_ranges_only_when_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[str] = []

    @contextlib.contextmanager
    def annotate(name: str, domain: str) -> Iterator[None]:
        seen.append(f"{domain}:{name}")
        yield

    monkeypatch.setitem(sys.modules, "nvtx", SimpleNamespace(annotate=annotate))
    OrtSession(rectifier()).infer({"x": X})
    assert seen == []
    OrtSession(rectifier(), nvtx=True).infer({"x": X})
    assert seen == [f"onnx-fuse:{name}" for name in ("infer", "copy in", "enqueue", "copy out")]
    monkeypatch.setitem(sys.modules, "nvtx", None)
    with pytest.raises(UsageError, match="nvtx is not installed") as caught:
        OrtSession(rectifier(), nvtx=True)
    assert caught.value.remedy.endswith(installation.add_extra("serve"))


# --- lending memory, and errors ---------------------------------------------------------------------------------------


def test_no_copy_is_lent_where_one_is_asked_for() -> None:
    with pytest.raises(BufferError, match="no copy"):
        np.from_dlpack(Tensor(X.ctypes.data, "float32", X.shape, owner=X), copy=True)


def test_after_an_error_nothing_reads_the_callers_memory(device: PosingDevice, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = Engine(PosingExecutor(rectifier(), device))
    settled: list[int] = []

    def fail(*arguments: Any) -> None:
        monkeypatch.setattr(device, "synchronize", settled.append)
        raise UsageError("it went wrong", "")

    monkeypatch.setattr("tests.runtime.devices._PosingContext.enqueue", fail)
    with pytest.raises(UsageError, match="it went wrong"):
        engine.infer({"x": X})
    assert settled == sorted(device.streams)
