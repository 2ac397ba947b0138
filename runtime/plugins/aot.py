"""Compiles Triton kernels ahead of time, for GPUs that need not be there, and writes them as sources of the plugin library."""

from __future__ import annotations

import contextlib
import hashlib
import importlib
import importlib.util
import io
import multiprocessing
import os
import re
import sys
import warnings
import zlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from types import ModuleType
from typing import Any

from onnx_fuse import installation
from onnx_fuse.errors import UsageError
from onnx_fuse.plugin_csrc.kernels import manifest
from onnx_fuse.plugin_csrc.kernels.manifest import Variant
from onnx_fuse.versions import __version__

ARCHITECTURES = manifest.ARCHITECTURES
PTX_ARCHITECTURE = 80
"""The oldest of them, whose PTX later GPUs without machine code of their own translate."""

EXACT = frozenset({90, 100, 120})
# Triton compiles these for sm_90a, sm_100a and sm_120a, whose code runs on no other chip.
_SHARED_LIMIT_KB = {80: 163, 86: 99, 89: 99, 90: 227, 100: 227, 120: 99}
_LETTERS = {"i32": "i", "i64": "l", "fp32": "f"}
_HIDDEN = "pp"
# What Triton adds to a kernel's arguments, and plugin_csrc/base/kernels.cpp passes: pointers to two kinds of scratch memory.
_PARAMETER_BITS = {"p": 64, "i": 32, "l": 64, "f": 32, "t": 8}
_MAPPED_BYTES = {"fp16": 2, "bf16": 2}
_SWIZZLE_128 = 3  # CU_TENSOR_MAP_SWIZZLE_128B
_TENSOR_MAP = re.compile(r"tensordesc<(\w+)\[(\d+),(\d+)\]>")
ALIGNMENT = 16
"""Bytes that pointers are a multiple of, where `Variant.aligned` says so."""


@dataclass(frozen=True)
class Image:
    """A kernel compiled for one architecture.

    Attributes:
        architecture: compute capability, 90 for sm_90.
        ptx: PTX rather than machine code.
        symbol: the function's name in it.
        threads: threads of a block.
        shared: bytes of shared memory of a block.
        size: bytes before packing.
        packed: the cubin or PTX, packed with zlib.
    """

    architecture: int
    ptx: bool
    symbol: str
    threads: int
    shared: int
    size: int
    packed: bytes


@dataclass(frozen=True)
class Kernel:
    """A variant with its images. `signature` has one letter for each run-time argument (p, i, l, f, t); `alignment` is what each
    pointer has to be a multiple of, in bytes, or 1 where its element type says it."""

    name: str
    signature: str
    constants: Mapping[str, int]
    images: tuple[Image, ...]
    alignment: int = ALIGNMENT


def kernel_modules() -> list[str]:
    """Names of the modules that hold the kernels of onnx-fuse's own operators.

    Raises:
        UsageError: triton is not installed.
    """
    require_triton()
    from onnx_fuse.plugin_csrc.operators import catalogue

    return [module.__name__ for module in catalogue.MODULES]


def require_triton() -> None:
    installation.require("triton", extra="kernels", purpose="compile kernels")


def compile_kernels(
    modules: Sequence[str],
    architectures: Sequence[int] = ARCHITECTURES,
    *,
    jobs: int | None = None,
    progress: Callable[[str], None] | None = None,
) -> list[Kernel]:
    """Compiles every variant of the modules (names, or paths of .py files) for every architecture.

    Raises:
        UsageError: as `compile_variants`.
    """
    require_triton()
    wanted = [(module, variant) for module in modules for variant in variants(module)]
    return compile_variants(wanted, architectures, jobs=jobs, progress=progress)


def compile_variants(
    wanted: Sequence[tuple[str, Variant]],
    architectures: Sequence[int] = ARCHITECTURES,
    *,
    jobs: int | None = None,
    progress: Callable[[str], None] | None = None,
) -> list[Kernel]:
    """Compiles variants, each of a function at the top of a module (its name, or the path of a .py file), without those that are
    for none of the architectures.

    Triton's own cache (TRITON_CACHE_DIR) makes it quick when little has changed.

    Raises:
        UsageError: triton is not installed, an architecture is not known, or a kernel does not compile or needs more than the
            GPU has.
    """
    unknown = sorted(set(architectures) - set(ARCHITECTURES))
    if unknown:
        raise UsageError(
            f"Kernels cannot be compiled for {', '.join(f'sm_{item}' for item in unknown)}.",
            f"Choose among {', '.join(str(item) for item in ARCHITECTURES)}.",
        )
    require_triton()
    tasks = [
        (module, item.function.__name__, replace(item, function=None), chosen)
        for module, item in wanted
        if (chosen := tuple(each for each in architectures if each in item.architectures))
    ]
    kernels: list[Kernel] = []
    # Whether Triton interprets or compiles is settled when a kernel is defined: compiling has processes of its own.
    context = multiprocessing.get_context("spawn")
    with _environment(), ProcessPoolExecutor(jobs or os.cpu_count() or 1, mp_context=context) as pool:
        for number, kernel in enumerate(pool.map(_compiled, tasks), 1):
            if isinstance(kernel, str):
                pool.shutdown(wait=False, cancel_futures=True)
                raise UsageError(kernel, "Change the kernel or its variants in the file that is named.")
            kernels.append(kernel)
            if progress is not None:
                progress(f"{number}/{len(tasks)} {kernel.name}")
    return kernels


