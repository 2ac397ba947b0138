"""The errors a user can meet: each has a cause, a remedy and the exit code of the command line."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable
from typing import Any


class OnnxFuseError(Exception):
    """Base of all errors raised on purpose by onnx-fuse.

    Args:
        cause: one sentence, naming the file and node it is about.
        remedy: one sentence, what to do next, with the options of the command (`--disable NAME`).

    Attributes:
        report: the report of the run, of an error that `onnx_fuse.fuse` raises once it has one.

    As text, in a traceback for example, it names arguments (`disable=["NAME"]`) instead of options.
    """

    exit_code = 1
    report: Any = None

    def __init__(self, cause: str, remedy: str = "") -> None:
        super().__init__(cause)
        self.cause = cause
        self.remedy = remedy

    def __str__(self) -> str:
        return in_python(f"{self.cause}\n{self.remedy}" if self.remedy else self.cause)


class UsageError(OnnxFuseError):
    """An argument or option is wrong, or an optional dependency is missing."""

    exit_code = 2


class RequirementError(OnnxFuseError):
    """A `require` count was not met."""

    exit_code = 3


class VerificationError(OnnxFuseError):
    """The fused model does not compute what the original computes."""

    exit_code = 4


class ModelError(OnnxFuseError):
    """The model cannot be read or is not valid ONNX."""

    exit_code = 5


class OutputError(OnnxFuseError):
    """The output cannot be written."""

    exit_code = 6


class LearnError(OnnxFuseError):
    """No fusion can be learned from an example."""

    exit_code = 7


class RewriteError(OnnxFuseError):
    """A rewrite left the graph unsound: a fault of a fusion, found before anything is written."""

    exit_code = 1


class PatternError(OnnxFuseError):
    """A pattern or fused operator is defined wrongly; raised when it is defined, never while matching."""

    exit_code = 2


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """ "Did you mean NAME? " with the known name that is most like this one, in either case; "" where none is like it."""
    names = {item.lower(): item for item in known}
    close = difflib.get_close_matches(name.lower(), names, 1)
    return f"Did you mean {names[close[0]]}? " if close else ""


class FusionWarning(UserWarning):
    """A pass, or the code of a fusion, raised; it was left out, and the others went on. The report says so, too."""


# A command is one wherever it is told; an option may carry a value, or a word for one in capitals.
_COMMANDS = re.compile(r"(onnx-fuse (?:plugins )?[a-z]+|pip|docker)(?: \S+)*?(?=[,;.:)`]|$| and | or )")
_OPTION = re.compile(r"--(no-)?([a-z]+(?:-[a-z]+)*)(?: ([A-Z][\w.=]*|\d+|keep|copy|inline|none|auto|measured)\b)?")
_OTHER_NAMES = {"target": "targets", "shapes": "profiles"}
_LISTS = ("disable", "enable", "targets")


def in_python(message: str) -> str:
    """A message with the options of the command as arguments: `--disable NAME` as `disable=["NAME"]`."""
    commands = [found.span() for found in _COMMANDS.finditer(message)]

    def argument(found: re.Match[str]) -> str:
        if any(start <= found.start() < end for start, end in commands):
            return found.group()
        negated, option, value = found.groups()
        name = _OTHER_NAMES.get(option, option.replace("-", "_"))
        if negated or name == "library":
            return f"{name}={not negated}"
        if value is None:
            return name
        key, equals, number = value.partition("=")
        if equals:
            return f'{name}={{"{key}": {number}}}'
        quoted = value if value.isdigit() or value == "SECONDS" else f'"{value}"'
        return f"{name}=[{quoted}]" if name in _LISTS else f"{name}={quoted}"

    return _OPTION.sub(argument, message)


def reason(error: Exception) -> str:
    """What an error says, without the number and the path that an OSError puts around it."""
    return (isinstance(error, OSError) and error.strerror) or str(error)
