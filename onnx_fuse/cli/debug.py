"""The commands that say what is wrong: `debug` with a fused model, `doctor` with an installation."""

from __future__ import annotations

import json
from pathlib import Path

import typer

from onnx_fuse.cli.app import app
from onnx_fuse.cli.common import open_console, require_readable, show_progress
from onnx_fuse.errors import VerificationError


@app.command()
def debug(
    original: Path = typer.Argument(metavar="ORIGINAL", help="The model as it was."),
    fused: Path = typer.Argument(metavar="FUSED", help="The model made from it."),
    inputs: Path | None = typer.Option(None, metavar="X.npz", help="Inputs to compare on; random ones if not given."),
    rtol: float | None = typer.Option(
        None, min=0.0, help="Difference allowed, relative to the largest magnitude of a value. [default: by its type]"
    ),
    every: bool = typer.Option(False, "--all", help="Show every value, not just fused ones and those that differ."),
    dump_network: Path | None = typer.Option(
        None, metavar="F", help="Write TensorRT's network of FUSED to a file, as text."
    ),
    as_json: bool = typer.Option(False, "--json", help="Print JSON."),
) -> None:
    """Find the first value that differs, and its fusion."""
    for model in (original, fused):
        require_readable(model)
    from onnx_fuse.cli import render
    from onnx_fuse.passes.files import staging as files
    from onnx_fuse.runtime import debug as debugging

    if dump_network is not None:
        files.check_output(dump_network)
        from onnx_fuse.runtime.tensorrt import network_text as network
        from onnx_fuse.runtime.tensorrt import parse

        with show_progress(False, f"parsing {fused.name}"):
            text = network.network_text(parse.parse_network(fused), fused)
        files.write_file(dump_network, text.encode())
    with show_progress(False, f"running {original.name} and {fused.name}"):
        found = debugging.debug(original, fused, inputs=inputs, rtol=rtol)
    if as_json:
        typer.echo(json.dumps(found.to_dict(), indent=2))
    else:
        render.diagnosis(open_console(), found, every=every)
    if found.place is not None:
        raise VerificationError(f"{fused} does not compute what {original} computes.", found.place.remedy())


@app.command()
def doctor(as_json: bool = typer.Option(False, "--json", help="Print JSON.")) -> None:
    """Check the installation: versions, libraries, GPU, driver."""
    from onnx_fuse.cli import render
    from onnx_fuse.runtime import doctor as checks

    with show_progress(False, "looking around"):
        facts = checks.gather()
        findings = checks.examine(facts)
    if as_json:
        typer.echo(json.dumps(checks.to_dict(facts, findings), indent=2))
    else:
        render.health(open_console(), facts, findings)
    broken = sum(item.level == "broken" for item in findings)
    if broken:
        raise VerificationError(
            f"{render.counted(broken, 'thing')} in this installation {'is' if broken == 1 else 'are'} broken.",
            "Do what is said with each, then run `onnx-fuse doctor` again.",
        )
