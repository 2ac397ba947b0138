"""`onnx-fuse plugins`: the libraries for TensorRT and ONNX Runtime, and a user's own kernels."""

from __future__ import annotations

from enum import Enum
from pathlib import Path
from typing import Annotated, Any

import typer

from onnx_fuse.cli.common import Command, open_console, show_progress
from onnx_fuse.cli.paths import KERNELS, NEW_LIBRARY, guarded
from onnx_fuse.errors import UsageError, VerificationError

app = typer.Typer(help="Build and find the libraries for TensorRT and ONNX Runtime.", no_args_is_help=True)


class For(str, Enum):
    """What a library is for."""

    tensorrt = "tensorrt"
    onnxruntime = "onnxruntime"
    all = "all"


@app.command("build", cls=Command)
@guarded
def build_plugins(
    target: For | None = typer.Option(
        None,
        "--for",
        help="What to build a library for. [default: all; tensorrt with -o or --from]",
        show_default=False,
    ),
    output: Annotated[Path | None, NEW_LIBRARY] = typer.Option(
        None, "-o", "--output", metavar="LIB", help="Where to put the library; in the user's cache if not given."
    ),
    architectures: list[int] = typer.Option(
        [], "--arch", metavar="SM", help="A GPU architecture, such as 90 for sm_90; may be repeated. All if not given."
    ),
    jobs: int | None = typer.Option(
        None, "-j", "--jobs", min=1, help="Processes at a time; one for each core if not given."
    ),
    folder: Annotated[Path | None, KERNELS] = typer.Option(
        None, "--from", metavar="FOLDER", help="Build a library of the kernels of your own in this folder."
    ),
) -> None:
    """Compile the kernel library for ONNX Runtime and the plugin library for TensorRT; no GPU is needed."""
    target = target or (For.all if folder is None and output is None else For.tensorrt)
    if folder is not None and target is not For.tensorrt:
        raise UsageError(f"Kernels of your own are for TensorRT, and --for says {target.value}.", "Leave --for out.")
    if output is not None and target is For.all:
        raise UsageError(
            "-o names one library, and two would be built.", "Say which: --for tensorrt or --for onnxruntime."
        )
    if target is not For.tensorrt:
        if architectures and target is For.onnxruntime:
            raise UsageError("--arch is for TensorRT, and --for says onnxruntime.", "Leave --arch out.")
        _build_for_onnxruntime(output, jobs)
    if target is not For.onnxruntime:
        _build_for_tensorrt(output, architectures, jobs, folder)


def _build_for_onnxruntime(output: Path | None, jobs: int | None) -> None:
    from onnx_fuse.runtime.onnxruntime import kernel_library
    from onnx_fuse.runtime.plugins import kernel_library_build

    with show_progress(False, "compiling the kernel library") as say:
        built = kernel_library_build.build(output, jobs=jobs, progress=say)
    held = kernel_library.contents(built.path)
    typer.echo(
        f"{built.path}: {len(held.operators)} operators for ONNX Runtime, {held.instructions} here, "
        f"{built.size / 1e6:.1f} MB, {built.seconds:.0f} s"
    )


def _build_for_tensorrt(output: Path | None, architectures: list[int], jobs: int | None, folder: Path | None) -> None:
    from onnx_fuse.runtime.plugins import aot, plugin_library

    options: dict[str, Any] = {"architectures": architectures or aot.ARCHITECTURES, "jobs": jobs}
    with show_progress(False, "compiling the kernels") as say:
        if folder is None:
            built = plugin_library.build(output, **options, progress=say)
        else:
            from onnx_fuse.own_kernels.library import build_library

            built = build_library(folder, output, **options, progress=say)
    chips = ", ".join(f"sm_{item}" for item in built.architectures)
    typer.echo(f"{built.path}: {built.variants} kernels for {chips}, {built.size / 1e6:.1f} MB, {built.seconds:.0f} s")
    for operator in built.operators:
        typer.echo(f"  {operator}")
    if folder is None:
        from onnx_fuse.plugin_csrc.kernels.pruning import PRUNED

        typer.echo("Left out, as the library is no better for them:")
        for entry in PRUNED:
            typer.echo(f"  {entry.names}, for which {entry.instead} runs: {entry.reason}")


@app.command("show", cls=Command)
@guarded
def show_plugins() -> None:
    """Show the libraries that would be loaded, and what is in them."""
    from onnx_fuse.runtime.onnxruntime import kernel_library
    from onnx_fuse.runtime.plugins import plugin_library

    kernels = kernel_library.find()
    if kernels is None:
        typer.echo(f"No kernel library is found: ONNX Runtime runs bodies. Build one with: {kernel_library.BUILD}")
    else:
        record = kernel_library.described(kernels)
        held = kernel_library.contents(kernels)
        facts = f"version {record.version}, sha256 {record.sha256}" if record else "no record"
        typer.echo(f"{kernels}: for ONNX Runtime, {held.instructions} here, {facts}")
        for name, takes in held.operators.items():
            typer.echo(f"  {name}: {', '.join(sorted(takes.types))}")
    found = plugin_library.find()
    if not found:
        typer.echo(
            "No plugin library is found: TensorRT gets bodies. Build one with: onnx-fuse plugins build --for tensorrt"
        )
    for path in found:
        library = plugin_library.described(path)
        facts = (
            f"{library.variants} kernels ({library.held}), version {library.version}, sha256 {library.sha256}"
            if library
            else "no record"
        )
        typer.echo(f"{path}: {facts}")
        for operator in library.operators if library else ():
            typer.echo(f"  {operator}")


@app.command("check", cls=Command)
@guarded
def check_kernels(
    folder: Annotated[Path, KERNELS] = typer.Argument(
        metavar="FOLDER", help="The folder with the kernels of your own."
    ),
    sizes: list[str] = typer.Option(
        [], metavar="B=2,S=7", help="Sizes to check, instead of those that are drawn; may be repeated."
    ),
) -> None:
    """Run your own kernels in Triton's interpreter against the bodies of their operators; no GPU is needed."""
    chosen = [_sizes(item) for item in sizes]
    from onnx_fuse.cli import render
    from onnx_fuse.own_kernels import kernel_check

    with show_progress(False, f"checking {folder}") as say:
        results = kernel_check.check(folder, chosen, progress=say)
    render.checked_kernels(open_console(), results)
    failed = [item for item in results if item.problem is not None]
    if failed:
        raise VerificationError(
            f"{failed[0].kernel} with {failed[0].told}: {failed[0].problem}.",
            f"{len(failed)} of {len(results)} runs failed; the body is what the operator was learned of.",
        )


def _sizes(text: str) -> dict[str, int]:
    pairs = [item.partition("=") for item in text.split(",")]
    if not all(name.strip() and number.strip().isascii() and number.strip().isdigit() for name, _, number in pairs):
        raise UsageError(f"--sizes {text!r} is not of the form NAME=N,NAME=N.", "For example: --sizes B=2,S=7")
    return {name.strip(): int(number) for name, _, number in pairs}
