"""`onnx-fuse build`: a TensorRT engine of a model."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from onnx_fuse.cli.common import Select, open_console, require_model, show_progress, split_names
from onnx_fuse.cli.paths import CONFIGURATION, LIBRARY, MODEL, NEW_ENGINE, OUTPUT, REPORT
from onnx_fuse.errors import UsageError

if TYPE_CHECKING:
    from rich.console import Console

    from onnx_fuse.runtime.builder import Built
    from onnx_fuse.runtime.tensorrt.config import EngineConfig


class Precision(str, Enum):
    """What the engine computes in."""

    fp32 = "fp32"
    fp16 = "fp16"
    bf16 = "bf16"
    int8 = "int8"
    fp8 = "fp8"


def build(
    model: Annotated[Path, MODEL] = typer.Argument(metavar="MODEL", help="The ONNX model, fused or not."),
    out: Annotated[Path, NEW_ENGINE] = typer.Option(
        ..., "-o", "--output", metavar="ENGINE", help="The engine to write."
    ),
    config: Annotated[Path | None, CONFIGURATION] = typer.Option(
        None, metavar="F.build.json", help="The build configuration of the export step; options given here come first."
    ),
    shapes: list[str] = typer.Option(
        [],
        metavar="NAME:MIN:OPT:MAX",
        help="Shapes of an input, such as ids:1x16:8x128:32x512; repeat for more profiles.",
    ),
    max_batch_size: int | None = typer.Option(
        None, min=1, metavar="N", help="Batches of 1 to N, where --shapes does not say."
    ),
    precision: Precision | None = typer.Option(None, help="What to compute in. [default: as the model]"),
    opt_level: int | None = typer.Option(None, min=0, max=5, help="0 builds fastest, 5 the fastest engine."),
    workspace: str | None = typer.Option(None, metavar="SIZE", help="Memory for intermediate values, such as 2G."),
    plugins: Annotated[list[Path], LIBRARY] = typer.Option(
        [], metavar="LIB", help="A plugin library to load instead of the one that is found; may be repeated."
    ),
    no_plugins: bool = typer.Option(False, "--no-plugins", help="Load no plugin library."),
    select: Select = typer.Option(Select.auto, help="Make plugins of all fused nodes, or of those that pay."),
    timing_cache: Annotated[Path | None, OUTPUT] = typer.Option(
        None, metavar="F", help="Keep TensorRT's measurements in this file."
    ),
    no_verify: bool = typer.Option(
        False, "--no-verify", help="Do not compare a converted model with the float32 model."
    ),
    target: list[str] = typer.Option([], metavar="SM120,..", help="Build ahead of time for these GPUs (tensorrt-rtx)."),
    report: Annotated[str | None, REPORT] = typer.Option(
        None, metavar="R.json", help="Write what was done as JSON; - for stdout."
    ),
    quiet: bool = typer.Option(False, "--quiet", help="Print nothing on success."),
    verbose: bool = typer.Option(False, "-v", help="Print TensorRT's log; a traceback with errors."),
) -> None:
    """Build a TensorRT engine, unless the one that is there is up to date."""
    require_model(model)
    from onnx_fuse.passes.files.staging import check_output, write_file
    from onnx_fuse.runtime.tensorrt.config import EngineConfig, read_shapes

    if plugins and no_plugins:
        raise UsageError("--plugins and --no-plugins exclude each other.", "Leave one of them out.")
    if report not in (None, "-"):
        check_output(str(report))
    chosen: dict[str, Any] = {
        "profiles": read_shapes(shapes),
        "max_batch_size": max_batch_size,
        "precision": precision and precision.value,
        "opt_level": opt_level,
        "workspace": workspace,
        "plugins": [] if no_plugins else plugins or None,
        "timing_cache": timing_cache,
        "targets": split_names(target),
        "select": select.value,
        "verify": not no_verify,
    }
    given = {name: value for name, value in chosen.items() if value not in (None, ())}
    settings = replace(EngineConfig.from_json(config) if config else EngineConfig(), **given)
    built = _build(model, out, settings, quiet, verbose)
    if report is not None:
        text = json.dumps(built.to_dict(), indent=2)
        if report == "-":
            typer.echo(text)
        else:
            write_file(report, (text + "\n").encode())
    if not quiet:
        _show(open_console(stderr=report == "-"), built, advise=not no_plugins)


def _build(model: Path, out: Path, settings: EngineConfig, quiet: bool, verbose: bool) -> Built:
    from onnx_fuse.cli.render import say
    from onnx_fuse.runtime import builder

    errors = open_console(stderr=True)
    with show_progress(quiet or verbose, f"building an engine of {model.name}") as progress:
        built = builder.build(
            model, out, settings, progress=progress, listener=(lambda line: say(errors, line)) if verbose else None
        )
    if not quiet:
        rebuilt = [f"{built.rebuilt} It was built again."] if built.rebuilt else []
        for warning in (*rebuilt, *built.warnings):
            say(errors, f"warning: {warning}", "yellow")
    return built


def _show(console: Console, built: Built, advise: bool) -> None:
    """What was built, for which shapes, how exact, which fused nodes are plugins and how the others can become some."""
    from onnx_fuse.cli.render import counted, indented, row, say, selection, size_text, table
    from onnx_fuse.runtime.plugins.plugin_library import how_to_get

    record = built.record
    say(console, f"{record.module} {record.version}, for {', '.join(record.targets) or 'the GPU of this machine'}")
    for sentence in built.assumed:
        indented(console, f"assumed: {sentence}", 2, "yellow")
    shapes = table("input", "type", *(["profile"] if len(record.profiles) > 1 else []), "min", "opt", "max")
    for number, profile in enumerate(record.profiles):
        for tensor in record.inputs:
            sizes = profile[tensor.name]
            which = [number] if len(record.profiles) > 1 else []
            row(shapes, tensor.name, tensor.dtype, *which, _shape(sizes.min), _shape(sizes.opt), _shape(sizes.max))
    console.print(shapes)
    console.print()
    if built.plugins or built.without_plugin:
        without = sum(len(nodes) for nodes in built.without_plugin.values())
        say(console, f"Fused nodes: {counted(len(built.plugins), 'plugin')}, {without} run as their bodies.")
    if built.selection is not None:
        selection(console, built.selection)
    for reason, nodes in built.without_plugin.items():
        indented(console, f"{counted(len(nodes), 'node')} without: {reason}", 2)
        indented(console, f"first at {nodes[0]}", 6, "dim")
    if advise and built.parsed is not None and built.parsed.missing:
        indented(console, how_to_get(built.parsed.missing), 2)
    _show_precision(console, built)
    size = size_text(built.engine.stat().st_size)
    done = "is up to date, nothing was built" if built.reused else "written"
    say(console, f"{built.engine} ({size}) {done}, {built.seconds:.1f} s.", "green")


def _show_precision(console: Console, built: Built) -> None:
    from onnx_fuse.cli.render import counted, indented, say

    if built.converted is None:
        return
    accuracy, (narrow, wide) = built.accuracy, built.converted
    say(console, f"Precision: {counted(narrow, 'node')} in {built.record.options['precision']}, {wide} in float32.")
    if accuracy is None or accuracy.skipped is not None:
        indented(console, f"Not compared with float32{f': {accuracy.skipped}' if accuracy else '.'}", 2, "yellow")
        return
    indented(
        console, f"Emulated in ONNX Runtime, largest differences from float32 in {counted(accuracy.cases, 'case')}:", 2
    )
    for name, difference in accuracy.relative.items():
        indented(console, f"{name}: {difference:.1e} of its largest magnitude", 6)


def _shape(sizes: Sequence[int]) -> str:
    return "x".join(map(str, sizes)) or "scalar"
