"""`onnx-fuse verify`: two models compared."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from onnx_fuse.cli.common import open_console, require_readable, show_progress
from onnx_fuse.cli.paths import MODEL
from onnx_fuse.errors import VerificationError


def verify(
    original: Annotated[Path, MODEL] = typer.Argument(metavar="ORIGINAL", help="The model as it was."),
    fused: Annotated[Path, MODEL] = typer.Argument(metavar="FUSED", help="The model to compare with it."),
) -> None:
    """Compare two models numerically in ONNX Runtime."""
    for model in (original, fused):
        require_readable(model)
    from onnx_fuse.cli import render
    from onnx_fuse.runtime.verify import verification

    with show_progress(False, f"running {original.name} and {fused.name}"):
        result = verification.verify(original, fused)
    console, (verdict, *details) = open_console(), result.summary()
    render.say(console, verdict, "green" if result.passed else "bold red")
    for line in details:
        render.say_columns(console, f"  {render.visible(line)}")
    # Whoever asks for a proof and gets none must not read success in the exit code.
    if result.skipped is not None:
        raise VerificationError("Nothing was compared.", "Run it on a larger machine.")
    if result.inconclusive:
        raise VerificationError(f"It is not proven that {fused} computes what {original} computes.", result.remedy)
    if not result.passed:
        raise VerificationError(f"{fused} does not compute what {original} computes.", result.remedy)
