"""Compiling what lies in plugin_csrc with CMake and the C++ compiler of the machine."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from onnx_fuse import installation
from onnx_fuse.errors import UsageError
from onnx_fuse.runtime.device.library_file import cache_folder


def work_folder(name: str, settings: Mapping[str, str] | None) -> Path:
    """Where a library is compiled: a folder in the cache for each set of CMake's settings, of which some cannot be changed."""
    told = repr(sorted(settings.items())) if settings else ""
    return cache_folder() / "build" / (f"{name}-{hashlib.sha256(told.encode()).hexdigest()[:8]}" if told else name)


def cmake(
    sources: Path,
    work: Path,
    settings: Mapping[str, str],
    hints: Callable[[], Sequence[str]] = list,
    jobs: int | None = None,
    *,
    what: str,
) -> None:
    """Configures and builds sources in a folder; what has not changed is not compiled again.

    Args:
        sources: the folder with CMakeLists.txt.
        work: the folder to build in.
        settings: name -> value of CMake's variables.
        hints: gives further options of the first call of CMake, once the tools are known to be there.
        jobs: processes at a time; one for each core if None.
        what: what an error says is built, such as "plugin library".

    Raises:
        UsageError: CMake or a C++ compiler is missing, or it does not compile.
    """
    if shutil.which("cmake") is None:
        raise UsageError(f"Building the {what} needs cmake.", f"Install it: {installation.pip_install('cmake')}")
    if "CMAKE_CXX_COMPILER" not in settings and shutil.which("g++") is None:
        raise UsageError(f"Building the {what} needs g++.", "Install a C++ compiler, such as the package g++.")
    made_of = work / "CMakeCache.txt"
    if made_of.is_file() and f"CMAKE_HOME_DIRECTORY:INTERNAL={sources}\n" not in made_of.read_text():
        shutil.rmtree(work / "CMakeFiles", ignore_errors=True)  # of another checkout or environment
        made_of.unlink()
    given = [f"-D{name}={value}" for name, value in settings.items()]
    _run(["cmake", "-S", str(sources), "-B", str(work), *given, *hints()], what)
    _run(["cmake", "--build", str(work), "--parallel", str(jobs or os.cpu_count() or 1)], what)


def _run(command: Sequence[str], what: str) -> None:
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    if result.returncode:
        output = (result.stdout + result.stderr).strip().splitlines()
        telling = [line for line in output if "error" in line.lower()][:8] or output[-8:]
        raise UsageError(f"The {what} does not compile: " + "\n".join(telling), f"Run: {' '.join(command)}")
