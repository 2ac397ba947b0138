"""Writes what the README and the pages have from code and measurements, between their markers. `make docs` runs it.

python docs/generate.py
"""

from __future__ import annotations

import ast
import importlib
import json
import re
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import cache, partial
from pathlib import Path
from typing import Any

import onnx_fuse
from onnx_fuse import errors
from onnx_fuse.passes.refusals import BY_CODE
from onnx_fuse.passes.select import kernel_table
from onnx_fuse.patterns.language.operator import FusedOp
from onnx_fuse.runtime.plugins import declared_cpp

ROOT = Path(__file__).resolve().parents[1]
NOT_MEASURED = "–"
SOURCES = ("onnx_fuse", "passes", "patterns", "runtime")
MARKED = re.compile(r"(<!-- generated: (\w+) -->\n).*?(<!-- end -->)", re.DOTALL)
CLASSES = {
    name: kind
    for name, kind in vars(errors).items()
    if isinstance(kind, type) and issubclass(kind, errors.OnnxFuseError) and kind is not errors.OnnxFuseError
}


def table(headings: Iterable[str], rows: Iterable[Iterable[Any]], numbers: int = 0) -> str:
    """A Markdown table; the last `numbers` columns are right-aligned."""
    heads = list(headings)
    rule = ["---"] * (len(heads) - numbers) + ["---:"] * numbers
    return "\n".join("| " + " | ".join(str(cell) for cell in row) + " |" for row in (heads, rule, *rows))


# --- operators.md ----------------------------------------------------------------------------------------------------


def declared(operator: FusedOp) -> str:
    """What each input and output of an operator may be."""
    assert operator.declaration is not None
    parts = []
    for title, tensors in (("input", operator.declaration.inputs), ("output", operator.declaration.outputs)):
        rows = []
        for tensor in tensors:
            shapes = "; or ".join(in_words(shape.text) + condition(shape.condition) for shape in tensor.shapes)
            types = " or ".join(tensor.types)
            rows.append([f"`{tensor.name}`" + "?" * tensor.optional, types, shapes, tensor.meaning])
        parts.append(table((title, "type", "shape", ""), rows))
    sizes = [f"{size} = `{attribute}`" for size, attribute in operator.declaration.sizes.items()]
    sizes += [f"{size} ≥ {count}" for size, count in operator.declaration.least.items()]
    return "\n\n".join([*parts, *([", ".join(sizes)] if sizes else [])])


def in_words(shape: str) -> str:
    """A shape as it may stand in a table."""
    return re.sub(r"\*(?=\w)", "·", shape.replace("|", " or ")).replace("*", "")


def condition(found: tuple[str, str] | None) -> str:
    """For which nodes a shape is, in words."""
    if found is None:
        return ""
    name, value = found
    return {"given": f" with `{name}`", "absent": f" without `{name}`"}.get(value, f" if `{name}={value}`")


def operators() -> str:
    """What the definitions of the operators say: names in their order."""
    rows = []
    for fusion in onnx_fuse.fusions():
        operator = fusion.operator
        columns = (operator.inputs, operator.outputs, operator.attributes)
        found = "default" if fusion.default else f"`--enable {fusion.name}`"
        named = (" ".join(f"`{name}`" for name in names) or "none" for names in columns)
        rows.append([f"[{operator.name}](#{operator.name.lower()})", fusion.summary, *named, found])
    return table(("operator", "computes", "inputs", "outputs", "attributes", "found by"), rows)


# --- troubleshooting.md ----------------------------------------------------------------------------------------------


@cache
def messages() -> tuple[tuple[str, str, str], ...]:
    """Class, cause and remedy of every error that the code can raise; what is filled in is in angle brackets."""
    return tuple(found_messages())


