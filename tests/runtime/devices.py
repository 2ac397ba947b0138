"""A device whose memory is the host's, posing as a GPU, and a model on it: what `Engine` does around one, without a GPU."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any

from onnx_fuse.runtime.device.arrays import CUDA, Tensor
from onnx_fuse.runtime.device.executor import Context, HostDevice
from onnx_fuse.runtime.onnxruntime.executor import OrtContext, OrtExecutor


class PosingDevice(HostDevice):
    """Counts what it is asked for; a graph is the work that was captured, done again."""

    where = (CUDA, 0)

    def __init__(self) -> None:
        self.calls: Counter[str] = Counter()
        self.waits: list[int] = []
        self.streams: set[int] = set()

    def allocate(self, size: int):  # type: ignore[no-untyped-def]
        self.calls["allocate"] += 1
        return super().allocate(size)

    def pinned(self, size: int):  # type: ignore[no-untyped-def, override]
        self.calls["pinned"] += 1
        return super().allocate(size)

    def stream(self) -> int:
        self.streams.add(len(self.streams) + 7)
        return max(self.streams)

    def close_stream(self, stream: int) -> None:
        self.streams.remove(stream)

    def copy(self, target: int, source: int, size: int, stream: int) -> None:
        assert stream in self.streams
        self.calls["copy"] += 1
        super().copy(target, source, size, stream)

    def wait_for(self, other: int, stream: int) -> None:
        self.waits.append(other)

    def mark(self, stream: int) -> float:
        assert stream in self.streams
        return time.perf_counter()

    def capture(self, stream: int, work: Callable[[], None]) -> PosingGraph:
        self.calls["capture"] += 1
        return PosingGraph(self, work)


class PosingGraph:
    def __init__(self, device: PosingDevice, work: Callable[[], None]) -> None:
        self._device, self._work = device, work

    def launch(self, stream: int) -> None:
        assert stream in self._device.streams
        self._device.calls["launch"] += 1
        self._work()


class PosingExecutor(OrtExecutor):
    """ONNX Runtime that knows, as TensorRT does, the shapes of outputs whose dimensions are those of inputs."""

    def __init__(self, model: Any, device: PosingDevice, **options: Any) -> None:
        super().__init__(model, device=device, **options)

    def context(self, profile: int, stream: int) -> Context:
        return _PosingContext(self)


class _PosingContext(OrtContext):
    def prepare(self, inputs: Mapping[str, Tensor]) -> Mapping[str, tuple[int, ...] | None]:
        sizes = {
            dim: size
            for item in self._executor.inputs
            for dim, size in zip(item.shape, inputs[item.name].shape, strict=True)
            if isinstance(dim, str)
        }
        shapes = {
            item.name: [sizes.get(dim) if isinstance(dim, str) else dim for dim in item.shape]
            for item in self._executor.outputs
        }
        return {
            name: None if None in shape else tuple(size for size in shape if size is not None)
            for name, shape in shapes.items()
        }
