"""The report as a page: one file that fetches nothing, with the model before and after as a picture of its layers.

Every text of the model (names, paths, sentences) goes through `text`, which escapes it; the page's policy allows
no script but its own.
"""

from __future__ import annotations

import base64
import hashlib
import html
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from itertools import zip_longest
from pathlib import PurePath
from typing import Any, TypeVar

from onnx_fuse.cli.render import counted, matched, verification_line, visible
from onnx_fuse.passes.graph import blocks
from onnx_fuse.passes.refusals import BY_CODE
from onnx_fuse.passes.report import LayerRecord, MatchRecord, NearMissRecord, Report, without_numbers

MOST_ROWS = 20
"""Layers drawn one by one; with more of them, equal ones in a row are drawn as one."""
MOST_DRAWN = 120
"""Nodes of a replaced subgraph that are drawn."""
MOST_LISTED = 500
"""Rows of a table; the JSON report has them all."""

_Record = TypeVar("_Record", MatchRecord, NearMissRecord)


def to_html(report: Report) -> str:
    """The whole page."""
    fusions = _groups(report.matches, _match_kind)
    misses = _groups(report.near_misses, lambda miss: (miss.fusion, without_numbers(miss.reason)))
    misses.sort(key=lambda group: -max(miss.matched / max(miss.total, 1) for miss in group))
    name = PurePath(report.model).name or "model"
    parts = [
        _picture(report, fusions) + _fusions(fusions),
        _near_misses(misses),
    ]  # the reasons first where nothing fused
    body = "\n".join(
        part
        for part in (
            _header(report, name),
            "<main>",
            _tiles(report),
            _warnings(report),
            *(parts if fusions else reversed(parts)),
            _codes(report),
            _verification(report.verification),
            _passes(report),
            "</main>",
            _footer(report),
        )
        if part
    )
    digest = base64.b64encode(hashlib.sha256(_SCRIPT.encode()).digest()).decode()
    policy = f"default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'sha256-{digest}'"
    return (
        f'<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">\n'
        f'<meta name="viewport" content="width=device-width, initial-scale=1">\n<link rel="icon" href="data:,">\n'
        f"<title>{text(name)}: onnx-fuse report</title>\n<style>{_STYLE}</style>\n</head>\n<body>\n{body}\n"
        f"<script>{_SCRIPT}</script>\n</body>\n</html>\n"
    )


def text(value: object) -> str:
    """A text of the model, in one line, that is nothing but text in a page."""
    return html.escape(visible(value))


# --- the parts of the page --------------------------------------------------------------------------------------------


def _header(report: Report, name: str) -> str:
    path = f'<p class="path">{text(report.model)}</p>' if report.model and report.model != name else ""
    return (
        '<header><div><p class="kicker">onnx-fuse report</p>'
        f"<h1>{text(name)}</h1>{path}</div>"
        '<button type="button" id="theme" hidden aria-label="Switch between light and dark">'
        '<span aria-hidden="true">◐</span></button></header>'
    )


def _tiles(report: Report) -> str:
    before, after = report.nodes_before, report.nodes_after
    fewer = f"{(before - after) / before:.0%} fewer" if after < before else "as many as before"
    kinds = ", ".join(f"{count} {operator}" for operator, count in report.fused.items())
    sentence, style = verification_line(report.verification)
    passed = (report.verification or {}).get("passed")
    verdict = {"green": "Equal", "yellow": "Equal, see below" if passed else "Not verified"}.get(style, "Not equal")
    state = {"green": "good", "yellow": "unsure"}.get(style, "bad")
    fused = len(report.matches)
    if not any(one.rewrites for one in report.passes) and state == "unsure":
        verdict, sentence, state = "Unchanged", "Nothing was rewritten.", ""
    tiles = [
        ("Fused", f"{fused:,}", text(kinds or "nothing in this model"), "good" if fused else "unsure"),
        ("Nodes", f"{before:,} → {after:,}", fewer, ""),
        ("Verification", verdict, text(sentence), state),
        ("Time", f"{report.seconds:.1f} s", counted(len(report.passes), "pass"), ""),
    ]
    cells = "".join(
        f'<div class="tile {state}"><dt>{title}</dt><dd><strong>{value}</strong><span>{note}</span></dd></div>'
        for title, value, note, state in tiles
    )
    return f'<dl class="tiles">{cells}</dl>'


