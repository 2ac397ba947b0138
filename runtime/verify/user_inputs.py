"""Inputs of the user's own for a verification: read, and checked against what the model takes."""

from __future__ import annotations

import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from onnx import TensorProto

from onnx_fuse.errors import UsageError, reason
from onnx_fuse.runtime.verify.random_inputs import Array, InputSpec, numpy_type

_HOW_TO_WRITE = "Write it with numpy.savez(FILE, input_name=array)."


def given_inputs(inputs: Mapping[str, Any] | str | Path, specs: Sequence[InputSpec]) -> dict[str, Array]:
    """The user's inputs (or the .npz file they are in) as arrays that the model takes.

    Raises:
        UsageError: a name, type or shape does not fit, or the file cannot be read.
    """
    arrays: Mapping[str, Any] = _read_npz(Path(inputs)) if isinstance(inputs, str | Path) else inputs
    wanted = {spec.name: spec for spec in specs}
    listed = ", ".join(f"{spec.name} {_kind(spec)}" for spec in specs)
    for name in arrays:
        if name not in wanted:
            raise UsageError(f"the model has no input {name!r}.", f"It takes: {listed}.")
    for spec in specs:
        if spec.name not in arrays:
            raise UsageError(f"input {spec.name!r} is not among the given inputs.", f"The model takes: {listed}.")
    return {spec.name: _checked(spec, arrays[spec.name]) for spec in specs}


def _checked(spec: InputSpec, value: Any) -> Array:
    kind = numpy_type(spec)
    array = value if isinstance(value, np.ndarray) else np.asarray(value, dtype=kind)
    if spec.elem_type == TensorProto.BFLOAT16:  # it runs as float32
        array = array.astype(np.float32) if array.dtype in (np.float32, kind) else array
        kind = np.dtype(np.float32)
    fits = array.dtype == kind or (kind.kind == "O" and array.dtype.kind in "OUS")
    if fits and spec.dims is not None:
        fits = array.ndim == len(spec.dims)
        fits = fits and all(isinstance(d, str) or d == size for d, size in zip(spec.dims, array.shape, strict=True))
    if not fits:
        raise UsageError(
            f"input {spec.name!r} was given as {array.dtype}{list(array.shape)}.", f"The model takes {_kind(spec)}."
        )
    return array


def _kind(spec: InputSpec) -> str:
    dims = "any shape" if spec.dims is None else ", ".join(str(dim) for dim in spec.dims)
    return f"{numpy_type(spec)}[{dims}]"


def _read_npz(path: Path) -> dict[str, Array]:
    try:
        archive = np.load(path, allow_pickle=False)
        if isinstance(archive, np.lib.npyio.NpzFile):
            with archive:
                return {name: archive[name] for name in archive.files}
    except (OSError, ValueError, zipfile.BadZipFile, EOFError) as error:
        raise UsageError(f"{path}: cannot be read as .npz: {reason(error)}.", _HOW_TO_WRITE) from error
    raise UsageError(f"{path}: is a single array.", _HOW_TO_WRITE)
