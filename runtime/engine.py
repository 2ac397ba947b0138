"""Running a model: `Engine` takes arrays by name and gives arrays by name, from any number of threads.

What it runs on stands behind the protocols of `executor.py`; here are names, types and shapes, buffers, streams and graphs.
"""

from __future__ import annotations

import contextlib
import os
import queue
import time
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from onnx_fuse import installation
from onnx_fuse.errors import UsageError
from onnx_fuse.runtime.device.arrays import CPU, Tensor, numpy_dtype
from onnx_fuse.runtime.device.engine_file import EngineTensor
from onnx_fuse.runtime.device.executor import Executor, LayerTime, Profile
from onnx_fuse.runtime.device.lane import Lane, Mark

if TYPE_CHECKING:
    from onnx_fuse.runtime.onnxruntime.executor import OrtExecutor
    from onnx_fuse.runtime.onnxruntime.kernel_library import Choice, Kernels


@dataclass(frozen=True)
class Timing:
    """Seconds of one call.

    Attributes:
        latency: from the call to the outputs being there, as the caller sees it.
        compute: the model itself; on a GPU between two events of its stream.
        enqueue: on a GPU, what the host needs to start the model.
        h2d, d2h: on a GPU, the copies of inputs to it and of outputs from it.
    """

    latency: float
    compute: float
    enqueue: float | None = None
    h2d: float | None = None
    d2h: float | None = None


