"""Commands for a user's own kernels."""

from __future__ import annotations

from pathlib import Path

import typer

from onnx_fuse.cli.app import plugins_app
from onnx_fuse.cli.common import open_console, show_progress
from onnx_fuse.errors import UsageError, VerificationError


@plugins_app.command("check")
def check_kernels(
    folder: Path = typer.Argument(metavar="FOLDER", help="The folder with the kernels of your own."),
    sizes: list[str] = typer.Option(
        [], metavar="B=2,S=7", help="Sizes to check, instead of those that are drawn; may be repeated."
    ),
) -> None:
    """Run your own kernels in Triton's interpreter against the bodies of their operators; no GPU is needed."""
    chosen = [_sizes(item) for item in sizes]
    from onnx_fuse.cli import render
    from onnx_fuse.own_kernels import check as kernel_check

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
