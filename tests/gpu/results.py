"""What the tests of this folder found, written as it comes, so that a run that is stopped loses nothing.

python -m tests.gpu.results FILE        # what ran and what did not
"""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks import jsonl

FILE = "ONNX_FUSE_TEST_RESULTS"
"""Environment variable: the file, of JSON lines; nothing is written unless it is set."""
NO_TIME = "no time left"


@dataclass(frozen=True)
class Results:
    """The results of a run.

    Attributes:
        planned: all tests, in the order in which they are run.
        found: test -> its line: outcome, seconds, why.
    """

    planned: tuple[str, ...]
    found: dict[str, dict[str, Any]]

    @property
    def not_run(self) -> tuple[str, ...]:
        """Tests without a result, and those for which there was no time."""
        return tuple(test for test in self.planned if NO_TIME in self.found.get(test, {"why": NO_TIME})["why"])

    def summary(self) -> str:
        """What ran and what did not, in words."""
        ran = [test for test in self.planned if test not in self.not_run]
        counts = Counter(self.found[test]["outcome"] for test in ran)
        seconds = sum(self.found[test]["seconds"] for test in ran)
        lines = [f"{len(ran)} of {len(self.planned)} tests ran in {seconds:.0f} s: {_counted(counts) or 'none'}"]
        for outcome in ("failed", "skipped"):
            lines += [
                f"  {outcome} {test}: {_last(self.found[test]['why'])}"
                for test in ran
                if self.found[test]["outcome"] == outcome
            ]
        if self.not_run:
            by_test = Counter(test.partition("[")[0] for test in self.not_run)
            lines.append("not run: " + ", ".join(f"{test} ({count})" for test, count in by_test.items()))
        return "\n".join(lines)


def _counted(counts: Counter[str]) -> str:
    return ", ".join(f"{count} {outcome}" for outcome, count in counts.items())


def _last(text: str) -> str:
    lines = [line for line in text.splitlines() if line.strip()]
    told = [line[1:].strip() for line in lines if line.startswith("E ")]
    return (told or lines or [""])[0][:300]


def begin(file: Path, tests: Iterable[str]) -> None:
    """Starts a run anew."""
    jsonl.begin(file, {"planned": list(tests)})


def read(file: Path) -> Results:
    """The results so far; a line that was cut short is left out."""
    planned: tuple[str, ...] = ()
    found: dict[str, dict[str, Any]] = {}
    for line in jsonl.read(file):
        if "planned" in line:
            planned = tuple(line["planned"])
        else:
            found[line["test"]] = line
    return Results(planned, found)


if __name__ == "__main__":
    print(read(Path(sys.argv[1])).summary())
