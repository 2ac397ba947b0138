"""The command `onnx-fuse`: a thin layer over the Python API that turns results into text and errors into exit codes.

Heavy modules are imported inside the commands, so that `--help` and a mistyped option answer at once.
"""

from __future__ import annotations

import contextlib
import json
import signal
import sys
import time
import traceback
from collections.abc import Sequence
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer
from typer.core import TyperGroup

from onnx_fuse.cli.common import Select, open_console, require_model, require_readable, show_progress, split_names
from onnx_fuse.errors import OnnxFuseError, UsageError, VerificationError

if TYPE_CHECKING:
    from onnx_fuse.passes.report import Report

INTERRUPTED = 130


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


class _Group(TyperGroup):
    """Reports every error in the same way: a line of cause, a line of remedy, an exit code; a traceback only with -v."""

    def main(self, args: Sequence[str] | None = None, *rest: Any, **extra: Any) -> Any:
        standalone, extra["standalone_mode"] = extra.get("standalone_mode", True), False
        if not standalone:
            return super().main(args, *rest, **extra)
        given = list(sys.argv[1:] if args is None else args)
        verbose = any(option in given for option in ("-v", "--verbose"))
        code: Any
        try:
            code = super().main(args, *rest, **extra)
        except (KeyboardInterrupt, typer.Abort):
            code = INTERRUPTED
        except Exception as error:
            code = _report_error(error, verbose)
        sys.exit(code if isinstance(code, int) else 0)


app = typer.Typer(
    cls=_Group,
    name="onnx-fuse",
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
    help="Fuses the subgraphs of an ONNX model into custom operators, proves the result equal, and says why the rest did "
    "not fuse.",
    epilog="Exit codes: 0 done, 1 internal error, 2 wrong usage, 3 a --require is not met, 4 verification failed or not "
    "accepted, 5 model unreadable or invalid, 6 output not writable, 7 an example cannot be learned.",
)


def main() -> None:
    """The console script."""
    # A killed run must not leave temporary files: SystemExit unwinds the stack, the default action does not.
    with contextlib.suppress(ValueError, AttributeError):
        signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(AttributeError, ValueError):
            stream.reconfigure(errors="backslashreplace")  # type: ignore[union-attr]  # names may not fit the encoding
    app(prog_name="onnx-fuse")


@app.callback(invoke_without_command=True)
def _root(
    context: typer.Context,
    version: bool = typer.Option(False, "--version", help="Print the version and exit."),
    verbose: bool = typer.Option(False, "-v", "--verbose", help="Show a traceback with errors."),
) -> None:
    if version:
        import onnx_fuse

        typer.echo(f"onnx-fuse {onnx_fuse.__version__}")
        raise typer.Exit
    if context.invoked_subcommand is None:
        typer.echo(context.get_help())
        raise typer.Exit(UsageError.exit_code)


