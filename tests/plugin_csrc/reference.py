"""What the kernel tests share: data in each type, and the rule that decides whether a result is right.

A reference is a function of torch tensors. In float64 it says what is wanted; in the operator's own type it is the unfused
baseline, and a result may be off by twice what the baseline is off, relative to the scale of the output. What one rounding of
the output costs is always allowed.
"""

from __future__ import annotations

import contextlib
import ctypes
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import numpy as np
import pytest
import torch

from onnx_fuse.plugin_csrc.kernels.manifest import Variant

TYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
ALLOWED = {torch.float32: 2.0**-20, torch.float16: 2.0**-10, torch.bfloat16: 2.0**-7}
"""Twice half the distance of two neighbouring numbers at the output's scale; for float32 also what the order of sums costs."""
_WIDEST = 4  # bytes of the largest element that a kernel is compiled for


def typed(kind: str, address: int, size: int) -> Any:
    """Memory of so many bytes as a compiled kernel sees it that has an argument of type *KIND."""
    return _as(_memory(address, max(size, _WIDEST)), kind)


def _memory(address: int, size: int) -> Any:
    return torch.frombuffer((ctypes.c_char * size).from_address(address), dtype=torch.uint8)


def _as(memory: Any, kind: str) -> Any:
    dtype = {**TYPES, "i32": torch.int32, "i8": torch.int8}[kind]
    return memory[: len(memory) // dtype.itemsize * dtype.itemsize].view(dtype)


def interpret(chosen: Variant, grid: tuple[int, ...], arguments: Sequence[Any]) -> None:
    """Runs a variant in Triton's interpreter."""
    options = {"num_warps": chosen.num_warps, "num_stages": chosen.num_stages}
    chosen.function[grid](*arguments, **chosen.constants, **options)


def start(chosen: Variant, programs: int, *arguments: Any) -> None:
    """As the kernels' own `start`, with each pointer of the type that the variant is compiled with, whatever it points to."""
    kinds = chosen.signature.values()
    # An argument that is left out repeats the address of another, and the interpreter wants one storage there.
    sizes: dict[int, int] = {}
    for kind, item in zip(kinds, arguments, strict=True):
        if kind[0] == "*" and item.numel():
            size = item.numel() * item.element_size()
            sizes[item.data_ptr()] = max(sizes.get(item.data_ptr(), _WIDEST), size)
    memory = {address: _memory(address, size) for address, size in sizes.items()}
    seen = [
        _as(memory[item.data_ptr()], kind[1:]) if kind[0] == "*" and item.numel() else item
        for kind, item in zip(kinds, arguments, strict=True)
    ]
    if programs:
        interpret(chosen, (programs,), seen)


@contextlib.contextmanager
def within_memory() -> Iterator[None]:
    """Kernels that run inside read and write nothing but the tensors that they are given."""
    from triton.runtime import interpreter

    known: list[tuple[int, int]] = []
    builder = interpreter.InterpreterBuilder

    def checked(before: Callable[..., Any], what: str) -> Callable[..., Any]:
        def run(self: Any, pointers: Any, *rest: Any, **options: Any) -> Any:
            mask = rest[0 if what == "load" else 1]
            places = pointers.data.astype(np.int64)
            used = places[np.broadcast_to(mask.data, places.shape).astype(bool)] if mask is not None else places.ravel()
            size = max(1, pointers.get_element_ty().primitive_bitwidth // 8)
            inside = np.zeros(used.shape, bool)
            for first, end in known:
                inside |= (used >= first) & (used + size <= end)
            assert inside.all(), f"a {what} of {(~inside).sum()} elements outside of all tensors"
            return before(self, pointers, *rest, **options)

        return run

    def launched(chosen: Variant, grid: tuple[int, ...], arguments: Sequence[Any]) -> None:
        known[:] = [
            (
                item.data_ptr(),
                item.data_ptr() + item.untyped_storage().nbytes(),
            )  # of bytes seen as another type: all of them
            for item in arguments
            if isinstance(item, torch.Tensor)
        ]
        original(chosen, grid, arguments)

    original = interpret
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(builder, "create_masked_load", checked(builder.create_masked_load, "load"))
        patch.setattr(builder, "create_masked_store", checked(builder.create_masked_store, "store"))
        patch.setitem(globals(), "interpret", launched)
        yield


def drawn(shape: Iterable[int], dtype: Any, seed: int = 0, magnitude: float = 1.0) -> Any:
    """Normal numbers, rounded to the type."""
    return (torch.randn(tuple(shape), generator=torch.Generator().manual_seed(seed)) * magnitude).to(dtype)


def error(result: Any, wanted: Any) -> float:
    """Greatest error relative to the greatest finite wanted value."""
    if not wanted.numel():
        return 0.0
    scale = wanted.abs().max().item() or 1.0
    return float((result.double() - wanted).abs().max().item() / scale)


def check(result: Any, reference: Callable[..., Any], *inputs: Any) -> None:
    """Asserts that a result has every element written and is as good as it has to be.

    reference: from the inputs, of which those that are floating point come in one type, to the output.
    """

    def computed(dtype: Any) -> Any:
        return reference(*(_in(item, dtype) for item in inputs))

    wanted = computed(torch.float64)
    assert result.shape == wanted.shape
    assert not torch.isnan(result).any(), "an element is NaN or was not written"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        baseline = error(computed(result.dtype), wanted)
    limit = max(ALLOWED[result.dtype], 2 * baseline if baseline == baseline else 0.0)
    assert error(result, wanted) <= limit


def _in(item: Any, dtype: Any) -> Any:
    return item.to(dtype) if isinstance(item, torch.Tensor) and item.is_floating_point() else item


def normalised(z: Any, norm: str, gamma: Any, beta: Any, epsilon: float) -> Any:
    """LayerNorm or RMSNorm of the last axis."""
    if norm == "none":
        return z
    z = z - z.mean(-1, keepdim=True) if norm == "layer" else z
    z = z / torch.sqrt((z * z).mean(-1, keepdim=True) + epsilon)
    z = z if gamma is None else z * gamma
    return z if beta is None else z + beta
