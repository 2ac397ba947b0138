"""Building a plugin library of a folder of a user's own kernels."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Sequence
from pathlib import Path

from onnx_fuse.own_kernels.read_folder import read_folder
from onnx_fuse.runtime.plugins import aot, plugin_library
from onnx_fuse.runtime.plugins.own_operator import OwnOperator


def build_library(
    folder: str | os.PathLike[str],
    output: Path | None = None,
    *,
    architectures: Sequence[int] = aot.ARCHITECTURES,
    jobs: int | None = None,
    progress: Callable[[str], None] | None = None,
) -> plugin_library.Library:
    """Compiles the kernels of a folder (see `OwnKernel`) and a plugin library of them.

    Args:
        folder: with Python files that hold `OwnKernel`s; the library is called after it.
        output: where to put the library; with the others of the user's cache, where it is found, if None.
        architectures, jobs, progress: as for `onnx_fuse.runtime.plugins.plugin_library.build`.

    Raises:
        UsageError: what the files say is wrong (with file and line), or something does not compile.
    """
    name = re.sub(r"\W+", "_", Path(os.path.realpath(folder)).name.lower())
    operators: dict[str, list[OwnOperator]] = {}
    for resolved in read_folder(folder):
        operators.setdefault(str(resolved.file), []).append(resolved.operator)
    return plugin_library.build_own(name, operators, output, architectures=architectures, jobs=jobs, progress=progress)
