"""What `--select auto` predicts for the recommender models of examples/models: no GPU is needed, and nothing is measured.

    python benchmarks/predictions.py

Every model with random weights, exported, fused, and its fused nodes predicted as float16 on several devices: microseconds that
TensorRT adds without the plugin, and those of the plugin. The examples are small; those of HSTU are there once more with the heads
that such models have. The figures change with the kernels (`benchmarks/kernel_costs.py`) and with the cost model.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

if __name__ == "__main__":
    # The repository, and not this folder, whose `coverage` would hide the package of that name.
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import onnx_fuse
from benchmarks import common
from onnx_fuse.passes.select.predicted import select_fused

RESULT = common.RESULTS / "predictions.json"
DEVICES = ("A100", "H100", "H200")
PRECISION = "float16"
BATCHES = (16, 1024)
LONG = 256
WIDE = "heads of 64"
WIDTHS = {"hidden": 256, "heads": 4, "size": 64, "value_size": 64, "max_length": LONG}


def predicted(name: str) -> list[dict[str, Any]]:
    """Rows for a model: one for each kind of fused node and batch, by device."""
    # Here, so that the table can be written where torch is not installed.
    import torch

    from benchmarks.recommenders import ITEMS, LENGTH, MODELS
    from examples.models.generative_recommender import GenerativeRecommender
    from examples.models.hstu import ResearchHSTU

    wide = {"HSTU, research": ResearchHSTU, "generative recommender": GenerativeRecommender}
    torch.manual_seed(0)
    source = MODELS[name][0]()
    rows = _rows(name, source, LENGTH)
    if name in wide:
        module = wide[name](ITEMS, **WIDTHS).eval()
        rows += _rows(f"{name}, {WIDE}", replace(source, module=module, _programs={}), LONG)
    return rows


def _rows(name: str, source: Any, length: int) -> list[dict[str, Any]]:
    from benchmarks.recommenders import FM

    fused = onnx_fuse.fuse(source.export("script", 17), enable=[FM], verify=False).model
    axes = {dim.dim_param for value in fused.graph.input for dim in value.type.tensor_type.shape.dim}
    rows: list[dict[str, Any]] = []
    for batch in BATCHES:
        sizes = {axis: size for axis, size in (("B", batch), ("N", length)) if axis in axes}
        for device in DEVICES:
            chosen = select_fused(fused, sizes=sizes, device=device, precision=PRECISION, alternative="original")
            for operator in dict.fromkeys(item.operator for item in chosen.decisions):
                alike = [item for item in chosen.decisions if item.operator == operator]
                place = {"model": name, "operator": operator, "nodes": len(alike), "batch": batch, "length": length}
                row = next((row for row in rows if place.items() <= row.items()), None)
                if row is None:
                    row = {**place, "devices": {}}
                    rows.append(row)
                row["devices"][device] = {
                    "kept": sum(item.keep for item in alike),
                    "before_us": round(sum(item.before_us or 0 for item in alike), 1),
                    "after_us": round(sum(item.after_us or 0 for item in alike), 1),
                    "reasons": sorted({item.reason for item in alike}),
                }
    return rows


def table(content: Mapping[str, Any]) -> str:
    """The predictions in Markdown."""
    devices = content["devices"]
    lines = [
        f"Predicted as {content['precision']}: microseconds for the fused nodes of a kind together, without the plugin and with "
        "it, and what `--select auto` decides.",
        "",
        f"| model | fused | batch | items | {' | '.join(devices)} |",
        "| --- | --- | ---: | ---: " + "| --- " * len(devices) + "|",
    ]
    for row in content["results"]:
        cells = [row["model"], f"{row['nodes']} {row['operator']}", str(row["batch"]), str(row["length"])]
        for device in devices:
            told = row["devices"][device]
            verdict = {0: "leave", row["nodes"]: "keep"}.get(told["kept"], f"keep {told['kept']}")
            cells.append(f"{told['before_us']:.1f} to {told['after_us']:.1f}, {verdict}")
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def report(names: Sequence[str]) -> dict[str, Any]:
    """The rows of these models, and what they were made for."""
    return {
        "precision": PRECISION,
        "devices": list(DEVICES),
        "results": [row for name in names for row in predicted(name)],
    }


def main() -> None:
    from benchmarks.recommenders import MODELS

    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--models", nargs="+", choices=list(MODELS), default=list(MODELS))
    arguments.add_argument("--out", type=Path, default=RESULT, help="the result file")
    given = arguments.parse_args()
    content = report(given.models)
    common.write_json(given.out, content)
    print(table(content))


if __name__ == "__main__":
    main()
