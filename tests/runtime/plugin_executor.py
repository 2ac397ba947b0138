"""A plugin of the library as an executor, driven by the harness instead of TensorRT."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from onnx_fuse.runtime.device.arrays import Tensor
from onnx_fuse.runtime.device.engine_file import EngineTensor
from onnx_fuse.runtime.device.executor import Device, LayerTime, Profile
from onnx_fuse.runtime.plugins import harness


class PluginExecutor:
    """One fused node; its inputs are named x0, x1, ..., its outputs y0, y1, ..."""

    profiles: tuple[Profile, ...] = ()
    shape_inputs: frozenset[str] = frozenset()

    def __init__(
        self,
        library: Path,
        operator: str,
        attributes: Mapping[str, Any],
        device: Device,
        inputs: Sequence[tuple[str, tuple[int | str, ...]]],
        outputs: Sequence[tuple[str, tuple[int | str, ...]]],
    ) -> None:
        self.device = device
        self.description = f"{operator} of {library.name}"
        self.inputs = tuple(EngineTensor(f"x{number}", *item) for number, item in enumerate(inputs))
        self.outputs = tuple(EngineTensor(f"y{number}", *item) for number, item in enumerate(outputs))
        self._make = lambda: harness.Plugin(library, operator, attributes)

    def context(self, profile: int, stream: int) -> PluginContext:
        return PluginContext(self, self._make(), stream)

    def layers(self, profile: int, inputs: Mapping[str, Tensor], runs: int) -> list[LayerTime]:
        raise NotImplementedError


class PluginContext:
    def __init__(self, executor: PluginExecutor, plugin: harness.Plugin, stream: int) -> None:
        self._executor, self._plugin, self._stream = executor, plugin, stream

    def prepare(self, inputs: Mapping[str, Tensor]) -> Mapping[str, tuple[int, ...] | None]:
        given = self._given(inputs)
        outputs = self._plugin.outputs(given)
        self._plugin.prepare(given, outputs)
        self._workspace = self._executor.device.allocate(max(self._plugin.workspace(given, outputs), 1))
        return {item.name: made.sizes for item, made in zip(self._executor.outputs, outputs, strict=True)}

    def enqueue(self, inputs: Mapping[str, Tensor], outputs: Mapping[str, Tensor]) -> None:
        made = [self._plain(outputs[item.name]) for item in self._executor.outputs]
        self._plugin.enqueue(self._given(inputs), made, self._workspace.address, self._stream)

    def made(self) -> Mapping[str, Tensor]:
        return {}

    def _given(self, inputs: Mapping[str, Tensor]) -> list[harness.Tensor]:
        return [self._plain(inputs[item.name]) for item in self._executor.inputs]

    def _plain(self, tensor: Tensor) -> harness.Tensor:
        return harness.Tensor(tensor.dtype, tensor.shape, tensor.address)
