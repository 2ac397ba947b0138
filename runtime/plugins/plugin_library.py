"""The plugin library: building it, finding it, and checking that it is whole before it is loaded."""

from __future__ import annotations

import contextlib
import ctypes
import hashlib
import importlib.util
import os
import shutil
import subprocess
import sys
import tempfile
import time
import zipfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from onnx_fuse import installation
from onnx_fuse.errors import UsageError
from onnx_fuse.passes.files import json_object
from onnx_fuse.patterns.language.operator import DOMAIN
from onnx_fuse.runtime.device import library_file
from onnx_fuse.runtime.device.library_file import cache_folder, has_record, record_path, source_folder
from onnx_fuse.runtime.plugins import aot, compilation, own_cpp
from onnx_fuse.runtime.plugins.own_operator import OwnOperator
from onnx_fuse.versions import __version__

LIBRARY = library_file.PLUGINS
VARIABLE = "ONNX_FUSE_PLUGINS"
"""Environment variable that names plugin libraries, separated like PATH."""

_KIND, _BUILD = "plugin library", "onnx-fuse plugins build"
_HEADERS = {"tensorrt": "kernel-lens", "cuda": "nvidia-cuda-runtime"}
# The PyPI wheels that carry the headers, for machines without an installation of TensorRT or CUDA.


