"""What an installation is made of, and what is wrong with it: `gather` looks, `examine` judges what was gathered."""

from __future__ import annotations

import importlib.util
import os
import platform
import re
import subprocess
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

import onnx

from onnx_fuse import installation
from onnx_fuse.errors import ModelError, UsageError
from onnx_fuse.patterns import fusions
from onnx_fuse.patterns.language.operator import DOMAIN
from onnx_fuse.runtime.device import gpus, library_file
from onnx_fuse.runtime.device.gpus import Gpu
from onnx_fuse.runtime.onnxruntime import kernel_library, sessions
from onnx_fuse.runtime.plugins import aot, plugin_library
from onnx_fuse.runtime.tensorrt import binding
from onnx_fuse.versions import __version__, installed_versions

_PACKAGES = (
    "onnx-fuse", "onnx", "onnxruntime", "onnxruntime-gpu", "onnx-graphsurgeon", "numpy", "protobuf", "tensorrt", "tensorrt-rtx",
    "tensorrt-rtx-cu12", "tensorrt-rtx-cu13", "tensorrt-cu12", "tensorrt-cu13", "cuda-python", "triton", "torch", "onnxscript",
    "polygraphy",
)  # fmt: skip
_OLDEST_RTX = (1, 7)
_OLDEST_TENSORRT = (10, 7)

Level = Literal["broken", "warning", "note"]


@dataclass(frozen=True)
class PluginLibrary:
    """A plugin library that would be loaded.

    Attributes:
        path: where it is.
        sha256: of its bytes, as its record says ("" without one).
        version: of onnx-fuse that built it.
        architectures: compute capabilities it has machine code for.
        problem: why it cannot be loaded; "" if it was.
    """

    path: str
    sha256: str = ""
    version: str = ""
    architectures: tuple[int, ...] = ()
    problem: str = ""


@dataclass(frozen=True)
class KernelLibrary:
    """The kernel library for ONNX Runtime that would be used.

    Attributes:
        path, sha256, version: as of a plugin library.
        instructions: the instruction set that it uses on this machine.
        advised: whether its kernels are faster here than bodies.
        operators: what it has kernels for.
        problem: why it cannot be loaded; "" if it was.
    """

    path: str
    sha256: str = ""
    version: str = ""
    instructions: str = ""
    advised: bool = True
    operators: tuple[str, ...] = ()
    problem: str = ""


@dataclass(frozen=True)
class Creator:
    """A plugin creator in TensorRT's registry, with the names of its fields."""

    name: str
    version: str
    namespace: str
    fields: tuple[str, ...]


@dataclass(frozen=True)
class Facts:
    """What there is.

    Attributes:
        python, system: version, and operating system with machine.
        packages: package -> version, those that matter and are installed.
        onnx_opset, onnxruntime_opset: newest opset that onnx knows, and that ONNX Runtime loads.
        surgeon_keeps_overloads: whether onnx-graphsurgeon keeps which body a call is of.
        tensorrt, tensorrt_version: the module that is used ("" where there is none), its version.
        tensorrt_problem: why none can be imported, though one is installed.
        plugin_nodes: whether the parser can take plugin nodes in this process.
        libraries: the plugin libraries that would be loaded.
        kernel_library: the library for ONNX Runtime; None where there is none.
        creators: plugin creators of TensorRT's registry, with those libraries.
        operators: operator -> its attributes: what creators of ours must take.
        gpus: the GPUs that the driver shows.
        driver: newest CUDA version of the driver, such as (13, 0); None where there is no driver.
        driver_problem: why the driver does not answer.
        ptxas: CUDA version of the assembler that triton compiles with.
        cache: the folder for what is built, and whether it can be written.
    """

    python: str = ""
    system: str = ""
    packages: Mapping[str, str] = field(default_factory=dict)
    onnx_opset: int = 0
    onnxruntime_opset: int = 0
    surgeon_keeps_overloads: bool = True
    tensorrt: str = ""
    tensorrt_version: str = ""
    tensorrt_problem: str = ""
    plugin_nodes: bool = True
    libraries: tuple[PluginLibrary, ...] = ()
    kernel_library: KernelLibrary | None = None
    creators: tuple[Creator, ...] = ()
    operators: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    gpus: tuple[Gpu, ...] = ()
    driver: tuple[int, int] | None = None
    driver_problem: str = ""
    ptxas: tuple[int, int] | None = None
    cache: tuple[str, bool] = ("", True)


@dataclass(frozen=True)
class Finding:
    """Something a user should know: "broken" cannot work, a "warning" may go wrong, a "note" is as it should be."""

    level: Level
    what: str
    remedy: str


# --- what there is ----------------------------------------------------------------------------------------------------