@app.command()
def fuse(
    model: Path = typer.Argument(metavar="MODEL", help="The ONNX model."),
    out: Path = typer.Option(..., "-o", "--output", metavar="OUT", help="The file to write."),
    fusions: str = typer.Option("", metavar="NAME,..", help="Apply only these fusions."),
    enable: list[str] = typer.Option([], metavar="NAME", help="Apply an opt-in fusion too; may be repeated."),
    disable: list[str] = typer.Option([], metavar="NAME", help="Leave a fusion out; may be repeated."),
    learned: list[Path] = typer.Option([], "--with", metavar="F.onnx", help="Apply a learned fusion; may be repeated."),
    require: list[str] = typer.Option([], metavar="NAME=N", help="Fail (3) unless it fused N times; may be repeated."),
    select: Select = typer.Option(Select.all, help="Fuse all matches, or those predicted or measured to pay."),
    sizes: list[str] = typer.Option([], metavar="NAME=N", help="A dimension's size, for --select; may be repeated."),
    device: str | None = typer.Option(None, metavar="GPU", help="GPU to predict for; cpu to time ONNX Runtime."),
    attention: Attention = typer.Option(
        Attention.fused, help="native: large softmax attention becomes ONNX's Attention, TensorRT's own layer."
    ),
    functions: Functions = typer.Option(Functions.keep, help="Function bodies of the fused operators."),
    simplify: bool = typer.Option(False, "--simplify", help="Also write the canonical form of what did not fuse."),
    no_verify: bool = typer.Option(False, "--no-verify", help="Do not compare with the original in ONNX Runtime."),
    inputs: Path | None = typer.Option(None, metavar="X.npz", help="Inputs to verify with, before random ones."),
    report: str | None = typer.Option(
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
    fusion_names, required = split_names([fusions]), _requirements(require)
    given_sizes = _counts("--sizes", sizes, "batch=8")
    _check_paths(model, out, report, inputs, external_data)
    import onnx_fuse
    from onnx_fuse.cli import render

    # With the report on stdout, the text goes where it does not get in the way of a reading program.
    console = open_console(stderr=report == "-")
    try:
        with show_progress(quiet, f"fusing {model.name}") as progress:
            result = onnx_fuse.fuse(
                model,
                fusions=fusion_names or None,
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
                progress=progress,
            )
            progress(f"writing {out.name}")
            result.save(out, external_data=external_data.value if external_data else "auto")
    except OnnxFuseError as error:
        _write_report(report, getattr(error, "report", None))
        raise
    _write_report(report, result.report)
    if quiet:
        return
    render.warnings(open_console(stderr=True), result.report)
    if verbose:
        render.passes(console, result.report)
    render.fuse_result(console, result.report, str(model), str(out), time.perf_counter() - start)


@app.command()
def explain(
    model: Path = typer.Argument(metavar="MODEL", help="The ONNX model."),
    pattern: str | None = typer.Option(None, metavar="NAME", help="Only this fusion."),
    at: str | None = typer.Option(None, metavar="NODE", help="All about one node, given by its name or an output."),
    learned: list[Path] = typer.Option([], "--with", metavar="F.onnx", help="Try a learned fusion; may be repeated."),
) -> None:
    """Say what would fuse, and why the rest does not."""
    require_model(model)
    import onnx_fuse
    from onnx_fuse.cli import render

    with show_progress(False, f"explaining {model.name}"):
        report = onnx_fuse.explain(model, pattern=pattern, at=at, enable=learned)
    render.warnings(open_console(stderr=True), report)
    render.explanation(open_console(), report, at=at, pattern=pattern)


@app.command()
def verify(
    original: Path = typer.Argument(metavar="ORIGINAL", help="The model as it was."),
    fused: Path = typer.Argument(metavar="FUSED", help="The model to compare with it."),
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


@app.command()
def inspect(
    model: Path = typer.Argument(metavar="MODEL", help="The ONNX model."),
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


@app.command()
def parse(
    model: Path = typer.Argument(metavar="MODEL", help="The ONNX model."),
    plugins: list[Path] = typer.Option(
        [], metavar="LIB", help="A plugin library to load instead of the one that is found; may be repeated."
    ),
    no_plugins: bool = typer.Option(False, "--no-plugins", help="Load no plugin library."),
) -> None:
    """Ask NVIDIA's parser (on the CPU) if it takes the model."""
    require_readable(model)
    from onnx_fuse.cli import render
    from onnx_fuse.runtime.plugins import library as libraries
    from onnx_fuse.runtime.tensorrt import parse as parsing

    with show_progress(False, f"parsing {model.name}"):
        result = parsing.parse(model, plugins=[] if no_plugins else plugins or None)
    console = open_console()
    render.parse_result(console, result)
    if not result.accepted and result.lacking:
        raise VerificationError(
            f"{result.module} does not accept {model}: it has no plugin for {', '.join(result.lacking)}, and the model no body.",
            libraries.how_to_get(result.lacking),
        )
    if result.missing and not no_plugins:
        render.indented(console, libraries.how_to_get(result.missing), 2)
    if not result.accepted:
        raise VerificationError(
            f"{result.module} does not accept {model}.",
            "See the errors by node; `onnx-fuse inspect` shows its operators.",
        )


plugins_app = typer.Typer(help="Build and find the TensorRT plugin library.", no_args_is_help=True)
app.add_typer(plugins_app, name="plugins")


@plugins_app.command("build")
def build_plugins(
    output: Path | None = typer.Option(
        None, "-o", "--output", metavar="LIB", help="Where to put the library; in the user's cache if not given."
    ),
    architectures: list[int] = typer.Option(
        [], "--arch", metavar="SM", help="A GPU architecture, such as 90 for sm_90; may be repeated. All if not given."
    ),
    jobs: int | None = typer.Option(
        None, "-j", "--jobs", min=1, help="Processes at a time; one for each core if not given."
    ),
    folder: Path | None = typer.Option(
        None, "--from", metavar="FOLDER", help="Build a library of the kernels of your own in this folder."
    ),
) -> None:
    """Compile the kernels and the plugin library; no GPU is needed."""
    from onnx_fuse.runtime.plugins import aot
    from onnx_fuse.runtime.plugins import library as plugins

    options: dict[str, Any] = {"architectures": architectures or aot.ARCHITECTURES, "jobs": jobs}
    with show_progress(False, "compiling the kernels") as say:
        if folder is None:
            built = plugins.build(output, **options, progress=say)
        else:
            from onnx_fuse.own_kernels import build as own_kernels

            built = own_kernels.build(folder, output, **options, progress=say)
    chips = ", ".join(f"sm_{item}" for item in built.architectures)
    typer.echo(f"{built.path}: {built.variants} kernels for {chips}, {built.size / 1e6:.1f} MB, {built.seconds:.0f} s")
    for operator in built.operators:
        typer.echo(f"  {operator}")


@plugins_app.command("show")
def show_plugins() -> None:
    """Show the plugin libraries that would be loaded."""
    from onnx_fuse.runtime.plugins import library as plugins

    found = plugins.find()
    if not found:
        typer.echo("No plugin library is found: bodies are inlined. Build one with: onnx-fuse plugins build")
    for path in found:
        library = plugins.described(path)
        facts = (
            f"{library.variants} kernels, version {library.version}, sha256 {library.sha256}"
            if library
            else "no record"
        )
        typer.echo(f"{path}: {facts}")
        for operator in library.operators if library else ():
            typer.echo(f"  {operator}")


@app.command()
def learn(
    example: str = typer.Argument(metavar="EXAMPLE", help="module.py:Class, or an ONNX file with just the subgraph."),
    out: Path = typer.Option(..., "-o", "--output", metavar="OUT", help="The fusion to write."),
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
    from onnx_fuse.cli import render
    from onnx_fuse.learning import learn as learning
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


@app.command("list")
def list_fusions() -> None:
    """List the fusions, what they match, their operators."""
    import onnx_fuse
    from onnx_fuse.cli import render

    render.fusion_list(open_console(), onnx_fuse.fusions())


def _report_error(error: Exception, verbose: bool) -> int:
    """Prints an error; gives the exit code."""
    format_message = getattr(error, "format_message", None)
    if isinstance(error, OnnxFuseError):
        code, cause, remedy = error.exit_code, error.cause, error.remedy
    elif callable(format_message):  # what typer raises for wrong options, in all its versions
        context = getattr(error, "ctx", None)
        path = context.command_path if context is not None else "onnx-fuse"
        code, cause, remedy = UsageError.exit_code, format_message().replace("Value error, ", ""), f"See {path} --help."
    else:
        code, cause = 1, f"internal error: {type(error).__name__}: {error}"
        remedy = "Run it again with -v for the traceback, and report it with the model if you can."
    if verbose and not callable(format_message):
        traceback.print_exception(error)
    from onnx_fuse.cli.render import say

    console = open_console(stderr=True)
    say(console, f"error: {cause}", "bold red")
    if remedy:
        say(console, f"hint: {remedy}")
    return code


def _requirements(values: Sequence[str]) -> dict[str, int]:
    return _counts("--require", values, "FusedSwish=4")


def _counts(option: str, values: Sequence[str], example: str) -> dict[str, int]:
    """NAME=3 as name -> number."""
    counts = {}
    for value in split_names(values):
        name, _, number = value.partition("=")
        if not name.strip() or not (number.strip().isascii() and number.strip().isdigit()):
            raise UsageError(f"{option} {value!r} is not of the form NAME=N.", f"For example: {option} {example}")
        counts[name.strip()] = int(number)
    return counts


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


def _check_paths(
    model: Path, out: Path, report: str | None, inputs: Path | None, external_data: ExternalData | None
) -> None:
    """Finds in advance what would fail after minutes of work."""
    require_model(model)
    from onnx_fuse.passes.files import io

    io.check_output(out)
    if report is not None and report != "-":
        io.check_output(report)
        for other in (model, out):
            if Path(report).resolve() == other.resolve() and not str(other).startswith("/dev/"):
                raise UsageError(f"The report would overwrite {other}.", "Give the report a file of its own.")
    if inputs is not None and not inputs.is_file():
        raise UsageError(f"{inputs} does not exist or is no file.", "Give an .npz file, written with numpy.savez.")
    if external_data is ExternalData.keep and model.parent.resolve() != out.parent.resolve():
        io.plan_copies(io.load(model), out, model, "keep")


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


# Each adds its commands.
from onnx_fuse.cli import bench as cli_bench  # noqa: E402, F401
from onnx_fuse.cli import build as cli_build  # noqa: E402, F401
from onnx_fuse.cli import debug as cli_debug  # noqa: E402, F401
from onnx_fuse.cli import deploy as cli_deploy  # noqa: E402, F401
from onnx_fuse.cli import kernels as cli_kernels  # noqa: E402, F401