def _warnings(report: Report) -> str:
    said = list(report.warnings)
    said += [
        f"The model only runs with {name} = {size}: a Reshape in it is hard-coded to that."
        for name, size in report.equalities.items()
    ]
    items = "".join(f"<li>{text(one)}{_advice([blocks.advise(one)])}</li>" for one in said)
    return (
        f'<section class="warn" aria-labelledby="warnings"><h2 id="warnings">Warnings</h2><ul>{items}</ul></section>'
        if said
        else ""
    )


def _fusions(fusions: Sequence[Sequence[MatchRecord]]) -> str:
    if not fusions:
        return _section(
            "fusions", "Fusions", "<p>Nothing was fused. What came nearest, if anything, is told below.</p>"
        )
    items = []
    for number, group in enumerate(fusions, 1):
        first = group[0]
        parts = f" with {', '.join(first.parts)}" if first.parts else ""
        where = blocks.span([match.block or match.root for match in group])
        rows = [
            [match.block or "–", match.node, _place(match.root, match.graph), len(match.replaced)] for match in group
        ]
        left_out = {
            sentence: code
            for match in group
            for sentence, code in zip_longest(match.left_out, match.codes, fillvalue="")
        }
        rest = "".join(f"<li>{text(sentence)} {_code(code)}</li>" for sentence, code in list(left_out.items())[:8])
        rest = f"<h3>Left out</h3><ul>{rest}</ul>" if rest else ""
        advice = _advice(dict.fromkeys(one for match in group for one in match.advice))
        ports = f"inputs: {', '.join(first.inputs)}; outputs: {', '.join(first.outputs)}"
        items.append(
            "<details><summary>"
            f'<span class="name">{text(first.operator)}</span><span class="count">{len(group)}×</span>'
            f'<span class="note">{text(parts.strip())}</span><span class="where">{text(where)}</span></summary>'
            f'<div class="inside" id="fusion-{number}"><h3>What it replaced{_of(group, first)}</h3>{subgraph(first)}'
            f'<p class="note">{text(ports)}</p>{rest}{advice}<h3>Where</h3>'
            f"{_table(('block', 'fused node', 'in place of', 'nodes'), rows, numbers=(3,))}</div></details>"
        )
    return _section("fusions", "Fusions", "".join(items))


def _of(group: Sequence[MatchRecord], first: MatchRecord) -> str:
    return f' <span class="note">({text(first.block or first.root)})</span>' if len(group) > 1 else ""


def _near_misses(groups: Sequence[Sequence[NearMissRecord]]) -> str:
    if not groups:
        return _section("missed", "What did not fuse", "<p>No near misses: nothing else looks like a fusion.</p>")
    items = []
    for group in groups:
        best = max(group, key=lambda miss: miss.matched)
        rows = [[miss.block or "–", _place(miss.node, miss.graph), miss.op_type, miss.sentence] for miss in group]
        items.append(
            f'<details><summary><span class="name">{text(best.fusion)}</span><span class="count">{len(group)}×</span>'
            f'<span class="note">{text(matched(best))}</span><span class="reason">{text(best.sentence)} '
            f"{_code(best.code)}</span></summary>"
            f'<div class="inside">{_table(("block", "node", "operator", "what stopped it"), rows)}</div></details>'
            f"{_advice([best.advice])}"
        )
    return _section("missed", "What did not fuse", "".join(items))


def _code(code: str) -> str:
    return f'<a href="#{text(code)}">{text(code)}</a>' if code in BY_CODE else ""


def _codes(report: Report) -> str:
    """What the codes mean that the report has."""
    found = {miss.code for miss in report.near_misses} | {code for match in report.matches for code in match.codes}
    kinds = [kind for code, kind in BY_CODE.items() if code in found]
    told = "".join(
        f'<dt id="{kind.code}">{kind.code} {kind.name}</dt><dd>{text(kind.meaning)}{_advice([kind.advice])}</dd>'
        for kind in kinds
    )
    return _section("codes", "What the codes mean", f"<dl>{told}</dl>") if kinds else ""


