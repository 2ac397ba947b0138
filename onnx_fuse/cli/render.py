"""How the command's results read on a terminal: plain text that fits 80 columns."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import zip_longest
from typing import TYPE_CHECKING, Any

from rich import box
from rich.console import Console, RenderableType
from rich.table import Table
from rich.text import Text

from onnx_fuse.passes.graph import blocks
from onnx_fuse.passes.refusals import BY_CODE, OWN, Kind
from onnx_fuse.passes.report import MatchRecord, NearMissRecord, Report, group_near_misses, without_numbers

if TYPE_CHECKING:
    from onnx_fuse.inspect import Inspection
    from onnx_fuse.learning import LearnedFusion
    from onnx_fuse.own_kernels.kernel_check import Checked
    from onnx_fuse.patterns.language.operator import Fusion
    from onnx_fuse.runtime.debug import Diagnosis, Value
    from onnx_fuse.runtime.doctor import Facts, Finding
    from onnx_fuse.runtime.tensorrt.parse import ParseResult
    from onnx_fuse.runtime.verify.record import Verification

NEAREST = 3
"""Groups of near misses that `fuse` shows; `explain` shows them all."""

MOST = 8
"""Names that are listed in a row."""

AFTER = 4
"""Values after the first that differs that `debug` looks at without --all."""


def visible(text: object) -> str:
    """The text in one line with control characters escaped: names come from files, and a terminal obeys what it is sent."""
    line = " ".join(str(text).split())
    return line if line.isprintable() else "".join(c if c.isprintable() else ascii(c)[1:-1] for c in line)


def say(console: Console, text: object = "", style: str = "") -> None:
    """One line that is never broken, so that a path in it can be copied."""
    console.print(Text(visible(text), style=style), soft_wrap=True)


def say_columns(console: Console, text: str, style: str = "") -> None:
    """A line whose spaces matter; what comes from files in it is `visible` already."""
    console.print(Text(text.rstrip(), style=style), soft_wrap=True)


def indented(console: Console, text: object, columns: int, style: str = "") -> None:
    """A paragraph wrapped at the width of the terminal, all of its lines indented."""
    for line in Text(visible(text), style=style).wrap(console, max(console.width - columns, 20), overflow="fold"):
        line.rstrip()
        console.print(Text(" " * columns) + line, soft_wrap=True)


def table(*headings: str, numbers: Iterable[int] = (), first: int = 0) -> Table:
    """An empty table; columns in `numbers` are right-aligned and never wrapped, the first is at least `first` wide, up to 40."""
    right = set(numbers)
    result = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False, header_style="bold")
    for index, heading in enumerate(headings):
        number = index in right
        result.add_column(heading, justify="right" if number else "left", no_wrap=number, overflow="fold")
    result.columns[0].min_width = min(first, 40)
    return result


def row(target: Table, *cells: object) -> None:
    target.add_row(*(Text(visible(cell)) for cell in cells))


def counted(number: int, noun: str) -> str:
    """`1 node`, `2,000 nodes`."""
    return f"{number:,} {noun}" + ("" if number == 1 else "es" if noun.endswith("s") else "s")


def size_text(size: int) -> str:
    """Bytes as people read them."""
    if size < 1024:
        return counted(size, "byte")
    units = ("bytes", "KiB", "MiB", "GiB", "TiB")
    power = min((size.bit_length() - 1) // 10, len(units) - 1)
    return f"{size / 1024**power:.1f} {units[power]}"


# --- fuse and explain -------------------------------------------------------------------------------------------------


def fuse_result(console: Console, report: Report, model: str, out: str, seconds: float) -> None:
    """What `fuse` prints: what was fused, what nearly was, whether it was proven equal, where it is."""
    if report.matches:
        console.print(_matches_table(report.matches))
        console.print()
    else:
        say(console, f"Nothing was fused: {_why_nothing(report)}.", "bold")
    if report.selection:
        selection(console, report.selection)
    before, after = report.nodes_before, report.nodes_after
    fewer = f" ({(before - after) / before:.0%} fewer)" if after < before else ""
    say(console, f"Nodes: {before:,} before, {after:,} after{fewer}.")
    _equalities(console, report)
    if report.near_misses:
        groups = group_near_misses(report.near_misses)
        console.print()
        say(console, "Nearest to fusing, and did not:" if report.matches else "Nearest to fusing:", "bold")
        _near_misses(console, groups[:NEAREST])
        total = f"all {len(groups)} reasons" if len(groups) > NEAREST else "the places"
        say(console, f"`onnx-fuse explain {model}` shows {total}.", "dim")
    console.print()
    text, style = verification_line(report.verification)
    say(console, text, style)
    say(console, f"Wrote {out} in {seconds:.1f} s.")


def _why_nothing(report: Report) -> str:
    if report.selection:
        return "what matches does not pay"
    if report.near_misses:
        return f"{counted(len(report.near_misses), 'place')} came near it"
    return "nothing in the model looks like what the fusions take (`onnx-fuse list`)"


def selection(console: Console, chosen: dict[str, Any]) -> None:
    """What was predicted or measured for each fused node, equal ones together, and what it was for."""
    sizes = ", ".join(f"{name} = {size}" for name, size in chosen["sizes"].items()) or "the sizes of the model"
    verb = "Predicted" if chosen["method"] == "auto" else "Measured"
    say(console, f"{verb} for {chosen['device']}, {chosen['precision']}, {sizes}:", "bold")
    if chosen["assumed"]:
        say(console, f"(assumed: {', '.join(chosen['assumed'])}; give them with --sizes NAME=N)", "dim")
    groups = Counter(
        (item["keep"], item["operator"], item["before_us"], item["after_us"], item["reason"])
        for item in chosen["decisions"]
    )
    for (keep, operator, before, after, reason), count in groups.items():
        times = "" if before is None else f" {before:.1f} -> {after:.1f} us"
        verdict = "keep" if keep else "leave"
        indented(console, f"{verdict} {operator} x {count}{times}", 2, "" if keep else "yellow")
        indented(console, reason, 6)
    for note in chosen["notes"]:
        indented(console, f"note: {note}", 2, "dim")
    console.print()


def passes(console: Console, report: Report) -> None:
    """The passes with their cost, for `-v`."""
    result = table("pass", "seconds", "nodes before", "after", "rewrites", "near misses", numbers=range(1, 6))
    for one in report.passes:
        row(
            result, one.name, f"{one.seconds:.3f}", f"{one.nodes_before:,}", f"{one.nodes_after:,}", one.rewrites,
            one.near_misses,
        )  # fmt: skip
    console.print(result)


def warnings(console: Console, report: Report) -> None:
    """Warnings, and the errors of passes that were passed over."""
    for warning in report.warnings:
        say(console, f"warning: {warning}", "yellow")
        if advice := blocks.advise(warning):
            say(console, f"hint: {advice}")
    for one in report.passes:
        if one.error:
            say(console, f"warning: {one.name} failed and was left out: {one.error}", "yellow")


def _equalities(console: Console, report: Report) -> None:
    for name, size in report.equalities.items():
        say(console, f"The model only runs with {name} = {size}: a Reshape in it is hard-coded to that.", "yellow")


def verification(console: Console, result: Verification) -> None:
    """What `verify` prints: the verdict, then what was compared."""
    verdict, *details = result.summary()
    exact = result.passed and not result.documented and result.unfinished is None
    say(console, verdict, "green" if exact else "yellow" if result.passed else "bold red")
    for line in details:
        say_columns(console, f"  {visible(line)}")


def verification_line(verification: dict[str, Any] | None) -> tuple[str, str]:
    """The verification in one line, and its style."""
    if verification is None:
        return "Not verified.", "yellow"
    if verification.get("skipped"):
        return f"Not verified: {verification['skipped']}", "yellow"
    if not verification.get("passed"):
        problem = str(verification.get("problem") or "the outputs differ.")
        return f"{'Not proven' if problem.startswith('inconclusive') else 'NOT equal'}: {problem}", "bold red"
    cases = verification.get("cases", [])
    differences = [float(one["relative"]) for case in cases for one in case.get("comparisons", [])]
    worst = f", relative difference up to {max(differences):.1e}" if differences else ""
    allowed = f" (allowed {verification['rtol']:g})" if differences and verification.get("rtol") else ""
    equal = "equal but for documented differences" if verification.get("documented") else "equal"
    line = f"Verified: {equal} in {counted(len(cases), 'case')}{worst}{allowed}."
    if verification.get("unfinished"):
        line += f" Stopped after {verification['timeout']:g} s: {verification['unfinished']}."
    return line, "yellow" if verification.get("unfinished") or verification.get("documented") else "green"


def explanation(console: Console, report: Report, *, at: str | None = None, pattern: str | None = None) -> None:
    """What `explain` prints: what would fuse, then what nearly would, grouped by reason; all details for one place."""
    if at is not None:
        _details(console, report, at)
        return
    about = f" ({pattern})" if pattern else ""
    if report.matches:
        say(console, f"Would fuse{about}: {counted(len(report.matches), 'place')}", "bold")
        console.print(_matches_table(report.matches))
    else:
        say(console, f"Nothing would fuse{about}.", "bold")
    _equalities(console, report)
    if report.near_misses:
        summary = f"{counted(len(report.near_misses), 'place')}, {counted(len(report.grouped_near_misses()), 'reason')}"
        say(console, f"Near misses: {summary}", "bold")
    elif report.matches:
        say(console, "No near misses.")
    else:
        say(console, "No near misses: nothing in the model looks like what the fusions take (`onnx-fuse list`).")
    for group in by_layer(report.matches, report.near_misses):
        console.print()
        indented(console, group.title, 0, "bold")
        for match, count in group.matches:
            place = f"{_inside(match.block)}: " if _inside(match.block) else ""
            parts = f" with {', '.join(match.parts)}" if match.parts else ""
            times = f"{count}x " if count > 1 else ""
            indented(console, f"{place}{times}{match.operator}{parts}, {counted(len(match.replaced), 'node')}", 2)
            indented(console, f"first at {_place(match.root, match.graph)}", 6, "dim")
            for sentence, code in zip_longest(match.left_out, match.codes, fillvalue=""):
                indented(console, f"left out: {_with_code(sentence, code)}", 6)
            for advice in match.advice:
                indented(console, f"to get it: {advice}", 6, "cyan")
        _near_misses(console, group.near_misses)
    if report.near_misses:
        console.print()
        say(console, "`--at NODE` shows one place in full, `--pattern NAME` one fusion.", "dim")
        code = report.near_misses[0].code or OWN.code
        say(console, f"`onnx-fuse explain {code}` tells what a code means.", "dim")


@dataclass(frozen=True)
class LayerGroup:
    """Equal layers and what happened in each of them.

    Attributes:
        layers: their names; ("",) for what names none.
        matches: the fusions in the first of the layers, equal ones together, with their number.
        near_misses: the near misses likewise.
    """

    layers: tuple[str, ...]
    matches: tuple[tuple[MatchRecord, int], ...]
    near_misses: tuple[tuple[NearMissRecord, int], ...]

    @property
    def title(self) -> str:
        """`encoder.layer.0 … encoder.layer.11 (12 layers)`."""
        if self.layers == ("",):
            return "outside of named layers"
        return blocks.span(self.layers) + (f" ({len(self.layers)} layers)" if len(self.layers) > 2 else "")


def by_layer(matches: Iterable[MatchRecord], near_misses: Iterable[NearMissRecord]) -> list[LayerGroup]:
    """What happened in each layer, layers in which the same happened together, in the order they are met."""
    layers: dict[str, dict[tuple[Any, ...], list[MatchRecord | NearMissRecord]]] = {}
    records: list[MatchRecord | NearMissRecord] = [*matches, *near_misses]
    for record in records:
        layer = blocks.layer_of(record.block)
        layers.setdefault(layer, {}).setdefault(_kind(record, layer), []).append(record)
    groups: dict[tuple[Any, ...], list[str]] = {}
    for layer, kinds in layers.items():
        counts = tuple((kind, len(found)) for kind, found in kinds.items())
        groups.setdefault((blocks.template(layer), counts), []).append(layer)
    result = []
    for names in groups.values():
        held = [(found[0], len(found)) for found in layers[names[0]].values()]
        result.append(
            LayerGroup(
                tuple(names),
                tuple((record, count) for record, count in held if isinstance(record, MatchRecord)),
                tuple((record, count) for record, count in held if isinstance(record, NearMissRecord)),
            )
        )
    return result


def _kind(record: MatchRecord | NearMissRecord, layer: str) -> tuple[Any, ...]:
    """Equal for records that differ only in their numbers."""
    inside = blocks.template(record.block[len(layer) :])
    if isinstance(record, MatchRecord):
        left_out = tuple(without_numbers(sentence) for sentence in record.left_out)
        return ("match", inside, record.operator, record.parts, left_out)
    return ("miss", inside, record.fusion, without_numbers(record.reason))


def _inside(block: str) -> str:
    """What of a block lies below its layer: "attention" of "encoder.layer.2.attention"."""
    return block[len(blocks.layer_of(block)) :].lstrip(".")


def _matches_table(matches: Sequence[MatchRecord]) -> Table:
    """One row for each operator and set of parts."""
    groups: dict[tuple[str, tuple[str, ...]], list[MatchRecord]] = {}
    for match in matches:
        groups.setdefault((match.operator, match.parts), []).append(match)
    result = table(
        "operator", "count", "nodes replaced", "with", numbers=(1, 2), first=max(len(op) for op, _ in groups)
    )
    for (operator, parts), group in groups.items():
        row(result, operator, len(group), f"{sum(len(m.replaced) for m in group):,}", ", ".join(parts) or "-")
    return result


def _near_misses(console: Console, groups: Iterable[tuple[NearMissRecord, int]]) -> None:
    for miss, count in groups:
        places = "" if count == 1 else f", and {counted(count - 1, 'more place')}"
        head = f"{miss.fusion}: {matched(miss)} at {_place(miss.node, miss.graph)}{places}"
        indented(console, head, 2)
        indented(console, _with_code(miss.sentence, miss.code), 6, "italic")
        if miss.advice:
            indented(console, f"to get it: {miss.advice}", 6, "cyan")


def _details(console: Console, report: Report, at: str) -> None:
    for match in report.matches:
        say(console, f"{match.fusion} would fuse at {_place(match.root, match.graph)}", "bold")
        if match.block:
            indented(console, f"block: {match.block}", 2)
        if match.operator != match.fusion:
            indented(console, f"operator: {match.operator}", 2)
        indented(console, f"matched {counted(len(match.replaced), 'node')}: {', '.join(match.replaced)}", 2)
        indented(console, f"inputs: {', '.join(match.inputs)}; outputs: {', '.join(match.outputs)}", 2)
        if match.parts:
            indented(console, f"with: {', '.join(match.parts)}", 2)
        for sentence, code in zip_longest(match.left_out, match.codes, fillvalue=""):
            indented(console, f"left out: {_with_code(sentence, code)}", 2)
        for advice in match.advice:
            indented(console, f"to get it: {advice}", 2, "cyan")
    for miss in report.near_misses:
        say(console, f"{miss.fusion} does not fuse at {_place(miss.node, miss.graph)} ({miss.op_type})", "bold")
        if miss.block:
            indented(console, f"block: {miss.block}", 2)
        indented(console, f"{matched(miss)}, then:", 2)
        indented(console, _with_code(miss.sentence, miss.code), 6, "italic")
        if miss.advice:
            indented(console, f"to get it: {miss.advice}", 2, "cyan")
    if not report.matches and not report.near_misses:
        say(console, f"No fusion begins to match at {at}.")


def _with_code(sentence: str, code: str) -> str:
    return f"{sentence} [{code}]" if code else sentence


def matched(miss: NearMissRecord) -> str:
    """How far an attempt got, in words."""
    if miss.matched >= miss.total:
        return f"matched all {miss.total} nodes"
    return f"matched {miss.matched} of {miss.total} nodes"


def _place(node: str, graph: str) -> str:
    return f"{node} in {graph}" if graph else node


def codes(console: Console) -> None:
    """All kinds of refusal: code, name, what it means."""
    result = table("code", "name", "meaning")
    for kind in BY_CODE.values():
        row(result, kind.code, kind.name, kind.meaning)
    console.print(result)


def code(console: Console, kind: Kind) -> None:
    """One kind of refusal: what it means, an example, what to change in the export."""
    say(console, f"{kind.code} {kind.name}", "bold")
    indented(console, kind.meaning, 2)
    indented(console, f"for example: {kind.example}", 2, "italic")
    indented(
        console, f"to get it: {kind.advice}" if kind.advice else "No change of the export is known that would help.", 2
    )


# --- learn ------------------------------------------------------------------------------------------------------------

_NOTES = {
    "input": "Inputs",
    "weight": "Inputs that were parameters",
    "attribute": "Attributes",
    "fixed": "Fixed: a model must have the same value here",
    "dimension": "Dimensions",
    "unused": "Left out",
    "form": "Exports",
}


def learned(console: Console, fusion: LearnedFusion, out: str) -> None:
    """What `learn` prints: what was generalised, what was fixed, and what there is not."""
    operator = fusion.operator
    say(console, f"{operator.domain}::{operator.name}, {fusion.summary}", "bold")
    for kind, title in _NOTES.items():
        notes = [note for note in fusion.notes if note.kind == kind]
        if notes:
            say(console, f"{title}:")
        for note in notes:
            indented(console, f"{note.name}: {note.text}", 2)
    console.print()
    say(console, "It found its own example, and computes the same.", "green")
    say(
        console,
        "It has a body, and no kernel yet: TensorRT runs the body until it is given a plugin of that name.",
        "yellow",
    )
    say(console, f"Wrote {out}. Use it: onnx-fuse fuse MODEL -o OUT --with {out}")


# --- list, parse, inspect ---------------------------------------------------------------------------------------------


def checked_kernels(console: Console, results: Sequence[Checked]) -> None:
    """The runs of each kernel, and the one that is furthest off."""
    kernels = table("kernel", "runs", "largest difference", "with", numbers=(1, 2))
    for kernel in dict.fromkeys(item.kernel for item in results):
        runs = [item for item in results if item.kernel == kernel]
        worst = max(runs, key=lambda item: (item.problem is not None, item.relative))
        row(kernels, kernel, len(runs), f"{100 * worst.relative:.2g} %", worst.told)
    console.print(kernels)


def fusion_list(console: Console, fusions: Iterable[Fusion]) -> None:
    """The fusions: name, whether on by default, operator, what they match."""
    listed = list(fusions)
    result = table("fusion", "", "what it matches", first=max((len(fusion.name) for fusion in listed), default=0))
    for fusion in listed:
        operator = "" if fusion.operator.name == fusion.name else f". Operator: {fusion.operator.name}"
        row(result, fusion.name, "default" if fusion.default else "opt-in", fusion.summary + operator)
    console.print(result)


def parse_result(console: Console, result: ParseResult) -> None:
    """What NVIDIA's parser said."""
    verdict = "accepts" if result.accepted else "does NOT accept"
    say(
        console,
        f"{result.module} {result.version} {verdict} the model: {counted(result.layers, 'layer')}, "
        f"{len(result.plugins)} of them plugins.",
        "green" if result.accepted else "bold red",
    )
    if result.plugins:
        indented(console, f"plugins: {', '.join(result.plugins)}", 2)
    for operator, count in result.inlined.items():
        indented(console, f"{operator}: {counted(count, 'call')} ran as the function body; no plugin takes them", 2)
    for issue in result.errors:
        where = f"{issue.node} ({issue.op_type})" if issue.node else issue.op_type or "the model"
        indented(console, f"{where}: {issue.code}", 2)
        indented(console, issue.message, 6, "italic")
        if issue.stack:
            indented(console, f"inside {' > '.join(issue.stack)}", 6)
    for line in result.log:
        indented(console, line, 2, "dim")


