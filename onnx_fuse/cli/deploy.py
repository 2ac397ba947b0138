"""The command `onnx-fuse deploy`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from onnx_fuse.cli.common import WITH_LIBRARY, open_console, show_progress
from onnx_fuse.cli.paths import ENGINE_OR_MODEL, LIBRARY, OUTPUT


def deploy(
    model: Annotated[Path, ENGINE_OR_MODEL] = typer.Argument(
        metavar="ENGINE_OR_MODEL", help="An engine of `build`, or an ONNX model."
    ),
    out: Annotated[Path, OUTPUT] = typer.Option(
        ..., "-o", "--output", metavar="REPO", help="The folder to write: a new one."
    ),
    name: str | None = typer.Option(None, metavar="NAME", help="Name of the model. [default: that of the file]"),
    max_batch_size: int | None = typer.Option(
        None, metavar="N", help="Most rows in a batch, 0 for none. [default: what the engine takes, or 32]"
    ),
    instances: int = typer.Option(1, metavar="N", help="Instances that run at a time, for each GPU if there are any."),
    batch_delay: int = typer.Option(100, metavar="US", help="Microseconds a request may wait to share a batch."),
    gpus: int | None = typer.Option(None, metavar="N", help="GPUs of a pod. [default: 1 for an engine, 0 for a model]"),
    server: str | None = typer.Option(None, metavar="RELEASE", help="Release of the server's image. [default: 26.07]"),
    image: str | None = typer.Option(None, metavar="IMAGE", help="Name of the built image. [default: NAME:1]"),
    plugins: Annotated[list[Path], LIBRARY] = typer.Option(
        [], metavar="LIB", help="Where a plugin library of the engine is now."
    ),
    library: bool | None = typer.Option(
        None,
        WITH_LIBRARY,
        help="Let the server run fused nodes of a model by the kernel library. [default: if there is one, on the CPU]",
        show_default=False,
    ),
    no_verify: bool = typer.Option(False, "--no-verify", help="Do not run the ONNX model, nor check its batches."),
) -> None:
    """Write what NVIDIA Triton Inference Server needs to serve it."""
    from onnx_fuse.cli.render import indented, say
    from onnx_fuse.runtime.serve import deploy as deployment

    with show_progress(False, f"deploying {model.name}"):
        done = deployment.deploy(
            model,
            out,
            name=name,
            max_batch_size=max_batch_size,
            instances=instances,
            batch_delay=batch_delay,
            gpus=gpus,
            server=server or deployment.SERVER,
            image=image,
            plugins=plugins,
            verify=not no_verify,
            library=library,
        )
    console = open_console()
    say(console, f"Wrote {done.folder}: {done.name}, by the server's {done.backend} backend.")
    for note in done.notes:
        indented(console, note, 2)
    say(console, "The server itself was not run. See docs/deployment.md for what is next.")
