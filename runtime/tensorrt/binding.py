"""NVIDIA's Python module: which one there is, its log, and plugin libraries. Nothing here needs a GPU.

`tensorrt` is used where it imports, else `tensorrt_rtx`; what this project calls is the same in both.
"""

from __future__ import annotations

import atexit
import ctypes
import importlib
import importlib.util
import os
import shutil
import struct
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from onnx_fuse import installation
from onnx_fuse.errors import UsageError
from onnx_fuse.runtime.plugins import plugin_library

_RTX_LIBRARIES = {
    "libtensorrt_rtx.so.1": "libtensorrt_rtx.so",
    "libtensorrt_onnxparser_rtx.so.1": "libtensorrt_onnxparser_rtx.so.1",
}
_loaded: dict[Path, Any] = {}  # plugin library -> the registry's handle
_owners: dict[str, Path] = {}  # what the record of a loaded library says that it has plugins for -> the library


def loaded_plugins() -> tuple[Path, ...]:
    """The plugin libraries that `load_plugins` has loaded into this process."""
    return tuple(_loaded)


@cache
def module() -> Any:
    """The TensorRT module of this environment.

    Raises:
        UsageError: neither module can be imported.
    """
    reasons = []
    for name in ("tensorrt", "tensorrt_rtx"):
        try:
            if name == "tensorrt_rtx":
                _plugin_nodes_are_safe()
            return importlib.import_module(name)
        except (ImportError, OSError) as error:  # OSError: the module is there, its libraries are not
            reasons.append(f"{name}: {error}")
    raise UsageError(
        f"TensorRT cannot be imported ({'; '.join(reasons)}).",
        f"Install it: {installation.add_extra('tensorrt-rtx')}",
    )


@cache
def _plugin_nodes_are_safe() -> bool:
    """Whether a plugin node can be parsed; makes it so if it still can.

    At the first plugin node the RTX parser opens `libtensorrt_rtx.so` beside itself, and ends the process when that is
    missing. The wheel has only `libtensorrt_rtx.so.1`, so the parser is loaded before anybody else does it, from a folder of
    links where it finds that name.
    """
    spec = importlib.util.find_spec("tensorrt_rtx_libs")
    folder = Path(next(iter(spec.submodule_search_locations or ()), "")) if spec else Path()
    if not all((folder / library).exists() for library in _RTX_LIBRARIES) or (folder / "libtensorrt_rtx.so").exists():
        return True  # not the wheel's libraries, or a wheel that has the name
    if "tensorrt_rtx_libs" in sys.modules:
        return False
    links = Path(tempfile.mkdtemp(prefix="onnx-fuse-"))
    atexit.register(_remove, links, os.getpid())
    for library, link in _RTX_LIBRARIES.items():
        (links / link).symlink_to(folder / library)
    ctypes.CDLL(str(links / "libtensorrt_onnxparser_rtx.so.1"))
    return True


def _remove(folder: Path, owner: int) -> None:
    if os.getpid() == owner:  # a forked child that exits must not take the folder from its parent
        shutil.rmtree(folder, ignore_errors=True)


def require_plugin_nodes() -> None:
    """Returns if plugin nodes can be parsed in this process.

    Raises:
        UsageError: somebody imported tensorrt_rtx too early; the parser would end the process.
    """
    if module().__name__ == "tensorrt_rtx" and not _plugin_nodes_are_safe():
        raise UsageError(
            "tensorrt_rtx was imported before onnx-fuse could prepare it, and would abort this process at the first plugin node.",
            "Call onnx_fuse.runtime.tensorrt.binding.module() before anything imports tensorrt_rtx.",
        )


@cache
def logger() -> Any:
    """The one logger of this process, silent and read through `logged`. (TensorRT keeps to the first it is given.)"""
    trt = module()
    # A lookup, as `severity.name` costs microseconds and TensorRT logs several verbose messages a node.
    names = {getattr(trt.ILogger, name): name for name in ("INTERNAL_ERROR", "ERROR", "WARNING", "INFO", "VERBOSE")}
    kept = set(list(names)[:3])

    class Logger(trt.ILogger):  # type: ignore[name-defined]
        def __init__(self) -> None:
            trt.ILogger.__init__(self)
            self.messages: list[str] = []
            self.listener: Callable[[str], None] | None = None

        def log(self, severity: Any, msg: str) -> None:
            if severity in kept:
                self.messages.append(f"{names[severity]}: {msg.strip()}")
            if self.listener is not None:
                self.listener(f"{names[severity]}: {msg.strip()}")

    return Logger()


