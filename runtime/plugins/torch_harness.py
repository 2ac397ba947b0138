"""Plugins on torch tensors: what tests and benchmarks run on a GPU, through the harness and without TensorRT."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from onnx_fuse import installation
from onnx_fuse.errors import UsageError
from onnx_fuse.runtime.plugins import harness
from onnx_fuse.runtime.plugins.aot import ALIGNMENT
from onnx_fuse.runtime.plugins.harness import Plugin, Tensor


@dataclass(frozen=True)
class Node:
    """A node of a fused operator: its attributes, the tensors it reads by the names of its inputs, and the outputs it makes."""

    operator: str
    attributes: Mapping[str, Any]
    inputs: Mapping[str, Any]
    outputs: Sequence[str] = ("output",)


@dataclass(frozen=True)
class Bound:
    """A plugin with memory for everything it needs, ready to be enqueued any number of times.

    Attributes:
        inputs, outputs: name -> torch tensor; outputs hold NaN until the first run.
        workspace: uint8.
        kernels: names of the kernels that a run launches.
    """

    plugin: Plugin
    inputs: Mapping[str, Any]
    outputs: Mapping[str, Any]
    workspace: Any
    kernels: tuple[str, ...]

    def enqueue(self, stream: int = 0) -> None:
        """Launches the kernels on a CUDA stream; it returns before they have run.

        Raises:
            UsageError: the plugin fails, with what it logs.
        """
        self.plugin.enqueue(*self._described(), workspace=self.workspace.data_ptr(), stream=stream)

    def attached(self) -> Bound:
        """The same node in another execution context, on the same inputs, with outputs and workspace of its own."""
        outputs = {name: poisoned(item) for name, item in self.outputs.items()}
        other = Bound(self.plugin.attached(), self.inputs, outputs, poisoned(self.workspace), self.kernels)
        other.plugin.prepare(*other._described())
        return other

    def _described(self) -> tuple[list[Tensor], list[Tensor]]:
        return [described(item) for item in self.inputs.values()], [described(item) for item in self.outputs.values()]


def described(tensor: Any) -> Tensor:
    """A torch tensor as the harness takes it."""
    return Tensor(str(tensor.dtype).removeprefix("torch."), tuple(tensor.shape), tensor.data_ptr())


def poisoned(like: Any) -> Any:
    """Memory in which every number is NaN (of integers: every bit set), so that what is not written shows."""
    tensor = like.new_empty(like.shape)
    return tensor.fill_(float("nan") if tensor.is_floating_point() else 255)


def bind(library: Path, node: Node, device: str = "cuda") -> Bound:
    """The plugin of a node with its tensors on a device, after the life that TensorRT gives it.

    Raises:
        UsageError: the plugin refuses the node, its inputs or their types, or has no kernel for this GPU.
    """
    torch = installation.require("torch", extra="torch", purpose="run a plugin on its own")
    inputs = {name: item.to(device).contiguous() for name, item in node.inputs.items()}
    names = {"inputs": ",".join(inputs), "outputs": ",".join(node.outputs)}
    kinds = harness.fields(library, node.operator)
    attributes = {name: _typed(value, kinds[name]) for name, value in node.attributes.items()}
    plugin = Plugin(library, node.operator, {**attributes, **names})
    plugin.reborn()
    given = [described(item) for item in inputs.values()]
    found = plugin.outputs(given)
    if (position := plugin.refused_position(given, found)) >= 0:
        raise UsageError(
            f"{node.operator} refuses the type of tensor {position}.", "See docs/operators.md for its types."
        )
    outputs = {
        name: poisoned(torch.empty(item.sizes, dtype=getattr(torch, item.dtype), device=device))
        for name, item in zip(node.outputs, found, strict=True)
    }
    workspace = poisoned(torch.empty(plugin.workspace(given, found), dtype=torch.uint8, device=device))
    harness.messages()
    plugin.prepare(given, [described(item) for item in outputs.values()])
    logged = harness.messages().splitlines()
    aligned = all(item.data_ptr() % ALIGNMENT == 0 for item in (*inputs.values(), *outputs.values()))
    before = "kernel " if aligned else "unaligned kernel "
    kernels = tuple(line.removeprefix(before) for line in logged if line.startswith(before))
    return Bound(plugin, inputs, outputs, workspace, kernels)


def _typed(value: Any, kind: str) -> Any:
    if kind == "str":
        return value
    number = float if kind == "float" else int
    return [number(item) for item in value] if isinstance(value, (list, tuple)) else number(value)
