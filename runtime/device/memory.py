"""How much memory running a model takes, roughly, and how much there is: asked before a run, so that nobody is killed by it."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from pathlib import Path

from onnx import ModelProto, TensorProto, helper

from onnx_fuse.passes.files.external_data import byte_size, size_in_bytes, tensors
from onnx_fuse.passes.graph.index import Graph
from onnx_fuse.passes.graph.node import Node
from onnx_fuse.passes.graph.onnx_inference import inferred_types
from onnx_fuse.passes.graph.shapes.inference import Info
from onnx_fuse.passes.view.view import View

# A model with inline weights exists as protobuf, as bytes and as the session's tensors.
_COPIES_INLINE = 3
# Large values alive at once, counted in the size of the largest: the input and output of a node, and a neighbour's.
_LARGE_VALUES_ALIVE = 4
_BASE = 64 << 20
_SMALL_CONSTANT = 64
_UNLIMITED = 1 << 60
_UNKNOWN = 1 << 62
_FILLERS = {"ConstantOfShape": 0, "Expand": 1, "Pad": 1, "Range": 0, "Tile": 1}
"""Operators of which a few numbers can ask for any amount -> their first input of such numbers."""


def available_bytes() -> int | None:
    """Memory this process may still take: the least of what the machine has free and what its cgroup allows; None if unknown."""
    found = [*_machine_bytes(), *group_bytes(Path("/proc/self/cgroup"), Path("/sys/fs/cgroup"))]
    return min(found) if found else None


def needed_bytes(original: ModelProto, fused: ModelProto, shapes: Mapping[str, tuple[int, ...]]) -> int:
    """Rough peak in bytes of running the two models, one after the other, on inputs of the given shapes.

    Counts the weights of the larger (those in external data once: they are mapped, not copied) and a few of the
    original's largest value. What cannot be told is more than there is anywhere.
    """
    weights = max(_weight_bytes(original), _weight_bytes(fused))
    return _BASE + weights + _LARGE_VALUES_ALIVE * _largest_value(original, shapes)


def shortage(needed: int, available: int | None) -> str | None:
    """The sentence that says that there is too little memory to run the models; None where there is enough, as far as known."""
    if available is None or needed <= available:
        return None
    if needed >= _UNKNOWN:
        return "running the models may take more memory than any machine has: a size is huge, or is known only as the model runs."
    return f"running the models takes about {needed / 1e9:.1f} GB of memory, {available / 1e9:.1f} GB is available."


def _weight_bytes(model: ModelProto) -> int:
    return sum(
        byte_size(tensor) * (1 if tensor.data_location == TensorProto.EXTERNAL else _COPIES_INLINE)
        for tensor, _ in tensors(model)
    )


def _largest_value(model: ModelProto, shapes: Mapping[str, tuple[int, ...]]) -> int:
    """Bytes of the largest value of the main graph whose shape follows from the inputs'; 0 when none does.

    Shapes are worked out from shapes, without any value of the size that is asked about.
    """
    skeleton = ModelProto(ir_version=model.ir_version, opset_import=model.opset_import, functions=model.functions)
    graph = skeleton.graph
    graph.name = model.graph.name
    graph.node.extend(model.graph.node)
    graph.output.extend(model.graph.output)
    for value in model.graph.input:
        if value.name in shapes:
            elem_type = value.type.tensor_type.elem_type
            graph.input.append(helper.make_tensor_value_info(value.name, elem_type, shapes[value.name]))
    for tensor in model.graph.initializer:
        if tensor.data_location != TensorProto.EXTERNAL and math.prod(tensor.dims) <= _SMALL_CONSTANT:
            graph.initializer.append(tensor)  # it may be a shape or an axis
        else:
            graph.input.append(helper.make_tensor_value_info(tensor.name, tensor.data_type, list(tensor.dims)))
    main = Graph(graph, skeleton)
    view = View(main, inferred_types(main))
    weights = {tensor.name for tensor in model.graph.initializer}
    inputs = [value.name for value in model.graph.input if value.name not in weights]
    largest = max((_bytes_of(view.info(name)) or 0 for name in inputs), default=0)
    for node in main.nodes:
        for name in filter(None, node.outputs):
            size = _bytes_of(view.info(name))
            if size is None and shapes.keys() >= set(inputs) and _is_sized_by_content(main, node):
                return _UNKNOWN
            largest = max(largest, size or 0)
    return largest


def _is_sized_by_content(graph: Graph, node: Node) -> bool:
    """Whether what an input of the model holds says how much a node makes, and not the size of a tensor that is there anyway."""
    if node.domain or node.op_type not in _FILLERS:
        return False
    pending, seen = list(node.inputs[_FILLERS[node.op_type] :]), set()
    while pending:
        value = pending.pop()
        if value in seen:
            continue
        seen.add(value)
        maker = graph.producers.get(value)
        if maker is None and value in graph.inputs:
            return True
        if maker is not None and maker.key not in (("", "Shape"), ("", "Size")):
            pending += maker.inputs
    return False


def _bytes_of(info: Info) -> int | None:
    if info.shape is None:
        return None
    dims = [dim for dim in info.shape if isinstance(dim, int)]
    return size_in_bytes(info.dtype, dims) if len(dims) == len(info.shape) else None


def _machine_bytes() -> list[int]:
    try:
        for line in Path("/proc/meminfo").read_text().splitlines():
            if line.startswith("MemAvailable:"):
                return [int(line.split()[1]) << 10]
    except (OSError, ValueError):
        pass
    try:
        return [os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")]
    except (OSError, ValueError, AttributeError):
        return []


def group_bytes(membership: Path, mounted: Path) -> list[int]:
    """What is left of the memory limit of each control group that a process is in (version 1 and 2, innermost to root).

    Args:
        membership: the process's file of control groups, as in /proc.
        mounted: where their file system is mounted.
    """
    try:
        memberships = [line.split(":", 2) for line in membership.read_text().splitlines()]
    except OSError:
        return []
    left: list[int] = []
    for _, controllers, path in memberships:
        if controllers not in ("", "memory"):
            continue
        root = mounted / controllers
        names = ("memory.limit_in_bytes", "memory.usage_in_bytes") if controllers else ("memory.max", "memory.current")
        folder = root / path.lstrip("/")
        for group in (folder, *folder.parents):
            if not group.is_relative_to(root):
                break
            try:
                limit, used = (int((group / name).read_text()) for name in names)
            except (OSError, ValueError):  # no such file, or "max"
                continue
            if limit < _UNLIMITED:
                left.append(max(limit - used + _reclaimable(group), 0))
    return left


def _reclaimable(group: Path) -> int:
    """Page cache charged to a control group, in bytes: it counts as used, and goes when memory is asked for."""
    try:
        entries = dict(line.split() for line in (group / "memory.stat").read_text().splitlines())
    except (OSError, ValueError):
        return 0
    return int(entries.get("inactive_file", 0)) + int(entries.get("active_file", 0))
