"""`--select measured`: a fusion stays if the model is faster with it, by more than the noise, on the device that will run it.

Nothing here knows the device: a `Timer` opens models, and gives the seconds of single runs. Operators are tried one after the
other, each on top of those that were kept.
"""

from __future__ import annotations

import hashlib
import json
import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Protocol

from onnx import ModelProto

from onnx_fuse.passes.files import json_object
from onnx_fuse.passes.files.staging import write_file
from onnx_fuse.passes.graph.onnx_inference import without_weights
from onnx_fuse.passes.select.decisions import Decision, Selection
from onnx_fuse.versions import __version__

ROUNDS = 40
"""Runs of each of two models, taken in turns."""
WARM_UP = 5
LEAST_GAIN = 0.01
"""Part of the time that has to be saved at least, however clear the measurement is."""
_CONFIDENCE = 0.95

Run = Callable[[], float]


class Timer(Protocol):
    """Times models on a device.

    Attributes:
        name: the device with the versions of all that runs there: a verdict holds for this name alone.
    """

    name: str

    def open(self, model: ModelProto) -> Run:
        """A function that runs the model once, and gives the seconds that took."""


@dataclass(frozen=True)
class Verdict:
    """How a model with a fusion compares with the model without.

    Attributes:
        ratio: median of the time with it by the time without it, over pairs of runs that followed each other.
        low, high: where that median lies with a confidence of 95 %.
        runs: pairs that were run.
        wins: whether it is faster by more than noise and `LEAST_GAIN`.
    """

    ratio: float
    low: float
    high: float
    runs: int
    wins: bool


def judge(without: Sequence[float], with_it: Sequence[float]) -> Verdict:
    """The verdict on paired samples, in seconds."""
    ratios = sorted(float(new / old) for old, new in zip(without, with_it, strict=True))
    low, high = _interval(ratios)
    return Verdict(statistics.median(ratios), low, high, len(ratios), high < 1 - LEAST_GAIN)


def _interval(ordered: Sequence[float]) -> tuple[float, float]:
    """Where the median lies, whatever the distribution: each sample is above it with a probability of one half."""
    count = len(ordered)
    outside, tail = 0, 0.0
    while outside < count // 2:
        tail += math.comb(count, outside) / 2**count
        if 2 * tail > 1 - _CONFIDENCE:
            break
        outside += 1
    if not outside:
        return 0.0, math.inf  # too few to say anything
    return ordered[outside - 1], ordered[count - outside]


def compare(first: Run, second: Run, rounds: int = ROUNDS) -> tuple[list[float], list[float]]:
    """Samples of two models, run in turns, the other one first every second time: what slows the machine down slows both."""
    for _ in range(WARM_UP):
        first()
        second()
    samples: tuple[list[float], list[float]] = ([], [])
    for number in range(rounds):
        order = (0, 1) if number % 2 else (1, 0)
        for which in order:
            samples[which].append((first, second)[which]())
    return samples


@dataclass(frozen=True)
class Verdicts:
    """Verdicts in a folder, a file for each: whoever writes one disturbs nobody."""

    folder: Path

    def get(self, key: str) -> Verdict | None:
        """The verdict, unless there is none or its file is damaged."""
        try:
            facts = json_object.read(self.folder / f"{key}.json")
            json_object.require(facts, ratio=float, low=float, high=float, runs=int)
            return Verdict(**{name: facts[name] for name in Verdict.__dataclass_fields__})
        except (OSError, ValueError, KeyError):
            return None

    def put(self, key: str, verdict: Verdict, facts: Mapping[str, Any]) -> None:
        """Remembers a verdict; `facts` are for people who read the file."""
        self.folder.mkdir(parents=True, exist_ok=True)
        write_file(self.folder / f"{key}.json", (json.dumps({**asdict(verdict), **facts}, indent=2) + "\n").encode())


def key_of(model: ModelProto, operator: str, kept: Sequence[str], timer: str, sizes: Mapping[str, int]) -> str:
    """What a verdict depends on: the graph (not what its weights are), what is tried on top of what, and where."""
    light = without_weights(model).SerializeToString(deterministic=True)
    facts = json.dumps([__version__, operator, sorted(kept), timer, sorted(sizes.items())])
    return hashlib.sha256(facts.encode() + light).hexdigest()[:32]


def choose(
    operators: Sequence[str],
    build: Callable[[Sequence[str]], ModelProto],
    timer: Timer,
    *,
    verdicts: Verdicts | None = None,
    sizes: Mapping[str, int] | None = None,
    rounds: int = ROUNDS,
    progress: Callable[[str], None] | None = None,
) -> dict[str, Verdict]:
    """Operator -> verdict on its fusions, tried in this order, each on top of those that won.

    Args:
        operators: names of the fused operators, the most promising first.
        build: gives the model in which just these operators are fused.
        timer: runs the models.
        verdicts: where verdicts are remembered.
        sizes: dimension -> size that the timer runs the models with.
        rounds: runs of each model.
        progress: called with a word on what is being done.
    """
    kept: list[str] = []
    found: dict[str, Verdict] = {}
    whole = build(operators)
    current: Run | None = None
    for operator in operators:
        key = key_of(whole, operator, kept, timer.name, sizes or {})
        verdict = verdicts.get(key) if verdicts is not None else None
        candidate: Run | None = None
        if verdict is None:
            if progress is not None:
                progress(f"timing {operator}")
            current = current or timer.open(build(kept))
            candidate = timer.open(build([*kept, operator]))
            verdict = judge(*compare(current, candidate, rounds))
            if verdicts is not None:
                verdicts.put(key, verdict, {"operator": operator, "on_top_of": kept, "device": timer.name})
        found[operator] = verdict
        if verdict.wins:
            kept.append(operator)
            current = candidate  # None where the verdict was remembered: opened when it is needed
    return found


def by_measurement(predicted: Selection, verdicts: Mapping[str, Verdict], timer: str) -> Selection:
    """The selection by what was measured for each operator, in place of what was predicted.

    Args:
        predicted: the same nodes as the cost model decided.
        verdicts: operator -> what was measured.
        timer: name of the device that was measured on.
    """

    def decision(item: Decision) -> Decision:
        verdict = verdicts[item.operator]
        share = f"{verdict.ratio:.3f} of the time ({verdict.low:.3f} to {verdict.high:.3f}) with {item.operator}"
        reason = f"{share}, in {verdict.runs} pairs of runs"
        return replace(item, keep=verdict.wins, before_us=None, after_us=None, reason=reason, ratio=verdict.ratio)

    decisions = tuple(decision(item) for item in predicted.decisions)
    notes = tuple(note for note in predicted.notes if "assumed" not in note)
    return replace(predicted, method="measured", device=timer, decisions=decisions, notes=notes)