def gather() -> Facts:
    """Looks around. Loads the plugin libraries, which stay loaded in this process."""
    module, problem = _tensorrt()
    libraries = tuple(_library(path, bool(module)) for path in plugin_library.find())
    found, driver, driver_problem = gpus.devices()
    folder = library_file.cache_folder()
    existing = next(path for path in (folder, *folder.parents) if path.exists())
    return Facts(
        python=platform.python_version(),
        system=f"{platform.system()} {platform.machine()}",
        packages=installed_versions(_PACKAGES),
        onnx_opset=onnx.defs.onnx_opset_version(),
        onnxruntime_opset=_onnxruntime_opset(),
        surgeon_keeps_overloads=_surgeon_keeps_overloads(),
        tensorrt=module.__name__ if module else "",
        tensorrt_version=module.__version__ if module else "",
        tensorrt_problem=problem,
        plugin_nodes=_plugin_nodes() if module else True,
        libraries=libraries,
        kernel_library=_kernel_library(),
        creators=tuple(_creators(module)) if module else (),
        operators={item.operator.name: item.operator.attributes for item in fusions()},
        gpus=found,
        driver=driver,
        driver_problem=driver_problem,
        ptxas=_ptxas(),
        cache=(str(folder), os.access(existing, os.W_OK)),
    )


def _tensorrt() -> tuple[Any, str]:
    try:
        return binding.module(), ""
    except UsageError as error:
        installed = any(importlib.util.find_spec(name) for name in ("tensorrt", "tensorrt_rtx"))
        return None, error.cause if installed else ""


def _plugin_nodes() -> bool:
    try:
        binding.require_plugin_nodes()
    except UsageError:
        return False
    return True


def _library(path: Path, load: bool) -> PluginLibrary:
    try:
        record = plugin_library.described(path)
        if load:
            binding.load_plugins([path])
    except UsageError as error:
        return PluginLibrary(str(path), problem=error.cause)
    if record is None:
        return PluginLibrary(str(path))
    return PluginLibrary(str(path), record.sha256, record.version, record.architectures)


def _kernel_library() -> KernelLibrary | None:
    path = kernel_library.find()
    if path is None:
        return None
    try:
        record = kernel_library.described(path)
        held = kernel_library.contents(path)
    except UsageError as error:
        return KernelLibrary(str(path), problem=error.cause)
    sha256, version = (record.sha256, record.version) if record else ("", "")
    return KernelLibrary(str(path), sha256, version, held.instructions, held.advised, tuple(held.operators))


def _creators(trt: Any) -> Iterator[Creator]:
    for item in trt.get_plugin_registry().all_creators:
        # TensorRT's own have no namespace; one of them answers with an error on the terminal.
        names = tuple(entry.name for entry in item.field_names) if item.plugin_namespace else ()
        yield Creator(item.name, item.plugin_version, item.plugin_namespace, names)


def _onnxruntime_opset() -> int:
    """The newest opset of which ONNX Runtime loads a model; 0 if it loads none."""
    node = onnx.helper.make_node("Identity", ["x"], ["y"])
    values = [onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, [1]) for name in "xy"]
    graph = onnx.helper.make_graph([node], "probe", values[:1], values[1:])
    for opset in range(onnx.defs.onnx_opset_version(), 12, -1):
        try:
            sessions.session(
                onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", opset)], ir_version=8)
            )
        except ModelError:
            continue
        return opset
    return 0


def _surgeon_keeps_overloads() -> bool:
    import onnx_graphsurgeon

    model = onnx.parser.parse_model(
        '<ir_version: 10, opset_import: ["": 18, "a": 1]>\nprobe (float[1] x) => (float[1] y) { y = a.F:other (x) }\n'
        '<domain: "a", overload: "other", opset_import: ["": 18]>\nF (x) => (y) { y = Neg (x) }'
    )
    again = onnx_graphsurgeon.export_onnx(onnx_graphsurgeon.import_onnx(model))
    return bool(again.graph.node[0].overload == "other" and again.functions[0].overload == "other")


def _ptxas() -> tuple[int, int] | None:
    spec = importlib.util.find_spec("triton")
    for place in (spec.submodule_search_locations or ()) if spec else ():
        for path in sorted(Path(place).glob("backends/nvidia/bin/ptxas*")):
            try:
                text = subprocess.run(
                    [path, "--version"], capture_output=True, text=True, timeout=60, check=False
                ).stdout
            except (OSError, subprocess.SubprocessError):
                continue
            if found := re.search(r"release (\d+)\.(\d+)", text):
                return int(found[1]), int(found[2])
    return None


# --- what is wrong with it --------------------------------------------------------------------------------------------

