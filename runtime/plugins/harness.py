"""Plugins without TensorRT: `Plugin` drives one of a plugin library through the life that TensorRT gives it.

On a machine with a GPU it runs them on device memory, which is how they are tested and timed; without one it shows what they
would launch, with a driver that records (`tools()` builds both).
"""

from __future__ import annotations

import copy
import ctypes
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from onnx_fuse.errors import UsageError
from onnx_fuse.runtime.device.library_file import cache_folder
from onnx_fuse.runtime.plugins import plugin_library

VARIABLE = "ONNX_FUSE_HARNESS"
"""Environment variable that names the folder of a harness that is built already."""

TYPES = {"float32": 0, "float16": 1, "int8": 2, "int32": 3, "bool": 4, "uint8": 5, "bfloat16": 7, "int64": 8}
"""Element type -> nvinfer1::DataType."""

NAMES = {number: name for name, number in TYPES.items()}
_CHAR, _FLOAT32, _INT32 = 6, 1, 5  # nvinfer1::PluginFieldType


class _Tensor(ctypes.Structure):
    _fields_ = (
        ("type", ctypes.c_int32),
        ("rank", ctypes.c_int32),
        ("sizes", ctypes.c_int64 * 8),
        ("data", ctypes.c_void_p),
    )


class _Field(ctypes.Structure):
    _fields_ = (
        ("name", ctypes.c_char_p),
        ("data", ctypes.c_void_p),
        ("type", ctypes.c_int32),
        ("length", ctypes.c_int32),
    )


class _Fields(ctypes.Structure):
    """nvinfer1::PluginFieldCollection."""

    _fields_ = (("count", ctypes.c_int32), ("fields", ctypes.POINTER(_Field)))


class _Described(ctypes.Structure):
    """nvinfer1::PluginTensorDesc."""

    _fields_ = (
        ("rank", ctypes.c_int32),
        ("sizes", ctypes.c_int64 * 8),
        ("type", ctypes.c_int32),
        ("format", ctypes.c_int32),
        ("scale", ctypes.c_float),
    )


@dataclass(frozen=True)
class Tensor:
    """A tensor for a plugin: element type (a key of `TYPES`), sizes, and the address of its data (0 where there is none)."""

    dtype: str
    sizes: tuple[int, ...]
    data: int = 0


def tools() -> Path:
    """The folder with the harness (libgr_harness.so) and the recording driver (libcuda.so.1), built if need be; the one that
    ONNX_FUSE_HARNESS names is taken as it is.

    Raises:
        UsageError: a compiler, CMake or headers are missing.
    """
    if given := os.environ.get(VARIABLE):
        return Path(given)
    folder = cache_folder() / "harness"
    plugin_library.cmake(folder, {"TOOLS": "ON"})
    return folder


@cache
def _harness() -> ctypes.CDLL:
    library = ctypes.CDLL(str(tools() / "libgr_harness.so"))
    for name in ("open", "create", "reborn", "attach"):
        getattr(library, f"harness_{name}").restype = ctypes.c_void_p
    for name in ("messages", "fields", "timing_id"):
        getattr(library, f"harness_{name}").restype = ctypes.c_char_p
    library.harness_workspace.restype = ctypes.c_int64
    return library


def messages() -> str:
    """What the plugins logged since the last call."""
    return str(_harness().harness_messages().decode(errors="replace"))


@cache
def _opened(library: Path) -> ctypes.c_void_p:
    handle = _harness().harness_open(str(library).encode())
    if not handle:
        raise UsageError(f"The plugin library {library} cannot be loaded: {messages().strip()}", "Build it again.")
    return ctypes.c_void_p(handle)


def fields(library: Path, name: str) -> dict[str, str]:
    """Attribute -> "int", "float" or "str" (of one or several) as a plugin of the library takes them.

    Raises:
        UsageError: the library cannot be loaded or has no such plugin.
    """
    lines = _harness().harness_fields(_opened(library.resolve()), name.encode())
    if lines is None:
        raise UsageError(f"{library}: {messages().strip()}", "Build it again.")
    kinds = {_CHAR: "str", _FLOAT32: "float", _INT32: "int"}
    return {key: kinds[int(kind)] for key, kind in (line.split() for line in lines.decode().splitlines())}


def workspace(library: Path, name: str, attributes: Mapping[str, Any], inputs: Sequence[Tensor]) -> int | None:
    """Bytes of workspace that a plugin of a library needs; None where the library has none of that name, or does not tell.

    It asks the library itself, and needs neither the harness nor TensorRT.

    Args:
        attributes: as for `Plugin`.
        inputs: types and sizes.
    """
    tell = getattr(ctypes.CDLL(str(library)), "get_plugin_workspace", None)
    if tell is None:
        return None
    tell.restype = ctypes.c_int64
    fields = [_field(key, value) for key, value in attributes.items()]
    array = (_Field * len(fields))(*[field for field, _ in fields])
    described = (_Described * len(inputs))()
    for item, tensor in zip(described, inputs, strict=True):
        item.type, item.rank = TYPES[tensor.dtype], len(tensor.sizes)
        item.sizes[: len(tensor.sizes)] = tensor.sizes
    needed = int(tell(name.encode(), ctypes.byref(_Fields(len(fields), array)), described, len(inputs)))
    return None if needed < 0 else needed


