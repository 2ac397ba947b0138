"""`onnx-fuse fuse`, `explain` and `list`: what fuses, what would, and what there is to fuse."""

from __future__ import annotations

import os
import re
import time
from collections.abc import Sequence
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from onnx_fuse.cli.common import (
    VERIFY_TIMEOUT,
    Select,
    counts,
    fusion_names,
    open_console,
    require_model,
    show_progress,
    split_names,
)
from onnx_fuse.cli.paths import INPUT, LEARNED, MODEL, OUTPUT, REPORT
from onnx_fuse.errors import OnnxFuseError, UsageError

if TYPE_CHECKING:
    from onnx_fuse.passes.report import Report


_CODE = re.compile(r"OF\d{3}", re.IGNORECASE)


class Attention(str, Enum):
    """What softmax attention of a large hidden size becomes."""

    fused = "fused"
    native = "native"


class Functions(str, Enum):
    """What becomes of the function bodies of fused operators."""

    keep = "keep"
    inline = "inline"
    none = "none"


class ExternalData(str, Enum):
    """What becomes of the model's data files."""

    keep = "keep"
    copy = "copy"


def fuse(
    model: Annotated[Path, MODEL] = typer.Argument(metavar="MODEL", help="The ONNX model."),
    out: Annotated[Path, OUTPUT] = typer.Option(..., "-o", "--output", metavar="OUT", help="The file to write."),
    fusions: Annotated[str, LEARNED] = typer.Option(
        "", metavar="NAME,..", help="Apply only these fusions.", autocompletion=fusion_names
    ),
    enable: Annotated[list[str], LEARNED] = typer.Option(
        [], metavar="NAME", help="Apply an opt-in fusion too; may be repeated.", autocompletion=fusion_names
    ),
    disable: list[str] = typer.Option(
        [], metavar="NAME", help="Leave a fusion out; may be repeated.", autocompletion=fusion_names
    ),
    learned: Annotated[list[Path], MODEL] = typer.Option(
        [], "--with", metavar="F.onnx", help="Apply a learned fusion; may be repeated."
    ),
    require: list[str] = typer.Option(
        [], metavar="NAME[=N]", help="Fail (3) unless it fused N times (once); any: whatever fused. May be repeated."
    ),
    select: Select = typer.Option(Select.all, help="Fuse all matches, or those predicted or measured to pay."),
    sizes: list[str] = typer.Option([], metavar="NAME=N", help="A dimension's size, for --select; may be repeated."),
    device: str | None = typer.Option(None, metavar="GPU", help="GPU to predict for; cpu to time ONNX Runtime."),
    attention: Attention = typer.Option(
        Attention.fused, help="native: large softmax attention becomes ONNX's Attention, TensorRT's own layer."
    ),
    functions: Functions = typer.Option(Functions.keep, help="Function bodies of the fused operators."),
    simplify: bool = typer.Option(False, "--simplify", help="Also write the canonical form of what did not fuse."),
    no_verify: bool = typer.Option(False, "--no-verify", help="Do not compare with the original in ONNX Runtime."),
    inputs: Annotated[Path | None, INPUT] = typer.Option(
        None, metavar="X.npz", help="Inputs to verify with, before random ones."
    ),
    verify_timeout: float = typer.Option(
        VERIFY_TIMEOUT, min=0.0, metavar="SECONDS", help="Stop comparing after so long, and say what was compared."
    ),
    report: Annotated[str | None, REPORT] = typer.Option(
        None, metavar="R.json", help="Write a report: JSON, or a page if it ends in .html; - for stdout."
    ),
    external_data: ExternalData | None = typer.Option(
        None, help="Keep data files in place, or copy them beside OUT. [default: by the folder of OUT]"
    ),
    quiet: bool = typer.Option(False, "--quiet", help="Print nothing on success."),
    verbose: bool = typer.Option(False, "-v", help="Print the passes; a traceback with errors."),
) -> None:
    """Fuse a model and write the result."""
    start = time.perf_counter()
    only, required = split_names([fusions]), _requirements(require)
    given_sizes = counts("--sizes", sizes, "batch=8")
    _check_paths(model, out, report, inputs, external_data)
    import onnx_fuse
    from onnx_fuse.cli import render

    # With the report on stdout, the text goes where it does not get in the way of a reading program.
    console = open_console(stderr=report == "-")
    try:
        with show_progress(quiet, f"fusing {model.name}") as progress:
            result = onnx_fuse.fuse(
                model,
                fusions=only or None,
                enable=(*split_names(enable), *learned),
                disable=split_names(disable),
                require=required or None,
                select=select.value,
                sizes=given_sizes or None,
                device=device,
                attention=attention.value,
                functions=functions.value,
                simplify=simplify,
                verify=not no_verify,
                inputs=inputs,
                verify_timeout=verify_timeout,
                progress=progress,
            )
            progress(f"writing {out.name}")
            result.save(out, external_data=external_data.value if external_data else "auto")
    except OnnxFuseError as error:
        _write_report(report, error.report)
        raise
    _write_report(report, result.report)
    if quiet:
        return
    render.warnings(open_console(stderr=True), result.report)
    if verbose:
        render.passes(console, result.report)
    render.fuse_result(console, result.report, str(model), str(out), time.perf_counter() - start)