class Engine:
    """A model that is ready to run.

    `infer` may be called from several threads: each call takes one of `streams` lanes, which have a stream, contexts and buffers of
    their own, and waits for one if all are taken.

    Args:
        source: an engine that `onnx-fuse build` wrote, or an executor.
        streams: how many calls may run at the same time.
        cuda_graphs: how many CUDA graphs each lane keeps, one for a set of input shapes, the longest unused going first. A set of
            shapes is captured when it comes for the second time. Every graph has a context of its own, with its memory. Models
            with outputs whose size depends on values are never captured.
        nvtx: mark the phases of a call for NVIDIA's profilers; needs the package nvtx.

    Raises:
        ModelError: the engine is damaged, or of another TensorRT.
        UsageError: there is no GPU, a package is missing, or graphs are asked for on the CPU.
    """

    def __init__(
        self, source: Executor | str | Path, *, streams: int = 1, cuda_graphs: int = 0, nvtx: bool = False
    ) -> None:
        if isinstance(source, str | Path):
            from onnx_fuse.runtime.tensorrt.executor import TensorRTExecutor

            source = TensorRTExecutor(Path(source))
        self.executor: Executor = source
        self._takes = {item.name: item for item in source.inputs}
        self._gives = {item.name: item for item in source.outputs}
        if streams < 1:
            raise UsageError(f"streams is {streams}.", "Give at least 1.")
        if cuda_graphs and self.executor.device.where[0] == CPU:
            raise UsageError("CUDA graphs need a GPU, and this runs on the CPU.", "Open the model without cuda_graphs.")
        self._mark = _marker() if nvtx else _unmarked
        self._lanes: queue.LifoQueue[Lane | None] = queue.LifoQueue()  # None: the engine is closed
        self._all = [Lane(self.executor, cuda_graphs, self._mark) for _ in range(streams)]
        for lane in self._all:
            self._lanes.put(lane)

    @property
    def description(self) -> str:
        """What runs where."""
        return self.executor.description

    @property
    def inputs(self) -> tuple[EngineTensor, ...]:
        """What the model takes."""
        return self.executor.inputs

    @property
    def outputs(self) -> tuple[EngineTensor, ...]:
        """What the model gives."""
        return self.executor.outputs

    @property
    def profiles(self) -> tuple[Profile, ...]:
        """The shapes that each optimisation profile allows; empty where all are allowed."""
        return self.executor.profiles

    def __repr__(self) -> str:
        return f"<{type(self).__name__}: {self.description}>"

    def infer(self, inputs: Mapping[str, Any], *, out: Mapping[str, Any] | None = None) -> dict[str, Any]:
        """Runs the model and waits for it.

        Args:
            inputs: input name -> array: numpy's, or any with `__dlpack__` or `__cuda_array_interface__`, which is read where it is
                if that is the device of the model. Arrays that are not contiguous are copied.
            out: output name -> array of the right type and shape, that is written to.

        Returns:
            Output name -> array: those of `out`, else new ones on the GPU if an input was, of the library of the first such input.

        Raises:
            UsageError: a name, type or shape does not fit, an array is on another device, or the engine is closed.
            ModelError: the model fails on these inputs.
        """
        return self.timed(inputs, out=out)[0]

    def timed(
        self, inputs: Mapping[str, Any], *, out: Mapping[str, Any] | None = None
    ) -> tuple[dict[str, Any], Timing]:
        """`infer`, with the time it took."""
        start = time.perf_counter()
        self._check_names(inputs, out or {})
        with self._lane() as lane, self._mark("infer"):
            tensors = self._tensors(inputs, lane)
            outputs, clock = lane.run(tensors, self._profile(tensors), self._outputs(out or {}, lane))
        # Those on the GPU first, as the outputs are there then.
        library = next((item.library for item in sorted(tensors.values(), key=lambda item: item.on_host)), "numpy")
        given = out or {}
        results = {
            item.name: given[item.name] if item.name in given else outputs[item.name].to(library)
            for item in self.outputs
        }
        return results, Timing(time.perf_counter() - start, **clock)

    def layers(self, inputs: Mapping[str, Any], runs: int = 10) -> list[LayerTime]:
        """The times of the layers, in the order of execution; measuring them makes the whole slower."""
        self._check_names(inputs, {})
        with self._lane() as lane:
            tensors = self._tensors(inputs, lane)
            return self.executor.layers(self._profile(tensors), lane.brought(tensors), runs)

    def close(self) -> None:
        """Frees streams and buffers, once running calls are done. Arrays that were given out stay."""
        while self._all and (lane := self._lanes.get()) is not None:
            self._all.remove(lane)
            lane.close()
        self._lanes.put(None)

    def __enter__(self) -> Engine:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    @contextlib.contextmanager
    def _lane(self) -> Iterator[Lane]:
        lane = self._lanes.get()
        try:
            if lane is None:
                raise UsageError(f"The engine is closed ({self.description}).", "Open it again.")
            self.executor.device.activate()
            yield lane
        except BaseException:
            if lane is not None:
                lane.settle()
            raise
        finally:
            self._lanes.put(lane)

    # --- what was given -----------------------------------------------------------------------------------------------

    def _check_names(self, inputs: Mapping[str, Any], out: Mapping[str, Any]) -> None:
        if inputs.keys() == self._takes.keys() and out.keys() <= self._gives.keys():
            return
        for kind, given, known in (("input", inputs, self._takes), ("output", out, self._gives)):
            listed = ", ".join(map(described, known.values()))
            if unknown := [name for name in given if name not in known]:
                raise UsageError(f"The model has no {kind} {unknown[0]!r}.", f"Its {kind}s are: {listed}.")
            if kind == "input" and (missing := [name for name in known if name not in given]):
                raise UsageError(f"Input {missing[0]!r} is missing.", f"The model takes: {listed}.")

    def _tensors(self, inputs: Mapping[str, Any], lane: Lane) -> dict[str, Tensor]:
        """The inputs in the order they were given, types, ranks and fixed sizes checked."""
        found = {}
        for name, value in inputs.items():
            label = f"input {name!r}"
            found[name] = _checked(self._takes[name], lane.taken(label, value), label)
            self._check_place(found[name], label)
        return found

    def _outputs(self, out: Mapping[str, Any], lane: Lane) -> dict[str, Tensor]:
        found = {}
        for name, value in out.items():
            label = f"output {name!r}"
            if isinstance(value, np.ndarray) and not value.flags.writeable:
                raise UsageError(f"{label} was given an array that is read-only.", "Give one that can be written to.")
            found[name] = _checked(self._gives[name], lane.taken(label, value, copy=False), label)
            self._check_place(found[name], label)
        return found

    def _check_place(self, tensor: Tensor, label: str) -> None:
        kind, number = self.executor.device.where
        if tensor.on_host or (kind != CPU and tensor.device[1] == number):
            return
        here = Tensor(0, "uint8", (), (kind, number)).place
        raise UsageError(f"{label} is on {tensor.place}, the model on {here}.", f"Move it to {here}.")

    def _profile(self, tensors: Mapping[str, Tensor]) -> int:
        """The first optimisation profile that allows all shapes."""
        if not self.profiles:
            return 0
        for number, profile in enumerate(self.profiles):
            if all(_allowed(profile, name, tensor) for name, tensor in tensors.items()):
                return number
        for name, tensor in tensors.items():
            if not any(_allowed(profile, name, tensor) for profile in self.profiles):
                ranges = " or ".join(_range(profile, name) for profile in self.profiles if name in profile)
                raise UsageError(
                    f"input {name!r} has shape {list(tensor.shape)}; the engine allows {ranges}.",
                    "Change the shape, or build the engine with --shapes that include it.",
                )
        came = ", ".join(f"{name} {list(tensor.shape)}" for name, tensor in tensors.items())
        allowed = "; or ".join(", ".join(f"{name} {_range(of, name)}" for name in of) for of in self.profiles)
        raise UsageError(
            f"No optimisation profile allows these shapes together: {came}.", f"The engine allows: {allowed}."
        )


