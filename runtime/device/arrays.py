"""Arrays of any library without copying them: where the memory is, and what lies in it.

numpy's arrays are read as they are, all others through `__dlpack__` (torch, cupy, jax) or `__cuda_array_interface__`. A `Tensor`
speaks the same protocols, so that any of these libraries takes it without copying. DLPack's structures are read and written
here with ctypes, since numpy's know neither bfloat16 nor the memory of a GPU.
"""

from __future__ import annotations

import ctypes
import itertools
import math
import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any

import ml_dtypes
import numpy as np

from onnx_fuse.errors import UsageError

CPU, CUDA, CUDA_PINNED, CUDA_MANAGED = 1, 2, 3, 13
"""DLPack's device types."""

_HOST = (CPU, CUDA_PINNED)
_NAMES = {CPU: "the CPU", CUDA: "GPU", CUDA_PINNED: "the CPU", CUDA_MANAGED: "GPU"}
_KINDS = {"b": 6, "i": 0, "u": 1, "f": 2, "c": 5}  # numpy's letter -> DLPack's code
_ODD = {"bfloat16": (4, 16), "float8_e4m3fn": (10, 8), "float8_e5m2": (12, 8)}  # those that numpy itself does not have
_LEGACY_STREAM = 1  # what DLPack and __cuda_array_interface__ call the default stream, whose handle is 0


class _DLTensor(ctypes.Structure):
    _fields_ = (
        ("data", ctypes.c_void_p),
        ("device_type", ctypes.c_int32),
        ("device_id", ctypes.c_int32),
        ("ndim", ctypes.c_int32),
        ("code", ctypes.c_uint8),
        ("bits", ctypes.c_uint8),
        ("lanes", ctypes.c_uint16),
        ("shape", ctypes.POINTER(ctypes.c_int64)),
        ("strides", ctypes.POINTER(ctypes.c_int64)),
        ("byte_offset", ctypes.c_uint64),
    )


class _Managed(ctypes.Structure):
    _fields_ = (("tensor", _DLTensor), ("context", ctypes.c_void_p), ("deleter", ctypes.c_void_p))


@cache
def numpy_dtype(name: str) -> np.dtype[Any]:
    """The type of that name, numpy's or ml_dtypes'."""
    return np.dtype(getattr(ml_dtypes, name)) if hasattr(ml_dtypes, name) else np.dtype(name)


@cache
def dtype_name(dtype: np.dtype[Any]) -> str:
    """Its name, which numpy makes anew at every call."""
    return dtype.name


@dataclass(frozen=True, eq=False)
class Tensor:
    """Contiguous memory, in rows, with a type and a shape.

    Attributes:
        address: of the first element.
        dtype: numpy's name of the type ("float32", "bfloat16", ...).
        shape: sizes.
        device: DLPack's device type (`CPU`, `CUDA`, ...) and the number of the device.
        owner: what the memory belongs to; it lives as long as the tensor.
        library: the package that the array came from, "numpy" or "torch" for instance.
    """

    address: int
    dtype: str
    shape: tuple[int, ...]
    device: tuple[int, int] = (CPU, 0)
    owner: Any = None
    library: str = "numpy"

    @property
    def nbytes(self) -> int:
        return math.prod(self.shape) * numpy_dtype(self.dtype).itemsize

    @property
    def on_host(self) -> bool:
        """Whether the CPU can read it."""
        return self.device[0] in _HOST

    @property
    def place(self) -> str:
        """Where it is, for people: "the CPU", "GPU 0"."""
        kind, number = self.device
        return _NAMES.get(kind, f"device type {kind}") + ("" if kind in _HOST else f" {number}")

    def numpy(self) -> np.ndarray[Any, Any]:
        """An array over the same memory, which must be on the CPU."""
        if isinstance(self.owner, np.ndarray) and self.owner.shape == self.shape:
            return self.owner
        kind = numpy_dtype(self.dtype)
        if not math.prod(self.shape):
            return np.empty(self.shape, kind)
        data: Any = (ctypes.c_char * self.nbytes).from_address(self.address)
        data.owner = self  # the array holds `data`, and `data` the memory
        return np.frombuffer(data, kind).reshape(self.shape)

    def to(self, library: str) -> Any:
        """The tensor as an array of that library, over the same memory; as it is where the library cannot take it."""
        take = None if library == "numpy" else getattr(sys.modules.get(library), "from_dlpack", None)
        if take is not None:
            return take(self)
        return self.numpy() if self.on_host else self

    def __dlpack_device__(self) -> tuple[int, int]:
        return self.device

    def __dlpack__(self, **options: Any) -> Any:
        """A DLPack capsule; the data is complete, whatever `stream` asks for.

        Raises:
            BufferError: a copy is asked for.
        """
        if options.get("copy"):
            raise BufferError("only the memory itself is lent, no copy of it")
        return _exported(self)

    @property
    def __cuda_array_interface__(self) -> dict[str, Any]:
        if self.device[0] not in (CUDA, CUDA_MANAGED) or self.dtype in _ODD:
            raise AttributeError("__cuda_array_interface__")  # on the CPU, or a type that it has no name for
        return {
            "shape": self.shape,
            "typestr": numpy_dtype(self.dtype).str,
            "data": (self.address, False),
            "strides": None,
            "stream": None,
            "version": 3,
        }


