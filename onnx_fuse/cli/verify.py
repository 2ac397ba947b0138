"""`onnx-fuse verify`: two models compared."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from onnx_fuse.cli.common import VERIFY_TIMEOUT, WITH_LIBRARY, open_console, require_readable, show_progress
from onnx_fuse.cli.paths import INPUT, MODEL
from onnx_fuse.errors import VerificationError


def verify(
    original: Annotated[Path, MODEL] = typer.Argument(metavar="ORIGINAL", help="The model as it was."),
    fused: Annotated[Path, MODEL] = typer.Argument(metavar="FUSED", help="The model to compare with it."),
    inputs: Annotated[Path | None, INPUT] = typer.Option(
        None, metavar="X.npz", help="Inputs to compare on, before random ones."
    ),
    samples: int = typer.Option(0, min=0, metavar="N", help="Compare on N sets of random inputs at least."),
    rtol: float | None = typer.Option(
        None, min=0.0, help="Difference allowed, relative to the largest magnitude of an output. [default: by its type]"
    ),
    atol: float = typer.Option(0.0, min=0.0, help="Difference allowed whatever the magnitudes."),
    timeout: float = typer.Option(
        VERIFY_TIMEOUT,
        "--verify-timeout",
        min=0.0,
        metavar="SECONDS",
        help="Stop after so long, and say what was compared.",
    ),
    library: bool = typer.Option(
        False, WITH_LIBRARY, help="Run fused nodes of FUSED by the kernel library, not by their bodies."
    ),
    as_json: bool = typer.Option(False, "--json", help="Print JSON."),
) -> None:
    """Compare two models numerically in ONNX Runtime."""
    for model in (original, fused):
        require_readable(model)
    from onnx_fuse.cli import render
    from onnx_fuse.runtime.verify import verification

    with show_progress(False, f"running {original.name} and {fused.name}"):
        result = verification.verify(
            original, fused, inputs=inputs, samples=samples, rtol=rtol, atol=atol, timeout=timeout, library=library
        )
    if as_json:
        typer.echo(json.dumps(result.to_dict(), indent=2))
    else:
        render.verification(open_console(), result)
    # Whoever asks for a proof and gets none must not read success in the exit code.
    if result.skipped is not None:
        raise VerificationError("Nothing was compared.", "Run it on a larger machine.")
    if result.inconclusive:
        raise VerificationError(f"It is not proven that {fused} computes what {original} computes.", result.remedy)
    if not result.passed:
        raise VerificationError(f"{fused} does not compute what {original} computes.", result.remedy)