def found_messages() -> Iterator[tuple[str, str, str]]:
    seen = set()
    for path in sorted(path for folder in SOURCES for path in (ROOT / folder).rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if not isinstance(node, ast.Call) or name_of(node.func) not in CLASSES:
                continue
            cause, remedy = [*map(template, node.args[:2]), None, None][:2]
            if cause and (name_of(node.func), cause) not in seen:
                seen.add((name_of(node.func), cause))
                yield name_of(node.func), cause, remedy or ""


def name_of(node: ast.expr) -> str:
    """`path` of `path`, `self.path` and `visible(path)`."""
    if isinstance(node, ast.Call):
        return name_of(node.args[0] if node.args else node.func)
    if isinstance(node, ast.Subscript):
        return name_of(node.value)
    return node.attr if isinstance(node, ast.Attribute) else node.id if isinstance(node, ast.Name) else "..."


def template(node: ast.expr) -> str | None:
    """A message as it is written in the code; None if it is made elsewhere."""
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        return node.value
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add):
        parts = [template(node.left), template(node.right)]
        return None if parts == [None, None] else "".join(part or "<...>" for part in parts)
    if isinstance(node, ast.JoinedStr):
        return "".join(
            filled_in(part.value) if isinstance(part, ast.FormattedValue) else str(getattr(part, "value", ""))
            for part in node.values
        )
    return None


def filled_in(node: ast.expr) -> str:
    """What stands for a value: its name in angle brackets; for a command that installs, the one for a clone."""
    if isinstance(node, ast.Call) and name_of(node.func) in ("add_extra", "pip_install"):
        arguments = [template(argument) or f"<{name_of(argument)}>" for argument in node.args]
        if name_of(node.func) == "add_extra":
            arguments = [f"'.[{arguments[0]}]'"]
        return " ".join(["pip install", *arguments])
    return f"<{name_of(node)}>"


def troubleshooting() -> str:
    """All messages by exit code and class."""
    sections = []
    for name, kind in sorted(CLASSES.items(), key=lambda item: (item[1].exit_code, item[0])):
        rows = sorted((cell(cause), cell(remedy)) for which, cause, remedy in messages() if which == name)
        if rows:
            summary = " ".join((kind.__doc__ or "").split())
            sections.append(
                f"### {name}\n\nExit code {kind.exit_code}. {summary}\n\n{table(('cause', 'remedy'), rows)}"
            )
    return "\n\n".join(sections)


def codes() -> str:
    """All kinds of refusal."""
    sections = []
    for kind in BY_CODE.values():
        advice = f"To get it: {kind.advice}" if kind.advice else "No change of the export is known that would help."
        sections.append(f"### {kind.code} {kind.name}\n\n{kind.meaning}\n\n    {kind.example}\n\n{cell(advice)}")
    return "\n\n".join(sections)


def cell(text: str) -> str:
    """Text as it may stand in a table."""
    escaped = re.sub(r"([\\`*_\[\]|])", r"\\\1", " ".join(text.split()))
    return escaped.replace("<", "&lt;").replace(">", "&gt;")


# --- performance.md --------------------------------------------------------------------------------------------------