@contextmanager
def logged() -> Iterator[list[str]]:
    """The warnings and errors that TensorRT logs inside the `with`, each `SEVERITY: text`."""
    messages: list[str] = []
    logger().messages = messages
    try:
        yield messages
    finally:
        logger().messages = []


@contextmanager
def listening(listener: Callable[[str], None] | None) -> Iterator[None]:
    """Hands all that TensorRT logs inside the `with`, verbose messages too, to a function."""
    logger().listener = listener
    try:
        yield
    finally:
        logger().listener = None


def network_flags() -> int:
    """What `create_network` is given: types are those of the model. (Where no flag says so, there are no other networks.)"""
    flag = getattr(module().NetworkDefinitionCreationFlag, "STRONGLY_TYPED", None)
    return 0 if flag is None else 1 << int(flag)


@dataclass(frozen=True)
class Features:
    """How building differs between the modules:

    |                             | tensorrt 10, 11         | tensorrt_rtx                                   |
    | --------------------------- | ----------------------- | ---------------------------------------------- |
    | builds for                  | the GPU of the machine  | `targets`; without any, all from `portable` on |
    | needs a GPU to build        | yes                     | no                                             |
    | measures, and can keep it   | yes, in a timing cache  | no: kernels are made on the GPU that runs it   |

    Attributes:
        targets: compute capabilities that an engine can be built for ahead of time; empty where that is not possible.
        portable: compute capabilities that an engine without a target is for.
        timing_cache: whether there is one.
    """

    targets: tuple[str, ...]
    portable: tuple[str, ...]
    timing_cache: bool


def features() -> Features:
    """What the module of this environment can do."""
    trt = module()
    capabilities = getattr(getattr(trt, "ComputeCapability", None), "__members__", {})
    targets = tuple(name for name in capabilities if name.startswith("SM"))
    if not targets or not hasattr(trt.IBuilderConfig, "set_compute_capability"):
        return Features((), (), timing_cache=True)
    return Features(targets, ("SM80", "SM86", "SM89", "SM120"), timing_cache=False)


def load_plugins(libraries: Iterable[str | Path]) -> None:
    """Registers the plugin creators of each library; a library that is loaded already is left as it is.

    Raises:
        UsageError: a library is missing, cut short, no ELF file, not the one that was built (where there is a record of that),
            or refused by TensorRT (with the reason it logs).
    """
    trt = module()
    for library in libraries:
        path = Path(os.path.realpath(library))  # the registry takes no bare file names
        if path in _loaded:
            continue
        if problem := _elf_problem(path):
            raise UsageError(
                f"The plugin library {path} {problem}.", "Give the path of a plugin library built for this machine."
            )
        record = plugin_library.described(path)
        operators = () if record is None else record.operators
        for operator in operators:
            if operator in _owners:
                raise UsageError(
                    f"{path} and {_owners[operator]} both have a plugin for {operator}.",
                    "Delete or leave out one of them.",
                )
        require_plugin_nodes()
        builder = trt.Builder(logger())  # while a builder lives, the registry logs why it refuses
        with logged() as messages:
            handle = trt.get_plugin_registry().load_library(str(path))
        del builder
        if handle is None:
            # Only the first message is the reason: without a driver every failure also logs a CUDA error.
            reason = messages[0] if messages else "no reason was logged"
            raise UsageError(
                f"TensorRT does not load the plugin library {path}: {reason}",
                "Check that it exports TensorRT plugin creators, and that no other library has registered the same ones.",
            )
        _loaded[path] = handle
        _owners.update(dict.fromkeys(operators, path))


def _elf_problem(path: Path) -> str | None:
    """What is wrong with a shared library, as the end of a sentence.

    The loader takes a file that was cut short and then dies of SIGBUS, so every part the headers announce must be there.
    """
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            header = file.read(64)
            if header[:6] != b"\x7fELF\x02\x01":
                return "is not a 64-bit ELF file"
            if len(header) < 64:
                return "is cut short"
            segments, sections = struct.unpack_from("<QQ", header, 32)
            segment_size, segment_count, section_size, section_count = struct.unpack_from("<4H", header, 54)
            file.seek(segments)
            table = file.read(segment_size * segment_count)
    except OSError as error:
        return f"cannot be read: {error.strerror}"
    ends = [sections + section_size * section_count, segments + segment_size * segment_count]
    for at in range(0, len(table) - 55, max(segment_size, 56)):
        offset, length = struct.unpack_from("<8xQ16xQ", table, at)
        ends.append(offset + length)
    return f"is cut short: {size} bytes, its headers speak of {max(ends)}" if max(ends) > size else None
