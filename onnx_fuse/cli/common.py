"""What the commands share: where they print, how they say what they are doing, and how they read their options."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator, Sequence
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Any

from typer.core import TyperCommand

from onnx_fuse.errors import UsageError

if TYPE_CHECKING:
    from rich.console import Console


VERIFY_TIMEOUT = 300.0
"""Seconds for `--verify-timeout`: as in runtime.verify.verification, which takes too long to import for a help text."""


WITH_LIBRARY = "--library/--no-library"
"""The option that says whether the kernel library runs fused nodes in ONNX Runtime."""


class Select(str, Enum):
    """Which matches are fused, or made plugins."""

    all = "all"
    auto = "auto"
    measured = "measured"


class Command(TyperCommand):
    """A command whose usage line shows what it must be given: `fuse MODEL -o OUT [OPTIONS]`."""

    def collect_usage_pieces(self, ctx: Any) -> list[str]:
        pieces = []
        for parameter in sorted(self.get_params(ctx), key=lambda item: item.param_type_name != "argument"):
            name = parameter.metavar or str(parameter.name).upper()
            if parameter.param_type_name == "argument":
                name += "..." if parameter.nargs != 1 else ""
                pieces.append(name if parameter.required else f"[{name}]")
            elif parameter.required:
                pieces.append(f"{parameter.opts[0]} {name}")
        return [*pieces, "[OPTIONS]"]


WIDEST = 10_000
"""Columns where no terminal says how many it has: no line is wrapped, and no name is cut."""


def open_console(stderr: bool = False) -> Console:
    """Where text is printed, as it is; only a terminal wraps lines and pads the cells of tables."""
    from rich.console import Console

    class Unwrapped(Console):
        def print(self, *objects: Any, **options: Any) -> None:
            with self.capture() as captured:
                super().print(*objects, **options)
            self.file.write("\n".join(line.rstrip() for line in captured.get().split("\n")))

    # Markup and emoji off: brackets and colons in node names are just that.
    settings: dict[str, Any] = {"stderr": stderr, "markup": False, "emoji": False, "highlight": False}
    console = Console(**settings)
    return console if console.is_terminal else Unwrapped(**settings, width=WIDEST)


@contextlib.contextmanager
def show_progress(quiet: bool, text: str) -> Iterator[Callable[[str], None]]:
    """A line on stderr that says what is being done, on a terminal only; gives the function that changes its text."""
    console = open_console(stderr=True)
    if quiet or not console.is_terminal:
        yield lambda text: None
        return
    from rich.text import Text

    from onnx_fuse.cli.render import visible

    with console.status(Text(visible(text))) as status:
        yield lambda text: status.update(Text(visible(text)))


def fusion_names(incomplete: str) -> list[str]:
    """The fusions whose names begin so, for completion in a shell."""
    import onnx_fuse

    return [fusion.name for fusion in onnx_fuse.fusions() if fusion.name.startswith(incomplete)]


def split_names(values: Sequence[str]) -> tuple[str, ...]:
    """The names given to an option that may be repeated and takes several, separated by commas."""
    return tuple(name.strip() for value in values for name in value.split(",") if name.strip())


def counts(option: str, values: Sequence[str], example: str) -> dict[str, int]:
    """NAME=3 as name -> number."""
    counts = {}
    for value in split_names(values):
        name, _, number = value.partition("=")
        if not name.strip() or not (number.strip().isascii() and number.strip().isdigit()):
            raise UsageError(f"{option} {value!r} is not of the form NAME=N.", f"For example: {option} {example}")
        counts[name.strip()] = int(number)
    return counts


def require_model(model: Path) -> None:
    """Lets a missing model fail with the sentence that reading it would give, before anything else is looked at.

    Raises:
        ModelError: it is missing.
    """
    if not os.path.isfile(model):
        require_readable(model)


def require_readable(model: Path) -> None:
    """Lets a model that cannot be read fail before anything else is looked at.

    Raises:
        ModelError: it cannot be read.
    """
    from onnx_fuse.passes.files.io import load_lazily

    load_lazily(model)
