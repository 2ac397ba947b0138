"""What an engine stands on: a device with memory and streams, and something that runs a model on it.

`Engine` knows these two protocols only. On a GPU they are `cuda.CudaDevice` and `TensorRTExecutor` of runtime/tensorrt/; on a CPU
`HostDevice` and `OrtExecutor` of runtime/onnxruntime/.
"""

from __future__ import annotations

import ctypes
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from onnx_fuse.errors import UsageError
from onnx_fuse.runtime.device.arrays import CPU, Tensor
from onnx_fuse.runtime.device.engine_file import EngineTensor, ShapeRange

Profile = Mapping[str, ShapeRange]

PRODUCTS = frozenset({
    "MatMul", "Gemm", "Conv", "ConvTranspose", "Einsum", "LSTM", "GRU", "RNN", "MatMulInteger", "ConvInteger", "QLinearMatMul",
    "QLinearConv", "MatMulNBits", "FusedMatMul", "FusedGemm", "FusedConv", "TransposeMatMul", "MatMulIntegerToFloat",
    "DynamicQuantizeMatMul",
})  # fmt: skip
"""Operators, ONNX's and ONNX Runtime's own, whose time is that of matrix products."""


@dataclass(frozen=True)
class Memory:
    """Bytes of a device, or pinned ones of the host; `owner` frees them when it goes."""

    address: int
    size: int
    owner: Any


class Graph(Protocol):
    """Captured work of a stream."""

    def launch(self, stream: int) -> None:
        """Starts all of it."""


class Device(Protocol):
    """Memory, streams, events and graphs. A stream is its handle, an event whatever the device makes of it."""

    @property
    def where(self) -> tuple[int, int]:
        """DLPack's device type, and the number of the device."""

    def activate(self) -> None:
        """Makes it the device of the calling thread."""

    def allocate(self, size: int) -> Memory:
        """Memory of the device."""

    def pinned(self, size: int) -> Memory:
        """Memory of the host that the device copies from and to without a stop."""

    def stream(self) -> int:
        """A new stream."""

    def close_stream(self, stream: int) -> None:
        """Frees a stream."""

    def copy(self, target: int, source: int, size: int, stream: int) -> None:
        """Copies bytes between any two addresses, in the order of the stream."""

    def synchronize(self, stream: int) -> None:
        """Waits for all that is in the stream."""

    def wait_for(self, other: int, stream: int) -> None:
        """Lets the stream wait for what is in another one now."""

    def mark(self, stream: int) -> Any:
        """An event at the present end of the stream."""

    def seconds(self, start: Any, end: Any) -> float:
        """The time between two events that have come to pass."""

    def capture(self, stream: int, work: Callable[[], None]) -> Graph:
        """What `work` puts into the stream, as a graph; nothing of it runs now."""


class Context(Protocol):
    """A model made ready to run on one stream; used by one thread at a time."""

    def prepare(self, inputs: Mapping[str, Tensor]) -> Mapping[str, tuple[int, ...] | None]:
        """Takes the shapes of the inputs, and where these set shapes their values; gives the outputs' shapes, None where
        only a run can tell."""

    def enqueue(self, inputs: Mapping[str, Tensor], outputs: Mapping[str, Tensor]) -> None:
        """Starts a run, with all inputs, into those outputs whose shape was known."""

    def made(self) -> Mapping[str, Tensor]:
        """The other outputs, once the stream has been waited for."""


@dataclass(frozen=True)
class LayerTime:
    """What one layer took.

    Attributes:
        layer: its name where it ran.
        seconds: median of the runs.
        nodes: the ONNX nodes it computes, by name, or by first output where they have none; empty where that is not known.
        operators: their operators, or that of the layer itself where it computes no node.
        products: the part of `seconds` spent in matrix products and convolutions; None where that is not known.
    """

    layer: str
    seconds: float
    nodes: tuple[str, ...] = ()
    operators: tuple[str, ...] = ()
    products: float | None = None


class Executor(Protocol):
    """A model that can run on a device.

    Attributes:
        description: what runs where, for people.
        inputs, outputs: what it takes and gives.
        profiles: for each optimisation profile the shapes it allows; none where every shape is allowed.
        shape_inputs: inputs whose values set shapes, and are read by the host.
        device: where it runs.
    """

    description: str
    inputs: tuple[EngineTensor, ...]
    outputs: tuple[EngineTensor, ...]
    profiles: tuple[Profile, ...]
    shape_inputs: frozenset[str]
    device: Device

    def context(self, profile: int, stream: int) -> Context:
        """A context for one optimisation profile (0 where there are none)."""

    def layers(self, profile: int, inputs: Mapping[str, Tensor], runs: int) -> list[LayerTime]:
        """The layers' times, in the order of execution, over that many runs after one that does not count."""


class HostDevice:
    """The CPU: memory is memory, and everything is done when a call returns."""

    where = (CPU, 0)

    def activate(self) -> None:
        return

    def allocate(self, size: int) -> Memory:
        array = np.empty(size, np.uint8)
        return Memory(array.ctypes.data, size, array)

    pinned = allocate

    def stream(self) -> int:
        return 0

    def close_stream(self, stream: int) -> None:
        return

    def copy(self, target: int, source: int, size: int, stream: int) -> None:
        ctypes.memmove(target, source, size)

    def synchronize(self, stream: int) -> None:
        return

    def wait_for(self, other: int, stream: int) -> None:
        return

    def mark(self, stream: int) -> float:
        return time.perf_counter()

    def seconds(self, start: float, end: float) -> float:
        return end - start

    def capture(self, stream: int, work: Callable[[], None]) -> Graph:
        raise UsageError("CUDA graphs need a GPU.", "Open the model without cuda_graphs.")
