"""`onnx-fuse doctor`: what is wrong with an installation."""

from __future__ import annotations

import json

import typer

from onnx_fuse.cli.common import open_console, show_progress
from onnx_fuse.errors import VerificationError


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
