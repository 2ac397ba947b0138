"""`onnx-fuse parse`: NVIDIA's parser, asked on the CPU."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from onnx_fuse.cli.common import open_console, require_readable, show_progress
from onnx_fuse.cli.paths import LIBRARY, MODEL
from onnx_fuse.errors import VerificationError


def parse(
    model: Annotated[Path, MODEL] = typer.Argument(metavar="MODEL", help="The ONNX model."),
    plugins: Annotated[list[Path], LIBRARY] = typer.Option(
        [], metavar="LIB", help="A plugin library to load instead of the one that is found; may be repeated."
    ),
    no_plugins: bool = typer.Option(False, "--no-plugins", help="Load no plugin library."),
) -> None:
    """Ask NVIDIA's parser (on the CPU) if it takes the model."""
    require_readable(model)
    from onnx_fuse.cli import render
    from onnx_fuse.runtime.plugins import plugin_library
    from onnx_fuse.runtime.tensorrt import parse as parsing

    with show_progress(False, f"parsing {model.name}"):
        result = parsing.parse(model, plugins=[] if no_plugins else plugins or None)
    console = open_console()
    render.parse_result(console, result)
    if not result.accepted and result.lacking:
        raise VerificationError(
            f"{result.module} does not accept {model}: it has no plugin for {', '.join(result.lacking)}, and the model no body.",
            plugin_library.how_to_get(result.lacking),
        )
    if result.missing and not no_plugins:
        render.indented(console, plugin_library.how_to_get(result.missing), 2)
    if not result.accepted:
        raise VerificationError(
            f"{result.module} does not accept {model}.",
            "See the errors by node; `onnx-fuse inspect` shows its operators.",
        )
