"""The GPUs of this machine, asked of NVIDIA's driver, which has to be there anyway: no package is needed, and no context made."""

from __future__ import annotations

import ctypes
from dataclasses import dataclass
from typing import Any

_MAJOR, _MINOR = 75, 76  # CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_*


@dataclass(frozen=True)
class Gpu:
    """A GPU: its name, compute capability (90 for 9.0) and bytes of memory."""

    name: str
    capability: int
    memory: int

    def __str__(self) -> str:
        return f"{self.name} SM{self.capability}"


def devices(library: str = "libcuda.so.1") -> tuple[tuple[Gpu, ...], tuple[int, int] | None, str]:
    """(GPUs, newest CUDA version of the driver, why it does not answer), asked of the driver itself."""
    try:
        cuda = ctypes.CDLL(library)
    except OSError:
        return (), None, "there is no NVIDIA driver (libcuda.so.1)"
    number = ctypes.c_int()

    def ask(name: str, *arguments: Any) -> int:
        status = int(getattr(cuda, name)(ctypes.byref(number), *arguments))
        if status:
            raise OSError(f"{name} fails with CUDA error {status}")
        return number.value

    try:
        version = ask("cuDriverGetVersion")
        driver = version // 1000, version % 1000 // 10
    except (OSError, AttributeError) as error:
        return (), None, str(error)
    try:
        if status := int(cuda.cuInit(0)):
            return (), driver, f"the driver does not start: CUDA error {status}"
        gpus = []
        for index in range(ask("cuDeviceGetCount")):
            device = ask("cuDeviceGet", index)
            name, memory = ctypes.create_string_buffer(256), ctypes.c_size_t()
            cuda.cuDeviceGetName(name, len(name), device)
            cuda.cuDeviceTotalMem_v2(ctypes.byref(memory), device)
            capability = 10 * ask("cuDeviceGetAttribute", _MAJOR, device) + ask("cuDeviceGetAttribute", _MINOR, device)
            gpus.append(Gpu(name.value.decode(errors="replace"), capability, memory.value))
    except (OSError, AttributeError) as error:
        return (), driver, str(error)
    return tuple(gpus), driver, ""


def first() -> Gpu | None:
    """The GPU that TensorRT would build for and run on; None where none can be used."""
    found, _, _ = devices()
    return found[0] if found else None
