"""What the kernels share: products and roundings that are right everywhere, optional inputs, and how a variant is launched.

Optional inputs and inputs that may be T or float32 do not multiply the variants: such a pointer comes with an int32 that says
what it points to (`ABSENT`, `SAME`, `FLOAT32`, `BYTES`), and the kernel branches on it. All programs take the same branch. An
absent input is any valid pointer.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from typing import Any

import triton
import triton.language as tl

from onnx_fuse.plugin_csrc.kernels.manifest import ARCHITECTURES, Variant

INTERPRETED = tl.constexpr(os.environ.get("TRITON_INTERPRET") == "1")
"""Whether kernels run in Triton's interpreter, whose bfloat16 arithmetic is wrong and whose casts to bfloat16 truncate."""

ABSENT = tl.constexpr(0)
SAME = tl.constexpr(1)
FLOAT32 = tl.constexpr(2)
BYTES = tl.constexpr(3)
"""What an optional pointer points to: nothing, the operator's type T, float32, or bool as bytes."""

INT32 = tl.constexpr(1)
INT64 = tl.constexpr(2)
"""What a pointer to integers points to; `ABSENT` where it is optional."""

NO_NORM = tl.constexpr(0)
LAYER = tl.constexpr(1)
RMS = tl.constexpr(2)
"""The attribute `norm`."""

NORMS = {"none": 0, "layer": 1, "rms": 2}

VECTOR = {"fp32": 4, "fp16": 8, "bf16": 8}
"""Elements of a type in 16 bytes, the most that a thread loads or stores at once."""


@triton.jit
def dot(a, b, accumulator=None):
    """a b (+ accumulator) in float32: tensor cores for float16 and bfloat16, never TF32 for float32."""
    if INTERPRETED and a.dtype == tl.bfloat16:
        a, b = a.to(tl.float32), b.to(tl.float32)
    return tl.dot(a, b, accumulator, input_precision="ieee")


@triton.jit
def narrow(x, dtype: tl.constexpr):
    """float32 rounded to the nearest value of a type, ties to even."""
    if INTERPRETED and dtype == tl.bfloat16:
        bits = x.to(tl.int32, bitcast=True)
        bits = tl.where(x == x, bits + 0x7FFF + ((bits >> 16) & 1), bits) & -65536
        x = bits.to(tl.float32, bitcast=True)
    return x.to(dtype)


@triton.jit
def dot_float32(a, b):
    """a b for a float32 `a` and a `b` of type T: `a` goes in as the sum of two numbers of type T, which keeps its precision."""
    high = narrow(a, b.dtype)
    product = dot(high, b)
    if b.dtype != tl.float32:
        product = dot(narrow(a - high.to(tl.float32), b.dtype), b, product)
    return product


@triton.jit
def store(pointer, offsets, value, mask):
    """Writes float32 values in the type of the pointer."""
    tl.store(pointer + offsets, narrow(value, pointer.dtype.element_ty), mask=mask)


@triton.jit
def pairs_to_float32(pairs):
    """bfloat16 [ROWS, COLUMNS], read as int32 [ROWS, COLUMNS // 2]: one instruction for each number."""
    low = (pairs << 16).to(tl.float32, bitcast=True)
    high = (pairs & -65536).to(tl.float32, bitcast=True)
    return tl.join(low, high).reshape(pairs.shape[0], pairs.shape[1] * 2)


@triton.jit
def moved(pointer, steps, step):
    """pointer + steps * step in int64, so that what is added to it inside a tile can be int32."""
    return pointer + tl.cast(step, tl.int64) * steps


