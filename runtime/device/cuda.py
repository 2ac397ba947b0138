"""A GPU as a `Device`: memory, pinned memory, streams, events and graphs of CUDA's driver, through cuda-python."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from functools import cache
from typing import Any

from onnx_fuse import installation
from onnx_fuse.errors import UsageError
from onnx_fuse.runtime.device.arrays import CUDA
from onnx_fuse.runtime.device.executor import Graph, Memory

_REMEDIES = {
    "CUDA_ERROR_OUT_OF_MEMORY": "Use fewer streams or CUDA graphs, smaller shapes, or end what else uses the GPU.",
    "CUDA_ERROR_NO_DEVICE": "Check the GPU with nvidia-smi; CUDA_VISIBLE_DEVICES may hide it.",
    "CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED": "This model cannot be captured: open it without cuda_graphs.",
    "CUDA_ERROR_STREAM_CAPTURE_INVALIDATED": "This model cannot be captured: open it without cuda_graphs.",
    "CUDA_ERROR_SYSTEM_DRIVER_MISMATCH": "Reboot after an update of the driver.",
}
_FATAL = "After this error the process cannot use the GPU any more: start it again, with compute-sanitizer to find the cause."


class CudaError(UsageError):
    """CUDA refused a call or failed."""


@cache
def _driver() -> Any:
    driver = installation.require("cuda.bindings.driver", extra="serve", purpose="run on a GPU", package="cuda-python")
    try:
        status = driver.cuInit(0)[0]
    except Exception as error:  # a RuntimeError, or what cuda-python's search for libraries raises
        raise UsageError(
            f"There is no CUDA driver here: {' '.join(str(error).split())}",
            "Install NVIDIA's driver, or run on the CPU.",
        ) from error
    _check(driver, "cuInit", status)
    return driver


def _call(name: str, *arguments: Any) -> Any:
    """The result of a driver call, None or a tuple where it gives none or several.

    Raises:
        CudaError: the call failed.
    """
    driver = _driver()
    status, *results = getattr(driver, name)(*arguments)
    _check(driver, name, status)
    return results[0] if len(results) == 1 else tuple(results) or None


def _check(driver: Any, what: str, status: Any) -> None:
    if status == driver.CUresult.CUDA_SUCCESS:
        return
    name = getattr(status, "name", str(status))
    text = driver.cuGetErrorString(status)[1]
    meaning = text.decode() if isinstance(text, bytes) else "unknown error"
    fatal = name in (
        "CUDA_ERROR_ILLEGAL_ADDRESS",
        "CUDA_ERROR_LAUNCH_FAILED",
        "CUDA_ERROR_ASSERT",
        "CUDA_ERROR_ECC_UNCORRECTABLE",
    )
    remedy = _FATAL if fatal else _REMEDIES.get(name, "Check the GPU and its driver with nvidia-smi.")
    raise CudaError(f"CUDA: {what} failed with {name} ({meaning}).", remedy)


def devices() -> list[str]:
    """The names of the GPUs of this machine.

    Raises:
        UsageError: there is no driver, or no cuda-python.
    """
    count = _call("cuDeviceGetCount")
    return [
        _call("cuDeviceGetName", 256, _call("cuDeviceGet", number)).split(b"\0")[0].decode() for number in range(count)
    ]


class CudaDevice:
    """A GPU, with the context that CUDA's runtime (and with it TensorRT and torch) uses too.

    Raises:
        UsageError: there is no driver, no cuda-python, or no such GPU.
        CudaError: the driver fails.
    """

    def __init__(self, number: int = 0) -> None:
        names = devices()
        if number >= len(names):
            raise UsageError(f"There is no GPU {number}, there are {len(names)}.", "See nvidia-smi -L.")
        self.name = names[number]
        self.where = (CUDA, number)
        self._context = _call("cuDevicePrimaryCtxRetain", _call("cuDeviceGet", number))
        self.activate()

    def activate(self) -> None:
        _call("cuCtxSetCurrent", self._context)

    def allocate(self, size: int) -> Memory:
        address = int(_call("cuMemAlloc", size))
        return Memory(address, size, _Owner(address, "cuMemFree", self._context))

    def pinned(self, size: int) -> Memory:
        address = int(_call("cuMemHostAlloc", size, 0))
        return Memory(address, size, _Owner(address, "cuMemFreeHost", self._context))

    def stream(self) -> int:
        return int(_call("cuStreamCreate", _driver().CUstream_flags.CU_STREAM_NON_BLOCKING))

    def close_stream(self, stream: int) -> None:
        _call("cuStreamDestroy", stream)

    def copy(self, target: int, source: int, size: int, stream: int) -> None:
        if size:
            _call("cuMemcpyAsync", target, source, size, stream)

    def synchronize(self, stream: int) -> None:
        _call("cuStreamSynchronize", stream)

    def wait_for(self, other: int, stream: int) -> None:
        _call("cuStreamWaitEvent", stream, self.mark(other).handle, 0)

    def mark(self, stream: int) -> Any:
        event = _Owner(_call("cuEventCreate", 0), "cuEventDestroy", self._context)
        _call("cuEventRecord", event.handle, stream)
        return event

    def seconds(self, start: Any, end: Any) -> float:
        return float(_call("cuEventElapsedTime", start.handle, end.handle)) / 1e3

    def capture(self, stream: int, work: Callable[[], None]) -> Graph:
        # Relaxed: the collector may free memory of somebody else in this thread meanwhile.
        mode = _driver().CUstreamCaptureMode.CU_STREAM_CAPTURE_MODE_RELAXED
        _call("cuStreamBeginCapture", stream, mode)
        try:
            work()
        except BaseException:
            _driver().cuStreamEndCapture(stream)
            raise
        return _CudaGraph(_call("cuStreamEndCapture", stream), self._context)


class _CudaGraph:
    def __init__(self, graph: Any, context: Any) -> None:
        captured = _Owner(graph, "cuGraphDestroy", context)
        self._graph = _Owner(_call("cuGraphInstantiate", captured.handle, 0), "cuGraphExecDestroy", context)

    def launch(self, stream: int) -> None:
        _call("cuGraphLaunch", self._graph.handle, stream)


class _Owner:
    """Holds what the driver made, and hands it back in the end, in whatever thread that is."""

    def __init__(self, handle: Any, free: str, context: Any) -> None:
        self.handle = handle
        weakref.finalize(self, _freed, free, handle, context)


def _freed(free: str, handle: Any, context: Any) -> None:
    driver = _driver()
    previous = driver.cuCtxGetCurrent()[1]
    driver.cuCtxSetCurrent(context)
    getattr(driver, free)(handle)  # an error here would be one of work long done
    driver.cuCtxSetCurrent(previous)
