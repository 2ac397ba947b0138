"""Sizes for the dimensions that a model leaves open: those that are given, and assumed ones for the rest."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from onnx import ModelProto

from onnx_fuse.errors import UsageError

BATCH, LENGTH = 8, 128
"""Sizes assumed for a first axis and for any other, where none is given."""


def write_sizes(model: ModelProto, given: Mapping[str, int | Sequence[int]]) -> tuple[dict[str, int], list[str]]:
    """Writes sizes into the inputs; gives all of them, and those that were assumed."""
    held = {tensor.name for tensor in model.graph.initializer}
    inputs = [value for value in model.graph.input if value.name not in held]
    shapes = {name: list(size) for name, size in given.items() if not isinstance(size, int)}
    sizes = {name: size for name, size in given.items() if isinstance(size, int)}
    known: dict[str, int] = {}
    assumed: list[str] = []
    used: set[str] = set()
    for value in inputs:
        dims = value.type.tensor_type.shape.dim
        shape = shapes.get(value.name)
        if shape is not None and len(shape) != len(dims):
            raise UsageError(f"The shape given for {value.name} has {len(shape)} axes.", f"Give it {len(dims)}.")
        used.add(value.name)
        for axis, dim in enumerate(dims):
            if dim.HasField("dim_value"):
                continue
            name = dim.dim_param or f"{value.name}_{axis}"
            used.add(name)
            if shape is not None:
                known[name] = shape[axis]
            elif name in sizes:
                known[name] = sizes[name]
            elif name not in known:
                known[name] = LENGTH if axis else BATCH
                assumed.append(name)
            dim.dim_value = known[name]
    for name in given:
        if name not in used:
            raise UsageError(
                f"A size is given for {name!r}, which is no dimension or input of the model.",
                f"They are: {', '.join(sorted({*known, *(value.name for value in inputs)})) or 'none'}.",
            )
    # What the exporter declared in symbols is worked out again from these.
    del model.graph.value_info[:]
    for value in model.graph.output:
        for dim in value.type.tensor_type.shape.dim:
            if dim.dim_param:
                dim.Clear()
    return known, assumed