Check = Callable[[Facts], Iterable[Finding]]


def examine(facts: Facts) -> list[Finding]:
    """What is to be said of these facts, the worst first."""
    found = [finding for check in _CHECKS for finding in check(facts)]
    return sorted(found, key=lambda finding: ("broken", "warning", "note").index(finding.level))


def _version(text: str) -> tuple[int, ...]:
    return tuple(int(part) for part in re.findall(r"\d+", text)[:3])


def _dotted(version: tuple[int, ...]) -> str:
    return ".".join(map(str, version))


def _tensorrt_module(facts: Facts) -> Iterator[Finding]:
    if facts.tensorrt_problem:
        yield Finding(
            "broken",
            facts.tensorrt_problem,
            f"Uninstall it, then install it again: {installation.add_extra('tensorrt-rtx')}",
        )
    elif not facts.tensorrt:
        yield Finding(
            "note",
            "There is no TensorRT: `parse` cannot run.",
            f"Install it: {installation.add_extra('tensorrt-rtx')}",
        )
    elif facts.tensorrt == "tensorrt_rtx" and _version(facts.tensorrt_version) < _OLDEST_RTX:
        yield Finding(
            "broken",
            f"tensorrt_rtx {facts.tensorrt_version} makes no plugins of ONNX nodes.",
            f"Update it: {installation.pip_install(f'tensorrt-rtx>={_dotted(_OLDEST_RTX)}')}",
        )
    elif facts.tensorrt == "tensorrt" and _version(facts.tensorrt_version) < _OLDEST_TENSORRT:
        yield Finding(
            "broken",
            f"tensorrt {facts.tensorrt_version} is older than {_dotted(_OLDEST_TENSORRT)}, which this project is for.",
            f"Update it: {installation.pip_install(f'tensorrt>={_dotted(_OLDEST_TENSORRT)},<12')}",
        )
    elif facts.tensorrt == "tensorrt" and "tensorrt-rtx" in facts.packages:
        yield Finding(
            "note", "Both tensorrt and tensorrt-rtx are installed: tensorrt is used.", "Uninstall the one not wanted."
        )


def _imported_too_early(facts: Facts) -> Iterator[Finding]:
    if not facts.plugin_nodes:
        yield Finding(
            "broken",
            "tensorrt_rtx was imported before onnx-fuse could prepare it: at a plugin node it would end the process.",
            "Call onnx_fuse.runtime.tensorrt.binding.module() before anything imports tensorrt_rtx.",
        )


def _opsets(facts: Facts) -> Iterator[Finding]:
    if facts.onnxruntime_opset < facts.onnx_opset:
        yield Finding(
            "note" if facts.onnxruntime_opset >= 23 else "warning",
            f"ONNX Runtime loads models up to opset {facts.onnxruntime_opset}, onnx knows {facts.onnx_opset}: newer models "
            "cannot be verified.",
            "Upgrade onnxruntime, or export with an older opset.",
        )


def _surgeon(facts: Facts) -> Iterator[Finding]:
    if not facts.surgeon_keeps_overloads:
        version = facts.packages.get("onnx-graphsurgeon", "")
        yield Finding(
            "note",
            f"onnx-graphsurgeon {version} drops overloads: a model with several bodies of one operator comes out invalid.",
            "Use it before fusing, or write the bodies out (--functions inline).",
        )


def _plugin_libraries(facts: Facts) -> Iterator[Finding]:
    build = "Build it again: onnx-fuse plugins build"
    if not facts.libraries:
        yield Finding(
            "note", "No plugin library is found: TensorRT gets the bodies.", "Build one: onnx-fuse plugins build"
        )
    for library in facts.libraries:
        if library.problem:
            yield Finding("broken", library.problem, build)
            continue
        if not library.sha256:
            yield Finding("note", f"{library.path} has no record: it cannot be checked for damage.", build)
            continue
        if library.version != __version__:
            yield Finding(
                "warning",
                f"{library.path} was built by onnx-fuse {library.version}, this is {__version__}.",
                build,
            )
        for gpu in facts.gpus:
            yield from _kernels(library, gpu)


def _kernel_library_found(facts: Facts) -> Iterator[Finding]:
    library, again = facts.kernel_library, f"Build it again: {kernel_library.BUILD}"
    if library is None:
        yield Finding(
            "note", "No kernel library is found: ONNX Runtime runs bodies.", f"Build one: {kernel_library.BUILD}"
        )
    elif library.problem:
        yield Finding("broken", library.problem, again)
    elif not library.sha256:
        yield Finding("note", f"{library.path} has no record: it cannot be checked for damage.", again)
    elif library.version != __version__:
        yield Finding(
            "warning", f"{library.path} was built by onnx-fuse {library.version}, this is {__version__}.", again
        )
    elif not library.advised:
        yield Finding(
            "note",
            f"{library.path} has only {library.instructions} kernels for this machine: bodies are faster, and run.",
            "Use a machine with AVX2, or force the kernels with --library.",
        )