def _verification(found: dict[str, Any] | None) -> str:
    sentence, _ = verification_line(found)
    content = f"<p>{text(sentence)}</p>"
    if found and found.get("remedy"):
        content += _advice([str(found["remedy"])])
    worst = (found or {}).get("worst") or {}
    content += _compared("output", {name: one for name, one in worst.items() if not one.get("inner")})
    inner = {name: one for name, one in worst.items() if one.get("inner")}
    if inner:
        content += (
            f"<details><summary><span>{counted(len(inner), 'inner value')}: what fused nodes make</span></summary>"
            f'<div class="inside">{_compared("inner value", inner)}</div></details>'
        )
    cases = (found or {}).get("cases") or []
    if cases:
        told = [
            [case.get("name", ""), "passed" if case.get("passed") else "failed", _shapes(case.get("shapes", {}))]
            for case in cases
        ]
        content += (
            f"<details><summary><span>{counted(len(cases), 'case')}: the inputs it was run on</span></summary>"
            f'<div class="inside">{_table(("case", "verdict", "shapes"), told)}</div></details>'
        )
    told_too = [*((found or {}).get("documented") or []), *((found or {}).get("notes") or [])]
    notes = "".join(f"<li>{text(note)}</li>" for note in told_too)
    return _section("verified", "Verification", content + (f"<ul>{notes}</ul>" if notes else ""))


def _compared(what: str, worst: dict[str, dict[str, Any]]) -> str:
    """The worst comparison of each value; the sentence on what is wrong only where there is one."""
    rows = [
        [name, "differs" if one.get("problem") else "equal", _number(one.get("max_abs")), _number(one.get("relative")),
         one.get("problem") or ""]
        for name, one in worst.items()
    ]  # fmt: skip
    headings = (what, "verdict", "max abs", "max relative", "problem")
    if not any(row[4] for row in rows):
        headings, rows = headings[:4], [row[:4] for row in rows]  # type: ignore[assignment]
    return _table(headings, rows, numbers=(2, 3)) if rows else ""


def _passes(report: Report) -> str:
    if not report.passes:
        return ""
    rows = [
        [one.name, f"{one.seconds:.3f}", f"{one.nodes_before:,} → {one.nodes_after:,}", one.rewrites, one.near_misses,
         one.error or ""]
        for one in report.passes
    ]  # fmt: skip
    headings = ("pass", "seconds", "nodes", "rewrites", "near misses", "error")
    if not any(row[5] for row in rows):
        headings, rows = headings[:5], [row[:5] for row in rows]  # type: ignore[assignment]
    return _section("passes", "Passes", _table(headings, rows, numbers=(1, 2, 3, 4)))


def _footer(report: Report) -> str:
    return f"<footer>{text(' · '.join(f'{name} {version}' for name, version in report.versions.items()))}</footer>"


def _section(name: str, title: str, content: str) -> str:
    return f'<section aria-labelledby="{name}"><h2 id="{name}">{title}</h2>{content}</section>'


def _table(headings: Sequence[str], rows: Iterable[Sequence[object]], numbers: Iterable[int] = ()) -> str:
    right = set(numbers)

    def cell(index: int, value: object) -> str:
        # The heading is repeated for narrow screens, where each row is a card.
        style = ' class="number"' if index in right else ""
        return f'<td data-label="{text(headings[index])}"{style}>{text(value)}</td>'

    head = "".join(
        f'<th scope="col"{" class=number" if index in right else ""}>{text(heading)}</th>'
        for index, heading in enumerate(headings)
    )
    listed = list(rows)
    body = "".join(
        f"<tr>{''.join(cell(index, value) for index, value in enumerate(row))}</tr>" for row in listed[:MOST_LISTED]
    )
    more = f'<p class="note">and {len(listed) - MOST_LISTED:,} more</p>' if len(listed) > MOST_LISTED else ""
    return f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>{more}"


def _advice(sentences: Iterable[str]) -> str:
    return "".join(f'<p class="advice"><b>To get it:</b> {text(sentence)}</p>' for sentence in sentences if sentence)