def diagnosis(console: Console, found: Diagnosis, *, every: bool = False) -> None:
    """What `debug` found: the values in the order of the graph, then the place where the models part."""
    first = next((index for index, value in enumerate(found.values) if value.comparison.problem is not None), None)
    shown = [
        value
        for index, value in enumerate(found.values)
        if every or ((first is None or index <= first + AFTER) and _is_telling(value))
    ]
    say(console, f"{found.case}; allowed are {found.rtol:g} of a value's largest magnitude.", "bold")
    if shown:
        width = max(len(value.fused_op_type) for value in shown)
        say_columns(console, f"{'':7}  max abs  relative     mean      std  {'made by':{width}}  value", "bold")
    for value in shown:
        one, of = value.comparison, value.original
        state, style = ("ok", "") if one.problem is None else ("DIFFERS", "red")
        numbers = f"{one.max_abs:8.1e} {one.relative:9.1e} {_short(of.mean):>8} {_short(of.std):>8}"
        say_columns(console, f"{state:7} {numbers}  {value.fused_op_type:{width}}  {visible(value.name)}", style)
    if len(shown) < len(found.values):
        rest = len(found.values) - len(shown)
        say(console, f"{counted(rest, 'further value')} {'is' if rest == 1 else 'are'} shown by --all.", "dim")
    console.print()
    for note in found.notes:
        say(console, f"note: {note}")
    if found.place is None:
        values, cases = counted(len(found.values), "value"), counted(found.cases, "case")
        say(console, f"Equal: {values} in each of {cases}.", "green")
        return
    say(console, found.place.sentence(), "bold red")
    if first is not None:
        indented(console, found.values[first].comparison.problem, 2)
    if found.place.fused_nodes:
        replaced = found.place.replaced or found.place.original_nodes
        more = f", and {counted(len(replaced) - MOST, 'more node')} (--json)" if len(replaced) > MOST else ""
        indented(console, f"In the original it is made by: {', '.join(replaced[:MOST])}{more}", 2)


