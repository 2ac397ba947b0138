"""`onnx-fuse learn`: a fusion from an example."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from onnx_fuse.cli.common import open_console, show_progress
from onnx_fuse.cli.paths import EXAMPLE, OUTPUT
from onnx_fuse.errors import UsageError


def learn(
    example: Annotated[str, EXAMPLE] = typer.Argument(
        metavar="EXAMPLE", help="module.py:Class, or an ONNX file with just the subgraph."
    ),
    out: Annotated[Path, OUTPUT] = typer.Option(..., "-o", "--output", metavar="OUT", help="The fusion to write."),
    op: str | None = typer.Option(None, metavar="NAME", help="Name of the operator. [default: by the example]"),
    inputs: str | None = typer.Option(
        None, metavar="TYPES", help='Inputs of the module: "float[B, S, 64] x, int64[B] lengths".'
    ),
    attribute: list[str] = typer.Option([], metavar="NAME=C", help="Constant C (value or name) becomes an attribute."),
    constant: list[str] = typer.Option([], "--input", metavar="NAME=C", help="Constant C becomes an input."),
    fixed: list[str] = typer.Option([], metavar="NAME", help="A parameter that keeps its value; may be repeated."),
    domain: str | None = typer.Option(None, metavar="D", help="Domain of the operator. [default: gr.ml.infra]"),
    plugin_namespace: str | None = typer.Option(None, metavar="NS", help="Namespace of the plugin. [default: domain]"),
    plugin_version: str = typer.Option("1", metavar="V", help="Version of the plugin."),
) -> None:
    """Learn a fusion from a PyTorch module or an ONNX subgraph."""
    from onnx_fuse import learning
    from onnx_fuse.cli import render
    from onnx_fuse.passes.files import io

    io.check_output(out)
    options: dict[str, Any] = {
        "attributes": _constants(attribute),
        "inputs": _constants(constant),
        "fixed": fixed,
        "domain": domain,
        "plugin_namespace": plugin_namespace,
        "plugin_version": plugin_version,
    }
    with show_progress(False, f"learning {example}"):
        fusion = learning.from_example(example, op, types=inputs, **options)
    fusion.save(out)
    render.learned(open_console(), fusion, str(out))


def _constants(values: Sequence[str]) -> dict[str, Any]:
    """NAME=0.5 or NAME=constant_1 as name -> number or name."""
    chosen: dict[str, Any] = {}
    for value in values:
        name, _, wanted = value.partition("=")
        if not name.strip() or not wanted.strip():
            raise UsageError(
                f"{value!r} is not of the form NAME=CONSTANT.", "For example: scale=0.125, or table=constant_2"
            )
        try:
            chosen[name.strip()] = float(wanted)
        except ValueError:
            chosen[name.strip()] = wanted.strip()
    return chosen