class Plugin:
    """A plugin made of an operator's attributes.

    Args:
        library: the plugin library.
        name: the operator.
        attributes: its attributes, with `inputs` and `outputs`; int, float, str, or lists of int or float.

    Raises:
        UsageError: the library cannot be loaded, or refuses the attributes (with the reason it logs).
    """

    def __init__(self, library: Path, name: str, attributes: Mapping[str, Any]) -> None:
        self._library = _opened(library.resolve())
        self.name = name
        fields = [_field(key, value) for key, value in attributes.items()]
        self._attributes = fields  # the plugin copies them; they must live until it has
        array = (_Field * len(fields))(*[field for field, _ in fields])
        messages()
        self._plugin = self._taken(_harness().harness_create(self._library, name.encode(), array, len(fields)))

    def _taken(self, plugin: int | None) -> ctypes.c_void_p:
        if not plugin:
            raise UsageError(
                f"{self.name} is refused: {messages().strip()}", "See docs/operators.md for its attributes."
            )
        return ctypes.c_void_p(plugin)

    def close(self) -> None:
        """Frees the plugin."""
        _harness().harness_destroy(self._plugin)

    def reborn(self) -> None:
        """Serialises the plugin, reads it back, clones it, attaches it to a context, and goes on with the result."""
        plugin = self._taken(_harness().harness_reborn(self._library, self._plugin))
        self.close()
        self._plugin = plugin

    def attached(self) -> Plugin:
        """The plugin of another execution context of the same engine, which another thread may use."""
        other = copy.copy(self)
        other._plugin = self._taken(_harness().harness_attach(self._plugin))
        return other

    def outputs(self, inputs: Sequence[Tensor], *, known: bool = True) -> list[Tensor]:
        """Types and shapes of the outputs; `known` says whether the sizes are known when the engine is built.

        Raises:
            UsageError: the plugin refuses the inputs.
        """
        made = (_Tensor * _harness().harness_output_count(self._plugin))()
        given = _tensors(inputs)
        if _harness().harness_outputs(self._plugin, given, len(inputs), made, len(made), int(known)):
            raise UsageError(f"{self.name} refuses its inputs: {messages().strip()}", "See docs/operators.md.")
        return [Tensor(NAMES[item.type], tuple(item.sizes[: item.rank])) for item in made]

    def refused_position(self, inputs: Sequence[Tensor], outputs: Sequence[Tensor]) -> int:
        """The first tensor (inputs, then outputs) whose type the plugin does not take; -1 where it takes all."""
        return int(_harness().harness_refused_position(self._plugin, *_both(inputs, outputs)))

    def combinations(self, inputs: Sequence[Tensor], outputs: Sequence[Tensor]) -> int:
        """How many combinations of types and formats the plugin takes, whatever types these tensors have."""
        return int(_harness().harness_combinations(self._plugin, *_both(inputs, outputs)))

    def timing_id(self) -> str:
        """What TensorRT keeps timings of the plugin by, besides types and shapes; "" where it keeps none."""
        return (_harness().harness_timing_id(self._plugin) or b"").decode()

    def workspace(self, inputs: Sequence[Tensor], outputs: Sequence[Tensor]) -> int:
        """Bytes of workspace for these sizes."""
        return int(_harness().harness_workspace(self._plugin, *_both(inputs, outputs)))

    def prepare(self, inputs: Sequence[Tensor], outputs: Sequence[Tensor]) -> None:
        """Tells the sizes of the runs to come; kernels are loaded here.

        Raises:
            UsageError: the plugin fails, with what it logs.
        """
        self._check(_harness().harness_shape_change(self._plugin, *_both(inputs, outputs)))

    def enqueue(self, inputs: Sequence[Tensor], outputs: Sequence[Tensor], workspace: int = 0, stream: int = 0) -> None:
        """Launches the kernels on device addresses.

        Raises:
            UsageError: the plugin fails, with what it logs.
        """
        pointers = (ctypes.c_void_p(workspace), ctypes.c_void_p(stream))
        self._check(_harness().harness_enqueue(self._plugin, *_both(inputs, outputs), *pointers))

    def _check(self, status: int) -> None:
        if status:
            raise UsageError(f"{self.name} failed: {messages().strip()}", "Check the sizes, the GPU and its driver.")


def _both(inputs: Sequence[Tensor], outputs: Sequence[Tensor]) -> tuple[Any, int, Any, int]:
    return _tensors(inputs), len(inputs), _tensors(outputs), len(outputs)


def _tensors(tensors: Sequence[Tensor]) -> Any:
    array = (_Tensor * len(tensors))()
    for item, tensor in zip(array, tensors, strict=True):
        item.type, item.rank, item.data = TYPES[tensor.dtype], len(tensor.sizes), tensor.data
        item.sizes[: len(tensor.sizes)] = tensor.sizes
    return array


def _field(name: str, value: Any) -> tuple[_Field, Any]:
    """The field, and what must live as long."""
    if isinstance(value, str):
        text = ctypes.create_string_buffer(value.encode())
        return _Field(name.encode(), ctypes.cast(text, ctypes.c_void_p), _CHAR, len(text)), text
    numbers = list(value) if isinstance(value, (list, tuple)) else [value]
    floats = any(isinstance(item, float) for item in numbers)
    array = ((ctypes.c_float if floats else ctypes.c_int32) * len(numbers))(*numbers)
    return _Field(
        name.encode(), ctypes.cast(array, ctypes.c_void_p), _FLOAT32 if floats else _INT32, len(numbers)
    ), array