def _is_telling(value: Value) -> bool:
    return value.comparison.problem is not None or value.op_type != value.fused_op_type


def health(console: Console, facts: Facts, findings: Sequence[Finding]) -> None:
    """What `doctor` found: what there is, then what is wrong with it."""
    from onnx_fuse.runtime.plugins import plugin_library

    parts = [f"Python {facts.python}, {facts.system}"]
    parts.append(", ".join(f"{name} {version}" for name, version in facts.packages.items()))
    parts.append(f"opsets: onnx {facts.onnx_opset}, ONNX Runtime {facts.onnxruntime_opset}")
    parts.append(f"TensorRT: {facts.tensorrt or 'none'} {facts.tensorrt_version}".rstrip())
    parts.append("driver: " + ("none" if facts.driver is None else f"CUDA {'.'.join(map(str, facts.driver))}"))
    parts += [f"GPU: {gpu.name}, sm_{gpu.capability}, {size_text(gpu.memory)}" for gpu in facts.gpus]
    for part in parts:
        indented(console, part, 0)
    for library in facts.libraries:
        say(console, f"plugin library: {library.path}")
        if library.sha256:
            held = plugin_library.of_architectures(library.architectures)
            indented(console, f"version {library.version}, {held}, sha256 {library.sha256}", 2)
    kernels = facts.kernel_library
    if kernels is not None:
        say(console, f"kernel library: {kernels.path}")
        if kernels.operators:
            indented(console, f"{kernels.instructions} here, for {', '.join(kernels.operators)}", 2)
        if kernels.sha256:
            indented(console, f"version {kernels.version}, sha256 {kernels.sha256}", 2)
    ours = [item for item in facts.creators if item.name in facts.operators]
    if ours:
        result = table("plugin", "version", "fields")
        for creator in ours:
            row(result, creator.name, creator.version, ", ".join(creator.fields))
        console.print()
        console.print(result)
    console.print()
    styles = {"broken": "bold red", "warning": "yellow", "note": ""}
    for finding in findings:
        say(console, f"{finding.level}: {finding.what}", styles[finding.level])
        say_columns(console, f"  {visible(finding.remedy)}")  # a command in it is to be copied
    if not any(finding.level == "broken" for finding in findings):
        say(console, "Nothing is broken.", "green")


