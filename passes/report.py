"""What a run did and why: plain records that the pipeline fills, and their JSON form (docs/report.md describes the schema)."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from typing import Any

SCHEMA = 1
"""Version of the report's JSON form: it grows when a field goes or changes its meaning, not when one is added."""


@dataclass(frozen=True, slots=True)
class MatchRecord:
    """One fused node.

    Attributes:
        fusion: name of the fusion that matched.
        operator: operator type of the fused node.
        node: name of the fused node (in a dry run: the name it would get).
        root: name of the replaced node whose output it makes.
        graph: "" for the main graph, else the path to the subgraph or function that holds it.
        replaced: names of the nodes it replaced (their first output where a node has no name).
        inputs, outputs: the operator's names of the inputs and outputs that are present.
        parts: what of the fusion's optional parts was swallowed, for example ("projection", "residual", "norm").
        left_out: sentences on the parts that were present in the graph and stayed outside.
        block: the module that the nodes belong to, in the model's own names ("encoder.layer.2.attention"); "" where none tells.
        advice: what to change in the export so that less is left out, where known.
        codes: the code of each sentence of `left_out` (passes/refusals.py).
        replaced_types: operator types of `replaced`.
        replaced_edges: (i, j) where node j of `replaced` reads what node i makes.
    """

    fusion: str
    operator: str
    node: str
    root: str
    graph: str
    replaced: tuple[str, ...]
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    parts: tuple[str, ...] = ()
    left_out: tuple[str, ...] = ()
    block: str = ""
    advice: tuple[str, ...] = ()
    codes: tuple[str, ...] = ()
    replaced_types: tuple[str, ...] = ()
    replaced_edges: tuple[tuple[int, int], ...] = ()


@dataclass(frozen=True, slots=True)
class NearMissRecord:
    """A place where a fusion began to match and failed.

    Attributes:
        fusion: name of the fusion.
        node: name of the node where the attempt started.
        op_type: operator type of that node.
        graph: as in MatchRecord.
        failed_at: name of the node or value that did not fit.
        matched, total: nodes matched, and nodes of the pattern.
        reason: what was found there and what was wanted.
        block: as in MatchRecord, of `node`.
        advice: what to change in the export so that it fuses; "" where nothing is known to help.
        code: of the kind of refusal (passes/refusals.py), "OF201".
    """

    fusion: str
    node: str
    op_type: str
    graph: str
    failed_at: str
    matched: int
    total: int
    reason: str
    block: str = ""
    advice: str = ""
    code: str = ""

    @property
    def sentence(self) -> str:
        """The reason with the place that stopped the attempt, which may be another one than where it began."""
        is_named = self.failed_at in self.reason or self.failed_at == self.node
        return self.reason if is_named else f"{self.reason} (at {self.failed_at})"


@dataclass(frozen=True)
class LayerRecord:
    """One layer (or other part) of the main graph and the number of its nodes; nodes without a block are in the layer ""."""

    name: str
    nodes_before: int
    nodes_after: int


@dataclass(frozen=True)
class PassRecord:
    """One pass of the pipeline: its cost and effect; `error` is set when the pass (or a rule in it) raised."""

    name: str
    seconds: float
    nodes_before: int
    nodes_after: int
    rewrites: int = 0
    near_misses: int = 0
    error: str | None = None


@dataclass
class Log:
    """What a pass tells the report.

    Attributes:
        matches: what was fused (or would be).
        near_misses: attempts worth telling.
        warnings: what a user should know.
        errors: sentences on rules that raised; the others went on.
        equalities: as in Report.
        rewrites: how many changes the pass made.
    """

    matches: list[MatchRecord] = field(default_factory=list)
    near_misses: list[NearMissRecord] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)
    equalities: dict[str, int] = field(default_factory=dict)
    rewrites: int = 0