def _place(node: str, graph: str) -> str:
    return f"{node} in {graph}" if graph else node


def _number(value: Any) -> str:
    return f"{float(value):.2e}" if value is not None else ""


def _shapes(shapes: dict[str, Any]) -> str:
    return ", ".join(f"{name} [{', '.join(map(str, shape))}]" for name, shape in shapes.items())


def _groups(records: Iterable[_Record], kind: Callable[[_Record], Any]) -> list[list[_Record]]:
    groups: dict[Any, list[_Record]] = {}
    for record in records:
        groups.setdefault(kind(record), []).append(record)
    return list(groups.values())


def _match_kind(match: MatchRecord) -> tuple[Any, ...]:
    inside = blocks.template(match.block)
    return (match.operator, match.parts, inside, tuple(without_numbers(sentence) for sentence in match.left_out))


# --- the model as a picture -------------------------------------------------------------------------------------------

_WIDTH, _BEFORE, _GAP = 360, 132, 24
_AFTER = _WIDTH - _BEFORE - _GAP
_DOT, _STEP = 5, 7


@dataclass
class _Row:
    """One layer, or equal ones in a row, with the fusions in each: (number of the group, operator) -> how many."""

    layers: list[LayerRecord]
    chips: dict[tuple[int, str], int] = field(default_factory=dict)
    replaced: int = 0

    def like(self, other: _Row) -> bool:
        """Whether the other row looks the same but for its number."""
        a, b = self.layers[0], other.layers[0]
        counts = (a.nodes_before, a.nodes_after) == (b.nodes_before, b.nodes_after)
        return counts and blocks.template(a.name) == blocks.template(b.name) and self.chips == other.chips


