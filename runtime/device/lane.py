"""A stream with what one call at a time needs on it: contexts, buffers that are kept from call to call, CUDA graphs."""

from __future__ import annotations

import contextlib
import ctypes
import itertools
import time
from collections import OrderedDict
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import numpy as np

from onnx_fuse.errors import OnnxFuseError, UsageError
from onnx_fuse.runtime.device.arrays import CPU, Tensor, contiguous, numpy_dtype
from onnx_fuse.runtime.device.executor import Context, Executor, Graph, Memory

_REMEMBERED = 256  # shapes of which a lane knows that it has seen them once

Key = tuple[Any, ...]
Mark = Callable[[str], AbstractContextManager[Any]]
"""Marks a phase of a call, given its name."""


@dataclass(frozen=True)
class _Captured:
    """A graph with the outputs it writes, and the context it was captured from, which must not change while the graph lives."""

    context: Context
    graph: Graph
    outputs: Mapping[str, Tensor]


class Lane:
    """A stream with what one call at a time needs on it.

    Args:
        executor: what runs the model, and on which device.
        cuda_graphs: how many graphs are kept, the longest unused going first; 0: nothing is captured.
        mark: marks the phases of a call.
    """

    def __init__(self, executor: Executor, cuda_graphs: int, mark: Mark) -> None:
        self._executor, self._device, self._mark = executor, executor.device, mark
        self._device.activate()
        self._stream = self._device.stream()
        self._on_cpu = self._device.where[0] == CPU
        self._contexts: dict[int, Context] = {}
        self._buffers: dict[tuple[str, str], Memory] = {}  # (use, tensor) -> memory, kept from call to call
        self._limit = cuda_graphs
        self._seen: OrderedDict[Key, None] = OrderedDict()
        self._graphs: OrderedDict[Key, _Captured] = OrderedDict()

    def close(self) -> None:
        """Frees the stream and what is kept for it."""
        self._device.activate()
        for held in (self._graphs, self._contexts, self._buffers):
            held.clear()
        self._device.close_stream(self._stream)

    def settle(self) -> None:
        """After an error: waits for what may still use the caller's memory."""
        with contextlib.suppress(OnnxFuseError):  # the stream may be what failed
            self._device.synchronize(self._stream)

    def taken(self, label: str, value: Any, *, copy: bool = True) -> Tensor:
        """The memory of an array, or of a contiguous copy, for use on this stream."""
        stream = None if self._on_cpu else self._stream
        return contiguous(label, value, stream, lambda other: self._device.wait_for(other, self._stream), copy=copy)

    def run(
        self, inputs: Mapping[str, Tensor], profile: int, out: Mapping[str, Tensor]
    ) -> tuple[dict[str, Tensor], dict[str, float]]:
        """The outputs (those of `out`, else on the CPU if all inputs are), and the times of the phases."""
        device, stream = self._device, self._stream
        to_host = not self._on_cpu and all(tensor.on_host for tensor in inputs.values())
        events = [device.mark(stream)]
        with self._mark("copy in"):
            brought = self.brought(inputs)
        events.append(device.mark(stream))
        with self._mark("enqueue"):
            started = time.perf_counter()
            context, written = self._start(brought, profile, out, to_host)
            enqueue = time.perf_counter() - started
        events.append(device.mark(stream))
        with self._mark("copy out"):
            if any(item.name not in written for item in self._executor.outputs):
                device.synchronize(stream)
                written = {**written, **context.made()}
            results: dict[str, Tensor] = {}
            staged: list[tuple[Tensor, int]] = []
            for name, tensor in written.items():
                results[name] = self._delivered(name, tensor, out.get(name), to_host, staged)
            events.append(device.mark(stream))
            device.synchronize(stream)
            for target, source in staged:
                ctypes.memmove(target.address, source, target.nbytes)
        h2d, compute, d2h = (device.seconds(*pair) for pair in itertools.pairwise(events))
        phases = {"compute": compute}
        return results, phases if self._on_cpu else {**phases, "enqueue": enqueue, "h2d": h2d, "d2h": d2h}

    def brought(self, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The inputs where the model reads them."""
        return {name: self._brought(name, tensor) for name, tensor in inputs.items()}

    def _brought(self, name: str, tensor: Tensor) -> Tensor:
        if self._on_cpu or (name in self._executor.shape_inputs and tensor.on_host):
            return tensor
        if name in self._executor.shape_inputs:
            here = _on_host(tensor)
            self._device.copy(here.address, tensor.address, tensor.nbytes, self._stream)
            self._device.synchronize(self._stream)
            return here
        if not tensor.on_host and not self._limit:
            return tensor
        source = tensor.address
        if tensor.device[0] == CPU:
            source = self._buffer("pinned input", name, tensor.nbytes).address
            ctypes.memmove(source, tensor.address, tensor.nbytes)
        there = self._buffer("input", name, tensor.nbytes)
        self._device.copy(there.address, source, tensor.nbytes, self._stream)
        return self._on_device(there, tensor)

    def _start(
        self, inputs: Mapping[str, Tensor], profile: int, out: Mapping[str, Tensor], to_host: bool
    ) -> tuple[Context, Mapping[str, Tensor]]:
        """Puts the model into the stream: the context, and the outputs that it writes there."""
        if not self._limit:
            return self._enqueued(self._context(profile), inputs, out, to_host)
        shaping = [inputs[name].numpy().tobytes() for name in sorted(self._executor.shape_inputs)]
        key = (profile, tuple(inputs[item.name].shape for item in self._executor.inputs), *shaping)
        captured = self._graphs.get(key)
        if captured is not None:
            self._graphs.move_to_end(key)
            self._checked_shapes(out, captured.outputs)
            captured.graph.launch(self._stream)
            return captured.context, captured.outputs
        again = key in self._seen
        context = self._executor.context(profile, self._stream) if again else self._context(profile)
        _, outputs = self._enqueued(context, inputs, out, to_host)
        _put(self._seen, key, None, _REMEMBERED)
        if again and len(outputs) == len(self._executor.outputs):
            graph = self._device.capture(self._stream, lambda: context.enqueue(inputs, outputs))
            _put(self._graphs, key, _Captured(context, graph, outputs), self._limit)
        return context, outputs

    def _context(self, profile: int) -> Context:
        if profile not in self._contexts:
            self._contexts[profile] = self._executor.context(profile, self._stream)
        return self._contexts[profile]

    def _enqueued(
        self, context: Context, inputs: Mapping[str, Tensor], out: Mapping[str, Tensor], to_host: bool
    ) -> tuple[Context, dict[str, Tensor]]:
        shapes = context.prepare(inputs)
        known = {
            item.name: (item.dtype, shape)
            for item in self._executor.outputs
            if (shape := shapes[item.name]) is not None
        }
        outputs = {name: Tensor(0, *facts, self._device.where) for name, facts in known.items()}
        self._checked_shapes(out, outputs)
        for name, tensor in outputs.items():
            given = out.get(name)
            if given is not None and not self._limit and given.on_host == self._on_cpu:
                outputs[name] = given
            elif self._limit or to_host:
                outputs[name] = self._on_device(self._buffer("output", name, tensor.nbytes), tensor)
            else:
                outputs[name] = self._on_device(self._device.allocate(max(tensor.nbytes, 1)), tensor)
        context.enqueue(inputs, outputs)
        return context, outputs

    def _delivered(
        self, name: str, tensor: Tensor, given: Tensor | None, to_host: bool, staged: list[tuple[Tensor, int]]
    ) -> Tensor:
        """The output where the caller wants it; `staged` grows by what has to be copied once the stream is through."""
        if given is None and not to_host:
            if not self._limit:
                return tensor
            given = self._on_device(self._device.allocate(max(tensor.nbytes, 1)), tensor)
        elif given is None:
            given = _on_host(tensor)
        self._checked_shapes({name: given}, {name: tensor})
        if given.address == tensor.address:
            return given
        target = given.address
        if given.device[0] == CPU and not self._on_cpu:
            target = self._buffer("pinned output", name, tensor.nbytes).address
            staged.append((given, target))
        self._device.copy(target, tensor.address, tensor.nbytes, self._stream)
        return given

    def _checked_shapes(self, out: Mapping[str, Tensor], outputs: Mapping[str, Tensor]) -> None:
        for name, given in out.items():
            if name in outputs and given.shape != outputs[name].shape:
                raise UsageError(
                    f"output {name!r} was given an array of shape {list(given.shape)}, and has {list(outputs[name].shape)}.",
                    "Give an array of that shape.",
                )

    def _buffer(self, use: str, name: str, size: int) -> Memory:
        held = self._buffers.get((use, name))
        if held is None or held.size < size:
            if held is not None:
                self._device.synchronize(self._stream)  # before it goes
                self._graphs.clear()  # which may read or write it
            held = (self._device.pinned if use.startswith("pinned") else self._device.allocate)(max(size, 1))
            self._buffers[(use, name)] = held
        return held

    def _on_device(self, memory: Memory, like: Tensor) -> Tensor:
        return Tensor(memory.address, like.dtype, like.shape, self._device.where, memory)


def _on_host(like: Tensor) -> Tensor:
    array = np.empty(like.shape, numpy_dtype(like.dtype))
    return Tensor(array.ctypes.data, like.dtype, like.shape, owner=array)


def _put(table: OrderedDict[Key, Any], key: Key, value: Any, limit: int) -> None:
    """Adds what was used last; what was not used for longest goes."""
    table[key] = value
    table.move_to_end(key)
    while len(table) > limit:
        table.popitem(last=False)
