"""An engine of TensorRT (10, 11 or RTX) as an executor: the calls that need a GPU, and little else.

docs/run.md says which part of this was never executed.
"""

from __future__ import annotations

import re
import statistics
from collections.abc import Mapping
from contextlib import suppress
from functools import cached_property
from pathlib import Path
from typing import Any

from onnx_fuse.errors import ModelError, OnnxFuseError, UsageError
from onnx_fuse.runtime.device import engine_file
from onnx_fuse.runtime.device.arrays import Tensor
from onnx_fuse.runtime.device.cuda import CudaDevice
from onnx_fuse.runtime.device.executor import PRODUCTS, Device, LayerTime, Memory, Profile
from onnx_fuse.runtime.plugins import plugin_library
from onnx_fuse.runtime.tensorrt import binding

_ALLOWED = "The engine's record says which shapes it allows."
_ALIGNMENT = 256  # of the memory that CUDA gives, at least


class TensorRTExecutor:
    """An engine that `onnx-fuse build` wrote.

    Args:
        path: the plan; its record lies beside it.
        device: the GPU; the first one if None.

    Raises:
        ModelError: plan or record are damaged, the plan is of another TensorRT or GPU, or an output is kept on the host.
        UsageError: TensorRT, a plugin library, cuda-python or a GPU is missing.
    """

    def __init__(self, path: Path, device: Device | None = None) -> None:
        record = engine_file.read(path)
        self.device: Device = device or CudaDevice()
        trt = binding.module()
        if trt.__name__ != record.module:
            raise ModelError(
                f"The engine {path} was built by {record.module} {record.version}; here is {trt.__name__} {trt.__version__}.",
                "Build it again with this one, or install the other.",
            )
        binding.load_plugins(plugin_library.of_engine(f"The engine {path}", record.plugins))
        self._runtime = trt.Runtime(binding.logger())  # must outlive its engine
        with binding.logged() as messages:
            self._engine = self._runtime.deserialize_cuda_engine(path.read_bytes())
        if self._engine is None:
            raise ModelError(
                f"{record.module} {trt.__version__} does not open the engine {path}, built by version {record.version}: "
                f"{_reason(messages)}",
                "Build it again on this machine: onnx-fuse build.",
            )
        self.description = f"{record.module} {trt.__version__} on {getattr(self.device, 'name', 'a GPU')}, {path}"
        self.inputs, self.outputs = record.inputs, record.outputs
        self.profiles: tuple[Profile, ...] = record.profiles
        on_host = [
            item.name
            for item in (*self.inputs, *self.outputs)
            if self._engine.get_tensor_location(item.name) == trt.TensorLocation.HOST
        ]
        self.shape_inputs = frozenset(on_host)
        for item in self.outputs:
            if item.name in self.shape_inputs:
                raise ModelError(
                    f"{path}: output {item.name!r} is a shape that TensorRT keeps on the host.",
                    "Leave that output out of the model, or compute it from the shapes of the inputs.",
                )
        self._nodes, self._model = record.layers, path.parent / record.model

    def context(self, profile: int, stream: int) -> TensorRTContext:
        return TensorRTContext(self, self._engine, profile, stream)

    def layers(self, profile: int, inputs: Mapping[str, Tensor], runs: int) -> list[LayerTime]:
        stream = self.device.stream()
        context = self.context(profile, stream)
        shapes = context.prepare(inputs)
        outputs = {}
        for item in self.outputs:
            if (shape := shapes[item.name]) is not None:
                like = Tensor(0, item.dtype, shape, self.device.where)
                memory = self.device.allocate(max(like.nbytes, 1))
                outputs[item.name] = Tensor(memory.address, item.dtype, shape, self.device.where, memory)
        times = context.profiled(lambda: context.enqueue(inputs, outputs), runs)
        self.device.close_stream(stream)
        return [self._layer(name, statistics.median(seconds)) for name, seconds in times.items()]

    def _layer(self, name: str, seconds: float) -> LayerTime:
        nodes = nodes_of(name, self._nodes)
        operators = tuple(self._operators[node] for node in nodes if node in self._operators)
        known = bool(nodes) and len(operators) == len(nodes) and not any("::" in operator for operator in operators)
        in_products = seconds if any(operator in PRODUCTS for operator in operators) else 0.0
        return LayerTime(name, seconds, nodes, operators, in_products if known else None)

    @cached_property
    def _operators(self) -> dict[str, str]:
        """Node of the ONNX model -> its operator, if the model still lies beside the engine."""
        from onnx_fuse.passes.files import io

        with suppress(OnnxFuseError):
            return {
                node.name or node.output[0]: f"{node.domain}::{node.op_type}" if node.domain else node.op_type
                for node in io.load(self._model).graph.node
            }
        return {}


