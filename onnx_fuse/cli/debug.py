"""The commands that say what is wrong: `debug` with a fused model, `doctor` with an installation."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from onnx_fuse.cli.common import WITH_LIBRARY, open_console, require_readable, show_progress
from onnx_fuse.cli.paths import INPUT, MODEL, OUTPUT
from onnx_fuse.errors import VerificationError


def debug(
    original: Annotated[Path, MODEL] = typer.Argument(metavar="ORIGINAL", help="The model as it was."),
    fused: Annotated[Path, MODEL] = typer.Argument(metavar="FUSED", help="The model made from it."),
    inputs: Annotated[Path | None, INPUT] = typer.Option(
        None, metavar="X.npz", help="Inputs to compare on; random ones if not given."
    ),
    rtol: float | None = typer.Option(
        None, min=0.0, help="Difference allowed, relative to the largest magnitude of a value. [default: by its type]"
    ),
    every: bool = typer.Option(False, "--all", help="Show every value, not just fused ones and those that differ."),
    library: bool = typer.Option(
        False, WITH_LIBRARY, help="Run fused nodes of FUSED by the kernel library, not by their bodies."
    ),
    dump_network: Annotated[Path | None, OUTPUT] = typer.Option(
        None, metavar="F", help="Write TensorRT's network of FUSED to a file, as text."
    ),
    as_json: bool = typer.Option(False, "--json", help="Print JSON."),
) -> None:
    """Find the first value that differs, and its fusion."""
    for model in (original, fused):
        require_readable(model)
    from onnx_fuse.cli import render
    from onnx_fuse.passes.files import staging
    from onnx_fuse.runtime import debug as debugging

    if dump_network is not None:
        staging.check_output(dump_network)
        from onnx_fuse.runtime.tensorrt import network_text, parse

        with show_progress(False, f"parsing {fused.name}"):
            text = network_text.network_text(parse.parse_network(fused), fused)
        staging.write_file(dump_network, text.encode())
    with show_progress(False, f"running {original.name} and {fused.name}"):
        found = debugging.debug(original, fused, inputs=inputs, rtol=rtol, library=library)
    if as_json:
        typer.echo(json.dumps(found.to_dict(), indent=2))
    else:
        render.diagnosis(open_console(), found, every=every)
    if found.place is not None:
        raise VerificationError(f"{fused} does not compute what {original} computes.", found.place.remedy())