def loaded(name: str) -> ModuleType:
    """A module by its name, or by the path of a .py file, which is run, with its folder to import from."""
    if not name.endswith(".py"):
        return importlib.import_module(name)
    path = Path(name).resolve()
    place = zlib.crc32(str(path).encode())
    spec = importlib.util.spec_from_file_location(f"onnx_fuse_kernels_{path.stem}_{place:08x}", path)
    if spec is None or spec.loader is None or not path.is_file():
        raise UsageError(f"{name} is no Python file.", "Give a file with Triton kernels and a function `variants()`.")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    sys.path.insert(0, str(path.parent))
    try:
        spec.loader.exec_module(module)
    finally:
        sys.path.remove(str(path.parent))
    return module


@contextlib.contextmanager
def _environment() -> Any:
    """What the compiling processes inherit: no interpreter, no line tables, and the rounding that the kernels were tested with."""
    wanted = {"TRITON_DISABLE_LINE_INFO": "1", "TRITON_DEFAULT_FP_FUSION": "1", "TRITON_INTERPRET": "0"}
    before = {name: os.environ.get(name) for name in wanted}
    os.environ.update(wanted)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


def _compiled(task: tuple[str, str, Variant, tuple[int, ...]]) -> Kernel | str:
    """The kernel, or the sentence that says why there is none."""
    module, function, variant, architectures = task
    variant = replace(variant, function=getattr(loaded(module), function))
    images: list[Image] = []
    for architecture in architectures:
        try:
            with warnings.catch_warnings(), contextlib.redirect_stderr(io.StringIO()):
                warnings.simplefilter("ignore")
                images.extend(_images(variant, architecture, architectures))
        except Exception as error:
            text = " ".join(str(error).split())[:500]
            return f"The kernel {variant.name} of {module} does not compile for sm_{architecture}: {type(error).__name__}: {text}"
    return Kernel(variant.name, letters(variant), numbers(variant), tuple(images), alignment(variant))


def letters(variant: Variant) -> str:
    """One letter for each run-time argument, as `Kernel.signature`; a tensor map has its sizes and strides behind it."""
    kinds = variant.signature.values()
    return "".join(
        "p" if kind.startswith("*") else "tiill" if _TENSOR_MAP.fullmatch(kind) else _LETTERS[kind] for kind in kinds
    )


def alignment(variant: Variant) -> int:
    """What each pointer has to be a multiple of, as `Kernel.alignment`."""
    return ALIGNMENT if variant.aligned else 1


def numbers(variant: Variant) -> dict[str, int]:
    """The constants of a variant that are integers, which a plugin can read."""
    return {name: int(value) for name, value in variant.constants.items() if isinstance(value, int)}


def variants(module: str) -> list[Variant]:
    """The variants that a module (its name, or the path of a .py file) asks for, each once; none where it only shares kernels of
    others."""
    make = getattr(loaded(module), "variants", None)
    return [] if make is None else list({variant.name: variant for variant in make()}.values())


def _images(variant: Variant, architecture: int, architectures: Sequence[int]) -> Iterable[Image]:
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    order = {name: index for index, name in enumerate(variant.function.arg_names)}
    signature = {name: variant.signature.get(name, "constexpr") for name in order}
    pointers = [name for name, kind in variant.signature.items() if variant.aligned and kind.startswith("*")]
    aligned = [*pointers, *variant.divisible]
    source = ASTSource(
        variant.function,
        signature,
        dict(variant.constants),
        {(order[name],): [["tt.divisibility", ALIGNMENT]] for name in aligned},
    )
    options = {"num_warps": variant.num_warps, "num_stages": variant.num_stages, "enable_fp_fusion": True}
    made_for = manifest.SAME_PTX.get(architecture, architecture)
    made_for = made_for if made_for in architectures else architecture
    result = triton.compile(source, target=GPUTarget("cuda", made_for, 32), options=options)
    found = result.metadata
    limit = _SHARED_LIMIT_KB[architecture] * 1024
    if found.shared > limit:
        raise ValueError(f"it needs {found.shared} bytes of shared memory, the GPU has {limit}")
    if found.global_scratch_size or found.profile_scratch_size:
        raise ValueError("it needs scratch memory, which a plugin does not have")
    ptx = result.asm["ptx"]
    check_parameters(ptx, letters(variant))
    check_tensor_maps(found.tensordesc_meta, variant)
    cubin = result.asm["cubin"] if made_for == architecture else _assembled(ptx, architecture, options)
    yield _image(found, architecture, cubin)
    if architecture == PTX_ARCHITECTURE:
        yield _image(found, architecture, ptx.encode(), ptx=True)