class TensorRTContext:
    """An execution context on one stream."""

    def __init__(self, executor: TensorRTExecutor, engine: Any, profile: int, stream: int) -> None:
        self._executor, self._stream = executor, stream
        self._allocators: dict[str, Any] = {}
        with binding.logged() as messages:
            self._context = engine.create_execution_context()
            if self._context is None:
                raise UsageError(
                    f"TensorRT makes no execution context: {_reason(messages)}", "Use fewer streams or CUDA graphs."
                )
            if not self._context.set_optimization_profile_async(profile, stream):
                raise UsageError(
                    f"TensorRT refuses optimisation profile {profile}: {_reason(messages)}", "Build the engine again."
                )
        executor.device.synchronize(stream)

    def prepare(self, inputs: Mapping[str, Tensor]) -> Mapping[str, tuple[int, ...] | None]:
        with binding.logged() as messages:
            for name, tensor in inputs.items():
                taken = self._context.set_input_shape(name, tensor.shape)
                if name in self._executor.shape_inputs:
                    taken = taken and self._context.set_tensor_address(name, tensor.address)
                if not taken:
                    raise UsageError(
                        f"TensorRT refuses input {name!r} of shape {list(tensor.shape)}: {_reason(messages)}",
                        _ALLOWED,
                    )
            try:
                missing = self._context.infer_shapes()
            except RuntimeError as error:
                raise UsageError(f"TensorRT refuses these shapes: {_reason(messages)}", _ALLOWED) from error
            if missing:
                raise UsageError(f"TensorRT wants to know more of {', '.join(missing)}: {_reason(messages)}", _ALLOWED)
        shapes = {item.name: tuple(self._context.get_tensor_shape(item.name)) for item in self._executor.outputs}
        return {name: None if -1 in shape else shape for name, shape in shapes.items()}

    def enqueue(self, inputs: Mapping[str, Tensor], outputs: Mapping[str, Tensor]) -> None:
        with binding.logged() as messages:
            for name, tensor in (*inputs.items(), *outputs.items()):
                self._context.set_tensor_address(name, tensor.address)
            for item in self._executor.outputs:
                if item.name not in outputs:
                    self._allocators.setdefault(item.name, allocator(self._executor.device))
                    self._context.set_output_allocator(item.name, self._allocators[item.name])
            if not self._context.execute_async_v3(self._stream):
                raise ModelError(f"TensorRT cannot run the engine: {_reason(messages)}", "Check the GPU's memory.")

    def made(self) -> Mapping[str, Tensor]:
        types = {item.name: item.dtype for item in self._executor.outputs}
        found = {}
        for name, allocated in self._allocators.items():
            memory, shape = allocated.handed_over()
            found[name] = Tensor(memory.address, types[name], shape, self._executor.device.where, memory)
        return found

    def profiled(self, run: Any, runs: int) -> dict[str, list[float]]:
        """Layer -> seconds in each of `runs` runs, after one that does not count."""
        profiler = _profiler()
        self._context.profiler = profiler
        self._context.enqueue_emits_profile = True
        for _ in range(runs + 1):
            run()
            self._executor.device.synchronize(self._stream)
        return {name: seconds[-runs:] for name, seconds in profiler.seconds.items()}


def allocator(device: Device) -> Any:
    """An IOutputAllocator for one output whose size only a run can tell."""
    trt = binding.module()

    class Allocator(trt.IOutputAllocator):  # type: ignore[name-defined]
        def __init__(self) -> None:
            trt.IOutputAllocator.__init__(self)
            self.memory: Memory | None = None
            self.shape: tuple[int, ...] = ()

        def reallocate_output(self, tensor_name: str, memory: int, size: int, alignment: int) -> int:
            assert alignment <= _ALIGNMENT
            if self.memory is None or self.memory.size < size:
                self.memory = device.allocate(max(size, 1))
            return self.memory.address

        def reallocate_output_async(self, tensor_name: str, memory: int, size: int, alignment: int, stream: int) -> int:
            return self.reallocate_output(tensor_name, memory, size, alignment)

        def notify_shape(self, tensor_name: str, shape: Any) -> None:
            self.shape = tuple(shape)

        def handed_over(self) -> tuple[Memory, tuple[int, ...]]:
            """Memory and shape of the run that is done; the next one gets other memory."""
            memory, self.memory = self.memory or device.allocate(1), None
            return memory, self.shape

    return Allocator()


def _profiler() -> Any:
    trt = binding.module()

    class Profiler(trt.IProfiler):  # type: ignore[name-defined]
        def __init__(self) -> None:
            trt.IProfiler.__init__(self)
            self.seconds: dict[str, list[float]] = {}

        def report_layer_time(self, layer_name: str, ms: float) -> None:
            self.seconds.setdefault(layer_name, []).append(ms / 1e3)

    return Profiler()


def nodes_of(layer: str, nodes: Mapping[str, tuple[str, ...]]) -> tuple[str, ...]:
    """The ONNX nodes of a layer of an engine.

    TensorRT names what it makes of several layers "a + b" or "{ForeignNode[a...b]}", by the first and last of them.
    """
    parts = [layer] if layer in nodes else re.split(r" \+ |\.\.\.|[{}\[\]]|\|\|", layer)
    return tuple(dict.fromkeys(node for part in parts for node in nodes.get(part.strip(), ())))


def _reason(messages: list[str]) -> str:
    return messages[0] if messages else "no reason was logged"
