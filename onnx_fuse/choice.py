"""Which fusions run, and what a user requires of them: names, objects and files in, `Fusion`s out."""

from __future__ import annotations

import os
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any

from onnx_fuse.errors import RequirementError, UsageError, did_you_mean
from onnx_fuse.learning import LearnedFusion, load
from onnx_fuse.passes.report import NearMissRecord, Report
from onnx_fuse.patterns import fusions
from onnx_fuse.patterns.language.operator import Fusion
from onnx_fuse.runtime.plugins import plugin_library

Chosen = str | os.PathLike[str] | Fusion
"""A fusion by its name, by the path of a learned one, or itself."""

ANY = "any"
"""In `require`: nodes of whatever fusion."""

_MOST_MISSES = 5


def chosen_fusions(
    names: Iterable[Chosen] | None, enable: Iterable[Chosen], disable: Iterable[str]
) -> tuple[Fusion, ...]:
    """The fusions that run: those named (None: the default ones) and enabled, less those disabled.

    Raises:
        UsageError: a name is not known, or two learned fusions have one name.
        ModelError: the file of a learned fusion cannot be read.
    """
    known = {fusion.name: fusion for fusion in fusions()}
    wanted: list[str | Fusion] = [item for item in known.values() if item.default] if names is None else _loaded(names)
    wanted += _loaded(enable)
    left_out = {
        by_name(name, known | {item.name: item for item in wanted if isinstance(item, Fusion)}).name
        for name in _listed(disable)
    }
    chosen: dict[str, Fusion] = {}
    for item in wanted:
        fusion = item if isinstance(item, Fusion) else by_name(item, known)
        if isinstance(fusion, LearnedFusion) and chosen.get(fusion.name, fusion) is not fusion:
            raise UsageError(
                f"There are two fusions called {fusion.name}.", "Leave one out, or learn it under another name (--op)."
            )
        if fusion.name not in left_out:
            chosen[fusion.name] = fusion
    return tuple(chosen.values())


def by_name(name: str, known: Mapping[str, Fusion]) -> Fusion:
    """The fusion of a name.

    Raises:
        UsageError: there is none.
    """
    if not isinstance(name, str):
        raise UsageError(f"{name!r} is no fusion.", "Give the name of one, or a Fusion with a pattern and an operator.")
    if name not in known:
        near = did_you_mean(name, known)
        raise UsageError(f"There is no fusion {name!r}.", f"{near}The fusions are: {', '.join(known)}.")
    return known[name]


def _listed(items: Any) -> list[Any]:
    return [items] if isinstance(items, (str, os.PathLike, Fusion)) else list(items)


def _loaded(items: Any) -> list[str | Fusion]:
    """Names and objects as they are, the fusion itself for the path of a learned one."""
    return [load(item) if _is_path(item) else item for item in _listed(items)]


def _is_path(item: Any) -> bool:
    return isinstance(item, os.PathLike) or (isinstance(item, str) and item.endswith(".onnx"))


def without_kernel(chosen: Sequence[Fusion], report: Report) -> list[str]:
    """A sentence for each learned operator of the model that no plugin library has."""
    built = plugin_library.recorded()
    learned = {
        fusion.operator.name
        for fusion in chosen
        if isinstance(fusion, LearnedFusion) and fusion.operator.plugin not in built
    }
    names = [name for name in dict.fromkeys(match.operator for match in report.matches) if name in learned]
    return [
        f"{name} is learned: it has a body and no kernel yet. Until TensorRT is given a plugin of that name it runs the "
        "body, which is as fast as before fusing"
        for name in names
    ]


# --- requirements -----------------------------------------------------------------------------------------------------


def check_required(require: Mapping[str, int], chosen: Sequence[Fusion]) -> None:
    """Raises UsageError where a fusion or operator is required that none of the chosen ones is."""
    names = {name for fusion in chosen for name in (fusion.name, fusion.operator.name)}
    opt_in = {fusion.name for fusion in fusions()} - names
    for name in require:
        if name in opt_in:
            raise UsageError(f"{name} is required and not enabled.", f"Enable it: --enable {name}.")
        if name not in names | {ANY}:
            raise UsageError(
                f"{name} is required but not among the fusions that run.",
                f"{did_you_mean(name, names | opt_in)}They are: {', '.join(sorted(names))}.",
            )


def check_met(require: Mapping[str, int], report: Report, chosen: Sequence[Fusion]) -> None:
    """Raises RequirementError, which says what stopped the rest, where fewer nodes fused than required."""
    for name, count in require.items():
        found = sum(name in (match.fusion, match.operator, ANY) for match in report.matches)
        if found >= count:
            continue
        names = {fusion.name for fusion in chosen if name in (fusion.name, fusion.operator.name, ANY)}
        wanted = f"{count} fused node{'s' * (count != 1)}" if name == ANY else f"{count} {name}"
        error = RequirementError(
            f"{wanted} required, {found} fused.{_missing(names, count - found, report)}",
            "`onnx-fuse explain MODEL` tells what stopped the rest.",
        )
        error.report = report
        raise error


def _missing(names: Collection[str], missing: int, report: Report) -> str:
    """The near misses that would have made up the difference, the most complete first, with what would make them fuse."""
    misses = [item for item in report.near_misses if item.fusion in names]
    if not misses:
        return " There are no near misses: nothing in the model that has not fused looks like it."
    misses.sort(key=lambda item: -item.matched / max(item.total, 1))
    shown = misses[: min(missing, _MOST_MISSES)]
    numbers = [f"({number}) " for number in range(1, len(shown) + 1)] if len(shown) > 1 else [""]
    told = "; ".join(number + _miss(item) for number, item in zip(numbers, shown, strict=True))
    rest = f"; and {len(misses) - len(shown)} more" if len(misses) > len(shown) else ""
    lead = "The nearest miss" if len(misses) == 1 else "The nearest misses"
    advice = "".join(f" {text}" for text in dict.fromkeys(item.advice for item in shown if item.advice))
    return f" {lead}: {told}{rest}.{advice}"


def _miss(item: NearMissRecord) -> str:
    where = f"{item.node} in {item.graph}" if item.graph else item.node
    where += f" of {item.block}" if item.block else ""
    return f"{where}: {item.sentence.rstrip('.')}"
