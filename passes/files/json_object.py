"""JSON that somebody else may have written: an object of bounded size and depth, or one kind of error."""

from __future__ import annotations

import json
import os
from typing import Any

LIMIT = 1 << 26
"""Bytes that are read at most; records have kilobytes, or a few megabytes for the largest engines."""


def parse(text: str | bytes) -> dict[str, Any]:
    """The object in a text.

    Raises:
        ValueError: says what it is instead: no JSON, no object, nested too deeply, or too large.
    """
    if len(text) > LIMIT:
        raise ValueError(f"it has more than {LIMIT >> 20} MB")
    try:
        found = json.loads(text)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None
    if not isinstance(found, dict):
        raise ValueError("it is no JSON object")
    return found


def read(path: str | os.PathLike[str]) -> dict[str, Any]:
    """The object in a file.

    Raises:
        ValueError: as for `parse`; or it is not a regular file.
        OSError: it cannot be read.
    """
    if os.path.exists(path) and not os.path.isfile(path):
        raise ValueError("it is not a regular file")
    with open(path, "rb") as file:
        return parse(file.read(LIMIT + 1))


def require(facts: dict[str, Any], **kinds: type | tuple[type, ...]) -> None:
    """Checks the types of entries. (`list` and `dict` say nothing of what is in them.)

    Raises:
        ValueError: names the first one that is missing or of another type.
    """
    for name, kind in kinds.items():
        value = facts.get(name)
        if not isinstance(value, kind) or isinstance(value, bool):
            raise ValueError(f"its {name!r} is missing or of the wrong type")
