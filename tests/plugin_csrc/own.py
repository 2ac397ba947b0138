"""A library of kernels of a user's own, with placeholders for what is compiled, and what its plugins enqueue."""

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

from onnx_fuse.own_kernels.read_folder import ResolvedKernel, read_folder
from onnx_fuse.runtime.plugins import aot, harness, plugin_library
from tests.onnx_fuse.own_kernels.kernels import MIXED, NARROW, SHAPED, written
from tests.plugin_csrc.built import ARCHITECTURE, CACHE, ROOT


@cache
def library() -> tuple[Path, dict[str, ResolvedKernel]]:
    """The library of MIXED, NARROW and SHAPED, and its operators by name; its C++ is real, its kernels are not."""
    CACHE.mkdir(exist_ok=True)
    work = CACHE / "own"
    with (CACHE / "own.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        owns = read_folder(written(work / "folder", mixed=MIXED, narrow=NARROW, shaped=SHAPED))
        operators = [own.operator for own in owns]
        kernels = []
        for variant in (variant for operator in operators for variant in operator.variants()):
            symbol, threads = variant.function.__name__, 32 * variant.num_warps
            images = [
                aot.Image(ARCHITECTURE, ptx, symbol, threads, 0, len(data), zlib.compress(data))
                for ptx, data in ((False, b"\x7fELF"), (True, b".version"))
            ]
            kernels.append(
                aot.Kernel(
                    variant.name, aot.letters(variant), aot.numbers(variant), tuple(images), aot.alignment(variant)
                )
            )
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
