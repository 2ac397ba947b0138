"""The errors a user can meet: each has a cause, a remedy and the exit code of the command line."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class OnnxFuseError(Exception):
    """Base of all errors raised on purpose by onnx-fuse.

    Args:
        cause: one sentence, naming the file and node it is about.
        remedy: one sentence, what to do next.
    """

    exit_code = 1

    def __init__(self, cause: str, remedy: str = "") -> None:
        super().__init__(cause)
        self.cause = cause
        self.remedy = remedy

    def __str__(self) -> str:
        return f"{self.cause}\n{self.remedy}" if self.remedy else self.cause


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


def reason(error: Exception) -> str:
    """What an error says, without the number and the path that an OSError puts around it."""
    return (isinstance(error, OSError) and error.strerror) or str(error)