def _kernels(library: PluginLibrary, gpu: Gpu) -> Iterator[Finding]:
    """Whether a library has kernels for a GPU: machine code of its own, of an older minor version, or PTX."""
    number = gpu.capability
    if number < aot.PTX_ARCHITECTURE:
        yield Finding(
            "broken",
            f"{gpu.name} is sm_{number}; the plugins need sm_{aot.PTX_ARCHITECTURE} or later.",
            "Parse and build with --no-plugins, which uses the bodies.",
        )
        return
    held = plugin_library.of_architectures(library.architectures)
    runs = held.runs_on(number)
    if runs == "machine code":
        return
    if runs == "PTX":
        yield Finding(
            "warning",
            f"{library.path} has no machine code for {gpu.name} (sm_{number}): the driver translates PTX of "
            f"sm_{aot.PTX_ARCHITECTURE} at the first launch, which is slower code.",
            "Build it for this GPU: onnx-fuse plugins build"
            + (f" --arch {number}" if number in aot.ARCHITECTURES else ", with an onnx-fuse that knows it"),
        )
    else:
        yield Finding(
            "broken",
            f"{library.path} has {held}, and nothing for {gpu.name} (sm_{number}).",
            "Build it for this GPU: onnx-fuse plugins build",
        )


def _plugin_creators(facts: Facts) -> Iterator[Finding]:
    loaded = [library for library in facts.libraries if not library.problem]
    if not loaded or not facts.tensorrt:
        return
    known = {item.name: set(item.fields) for item in facts.creators if item.namespace == DOMAIN}
    build = "Build the library of this version: onnx-fuse plugins build"
    if absent := [name for name in facts.operators if name not in known]:
        yield Finding("broken", f"A library was loaded, but no plugin is registered for {', '.join(absent)}.", build)
    for name, attributes in facts.operators.items():
        if missing := [item for item in attributes if item not in known.get(name, attributes)]:
            yield Finding(
                "broken", f"The plugin {name} does not take {', '.join(missing)}, which TensorRT then drops.", build
            )


def _driver(facts: Facts) -> Iterator[Finding]:
    if facts.driver is None or facts.driver_problem or not facts.gpus:
        what = facts.driver_problem or "the driver shows no GPU"
        has_driver = facts.driver is not None
        yield Finding(
            "broken" if has_driver and facts.driver_problem else "note",
            f"No GPU can be used: {what}. Fusing, verifying, parsing and building for a named GPU work without.",
            "Check nvidia-smi, and in a container docker's --gpus all."
            if has_driver
            else "To run engines, use a machine with a GPU.",
        )
        return
    for package, major in (("cu12", 12), ("cu13", 13)):
        name = f"{facts.tensorrt.replace('_', '-')}-{package}"
        if name in facts.packages and facts.driver[0] < major:
            yield Finding(
                "broken",
                f"{name} needs a driver for CUDA {major}, this one is for {_dotted(facts.driver)}.",
                "Upgrade the driver, or install the TensorRT packages for the older CUDA.",
            )
    if facts.ptxas is not None and facts.ptxas[0] > facts.driver[0]:
        yield Finding(
            "warning",
            f"triton compiles with CUDA {_dotted(facts.ptxas)}, the driver is for {_dotted(facts.driver)}: it may refuse "
            "plugins that are built here.",
            "Upgrade the driver, or build the plugins with an older triton.",
        )
    if "cuda-python" not in facts.packages:
        yield Finding(
            "note",
            "cuda-python is not installed: engines cannot be run.",
            f"Install it: {installation.add_extra('serve')}",
        )


def _cache(facts: Facts) -> Iterator[Finding]:
    folder, writable = facts.cache
    if not writable:
        yield Finding(
            "warning",
            f"{folder} cannot be written: plugins cannot be built there.",
            "Set XDG_CACHE_HOME to a folder of yours.",
        )


_CHECKS: tuple[Check, ...] = (
    _tensorrt_module,
    _imported_too_early,
    _opsets,
    _surgeon,
    _plugin_libraries,
    _kernel_library_found,
    _plugin_creators,
    _driver,
    _cache,
)


def to_dict(facts: Facts, findings: Iterable[Finding]) -> dict[str, Any]:
    """JSON-ready data."""
    found = [asdict(finding) for finding in findings]
    return {"ok": all(item["level"] != "broken" for item in found), "findings": found, "facts": asdict(facts)}
