"""`onnx-fuse inspect`: what is in a model file."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from onnx_fuse.cli.common import open_console
from onnx_fuse.cli.paths import MODEL


def inspect(
    model: Annotated[Path, MODEL] = typer.Argument(metavar="MODEL", help="The ONNX model."),
    as_json: bool = typer.Option(False, "--json", help="Print JSON."),
) -> None:
    """List inputs, outputs, operators, fused nodes, data files."""
    from onnx_fuse import inspect as inspection
    from onnx_fuse.cli import render

    found = inspection.inspect(model)
    if as_json:
        typer.echo(json.dumps(found.to_dict(), indent=2))
    else:
        render.inspection(open_console(), found)