def _short(value: float | None) -> str:
    return "" if value is None else f"{value:.2g}"


def inspection(console: Console, found: Inspection) -> None:
    """What is in a model."""
    say(console, f"{found.model}: {size_text(found.file_bytes)}, IR version {found.ir_version}", "bold")
    say(console, f"opsets: {', '.join(f'{domain} {version}' for domain, version in found.opsets.items())}")
    if found.producer:
        say(console, f"producer: {found.producer}")
    inner = [
        f"{number:,} in {where}"
        for number, where in ((found.subgraph_nodes, "subgraphs"), (found.function_nodes, "functions"))
        if number
    ]
    say(console, f"nodes: {found.nodes:,}" + "".join(f", {text}" for text in inner))
    say(
        console,
        f"weights: {counted(found.weights, 'tensor')}, {counted(found.parameters, 'element')}, "
        f"{size_text(found.embedded_bytes)} inside, {size_text(found.external_bytes)} outside",
    )
    _section(console, ("input", "type"), [(value.name, value.type) for value in found.inputs])
    _section(console, ("output", "type"), [(value.name, value.type) for value in found.outputs])
    _section(
        console,
        ("fused node", "operator", "inputs"),
        [(_place(node.name, node.graph), node.operator, ", ".join(node.inputs)) for node in found.fused],
    )
    _section(
        console,
        ("function", "inputs", "outputs", "nodes"),
        [(function.name, function.inputs, function.outputs, function.nodes) for function in found.functions],
        numbers=(1, 2, 3),
    )
    _section(
        console,
        ("external data", "size", "tensors"),
        [(file.location, size_text(file.file_bytes), file.tensors) for file in found.external_data],
        numbers=(1, 2),
    )
    _section(console, ("operator", "nodes"), list(found.operators.items()), numbers=(1,))
    _section(console, ("metadata", "value"), [(key, _shortened(value)) for key, value in found.metadata.items()])


def _section(
    console: Console, headings: tuple[str, ...], rows: Sequence[tuple[object, ...]], numbers: Iterable[int] = ()
) -> None:
    if rows:
        result = table(*headings, numbers=numbers)
        for cells in rows:
            row(result, *cells)
        content: RenderableType = result
        console.print()
        console.print(content)


def _shortened(value: str, limit: int = 200) -> str:
    return value if len(value) <= limit else f"{value[:limit]}... ({len(value)} characters)"
