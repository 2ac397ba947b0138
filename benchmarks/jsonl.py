"""Results in a file of JSON lines, written as they come, so that a run that is stopped loses nothing."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any


def begin(file: Path, first: Mapping[str, Any]) -> None:
    """Starts a file anew, with this line."""
    file.parent.mkdir(parents=True, exist_ok=True)
    file.unlink(missing_ok=True)
    write(file, first)


def write(file: Path, line: Mapping[str, Any]) -> None:
    """Adds a line, at once."""
    with file.open("a", encoding="utf-8") as out:
        out.write(json.dumps(line) + "\n")


def read(file: Path) -> Iterator[dict[str, Any]]:
    """The lines so far; one that was cut short is left out."""
    for text in file.read_text(encoding="utf-8").splitlines():
        try:
            yield json.loads(text)
        except ValueError:
            continue
