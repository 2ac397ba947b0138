"""What fusing a BERT-base takes: onnx-fuse without verification beside onnxruntime's optimizer for transformers.

    python benchmarks/bert_base.py

The model has 12 layers and about 440 MB of random weights, exported by torch in one file. Each measurement loads it, fuses it and
saves the result in a process of its own, with all imports done before; the median of several processes counts.
"""

from __future__ import annotations

import argparse
import logging
import statistics
import sys
import tempfile
import warnings
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

if __name__ == "__main__":
    # The repository, and not this folder, whose `coverage` would hide the package of that name.
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import onnx

from benchmarks import common
from benchmarks.coverage import ATTENTION
from onnx_fuse.versions import installed_versions

OURS, PEER, PEER_0 = "onnx-fuse", "onnxruntime.transformers", "onnxruntime.transformers, opt_level=0"
HEADS = 12
WIDTH = 64  # of a head


def export(path: Path, layers: int, heads: int) -> None:
    """BERT with random weights, as torch's script exporter writes it at opset 17."""
    import torch
    from transformers import BertConfig, BertModel

    from tests.models.zoo import FirstOutput

    width = heads * WIDTH
    config = BertConfig(
        hidden_size=width,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        intermediate_size=4 * width,
        attn_implementation="eager",
    )
    ids = torch.ones(1, 8, dtype=torch.long)
    names = ["input_ids", "attention_mask"]
    axes = {name: {0: "batch", 1: "sequence"} for name in names}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            FirstOutput(BertModel(config), names).eval(),
            (ids, ids),
            str(path),
            input_names=names,
            dynamic_axes=axes,
            opset_version=17,
            dynamo=False,
        )


def _task(job: Mapping[str, Any]) -> Callable[[], None]:
    """What one process does, with all it needs imported."""
    source, target = job["source"], job["target"]
    if job["tool"] == OURS:
        import onnx_fuse.api

        return lambda: onnx_fuse.api.fuse(source, verify=False).save(target)

    import torch  # noqa: F401  (it asks for torch's version)
    from onnxruntime.transformers.optimizer import optimize_model

    def run() -> None:
        sizes = {"num_heads": job["heads"], "hidden_size": job["heads"] * WIDTH}
        optimized = optimize_model(source, model_type="bert", opt_level=int(job["tool"] == PEER), **sizes)
        optimized.save_model_to_file(target)

    return run


def _run_job(job: dict[str, Any]) -> dict[str, Any]:
    logging.disable(logging.CRITICAL)
    cost, _ = common.measured(_task(job))
    operators = Counter(node.op_type for node in onnx.load(job["target"], load_external_data=False).graph.node)
    return {**cost, "attention": sum(operators[name] for name in ATTENTION), "nodes": operators.total()}


def measure(source: Path, target: Path, heads: int, repeats: int) -> list[dict[str, Any]]:
    """The median of each tool's processes, which take turns."""
    tools = (OURS, PEER, PEER_0)
    runs: dict[str, list[dict[str, Any]]] = {tool: [] for tool in tools}
    for _ in range(repeats):
        for tool in tools:
            job = {"tool": tool, "source": str(source), "target": str(target), "heads": heads}
            runs[tool].append(common.run_child(__file__, job))
    return [
        {
            "tool": tool,
            **{field: statistics.median(run[field] for run in found) for field in found[0]},
            "cpu_seconds_of_each": [run["cpu_seconds"] for run in found],
        }
        for tool, found in runs.items()
    ]


def table(rows: Sequence[Mapping[str, Any]], size: float) -> str:
    """The results as Markdown."""
    lines = [
        f"BERT, {size:.0f} MB: load, fuse, save. Times {OURS} in brackets.",
        "",
        "| tool | attention fused | nodes left | CPU s | with imports | peak MB | above imports |",
        "| --- | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    ours = rows[0]

    def cell(row: Mapping[str, Any], field: str, form: str) -> str:
        times = "" if row is ours else f" ({row[field] / ours[field]:.1f})"
        return format(row[field], form) + times

    for row in rows:
        figures = (("cpu_seconds", ".2f"), ("process_cpu_seconds", ".2f"), ("peak_mb", ".0f"), ("above_mb", ".0f"))
        costs = " | ".join(cell(row, field, form) for field, form in figures)
        lines.append(f"| {row['tool']} | {row['attention']:.0f} | {row['nodes']:.0f} | {costs} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    """Exports, measures, prints, and writes bert_base.json and bert_base.md."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--layers", type=int, default=12)
    parser.add_argument("--heads", type=int, default=HEADS, help=f"each {WIDTH} wide")
    parser.add_argument("--repeats", type=int, default=3, help="processes for each tool")
    parser.add_argument("--out", type=Path, default=common.RESULTS, help="folder for bert_base.json and bert_base.md")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="onnx-fuse-bert-") as folder:
        source = Path(folder) / "bert.onnx"
        export(source, arguments.layers, arguments.heads)
        size = source.stat().st_size / 1e6
        rows = measure(source, Path(folder) / "fused.onnx", arguments.heads, arguments.repeats)
    text = table(rows, size)
    content = {
        "what": "load, fuse and save a BERT; each measurement in a process of its own",
        "command": common.command_line(),
        "machine": common.machine(),
        "versions": installed_versions(
            ("onnx-fuse", "onnx", "onnxruntime", "onnxscript", "torch", "transformers", "numpy")
        ),
        "layers": arguments.layers,
        "model_mb": round(size, 1),
        "results": rows,
    }
    common.write_json(arguments.out / "bert_base.json", content)
    (arguments.out / "bert_base.md").write_text(text)
    print(text)


if __name__ == "__main__":
    child = common.child_job()
    if child is None:
        main()
    else:
        common.deliver(_run_job(child))