def contiguous(label: str, value: Any, stream: int | None, wait: Callable[[int], None], *, copy: bool = True) -> Tensor:
    """The memory of an array, of a copy where it does not lie in rows without gaps.

    Args:
        label: how the array is called in errors: "input 'x'".
        value: an array of any library.
        stream: the CUDA stream on which it will be read; None where there are none.
        wait: called with the stream that is still writing it, if its library leaves the waiting to us.
        copy: whether a copy will do.

    Raises:
        UsageError: it is no array, its library does not let go of it, or it would have to be copied and cannot be.
    """
    found = _viewed(label, value, stream, wait)
    if found is not None:
        return found
    if copy and isinstance(value, np.ndarray):
        native = value.dtype.newbyteorder("=")
        return contiguous(label, np.ascontiguousarray(value, native), stream, wait)
    for name in ("contiguous", "copy"):  # torch's and cupy's name for it
        if copy and callable(method := getattr(value, name, None)):
            found = _viewed(label, method(), stream, wait)
            if found is not None:
                return found
    raise UsageError(f"{label} does not lie in memory in rows.", "Pass a contiguous copy of it.")


def _viewed(label: str, value: Any, stream: int | None, wait: Callable[[int], None]) -> Tensor | None:
    """The tensor; None where it is not contiguous."""
    if isinstance(value, Tensor):
        return value
    if isinstance(value, np.generic):
        value = np.asarray(value)
    if isinstance(value, np.ndarray):
        if not (value.flags.c_contiguous and value.dtype.isnative):
            return None
        return Tensor(value.__array_interface__["data"][0], dtype_name(value.dtype), value.shape, owner=value)
    library = type(value).__module__.partition(".")[0]
    try:
        if hasattr(value, "__dlpack__"):
            on_gpu = value.__dlpack_device__()[0] in (CUDA, CUDA_MANAGED)
            capsule = value.__dlpack__(stream=(stream or _LEGACY_STREAM) if on_gpu and stream is not None else None)
            return _imported(capsule, library)
        interface = getattr(value, "__cuda_array_interface__", None)
    except (BufferError, RuntimeError, TypeError, ValueError) as error:
        cause = " ".join(str(error).split()).rstrip(".")
        raise UsageError(f"{label} ({library}) gives no access to its memory: {cause}.", "") from error
    if interface is None:
        raise UsageError(
            f"{label} is a {type(value).__name__}, not an array.",
            "Pass a numpy array, or one with __dlpack__ or __cuda_array_interface__.",
        )
    if (writing := interface.get("stream")) is not None:
        wait(0 if writing == _LEGACY_STREAM else writing)
    kind, shape = np.dtype(interface["typestr"]), tuple(interface["shape"])
    strides = interface.get("strides")
    if strides is not None and not _in_rows(shape, [step // kind.itemsize for step in strides]):
        return None
    return Tensor(interface["data"][0], kind.name, shape, (CUDA, 0), value, library)


def _in_rows(shape: tuple[int, ...], strides: list[int]) -> bool:
    if not math.prod(shape):
        return True
    expected = list(itertools.accumulate(reversed(shape[1:]), lambda a, b: a * b, initial=1))[::-1]
    return all(
        size == 1 or step == wanted for size, step, wanted in zip(shape, strides, expected[: len(shape)], strict=True)
    )


# --- DLPack ----------------------------------------------------------------------------------------------------------

_api = ctypes.pythonapi
_api.PyCapsule_GetPointer.restype = ctypes.c_void_p
_api.PyCapsule_GetPointer.argtypes = (ctypes.py_object, ctypes.c_char_p)
_api.PyCapsule_New.restype = ctypes.py_object
_api.PyCapsule_New.argtypes = (ctypes.c_void_p, ctypes.c_char_p, ctypes.c_void_p)
_capsule_is = ctypes.PYFUNCTYPE(ctypes.c_int, ctypes.c_void_p, ctypes.c_char_p)(("PyCapsule_IsValid", _api))
_capsule_pointer = ctypes.PYFUNCTYPE(ctypes.c_void_p, ctypes.c_void_p, ctypes.c_char_p)(("PyCapsule_GetPointer", _api))

_lent: dict[
    int, tuple[_Managed, Any, Tensor]
] = {}  # address of the structure -> what must live as long as the borrower


def _imported(capsule: Any, library: str) -> Tensor | None:
    # The capsule keeps its name, so that it frees the borrowed memory when nobody holds it any more.
    dl = _Managed.from_address(_api.PyCapsule_GetPointer(capsule, b"dltensor")).tensor
    shape = tuple(dl.shape[: dl.ndim])
    if dl.strides and not _in_rows(shape, dl.strides[: dl.ndim]):
        return None
    address = (dl.data or 0) + dl.byte_offset
    return Tensor(address, _dtype_name(dl), shape, (dl.device_type, dl.device_id), capsule, library)


def _dtype_name(dl: _DLTensor) -> str:
    for name, key in _ODD.items():
        if key == (dl.code, dl.bits) and dl.lanes == 1:
            return name
    letters = {code: letter for letter, code in _KINDS.items()}
    if dl.code not in letters or dl.bits % 8 or dl.lanes != 1:
        return f"DLPack type {dl.code} of {dl.bits} bits"
    return "bool" if dl.code == _KINDS["b"] else np.dtype(f"{letters[dl.code]}{dl.bits // 8}").name


def _exported(tensor: Tensor) -> Any:
    kind = numpy_dtype(tensor.dtype)
    code, bits = _ODD.get(tensor.dtype) or (_KINDS[kind.kind], kind.itemsize * 8)
    rank = len(tensor.shape)
    shape = (ctypes.c_int64 * max(rank, 1))(*tensor.shape)
    dl = _DLTensor(tensor.address, *tensor.device, rank, code, bits, 1, shape, None, 0)
    managed = _Managed(dl, None, ctypes.cast(_release, ctypes.c_void_p))
    _lent[ctypes.addressof(managed)] = (managed, shape, tensor)
    return _api.PyCapsule_New(ctypes.addressof(managed), b"dltensor", ctypes.cast(_forget, ctypes.c_void_p))


def _given_back(managed: int, lent: dict[int, Any] = _lent) -> None:
    lent.pop(managed, None)


def _unused(capsule: int, lent: dict[int, Any] = _lent) -> None:
    """The end of a capsule whose memory nobody took."""
    if _capsule_is(capsule, b"dltensor"):
        lent.pop(_capsule_pointer(capsule, b"dltensor"), None)


_release = ctypes.CFUNCTYPE(None, ctypes.c_void_p)(_given_back)
_forget = ctypes.CFUNCTYPE(None, ctypes.c_void_p)(_unused)
for _callback in (_release, _forget):  # borrowers may outlive this module when the process ends
    _api.Py_IncRef(ctypes.py_object(_callback))