def _picture(report: Report, fusions: Sequence[Sequence[MatchRecord]]) -> str:
    rows = _rows(report, fusions)
    if not rows:
        return ""
    alone = "all nodes" if len(rows) == 1 else "other nodes"
    shared = ".".join(blocks.shared(row.layers[0].name for row in rows))
    scale = max(1, -(-max(row.layers[0].nodes_before for row in rows) // 112))
    y, drawn = 30.0, []
    for row in rows:
        height = _height(row, scale)
        drawn.append(_draw(row, y, height, scale, shared, alone))
        y += height + 10
    unit = "one node" if scale == 1 else f"{scale} nodes"
    label = (
        f"{counted(len(report.layers), 'layer')} before, and after with {counted(len(report.matches), 'fused node')}"
    )
    svg = (
        f'<svg class="model" viewBox="0 0 {_WIDTH} {y:.0f}" role="group" aria-label="{label}">'
        f'<text class="head" x="0" y="14">Before</text><text class="head" x="{_BEFORE + _GAP}" y="14">After</text>'
        f"{''.join(drawn)}</svg>"
    )
    legend = (
        f'<p class="legend"><span><i class="dot"></i> {unit}</span>'
        '<span><i class="dot hot"></i> replaced by a fusion</span>'
        '<span><i class="chip"></i> fused node; opens what it replaced</span></p>'
    )
    return _section("model", "The model, before and after", legend + svg)


def _rows(report: Report, fusions: Sequence[Sequence[MatchRecord]]) -> list[_Row]:
    rows = {layer.name: _Row([layer]) for layer in report.layers if layer.nodes_before or layer.nodes_after}
    for number, group in enumerate(fusions, 1):
        for match in group:
            row = rows.get(_owner(match, rows))
            if row is not None:
                key = (number, match.operator)
                row.chips[key] = row.chips.get(key, 0) + 1
                row.replaced += sum(kind != "Constant" for kind in match.replaced_types) or len(match.replaced)
    if len(rows) <= MOST_ROWS:
        return list(rows.values())
    merged: list[_Row] = []
    for row in rows.values():
        if merged and merged[-1].like(row):
            merged[-1].layers += row.layers
        else:
            merged.append(row)
    return merged


def _owner(match: MatchRecord, names: Iterable[str]) -> str:
    """The layer that a match is drawn in: the longest one whose name its block begins with."""
    if match.graph:
        return ""
    fitting = [name for name in names if name and (match.block + ".").startswith(name + ".")]
    return max(fitting, key=len, default="")


def _height(row: _Row, scale: int) -> float:
    before = 36 + _STEP * _lines(row.layers[0].nodes_before, _BEFORE, scale)
    rest = row.layers[0].nodes_after - sum(row.chips.values())
    after = 36 + 24 * len(row.chips) + _STEP * _lines(rest, _AFTER, scale)
    return max(before, after, 44)


def _lines(nodes: int, width: int, scale: int) -> int:
    return -(-max(nodes, 0) // (scale * ((width - 16) // _STEP)))


def _draw(row: _Row, y: float, height: float, scale: int, shared: str, nameless: str) -> str:
    layer, times = row.layers[0], len(row.layers)
    whole = blocks.span([one.name for one in row.layers]) or nameless
    name = layer.name[len(shared) + 1 :] if shared and layer.name.startswith(f"{shared}.") else layer.name
    if times > 1:
        name = f"{name} … {row.layers[-1].name.rsplit('.', 1)[-1]}"
    hot = min(row.replaced, layer.nodes_before)
    right = _BEFORE + _GAP
    parts = [f"<g><title>{text(whole)}: {layer.nodes_before:,} → {layer.nodes_after:,} nodes</title>"]
    for x, width in ((0, _BEFORE), (right, _AFTER)):
        stack = "".join(
            f'<rect class="box" x="{x + shift}" y="{y + shift:.1f}" width="{width - 4}" height="{height:.1f}" rx="7"/>'
            for shift in ((4, 2, 0) if times > 1 else (0,))
        )
        parts.append(stack)
    middle = y + height / 2
    parts.append(f'<path class="arrow" d="M{_BEFORE + 3} {middle:.1f}h{_GAP - 10}m-4 -3l4 3l-4 3"/>')
    parts.append(_words(name or nameless, layer.nodes_before, times, 8, y, _BEFORE))
    parts.append(_dots(8, y + 33, _BEFORE, layer.nodes_before - hot, scale, before=hot))
    parts.append(_words(name or nameless, layer.nodes_after, times, right + 8, y, _AFTER))
    chips = y + 33
    for (number, operator), count in row.chips.items():
        label = operator + (f" ×{count}" if count > 1 else "")
        parts.append(
            f'<a href="#fusion-{number}"><rect class="chip" x="{right + 6}" y="{chips:.1f}" width="{_AFTER - 16}" height="20" '
            f'rx="5"/><text class="on" x="{right + 13}" y="{chips + 14:.1f}">{text(_fit(label, _AFTER - 26))}</text></a>'
        )
        chips += 24
    parts.append(_dots(right + 8, chips, _AFTER, layer.nodes_after - sum(row.chips.values()), scale))
    return "".join(parts) + "</g>"


def _words(name: str, nodes: int, times: int, x: int, y: float, width: int) -> str:
    count = counted(nodes, "node") + (f" each, {times}×" if times > 1 else "")
    return (
        f'<text class="layer" x="{x}" y="{y + 14:.1f}">{text(_fit(name, width - 18, 7.3))}</text>'
        f'<text class="small" x="{x}" y="{y + 26:.1f}">{count}</text>'
    )


def _dots(x: int, y: float, width: int, nodes: int, scale: int, before: int = 0) -> str:
    """A square for each node: first those that a fusion replaced, then the others."""
    columns = (width - 16) // _STEP
    first, rest = -(-before // scale), -(-max(nodes, 0) // scale)
    paths: dict[str, list[str]] = {"dot hot": [], "dot": []}
    for index in range(first + rest):
        place = f"M{x + _STEP * (index % columns)} {y + _STEP * (index // columns):.1f}"
        paths["dot hot" if index < first else "dot"].append(f"{place}h{_DOT}v{_DOT}h-{_DOT}z")
    return "".join(f'<path class="{style}" d="{"".join(path)}"/>' for style, path in paths.items() if path)


def _fit(label: str, width: float, size: float = 7.3) -> str:
    """The end of a name, from a part on, that fits a width."""
    most = max(int(width / size), 4)
    if len(label) <= most:
        return label
    tail = label[-(most - 1) :]
    _, dot, from_part = tail.partition(".")
    return "…" + (from_part if dot and len(from_part) > most // 2 else tail)


def _cut(label: str, most: int) -> str:
    return label if len(label) <= most else label[: most - 1] + "…"


# --- a subgraph as a picture ------------------------------------------------------------------------------------------

_NODE_W, _NODE_H, _COLUMN, _RANK = 118, 20, 126, 36


def subgraph(match: MatchRecord) -> str:
    """What a match replaced, drawn from inputs (top) to its result (bottom) without constants; as a list where it is large."""
    kept = [index for index, kind in enumerate(match.replaced_types) if kind != "Constant"]
    names = "".join(
        f"<li>{text(name)}{f' <span class=note>{text(kind)}</span>' if kind else ''}</li>"
        for name, kind in zip(match.replaced, [*match.replaced_types, *[""] * len(match.replaced)], strict=False)
    )
    listed = (
        f"<details><summary><span>{counted(len(match.replaced), 'node')} by name</span></summary>"
        f'<ol class="inside">{names}</ol></details>'
    )
    if not kept or len(kept) > MOST_DRAWN:
        return listed
    number = {index: position for position, index in enumerate(kept)}
    edges = [(number[a], number[b]) for a, b in match.replaced_edges if a in number and b in number and a < b]
    place, width, ranks = _layout(len(kept), edges)
    lines = "".join(
        f'<path class="edge" d="M{place[a][0]:.0f} {place[a][1] + _NODE_H:.0f}C{place[a][0]:.0f} {place[a][1] + 32:.0f} '
        f'{place[b][0]:.0f} {place[b][1] - 12:.0f} {place[b][0]:.0f} {place[b][1]:.0f}"/>'
        for a, b in edges
    )
    nodes = "".join(
        f'<g><title>{text(match.replaced[index])}</title><rect class="box" x="{x - _NODE_W / 2:.0f}" y="{y:.0f}" '
        f'width="{_NODE_W}" height="{_NODE_H}" rx="5"/><text class="op" x="{x:.0f}" y="{y + 14:.0f}">'
        f"{text(_cut(match.replaced_types[index], 19))}</text></g>"
        for index, (x, y) in zip(kept, place, strict=True)
    )
    label = f"{counted(len(kept), 'node')} that {match.operator} replaced"
    height = ranks * _RANK
    return (
        f'<div class="scroll" tabindex="0" role="region" aria-label="{text(label)}"><svg class="sub" '
        f'viewBox="0 0 {width} {height}" width="{width}" height="{height}" role="img" aria-label="{text(label)}">'
        f"{lines}{nodes}</svg></div>{listed}"
    )


def _layout(count: int, edges: Sequence[tuple[int, int]]) -> tuple[list[tuple[float, float]], int, int]:
    """(top centre of each node, width, number of rows): rows by longest path, each node as near to its readers as can be."""
    readers: list[list[int]] = [[] for _ in range(count)]
    makers: list[list[int]] = [[] for _ in range(count)]
    for a, b in edges:
        readers[a].append(b)
        makers[b].append(a)
    rank = [0] * count
    for index in range(count):
        rank[index] = max((rank[maker] + 1 for maker in makers[index]), default=0)
    for index in reversed(range(count)):
        if readers[index]:
            rank[index] = min(rank[reader] for reader in readers[index]) - 1
    rows: dict[int, list[int]] = {}
    for index in range(count):
        rows.setdefault(rank[index], []).append(index)
    width = max(len(row) for row in rows.values()) * _COLUMN
    centre = [width / 2] * count
    # From the result upwards, so that what feeds a node stands above it.
    for level in sorted(rows, reverse=True):
        row = rows[level]
        wanted = {index: _mean([centre[reader] for reader in readers[index]], width / 2) for index in row}
        row.sort(key=lambda index: wanted[index])
        middle = sum(wanted.values()) / len(row)
        start = min(max(middle - (len(row) - 1) * _COLUMN / 2, _COLUMN / 2), width - (len(row) - 0.5) * _COLUMN)
        for position, index in enumerate(row):
            centre[index] = start + position * _COLUMN
    levels = sorted(rows)
    return [(centre[index], 4.0 + levels.index(rank[index]) * _RANK) for index in range(count)], width, len(levels)


def _mean(values: Sequence[float], default: float) -> float:
    return sum(values) / len(values) if values else default


# --- style and script -------------------------------------------------------------------------------------------------

_DARK = (
    "--bg:#0e131a;--card:#161d27;--line:#2b3646;--text:#e7ecf3;--muted:#a3b0c2;--accent:#45d6a1;--on:#04261a;--soft:#12352b;"
    "--box:#1d2632;--dot:#6d7c91;--warn:#f4bf55;--bad:#ff8f87;"
)
_STYLE = (
    """
:root{color-scheme:light;--bg:#f4f6f9;--card:#fff;--line:#d8dee8;--text:#18202d;--muted:#556074;--accent:#0a7a55;--on:#fff;
--soft:#e3f4ec;--box:#f4f6f9;--dot:#8d99ab;--warn:#8a5a00;--bad:#b3261e}
@media (prefers-color-scheme:dark){:root:not([data-theme=light]){color-scheme:dark;DARK}}
:root[data-theme=dark]{color-scheme:dark;DARK}
*{box-sizing:border-box}
html{-webkit-text-size-adjust:100%}
body{margin:0 auto;max-width:70rem;padding:1.5rem 1rem 3rem;background:var(--bg);color:var(--text);
font:16px/1.5 system-ui,-apple-system,"Segoe UI",Roboto,"Helvetica Neue",Arial,sans-serif;overflow-wrap:anywhere}
header{display:flex;justify-content:space-between;gap:1rem;align-items:flex-start;margin-bottom:1.25rem}
h1{font-size:clamp(1.35rem,4.5vw,2rem);line-height:1.2;margin:.1rem 0}
h2{font-size:1.15rem;margin:0 0 .75rem}
h3{font-size:.95rem;margin:1rem 0 .4rem}
p{margin:.25rem 0 .75rem}
.kicker{color:var(--accent);font-weight:650;letter-spacing:.02em;margin:0}
.path,.note,.legend,footer{color:var(--muted);font-size:.875rem}
.path{margin:0}
button{font:inherit;font-size:1.25rem;line-height:1;width:2.75rem;height:2.75rem;flex:none;border:1px solid var(--line);
border-radius:50%;background:var(--card);color:var(--text);cursor:pointer}
section,.tile{background:var(--card);border:1px solid var(--line);border-radius:12px}
section{padding:1.1rem 1.1rem 1.25rem;margin-top:1rem}
.tiles{display:grid;grid-template-columns:repeat(auto-fit,minmax(10.5rem,1fr));gap:.75rem;margin:0}
.tile{padding:.8rem 1rem;border-top:4px solid var(--line)}
.tile dt{color:var(--muted);font-size:.875rem}
.tile dd{margin:0}
.tile strong{display:block;font-size:1.45rem;line-height:1.3;font-variant-numeric:tabular-nums}
.tile span{color:var(--muted);font-size:.8125rem;line-height:1.35;display:block}
.good{border-top-color:var(--accent)}.good strong{color:var(--accent)}
.tile.unsure{border-top-color:var(--warn)}
.tile.bad{border-top-color:var(--bad)}.bad strong{color:var(--bad)}
.warn{border-left:4px solid var(--warn)}
ul,ol{margin:.25rem 0;padding-left:1.35rem}
.legend{display:flex;flex-wrap:wrap;gap:.25rem 1.1rem}
.legend span{display:flex;align-items:center;gap:.4rem}
.legend i{width:.6rem;height:.6rem;background:var(--dot);border-radius:1px}
.legend i.hot,.legend i.chip{background:var(--accent)}
.legend i.chip{width:1.5rem;height:.8rem;border-radius:4px}
svg{display:block;font-family:inherit}
svg.model{width:100%;max-width:34rem;margin:0 auto;height:auto}
svg text{fill:var(--text);font-size:12px}svg.sub text{font-size:11px}
svg .head{font-weight:650;font-size:13px}
svg .layer{font-weight:600}
svg .small{fill:var(--muted);font-size:10.5px}
svg .box{fill:var(--box);stroke:var(--line)}
svg .dot{fill:var(--dot)}
svg .dot.hot,svg .chip{fill:var(--accent)}
svg .on{fill:var(--on);font-weight:600;font-size:11.3px}
svg .arrow{fill:none;stroke:var(--muted);stroke-width:1.3}
svg a{cursor:pointer}svg a:hover .chip{filter:brightness(1.12)}
svg a:focus-visible{outline:none}svg a:focus-visible .chip{stroke:var(--text);stroke-width:2.5}
.scroll{overflow-x:auto;border:1px solid var(--line);border-radius:8px;padding:.75rem;background:var(--card)}
svg.sub{margin:0 auto;max-width:none}
svg .edge{fill:none;stroke:var(--dot);stroke-width:1.2}
svg .op{text-anchor:middle}
details{border-top:1px solid var(--line)}
details:last-of-type{border-bottom:0}
summary{cursor:pointer;padding:.65rem 0 .65rem 1.3rem;position:relative;display:flex;flex-wrap:wrap;gap:.1rem .6rem;
align-items:baseline;list-style:none;min-height:2.75rem}
summary::-webkit-details-marker{display:none}
summary::before{content:"▸";position:absolute;left:.1rem;color:var(--muted)}
details[open]>summary::before{content:"▾"}
summary .name{font-weight:650}
summary .count{background:var(--soft);color:var(--accent);border-radius:1rem;padding:0 .55rem;font-size:.8125rem;font-weight:650}
#missed~details .count{background:var(--box);color:var(--muted)}
summary .where,summary .reason{flex-basis:100%;font-size:.875rem;color:var(--muted)}
summary .reason{color:var(--text)}
div.inside{padding:0 0 1rem;scroll-margin-top:5rem}
.inside h3:first-child{margin-top:.25rem}
.advice{background:var(--soft);border-radius:8px;padding:.5rem .75rem;font-size:.9375rem;margin:.5rem 0}
table{border-collapse:collapse;width:100%;font-size:.875rem}
th,td{text-align:left;padding:.4rem .75rem .4rem 0;vertical-align:top;border-bottom:1px solid var(--line)}
tr:last-child td{border-bottom:0}
th{color:var(--muted);font-weight:600;white-space:nowrap}
.number{text-align:right;font-variant-numeric:tabular-nums;white-space:nowrap}
:focus-visible{outline:2px solid var(--accent);outline-offset:2px}
footer{margin-top:1.25rem}
@media (max-width:40rem){
body{padding:1rem .75rem 2rem}section{padding:.9rem .8rem 1rem}
.tiles{grid-template-columns:1fr 1fr;gap:.5rem}.tile{padding:.6rem .7rem}.tile strong{font-size:1.15rem}
thead{position:absolute;width:1px;height:1px;overflow:hidden;clip-path:inset(50%)}
table,tbody,tr,td{display:block}
tr{padding:.45rem 0;border-bottom:1px solid var(--line)}tr:last-child{border-bottom:0}
td,td.number{border:0;padding:.1rem 0;text-align:left;white-space:normal;display:flex;gap:.6rem}
td::before{content:attr(data-label);color:var(--muted);flex:0 0 6.2rem}
}
@media print{body{max-width:none}section{break-inside:avoid}button{display:none}}
"""
).replace("DARK", _DARK)

_SCRIPT = """
(function () {
  var root = document.documentElement, button = document.getElementById('theme');
  button.hidden = false;
  button.addEventListener('click', function () {
    var dark = root.dataset.theme ? root.dataset.theme === 'dark' : matchMedia('(prefers-color-scheme: dark)').matches;
    root.dataset.theme = dark ? 'light' : 'dark';
  });
  function show() {
    var target = /^#fusion-[0-9]+$/.test(location.hash) && document.querySelector(location.hash);
    if (!target) { return; }
    var details = target.closest('details');
    details.open = true;
    details.scrollIntoView();
    details.firstElementChild.focus({ preventScroll: true });
  }
  addEventListener('hashchange', show);
  document.addEventListener('click', function (event) {
    var link = event.target.closest && event.target.closest('a[href^="#fusion-"]');
    if (link && link.getAttribute('href') === location.hash) { show(); }
  });
  show();
})();
"""
