"""The plugin library that the tests share, built once, and what its plugins launch through a driver that records.

Its C++ is the real one. Its kernels are not: compiling all of them takes minutes, and nothing here runs one.
"""

from __future__ import annotations

import fcntl
import json
import os
import subprocess
import sys
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from onnx_fuse.plugin_csrc.kernels.manifest import Variant
from onnx_fuse.plugin_csrc.operators import catalogue
from onnx_fuse.runtime.device.library_file import cache_folder
from onnx_fuse.runtime.plugins import aot, harness, plugin_library

ROOT = Path(__file__).parents[2]
CACHE = ROOT / ".cache"
ARCHITECTURE = 80


@cache
def library(sanitizers: str = "") -> Path:
    """The library, with an image for one architecture and PTX; test processes wait for the first one to build it.

    With sanitizers, such as "address,undefined", the harness and the recording driver that have them too are in the folder
    `tools` beside it.
    """
    CACHE.mkdir(exist_ok=True)
    target = CACHE / "-".join(["plugins", *sanitizers.split(",")]).strip("-")
    settings = {"CMAKE_DISABLE_PRECOMPILE_HEADERS": "ON"}  # so that each source includes what it needs
    if sanitizers:
        # Debug information that names lines, and no more: it is what a finding shows.
        settings = {"SANITIZE": sanitizers, "CMAKE_BUILD_TYPE": "Debug", "CMAKE_CXX_FLAGS_DEBUG": "-g1"}
    with target.with_suffix(".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        aot.write_sources([_kernel(variant) for variant in catalogue.variants()], target / "kernels")
        plugin_library.cmake(target, {"KERNELS": str(target / "kernels"), **settings})
        if sanitizers:
            plugin_library.cmake(target / "tools", {"TOOLS": "ON", **settings})
        else:
            harness.tools()
    return target / plugin_library.LIBRARY


def _kernel(variant: Variant) -> aot.Kernel:
    symbol, threads = variant.function.__name__, 32 * variant.num_warps
    data = {False: b"\x7fELF", True: b".version"} if ARCHITECTURE in variant.architectures else {False: b"\x7fELF"}
    architecture = ARCHITECTURE if ARCHITECTURE in variant.architectures else min(variant.architectures)
    images = [
        aot.Image(architecture, ptx, symbol, threads, 0, len(text), zlib.compress(text)) for ptx, text in data.items()
    ]
    return aot.Kernel(variant.name, aot.letters(variant), aot.numbers(variant), tuple(images), aot.alignment(variant))


def tools() -> Path:
    """The folder of the harness and the recording driver."""
    library()
    return cache_folder() / "harness"


@dataclass(frozen=True)
class Launch:
    """A kernel with its grid and its arguments, addresses as numbers."""

    kernel: str
    programs: int
    arguments: tuple[Any, ...]


def _plain(argument: Any) -> list[Any]:
    """An argument as the recording driver writes it; of a tensor map the sizes and strides that follow it, too."""
    if hasattr(argument, "block_shape"):
        (rows, columns), (step, _) = argument.shape, argument.strides
        box_rows, size = argument.block_shape[0], argument.base.element_size()
        found = {"address": argument.base.data_ptr(), "rows": rows, "columns": columns, "row_bytes": step * size}
        return [{**found, "box_rows": box_rows, "box_columns": 128 // size}, rows, columns, step, 1]
    return [argument.data_ptr() if hasattr(argument, "data_ptr") else argument]


def launched(monkeypatch: pytest.MonkeyPatch, function: Callable[[], Any]) -> tuple[list[Launch], Any]:
    """What a kernel's `launch` starts, and what it returns; nothing runs."""
    seen: list[Launch] = []

    def record(chosen: Any, programs: int, *arguments: Any) -> None:
        if programs:
            plain = [value for item in arguments for value in _plain(item)]
            seen.append(Launch(chosen.name, programs, tuple(plain)))

    for module in catalogue.MODULES:
        monkeypatch.setattr(module, "start", record)
    return seen, function()


def driver_settings(tools: Path, folder: Path) -> dict[str, str]:
    """The environment of a process in which the CUDA driver is the recording one, which writes to FOLDER/log."""
    file = folder / "signatures"
    letters = {variant.function.__name__: aot.letters(variant) for variant in catalogue.variants()}
    file.write_text("".join(f"{symbol} {text}\n" for symbol, text in letters.items()))
    return {
        "LD_LIBRARY_PATH": str(tools),
        "FAKE_CUDA_LOG": str(folder / "log"),
        "FAKE_CUDA_SIGNATURES": str(file),
        "FAKE_CUDA_SM": str(ARCHITECTURE),
    }


def enqueued(runs: Sequence[Mapping[str, Any]], folder: Path, **environment: str) -> list[dict[str, Any]]:
    """What plugins enqueue: the answers of `tests.plugin_csrc.worker`."""
    variables = {**os.environ, **driver_settings(tools(), folder), **environment}
    result = subprocess.run(
        [sys.executable, "-m", "tests.plugin_csrc.worker"],
        input=json.dumps({"library": str(library()), "runs": list(runs)}),
        capture_output=True,
        text=True,
        env=variables,
        cwd=ROOT,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    answers: list[dict[str, Any]] = json.loads(result.stdout)
    return answers