class OrtSession(Engine):
    """A model in ONNX Runtime on the CPU, with the interface of `Engine`. Fused nodes run by the kernel library, if there is one
    that can run the model, else by their bodies; `description` says which, and why.

    Args:
        model: an ONNX file, or a model in memory without external data.
        optimise: let ONNX Runtime rewrite the graph.
        threads: threads of one call; ONNX Runtime's choice if None.
        streams: how many calls may run at the same time.
        nvtx: mark calls for NVIDIA's profilers.
        library: the kernel library: None: the one that is found, as far as it can run the model; False: none; True, or the path
            of one: that, or an error.

    Raises:
        ModelError: ONNX Runtime cannot load the model, or an input or output is no tensor of numbers.
        UsageError: the library that was asked for is not there or damaged, or lacks what the model needs.
    """

    executor: OrtExecutor

    def __init__(
        self,
        model: Any,
        *,
        optimise: bool = True,
        threads: int | None = None,
        streams: int = 1,
        nvtx: bool = False,
        library: Choice = None,
    ) -> None:
        from onnx_fuse.runtime.onnxruntime.executor import OrtExecutor

        executor = OrtExecutor(model, optimise=optimise, threads=threads, library=library)
        super().__init__(executor, streams=streams, nvtx=nvtx)

    @property
    def kernels(self) -> Kernels:
        """What runs the fused nodes."""
        return self.executor.kernels


def open(
    path: str | Path,
    *,
    streams: int = 1,
    cuda_graphs: int = 0,
    nvtx: bool = False,
    optimise: bool = True,
    threads: int | None = None,
    fallback: bool = False,
    library: Choice = None,
) -> Engine:
    """A model or an engine, ready to run; `description` says what it became.

    Args:
        path: an engine with its record beside it, which runs in TensorRT, or else an ONNX model, which runs in ONNX Runtime.
        streams, nvtx: see `Engine`.
        cuda_graphs: see `Engine`; for TensorRT only.
        optimise, threads: see `OrtSession`; for ONNX Runtime only.
        fallback: where an engine cannot run for want of a GPU or a package, open the ONNX model it was built from, if that lies
            beside it.
        library: see `OrtSession`; for ONNX Runtime only.

    Raises:
        ModelError, UsageError: it cannot be read, or cannot run here.
    """
    from onnx_fuse.runtime.device import engine_file

    path = Path(path)
    model = path
    if engine_file.is_engine(path):
        try:
            return Engine(path, streams=streams, cuda_graphs=cuda_graphs, nvtx=nvtx)
        except UsageError as error:
            model = path.parent / engine_file.read(path).model
            if not os.path.isfile(model):
                raise
            if not fallback:
                remedy = f"Open {model} instead, which runs in ONNX Runtime, or say fallback=True. {error.remedy}"
                raise UsageError(f"The engine {path} cannot run here: {error.cause}", remedy.strip()) from error
    elif cuda_graphs:
        raise UsageError(f"{path} runs in ONNX Runtime on the CPU, which has no CUDA graphs.", "Build an engine of it.")
    return OrtSession(model, optimise=optimise, threads=threads, streams=streams, nvtx=nvtx, library=library)


def described(item: EngineTensor) -> str:
    """`x float32[n, 4]`."""
    return f"{item.name} {item.dtype}[{', '.join(map(str, item.shape))}]"


def _checked(item: EngineTensor, tensor: Tensor, label: str) -> Tensor:
    if tensor.dtype != item.dtype:
        raise _misfit(item, tensor, label, _cast(tensor.dtype, item.dtype))
    # An executor that does not know the rank says ().
    if item.shape and len(tensor.shape) != len(item.shape):
        raise _misfit(item, tensor, label, f"Give it {len(item.shape)} dimensions instead of {len(tensor.shape)}.")
    for axis, (size, wanted) in enumerate(zip(tensor.shape, item.shape, strict=False)):
        if isinstance(wanted, int) and size != wanted:
            raise _misfit(item, tensor, label, f"Dimension {axis} has to be {wanted}.")
    return tensor


def _misfit(item: EngineTensor, tensor: Tensor, label: str, remedy: str) -> UsageError:
    return UsageError(f"{label} is {tensor.dtype}{list(tensor.shape)}; the model has {described(item)}.", remedy)


def _cast(came: str, wanted: str) -> str:
    try:
        safe = np.can_cast(numpy_dtype(came), numpy_dtype(wanted), "safe")
    except TypeError:  # a type that only its library has
        safe = False
    if safe:
        return f"{came} fits into {wanted}: convert the array, nothing is lost."
    return f"{came} does not fit into {wanted}: convert the array if you know that its values do."


def _allowed(profile: Profile, name: str, tensor: Tensor) -> bool:
    allowed = profile.get(name)
    return allowed is None or (
        len(allowed.min) == len(tensor.shape)
        and all(low <= size <= high for low, size, high in zip(allowed.min, tensor.shape, allowed.max, strict=True))
    )


def _range(profile: Profile, name: str) -> str:
    allowed = profile[name]
    sizes = (str(low) if low == high else f"{low}..{high}" for low, high in zip(allowed.min, allowed.max, strict=True))
    return f"[{', '.join(sizes)}]"


def _unmarked(name: str) -> AbstractContextManager[Any]:
    return contextlib.nullcontext()


def _marker() -> Mark:
    nvtx = installation.require("nvtx", extra="serve", purpose="mark NVTX ranges")

    def mark(name: str) -> AbstractContextManager[Any]:
        return nvtx.annotate(name, domain="onnx-fuse")

    return mark