def results(name: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((ROOT / "benchmarks" / "results" / f"{name}.json").read_text(encoding="utf-8"))
    return found


def measured(name: str) -> str:
    """Where and with what a benchmark ran."""
    data = results(name)
    machine = data["machine"]
    return f"`{data['command']}`, on {machine['cores']} cores of {machine['cpu']}."


def recommenders() -> str:
    """Nodes and latency of the recommender models: one row for each, over its exports."""
    by_model: dict[str, list[dict[str, Any]]] = {}
    for row in results("recommenders")["results"]:
        by_model.setdefault(row["model"], []).append(row)
    rows = []
    for model, exports in by_model.items():
        fused = ", ".join(f"{count} {name}" for name, count in exports[-1]["fused"].items())
        ratios = [export["ms_after"] / export["ms_before"] for export in exports]
        nodes = f"{exports[-1]['nodes_before']} to {exports[-1]['nodes_after']}"
        rows.append([model, fused, nodes, f"{min(ratios):.2f} to {max(ratios):.2f}"])
    headings = ("model", "fused", "nodes of the last export", "ONNX Runtime latency, after / before")
    return f"{measured('recommenders')}\n\n{table(headings, rows, numbers=2)}"


def onnxruntime() -> str:
    """Fused models in ONNX Runtime, by their bodies and by kernels: one row for each model, over its exports and batches."""
    data = results("onnxruntime")
    alone = [row for row in data["results"] if row["threads"] == 1]
    rows = []
    for model in dict.fromkeys(row["model"] for row in alone):
        mine = [row for row in alone if row["model"] == model]
        ratios = [spread([row["ratio"].get(side) for row in mine]) for side in ("bodies", "library", "optimizer")]
        most = max(mine, key=lambda row: row["run_mb"]["original"])["run_mb"]
        memory = " / ".join(f"{most[side]:.3g}" for side in ("original", "bodies", "library") if side in most)
        rows.append([model, *ratios, memory])
    headings = ("model", "bodies", "kernel library", "onnxruntime.transformers", "peak MB of a run")
    return (
        f"{measured('onnxruntime').removesuffix('.')} ({data['kernels']} kernels), one thread: time of the original's, over "
        "exports and batches. Memory is that of the original, with bodies, and with kernels.\n\n"
        "![The same as a plot](../benchmarks/results/onnxruntime.png)\n\n"
        f"{table(headings, rows, numbers=4)}"
    )


def spread(found: Iterable[float | None]) -> str:
    """The least and the largest of some figures; nothing where there are none."""
    known = sorted({f"{ratio:.2f}" for ratio in found if ratio is not None})
    return " to ".join(dict.fromkeys((known[0], known[-1]))) if known else ""


def fusing() -> str:
    """What fusing a BERT costs, and how cost grows."""
    bert, scaling = results("bert_base"), results("scaling")
    rows = [
        [row["tool"], row["attention"], f"{row['cpu_seconds']:.1f}", f"{row['peak_mb']:.0f}"] for row in bert["results"]
    ]
    headings = ("tool", "attention blocks fused", "CPU s", "peak MB")
    most = max(row["nodes"] for row in scaling["results"])
    large = [
        [
            row["tool"],
            f"{row['cpu_seconds']:.1f}",
            f"{row['above_mb']:.0f}",
            f"{scaling['exponents'][row['tool']]['all']:.2f}",
            f"{scaling['exponents'][row['tool']]['largest_two']:.2f}",
        ]
        for row in scaling["results"]
        if row["nodes"] == most
    ]
    grown = ("tool", "CPU s", "MB above the imports", "exponent of cost over nodes", "over the two largest sizes")
    aims = scaling["targets"]
    external = scaling["large"]
    return (
        f"A BERT-base of {bert['model_mb']:.0f} MB, loaded, fused without verification and saved: {measured('bert_base')}"
        f"\n\n{table(headings, rows, numbers=3)}\n\n"
        f"A synthetic graph of {most:,} nodes, and the growth of cost up to it: {measured('scaling')}"
        f"\n\n{table(grown, large, numbers=4)}\n\n"
        f"The aims there were {aims['times_faster_than_onnxscript']['target']:g} times the speed of onnxscript's rewriter in "
        f"{aims['memory_of_onnxscript']['target']:g} of its memory. Reached were "
        f"{aims['times_faster_than_onnxscript']['value']:g} times and {aims['memory_of_onnxscript']['value']:g}.\n\n"
        f"A model with {external['weights_gb']:.1f} GB of external weights takes {external['fuse']['cpu_seconds']:.1f} CPU "
        f"seconds and {external['fuse']['above_mb']:.0f} MB above the imports ({external['fuse']['process_cpu_seconds']:.1f} s "
        "with Python and the imports); its weights are not read."
    )


def coverage() -> str:
    """Attention blocks fused over the exported architectures."""
    return compared("coverage")


def peers() -> str:
    """One export of each architecture, beside other tools."""
    return compared("peers/coverage")


def compared(name: str) -> str:
    """What a run of `benchmarks/coverage.py` found, with a column for each tool."""
    data = results(name)
    rows, tools = data["results"], data["tools"]
    cells = [blocks(rows, tools), *([label, *summed(rows, tools, row)] for label, row in SUMMED.items())]
    return f"{len(rows)} exports: {measured(name)}\n\n{table(('', *tools), cells, numbers=len(tools))}"


SUMMED = {
    "norms fused with the attention before them": "norms fused with the attention before them, of those that stand there",
    "wrong results": "results that are wrong",
    "results that ONNX Runtime cannot run": "results ONNX Runtime cannot run",
    "exports it fails on": "exports it fails on",
}
"""What is told of each tool: how it is called here and in `benchmarks/coverage.py`."""


def blocks(rows: Sequence[Mapping[str, Any]], tools: Sequence[str]) -> list[str]:
    """Attention blocks that each tool fused, of those there are."""
    fused = [sum(from_benchmarks("coverage").fused_blocks(row, tool) for row in rows) for tool in tools]
    return ["attention blocks fused", *(f"{count} of {sum(row['blocks'] for row in rows)}" for count in fused)]


def summed(rows: Sequence[Mapping[str, Any]], tools: Sequence[str], what: str) -> list[str]:
    describe = from_benchmarks("coverage").SUMMARY[what]
    return [describe(rows, tool).replace("/", " of ") or NOT_MEASURED for tool in tools]


def from_benchmarks(name: str) -> Any:
    """A module of `benchmarks`, which is no package that is installed."""
    if str(ROOT) not in sys.path:
        sys.path.insert(0, str(ROOT))
    return importlib.import_module(f"benchmarks.{name}")


def kernels() -> str:
    """Device times of the plugins, or that there are none yet."""
    benchmark = from_benchmarks("kernels")
    text: str = benchmark.table(benchmark.read(benchmark.RESULT) if benchmark.RESULT.is_file() else None)
    return text


def kernel_costs() -> str:
    """What the machine code of the kernels tells, and what it predicts."""
    data = results("kernel_costs")
    text: str = from_benchmarks("kernel_costs").table(data)
    return text


def predictions() -> str:
    """What `--select auto` predicts for the recommender models."""
    text: str = from_benchmarks("predictions").table(results("predictions"))
    return text


# --- README.md -------------------------------------------------------------------------------------------------------


def headline() -> str:
    """The few figures of the README: onnx-fuse beside the tools that do the same."""
    data, bert, scaling = results("peers/coverage"), results("bert_base"), results("scaling")
    rows, tools = data["results"], data["tools"]
    names = [tool.partition(" ")[0] for tool in tools]
    most = max(row["nodes"] for row in scaling["results"])
    of_bert = {row["tool"]: row for row in bert["results"]}
    of_largest = {row["tool"]: row for row in scaling["results"] if row["nodes"] == most}
    seconds = [f"{found['cpu_seconds']:.1f}" if (found := of_bert.get(name)) else NOT_MEASURED for name in names]
    memory = [f"{found['peak_mb'] / 1000:.1f}" if (found := of_bert.get(name)) else NOT_MEASURED for name in names]
    largest = [f"{found['cpu_seconds']:.1f}" if (found := of_largest.get(name)) else NOT_MEASURED for name in names]
    cells = [
        blocks(rows, tools),
        *([label, *summed(rows, tools, row)] for label, row in SUMMED.items()),
        [f"BERT-base of {bert['model_mb']:.0f} MB: CPU seconds", *seconds],
        [f"BERT-base of {bert['model_mb']:.0f} MB: peak memory, GB", *memory],
        [f"synthetic graph of {most:,} nodes: CPU seconds", *largest],
    ]
    return table((f"one export each of {len(rows)} models", *names), cells, numbers=len(tools))


GENERATORS: dict[str, Callable[[], str]] = {
    make.__name__: make
    for make in (
        operators,
        troubleshooting,
        codes,
        recommenders,
        onnxruntime,
        fusing,
        coverage,
        peers,
        kernels,
        kernel_costs,
        predictions,
        headline,
    )
} | {fusion.operator.name: partial(declared, fusion.operator) for fusion in onnx_fuse.fusions()}

SOURCES_MADE = {
    ROOT / "plugin_csrc" / "operators" / "declared.cpp": lambda: declared_cpp.source(all_operators()),
    kernel_table.FILE: lambda: from_benchmarks("kernel_costs").packed(results("kernel_costs")),
}
"""Files that are made from code as a whole."""


def all_operators() -> list[FusedOp]:
    return sorted((fusion.operator for fusion in onnx_fuse.fusions()), key=lambda operator: operator.name)


def generated(page: str) -> str:
    """A page with its generated parts as they should be now."""
    return MARKED.sub(lambda found: f"{found[1]}\n{GENERATORS[found[2]]()}\n\n{found[3]}", page)


def main() -> None:
    for path in (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))):
        text = path.read_text(encoding="utf-8")
        if (new := generated(text)) != text:
            path.write_text(new, encoding="utf-8")
            print(f"updated {path.relative_to(ROOT)}")
    for path, make in SOURCES_MADE.items():
        if path.read_text(encoding="utf-8") != (new := make()):
            path.write_text(new, encoding="utf-8")
            print(f"updated {path.relative_to(ROOT)}")


if __name__ == "__main__":
    main()