def explain(
    model: Annotated[Path | None, MODEL] = typer.Argument(
        None, metavar="MODEL", help="The ONNX model; or the code of a refusal, such as OF201."
    ),
    pattern: str | None = typer.Option(None, metavar="NAME", help="Only this fusion.", autocompletion=fusion_names),
    at: str | None = typer.Option(None, metavar="NODE", help="All about one node, given by its name or an output."),
    learned: Annotated[list[Path], MODEL] = typer.Option(
        [], "--with", metavar="F.onnx", help="Try a learned fusion; may be repeated."
    ),
    enable: Annotated[list[str], LEARNED] = typer.Option(
        [], metavar="NAME", help="Try an opt-in fusion too; may be repeated.", autocompletion=fusion_names
    ),
    as_json: bool = typer.Option(False, "--json", help="Print JSON: the report of a run that rewrites nothing."),
    codes: bool = typer.Option(False, "--codes", help="List the codes of refusals, instead of explaining a model."),
) -> None:
    """Say what would fuse, and why the rest does not."""
    if codes or (model is not None and _CODE.fullmatch(model.name) and not model.exists()):
        _tell_codes("" if codes or model is None else model.name.upper())
        return
    if model is None:
        raise UsageError("Missing argument 'MODEL'.", "See onnx-fuse explain --help.")
    require_model(model)
    import onnx_fuse
    from onnx_fuse.cli import render

    with show_progress(False, f"explaining {model.name}"):
        report = onnx_fuse.explain(model, pattern=pattern, at=at, enable=(*split_names(enable), *learned))
    if as_json:
        typer.echo(report.to_json())
        return
    render.warnings(open_console(stderr=True), report)
    render.explanation(open_console(), report, at=at, pattern=pattern)


def _tell_codes(code: str) -> None:
    from onnx_fuse.cli import render
    from onnx_fuse.passes.refusals import BY_CODE

    if not code:
        render.codes(open_console())
    elif code in BY_CODE:
        render.code(open_console(), BY_CODE[code])
    else:
        raise UsageError(f"There is no code {code}.", "`onnx-fuse explain --codes` lists them.")


def list_fusions() -> None:
    """List the fusions, what they match, their operators."""
    import onnx_fuse
    from onnx_fuse.cli import render

    render.fusion_list(open_console(), onnx_fuse.fusions())


def _requirements(values: Sequence[str]) -> dict[str, int]:
    named = [value if "=" in value else f"{value}=1" for value in split_names(values)]
    return counts("--require", named, "FusedSwish=4")


def _check_paths(
    model: Path, out: Path, report: str | None, inputs: Path | None, external_data: ExternalData | None
) -> None:
    """Finds in advance what would fail after minutes of work."""
    require_model(model)
    from onnx_fuse.passes.files import io, staging

    io.check_output(out)
    if report is not None and report != "-":
        io.check_output(report)
        # Data files are copied beside the output.
        staging.require_apart([("--report", report)], [out.parent / location for location in io.data_files(model)])
    if inputs is not None and not os.path.isfile(inputs):
        raise UsageError(f"{inputs} does not exist or is no file.", "Give an .npz file, written with numpy.savez.")
    if external_data is ExternalData.keep and model.parent.resolve() != out.parent.resolve():
        proto, _file = io.load_lazily(model)
        io.plan_copies(proto, out, model.parent, "keep")


def _write_report(target: str | None, report: Report | None) -> None:
    if target is None or report is None:
        return
    if target == "-":
        typer.echo(report.to_json())
        return
    from onnx_fuse.passes.files.staging import write_file

    if target.lower().endswith((".html", ".htm")):
        from onnx_fuse.cli.html_report import to_html

        text = to_html(report)
    else:
        text = report.to_json() + "\n"
    write_file(target, text.encode("utf-8", "backslashreplace"))
