"""How much memory running a model takes, roughly, and how much there is: asked before a run, so that nobody is killed by it."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

from onnx import ModelProto, TensorProto

from onnx_fuse.errors import ModelError
from onnx_fuse.passes.files.external_data import byte_size, tensors
from onnx_fuse.runtime.device.footprint import largest_value

# A model with inline weights exists as protobuf, as bytes and as the session's tensors.
_COPIES_INLINE = 3
# Large values alive at once, counted in the size of the largest: the input and output of a node, and a neighbour's.
_LARGE_VALUES_ALIVE = 4
_BASE = 64 << 20
_UNLIMITED = 1 << 60
_ENDLESS = 1 << 62


def available_bytes() -> int | None:
    """Memory this process may still take: the least of what the machine has free and what its cgroup allows; None if unknown."""
    found = [*_machine_bytes(), *group_bytes(Path("/proc/self/cgroup"), Path("/sys/fs/cgroup"))]
    return min(found) if found else None


def needed_bytes(original: ModelProto, fused: ModelProto, shapes: Mapping[str, tuple[int, ...]]) -> int | None:
    """Rough peak in bytes of running the two models, one after the other, on inputs of the given shapes; None: nobody can tell.

    Counts the weights of the larger (those in external data once: they are mapped, not copied) and a few of the
    original's largest value.
    """
    try:
        largest = largest_value(original, shapes)
    except ModelError:  # functions that call each other without end, or nearly so
        return _ENDLESS
    if largest is None:
        return None
    return _BASE + max(_weight_bytes(original), _weight_bytes(fused)) + _LARGE_VALUES_ALIVE * largest


def shortage(needed: int | None, available: int | None) -> str | None:
    """The sentence that says that there is too little memory to run the models; None where there is enough, as far as known."""
    if needed is None or available is None or needed <= available:
        return None
    if needed >= _ENDLESS:
        return "running the models takes more memory than any machine has."
    return f"running the models takes about {needed / 1e9:.1f} GB of memory, {available / 1e9:.1f} GB is available."


def _weight_bytes(model: ModelProto) -> int:
    return sum(
        byte_size(tensor) * (1 if tensor.data_location == TensorProto.EXTERNAL else _COPIES_INLINE)
        for tensor, _ in tensors(model)
    )


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