@dataclass(repr=False)
class Report:
    """All records of one run.

    Attributes:
        model: path of the model, or "" when it came as an object.
        nodes_before, nodes_after: nodes of the main graph, subgraphs and functions that the model had on arrival.
        layers: the layers of the main graph in its order, before and after; constants do not count.
        equalities: dimension names that can only have one size, because a Reshape in the model is hard-coded to it.
        verification: `Verification.to_dict()`, or a dict with `skipped`: the reason.
        selection: `Selection.to_dict()`: what was predicted or measured for each fused node; None where all matches were fused.
        seconds: wall seconds of the whole run.
        versions: package name -> version.
    """

    model: str = ""
    nodes_before: int = 0
    nodes_after: int = 0
    matches: list[MatchRecord] = field(default_factory=list)
    near_misses: list[NearMissRecord] = field(default_factory=list)
    layers: list[LayerRecord] = field(default_factory=list)
    passes: list[PassRecord] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    equalities: dict[str, int] = field(default_factory=dict)
    verification: dict[str, Any] | None = None
    selection: dict[str, Any] | None = None
    seconds: float = 0.0
    versions: dict[str, str] = field(default_factory=dict)

    @property
    def fused(self) -> dict[str, int]:
        """Operator -> number of fused nodes."""
        return dict(sorted(Counter(match.operator for match in self.matches).items()))

    def headline(self) -> str:
        """The run in a line: "3 FusedSwish; 12 nodes before, 6 after; verified"."""
        counts = ", ".join(f"{count} {operator}" for operator, count in self.fused.items()) or "nothing fused"
        checked = self.verification or {}
        verdict = (
            "not verified" if checked.get("skipped") or not checked else "verified" if checked["passed"] else "FAILED"
        )
        return f"{counts}; {self.nodes_before} nodes before, {self.nodes_after} after; {verdict}"

    def __repr__(self) -> str:
        return f"<Report: {self.headline()}>"

    def grouped_near_misses(self) -> list[tuple[NearMissRecord, int]]:
        """One near miss for each (fusion, reason with its node names removed), with how often it occurred; most complete first."""
        return group_near_misses(self.near_misses)

    def to_dict(self) -> dict[str, Any]:
        """The report as JSON-ready data (schema in docs/report.md)."""
        return {"schema": SCHEMA, "fused": self.fused, **asdict(self)}

    def to_text(self) -> str:
        """The report as plain lines: what fused, the passes, the near misses by reason, the warnings."""
        lines = [f"nodes: {self.nodes_before} before, {self.nodes_after} after"]
        lines += [f"fused: {operator} x {count}" for operator, count in self.fused.items()] or ["fused: nothing"]
        for item in self.passes:
            lines.append(
                f"pass {item.name}: {item.seconds:.2f} s, {item.rewrites} rewrites, {item.near_misses} near misses"
            )
        for miss, count in self.grouped_near_misses():
            lines.append(
                f"near miss ({count}x) {miss.fusion} at {miss.node}: {miss.matched} of {miss.total} nodes, {miss.sentence}"
            )
        lines += [f"warning: {warning}" for warning in self.warnings]
        return "\n".join(lines)

    def to_json(self) -> str:
        """The report as JSON text."""
        return json.dumps(self.to_dict(), indent=2, sort_keys=True)


def group_near_misses(near_misses: Iterable[NearMissRecord]) -> list[tuple[NearMissRecord, int]]:
    """Groups near misses by fusion and reason (but for numbers in node names), with their counts; most complete first."""
    groups: dict[tuple[str, str], list[NearMissRecord]] = {}
    for miss in near_misses:
        groups.setdefault((miss.fusion, without_numbers(miss.reason)), []).append(miss)
    ordered = sorted(groups.values(), key=lambda group: -max(miss.matched / max(miss.total, 1) for miss in group))
    return [(max(group, key=lambda miss: miss.matched), len(group)) for group in ordered]


# A word with a letter and one of _ / : in it is taken for a name, in which layers differ by a number; float32 and 1e-05 are not.
_NAME = re.compile(r"(?=[^\s,;'\"()\[\]]*[_/:])[^\s,;'\"()\[\]]*[A-Za-z][^\s,;'\"()\[\]]*")


def without_numbers(sentence: str) -> str:
    """A sentence without the numbers in the names of nodes: equal for what happens alike in two layers."""
    return _NAME.sub(lambda name: re.sub(r"\d+", "#", name.group()), sentence)