@triton.jit
def moved_as(pointer, kind, offset):
    """A pointer to T, moved by so many (int64) of whatever `kind` says it points to."""
    other = tl.where(kind == BYTES, 1, pointer.dtype.element_ty.primitive_bitwidth // 8)
    size = tl.where(kind == FLOAT32, 4, other)
    return (pointer.to(tl.pointer_type(tl.int8), bitcast=True) + offset * size).to(pointer.dtype, bitcast=True)


@triton.jit
def tile(row, row_step, column, column_step, DENSE: tl.constexpr):
    """Offsets of a tile of a bias or mask, of which a step is 0 along an axis that broadcasts; DENSE: the last one does not, so
    that the compiler knows that columns lie next to each other."""
    columns = column if DENSE else column * column_step
    return (row * row_step)[:, None] + columns[None, :]


@triton.jit
def load(pointer, offsets, mask):
    """Float32 values; 0 where the mask is false."""
    return tl.load(pointer + offsets, mask=mask, other=0.0).to(tl.float32)


@triton.jit
def load_optional(pointer, kind, offsets, mask, absent):
    """Float32 values of a pointer to T that may be one to float32, or `absent` where there is none."""
    if kind == SAME:
        value = tl.load(pointer + offsets, mask=mask, other=0.0).to(tl.float32)
    elif kind == FLOAT32:
        value = tl.load(pointer.to(tl.pointer_type(tl.float32), bitcast=True) + offsets, mask=mask, other=0.0)
    else:
        value = tl.full(offsets.shape, absent, tl.float32)
    return value


@triton.jit
def load_either(pointer, kind, columns, width):
    """The columns before `width` of a vector as `load_optional` has them, 0 where there is none. It has no branch: nothing waits
    for a value before it is used."""
    value = tl.load(pointer + columns, mask=columns < tl.where(kind == SAME, width, 0), other=0.0).to(tl.float32)
    if pointer.dtype.element_ty != tl.float32:
        pointer = pointer.to(tl.pointer_type(tl.float32), bitcast=True)
        value += tl.load(pointer + columns, mask=columns < tl.where(kind == FLOAT32, width, 0), other=0.0)
    return value


@triton.jit
def load_factor(pointer, kind, columns, width):
    """As `load_either`, 1 where there is none."""
    return tl.where(kind == ABSENT, 1.0, load_either(pointer, kind, columns, width))


@triton.jit
def load_mask(pointer, kind, offsets, mask):
    """Float32 weights of a mask of type T or bool, 1 where there is none; 0 where `mask` is false."""
    if kind == SAME:
        value = tl.load(pointer + offsets, mask=mask, other=0.0).to(tl.float32)
    elif kind == BYTES:
        value = tl.load(pointer.to(tl.pointer_type(tl.int8), bitcast=True) + offsets, mask=mask, other=0)
        value = (value != 0).to(tl.float32)
    else:
        value = tl.where(mask, 1.0, tl.zeros(offsets.shape, tl.float32))
    return value


@triton.jit
def load_integers(pointer, kind, offsets, mask):
    """int64 values of a pointer to int32 that may be one to int64; 0 where the mask is false."""
    if kind == INT64:
        value = tl.load(pointer.to(tl.pointer_type(tl.int64), bitcast=True) + offsets, mask=mask, other=0)
    else:
        value = tl.load(pointer + offsets, mask=mask, other=0).to(tl.int64)
    return value


@triton.jit
def store_as(pointer, kind, offsets, value, mask):
    """Writes float32 values through a pointer to T that may be one to float32."""
    if kind == FLOAT32:
        tl.store(pointer.to(tl.pointer_type(tl.float32), bitcast=True) + offsets, value, mask=mask)
    else:
        store(pointer, offsets, value, mask)


def variant(
    name: str,
    function: Any,
    element: str,
    types: Mapping[str, str],
    constants: Mapping[str, Any],
    divisible: Iterable[str] = (),
    *,
    num_warps: int = 4,
    num_stages: int = 2,
    aligned: bool = True,
    architectures: frozenset[int] = frozenset(ARCHITECTURES),
) -> Variant:
    """A variant whose arguments are int32 unless `types` says otherwise; `*T` there is a pointer to the element type."""
    arguments = [argument for argument in function.arg_names if argument not in constants]
    signature = {argument: types.get(argument, "i32").replace("T", element) for argument in arguments}
    return Variant(
        name, function, signature, constants, frozenset(divisible), num_warps, num_stages, aligned, architectures
    )


def table(*groups: tuple[str, str]) -> dict[str, str]:
    """("*T", "x y"), ("i64", "rows") as {"x": "*T", "y": "*T", "rows": "i64"}."""
    return {name: kind for kind, names in groups for name in names.split()}


def element_of(tensor: Any) -> str:
    """Triton's word for the type of a torch tensor."""
    return {"torch.float32": "fp32", "torch.float16": "fp16", "torch.bfloat16": "bf16"}[str(tensor.dtype)]


def kind_of(tensor: Any, like: Any) -> int:
    """What the pointer of an optional torch tensor points to, where T is the type of `like`."""
    if tensor is None:
        return 0
    if str(tensor.dtype) in ("torch.bool", "torch.int8", "torch.uint8"):
        return 3
    return 1 if tensor.dtype == like.dtype else 2


def strides_of(tensor: Any, axes: int) -> list[int]:
    """Elements from one index to the next along each axis of a tensor, 0 where it broadcasts or is absent."""
    if tensor is None:
        return [0] * axes
    return [0 if size == 1 else stride for size, stride in zip(tensor.shape, tensor.stride(), strict=True)]


def are_dense(length: int, *tensors: Any) -> bool:
    """Whether those of the tensors that are there have a last axis of this length, which they do not broadcast."""
    return all(tensor is None or tensor.shape[-1] == length for tensor in tensors)


def integers_of(tensor: Any) -> int:
    """What the pointer of an optional torch tensor of int32 or int64 points to."""
    return 0 if tensor is None else {"torch.int32": 1, "torch.int64": 2}[str(tensor.dtype)]


def matrix(tensor: Any, rows: int, columns: int) -> Any:
    """A dense torch tensor [..., width] as the tensor map of a matrix that a kernel reads in blocks of rows x columns."""
    from triton.tools.tensor_descriptor import TensorDescriptor

    return TensorDescriptor.from_tensor(tensor.flatten(0, -2), [rows, columns])


def start(chosen: Variant, programs: int, *arguments: Any) -> None:
    """Runs a variant; an empty grid is no launch."""
    if programs:
        chosen.function[(programs,)](
            *arguments, **chosen.constants, num_warps=chosen.num_warps, num_stages=chosen.num_stages
        )
