"""The command `onnx-fuse`: a thin layer over the Python API that turns results into text and errors into exit codes.

Heavy modules are imported inside the commands, so that `--help` and a mistyped option answer at once.
"""

from __future__ import annotations

import contextlib
import errno
import sys
import traceback
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import typer
from typer.core import TyperGroup

from onnx_fuse.cli import bench, build, debug, deploy, doctor, fuse, inspect, learn, parse, plugins, verify
from onnx_fuse.cli.common import Command, open_console
from onnx_fuse.cli.paths import guarded
from onnx_fuse.errors import FusionWarning, OnnxFuseError, OutputError, UsageError

INTERRUPTED = 130
_STREAM_ERRORS = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO)


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
            if sys.stdout is not None:
                sys.stdout.flush()
        except (KeyboardInterrupt, typer.Abort):
            code = INTERRUPTED
        except Exception as error:
            code = _report_error(error, verbose)
        sys.exit(code if isinstance(code, int) else 0)


app = typer.Typer(
    cls=_Group,
    name="onnx-fuse",
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
    help="Fuses the subgraphs of an ONNX model into custom operators, proves the result equal, and says why the rest did "
    "not fuse.",
    epilog="Exit codes: 0 done, 1 internal error, 2 wrong usage, 3 a --require is not met, 4 verification failed or not "
    "accepted, 5 model unreadable or invalid, 6 output not writable, 7 an example cannot be learned, 130 or 143 interrupted.",
)


def main() -> None:
    """The command in this process; `onnx_fuse.__main__` runs it in a supervised one."""
    warnings.simplefilter("ignore", FusionWarning)  # the commands print them
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


def _report_error(error: Exception, verbose: bool) -> int:
    """Prints an error; gives the exit code."""
    if isinstance(error, BrokenPipeError):  # nobody reads on
        return 1
    format_message = getattr(error, "format_message", None)
    if isinstance(error, OnnxFuseError):
        code, cause, remedy = error.exit_code, error.cause, error.remedy
    elif callable(format_message):  # what typer raises for wrong options, in all its versions
        context = getattr(error, "ctx", None)
        path = context.command_path if context is not None else "onnx-fuse"
        code, cause, remedy = UsageError.exit_code, format_message().replace("Value error, ", ""), f"See {path} --help."
    elif isinstance(error, OSError) and error.filename is None and error.errno in _STREAM_ERRORS:
        code, cause = OutputError.exit_code, f"Cannot write to standard output: {error.strerror}."
        remedy = "Free some space, or send the output elsewhere."
    else:
        code, cause = 1, f"internal error: {type(error).__name__}: {error}"
        remedy = "Run it again with -v for the traceback, and report it with the model if you can."
    if verbose and not callable(format_message):
        traceback.print_exception(error)
    from onnx_fuse.cli.render import say

    with contextlib.suppress(OSError):  # where nothing can be said, the exit code still tells
        console = open_console(stderr=True)
        say(console, f"error: {cause}", "bold red")
        if remedy:
            say(console, f"hint: {remedy}")
    return code


# In the order in which `--help` lists them.
COMMANDS: dict[str, Callable[..., None]] = {
    "fuse": fuse.fuse,
    "explain": fuse.explain,
    "verify": verify.verify,
    "inspect": inspect.inspect,
    "parse": parse.parse,
    "learn": learn.learn,
    "list": fuse.list_fusions,
    "bench": bench.bench,
    "build": build.build,
    "debug": debug.debug,
    "doctor": doctor.doctor,
    "deploy": deploy.deploy,
}
for name, command in COMMANDS.items():
    app.command(name, cls=Command)(guarded(command))
app.add_typer(plugins.app, name="plugins")
