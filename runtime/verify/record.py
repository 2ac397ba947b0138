"""The record of a verification: what was compared, how far the outputs are apart, and whom to blame."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from onnx_fuse.errors import VerificationError
from onnx_fuse.runtime.verify.compare import Comparison


@dataclass(frozen=True)
class Case:
    """One set of inputs: `name` says how it was made, `error` that the fused model could not run on it."""

    name: str
    shapes: dict[str, tuple[int, ...]]
    comparisons: tuple[Comparison, ...] = ()
    error: str | None = None

    @property
    def passed(self) -> bool:
        return self.error is None and all(comparison.problem is None for comparison in self.comparisons)


@dataclass(frozen=True)
class Rejected:
    """A draw on which the original itself does not run, with ONNX Runtime's message."""

    name: str
    shapes: dict[str, tuple[int, ...]]
    reason: str


@dataclass(repr=False)
class Verification:
    """What was compared and what came of it.

    Attributes:
        passed: every case passed, and at least one was informative.
        skipped: why nothing was run (then `passed` is False, and it is no failure).
        problem: one sentence on what is wrong; None when passed or skipped.
        remedy: what to do about it.
        cases, rejected: what both models ran on, and what the original could not run on.
        culprit: the rewrite that breaks the model.
        notes: what a reader should know (outputs without information, a twin that ran in place of the model).
        rtol: relative difference allowed for the output that is computed in the coarsest type.
        documented: differences that the documentation states, one sentence for each output; they do not fail.
        unfinished: what was not compared because the time was up, a clause; None where all was.
        timeout: seconds it might take; None: no limit.
        weights: number of weights that both models hold under one name, compared byte for byte.
        bytes_needed, bytes_available: the memory estimate; available is None where it is not known.
        seconds: wall time of the whole verification.
    """

    passed: bool = False
    skipped: str | None = None
    problem: str | None = None
    remedy: str = ""
    cases: tuple[Case, ...] = ()
    rejected: tuple[Rejected, ...] = ()
    culprit: str | None = None
    notes: list[str] = field(default_factory=list)
    rtol: float = 0.0
    documented: list[str] = field(default_factory=list)
    unfinished: str | None = None
    timeout: float | None = None
    weights: int = 0
    bytes_needed: int = 0
    bytes_available: int | None = None
    seconds: float = 0.0

    @property
    def inconclusive(self) -> bool:
        """Whether the comparison tells neither that the models are equal nor that they differ."""
        return (self.problem or "").startswith("inconclusive")

    @property
    def worst(self) -> dict[str, Comparison]:
        """Output (or inner value) -> its comparison with a problem, if any, else the one with the largest relative difference."""
        worst: dict[str, Comparison] = {}
        for case in self.cases:
            for one in case.comparisons:
                other = worst.get(one.output)
                if other is None or (one.problem is not None, one.relative) > (
                    other.problem is not None,
                    other.relative,
                ):
                    worst[one.output] = one
        return worst

    @property
    def undefined(self) -> int:
        """Places of outputs that were not compared because the original is not finite there, and need not be."""
        return sum(one.undefined for case in self.cases for one in case.comparisons if not one.inner)

    def __repr__(self) -> str:
        return f"<Verification: {self.summary()[0]}>"

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready data."""
        cases = [
            {
                "name": case.name,
                "shapes": _listed(case.shapes),
                "passed": case.passed,
                "error": case.error,
                "comparisons": [comparison.to_dict() for comparison in case.comparisons],
            }
            for case in self.cases
        ]
        rejected = [{"name": r.name, "shapes": _listed(r.shapes), "reason": r.reason} for r in self.rejected]
        simple = (
            "passed",
            "skipped",
            "problem",
            "remedy",
            "culprit",
            "rtol",
            "unfinished",
            "timeout",
            "weights",
            "bytes_needed",
            "bytes_available",
            "seconds",
        )
        return {
            **{name: getattr(self, name) for name in simple},
            "undefined": self.undefined,
            "notes": list(self.notes),
            "documented": list(self.documented),
            "worst": {output: comparison.to_dict() for output, comparison in self.worst.items()},
            "cases": cases,
            "rejected": rejected,
        }

    def summary(self) -> list[str]:
        """The result as lines of text, the verdict first."""
        if self.skipped is not None:
            return [f"not verified: {self.skipped}"]
        verdict = "equal" if self.passed else "not proven" if self.inconclusive else "NOT equal"
        if self.passed and self.documented:
            verdict = "equal but for documented differences"
        lines = [
            f"{verdict}: {len(self.cases)} cases in {self.seconds:.1f} s, allowed {self.rtol:g} of an output's scale"
        ]
        if self.unfinished is not None:
            lines.append(f"stopped after {self.timeout:g} s: {self.unfinished}")
        lines += self.documented
        if self.problem is not None:
            lines.append(self.problem)
        worst = self.worst
        lines += [_line(output, one) for output, one in worst.items() if not one.inner]
        inner = sorted(
            (one for one in worst.values() if one.inner), key=lambda one: (one.problem is None, -one.relative)
        )
        if inner:
            lines.append(_line(f"worst of {len(inner)} inner values, {inner[0].output}", inner[0]))
        if self.rejected:
            lines.append(f"  {len(self.rejected)} draws that the original cannot run on: {self.rejected[0].reason}")
        if self.undefined:
            lines.append(
                f"  {self.undefined} places were not compared, in which the original itself overflows or divides by 0"
            )
        if self.weights:
            lines.append(f"  {self.weights} weights of the same name were compared byte for byte")
        return [*lines, *(f"  note: {note}" for note in self.notes)]

    def raise_if_failed(self) -> None:
        """Raises:
        VerificationError: the verification ran and did not pass.
        """
        if not self.passed and self.skipped is None:
            raise VerificationError(self.problem or "the fused model was not verified.", self.remedy)


def _line(what: str, one: Comparison) -> str:
    state = "ok" if one.problem is None else "differs"
    return f"  {what}: {state}, max abs {one.max_abs:.2e}, max relative {one.relative:.2e}"


def _listed(shapes: Mapping[str, tuple[int, ...]]) -> dict[str, list[int]]:
    return {name: list(shape) for name, shape in shapes.items()}