def check_parameters(ptx: str, signature: str) -> None:
    """Holds what the compiled kernel takes against what the plugins will pass: another version of Triton may add to it.

    Raises:
        ValueError: they differ.
    """
    entry = re.search(r"\.entry\s+[\w$]+\s*\((.*?)\)", ptx, re.DOTALL)
    found = (
        [int(bits) for bits in re.findall(r"\.param\s+(?:\.align\s+\d+\s+)?\.[bfsu](\d+)", entry[1])] if entry else []
    )
    if found != [_PARAMETER_BITS[letter] for letter in signature + _HIDDEN]:
        raise ValueError(
            f"it takes {len(found)} parameters of {', '.join(map(str, found))} bits, and plugins pass {len(signature)} of "
            f"({signature}) and {len(_HIDDEN)} hidden ones; install the version of triton that pyproject.toml names"
        )


def check_tensor_maps(found: Sequence[Mapping[str, Any]], variant: Variant) -> None:
    """Holds the tensor maps that the compiled kernel expects against those that the plugins make: boxes of 128 bytes of each row of
    a block, swizzled by as many.

    Raises:
        ValueError: they differ.
    """
    for kind in variant.signature.values():
        if described := _TENSOR_MAP.fullmatch(kind):
            size = _MAPPED_BYTES[described[1]]
            wanted = {"swizzle": _SWIZZLE_128, "elem_size": size, "block_size": [int(described[2]), 128 // size]}
            made, *found = found
            if any(made[name] != value for name, value in wanted.items()):
                raise ValueError(f"it takes a tensor map of {made}, and plugins pass one of {wanted}")


def _image(found: Any, architecture: int, data: bytes, ptx: bool = False) -> Image:
    return Image(architecture, ptx, found.name, 32 * found.num_warps, found.shared, len(data), zlib.compress(data))


def _assembled(ptx: str, architecture: int, options: Mapping[str, Any]) -> bytes:
    """Machine code of PTX for an older architecture, from Triton's ptxas or its cache."""
    from triton.backends.compiler import GPUTarget, Language
    from triton.compiler import make_backend
    from triton.runtime.cache import get_cache_manager

    backend = make_backend(GPUTarget("cuda", architecture, 32))
    cache = get_cache_manager(hashlib.sha256(f"{backend.hash()} {options} {ptx}".encode()).hexdigest())
    path = cache.get_file("assembled.cubin")
    if path is not None:
        return Path(path).read_bytes()
    stages: dict[str, Callable[[str, dict[str, Any]], bytes]] = {}
    backend.add_stages(stages, backend.parse_options(dict(options)), Language.TRITON)
    cubin = stages["cubin"](ptx, {})
    cache.put(cubin, "assembled.cubin")
    return cubin


def write_sources(kernels: Sequence[Kernel], folder: Path) -> None:
    """Writes kernels.bin (all images), kernels.S (which includes it) and kernels.cpp (the table); files that are right stay."""
    blob = bytearray()
    places: dict[bytes, int] = {}
    lines = ['#include "base/kernels.h"', "", "namespace {", ""]
    rows = []
    for number, kernel in enumerate(kernels):
        constants = [f'{{"{name}", {value}}}' for name, value in kernel.constants.items()] or ["{nullptr, 0}"]
        lines.append(f"gr::KernelConstant const constants{number}[] = {{{', '.join(constants)}}};")
        images = []
        for image in kernel.images:
            flags = [str(image.architecture in EXACT and not image.ptx).lower(), str(image.ptx).lower()]
            if image.packed not in places:
                places[image.packed] = len(blob)
                blob += image.packed
            numbers = [image.threads, image.shared, places[image.packed], len(image.packed), image.size]
            images.append(
                f'{{"{image.symbol}", {image.architecture}, {", ".join(flags)}, {", ".join(map(str, numbers))}}}'
            )
        lines.append(f"gr::KernelImage const images{number}[] = {{{', '.join(images)}}};")
        rows.append(
            f'    {{"{kernel.name}", "{kernel.signature}", constants{number}, {len(kernel.constants)}, images{number}, '
            f"{len(kernel.images)}, {kernel.alignment}}},"
        )
    lines += ["", "}  // namespace", "", "extern gr::KernelVariant const gr_kernel_variants[];", ""]
    lines += ["gr::KernelVariant const gr_kernel_variants[] = {", *rows, "};"]
    lines += [
        "extern int32_t const gr_kernel_variant_count;",
        f"int32_t const gr_kernel_variant_count = {len(kernels)};",
        "",
    ]
    digest = hashlib.sha256("\n".join([__version__, *lines]).encode() + blob).hexdigest()
    lines += ["extern char const gr_kernel_digest[];", f'char const gr_kernel_digest[] = "{digest}";', ""]
    assembly = (
        '.section .rodata\n.global gr_kernel_blob\n.hidden gr_kernel_blob\ngr_kernel_blob:\n.incbin "kernels.bin"\n.byte 0\n'
        '.section .note.GNU-stack,"",@progbits\n'
    )
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in (
        ("kernels.cpp", "\n".join(lines).encode()),
        ("kernels.S", assembly.encode()),
        ("kernels.bin", bytes(blob)),
    ):
        path = folder / name
        if not path.is_file() or path.read_bytes() != content:
            path.write_bytes(content)