@dataclass(frozen=True)
class Held:
    """The GPUs that a library has kernels for, as compute capabilities: 90 for sm_90.

    Attributes:
        machine_code: those whose machine code it has.
        ptx: those whose PTX it has, which the driver translates for any later GPU.
    """

    machine_code: tuple[int, ...]
    ptx: tuple[int, ...]

    def runs_on(self, capability: int) -> Literal["machine code", "PTX"] | None:
        """What a GPU would run: machine code of its own or of an older minor version, else PTX; None where there is neither."""
        for item in self.machine_code:
            if item == capability or (item not in aot.EXACT and item // 10 == capability // 10 and item < capability):
                return "machine code"
        return "PTX" if any(item <= capability for item in self.ptx) else None

    def __str__(self) -> str:
        code = ", ".join(f"sm_{item}" for item in self.machine_code)
        later = ", ".join(f"PTX for sm_{item} and later" for item in self.ptx)
        return "; ".join(part for part in (code and f"machine code for {code}", later) if part) or "nothing"


@dataclass(frozen=True)
class Library:
    """A plugin library that was built, as the file beside it (`LIBRARY.json`) tells.

    Attributes:
        path: the shared library.
        version: of onnx-fuse.
        sha256: of the library's bytes.
        architectures: compute capabilities it has machine code for.
        variants: number of kernel variants.
        size: bytes.
        seconds: how long building it took.
        operators: of a library of a user's own kernels, what it has plugins for: "namespace::name version 1".
    """

    path: Path
    version: str
    sha256: str
    architectures: tuple[int, ...]
    variants: int
    size: int
    seconds: float
    operators: tuple[str, ...] = ()

    @property
    def held(self) -> Held:
        """What it has kernels for."""
        return of_architectures(self.architectures)


def of_architectures(architectures: Sequence[int]) -> Held:
    """What a library has that was built for these."""
    return Held(tuple(architectures), tuple(item for item in architectures if item == aot.PTX_ARCHITECTURE))


def held(library: Path, operator: str) -> Held | None:
    """What a library has kernels of an operator for; None where it has no plugin of that name, or does not tell.

    It asks the library itself, which is loaded for that.
    """
    tell = getattr(ctypes.CDLL(str(library)), "get_plugin_architectures", None)
    if tell is None:
        return None
    numbers = (ctypes.c_int32 * 64)()
    count = tell(operator.encode(), numbers, len(numbers))
    found = sorted(numbers[:count]) if count >= 0 else None
    if found is None:
        return None
    return Held(tuple(item for item in found if item > 0), tuple(-item for item in found if item < 0))


def own_folder() -> Path:
    """Where libraries of a user's own kernels are, of which `find` takes all."""
    return cache_folder() / "own"


def build(
    output: Path | None = None,
    *,
    architectures: Sequence[int] = aot.ARCHITECTURES,
    jobs: int | None = None,
    settings: Mapping[str, str] | None = None,
    progress: Callable[[str], None] | None = None,
) -> Library:
    """Compiles the kernels and the library; what has not changed is not compiled again.

    Args:
        output: where to put the library; its place in the user's cache if None.
        architectures: compute capabilities to compile for, 90 for sm_90.
        jobs: processes at a time; one for each core if None.
        settings: CMake's, such as another compiler (CMAKE_CXX_COMPILER).
        progress: called with a word on what is being done.

    Raises:
        UsageError: triton, a C++ compiler, CMake or headers are missing, or something does not compile.
        OutputError: the library cannot be written there.
    """
    started = time.perf_counter()
    say = progress or (lambda _: None)
    output = cache_folder() / LIBRARY if output is None else Path(output)
    library_file.check_place(output)
    kernels = aot.compile_kernels(aot.kernel_modules(), architectures, jobs=jobs, progress=say)
    # One folder for each set of architectures, so that they do not undo each other's work.
    name = "-".join(["sm", *(str(item) for item in architectures)])
    work = compilation.work_folder(name, settings)
    aot.write_sources(kernels, work / "kernels")
    say("compiling the library")
    cmake(work, {"KERNELS": str(work / "kernels"), **(settings or {})}, jobs)
    return _installed_library(work / LIBRARY, output, kernels, architectures, started)


def build_own(
    name: str,
    operators: Mapping[str, Sequence[OwnOperator]],
    output: Path | None = None,
    *,
    architectures: Sequence[int] = aot.ARCHITECTURES,
    jobs: int | None = None,
    progress: Callable[[str], None] | None = None,
) -> Library:
    """Compiles a library of operators with kernels of a user's own.

    Args:
        name: of the library, an identifier; the file is libNAME_tensorrt_plugins.so unless `output` says otherwise.
        operators: path of a .py file -> the operators whose kernels are functions at its top.
        output, architectures, jobs, progress: as for `build`.

    Raises:
        UsageError, OutputError: as `build`; or another library in the cache has one of the operators.
    """
    started = time.perf_counter()
    say = progress or (lambda _: None)
    target = f"{name}_tensorrt_plugins"
    output = own_folder() / f"lib{target}.so" if output is None else Path(output)
    keys = [item.plugin for items in operators.values() for item in items]
    _require_new(output, keys)
    library_file.check_place(output)
    wanted = [(file, variant) for file, items in operators.items() for item in items for variant in item.variants()]
    kernels = aot.compile_variants(wanted, architectures, jobs=jobs, progress=say)
    work = cache_folder() / "build" / "own" / name
    write_own_sources([item for items in operators.values() for item in items], kernels, work)
    say("compiling the library")
    cmake(work, own_settings(target, work), jobs)
    return _installed_library(work / f"lib{target}.so", output, kernels, architectures, started, keys)


def write_own_sources(operators: Sequence[OwnOperator], kernels: Sequence[aot.Kernel], work: Path) -> None:
    """Writes what a library of a user's operators is compiled of."""
    aot.write_sources(kernels, work / "kernels")
    (work / "operators.cpp").write_text(own_cpp.source(operators))


def own_settings(target: str, work: Path) -> dict[str, str]:
    """CMake's settings for it. With the base as one unit it compiles in seconds."""
    sources = {"KERNELS": str(work / "kernels"), "OPERATORS": str(work / "operators.cpp")}
    return {**sources, "LIBRARY_NAME": target, "CMAKE_UNITY_BUILD": "ON", "CMAKE_UNITY_BUILD_BATCH_SIZE": "0"}


def _require_new(output: Path, keys: Sequence[str]) -> None:
    """TensorRT takes one plugin of a name; `find` gives it all libraries of the cache."""
    if os.path.realpath(output.parent) != os.path.realpath(own_folder()):
        return
    for other in own_folder().glob("*.so"):
        library = described(other) if other.name != output.name else None
        for key in keys:
            if library is not None and key in library.operators:
                raise UsageError(
                    f"{other} has a plugin for {key} already.",
                    "Delete that library, or put this one elsewhere with -o.",
                )


def _installed_library(
    made: Path,
    output: Path,
    kernels: Sequence[aot.Kernel],
    architectures: Sequence[int],
    started: float,
    operators: Sequence[str] = (),
) -> Library:
    """Puts a compiled library in its place, with its record."""
    data = made.read_bytes()
    built = Library(
        path=Path(os.path.realpath(output)),
        version=__version__,
        sha256=hashlib.sha256(data).hexdigest(),
        architectures=tuple(architectures),
        variants=len(kernels),
        size=len(data),
        seconds=round(time.perf_counter() - started, 1),
        operators=tuple(operators),
    )
    library_file.install(data, output, {key: value for key, value in asdict(built).items() if key != "path"})
    return built


def cmake(work: Path, settings: Mapping[str, str], jobs: int | None = None) -> None:
    """Configures and builds plugin_csrc in a folder.

    Raises:
        UsageError: CMake, a C++ compiler or headers are missing, or it does not compile.
    """
    compilation.cmake(source_folder(), work, settings, _header_hints, jobs, what="plugin library")


def _header_hints() -> list[str]:
    """Where CMake may look for headers last: in wheels, which are fetched if nothing else has them."""
    hints = {
        "tensorrt": _package_folder("kernel_lens", "include/tensorrt"),
        "cuda": _package_folder("nvidia", "cu13/include"),
    }
    installed = {
        "tensorrt": _installed("TENSORRT_ROOT", "NvInferRuntime.h", ("/usr/include", "/usr/include/x86_64-linux-gnu")),
        "cuda": _installed("CUDA_HOME", "cuda_runtime_api.h", ("/usr/local/cuda/include", "/usr/include")),
    }
    for name, folder in hints.items():
        if folder is None and not installed[name]:
            hints[name] = _fetched(name)
    return [f"-D{name.upper()}_HINT={folder}" for name, folder in hints.items() if folder is not None]


def _installed(variable: str, header: str, folders: Sequence[str]) -> bool:
    root = os.environ.get(variable)
    places = [Path(root) / "include", Path(root)] if root else []
    return any((folder / header).is_file() for folder in [*places, *map(Path, folders)])


def _package_folder(package: str, inside: str) -> Path | None:
    spec = importlib.util.find_spec(package)
    places = [] if spec is None else [Path(place) / inside for place in spec.submodule_search_locations or ()]
    return next((place for place in places if os.path.isdir(place)), None)


def _fetched(name: str) -> Path:
    """The include folder of a wheel from PyPI, unpacked into the cache."""
    target = cache_folder() / "headers" / name
    if not target.is_dir():
        with tempfile.TemporaryDirectory() as folder:
            command = [sys.executable, "-m", "pip", "download", "--no-deps", "-q", "-d", folder, _HEADERS[name]]
            result = subprocess.run(command, capture_output=True, text=True, check=False)
            wheel = next(iter(Path(folder).glob("*.whl")), None)
            if wheel is None:
                raise UsageError(
                    f"The headers of {name} are not installed, and the wheel {_HEADERS[name]} that has them could not be "
                    f"fetched: {result.stderr.strip()[-300:]}",
                    "Set TENSORRT_ROOT and CUDA_HOME to where they are, or install the wheel: "
                    f"{installation.pip_install('--no-deps', _HEADERS[name])}",
                )
            unpacked = Path(folder) / "unpacked"
            with zipfile.ZipFile(wheel) as archive:
                archive.extractall(unpacked)
            header = "NvInferRuntime.h" if name == "tensorrt" else "cuda_runtime_api.h"
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copytree(next(unpacked.rglob(header)).parent, target)
    return target


def find(given: Sequence[str | os.PathLike[str]] = ()) -> list[Path]:
    """The plugin libraries to load: those given, else those of ONNX_FUSE_PLUGINS (none where it is empty), else the one of the
    package onnx-fuse-plugins or in the user's cache, and those of the user's own kernels in the cache. What nobody has named needs
    its record."""
    if given:
        return [Path(item) for item in given]
    named = os.environ.get(VARIABLE)
    if named is not None:
        return [Path(item) for item in named.split(os.pathsep) if item]
    built = library_file.found(LIBRARY)
    return [*([built] if built else []), *filter(has_record, sorted(own_folder().glob("*.so")))]


def of_engine(engine: str, plugins: Mapping[str, str], given: Iterable[Path] = ()) -> list[Path]:
    """The plugin libraries that an engine was built with, by their hashes: among those given and those that `find` finds, and
    where they were then, if there is a record of them.

    Args:
        engine: what the engine is called in an error.
        plugins: library -> SHA-256 of its bytes, from the record of the engine.
        given: libraries that the user names.

    Raises:
        UsageError: one is not there.
    """
    found = []
    for name, sha256 in plugins.items():
        named = [path for path in (*given, *find()) if os.path.isfile(path)]
        places = [*named, *([Path(name)] if has_record(Path(name)) else [])]
        same = [place for place in places if library_file.sha256(place, _KIND) == sha256]
        if not same:
            raise UsageError(
                f"{engine} needs the plugin library {name} (SHA-256 {sha256[:12]}...), and "
                + (f"{places[0]} is another one." if places else "it is not there with its record."),
                f"Name it with --plugins or in {VARIABLE}, or build the engine again.",
            )
        found.append(same[0])
    return found


def recorded() -> set[str]:
    """What the records beside the libraries of `find` say that they have plugins for, of a user's own operators."""
    found: set[str] = set()
    for path in find():
        with contextlib.suppress(OSError, ValueError):
            found.update(
                name for name in json_object.read(record_path(path)).get("operators") or () if isinstance(name, str)
            )
    return found


def how_to_get(operators: Iterable[str]) -> str:
    """What to do to have plugins for operators, each `domain::operator`."""
    if any(name.startswith(f"{DOMAIN}::") for name in operators):
        return (
            "Build the plugin library with `onnx-fuse plugins build`, install the wheel onnx_fuse_plugins that `make dist` makes, "
            "or name one with --plugins LIB."
        )
    return (
        "Build a library of their kernels with `onnx-fuse plugins build --from FOLDER`, or name one with --plugins LIB."
    )


def described(path: Path) -> Library | None:
    """What the file beside a library says of it; None where there is none.

    Raises:
        UsageError: there is no such library, or it is not the one that was built: cut short, damaged, or replaced.
    """

    def read(facts: dict[str, Any]) -> Library:
        facts = {"operators": [], **facts}
        json_object.require(facts, version=str, variants=int, size=int, architectures=list, operators=list)
        operators, chips = tuple(map(str, facts["operators"])), tuple(map(int, facts["architectures"]))
        return Library(path=path, **{**facts, "operators": operators, "architectures": chips})

    return library_file.checked(path, _KIND, _BUILD, read)
