"""Folders with kernels of a user's own, as text, and a library of such a folder with placeholders for compiled kernels."""

from __future__ import annotations

import fcntl
import json
import os
import subprocess
import sys
import zlib
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

from onnx_fuse.own_kernels import build as own_kernels
from onnx_fuse.runtime.plugins import aot, harness, plugin_library
from tests.plugin_csrc.built import ARCHITECTURE, CACHE, ROOT

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


@cache
def library() -> tuple[Path, dict[str, own_kernels.Own]]:
    """The library of MIXED, NARROW and SHAPED, and its operators by name; its C++ is real, its kernels are not."""
    CACHE.mkdir(exist_ok=True)
    work = CACHE / "own"
    with (CACHE / "own.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        owns = own_kernels.read(written(work / "folder", mixed=MIXED, narrow=NARROW, shaped=SHAPED))
        operators = [own.operator for own in owns]
        kernels = []
        for variant in (variant for operator in operators for variant in operator.variants()):
            symbol, threads = variant.function.__name__, 32 * variant.num_warps
            images = [
                aot.Image(ARCHITECTURE, ptx, symbol, threads, 0, len(data), zlib.compress(data))
                for ptx, data in ((False, b"\x7fELF"), (True, b".version"))
            ]
            kernels.append(aot.Kernel(variant.name, aot.letters(variant), aot.numbers(variant), tuple(images)))
        plugin_library.write_own_sources(operators, kernels, work)
        plugin_library.cmake(work, plugin_library.own_settings("own", work))
    return work / "libown.so", {own.operator.name: own for own in owns}


def enqueued(runs: Sequence[Mapping[str, Any]], folder: Path) -> list[dict[str, Any]]:
    """What plugins of the library enqueue, through the driver that records."""
    path, owns = library()
    letters = {item.function.__name__: aot.letters(item) for own in owns.values() for item in own.operator.variants()}
    (folder / "signatures").write_text("".join(f"{symbol} {text}\n" for symbol, text in letters.items()))
    variables = {
        **os.environ,
        "LD_LIBRARY_PATH": str(harness.tools()),
        "FAKE_CUDA_LOG": str(folder / "log"),
        "FAKE_CUDA_SIGNATURES": str(folder / "signatures"),
        "FAKE_CUDA_SM": str(ARCHITECTURE),
    }
    command = [sys.executable, "-m", "tests.plugin_csrc.worker"]
    given = json.dumps({"library": str(path), "runs": list(runs)})
    done = subprocess.run(command, input=given, capture_output=True, text=True, env=variables, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    answers: list[dict[str, Any]] = json.loads(done.stdout)
    return answers
