"""Building the kernel library for ONNX Runtime: C++ alone, without triton, CUDA or TensorRT."""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path

from onnx_fuse.runtime.device import library_file
from onnx_fuse.runtime.onnxruntime.kernel_library import KIND, LIBRARY, Library, contents
from onnx_fuse.runtime.plugins import compilation
from onnx_fuse.versions import __version__


def build(
    output: Path | None = None,
    *,
    jobs: int | None = None,
    settings: Mapping[str, str] | None = None,
    progress: Callable[[str], None] | None = None,
) -> Library:
    """Compiles the library; what has not changed is not compiled again.

    Args:
        output: where to put it; its place in the user's cache if None.
        jobs: processes at a time; one for each core if None.
        settings: CMake's, such as another compiler (CMAKE_CXX_COMPILER).
        progress: called with a word on what is being done.

    Raises:
        UsageError: a C++ compiler or CMake is missing, or it does not compile.
        OutputError: it cannot be written there.
    """
    started = time.perf_counter()
    output = library_file.cache_folder() / LIBRARY if output is None else Path(output)
    library_file.check_place(output)
    if progress is not None:
        progress(f"compiling the {KIND}")
    made = compiled(compilation.work_folder("onnxruntime", settings), settings, jobs=jobs)
    contents(made)  # it can be loaded, and says what it holds
    data = made.read_bytes()
    built = Library(
        path=Path(os.path.realpath(output)),
        version=__version__,
        sha256=hashlib.sha256(data).hexdigest(),
        size=len(data),
        seconds=round(time.perf_counter() - started, 1),
    )
    library_file.install(data, output, {key: value for key, value in asdict(built).items() if key != "path"})
    return built


def compiled(
    work: Path, settings: Mapping[str, str] | None = None, *, jobs: int | None = None, sanitizers: str = ""
) -> Path:
    """The library, compiled in a folder, with further settings of CMake.

    Raises:
        UsageError: as `build`.
    """
    settings = {**(settings or {}), **({"SANITIZE": sanitizers, "CMAKE_BUILD_TYPE": "Debug"} if sanitizers else {})}
    compilation.cmake(library_file.source_folder() / "onnxruntime", work, settings, jobs=jobs, what=KIND)
    return work / LIBRARY
