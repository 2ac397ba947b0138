"""Folders with kernels of a user's own, as text."""

from __future__ import annotations

from pathlib import Path

import pytest

from onnx_fuse.errors import UsageError
from onnx_fuse.own_kernels.read_folder import ResolvedKernel, read_folder

MIXED = """
import triton
import triton.language as tl

from onnx_fuse import FusedOp, OwnKernel


def body(op, ids, x, table, keep, scale, factor, mode):
    \"\"\"Rows of x with a row of a table each, where `keep` says so; and what they add up to.\"\"\"
    chosen = op.Unsqueeze(op.Gather(table, ids, axis=0), op.ints(1))
    joined = op.Add(x, chosen) if mode == "add" else op.Mul(x, chosen)
    wanted = op.Cast(op.Unsqueeze(keep, op.ints(2)), to=1)
    y = op.Mul(op.Mul(op.Mul(joined, scale), op.Cast(factor, to=1)), wanted)
    return y, op.Reshape(op.ReduceSum(y, op.ints(2), keepdims=0), op.ints(-1))


MIXED = FusedOp("MixedRows", ("ids", "x", "table", "keep"), body, ("scale", "factor", "mode"), ("y", "total"), domain="my.ops")


@triton.jit
def mixed_rows(
    ids, x, table, keep, y, total, S, D: tl.int32, odd, scale, factor, mode, BLOCK: tl.constexpr, LOOP: tl.constexpr
):
    row = tl.program_id(0).to(tl.int64)
    source = tl.load(ids + row // S) * D
    wanted = tl.load(keep + row).to(tl.float32) * scale * factor
    sum = tl.zeros([BLOCK], tl.float32)
    for first in range(0, D, BLOCK):
        column = first + tl.arange(0, BLOCK)
        a = tl.load(x + row * D + column, mask=column < D, other=0.0).to(tl.float32)
        b = tl.load(table + source + column, mask=column < D, other=0.0).to(tl.float32)
        value = tl.where(mode == 0, a + b, a * b) * wanted
        tl.store(y + row * D + column, value.to(y.dtype.element_ty), mask=column < D)
        sum += value
    tl.store(total + row, tl.sum(sum, 0).to(total.dtype.element_ty))


KERNEL = OwnKernel(
    operator=MIXED,
    inputs="int64[B] ids, float[B, S, D] x, float[R, D] table, bool[B, S] keep",
    attributes={"scale": 0.5, "factor": 3, "mode": "add"},
    choices={"mode": ["add", "multiply"]},
    function=mixed_rows,
    sizes={"odd": "(ceil_div(S, 2) - R) * factor * 1000 + max(B, D) * 100 + min(D, 7) % 4 * 10 + (B - R) // 3"},
    grid=["B * S", 1],
    configs=[
        triton.Config({"BLOCK": 16, "LOOP": 0}, num_warps=1),
        triton.Config({"BLOCK": 64, "LOOP": 1}, num_warps=2),
    ],
    when="D <= BLOCK or LOOP == 1",
    multiples_of_16=["D"],
)
"""

NARROW = """
import triton
import triton.language as tl

from onnx_fuse import FusedOp, OwnKernel

TWICE = FusedOp(
    "TwiceNarrow", ("x",), lambda op, x: op.Add(x, x), domain="my.ops", plugin_namespace="mine", plugin_version="3"
)


@triton.jit
def twice(x, output, N, BLOCK: tl.constexpr):
    column = tl.arange(0, BLOCK)
    place = tl.program_id(0) * N + column
    value = tl.load(x + place, mask=column < N, other=0.0)
    tl.store(output + place, value + value, mask=column < N)


KERNEL = OwnKernel(
    operator=TWICE,
    inputs="float[M, 2, N] x",
    function=twice,
    grid="M * 2",
    configs=[triton.Config({"BLOCK": 32})],
    when="N <= BLOCK",
    types=["float16", "float32"],
)
"""

SHAPED = """
import triton
import triton.language as tl

from onnx_fuse import FusedOp, OwnKernel


@triton.jit
def fill(x, output):
    tl.store(output + tl.program_id(0), tl.load(x))


KERNEL = OwnKernel(
    operator=FusedOp("Shaped", ("x",), lambda op, x: op.Add(x, x), domain="my.ops"),
    inputs="float[M, N] x",
    function=fill,
    grid="ceil_div(M, 2)",
    outputs={"output": ["ceil_div(M, 2)", "max(N - M, 1) + M % 3", "min(M, N) * 2 // 3", 4]},
)
"""


def written(folder: Path, **files: str) -> Path:
    """A folder with Python files."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in files.items():
        (folder / f"{name}.py").write_text(text)
    return folder


def read(folder: Path, **files: str) -> ResolvedKernel:
    """The first kernel of a folder with these files."""
    return read_folder(written(folder, **files))[0]


def assert_told(folder: Path, old: str, new: str, line: int, reason: str) -> None:
    """Asserts that MIXED with `new` in place of `old` is refused for that reason, at that line."""
    assert MIXED.count(old) == 1
    with pytest.raises(UsageError, match=reason) as error:
        read(folder, mixed=MIXED.replace(old, new))
    assert error.value.cause.startswith(f"{folder / 'mixed.py'}, line {line}: ")
